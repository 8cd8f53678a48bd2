//! The memory of this process, as the system counts it.

/// Resident and peak memory of the process in bytes, where the system tells (Linux).
#[must_use]
pub fn process_memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    };
    Some((bytes("VmRSS:")?, bytes("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_at_least_what_was_just_touched() {
        let touched = vec![1_u8; 32 << 20];
        let (resident, peak) = process_memory().unwrap();
        assert!(resident > touched.iter().map(|&b| u64::from(b)).sum() && peak >= resident / 2, "{resident} {peak}");
    }
}
