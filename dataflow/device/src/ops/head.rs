//! What heads of tasks need, in f64: layer norm, products, cross entropy, and vectors that become wider or narrower.

use super::tokens::{THREADS, blocks, check, int, long, num_of};
use super::vectors::sweep_grid;
use crate::memory::{Arg, View};
use crate::stream::Stream;

/// Added to the variance, as in the networks' own norms.
const EPS: f32 = 1e-6;
/// Rows and columns of a product that a block computes.
const TILE: usize = 32;
/// Images of a block, each of a warp, in the cross entropy.
const IMAGES_OF_BLOCK: usize = 4;

/// Layer norm's weights, each \[width].
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// The gain.
    pub gamma: View<'a, f64>,
    /// Added to it.
    pub beta: View<'a, f64>,
    /// What its output is multiplied with, `[images, width]`: dropout.
    pub factors: Option<View<'a, f32>>,
}

impl Stream {
    /// y = (normed·gamma + beta)·factors for each image of `z` `[images, width]`, with normed = (z − mean)·scale and
    /// scale = 1/√(variance + 10⁻⁶), which are kept: y and normed `[images, width]`, scale `[images]`.
    pub fn head_norm(
        &self,
        y: View<'_, f64>,
        normed: View<'_, f64>,
        scale: View<'_, f64>,
        z: View<'_, f32>,
        w: &HeadNorm<'_>,
    ) {
        let width = w.gamma.len();
        let images = num_of(z.len(), width, "head_norm: z");
        check(y.len(), z.len(), "head_norm: y");
        check(normed.len(), z.len(), "head_norm: normed");
        check(scale.len(), images, "head_norm: scale");
        check(w.beta.len(), width, "head_norm: beta");
        check(w.factors.map_or(z.len(), View::len), z.len(), "head_norm: factors");
        if images > 0 {
            let tensors = [normed.arg(), scale.arg(), y.arg(), z.arg(), w.gamma.arg(), w.beta.arg(), w.factors.into()];
            let args = [&tensors[..], &[int(width), f64::from(EPS).into()]].concat();
            self.launch("head_norm", blocks(images), THREADS, 0, &args);
        }
    }

    /// The gradient of [`Stream::head_norm`] from the cotangent `dy` of y, which becomes that of normed·gamma + beta;
    /// `dz` receives the cotangent of z. Both `[images, width]`.
    pub fn head_norm_grad(
        &self,
        dz: Option<View<'_, f64>>,
        dy: View<'_, f64>,
        normed: View<'_, f64>,
        scale: View<'_, f64>,
        w: &HeadNorm<'_>,
    ) {
        let width = w.gamma.len();
        let images = num_of(dy.len(), width, "head_norm_grad: dy");
        check(dz.map_or(dy.len(), View::len), dy.len(), "head_norm_grad: dz");
        check(normed.len(), dy.len(), "head_norm_grad: normed");
        check(scale.len(), images, "head_norm_grad: scale");
        check(w.factors.map_or(dy.len(), View::len), dy.len(), "head_norm_grad: factors");
        if images > 0 {
            let args = [dz.into(), dy.arg(), normed.arg(), scale.arg(), w.gamma.arg(), w.factors.into(), int(width)];
            self.launch("head_norm_grad", blocks(images), THREADS, 0, &args);
        }
    }

    /// out `[m, n]` = a `[m, k]` · b `[k, n]` + bias `[n]`, row-major and in f64; each sum goes over k in order. A
    /// factor that is `transposed` is stored as its transpose.
    pub fn product_f64(
        &self,
        out: View<'_, f64>,
        [a, b]: [View<'_, f64>; 2],
        transposed: [bool; 2],
        [m, n, k]: [usize; 3],
        bias: Option<View<'_, f64>>,
    ) {
        check(out.len(), m * n, "product_f64: out");
        check(a.len(), m * k, "product_f64: a");
        check(b.len(), k * n, "product_f64: b");
        check(bias.map_or(n, View::len), n, "product_f64: bias");
        if out.is_empty() {
            return;
        }
        let [x, ..] = blocks(n.div_ceil(TILE));
        let [y, ..] = blocks(m.div_ceil(TILE));
        let sizes = [int(m), int(n), int(k), Arg::I32(transposed[0].into()), Arg::I32(transposed[1].into())];
        let args = [&[out.arg(), a.arg(), b.arg(), bias.into()][..], &sizes].concat();
        self.launch("product_f64", [x, y, 1], THREADS, 0, &args);
    }

    /// out `[columns]` = Σ over rows of x·y, both `[rows, columns]`; of x without y. In f64 and a fixed order.
    pub fn column_sums_f64(&self, out: View<'_, f64>, x: View<'_, f64>, y: Option<View<'_, f64>>) {
        if out.is_empty() {
            return;
        }
        let rows = num_of(x.len(), out.len(), "column_sums_f64: x");
        check(y.map_or(x.len(), View::len), x.len(), "column_sums_f64: y");
        let args = [out.arg(), x.arg(), y.into(), int(rows), int(out.len())];
        self.launch("column_sums_f64", blocks(out.len().div_ceil(32)), 1024, 0, &args);
    }

    /// The cross entropy in nat of each image's `logits` `[images, classes]` for its class of `labels` `[images]`, to
    /// `loss`, and to `right` whether that class is the first that has the largest logit, as 0 or 1. The logits are
    /// overwritten by (softmax − one hot)/divisor, the cotangents of the sum of losses over `divisor`.
    pub fn cross_entropy_f64(
        &self,
        loss: View<'_, f64>,
        right: View<'_, f64>,
        logits: View<'_, f64>,
        labels: View<'_, u32>,
        divisor: f64,
    ) {
        let images = labels.len();
        check(loss.len(), images, "cross_entropy_f64: loss");
        check(right.len(), images, "cross_entropy_f64: right");
        if images == 0 {
            return;
        }
        let classes = num_of(logits.len(), images, "cross_entropy_f64: logits");
        let tensors = [loss.arg(), right.arg(), logits.arg(), labels.arg()];
        let args = [&tensors[..], &[int(images), int(classes), (1.0 / divisor).into()]].concat();
        let threads = (IMAGES_OF_BLOCK * 32) as u32;
        self.launch("cross_entropy_f64", blocks(images.div_ceil(IMAGES_OF_BLOCK)), threads, 0, &args);
    }

    /// out = x in f64.
    pub fn widen_f64(&self, out: View<'_, f64>, x: View<'_, f32>) {
        check(x.len(), out.len(), "widen_f64");
        self.sweep_f64("widen_f64", &[out.arg(), x.arg()], out.len());
    }

    /// out = x + alpha·v in f64. out may be x.
    pub fn scale_add_f64(&self, out: View<'_, f64>, x: View<'_, f64>, alpha: f64, v: View<'_, f64>) {
        check(x.len(), out.len(), "scale_add_f64: x");
        check(v.len(), out.len(), "scale_add_f64: v");
        self.sweep_f64("scale_add_f64", &[out.arg(), x.arg(), alpha.into(), v.arg()], out.len());
    }

    /// out = (x − y)/divisor, computed in f64; x/divisor without y.
    pub fn narrow_difference_f64(&self, out: View<'_, f32>, x: View<'_, f64>, y: Option<View<'_, f64>>, divisor: f64) {
        check(x.len(), out.len(), "narrow_difference_f64: x");
        check(y.map_or(x.len(), View::len), x.len(), "narrow_difference_f64: y");
        self.sweep_f64("narrow_difference_f64", &[out.arg(), x.arg(), y.into(), divisor.into()], out.len());
    }

    fn sweep_f64(&self, kernel: &str, args: &[Arg], len: usize) {
        if len > 0 {
            self.launch(kernel, sweep_grid(len, 1), THREADS, 0, &[args, &[long(len)]].concat());
        }
    }
}

#[cfg(test)]
mod tests;
