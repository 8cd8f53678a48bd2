//! Working memory of the calling thread, kept from call to call.

use std::cell::RefCell;

/// A cache line, so that vectors read from scratch never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Values of a cache line.
pub(crate) const LINE: usize = 16;

/// Calls `f` with `len` values of this thread's scratch, aligned to a cache line; what they hold is left over from earlier calls.
///
/// Kernels do not nest: a call inside `f` panics.
pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local!(static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    LINES.with_borrow_mut(|lines| {
        let needed = len.div_ceil(LINE);
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; LINE]));
        }
        // SAFETY: Line is LINE values without padding, there are at least `len` of them, and `lines` is borrowed for as long.
        f(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), len) })
    })
}
