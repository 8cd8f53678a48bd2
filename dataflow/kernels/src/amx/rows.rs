//! The epilogue of a block of C, interleaved with the products of the next block.
//!
//! [`super::blocks`] calls [`Rows::slot`] every few TDPBF16PS; a slot stores some rows and prefetches some
//! lines.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

use super::layout::{BLOCK, TILE};
use crate::product::{Place, Product, prefetch, store_any, store_whole};
use crate::simd::Simd;
use crate::x86::Avx512;

/// Rows of C that are stored together.
const ROWS: usize = 2;

/// The epilogue of one product, and the prefetches for it.
pub(super) struct Rows<'a> {
    s: Avx512,
    product: &'a Product,
    /// The previous block of C, summed but not yet stored.
    previous: Option<Summed>,
    /// The block of C that is being summed.
    place: Place,
    /// The next row to store of the previous block, and to prefetch of this one.
    next: usize,
    rows_per_slot: usize,
    /// Kept panels of B that come next and may have been evicted from the second-level cache.
    panels: Range<*const f32>,
    lines_per_slot: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(s: Avx512, product: &'a Product) -> Self {
        let place = Place { at: 0, col: 0, rows: 0, cols: 0 };
        let panels = std::ptr::null()..std::ptr::null();
        Rows { s, product, previous: None, place, next: BLOCK, rows_per_slot: 0, panels, lines_per_slot: 0 }
    }

    /// Over the next `num_slots` slots: stores the previous block, and prefetches the rows of C at `place`.
    pub(super) fn begin(&mut self, place: Place, num_slots: usize) {
        (self.place, self.next, self.rows_per_slot) = (place, 0, (BLOCK / ROWS).div_ceil(num_slots) * ROWS);
    }

    /// Over the next `num_slots` slots: prefetches `len` values of packed panels into the second-level cache.
    pub(super) fn prefetch_later(&mut self, packed: *const f32, len: usize, num_slots: usize) {
        self.panels = packed..packed.wrapping_add(len);
        self.lines_per_slot = (len / TILE).div_ceil(num_slots);
    }

    /// Stores and prefetches the share of one slot.
    ///
    /// # Safety
    /// The sums of the previous block must be readable, and its place must lie in C.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline(never)]
    pub(super) unsafe fn slot(&mut self) {
        // SAFETY: sum_block() of blocks.rs calls this while the previous sums are kept in the scratch.
        unsafe { self.store(self.next + self.rows_per_slot) };
        for _ in 0..self.lines_per_slot {
            if self.panels.start >= self.panels.end {
                break;
            }
            _mm_prefetch::<_MM_HINT_T1>(self.panels.start.cast());
            self.panels.start = self.panels.start.wrapping_add(TILE);
        }
    }

    /// Stores what is left of the previous block, and keeps `summed`, to be stored during the next one.
    ///
    /// `#[inline(always)]` on purpose: passing `summed` through memory defeats store-to-load forwarding (see
    /// [`super::queue::Queue`]; 1.04 of the time of a product).
    ///
    /// # Safety
    /// As [`Rows::slot`]; `summed.sums` must stay readable until the next call has returned.
    #[inline(always)]
    pub(super) unsafe fn hand_over(&mut self, summed: Summed) {
        if self.next < BLOCK {
            // SAFETY: blocks() alternates between two blocks of sums, so the previous ones are still there.
            unsafe { self.store(BLOCK) };
        }
        self.previous = Some(summed);
    }

    /// Stores the last block.
    ///
    /// # Safety
    /// As [`Rows::slot`].
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    pub(super) unsafe fn finish(&mut self) {
        (self.place.rows, self.next) = (0, 0);
        // SAFETY: blocks() keeps the last sums until this returns.
        unsafe { self.store(BLOCK) };
    }

    /// Stores the rows of the previous block before `end`, and prefetches as many of this block.
    ///
    /// # Safety
    /// As [`Rows::slot`].
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    unsafe fn store(&mut self, end: usize) {
        while self.next < end.min(BLOCK) {
            let num_rows = self.place.rows.saturating_sub(self.next).min(ROWS);
            let at = self.place.at + self.next * self.product.ldc;
            prefetch(self.s, self.product, Place { at, ..self.place }, num_rows, self.place.cols);
            if let Some(previous) = &self.previous {
                // SAFETY: slot()'s callers keep the previous sums readable, and its place lies in C.
                unsafe { previous.store(self.s, self.product, self.next) };
            }
            self.next += ROWS;
        }
    }
}

/// A block of C that is summed but not yet stored.
#[derive(Clone, Copy)]
pub(super) struct Summed {
    pub(super) sums: *const f32,
    pub(super) place: Place,
    pub(super) add: bool,
    pub(super) last: bool,
}

impl Summed {
    /// Stores rows `first`.. of the block, [`ROWS`] of them or those that are left, through the epilogue of
    /// `p`.
    ///
    /// # Safety
    /// `sums` must be readable for a block, and the place must lie in C.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    unsafe fn store(&self, s: Avx512, p: &Product, first: usize) {
        let Summed { sums, place, add, last } = *self;
        let num_rows = place.rows.saturating_sub(first).min(ROWS);
        let place = Place { at: place.at + first * p.ldc, rows: num_rows, ..place };
        // SAFETY: Rows keeps `sums` readable for a block, and these rows are part of the place, which lies
        // in C.
        unsafe {
            let sums = sums.add(first * BLOCK);
            if place.cols < BLOCK || num_rows < ROWS || (last && p.finish.is_long()) {
                return store_any(s, sums, BLOCK, add, last, p, place);
            }
            let mut rows = [[s.splat(0.0); 2]; ROWS];
            for (i, row) in rows.iter_mut().enumerate() {
                let from = sums.add(i * BLOCK);
                *row = [s.load(from), s.load(from.add(TILE))];
            }
            store_whole(s, rows, add, last, p, place);
        }
    }
}
