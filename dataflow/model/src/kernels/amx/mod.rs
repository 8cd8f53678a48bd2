//! Products on the tile unit of newer Intel processors (AMX), in the accuracy of `f32`.
//!
//! The unit multiplies bf16 and adds in `f32`, sixteen times as fast as fused additions of `f32` on the same core. A value of `f32` is
//! the sum of three bf16 values (8 bits of its 24 each), so a product of two is the sum of nine products of bf16, of which the three
//! smallest lie below 2⁻²⁵ of the whole, less than the rounding of one `f32`, and are left out. What six remain are summed in `f32`.
//! Values of more than 3.389·10³⁸ (half a bf16 step below the largest `f32`) and infinite ones become NaN, and parts below 2⁻¹²⁶
//! become zero.
//!
//! An element of C is a chain of additions in the order of k and of the six products, by blocks that depend on k alone: its bits depend
//! neither on m and n nor on its place.

use std::arch::x86_64::*;
use std::ops::Range;

use super::gemm::{Place, Product, prefetch, split, store_any, store_whole};
use super::scratch::with_scratch;
use super::simd::Simd;
use super::x86::Avx512;
use pack::{Packer, Side, Turned};
use tiles::Tiles;

mod pack;
mod tiles;

pub(super) use tiles::is_there;

/// Rows of a tile; also its columns in values of 32 bits, which are pairs of bf16.
const TILE: usize = 16;
/// Steps of k that one tile holds.
const STEP: usize = 2 * TILE;
/// Rows and columns of C that are summed at a time: two by two tiles.
const BLOCK: usize = 2 * TILE;
/// bf16 parts of an `f32`.
const PARTS: usize = 3;
/// `f32` places that a packed tile takes.
const TILE_WORDS: usize = TILE * TILE;
/// `f32` places that the parts of one step take for 16 rows or columns.
const STEP_WORDS: usize = PARTS * TILE_WORDS;
/// Shortest sum that is worth a tile.
const MIN_K: usize = 16;
/// Longest block of k: two panels of B, 96 KiB each, and the block of A share a second-level cache of 2 MiB.
const MAX_KC: usize = 512;
/// Values of a block of A, whose rows meet all panels of B in turn: 768 KiB in parts.
const MAX_A: usize = 1 << 17;
/// Values of panels of B that are kept for further blocks of A: 12 MiB in parts. More are packed again.
const MAX_B: usize = 1 << 21;

/// Whether `p` should be computed here; depends on k alone, as its bits may depend on nothing else.
pub(super) fn suits(p: &Product) -> bool {
    p.k >= MIN_K
}

/// Computes `p`.
///
/// # Safety
/// As [`super::gemm::gemm`]; [`is_there`] must hold.
pub(super) unsafe fn gemm(p: &Product) {
    let kc = split(p.k, MAX_KC, STEP);
    let mc = split(p.m, MAX_A / kc, BLOCK);
    let panel = kc / STEP * 2 * STEP_WORDS;
    let is_met_again = p.m > mc && p.n * kc <= MAX_B;
    let kept = if is_met_again { p.n.div_ceil(BLOCK).max(2) } else { 2 };
    with_scratch((mc / BLOCK + kept) * panel + 2 * BLOCK * BLOCK, |scratch| {
        let (a, rest) = scratch.split_at_mut(mc / BLOCK * panel);
        let (b, sums) = rest.split_at_mut(kept * panel);
        // SAFETY: is_there() comes with AVX-512, and the pieces of scratch have the lengths that blocks() wants.
        unsafe { blocks(p, [mc, kc, kept], a, b, sums) };
    });
}

/// The tiles take their time over each step of k, in which the processor's other units do chores: they pack the panel of B behind this
/// one, and with the first panel the rows of A behind these, and store the block of C before this one. Chores stand between the steps,
/// few at a time, as the processor looks only some hundred instructions ahead. Epilogues cost next to nothing so (with gelu, 260 instead
/// of 200 GFLOP/s), packing not much less than by itself; but panels that are packed when they are needed leave the cache to others.
///
/// # Safety
/// As [`gemm`]; `a` must hold a block of A, `b` the `kept` panels of B, two or all of them, and `sums` two blocks of C.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn blocks(p: &Product, [mc, kc, kept]: [usize; 3], a: &mut [f32], b: &mut [f32], sums: &mut [f32]) {
    // SAFETY: the features of the token are those of this function.
    let s = unsafe { Avx512::new() };
    let unit = Tiles::configure();
    let mut turned = Turned::new();
    let num_panels = p.n.div_ceil(BLOCK);
    let (mut before, mut num_summed): (Option<Summed>, usize) = (None, 0);
    for pc in (0..p.k).step_by(kc) {
        let depth = pc..p.k.min(pc + kc);
        let (add, last) = (p.accumulate || pc > 0, depth.end == p.k);
        let num_steps = depth.len().div_ceil(STEP);
        let len = num_steps * 2 * STEP_WORDS;
        for ic in (0..p.m).step_by(mc) {
            let rows = ic..p.m.min(ic + mc);
            let num_blocks = rows.len().div_ceil(BLOCK);
            let mut pack_a = Packer { side: Side::a(p.a), outer: rows.clone(), depth: depth.clone(), to: &mut *a };
            let mut pack_b = Packer { side: Side::b(p.b), outer: 0..p.n, depth: depth.clone(), to: &mut *b };
            let is_b_packed = ic > 0 && kept >= num_panels;
            // SAFETY: rows, columns and depth lie in the factors.
            unsafe {
                pack_a.pack(s, 0, 0, 0..2 * num_steps, &mut turned);
                if !is_b_packed {
                    pack_b.pack(s, 0, 0, 0..2 * num_steps, &mut turned);
                }
            }
            for panel in 0..num_panels {
                for block in 0..num_blocks {
                    let (i, j) = (ic + block * BLOCK, panel * BLOCK);
                    let place =
                        Place { at: i * p.ldc + j, col: j, rows: BLOCK.min(rows.end - i), cols: BLOCK.min(p.n - j) };
                    let next = (panel + 1) % kept;
                    unit.zero();
                    for step in 0..num_steps {
                        let at = step * 2 * STEP_WORDS;
                        let from_a = &pack_a.to[block * len + at..][..2 * STEP_WORDS];
                        let from_b = &pack_b.to[panel % kept * len + at..][..2 * STEP_WORDS];
                        // SAFETY: both factors have a step there.
                        unsafe {
                            if place.rows > TILE {
                                unit.add_step(from_a.as_ptr(), from_b.as_ptr());
                            } else {
                                unit.add_upper_step(from_a.as_ptr(), from_b.as_ptr());
                            }
                        }
                        // SAFETY: as above; the places lie in C.
                        unsafe {
                            if panel == 0 && block + 1 < num_blocks {
                                pack_a.pack(s, block + 1, block + 1, 2 * step..2 * step + 2, &mut turned);
                            }
                            if panel + 1 < num_panels {
                                let turn = block * num_steps + step;
                                if is_b_packed {
                                    fetch(&pack_b.to[next * len..][..len], turn, num_blocks * num_steps);
                                } else {
                                    let tiles = share(2 * num_steps, turn, num_blocks * num_steps);
                                    pack_b.pack(s, panel + 1, next, tiles, &mut turned);
                                }
                            }
                            if let Some(before) = &before {
                                before.store(s, p, share(BLOCK / ROWS, step, num_steps));
                            }
                        }
                        let rows = share(place.rows, step, num_steps);
                        let at = place.at + rows.start * p.ldc;
                        prefetch(s, p, Place { at, ..place }, rows.len(), place.cols);
                    }
                    let sums = &mut sums[num_summed % 2 * BLOCK * BLOCK..][..BLOCK * BLOCK];
                    num_summed += 1;
                    // SAFETY: sums has a block.
                    unsafe { unit.store(sums.as_mut_ptr()) };
                    before = Some(Summed { sums: sums.as_ptr(), place, add, last });
                }
            }
        }
    }
    if let Some(before) = before {
        // SAFETY: as above.
        unsafe { before.store(s, p, 0..BLOCK / ROWS) };
    }
}

/// The share of `turn` in `num_turns` of `len` things.
#[inline(always)]
fn share(len: usize, turn: usize, num_turns: usize) -> Range<usize> {
    len * turn / num_turns..len * (turn + 1) / num_turns
}

/// Asks for the share of `turn` in `num_turns` of a panel that was packed a while ago.
#[inline(always)]
fn fetch(panel: &[f32], turn: usize, num_turns: usize) {
    for line in share(panel.len() / TILE, turn, num_turns) {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(panel.as_ptr().wrapping_add(line * TILE).cast()) };
    }
}

/// Rows of C that are stored at a time.
const ROWS: usize = 4;

/// A block of sums on its way to C.
#[derive(Clone, Copy)]
struct Summed {
    sums: *const f32,
    place: Place,
    add: bool,
    last: bool,
}

impl Summed {
    /// Writes some groups of [`ROWS`] rows to their place in C, with what `p` asks for.
    ///
    /// # Safety
    /// `sums` must be readable for a block, and the place must lie in C.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    unsafe fn store(&self, s: Avx512, p: &Product, groups: Range<usize>) {
        let Summed { sums, place, add, last } = *self;
        for group in groups {
            let r = group * ROWS;
            let num_rows = place.rows.saturating_sub(r).min(ROWS);
            let place = Place { at: place.at + r * p.ldc, rows: num_rows, ..place };
            // SAFETY: the contract is handed on, for some rows at a time.
            unsafe {
                let sums = sums.add(r * BLOCK);
                if place.cols < BLOCK || num_rows < ROWS || (last && p.finish.is_long()) {
                    store_any(s, sums, BLOCK, add, last, p, place);
                    continue;
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
}
