//! Working memory of the calling thread, kept from call to call.

use std::cell::RefCell;

use super::pages::{HUGE_PAGE, WORTH_BYTES, ask_for_huge_pages};

/// Values of a cache line: vectors read from scratch never straddle two.
pub const LINE: usize = 16;

/// Calls `f` with `len` values of this thread's scratch, aligned to a cache line, or to a huge page if it is worth one; what they hold is
/// left over from earlier calls.
///
/// Kernels do not nest: a call inside `f` panics.
pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local!(static VALUES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    VALUES.with_borrow_mut(|values| {
        let bytes = 4 * len;
        let align = if bytes >= WORTH_BYTES { HUGE_PAGE } else { 4 * LINE };
        let room = bytes.next_multiple_of(align) + align;
        if 4 * values.len() < room {
            // What it holds need not be kept.
            *values = Vec::new();
            *values = vec![0.0; room / 4];
            ask_for_huge_pages(values);
        }
        let start = values.as_ptr().align_offset(align);
        f(&mut values[start..][..len])
    })
}
