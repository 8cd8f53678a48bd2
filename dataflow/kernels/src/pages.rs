//! Huge pages for large vectors.

/// Bytes of a huge page, of the usual size on x86-64 and AArch64.
pub const HUGE_PAGE: usize = 1 << 21;

/// The fewest bytes for which huge pages are requested. Smaller vectors share theirs with too many
/// neighbours.
pub const WORTH_BYTES: usize = 1 << 18;

/// Advises Linux to put fresh memory on huge pages of 2 MiB (`MADV_HUGEPAGE`): one page fault instead of
/// 512 at the first touch, and fewer TLB misses. Values do not change; a system without huge pages ignores
/// it.
pub fn ask_for_huge_pages(values: &mut [f32]) {
    #[cfg(target_os = "linux")]
    if size_of_val(values) >= WORTH_BYTES {
        const PAGE: usize = 4096;
        let (address, bytes) = (values.as_mut_ptr() as usize, size_of_val(values));
        let first = address.next_multiple_of(PAGE) - address;
        let len = (bytes - first) / PAGE * PAGE;
        // SAFETY: the range lies within `values`, and this advice changes no contents. Its failure may be
        // ignored.
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
