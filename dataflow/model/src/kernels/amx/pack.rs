//! Factors packed as tiles: every value as three bf16 parts.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::gemm::Operand;
use super::super::simd::Simd;
use super::super::x86::Avx512;
use super::{BLOCK, STEP, STEP_WORDS, TILE, TILE_WORDS};

/// One factor as its tiles see it: element (i, k) is at `ptr + i * outer + k * depth`, with i a row of op(A) or a column of op(B).
#[derive(Clone, Copy)]
pub(super) struct Side {
    ptr: *const f32,
    outer: usize,
    depth: usize,
    /// Whether the rows of a tile go along k (B), or its lanes (A).
    rows_are_deep: bool,
}

impl Side {
    pub(super) fn a(a: Operand) -> Self {
        Side { ptr: a.ptr, outer: a.row, depth: a.col, rows_are_deep: false }
    }

    pub(super) fn b(b: Operand) -> Self {
        Side { ptr: b.ptr, outer: b.col, depth: b.row, rows_are_deep: true }
    }

    /// Asks for the values of a tile.
    #[inline(always)]
    fn fetch_tile(&self, s: Avx512, at: *const f32) {
        let (rows, row_step, second) = if self.outer == 1 { (STEP, self.depth, 0) } else { (TILE, self.outer, TILE) };
        for r in 0..rows {
            s.prefetch(at.wrapping_add(r * row_step));
            if second > 0 {
                s.prefetch(at.wrapping_add(r * row_step + second));
            }
        }
    }

    /// The step between the rows of what is stored where they are the lanes of a tile.
    fn lies_across(&self) -> Option<usize> {
        let (lanes_adjoin, step) =
            if self.rows_are_deep { (self.outer == 1, self.outer) } else { (self.depth == 1, self.depth) };
        (!lanes_adjoin).then_some(step)
    }
}

/// Panels of one factor over a stretch of k, packed little by little.
pub(super) struct Packer<'a> {
    pub(super) side: Side,
    /// All rows of op(A) or columns of op(B) that have panels.
    pub(super) outer: Range<usize>,
    pub(super) depth: Range<usize>,
    pub(super) to: &'a mut [f32],
}

impl Packer<'_> {
    /// Packs some of the tiles of the panel with number `panel` as the one at `place`: 32 rows of op(A) or columns of op(B), for each
    /// step of 32 along k one tile a part for the first half and for the second (not of A if that is empty). What lies outside is zero.
    ///
    /// # Safety
    /// All elements must be readable.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    pub(super) unsafe fn pack(
        &mut self,
        s: Avx512,
        panel: usize,
        place: usize,
        tiles: Range<usize>,
        turned: &mut Turned,
    ) {
        let (side, num_steps) = (self.side, self.depth.len().div_ceil(STEP));
        let first = self.outer.start + panel * BLOCK;
        let num_outer = (self.outer.end - first).min(BLOCK);
        let len = num_steps * 2 * STEP_WORDS;
        let to = self.to[place * len..][..len].as_mut_ptr();
        for number in tiles {
            // Along the rows of what is stored, so that it is read in order.
            let find = |number: usize| {
                let (half, step) =
                    if side.depth == 1 { (number / num_steps, number % num_steps) } else { (number % 2, number / 2) };
                let (i, k) = (first + half * TILE, self.depth.start + step * STEP);
                (half, step, side.ptr.wrapping_add(i * side.outer + k * side.depth))
            };
            let (half, step, at) = find(number);
            let (i, k) = (half * TILE, step * STEP);
            if number + 1 < 2 * num_steps {
                side.fetch_tile(s, find(number + 1).2);
            }
            if i >= num_outer && !side.rows_are_deep {
                // Rows of A that `Tiles::add_upper_step` does not read.
                continue;
            }
            // SAFETY: the tile lies in its panel; whole ones are readable, others as far as their counts say.
            unsafe {
                let to = to.add(step * 2 * STEP_WORDS + half * STEP_WORDS);
                if i + TILE <= num_outer && k + STEP <= self.depth.len() {
                    pack_whole_tile(s, side, at, turned, to);
                } else {
                    let num_outer = num_outer.saturating_sub(i).min(TILE);
                    let num_deep = [k, k + TILE].map(|k| self.depth.len().saturating_sub(k).min(TILE));
                    pack_tile(s, side, at, num_outer, num_deep, turned, to);
                }
            }
        }
    }
}

/// Two squares of 16 by 16, turned.
#[repr(C, align(64))]
pub(super) struct Turned([f32; 2 * TILE_WORDS]);

impl Turned {
    pub(super) fn new() -> Self {
        Turned([0.0; 2 * TILE_WORDS])
    }
}

/// Packs the parts of one tile: row r holds pairs of the values at r of two squares of 16 by 16, the second 16 steps of k behind the
/// first. Which of k's steps make a pair does not matter, as both factors have the same.
///
/// # Safety
/// From `at`, 16 by 32 values must be readable; `to` must be writable for [`STEP_WORDS`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
#[inline]
unsafe fn pack_whole_tile(s: Avx512, side: Side, at: *const f32, turned: &mut Turned, to: *mut f32) {
    let second = TILE * side.depth;
    // SAFETY: by contract.
    unsafe {
        let (from, second, row_step) = match side.lies_across() {
            None => (at, second, if side.rows_are_deep { side.depth } else { side.outer }),
            Some(step) => {
                let square = turned.0.as_mut_ptr();
                s.transpose(at, step, TILE - 1, square, TILE);
                s.transpose(at.add(second), step, TILE - 1, square.add(TILE_WORDS), TILE);
                (square.cast_const(), TILE_WORDS, TILE)
            }
        };
        for r in 0..TILE {
            let row = from.add(r * row_step);
            store_pairs(s.load(row), s.load(row.add(second)), to.add(r * TILE));
        }
    }
}

/// As [`pack_whole_tile`] where only `num_outer` by `num_deep` values are there; zeros stand for the others.
///
/// # Safety
/// From `at`, these values must be readable; `to` must be writable for [`STEP_WORDS`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
#[inline(never)]
unsafe fn pack_tile(
    s: Avx512,
    side: Side,
    at: *const f32,
    num_outer: usize,
    num_deep: [usize; 2],
    turned: &mut Turned,
    to: *mut f32,
) {
    let squares = [at, at.wrapping_add(TILE * side.depth)];
    let (rows, lanes) = if side.rows_are_deep { (num_deep, [num_outer; 2]) } else { ([num_outer; 2], num_deep) };
    let (row_step, lane_step) = if side.rows_are_deep { (side.depth, side.outer) } else { (side.outer, side.depth) };
    // SAFETY: only elements inside the counts are read; rows 0..16 of each part are written.
    unsafe {
        turned.0.fill(0.0);
        let turned = turned.0.as_mut_ptr();
        for i in 0..2 {
            let turned = turned.add(i * TILE_WORDS);
            if side.lies_across().is_none() {
                for r in 0..rows[i] {
                    s.store(turned.add(r * TILE), s.load_n(squares[i].add(r * row_step), lanes[i]));
                }
            } else if rows[i] == TILE && lanes[i] > 0 {
                s.transpose(squares[i], lane_step, lanes[i] - 1, turned, TILE);
                for r in 0..TILE {
                    s.store(turned.add(r * TILE), s.keep(s.load(turned.add(r * TILE)), lanes[i]));
                }
            } else {
                for r in 0..rows[i] {
                    for l in 0..lanes[i] {
                        *turned.add(r * TILE + l) = *squares[i].add(r * row_step + l * lane_step);
                    }
                }
            }
        }
        for r in 0..TILE {
            store_pairs(s.load(turned.add(r * TILE)), s.load(turned.add(TILE_WORDS + r * TILE)), to.add(r * TILE));
        }
    }
}

/// Writes one row of each part's tile: pairs of the parts of `x` (low half) and `y`.
///
/// # Safety
/// `to` must be writable for a vector at each part's tile.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
#[inline]
unsafe fn store_pairs(x: __m512, y: __m512, to: *mut f32) {
    // SAFETY: the caller's token stands for these instructions.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let half = _mm512_set1_epi32(0x8000);
        // The nearest bf16 in the upper half, whatever in the lower.
        let nearest = |x: __m512| _mm512_add_epi32(_mm512_castps_si512(x), half);
        let rest = |x: __m512, high: __m512i| _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(high, upper)));
        // low | high & upper
        let pair = |x: __m512i, y: __m512i| _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(x), y, upper);
        let (x_high, y_high) = (nearest(x), nearest(y));
        _mm512_store_si512(to.cast(), pair(x_high, y_high));
        let (x, y) = (rest(x, x_high), rest(y, y_high));
        let (x_middle, y_middle) = (nearest(x), nearest(y));
        _mm512_store_si512(to.add(TILE_WORDS).cast(), pair(x_middle, y_middle));
        // What is left has 8 bits.
        let (x, y) = (rest(x, x_middle), rest(y, y_middle));
        _mm512_store_si512(to.add(2 * TILE_WORDS).cast(), pair(_mm512_castps_si512(x), _mm512_castps_si512(y)));
    }
}
