//! Scratch memory, one buffer a thread, which is reused by its next call.

use std::cell::RefCell;

use super::pages::{HUGE_PAGE, WORTH_BYTES, ask_for_huge_pages};

/// `f32` values of a cache line of 64 bytes.
pub const LINE: usize = 16;

/// Calls `f` with `len` values of this thread's scratch, aligned to a cache line (so that no vector
/// straddles two) or, if large, to a huge page. The values are unspecified: what earlier calls left.
///
/// # Panics
/// If `f` calls this again: kernels do not nest.
pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local!(static VALUES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    VALUES.with_borrow_mut(|values| {
        let bytes = 4 * len;
        let align = if bytes >= WORTH_BYTES { HUGE_PAGE } else { 4 * LINE };
        let room = bytes.next_multiple_of(align) + align;
        if 4 * values.len() < room {
            // Freed before the new allocation, as its values need not be copied.
            *values = Vec::new();
            *values = vec![0.0; room / 4];
            ask_for_huge_pages(values);
        }
        let start = values.as_ptr().align_offset(align);
        f(&mut values[start..][..len])
    })
}
