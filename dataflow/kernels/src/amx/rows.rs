//! What is done for the rows of C while the tile unit multiplies.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

use super::layout::{BLOCK, TILE};
use crate::product::{Place, Product, prefetch, store_any, store_whole};
use crate::simd::Simd;
use crate::x86::Avx512;

/// Rows of C that are stored at a time.
const ROWS: usize = 2;

/// What is done for the rows of C beside the blocks of one product.
pub(super) struct Rows<'a> {
    s: Avx512,
    product: &'a Product,
    /// The block of C before this one.
    before: Option<Summed>,
    /// This block of C.
    place: Place,
    next: usize,
    a_turn: usize,
    /// Packed panels of B that will be needed again.
    again: Range<*const f32>,
    lines_a_turn: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(s: Avx512, product: &'a Product) -> Self {
        let place = Place { at: 0, col: 0, rows: 0, cols: 0 };
        let again = std::ptr::null()..std::ptr::null();
        Rows { s, product, before: None, place, next: BLOCK, a_turn: 0, again, lines_a_turn: 0 }
    }

    /// During the next `num_turns` turns, store the block before this one, and ask for what this one is added to.
    pub(super) fn begin(&mut self, place: Place, num_turns: usize) {
        (self.place, self.next, self.a_turn) = (place, 0, (BLOCK / ROWS).div_ceil(num_turns) * ROWS);
    }

    /// During the next `num_turns` turns, ask for `len` values that were packed a while ago.
    pub(super) fn ask_again(&mut self, packed: *const f32, len: usize, num_turns: usize) {
        self.again = packed..packed.wrapping_add(len);
        self.lines_a_turn = (len / TILE).div_ceil(num_turns);
    }

    /// Does what is due.
    ///
    /// # Safety
    /// Blocks of sums must be readable and places must lie in C.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline(never)]
    pub(super) unsafe fn turn(&mut self) {
        // SAFETY: by contract.
        unsafe { self.store(self.next + self.a_turn) };
        for _ in 0..self.lines_a_turn {
            if self.again.start >= self.again.end {
                break;
            }
            _mm_prefetch::<_MM_HINT_T1>(self.again.start.cast());
            self.again.start = self.again.start.wrapping_add(TILE);
        }
    }

    /// Finishes what belongs to this block, and takes its sums to be stored beside the next.
    ///
    /// Always a part of the caller: handed over in memory, `summed` would be read as it was not written, and wait for the tile unit
    /// ([`super::queue::Queue`] says more; 1.04 of the time of a product).
    ///
    /// # Safety
    /// As [`Rows::turn`].
    #[inline(always)]
    pub(super) unsafe fn hand_over(&mut self, summed: Summed) {
        if self.next < BLOCK {
            // SAFETY: by contract.
            unsafe { self.store(BLOCK) };
        }
        self.before = Some(summed);
    }

    /// Stores the last block.
    ///
    /// # Safety
    /// As [`Rows::turn`].
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    pub(super) unsafe fn finish(&mut self) {
        (self.place.rows, self.next) = (0, 0);
        // SAFETY: by contract.
        unsafe { self.store(BLOCK) };
    }

    /// Stores the rows before `end`.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    unsafe fn store(&mut self, end: usize) {
        while self.next < end.min(BLOCK) {
            let num_rows = self.place.rows.saturating_sub(self.next).min(ROWS);
            let at = self.place.at + self.next * self.product.ldc;
            prefetch(self.s, self.product, Place { at, ..self.place }, num_rows, self.place.cols);
            if let Some(before) = &self.before {
                // SAFETY: by contract of the callers.
                unsafe { before.store(self.s, self.product, self.next) };
            }
            self.next += ROWS;
        }
    }
}

/// A block of sums on its way to C.
#[derive(Clone, Copy)]
pub(super) struct Summed {
    pub(super) sums: *const f32,
    pub(super) place: Place,
    pub(super) add: bool,
    pub(super) last: bool,
}

impl Summed {
    /// Writes [`ROWS`] rows, or those that are left, from `first` on to their place in C, with what `p` asks for.
    ///
    /// # Safety
    /// `sums` must be readable for a block, and the place must lie in C.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    unsafe fn store(&self, s: Avx512, p: &Product, first: usize) {
        let Summed { sums, place, add, last } = *self;
        let num_rows = place.rows.saturating_sub(first).min(ROWS);
        let place = Place { at: place.at + first * p.ldc, rows: num_rows, ..place };
        // SAFETY: the contract is handed on, for some rows at a time.
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
