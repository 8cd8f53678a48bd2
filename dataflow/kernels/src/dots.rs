//! Products of bf16 factors by the dot products of AVX512_BF16: `vdpbf16ps` multiplies 16 pairs of bf16 and adds both
//! products of each to an `f32`, as many instructions a cycle as fused multiply-adds of `f32`.
//!
//! The blocks are those of [`super::gemm`], where a word of 32 bits, two steps of k, takes the place of an `f32`. B is
//! rounded and packed into panels as wide as a register tile, each row of which has the pairs of one word. A is rounded
//! into words too: into rows if its rows are contiguous, else into panels as high as a register tile.
//!
//! Every element of C is a chain of dot products in the order of k, in blocks that depend on k alone: its bits depend
//! neither on m and n nor on its place.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::mem::transmute;
use std::ops::Range;

use super::product::{Operand, Place, Product, prefetch, split, store, store_any, store_whole};
use super::scratch::with_scratch;
use super::simd::Simd;
use super::tile::Strided;
use super::x86::Avx512;

/// Rows of a register tile.
const MR: usize = 12;
/// Vectors of a row of a register tile.
const NV: usize = 2;
/// Columns of a register tile.
const NR: usize = NV * LANES;
/// Lanes of a vector.
pub(super) const LANES: usize = 16;
/// The longest block of k, in words: with it, a panel of B takes two thirds of a first-level cache of 48 KiB.
const MAX_KC: usize = 256;
/// Rows of A that are rounded, and then multiplied by all panels of B, before the next rows.
const MAX_MC: usize = 240;
/// The longest part of k, in words, for which panels of B are packed together.
const MAX_DEPTH: usize = 8 * MAX_KC;
/// The most words of packed panels of B at a time: they should stay in the third-level cache.
const MAX_PACKED: usize = 1 << 20;
/// Words between the rows of A that are no steps of k, so that rows do not fall on the same lines of a cache.
const PAD: usize = LANES;

/// The block sizes of a product: rows and columns, and words of k; `depth` is the part of k for which panels of B are
/// packed together, a multiple of kc.
#[derive(Clone, Copy)]
struct Sizes {
    mc: usize,
    nc: usize,
    kc: usize,
    depth: usize,
}

/// A block of k: its first value, its values, and their words.
#[derive(Clone, Copy)]
struct Block {
    k: usize,
    len: usize,
    words: usize,
}

/// Computes `p` with factors rounded to bf16.
///
/// # Safety
/// As [`super::gemm::gemm`]; the processor must have AVX-512 F, VL, BW, DQ and BF16.
pub(super) unsafe fn gemm(p: &Product) {
    let words = p.k.div_ceil(2);
    let kc = split(words, MAX_KC, LANES);
    let depth = (MAX_DEPTH / kc * kc).min(words.next_multiple_of(kc).max(kc));
    let nc = split(p.n, MAX_PACKED / depth, NR);
    let mc = split(p.m, MAX_MC, MR);
    let sizes = Sizes { mc, nc, kc, depth };
    with_scratch(depth * nc + mc * (kc + PAD) + NR, |scratch| {
        // SAFETY: the caller has the instructions and the matrices; the scratch is as long as blocks() asks for.
        unsafe { blocks(p, sizes, scratch) }
    });
}

/// The loops over blocks.
///
/// # Safety
/// As [`gemm`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")]
unsafe fn blocks(p: &Product, sizes: Sizes, scratch: &mut [f32]) {
    // SAFETY: the target features of this function are those of the token.
    let s = unsafe { Avx512::new() };
    assert!(scratch.len() >= sizes.depth * sizes.nc + sizes.mc * (sizes.kc + PAD) + NR);
    let panels = scratch.as_mut_ptr();
    let words = p.k.div_ceil(2);
    let block = |first: usize, words: usize| Block { k: 2 * first, len: (2 * words).min(p.k - 2 * first), words };
    let mut deep = 0;
    loop {
        let depth = sizes.depth.min(words - deep);
        for jc in (0..p.n).step_by(sizes.nc) {
            let nc = sizes.nc.min(p.n - jc);
            for pc in (0..depth).step_by(sizes.kc) {
                // SAFETY: k and columns of the block are inside op(B); the panels fit the scratch by the assertion
                // above.
                unsafe {
                    let block = block(deep + pc, sizes.kc.min(depth - pc));
                    let b = p.b.ptr.add(block.k * p.b.row + jc * p.b.col);
                    let to = panels.add(pc * sizes.nc);
                    if p.b.col == 1 {
                        pack_rows_of_b(s, b, p.b.row, block, nc, to);
                    } else {
                        pack_columns_of_b(s, b, p.b, block, nc, to);
                    }
                }
            }
            for ic in (0..p.m).step_by(sizes.mc) {
                let rows = ic..p.m.min(ic + sizes.mc);
                let mut pc = 0;
                // At least once, as C is written even if k is 0.
                loop {
                    let block = block(deep + pc, sizes.kc.min(depth - pc));
                    // SAFETY: rows and columns are inside C, and the panels of B were packed above. A has room for
                    // mc rows of kc words and their padding, and for mc rows in panels and a vector, by the assertion
                    // above.
                    unsafe {
                        let packed = panels.add(sizes.depth * sizes.nc);
                        let a = p.a.ptr.add(ic * p.a.row + block.k * p.a.col);
                        if p.a.is_column_major() {
                            pack_columns_of_a(s, a, p.a.col, rows.len(), block, packed);
                        } else {
                            pack_rows_of_a(s, a, p.a.row, rows.len(), block, packed);
                        }
                        tiles(s, p, block, rows.clone(), jc..jc + nc, packed, panels.add(pc * sizes.nc));
                    }
                    pc += block.words;
                    if pc >= depth {
                        break;
                    }
                }
            }
        }
        deep += depth;
        if deep >= words {
            break;
        }
    }
}

/// Adds one block of k to the given rows and columns of C, panel by panel.
///
/// # Safety
/// As [`gemm`], for rows and columns inside C; `a` and `panels` must hold that block of op(A) and op(B), packed.
#[inline(always)]
unsafe fn tiles(
    s: Avx512,
    p: &Product,
    block: Block,
    rows: Range<usize>,
    cols: Range<usize>,
    a: *const f32,
    panels: *const f32,
) {
    let words = block.words;
    let add = p.accumulate || block.k > 0;
    let last = block.k + block.len == p.k;
    let is_long = last && p.finish.is_long();
    let mut edge = [0.0f32; MR * NR];
    let edge = edge.as_mut_ptr();
    for j in cols.clone().step_by(NR) {
        for i in rows.clone().step_by(MR) {
            let place = Place { at: i * p.ldc + j, col: j, rows: MR.min(rows.end - i), cols: NR.min(cols.end - j) };
            prefetch(s, p, place, MR, NR);
            let row = i - rows.start;
            // SAFETY: rows i.. of op(A) and columns j.. of op(B) exist because those of C do. A tile at an edge goes
            // through `edge`, which has room for a whole one, and store_any() writes its place alone.
            unsafe {
                let a = if p.a.is_column_major() {
                    Strided { ptr: a.add(row * words), row: 1, step: MR }
                } else {
                    Strided { ptr: a.add(row * (words + PAD)), row: words + PAD, step: 1 }
                };
                let b = panels.add((j - cols.start) * words);
                let acc = word_tile::<MR, NV>(s, words, a, place.rows - 1, b, NR);
                if place.rows < MR || place.cols < NR || is_long {
                    store::<Avx512, MR, NV, false>(s, acc, None, None, edge, NR);
                    store_any(s, edge, NR, add, last, p, place);
                    continue;
                }
                store_whole(s, acc, add, last, p, place);
            }
        }
    }
}

/// Σ over the words of rows of A and columns of B, each a chain of dot products. Rows of A after `last` repeat it.
///
/// # Safety
/// A must be readable for rows 0..=last and `words` words, B for `words` rows of NV vectors, `ldb` apart; the processor
/// must have AVX512_BF16.
#[inline(always)]
pub(super) unsafe fn word_tile<const MR: usize, const NV: usize>(
    s: Avx512,
    words: usize,
    a: Strided,
    last: usize,
    b: *const f32,
    ldb: usize,
) -> [[__m512; NV]; MR] {
    let mut acc = [[s.splat(0.0); NV]; MR];
    let mut rows = [a.ptr; MR];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = a.ptr.wrapping_add(i.min(last) * a.row);
    }
    let (mut b, mut offset) = (b, 0);
    for _ in 0..words {
        // SAFETY: fewer than `words` steps were taken, and the caller makes as many words of A and rows of B readable.
        // The bits of the two vector types are the same.
        unsafe {
            let v: [__m512bh; NV] = std::array::from_fn(|j| transmute(s.load(b.add(j * LANES))));
            for (acc, row) in acc.iter_mut().zip(rows) {
                let x: __m512bh = transmute(s.splat(*row.add(offset)));
                for (acc, v) in acc.iter_mut().zip(v) {
                    *acc = _mm512_dpbf16_ps(*acc, x, v);
                }
            }
        }
        b = b.wrapping_add(ldb);
        offset += a.step;
    }
    acc
}

/// Words of the lanes of two rows that follow each other along k.
///
/// # Safety
/// The processor must have AVX-512 BW and BF16.
#[inline(always)]
pub(super) unsafe fn pairs(first: __m512, second: __m512) -> __m512 {
    const ORDER: [u16; 32] = {
        let (mut order, mut i) = ([0; 32], 0);
        while i < 16 {
            (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
            i += 1;
        }
        order
    };
    // SAFETY: the caller has the instructions; the constant has the size of a vector.
    unsafe {
        let both: __m512i = transmute(_mm512_cvtne2ps_pbh(second, first));
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both))
    }
}

/// The 16 words of 32 values along k, of which `len` exist and the others are zero.
///
/// # Safety
/// `from` must be readable for min(len, 32) values; the processor must have AVX512_BF16.
#[inline(always)]
pub(super) unsafe fn words(s: Avx512, from: *const f32, len: usize) -> __m512 {
    // SAFETY: loads at most `len` values.
    unsafe {
        let (low, high) = if len >= 2 * LANES {
            (s.load(from), s.load(from.add(LANES)))
        } else {
            (s.load_n(from, len.min(LANES)), s.load_n(from.wrapping_add(LANES), len.saturating_sub(LANES)))
        };
        transmute(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// Rounds a block of `rows` of op(A), whose rows are contiguous, to rows of words with [`PAD`] words between them.
///
/// # Safety
/// The block must be readable, and `to` writable for rows of words + PAD words; the processor must have AVX512_BF16.
#[inline(always)]
unsafe fn pack_rows_of_a(s: Avx512, a: *const f32, step: usize, rows: usize, block: Block, to: *mut f32) {
    for i in 0..rows {
        for k in (0..block.len).step_by(2 * LANES) {
            // SAFETY: reads values k.. of row i, at most block.len; 16 words from the word k / 2 on end before the
            // padding does.
            unsafe {
                let v = words(s, a.add(i * step + k), block.len - k);
                s.store(to.add(i * (block.words + PAD) + k / 2), v);
            }
        }
    }
}

/// Rounds a block of `rows` of op(A), whose columns are contiguous, to panels [words, MR]. Rows after the last are
/// unspecified.
///
/// # Safety
/// The block must be readable, and `to` writable for words times rows, rounded up to whole panels, and one vector more;
/// the processor must have AVX512_BF16.
#[inline(always)]
unsafe fn pack_columns_of_a(s: Avx512, a: *const f32, step: usize, rows: usize, block: Block, to: *mut f32) {
    for i in (0..rows).step_by(MR) {
        let n = (rows - i).min(LANES);
        for word in 0..block.words {
            let k = 2 * word;
            // SAFETY: reads rows i.. of columns k and, if it exists, k + 1. A vector writes past its column of the
            // panel; the next column, or the vector of room at the end, takes it.
            unsafe {
                let from = a.add(k * step + i);
                let second = if k + 1 < block.len { s.load_n(from.add(step), n) } else { s.splat(0.0) };
                s.store(to.add(i * block.words + word * MR), pairs(s.load_n(from, n), second));
            }
        }
    }
}

/// Pairs of rows of B that are packed together: few enough to touch few pages, enough to write long runs.
const RUN: usize = 4;

/// Packs a block of nc columns of op(B), whose rows are contiguous, as panels [words, NR], with zeros after the last
/// column.
///
/// # Safety
/// The block must be readable, and `to` writable for words · nc words, nc rounded up to whole panels; the processor
/// must have AVX512_BF16.
#[inline(always)]
unsafe fn pack_rows_of_b(s: Avx512, b: *const f32, step: usize, block: Block, nc: usize, to: *mut f32) {
    for first in (0..block.words).step_by(RUN) {
        for j in (0..nc).step_by(LANES) {
            let n = (nc - j).min(LANES);
            let panel = j / NR * NR * block.words + j % NR;
            for word in first..block.words.min(first + RUN) {
                let k = 2 * word;
                // SAFETY: reads columns j..j + n of rows k and, if it exists, k + 1; writes a vector of row `word` of
                // a panel.
                unsafe {
                    let from = b.add(k * step + j);
                    let second = if k + 1 < block.len { s.load_n(from.add(step), n) } else { s.splat(0.0) };
                    s.store(to.add(panel + word * NR), pairs(s.load_n(from, n), second));
                }
            }
        }
    }
    if (1..=LANES).contains(&(nc % NR)) {
        let panel = nc / NR * NR * block.words + LANES;
        for word in 0..block.words {
            // SAFETY: the second vector of row `word` of the last panel.
            unsafe { s.store(to.add(panel + word * NR), s.splat(0.0)) };
        }
    }
}

/// As [`pack_rows_of_b`], of an op(B) whose columns are contiguous.
///
/// # Safety
/// As [`pack_rows_of_b`].
#[inline(always)]
unsafe fn pack_columns_of_b(s: Avx512, b: *const f32, steps: Operand, block: Block, nc: usize, to: *mut f32) {
    #[repr(align(64))]
    struct Square([f32; LANES * LANES]);
    let mut square = Square([0.0; LANES * LANES]);
    let mut turned = Square([0.0; LANES * LANES]);
    for j in (0..nc.next_multiple_of(NR)).step_by(LANES) {
        let n = nc.saturating_sub(j).min(LANES);
        let panel = j / NR * NR * block.words + j % NR;
        if n < LANES {
            square.0.fill(0.0);
        }
        for k in (0..block.len).step_by(2 * LANES) {
            let (first, num) = (k / 2, (block.words - k / 2).min(LANES));
            // SAFETY: reads values k.. of columns j..j + n, at most block.len; `square` and `turned` are 16 by 16, and
            // rows first..first + num of the panel exist.
            unsafe {
                for l in 0..n {
                    let v = words(s, b.add((j + l) * steps.col + k), block.len - k);
                    s.store(square.0.as_mut_ptr().add(l * LANES), v);
                }
                let to = to.add(panel + first * NR);
                if num == LANES {
                    s.transpose(square.0.as_ptr(), LANES, LANES - 1, to, NR);
                } else {
                    s.transpose(square.0.as_ptr(), LANES, LANES - 1, turned.0.as_mut_ptr(), LANES);
                    for r in 0..num {
                        s.store(to.add(r * NR), s.load(turned.0.as_ptr().add(r * LANES)));
                    }
                }
            }
        }
    }
}

/// Runs `N` independent chains of dot products for `steps` and returns the number of operations: for the peak rate.
///
/// # Safety
/// The processor must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn chains<const N: usize>(steps: usize) -> f64 {
    // Values stay finite and normal: x → x + 2 · 2⁻³⁰.
    let small: __m512bh = {
        // SAFETY: two vector types of one size.
        unsafe { transmute(_mm512_set1_epi32(black_box(0x3800_3800))) }
    };
    let mut acc = [_mm512_set1_ps(black_box(1.0)); N];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = _mm512_dpbf16_ps(*acc, small, small);
        }
    }
    black_box(acc.into_iter().fold(_mm512_setzero_ps(), |sum, acc| _mm512_add_ps(sum, acc)));
    4.0 * (steps * N * LANES) as f64
}
