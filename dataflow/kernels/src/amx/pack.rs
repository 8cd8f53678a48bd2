//! Packing of factors into tiles of bf16: every value becomes three bf16 parts, or one.

use std::arch::x86_64::*;

use super::layout::{TILE, TILE_WORDS};
use crate::product::Operand;
use crate::simd::Simd;
use crate::x86::Avx512;

/// Vectors that are transposed together.
const GROUP: usize = 4;
/// Stages of a group of rows: one to load each of its two squares, then one to pack each row.
const STAGES: usize = 2 + GROUP;

/// A factor with the same names for A and B: element (i, k) is at `ptr + i * outer + k * depth`, where i is
/// a row of op(A) or a column of op(B).
#[derive(Clone, Copy)]
pub(super) struct Side {
    pub(super) ptr: *const f32,
    pub(super) outer: usize,
    pub(super) depth: usize,
    /// Whether k runs along the rows of a tile (B), or along its lanes (A).
    pub(super) rows_are_deep: bool,
}

impl Side {
    pub(super) fn a(a: Operand) -> Self {
        Side { ptr: a.ptr, outer: a.row, depth: a.col, rows_are_deep: false }
    }

    pub(super) fn b(b: Operand) -> Self {
        Side { ptr: b.ptr, outer: b.col, depth: b.row, rows_are_deep: true }
    }

    /// Distances from row to row of a tile and from lane to lane; one of them is 1.
    fn steps(&self) -> [usize; 2] {
        if self.rows_are_deep { [self.depth, self.outer] } else { [self.outer, self.depth] }
    }

    /// Whether the rows of a tile are contiguous in memory instead of its lanes.
    pub(super) fn needs_transpose(&self) -> bool {
        self.steps()[1] != 1
    }
}

/// A tile to pack. Row r of each part's tile holds pairs of values, from row r of two squares of 16 by 16
/// values, the second 16 steps of k after the first. Which steps of k are paired does not matter, as both
/// factors pair the same.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) side: Side,
    /// Its first value.
    pub(super) at: *const f32,
    /// The first value of a later tile of the same side, which is prefetched.
    pub(super) ahead: *const f32,
    /// Rows of op(A) or columns of op(B) that exist. The others are packed as zeros.
    pub(super) num_outer: usize,
    /// Steps of k that exist in each square.
    pub(super) num_deep: [usize; 2],
    /// Where the first part's tile goes, at the start of a cache line; the others follow.
    pub(super) to: *mut f32,
}

impl Tile {
    pub(super) fn is_whole(&self) -> bool {
        self.num_outer == TILE && self.num_deep == [TILE; 2]
    }

    /// Packs all of it at once, not interleaved.
    ///
    /// # Safety
    /// The values that exist must be readable, and `to` writable for a tile of each part and aligned to 64
    /// bytes.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline(never)]
    pub(super) unsafe fn pack<const PARTS: usize>(&self, s: Avx512) {
        // SAFETY: the caller makes the values readable and `to` writable; the target features are those of
        // AVX-512.
        unsafe {
            match (self.is_whole(), self.side.needs_transpose()) {
                (false, _) => self.pack_part::<PARTS>(s),
                (true, false) => Contiguous::<PARTS>::new(self).slot::<0, 1>(s),
                (true, true) => {
                    let mut packing = Transposed::<PARTS>::new(s, self);
                    packing.slot::<0, 4>(s);
                    packing.slot::<1, 4>(s);
                    packing.slot::<2, 4>(s);
                    packing.slot::<3, 4>(s);
                }
            }
        }
    }

    /// [`Tile::pack`] for tiles that need not be whole.
    ///
    /// # Safety
    /// As [`Tile::pack`].
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline(never)]
    unsafe fn pack_part<const PARTS: usize>(&self, s: Avx512) {
        let [row_step, lane_step] = self.side.steps();
        for first in (0..TILE).step_by(GROUP) {
            let mut rows = [[s.splat(0.0); GROUP]; 2];
            for (i, rows) in rows.iter_mut().enumerate() {
                let square = self.at.wrapping_add(i * TILE * self.side.depth + first * row_step);
                let (num_rows, num_lanes) = if self.side.rows_are_deep {
                    (self.num_deep[i], self.num_outer)
                } else {
                    (self.num_outer, self.num_deep[i])
                };
                let num_rows = num_rows.saturating_sub(first).min(GROUP);
                // SAFETY: reads only rows and lanes that exist; the others are masked.
                unsafe {
                    if lane_step == 1 {
                        for (r, row) in rows[..num_rows].iter_mut().enumerate() {
                            *row = s.load_n(square.wrapping_add(r * row_step), num_lanes);
                        }
                    } else {
                        *rows = transpose_group(|lane| {
                            let keep = if lane < num_lanes { (1 << num_rows) - 1 } else { 0 };
                            _mm_maskz_loadu_ps(keep, square.wrapping_add(lane * lane_step))
                        });
                    }
                }
            }
            let [x, y] = rows;
            for (r, (x, y)) in x.into_iter().zip(y).enumerate() {
                // SAFETY: first + r < TILE, a row of each part's tile, which the caller of pack() makes
                // writable.
                unsafe { store_pairs::<PARTS>(x, y, self.to.add((first + r) * TILE)) };
            }
        }
    }
}

/// The packing of a whole tile, spread over the slots of one step.
pub(super) trait Packing {
    /// Packs the share of slot `I` of `N`.
    ///
    /// # Safety
    /// As [`Tile::pack`]; slots must come in their order, on a processor with AVX-512.
    unsafe fn slot<const I: usize, const N: usize>(&mut self, s: Avx512);
}

/// Nothing to pack.
pub(super) struct NoTile;

impl Packing for NoTile {
    #[inline(always)]
    unsafe fn slot<const I: usize, const N: usize>(&mut self, _s: Avx512) {}
}

/// A tile whose lanes are contiguous in memory.
pub(super) struct Contiguous<const PARTS: usize> {
    at: *const f32,
    second: usize,
    row_step: usize,
    to: *mut f32,
    ahead: *const f32,
}

impl<const PARTS: usize> Contiguous<PARTS> {
    pub(super) fn new(tile: &Tile) -> Self {
        let [row_step, _] = tile.side.steps();
        Contiguous { at: tile.at, second: TILE * tile.side.depth, row_step, to: tile.to, ahead: tile.ahead }
    }
}

impl<const PARTS: usize> Packing for Contiguous<PARTS> {
    #[inline(always)]
    unsafe fn slot<const I: usize, const N: usize>(&mut self, s: Avx512) {
        for r in I * TILE / N..(I + 1) * TILE / N {
            // SAFETY: row r of the tile and of its squares, which Tile::pack()'s contract makes writable
            // and readable.
            unsafe {
                s.prefetch(self.ahead);
                s.prefetch(self.ahead.wrapping_add(self.second));
                store_pairs::<PARTS>(s.load(self.at), s.load(self.at.wrapping_add(self.second)), self.to.add(r * TILE));
            }
            self.at = self.at.wrapping_add(self.row_step);
            self.ahead = self.ahead.wrapping_add(self.row_step);
        }
    }
}

/// A tile whose rows are contiguous in memory, so that it is transposed, in groups of [`GROUP`] rows.
pub(super) struct Transposed<const PARTS: usize> {
    at: *const f32,
    second: usize,
    lane_step: usize,
    to: *mut f32,
    ahead: *const f32,
    squares: [[__m512; GROUP]; 2],
}

impl<const PARTS: usize> Transposed<PARTS> {
    pub(super) fn new(s: Avx512, tile: &Tile) -> Self {
        let [_, lane_step] = tile.side.steps();
        let squares = [[s.splat(0.0); GROUP]; 2];
        Transposed { at: tile.at, second: TILE * tile.side.depth, lane_step, to: tile.to, ahead: tile.ahead, squares }
    }
}

impl<const PARTS: usize> Packing for Transposed<PARTS> {
    #[inline(always)]
    unsafe fn slot<const I: usize, const N: usize>(&mut self, s: Avx512) {
        const GROUPS: usize = TILE / GROUP;
        // SAFETY: the slots of a step come in order, so the stages do; Tile::pack()'s contract covers their
        // pointers.
        unsafe {
            if N.is_multiple_of(GROUPS) {
                // Each group has the same number of slots. (From these expressions the compiler knows the
                // stage as a constant; those of the other case cost 2 to 6 % of a product.)
                let slots = N / GROUPS;
                let slot_in_group = I % slots;
                for stage in slot_in_group * STAGES / slots..(slot_in_group + 1) * STAGES / slots {
                    self.stage(s, stage);
                }
            } else {
                for stage in I * GROUPS * STAGES / N..(I + 1) * GROUPS * STAGES / N {
                    self.stage(s, stage % STAGES);
                }
            }
        }
    }
}

impl<const PARTS: usize> Transposed<PARTS> {
    /// Loads one of the two squares of a group of rows (stages 0 and 1), or packs one of its rows.
    ///
    /// # Safety
    /// As [`Packing::slot`]; stages must come in their order.
    #[inline(always)]
    unsafe fn stage(&mut self, s: Avx512, stage: usize) {
        // SAFETY: the group's rows lie in the tile, whose values Tile::pack()'s contract makes readable and
        // `to` writable.
        unsafe {
            if stage < 2 {
                let square = self.at.wrapping_add(stage * self.second);
                let lane_step = self.lane_step;
                self.squares[stage] = transpose_group(|lane| _mm_loadu_ps(square.wrapping_add(lane * lane_step)));
            } else {
                let r = stage - 2;
                s.prefetch(self.ahead);
                s.prefetch(self.ahead.wrapping_add(self.second));
                self.ahead = self.ahead.wrapping_add(self.lane_step);
                store_pairs::<PARTS>(self.squares[0][r], self.squares[1][r], self.to);
                self.to = self.to.add(TILE);
                if r + 1 == GROUP {
                    self.at = self.at.wrapping_add(GROUP);
                }
            }
        }
    }
}

/// Transposes: `four(l)` has lane l of each of the [`GROUP`] vectors.
///
/// # Safety
/// The processor must have AVX-512.
#[inline(always)]
unsafe fn transpose_group(four: impl Fn(usize) -> __m128) -> [__m512; GROUP] {
    // SAFETY: the callers are slots of a packing or pack_part(), which run on AVX-512 only; no memory is
    // touched but through `four`, whose closure loads values that exist.
    unsafe {
        // Quarter q of vector j is four(4 q + j); squares of four by four remain to be transposed.
        let mut x = [_mm512_setzero_ps(); GROUP];
        for (j, x) in x.iter_mut().enumerate() {
            let v = _mm512_castps128_ps512(four(j));
            let v = _mm512_insertf32x4::<1>(v, four(4 + j));
            let v = _mm512_insertf32x4::<2>(v, four(8 + j));
            *x = _mm512_insertf32x4::<3>(v, four(12 + j));
        }
        let (a, b) = (_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
        let (c, d) = (_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let (c, d) = (_mm512_castps_pd(c), _mm512_castps_pd(d));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(a, c)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(b, d)),
        ]
    }
}

/// Stores one row of each part's tile: pairs of the bf16 parts of `x` (low half) and `y`.
///
/// # Safety
/// `to` must be aligned to 64 bytes and writable for a vector in each part's tile; the processor must have
/// AVX-512.
#[inline(always)]
unsafe fn store_pairs<const PARTS: usize>(x: __m512, y: __m512, to: *mut f32) {
    // SAFETY: Tile::pack()'s contract makes a row of each part's tile writable at `to`, at the start of a
    // cache line.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let half = _mm512_set1_epi32(0x8000);
        // The nearest bf16 is in the upper half; the lower half is arbitrary. What a part is off the next part has, so
        // that ties only matter where there is one part: there they go to even.
        let nearest = |x: __m512| {
            let bits = _mm512_castps_si512(x);
            if PARTS > 1 {
                return _mm512_add_epi32(bits, half);
            }
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
        };
        let rest = |x: __m512, high: __m512i| _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(high, upper)));
        // low | high & upper
        let pair = |x: __m512i, y: __m512i| _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(x), y, upper);
        let (x_high, y_high) = (nearest(x), nearest(y));
        _mm512_store_si512(to.cast(), pair(x_high, y_high));
        if PARTS == 1 {
            return;
        }
        let (x, y) = (rest(x, x_high), rest(y, y_high));
        let (x_middle, y_middle) = (nearest(x), nearest(y));
        _mm512_store_si512(to.add(TILE_WORDS).cast(), pair(x_middle, y_middle));
        // The rest has at most 8 bits, so it is a bf16 already.
        let (x, y) = (rest(x, x_middle), rest(y, y_middle));
        _mm512_store_si512(to.add(2 * TILE_WORDS).cast(), pair(_mm512_castps_si512(x), _mm512_castps_si512(y)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::MAX_PARTS;
    use super::super::tiles::is_available;
    use super::*;

    #[repr(C, align(64))]
    struct Packed([f32; MAX_PARTS * TILE_WORDS]);

    /// The value in half `half` of row `r` and lane `l`: the sum of its bf16 parts.
    fn value(packed: &Packed, num_parts: usize, r: usize, l: usize, half: u32) -> f64 {
        let part = |p: usize| (packed.0[p * TILE_WORDS + r * TILE + l].to_bits() >> (16 * half)) << 16;
        (0..num_parts).map(|p| f64::from(f32::from_bits(part(p)))).sum()
    }

    #[test]
    fn tiles_hold_their_values_however_they_are_packed() {
        if is_available() {
            tiles_hold::<3>(0.0);
            tiles_hold::<1>(1.0 / f64::from(1 << 8));
        }
    }

    /// Checks that the relative error is at most `error`, and for some value at least a thirtieth of it.
    fn tiles_hold<const PARTS: usize>(error: f64) {
        // SAFETY: is_available() implies AVX-512.
        let s = unsafe { Avx512::new() };
        const LD: usize = 40;
        let mut largest = 0.0f64;
        let values: Vec<f32> = (0..40 * LD).map(|i| ((i * 7919) % 1013) as f32 * 1.37e-3 - 0.61).collect();
        for (outer, depth, rows_are_deep) in [(LD, 1, false), (1, LD, false), (LD, 1, true), (1, LD, true)] {
            let side = Side { ptr: values.as_ptr(), outer, depth, rows_are_deep };
            for (num_outer, num_deep) in [(16, [16, 16]), (16, [16, 3]), (5, [16, 16]), (16, [9, 0]), (1, [1, 0])] {
                let mut packed = [Packed([1.0; MAX_PARTS * TILE_WORDS]), Packed([1.0; MAX_PARTS * TILE_WORDS])];
                for (to, whole) in packed.iter_mut().zip([true, false]) {
                    let to = to.0.as_mut_ptr();
                    let tile = Tile { side, at: side.ptr, ahead: side.ptr, num_outer, num_deep, to };
                    // SAFETY: 16 by 32 values exist, and `to` is aligned and has room for all parts.
                    unsafe { if whole { tile.pack::<PARTS>(s) } else { tile.pack_part::<PARTS>(s) } };
                }
                assert!(packed[0].0.iter().zip(&packed[1].0).all(|(a, b)| a.to_bits() == b.to_bits()));
                for (r, l, half) in (0..16).flat_map(|r| (0..16).flat_map(move |l| [(r, l, 0), (r, l, 1)])) {
                    let (i, k) = if rows_are_deep { (l, r) } else { (r, l) };
                    let is_in = i < num_outer && k < num_deep[half as usize];
                    let at = i * outer + (k + 16 * half as usize) * depth;
                    let wanted = if is_in { f64::from(values[at]) } else { 0.0 };
                    let off = (value(&packed[0], PARTS, r, l, half) - wanted).abs();
                    assert!(off <= error * wanted.abs(), "row {r} lane {l} half {half}: {off:e} off {wanted}");
                    largest = largest.max(off / wanted.abs().max(f64::MIN_POSITIVE));
                }
            }
        }
        assert!(largest >= error / 30.0, "{PARTS} parts would have done with fewer");
    }
}
