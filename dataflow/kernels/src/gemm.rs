//! The blocked product of [`super::matmul()`] in vector registers, for every instruction set.
//!
//! B is packed into panels as wide as a register tile. A block of such a panel stays in the first-level
//! cache while it is multiplied by the rows of A, which stay in the second level. A is read in place if its
//! rows are contiguous, else packed into panels as high as a register tile. With factors rounded to bf16 it is packed
//! always.
//!
//! Every element of C is an FMA chain in the order of k, in blocks that depend on k alone: its bits depend
//! neither on m and n nor on its place.

use super::dispatch::dispatch;
use super::product::{Operand, Place, Product, prefetch, split, store, store_any, store_whole};
use super::scratch::with_scratch;
use super::simd::{Simd, sweep};
use super::tile::{Strided, tile, transpose_rows};
use std::ops::Range;

/// The longest block of k: with it, a panel of B takes two thirds of a first-level cache of 48 KiB.
const MAX_KC: usize = 256;
/// Rows of A that are multiplied by all panels before the next rows: a quarter of a 1 MiB second-level cache.
const MAX_MC: usize = 240;
/// The longest part of k for which panels of B are packed together.
const MAX_DEPTH: usize = 8 * MAX_KC;
/// The most values of packed panels of B at a time: they should stay in the third-level cache.
const MAX_PACKED: usize = 1 << 20;
/// The most rows of a register tile.
const LARGEST_MR: usize = 12;
/// The most columns of a register tile.
const LARGEST_NR: usize = 32;

/// The block sizes of a product: rows, columns and depth of a block.
#[derive(Clone, Copy)]
struct Sizes {
    mc: usize,
    nc: usize,
    kc: usize,
    /// The part of k for which panels of B are packed together, a multiple of kc.
    depth: usize,
}

/// Computes `p` on the instruction set of [`isa()`](crate::isa()), in `f32` or, with `ROUND`, with factors that are
/// rounded to bf16 first: what processors without bf16 products do instead.
///
/// # Safety
/// All elements of the matrices must be readable, and those of C (and of `out` or `pre` of the epilogue)
/// writable and not aliased. A bias must have n values, and the other matrices of the epilogue the layout
/// of C.
pub(super) unsafe fn gemm<const ROUND: bool>(p: &Product) {
    let kc = split(p.k, MAX_KC, 8);
    let depth = (MAX_DEPTH / kc * kc).min(p.k.next_multiple_of(kc).max(kc));
    let nc = split(p.n, MAX_PACKED / depth, LARGEST_NR);
    let mc = split(p.m, MAX_MC, LARGEST_MR);
    let sizes = Sizes { mc, nc, kc, depth };
    let packed_a = if ROUND || p.a.is_column_major() { mc * kc + LARGEST_NR } else { 0 };
    with_scratch(depth * nc + packed_a, |scratch| {
        if ROUND {
            dispatch!(rounded_blocks(p: &Product, sizes: Sizes, scratch: &mut [f32]));
        } else {
            dispatch!(plain_blocks(p: &Product, sizes: Sizes, scratch: &mut [f32]));
        }
    });
}

#[inline(always)]
fn plain_blocks<S: Simd>(s: S, p: &Product, sizes: Sizes, scratch: &mut [f32]) {
    blocks::<S, false>(s, p, sizes, scratch);
}

#[inline(always)]
fn rounded_blocks<S: Simd>(s: S, p: &Product, sizes: Sizes, scratch: &mut [f32]) {
    blocks::<S, true>(s, p, sizes, scratch);
}

#[inline(always)]
fn blocks<S: Simd, const ROUND: bool>(s: S, p: &Product, sizes: Sizes, scratch: &mut [f32]) {
    // SAFETY: gemm() made scratch long enough for any of these tiles; its own caller makes the matrices
    // accessible.
    unsafe {
        if S::WIDE {
            tiled::<S, 12, 2, ROUND>(s, p, sizes, scratch);
        } else if S::FUSED {
            tiled::<S, 6, 2, ROUND>(s, p, sizes, scratch);
        } else {
            tiled::<S, 6, 1, ROUND>(s, p, sizes, scratch);
        }
    }
}

/// The loops over blocks, with register tiles of MR rows and NV vectors.
///
/// # Safety
/// As [`gemm`]; MR must divide [`LARGEST_MR`], and NV vectors [`LARGEST_NR`].
#[inline(always)]
unsafe fn tiled<S: Simd, const MR: usize, const NV: usize, const ROUND: bool>(
    s: S,
    p: &Product,
    sizes: Sizes,
    scratch: &mut [f32],
) {
    let nr = NV * S::LANES;
    assert!(scratch.len() >= sizes.depth * sizes.nc && MR <= LARGEST_MR && LARGEST_NR.is_multiple_of(nr));
    let across = p.a.is_column_major();
    let packs_a = ROUND || across;
    assert!(!packs_a || scratch.len() >= sizes.depth * sizes.nc + sizes.mc * sizes.kc + LARGEST_NR);
    let panels = scratch.as_mut_ptr();
    let mut deep = 0;
    loop {
        let depth = sizes.depth.min(p.k - deep);
        for jc in (0..p.n).step_by(sizes.nc) {
            let nc = sizes.nc.min(p.n - jc);
            for pc in (0..depth).step_by(sizes.kc) {
                // SAFETY: k and columns of the block are inside op(B); the panels fit the scratch by the
                // assertion above.
                unsafe {
                    let b = p.b.ptr.add((deep + pc) * p.b.row + jc * p.b.col);
                    let (kc, to) = (sizes.kc.min(depth - pc), panels.add(pc * sizes.nc));
                    pack_b::<S, NV>(s, b, p.b, kc, nc, to);
                    if ROUND {
                        round(s, to, kc * nc.next_multiple_of(nr));
                    }
                }
            }
            for ic in (0..p.m).step_by(sizes.mc) {
                let rows = ic..p.m.min(ic + sizes.mc);
                let mut pc = 0;
                // At least once, as C is written even if k is 0.
                loop {
                    let block = Block { k: deep + pc, kc: sizes.kc.min(depth - pc) };
                    // SAFETY: rows and columns are inside C, and the panels of B were packed above. Those
                    // of A have mc · kc values and LARGEST_NR more, the room that pack_a requires, by the
                    // assertion above.
                    unsafe {
                        let packed_a = packs_a.then(|| panels.add(sizes.depth * sizes.nc));
                        if let Some(packed_a) = packed_a {
                            let a = p.a.ptr.add(ic * p.a.row + block.k * p.a.col);
                            if across {
                                pack_a::<S, MR>(s, a, p.a.col, rows.len(), block.kc, packed_a);
                            } else {
                                copy_a(s, a, p.a.row, rows.len(), block.kc, packed_a);
                            }
                            if ROUND {
                                round(s, packed_a, rows.len().next_multiple_of(if across { MR } else { 1 }) * block.kc);
                            }
                        }
                        let (b, cols) = (panels.add(pc * sizes.nc), jc..jc + nc);
                        tiles::<S, MR, NV>(s, p, block, rows.clone(), cols, packed_a.map(|a| a.cast_const()), b);
                    }
                    pc += block.kc;
                    if pc >= depth {
                        break;
                    }
                }
            }
        }
        deep += depth;
        if deep >= p.k {
            break;
        }
    }
}

/// The block k..k + kc of k.
#[derive(Clone, Copy)]
struct Block {
    k: usize,
    kc: usize,
}

/// Adds one block of k to the given rows and columns of C, panel by panel.
///
/// # Safety
/// As [`gemm`], for rows and columns inside C; `panels` must hold that block of op(B), packed, and
/// `packed_a`, if any, that of op(A).
#[inline(always)]
unsafe fn tiles<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    p: &Product,
    block: Block,
    rows: Range<usize>,
    cols: Range<usize>,
    packed_a: Option<*const f32>,
    panels: *const f32,
) {
    let nr = NV * S::LANES;
    let add = p.accumulate || block.k > 0;
    let last = block.k + block.kc == p.k;
    let is_long = last && p.finish.is_long();
    let mut edge = [0.0f32; LARGEST_MR * LARGEST_NR];
    let edge = edge.as_mut_ptr();
    for j in cols.clone().step_by(nr) {
        for i in rows.clone().step_by(MR) {
            let place = Place { at: i * p.ldc + j, col: j, rows: MR.min(rows.end - i), cols: nr.min(cols.end - j) };
            prefetch(s, p, place, MR, nr);
            // SAFETY: rows i.. of op(A) and columns j.. of op(B) exist because those of C do. A tile at an
            // edge goes through `edge`, which has room for the largest, and store_any() writes its place
            // alone.
            unsafe {
                let b = panels.add((j - cols.start) * block.kc);
                let a = match packed_a {
                    Some(packed) if !p.a.is_column_major() => {
                        Strided { ptr: packed.add((i - rows.start) * block.kc), row: block.kc, step: 1 }
                    }
                    Some(packed) => Strided { ptr: packed.add((i - rows.start) * block.kc), row: 1, step: MR },
                    None => {
                        let ptr = p.a.ptr.add(i * p.a.row + block.k * p.a.col);
                        Strided { ptr, row: p.a.row, step: p.a.col }
                    }
                };
                let acc = tile::<S, MR, NV>(s, block.kc, a, place.rows - 1, b, nr);
                if place.rows < MR || place.cols < nr || is_long {
                    store::<S, MR, NV, false>(s, acc, None, None, edge, nr);
                    store_any(s, edge, nr, add, last, p, place);
                    continue;
                }
                store_whole(s, acc, add, last, p, place);
            }
        }
    }
}

/// Rows of B that are packed together: few enough to touch few pages, enough to write long runs.
const RUN: usize = 8;

/// Packs a block of kc × nc of op(B) as panels [kc, NV vectors], with zeros after the last column.
///
/// # Safety
/// The block must be readable, and `to` writable for kc · nc values, nc rounded up to whole panels.
#[inline(always)]
unsafe fn pack_b<S: Simd, const NV: usize>(s: S, b: *const f32, steps: Operand, kc: usize, nc: usize, to: *mut f32) {
    let nr = NV * S::LANES;
    // SAFETY: reads stay in kc × nc of op(B), as load_n() masks the last panel; writes stay in the panels.
    unsafe {
        if steps.col != 1 {
            for j in (0..nc).step_by(nr) {
                transpose_rows(s, b.add(j * steps.col), steps.col, nr.min(nc - j), kc, to.add(j * kc), nr);
            }
            return;
        }
        for first in (0..kc).step_by(RUN) {
            for j in (0..nc).step_by(nr) {
                let cols = nr.min(nc - j);
                for r in first..kc.min(first + RUN) {
                    let (from, to) = (b.add(r * steps.row + j), to.add(j * kc + r * nr));
                    for v in 0..NV {
                        let at = v * S::LANES;
                        if cols == nr {
                            s.store(to.add(at), s.load(from.add(at)));
                        } else {
                            let w = cols.saturating_sub(at).min(S::LANES);
                            s.store(to.add(at), s.load_n(from.wrapping_add(at), w));
                        }
                    }
                }
            }
        }
    }
}

/// Packs a block of rows × kc of op(A), whose columns are contiguous, as panels [kc, MR]. Rows after the
/// last are unspecified.
///
/// # Safety
/// The block must be readable, and `to` writable for kc values times rows, rounded up to whole panels, and
/// one vector more.
#[inline(always)]
unsafe fn pack_a<S: Simd, const MR: usize>(s: S, a: *const f32, step: usize, rows: usize, kc: usize, to: *mut f32) {
    for i in (0..rows).step_by(MR) {
        let height = MR.min(rows - i);
        for k in 0..kc {
            // SAFETY: reads rows of the block only. A vector may write past its column of the panel; the
            // next column, or the vector of room at the end, takes it.
            unsafe {
                let (from, to) = (a.add(k * step + i), to.add(i * kc + k * MR));
                let mut done = 0;
                while done < height {
                    if i + done + S::LANES <= rows {
                        s.store(to.add(done), s.load(from.add(done)));
                    } else {
                        s.store(to.add(done), s.load_n(from.add(done), (rows - i - done).min(S::LANES)));
                    }
                    done += S::LANES;
                }
            }
        }
    }
}

/// Copies a block of rows × kc of op(A), whose rows are contiguous, to rows of kc values.
///
/// # Safety
/// The block must be readable, and `to` writable for rows · kc values.
#[inline(always)]
unsafe fn copy_a<S: Simd>(s: S, a: *const f32, step: usize, rows: usize, kc: usize, to: *mut f32) {
    for i in 0..rows {
        sweep!(S, kc, |k, w| {
            // SAFETY: k + w <= kc values of row i on both sides.
            unsafe { s.store_n(to.add(i * kc + k), w, s.load_n(a.add(i * step + k), w)) };
        });
    }
}

/// Rounds `len` packed values to bf16.
///
/// # Safety
/// `values` must be readable and writable for `len` values.
#[inline(always)]
unsafe fn round<S: Simd>(s: S, values: *mut f32, len: usize) {
    sweep!(S, len, |i, w| {
        // SAFETY: i + w <= len.
        unsafe { s.store_n(values.add(i), w, s.bf16(s.load_n(values.add(i), w))) };
    });
}
