//! The blocked product behind [`super::matmul`].
//!
//! B is packed into panels of one tile's width. A block of such a panel stays in the first-level cache while the rows of A, which stay in
//! the second level, pass by it; they are read where they are, or packed into panels of a tile's height if they lie across. Every element of C is a chain of fused additions in the order of k, by blocks that depend on k alone: its bits
//! depend neither on m and n nor on its place.

use super::math;
use super::scratch::with_scratch;
use super::simd::{Simd, dispatch};
use super::tile::{Strided, tile, transpose_rows};
use std::ops::Range;

/// op(X) of a product: element (i, j) is at `ptr + i * row + j * col`, and one of the two steps is 1.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub ptr: *const f32,
    pub row: usize,
    pub col: usize,
}

impl Operand {
    /// Whether the elements of a row are apart and those of a column adjoin.
    fn lies_across(&self) -> bool {
        self.row == 1 && self.col != 1
    }
}

/// What happens to an element of C after its last addition.
pub(super) enum Finish {
    /// Nothing.
    Plain,
    /// + bias, then through `act`.
    Bias { bias: *const f32, act: Act },
    /// + bias + residual, laid out as C.
    Residual { bias: *const f32, residual: *const f32 },
    /// · gelu'(pre), which becomes gelu(pre) and is laid out as C.
    GeluGrad { pre: *mut f32 },
}

impl Finish {
    /// Whether it is too long to be done in registers beside a tile.
    pub(super) fn is_long(&self) -> bool {
        matches!(self, Finish::Bias { act: Act::Gelu | Act::GeluInto(_), .. } | Finish::GeluGrad { .. })
    }
}

/// What follows a bias.
#[derive(Clone, Copy)]
pub(super) enum Act {
    /// Nothing.
    None,
    /// C becomes gelu(C).
    Gelu,
    /// C stays, and this matrix (laid out as C) becomes gelu(C).
    GeluInto(*mut f32),
}

/// C [m, n] = or += op(A) [m, k] · op(B) [k, n], then `finish`.
pub(super) struct Product {
    pub c: *mut f32,
    pub ldc: usize,
    pub a: Operand,
    pub b: Operand,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub accumulate: bool,
    pub finish: Finish,
}

/// Longest block of k: with it, a panel of B takes two thirds of a first-level cache of 48 KiB.
const MAX_KC: usize = 256;
/// Rows of A that meet all panels in turn: a quarter of a second-level cache of 1 MiB.
const MAX_MC: usize = 240;
/// Longest stretch of k for which panels of B are packed at a time.
const MAX_DEPTH: usize = 8 * MAX_KC;
/// Values of packed panels of B, in the third-level cache.
const MAX_PACKED: usize = 1 << 20;
const LARGEST_MR: usize = 12;
const LARGEST_NR: usize = 32;

/// Block sizes of a product.
#[derive(Clone, Copy)]
struct Sizes {
    mc: usize,
    nc: usize,
    kc: usize,
    /// A multiple of kc.
    depth: usize,
}

/// Computes `p`.
///
/// # Safety
/// All elements of the matrices must be accessible, those of C (and of `GeluInto`) exclusively.
pub(super) unsafe fn gemm(p: &Product) {
    #[cfg(target_arch = "x86_64")]
    if let Some(num_parts) = super::isa().num_parts()
        && super::amx::suits(p)
    {
        // SAFETY: isa() names only what this machine has; the contract is handed on.
        return unsafe { super::amx::gemm(p, num_parts) };
    }
    let kc = split(p.k, MAX_KC, 8);
    let depth = (MAX_DEPTH / kc * kc).min(p.k.next_multiple_of(kc).max(kc));
    let nc = split(p.n, MAX_PACKED / depth, LARGEST_NR);
    let mc = split(p.m, MAX_MC, LARGEST_MR);
    let sizes = Sizes { mc, nc, kc, depth };
    let packed_a = if p.a.lies_across() { mc * kc + LARGEST_NR } else { 0 };
    with_scratch(depth * nc + packed_a, |scratch| {
        dispatch!(blocks(p: &Product, sizes: Sizes, scratch: &mut [f32]));
    });
}

/// The size of equal parts of `len`, each a multiple of `unit` and (if that allows) at most `max`.
pub(super) fn split(len: usize, max: usize, unit: usize) -> usize {
    let parts = len.div_ceil(max.max(unit)).max(1);
    len.div_ceil(parts).next_multiple_of(unit).max(unit)
}

#[inline(always)]
fn blocks<S: Simd>(s: S, p: &Product, sizes: Sizes, scratch: &mut [f32]) {
    // SAFETY: gemm() made scratch long enough for any of these tiles, and hands its contract on.
    unsafe {
        if S::WIDE {
            tiled::<S, 12, 2>(s, p, sizes, scratch);
        } else if S::FUSED {
            tiled::<S, 6, 2>(s, p, sizes, scratch);
        } else {
            tiled::<S, 6, 1>(s, p, sizes, scratch);
        }
    }
}

/// # Safety
/// As [`gemm`]; MR must divide [`LARGEST_MR`], and NV vectors [`LARGEST_NR`].
#[inline(always)]
unsafe fn tiled<S: Simd, const MR: usize, const NV: usize>(s: S, p: &Product, sizes: Sizes, scratch: &mut [f32]) {
    let nr = NV * S::LANES;
    assert!(scratch.len() >= sizes.depth * sizes.nc && MR <= LARGEST_MR && LARGEST_NR.is_multiple_of(nr));
    let across = p.a.lies_across();
    assert!(!across || scratch.len() >= sizes.depth * sizes.nc + sizes.mc * sizes.kc + LARGEST_NR);
    let panels = scratch.as_mut_ptr();
    let mut deep = 0;
    loop {
        let depth = sizes.depth.min(p.k - deep);
        for jc in (0..p.n).step_by(sizes.nc) {
            let nc = sizes.nc.min(p.n - jc);
            for pc in (0..depth).step_by(sizes.kc) {
                // SAFETY: the block lies in op(B), its panels in the scratch.
                unsafe {
                    let b = p.b.ptr.add((deep + pc) * p.b.row + jc * p.b.col);
                    pack_b::<S, NV>(s, b, p.b, sizes.kc.min(depth - pc), nc, panels.add(pc * sizes.nc));
                }
            }
            for ic in (0..p.m).step_by(sizes.mc) {
                let rows = ic..p.m.min(ic + sizes.mc);
                let mut pc = 0;
                // Once at least, as an empty sum is written too.
                loop {
                    let block = Block { k: deep + pc, kc: sizes.kc.min(depth - pc) };
                    // SAFETY: rows and columns are inside C; the panels of B were packed above, those of A have mc · kc values and a
                    // panel's width behind them.
                    unsafe {
                        let packed_a = across.then(|| panels.add(sizes.depth * sizes.nc));
                        if let Some(packed_a) = packed_a {
                            let a = p.a.ptr.add(ic + block.k * p.a.col);
                            pack_a::<S, MR>(s, a, p.a.col, rows.len(), block.kc, packed_a);
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

/// The part k..k + kc of all sums.
#[derive(Clone, Copy)]
struct Block {
    k: usize,
    kc: usize,
}

/// Adds one block of the sums to the given rows and columns of C, panel by panel.
///
/// # Safety
/// As [`gemm`], for rows and columns inside C; `panels` must hold that block of op(B), packed, and `packed_a` that of op(A).
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
            // SAFETY: rows i.. and columns j.. of the operands exist as those of C do; only whole tiles inside C are stored without
            // regard to its edges.
            unsafe {
                let b = panels.add((j - cols.start) * block.kc);
                let a = match packed_a {
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

/// Rows that are copied together while packing: few enough pages, long enough runs.
const RUN: usize = 8;

/// Packs a block of kc × nc of op(B) as panels [kc][NV vectors], zeros after the last column.
///
/// # Safety
/// The block and kc · nc values of `to` (nc up to whole panels) must be accessible.
#[inline(always)]
unsafe fn pack_b<S: Simd, const NV: usize>(s: S, b: *const f32, steps: Operand, kc: usize, nc: usize, to: *mut f32) {
    let nr = NV * S::LANES;
    // SAFETY: reads stay in kc × nc of op(B), writes in the panels.
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

/// Packs a block of rows × kc of op(A), whose columns adjoin, as panels [kc][MR]; behind the last row comes what was there.
///
/// # Safety
/// The block must be accessible, and ⌈rows⌉ to whole panels times kc values of `to` and a vector behind them.
#[inline(always)]
unsafe fn pack_a<S: Simd, const MR: usize>(s: S, a: *const f32, step: usize, rows: usize, kc: usize, to: *mut f32) {
    for i in (0..rows).step_by(MR) {
        let height = MR.min(rows - i);
        for k in 0..kc {
            // SAFETY: only rows of the block are read. What a vector writes behind its panel's column is overwritten by the next.
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

/// Where a tile lies: at element `at` of C, its first column being `col`, rows × cols of it inside C.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub at: usize,
    pub col: usize,
    pub rows: usize,
    pub cols: usize,
}

/// Writes a whole tile from registers to its place, with what `p` asks for unless that [is long](Finish::is_long).
///
/// # Safety
/// MR rows of NV vectors must lie in C at the place.
#[inline(always)]
pub(super) unsafe fn store_whole<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    acc: [[S::V; NV]; MR],
    add: bool,
    last: bool,
    p: &Product,
    place: Place,
) {
    // SAFETY: bias and residual are laid out as C.
    unsafe {
        let c = p.c.add(place.at);
        let (bias, residual) = match p.finish {
            Finish::Bias { bias, .. } if last => (Some(bias.add(place.col)), None),
            Finish::Residual { bias, residual } if last => (Some(bias.add(place.col)), Some(residual.add(place.at))),
            _ => (None, None),
        };
        match (add, bias, residual) {
            (false, None, _) => store::<S, MR, NV, false>(s, acc, None, None, c, p.ldc),
            (true, None, _) => store::<S, MR, NV, true>(s, acc, None, None, c, p.ldc),
            (false, bias, None) => store::<S, MR, NV, false>(s, acc, bias, None, c, p.ldc),
            (true, bias, None) => store::<S, MR, NV, true>(s, acc, bias, None, c, p.ldc),
            (false, bias, residual) => store::<S, MR, NV, false>(s, acc, bias, residual, c, p.ldc),
            (true, bias, residual) => store::<S, MR, NV, true>(s, acc, bias, residual, c, p.ldc),
        }
    }
}

/// Writes a whole tile from registers, after adding what is there (`ADD`), a bias and a residual.
///
/// # Safety
/// MR rows of NV vectors at `c`, and of the residual, must be accessible, `ldc` apart, and NV vectors of the bias.
#[inline(always)]
unsafe fn store<S: Simd, const MR: usize, const NV: usize, const ADD: bool>(
    s: S,
    acc: [[S::V; NV]; MR],
    bias: Option<*const f32>,
    residual: Option<*const f32>,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: by contract.
    unsafe {
        let mut biases = [s.splat(0.0); NV];
        if let Some(bias) = bias {
            for (j, v) in biases.iter_mut().enumerate() {
                *v = s.load(bias.add(j * S::LANES));
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            for (j, mut v) in acc.into_iter().enumerate() {
                let at = i * ldc + j * S::LANES;
                if ADD {
                    v = s.add(v, s.load(c.add(at)));
                }
                if bias.is_some() {
                    v = s.add(v, biases[j]);
                }
                if let Some(residual) = residual {
                    v = s.add(v, s.load(residual.add(at)));
                }
                s.store(c.add(at), v);
            }
        }
    }
}

/// Writes any part of a tile from memory, with everything that `p` asks for.
///
/// # Safety
/// `tile` must hold rows of `nr` values, and the place must lie in C.
#[inline(always)]
pub(super) unsafe fn store_any<S: Simd>(
    s: S,
    tile: *const f32,
    nr: usize,
    add: bool,
    last: bool,
    p: &Product,
    place: Place,
) {
    for j in (0..place.cols).step_by(S::LANES) {
        let w = place.cols - j;
        // SAFETY: the contract is handed on for some columns of the place. The whole vector's width is a constant in its copy.
        unsafe {
            if w >= S::LANES {
                store_column(s, tile, nr, add, last, p, place, j, S::LANES);
            } else {
                store_column(s, tile, nr, add, last, p, place, j, w);
            }
        }
    }
}

/// Columns j..j + w of [`store_any`].
///
/// # Safety
/// As there, for w of at most a vector and columns inside the place.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn store_column<S: Simd>(
    s: S,
    tile: *const f32,
    nr: usize,
    add: bool,
    last: bool,
    p: &Product,
    place: Place,
    j: usize,
    w: usize,
) {
    let (bias, residual, pre, act) = match p.finish {
        Finish::Bias { bias, act } if last => (Some(bias), None, None, act),
        Finish::Residual { bias, residual } if last => (Some(bias), Some(residual), None, Act::None),
        Finish::GeluGrad { pre } if last => (None, None, Some(pre), Act::None),
        _ => (None, None, None, Act::None),
    };
    // SAFETY: the bias has a value for each column, and i and j are inside the place.
    unsafe {
        let biases = bias.map_or(s.splat(0.0), |bias| s.load_n(bias.add(place.col + j), w));
        for i in 0..place.rows {
            let here = place.at + i * p.ldc + j;
            let c = p.c.add(here);
            let mut v = s.load_n(tile.add(i * nr + j), w);
            if add {
                v = s.add(v, s.load_n(c, w));
            }
            if bias.is_some() {
                v = s.add(v, biases);
            }
            if let Some(residual) = residual {
                v = s.add(v, s.load_n(residual.add(here), w));
            }
            if let Some(pre) = pre {
                let (gelu, slope) = math::gelu_with_slope(s, s.load_n(pre.add(here), w));
                s.store_n(pre.add(here), w, gelu);
                v = s.mul(v, slope);
            }
            match act {
                Act::None => s.store_n(c, w, v),
                Act::Gelu => s.store_n(c, w, math::gelu(s, v)),
                Act::GeluInto(out) => {
                    s.store_n(c, w, v);
                    s.store_n(out.add(here), w, math::gelu(s, v));
                }
            }
        }
    }
}

/// Asks for a tile of C, and of the matrix that is put to it, while the tile's sums are computed.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(s: S, p: &Product, place: Place, mr: usize, nr: usize) {
    for i in 0..mr {
        for j in (0..nr).step_by(S::LANES) {
            s.prefetch(p.c.wrapping_add(place.at + i * p.ldc + j));
            match p.finish {
                Finish::Residual { residual, .. } => s.prefetch(residual.wrapping_add(place.at + i * p.ldc + j)),
                Finish::GeluGrad { pre } => s.prefetch(pre.wrapping_add(place.at + i * p.ldc + j)),
                _ => {}
            }
        }
    }
}
