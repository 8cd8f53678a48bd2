//! Pages of large vectors.

/// Bytes of a huge page where they have their usual size.
pub const HUGE_PAGE: usize = 1 << 21;

/// Below it, too little of a vector would lie on whole huge pages, together with its neighbours.
pub const WORTH_BYTES: usize = 1 << 18;

/// Asks the system to put fresh memory on huge pages (2 MiB): a first touch then costs one page fault for 512, and sweeps miss fewer
/// translations. Values stay as they are, and a system that has none goes on without them.
pub fn ask_for_huge_pages(values: &mut [f32]) {
    #[cfg(target_os = "linux")]
    if size_of_val(values) >= WORTH_BYTES {
        const PAGE: usize = 4096;
        let (address, bytes) = (values.as_mut_ptr() as usize, size_of_val(values));
        let first = address.next_multiple_of(PAGE) - address;
        let len = (bytes - first) / PAGE * PAGE;
        // SAFETY: the range lies within `values`, which is borrowed mutably; this advice changes no contents. Its failure is no error.
        unsafe { libc::madvise(values.as_mut_ptr().byte_add(first).cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_no_value() {
        for len in [0, 1, 1000, (1 << 16) - 1, 1 << 16, (1 << 20) + 7] {
            let mut values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let twin = values.clone();
            ask_for_huge_pages(&mut values);
            assert_eq!(values, twin);
            values.fill(1.0);
            assert_eq!(values.len(), len);
        }
    }
}
