//! Attention with the products of [`super::dots`]: queries, keys, values, probabilities and cotangents are rounded to
//! bf16 as factors. Softmax and its gradient are those of [`super::attention`], in `f32`.
//!
//! A factor on the left is kept as rows of words (pairs along the sum), or as words of the lanes of two rows where it
//! is transposed; one on the right as rows of words of its lanes, padded to whole vectors.

use super::attention::{AttentionShape, Backward, QUERY_BLOCK, row_dot, softmax_exp, softmax_grad};
use super::dots::{LANES, pairs, word_tile, words};
use super::simd::{Simd, sweep};
use super::tile::Strided;
use super::x86::Avx512;

/// Words of `len` values, padded to whole vectors.
const fn padded_words(len: usize) -> usize {
    len.next_multiple_of(2 * LANES) / 2
}

/// The lengths of the scratch of one head.
#[derive(Clone, Copy)]
struct Lengths {
    /// Words of a row of head_dim values, and of tokens values; padded.
    dim_words: usize,
    token_words: usize,
    /// Pairs of tokens, and of queries.
    token_pairs: usize,
    query_pairs: usize,
    /// Lanes of tokens and of head_dim, padded.
    ldt: usize,
    ldd: usize,
}

impl Lengths {
    fn of(shape: &AttentionShape) -> Self {
        Lengths {
            dim_words: padded_words(shape.head_dim),
            token_words: padded_words(shape.tokens),
            token_pairs: shape.tokens.div_ceil(2),
            query_pairs: shape.queries.div_ceil(2),
            ldt: shape.tokens.next_multiple_of(LANES),
            ldd: shape.head_dim.next_multiple_of(LANES),
        }
    }
}

/// Values of scratch that [`forward`] takes.
pub(super) fn forward_len(shape: &AttentionShape) -> usize {
    let l = Lengths::of(shape);
    l.dim_words * l.ldt + l.token_pairs * l.ldd + QUERY_BLOCK * (l.dim_words + l.ldt + l.token_words)
}

/// Values of scratch that [`backward`] takes.
pub(super) fn backward_len(shape: &AttentionShape) -> usize {
    let l = Lengths::of(shape);
    l.dim_words * l.ldt
        + (l.token_pairs + 2 * l.query_pairs) * l.ldd
        + 2 * l.query_pairs * l.ldt
        + shape.queries * (l.dim_words + l.ldt + l.token_words)
}

/// As `forward` of [`super::attention`], which checks the lengths.
///
/// # Safety
/// The processor must have AVX-512 F, VL, BW, DQ and BF16. `out` and `qkv` must have the lengths of `shape`, `probs`
/// none or those, and `scratch` [`forward_len`] values.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")]
pub(super) unsafe fn forward(
    out: &mut [f32],
    probs: &mut [f32],
    qkv: &[f32],
    shape: &AttentionShape,
    scratch: &mut [f32],
) {
    // SAFETY: the target features of this function are those of the token.
    let s = unsafe { Avx512::new() };
    let &AttentionShape { batch, tokens, heads, head_dim, queries } = shape;
    let l = Lengths::of(shape);
    let (width, stride) = (heads * head_dim, 3 * heads * head_dim);
    let (keys, rest) = scratch.split_at_mut(l.dim_words * l.ldt);
    let (values, rest) = rest.split_at_mut(l.token_pairs * l.ldd);
    let (query, rest) = rest.split_at_mut(QUERY_BLOCK * l.dim_words);
    let (scores, weights) = rest.split_at_mut(QUERY_BLOCK * l.ldt);
    assert!(weights.len() >= QUERY_BLOCK * l.token_words);
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (image, h) in (0..batch).flat_map(|image| (0..heads).map(move |h| (image, h))) {
        // SAFETY: the rows of a head lie in qkv and out by the shape; the splits above have room for its factors.
        unsafe {
            let q = qkv.as_ptr().add(image * tokens * stride + h * head_dim);
            transposed_words(s, q.add(width), stride, tokens, head_dim, keys.as_mut_ptr(), l.ldt);
            pair_rows(s, q.add(2 * width), stride, tokens, head_dim, values.as_mut_ptr(), l.ldd);
            for first in (0..queries).step_by(QUERY_BLOCK) {
                let rows = QUERY_BLOCK.min(queries - first);
                row_words(s, q.add(first * stride), stride, rows, head_dim, query.as_mut_ptr(), l.dim_words);
                let product = WordProduct {
                    rows,
                    cols: tokens,
                    words: head_dim.div_ceil(2),
                    alpha: scale,
                    a: Strided { ptr: query.as_ptr(), row: l.dim_words, step: 1 },
                    b: keys.as_ptr(),
                    ldb: l.ldt,
                    c: scores.as_mut_ptr(),
                    ldc: l.ldt,
                };
                product.compute(s);
                for r in 0..rows {
                    let row = &mut scores[r * l.ldt..][..tokens];
                    let scale = s.splat(1.0 / softmax_exp(s, row));
                    sweep!(Avx512, tokens, |i, w| {
                        let at = row.as_mut_ptr().add(i);
                        s.store_n(at, w, s.mul(s.load_n(at, w), scale));
                    });
                    if !probs.is_empty() {
                        let at = ((image * heads + h) * queries + first + r) * tokens;
                        probs[at..at + tokens].copy_from_slice(row);
                    }
                }
                row_words(s, scores.as_ptr(), l.ldt, rows, tokens, weights.as_mut_ptr(), l.token_words);
                let product = WordProduct {
                    rows,
                    cols: head_dim,
                    words: l.token_pairs,
                    alpha: 1.0,
                    a: Strided { ptr: weights.as_ptr(), row: l.token_words, step: 1 },
                    b: values.as_ptr(),
                    ldb: l.ldd,
                    c: out.as_mut_ptr().add((image * queries + first) * width + h * head_dim),
                    ldc: width,
                };
                product.compute(s);
            }
        }
    }
}

/// As `backward` of [`super::attention`], which checks the lengths.
///
/// # Safety
/// As [`forward`], with the lengths of `shape` in all of `io`, and [`backward_len`] values of scratch.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")]
pub(super) unsafe fn backward(io: Backward<'_>, shape: &AttentionShape) {
    // SAFETY: the target features of this function are those of the token.
    let s = unsafe { Avx512::new() };
    let &AttentionShape { batch, tokens, heads, head_dim, queries } = shape;
    let l = Lengths::of(shape);
    let (width, stride) = (heads * head_dim, 3 * heads * head_dim);
    let (values, rest) = io.scratch.split_at_mut(l.dim_words * l.ldt);
    let (keys, rest) = rest.split_at_mut(l.token_pairs * l.ldd);
    let (query, rest) = rest.split_at_mut(l.query_pairs * l.ldd);
    let (dout_pairs, rest) = rest.split_at_mut(l.query_pairs * l.ldd);
    let (score_pairs, rest) = rest.split_at_mut(l.query_pairs * l.ldt);
    let (prob_pairs, rest) = rest.split_at_mut(l.query_pairs * l.ldt);
    let (dout_words, rest) = rest.split_at_mut(queries * l.dim_words);
    let (scores, score_words) = rest.split_at_mut(queries * l.ldt);
    assert!(score_words.len() >= queries * l.token_words);
    let scale = 1.0 / (head_dim as f32).sqrt();
    for image in 0..batch {
        if queries < tokens {
            let tokens_of_image = &mut io.dqkv[image * tokens * stride..(image + 1) * tokens * stride];
            for token in tokens_of_image.chunks_exact_mut(stride).skip(queries) {
                token[..width].fill(0.0);
            }
        }
        for h in 0..heads {
            let p = &io.probs[(image * heads + h) * queries * tokens..][..queries * tokens];
            let at = image * queries * width + h * head_dim;
            // SAFETY: the rows of a head lie in qkv, dqkv, dout and out by the shape; the splits above have room for
            // its factors.
            unsafe {
                let q = io.qkv.as_ptr().add(image * tokens * stride + h * head_dim);
                let d = io.dout.as_ptr().add(at);
                transposed_words(s, q.add(2 * width), stride, tokens, head_dim, values.as_mut_ptr(), l.ldt);
                pair_rows(s, q.add(width), stride, tokens, head_dim, keys.as_mut_ptr(), l.ldd);
                pair_rows(s, q, stride, queries, head_dim, query.as_mut_ptr(), l.ldd);
                pair_rows(s, d, width, queries, head_dim, dout_pairs.as_mut_ptr(), l.ldd);
                pair_rows(s, p.as_ptr(), tokens, queries, tokens, prob_pairs.as_mut_ptr(), l.ldt);
                row_words(s, d, width, queries, head_dim, dout_words.as_mut_ptr(), l.dim_words);
                let product = WordProduct {
                    rows: queries,
                    cols: tokens,
                    words: head_dim.div_ceil(2),
                    alpha: 1.0,
                    a: Strided { ptr: dout_words.as_ptr(), row: l.dim_words, step: 1 },
                    b: values.as_ptr(),
                    ldb: l.ldt,
                    c: scores.as_mut_ptr(),
                    ldc: l.ldt,
                };
                product.compute(s);
                for r in 0..queries {
                    let at = at + r * width;
                    let mean = row_dot(s, &io.dout[at..at + head_dim], &io.out[at..at + head_dim]);
                    softmax_grad(s, &mut scores[r * l.ldt..][..tokens], &p[r * tokens..][..tokens], mean, scale);
                }
                row_words(s, scores.as_ptr(), l.ldt, queries, tokens, score_words.as_mut_ptr(), l.token_words);
                pair_rows(s, scores.as_ptr(), l.ldt, queries, tokens, score_pairs.as_mut_ptr(), l.ldt);
                let g = io.dqkv.as_mut_ptr().add(image * tokens * stride + h * head_dim);
                // dq = dscores · k, dk = dscoresᵀ · q, dv = probsᵀ · dout.
                let dq = WordProduct {
                    rows: queries,
                    cols: head_dim,
                    words: l.token_pairs,
                    alpha: 1.0,
                    a: Strided { ptr: score_words.as_ptr(), row: l.token_words, step: 1 },
                    b: keys.as_ptr(),
                    ldb: l.ldd,
                    c: g,
                    ldc: stride,
                };
                dq.compute(s);
                let a = Strided { ptr: score_pairs.as_ptr(), row: 1, step: l.ldt };
                let dk =
                    WordProduct { rows: tokens, words: l.query_pairs, a, b: query.as_ptr(), c: g.add(width), ..dq };
                dk.compute(s);
                let a = Strided { ptr: prob_pairs.as_ptr(), row: 1, step: l.ldt };
                WordProduct { a, b: dout_pairs.as_ptr(), c: g.add(2 * width), ..dk }.compute(s);
            }
        }
    }
}

/// C = alpha · A·B for a small product of words, as [`super::tile::SmallProduct`].
#[derive(Clone, Copy)]
struct WordProduct {
    rows: usize,
    cols: usize,
    words: usize,
    alpha: f32,
    a: Strided,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
}

impl WordProduct {
    /// Computes it.
    ///
    /// # Safety
    /// A must be readable for rows × words; B for as many rows of cols rounded up to whole vectors; C writable for rows
    /// × cols. The processor must have AVX512_BF16.
    #[inline(always)]
    unsafe fn compute(self, s: Avx512) {
        let (mut left, mut at) = (self.cols.div_ceil(LANES), 0);
        // SAFETY: the columns from `at` on that each call takes are inside cols rounded up to vectors.
        unsafe {
            while left > 0 {
                let (b, c, cols) = (self.b.add(at), self.c.add(at), self.cols - at);
                let rest = WordProduct { b, c, cols, ..self };
                let taken = match (self.rows, left) {
                    (1, 4..) => rest.columns::<1, 4>(s),
                    (1, _) => rest.columns::<1, 1>(s),
                    (_, 4..) => rest.columns::<6, 4>(s),
                    (_, 3) => rest.columns::<8, 3>(s),
                    (_, 2) => rest.columns::<12, 2>(s),
                    _ => rest.columns::<12, 1>(s),
                };
                left -= taken;
                at += taken * LANES;
            }
        }
    }

    /// Computes the first NV vectors of columns, MR rows at a time; returns NV.
    ///
    /// # Safety
    /// As [`WordProduct::compute`], for NV vectors of B.
    #[inline(always)]
    unsafe fn columns<const MR: usize, const NV: usize>(self, s: Avx512) -> usize {
        let scale = s.splat(self.alpha);
        for first in (0..self.rows).step_by(MR) {
            let rows = MR.min(self.rows - first);
            // SAFETY: rows first.. of A and C are inside the matrices; only rows and columns of C are stored.
            unsafe {
                let a = Strided { ptr: self.a.ptr.add(first * self.a.row), ..self.a };
                let acc = word_tile::<MR, NV>(s, self.words, a, rows - 1, self.b, self.ldb);
                for (i, acc) in acc.iter().enumerate() {
                    if i < rows {
                        for (j, v) in acc.iter().enumerate() {
                            let p = self.c.add((first + i) * self.ldc + j * LANES);
                            let w = self.cols - j * LANES;
                            if w >= LANES {
                                s.store(p, s.mul(*v, scale));
                            } else {
                                s.store_n(p, w, s.mul(*v, scale));
                            }
                        }
                    }
                }
            }
        }
        NV
    }
}

/// Rounds rows of `len` values, `step` apart, to rows of words, `ld` apart, with zeros after the last value.
///
/// # Safety
/// The values must be readable, and `to` writable for rows of ld = [`padded_words`] words; the processor must have
/// AVX512_BF16.
#[inline(always)]
unsafe fn row_words(s: Avx512, from: *const f32, step: usize, rows: usize, len: usize, to: *mut f32, ld: usize) {
    for r in 0..rows {
        for i in (0..len).step_by(2 * LANES) {
            // SAFETY: reads values i.. of row r, at most `len`; writes a whole vector of its words.
            unsafe { s.store(to.add(r * ld + i / 2), words(s, from.add(r * step + i), len - i)) };
        }
    }
}

/// Rounds rows of `len` values, `step` apart, to words of two rows each: row i of `to` has the pairs of rows 2i and
/// 2i + 1, with zeros after the last value and after the last row.
///
/// # Safety
/// The values must be readable, and `to` writable for ⌈rows / 2⌉ rows of `ld` words, `len` rounded up to vectors; the
/// processor must have AVX512_BF16.
#[inline(always)]
unsafe fn pair_rows(s: Avx512, from: *const f32, step: usize, rows: usize, len: usize, to: *mut f32, ld: usize) {
    for r in (0..rows).step_by(2) {
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: reads n values of rows r and, if it exists, r + 1; writes a vector of row r / 2.
            unsafe {
                let at = from.add(r * step + i);
                let second = if r + 1 < rows { s.load_n(at.add(step), n) } else { s.splat(0.0) };
                s.store(to.add(r / 2 * ld + i), pairs(s.load_n(at, n), second));
            }
        }
    }
}

/// Rounds rows of `len` values, `step` apart, to words whose lanes are the rows: row i of `to` has values 2i and 2i + 1
/// of each. Lanes after the last row are those of some row.
///
/// # Safety
/// The values must be readable, and `to` writable for [`padded_words`] of `len` rows of `ld` words, rows rounded up to
/// whole vectors; the processor must have AVX512_BF16.
#[inline(always)]
unsafe fn transposed_words(s: Avx512, from: *const f32, step: usize, rows: usize, len: usize, to: *mut f32, ld: usize) {
    #[repr(align(64))]
    struct Square([f32; LANES * LANES]);
    let mut square = Square([0.0; LANES * LANES]);
    for j in (0..rows).step_by(LANES) {
        let n = LANES.min(rows - j);
        for i in (0..len).step_by(2 * LANES) {
            // SAFETY: reads values i.. of rows j..j + n, at most `len`; writes LANES rows of words from i / 2 on, which
            // the padding has.
            unsafe {
                for l in 0..n {
                    s.store(square.0.as_mut_ptr().add(l * LANES), words(s, from.add((j + l) * step + i), len - i));
                }
                s.transpose(square.0.as_ptr(), LANES, n - 1, to.add(i / 2 * ld + j), ld);
            }
        }
    }
}
