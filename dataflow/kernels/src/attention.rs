//! Multi-head self-attention that reads the output of the qkv product as it lies.
//!
//! One pair of image and head at a time: its keys and values are packed into scratch that stays in the
//! first two cache levels, and all products run on register tiles over it. No tensor is ever copied to
//! another layout as a whole.

#[cfg(target_arch = "x86_64")]
use super::attention_dots;
use super::bf16::{Bf16Unit, Factors};
use super::dispatch::dispatch;
use super::lengths::same_len;
use super::math;
use super::matmul::count_flops;
use super::scratch::with_scratch;
use super::simd::{Simd, sweep};
use super::tile::{SmallProduct, Strided, copy_rows, transpose_rows};

/// The sizes of one attention call. qkv is [batch·tokens, 3·heads·head_dim]: q, k and v of a token one
/// after the other, each [heads, head_dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of images.
    pub batch: usize,
    /// Tokens per image.
    pub tokens: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of a head; scores are scaled by 1/√head_dim.
    pub head_dim: usize,
    /// The first `queries` tokens of each image are queries: `tokens`, or 1 if only the CLS token's output
    /// is needed.
    pub queries: usize,
}

impl AttentionShape {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn check(&self, qkv: usize, out: usize, probs: Option<usize>, what: &str) {
        assert!(
            self.tokens > 0 && self.heads > 0 && self.head_dim > 0 && (1..=self.tokens).contains(&self.queries),
            "{what}: bad shape {self:?}"
        );
        same_len(qkv, self.batch * self.tokens * 3 * self.width(), what);
        same_len(out, self.batch * self.queries * self.width(), what);
        if let Some(probs) = probs {
            same_len(probs, self.batch * self.heads * self.queries * self.tokens, what);
        }
    }

    fn count(&self, products: usize) {
        count_flops(self.batch * self.heads * products * self.queries, self.tokens, self.head_dim);
    }
}

/// Rows of scores that are computed, normalised and multiplied by the values before the next rows.
pub(super) const QUERY_BLOCK: usize = 48;
/// Rows of scratch are padded to this, a multiple of every vector length.
const PAD: usize = 16;

/// out = softmax(q·kᵀ/√head_dim)·v for each image and head.
///
/// out [batch·queries, heads·head_dim]; `probs` [batch, heads, queries, tokens], if given, receives the
/// softmax for the backward pass.
///
/// # Panics
/// If a size of the shape is 0, `queries` exceeds `tokens`, or lengths do not fit.
pub fn attention(out: &mut [f32], probs: Option<&mut [f32]>, qkv: &[f32], shape: &AttentionShape) {
    attention_in(Factors::F32, out, probs, qkv, shape);
}

/// [`attention`] with the factors of its products rounded, where this machine has such products in vector registers.
///
/// # Panics
/// As [`attention`].
pub fn attention_in(factors: Factors, out: &mut [f32], probs: Option<&mut [f32]>, qkv: &[f32], shape: &AttentionShape) {
    shape.check(qkv.len(), out.len(), probs.as_ref().map(|p| p.len()), "attention");
    shape.count(2);
    #[cfg(target_arch = "x86_64")]
    if factors == Factors::Bf16 && Bf16Unit::has_vectors() {
        let probs = probs.map_or(&mut [][..], |p| p);
        // SAFETY: has_vectors() and the check above.
        let forward = |scratch: &mut [f32]| unsafe { attention_dots::forward(out, probs, qkv, shape, scratch) };
        return with_scratch(attention_dots::forward_len(shape), forward);
    }
    let (padded_t, padded_d) = (shape.tokens.next_multiple_of(PAD), shape.head_dim.next_multiple_of(PAD));
    let len = shape.head_dim * padded_t + shape.tokens * padded_d + QUERY_BLOCK * padded_t;
    with_scratch(len, |scratch| {
        let probs = probs.map_or(&mut [][..], |p| p);
        dispatch!(forward(out: &mut [f32], probs: &mut [f32], qkv: &[f32], shape: &AttentionShape, scratch: &mut [f32]))
    });
}

#[inline(always)]
fn forward<S: Simd>(
    s: S,
    out: &mut [f32],
    probs: &mut [f32],
    qkv: &[f32],
    shape: &AttentionShape,
    scratch: &mut [f32],
) {
    let &AttentionShape { batch, tokens, heads, head_dim, queries } = shape;
    let (ldt, ldd) = (tokens.next_multiple_of(S::LANES), head_dim.next_multiple_of(S::LANES));
    let (width, stride) = (shape.width(), 3 * shape.width());
    let (keys, rest) = scratch.split_at_mut(head_dim * ldt);
    let (values, scores) = rest.split_at_mut(tokens * ldd);
    assert!(scores.len() >= QUERY_BLOCK * ldt);
    let scale = 1.0 / (head_dim as f32).sqrt();
    for image in 0..batch {
        for h in 0..heads {
            // SAFETY: check() made qkv [batch·tokens, 3·width] and out [batch·queries, width]. By the
            // splits above, keys hold head_dim rows of ldt, values tokens rows of ldd, and scores
            // QUERY_BLOCK rows of ldt.
            unsafe {
                let q = qkv.as_ptr().add(image * tokens * stride + h * head_dim);
                transpose_rows(s, q.add(width), stride, tokens, head_dim, keys.as_mut_ptr(), ldt);
                copy_rows(s, q.add(2 * width), stride, tokens, head_dim, values.as_mut_ptr(), ldd);
                for first in (0..queries).step_by(QUERY_BLOCK) {
                    let rows = QUERY_BLOCK.min(queries - first);
                    let a = Strided { ptr: q.add(first * stride), row: stride, step: 1 };
                    let (b, c) = (keys.as_ptr(), scores.as_mut_ptr());
                    SmallProduct { rows, cols: tokens, k: head_dim, alpha: scale, a, b, ldb: ldt, c, ldc: ldt }
                        .compute(s);
                    for (r, row) in scores.chunks_exact_mut(ldt).take(rows).enumerate() {
                        softmax(s, &mut row[..tokens]);
                        if !probs.is_empty() {
                            let at = ((image * heads + h) * queries + first + r) * tokens;
                            copy(s, &mut probs[at..at + tokens], &row[..tokens]);
                        }
                    }
                    let a = Strided { ptr: scores.as_ptr(), row: ldt, step: 1 };
                    let c = out.as_mut_ptr().add((image * queries + first) * width + h * head_dim);
                    let b = values.as_ptr();
                    SmallProduct { rows, cols: head_dim, k: tokens, alpha: 1.0, a, b, ldb: ldd, c, ldc: width }
                        .compute(s);
                }
            }
        }
    }
}

#[inline(always)]
fn copy<S: Simd>(s: S, to: &mut [f32], from: &[f32]) {
    assert!(to.len() == from.len());
    sweep!(S, to.len(), |i, w| {
        // SAFETY: i + w <= both lengths.
        unsafe { s.store_n(to.as_mut_ptr().add(i), w, s.load_n(from.as_ptr().add(i), w)) };
    });
}

/// row = exp(row - max) / Σ. A NaN anywhere makes the row NaN.
#[inline(always)]
fn softmax<S: Simd>(s: S, row: &mut [f32]) {
    let scale = s.splat(1.0 / softmax_exp(s, row));
    sweep!(S, row.len(), |i, w| {
        // SAFETY: i + w <= n.
        unsafe { s.store_n(row.as_mut_ptr().add(i), w, s.mul(s.load_n(row.as_ptr().add(i), w), scale)) };
    });
}

/// row = exp(row - max); returns Σ.
#[inline(always)]
pub(super) fn softmax_exp<S: Simd>(s: S, row: &mut [f32]) -> f32 {
    let n = row.len();
    let mut top = s.splat(row[0]);
    sweep!(S, n, |i, w| {
        // The zeros of a partial vector must not count as scores, so the tail goes value by value.
        if w == S::LANES {
            // SAFETY: i + LANES <= n.
            top = s.max(top, unsafe { s.load(row.as_ptr().add(i)) });
        } else {
            for x in &row[i..] {
                top = s.max(top, s.splat(*x));
            }
        }
    });
    let top = s.splat(s.largest(top));
    let mut total = s.splat(0.0);
    sweep!(S, n, |i, w| {
        // SAFETY: i + w <= n. keep() zeroes the lanes after the end.
        unsafe {
            let e = math::exp_neg(s, s.sub(s.load_n(row.as_ptr().add(i), w), top));
            s.store_n(row.as_mut_ptr().add(i), w, e);
            total = s.add(total, s.keep(e, w));
        }
    });
    s.sum(total)
}

/// The gradient of [`attention`] from its saved `probs` and `out`.
///
/// dout and out [batch·queries, heads·head_dim], probs [batch, heads, queries, tokens]. All of dqkv, shaped
/// as qkv, is overwritten; the gradient of q is zero for tokens that were no queries.
///
/// # Panics
/// As [`attention`].
pub fn attention_grad(dqkv: &mut [f32], dout: &[f32], qkv: &[f32], probs: &[f32], out: &[f32], shape: &AttentionShape) {
    attention_grad_in(Factors::F32, dqkv, dout, qkv, probs, out, shape);
}

/// [`attention_grad`] as [`attention_in`].
///
/// # Panics
/// As [`attention`].
pub fn attention_grad_in(
    factors: Factors,
    dqkv: &mut [f32],
    dout: &[f32],
    qkv: &[f32],
    probs: &[f32],
    out: &[f32],
    shape: &AttentionShape,
) {
    shape.check(qkv.len(), out.len(), Some(probs.len()), "attention_grad");
    same_len(dqkv.len(), qkv.len(), "attention_grad");
    same_len(dout.len(), out.len(), "attention_grad");
    shape.count(4);
    #[cfg(target_arch = "x86_64")]
    if factors == Factors::Bf16 && Bf16Unit::has_vectors() {
        return with_scratch(attention_dots::backward_len(shape), |scratch| {
            // SAFETY: has_vectors() and the checks above.
            unsafe { attention_dots::backward(Backward { dqkv, dout, qkv, probs, out, scratch }, shape) }
        });
    }
    let (padded_t, padded_d) = (shape.tokens.next_multiple_of(PAD), shape.head_dim.next_multiple_of(PAD));
    // vᵀ, k, q and dout of one head, and the gradient of its scores.
    let len = shape.head_dim * padded_t + (shape.tokens + 2 * shape.queries) * padded_d + shape.queries * padded_t;
    with_scratch(len, |scratch| {
        let io = Backward { dqkv, dout, qkv, probs, out, scratch };
        dispatch!(backward(io: Backward<'_>, shape: &AttentionShape))
    });
}

/// The arguments of [`attention_grad`], and its scratch.
pub(super) struct Backward<'a> {
    pub dqkv: &'a mut [f32],
    pub dout: &'a [f32],
    pub qkv: &'a [f32],
    pub probs: &'a [f32],
    pub out: &'a [f32],
    pub scratch: &'a mut [f32],
}

#[inline(always)]
fn backward<S: Simd>(s: S, io: Backward<'_>, shape: &AttentionShape) {
    let &AttentionShape { batch, tokens, heads, head_dim, queries } = shape;
    let (ldt, ldd) = (tokens.next_multiple_of(S::LANES), head_dim.next_multiple_of(S::LANES));
    let (width, stride) = (shape.width(), 3 * shape.width());
    let (values, rest) = io.scratch.split_at_mut(head_dim * ldt);
    let (keys, rest) = rest.split_at_mut(tokens * ldd);
    let (query, rest) = rest.split_at_mut(queries * ldd);
    let (dout, scores) = rest.split_at_mut(queries * ldd);
    assert!(scores.len() >= queries * ldt);
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
            // SAFETY: check() made qkv and dqkv [batch·tokens, 3·width], dout and out [batch·queries,
            // width]. By the splits above, vᵀ has head_dim rows of ldt, k tokens rows and q and dout
            // queries rows of ldd, scores queries rows of ldt.
            unsafe {
                let q = io.qkv.as_ptr().add(image * tokens * stride + h * head_dim);
                let d = io.dout.as_ptr().add(at);
                transpose_rows(s, q.add(2 * width), stride, tokens, head_dim, values.as_mut_ptr(), ldt);
                copy_rows(s, q.add(width), stride, tokens, head_dim, keys.as_mut_ptr(), ldd);
                copy_rows(s, q, stride, queries, head_dim, query.as_mut_ptr(), ldd);
                copy_rows(s, d, width, queries, head_dim, dout.as_mut_ptr(), ldd);
                let a = Strided { ptr: dout.as_ptr(), row: ldd, step: 1 };
                let (b, c) = (values.as_ptr(), scores.as_mut_ptr());
                let product =
                    SmallProduct { rows: queries, cols: tokens, k: head_dim, alpha: 1.0, a, b, ldb: ldt, c, ldc: ldt };
                product.compute(s);
                for r in 0..queries {
                    let mean = row_dot(s, &dout[r * ldd..][..head_dim], &io.out[at + r * width..][..head_dim]);
                    softmax_grad(s, &mut scores[r * ldt..][..tokens], &p[r * tokens..][..tokens], mean, scale);
                }
                let g = io.dqkv.as_mut_ptr().add(image * tokens * stride + h * head_dim);
                // dq = dscores · k, dk = dscoresᵀ · q, dv = probsᵀ · dout.
                let (a, b) = (Strided { ptr: scores.as_ptr(), row: ldt, step: 1 }, keys.as_ptr());
                let cols = head_dim;
                let dq = SmallProduct { rows: queries, cols, k: tokens, alpha: 1.0, a, b, ldb: ldd, c: g, ldc: stride };
                dq.compute(s);
                let (a, b) = (Strided { ptr: scores.as_ptr(), row: 1, step: ldt }, query.as_ptr());
                let dk = SmallProduct { rows: tokens, k: queries, a, b, c: g.add(width), ..dq };
                dk.compute(s);
                let (a, b) = (Strided { ptr: p.as_ptr(), row: 1, step: tokens }, dout.as_ptr());
                SmallProduct { a, b, c: g.add(2 * width), ..dk }.compute(s);
            }
        }
    }
}

#[inline(always)]
pub(super) fn row_dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert!(a.len() == b.len());
    let mut acc = s.splat(0.0);
    sweep!(S, a.len(), |i, w| {
        // SAFETY: i + w <= both lengths.
        acc = unsafe { s.fma(s.load_n(a.as_ptr().add(i), w), s.load_n(b.as_ptr().add(i), w), acc) };
    });
    s.sum(acc)
}

/// d = p (d - mean) scale.
#[inline(always)]
pub(super) fn softmax_grad<S: Simd>(s: S, d: &mut [f32], p: &[f32], mean: f32, scale: f32) {
    assert!(d.len() == p.len());
    let (mean, scale) = (s.splat(mean), s.splat(scale));
    sweep!(S, d.len(), |i, w| {
        // SAFETY: i + w <= both lengths.
        unsafe {
            let at = d.as_mut_ptr().add(i);
            let p = s.mul(s.load_n(p.as_ptr().add(i), w), scale);
            s.store_n(at, w, s.mul(p, s.sub(s.load_n(at, w), mean)));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, central_differences, dot, each_isa, values, wide};

    fn shape(batch: usize, tokens: usize, heads: usize, head_dim: usize, queries: usize) -> AttentionShape {
        AttentionShape { batch, tokens, heads, head_dim, queries }
    }

    /// (out, probs) in `f64`, element by element.
    fn twin(qkv: &[f64], s: &AttentionShape) -> (Vec<f64>, Vec<f64>) {
        let (width, d) = (s.width(), s.head_dim);
        let (mut out, mut probs) = (vec![0.0; s.batch * s.queries * width], Vec::new());
        for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
            let part = |t: usize, which: usize| &qkv[((b * s.tokens + t) * 3 + which) * width + h * d..][..d];
            for i in 0..s.queries {
                let scores: Vec<f64> = (0..s.tokens).map(|j| dot(part(i, 0), part(j, 1)) / (d as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let exps: Vec<f64> = scores.iter().map(|v| (v - top).exp()).collect();
                let total: f64 = exps.iter().sum();
                for (j, e) in exps.iter().enumerate() {
                    probs.push(e / total);
                    for (c, v) in part(j, 2).iter().enumerate() {
                        out[(b * s.queries + i) * width + h * d + c] += e / total * v;
                    }
                }
            }
        }
        (out, probs)
    }

    fn run(qkv: &[f32], s: &AttentionShape) -> (Vec<f32>, Vec<f32>) {
        let mut out = vec![f32::NAN; s.batch * s.queries * s.width()];
        let mut probs = vec![f32::NAN; s.batch * s.heads * s.queries * s.tokens];
        attention(&mut out, Some(&mut probs), qkv, s);
        (out, probs)
    }

    #[test]
    fn forward_matches_its_twin() {
        for s in [
            shape(1, 1, 1, 1, 1),
            shape(2, 3, 2, 3, 3),
            shape(3, 17, 3, 32, 17),
            shape(2, 17, 2, 48, 1),
            shape(2, 65, 3, 64, 65),
            shape(1, 65, 2, 17, 65),
            shape(1, 257, 2, 64, 257),
            shape(2, 257, 1, 48, 1),
            shape(1, 27, 2, 100, 5),
        ] {
            let qkv: Vec<f32> = values(s.batch * s.tokens * 3 * s.width(), 1).iter().map(|v| 1.5 * v).collect();
            let (want, want_probs) = twin(&wide(&qkv), &s);
            each_isa(|isa| {
                let (out, probs) = run(&qkv, &s);
                assert_close(&out, &want, 2e-6, &format!("attention {s:?} {isa:?}"));
                assert_close(&probs, &want_probs, 2e-6, &format!("probs {s:?} {isa:?}"));
                let mut without = vec![f32::NAN; out.len()];
                attention(&mut without, None, &qkv, &s);
                assert_eq!(out, without, "saving the softmax changes the result");
                let last = AttentionShape { batch: 1, ..s };
                let (one, _) = run(&qkv[qkv.len() / s.batch * (s.batch - 1)..], &last);
                assert_eq!(one, out[out.len() - one.len()..], "an image depends on the batch");
            });
        }
    }

    #[test]
    fn large_scores_stay_finite_and_nan_shows() {
        let s = shape(1, 17, 1, 16, 17);
        let qkv: Vec<f32> = values(17 * 48, 1).iter().map(|v| 300.0 * v).collect();
        each_isa(|isa| {
            let (_, probs) = run(&qkv, &s);
            for row in probs.chunks_exact(17) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{isa:?}");
            }
            let mut bad = qkv.clone();
            bad[2 * 48 + 20] = f32::NAN; // a key
            assert!(run(&bad, &s).0.iter().all(|v| v.is_nan()), "{isa:?}");
        });
    }

    #[test]
    fn gradients_match_finite_differences() {
        for s in [
            shape(1, 1, 1, 1, 1),
            shape(2, 3, 2, 3, 3),
            shape(1, 17, 2, 17, 17),
            shape(2, 17, 1, 16, 1),
            shape(1, 20, 1, 32, 20),
            shape(1, 27, 1, 18, 4),
        ] {
            let qkv = values(s.batch * s.tokens * 3 * s.width(), 1);
            let dout = values(s.batch * s.queries * s.width(), 2);
            let want = central_differences(&wide(&qkv), |x| dot(&twin(x, &s).0, &wide(&dout)));
            each_isa(|isa| {
                let (out, probs) = run(&qkv, &s);
                let mut dqkv = vec![f32::NAN; qkv.len()];
                attention_grad(&mut dqkv, &dout, &qkv, &probs, &out, &s);
                assert_close(&dqkv, &want, 3e-6, &format!("attention_grad {s:?} {isa:?}"));
            });
        }
    }

    /// The gradient written out in `f64`, for sizes where finite differences take too long.
    fn twin_grad(dout: &[f64], qkv: &[f64], s: &AttentionShape) -> Vec<f64> {
        let (width, d) = (s.width(), s.head_dim);
        let (_, probs) = twin(qkv, s);
        let mut grad = vec![0.0; qkv.len()];
        for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
            let at = |t: usize, which: usize| ((b * s.tokens + t) * 3 + which) * width + h * d;
            for i in 0..s.queries {
                let p = &probs[((b * s.heads + h) * s.queries + i) * s.tokens..][..s.tokens];
                let g = &dout[(b * s.queries + i) * width + h * d..][..d];
                let dp: Vec<f64> = (0..s.tokens).map(|j| dot(g, &qkv[at(j, 2)..][..d])).collect();
                let mean = dot(p, &dp);
                for j in 0..s.tokens {
                    let ds = p[j] * (dp[j] - mean) / (d as f64).sqrt();
                    for c in 0..d {
                        grad[at(i, 0) + c] += ds * qkv[at(j, 1) + c];
                        grad[at(j, 1) + c] += ds * qkv[at(i, 0) + c];
                        grad[at(j, 2) + c] += p[j] * g[c];
                    }
                }
            }
        }
        grad
    }

    #[test]
    fn gradients_match_their_twin_on_the_sizes_in_use() {
        for s in [shape(2, 17, 3, 32, 17), shape(2, 65, 3, 64, 65), shape(1, 257, 2, 48, 257), shape(2, 257, 1, 64, 1)]
        {
            let qkv = values(s.batch * s.tokens * 3 * s.width(), 1);
            let dout = values(s.batch * s.queries * s.width(), 2);
            let want = twin_grad(&wide(&dout), &wide(&qkv), &s);
            each_isa(|isa| {
                let (out, probs) = run(&qkv, &s);
                let mut dqkv = vec![f32::NAN; qkv.len()];
                attention_grad(&mut dqkv, &dout, &qkv, &probs, &out, &s);
                assert_close(&dqkv, &want, 2e-6, &format!("attention_grad {s:?} {isa:?}"));
                let mut again = vec![0.0; qkv.len()];
                attention_grad(&mut again, &dout, &qkv, &probs, &out, &s);
                assert_eq!(dqkv, again, "bits differ between two runs");
            });
        }
    }

    /// Beside the twin of rounded queries, keys, values and cotangents, only probabilities and the gradient of scores
    /// are rounded: relative errors of 2⁻⁹, of which sums are taken.
    #[test]
    fn rounded_attention_matches_its_twin() {
        let rounded = |x: Vec<f32>| x.into_iter().map(crate::bf16::round).collect::<Vec<_>>();
        for s in [
            shape(1, 1, 1, 4, 1),
            shape(1, 2, 2, 3, 1),
            shape(2, 17, 3, 32, 17),
            shape(1, 33, 2, 27, 33),
            shape(2, 65, 3, 64, 65),
            shape(1, 65, 1, 48, 7),
            shape(1, 257, 2, 80, 257),
            shape(2, 257, 1, 32, 1),
        ] {
            let qkv = rounded(values(s.batch * s.tokens * 3 * s.width(), 1));
            let dout = rounded(values(s.batch * s.queries * s.width(), 2));
            let (want_out, want_probs) = twin(&wide(&qkv), &s);
            let want = twin_grad(&wide(&dout), &wide(&qkv), &s);
            each_isa(|isa| {
                let (mut out, mut probs) = (vec![f32::NAN; want_out.len()], vec![f32::NAN; want_probs.len()]);
                attention_in(Factors::Bf16, &mut out, Some(&mut probs), &qkv, &s);
                assert_close(&probs, &want_probs, 2e-6, &format!("probabilities {s:?} {isa:?}"));
                assert_close(&out, &want_out, 5e-3, &format!("attention {s:?} {isa:?}"));
                let mut dqkv = vec![f32::NAN; qkv.len()];
                attention_grad_in(Factors::Bf16, &mut dqkv, &dout, &qkv, &probs, &out, &s);
                assert_close(&dqkv, &want, 8e-3, &format!("attention_grad {s:?} {isa:?}"));
                let mut again = vec![0.0; qkv.len()];
                attention_grad_in(Factors::Bf16, &mut again, &dout, &qkv, &probs, &out, &s);
                assert_eq!(dqkv, again, "bits differ between two runs");
            });
        }
    }
}
