//! Derivatives of the operations along a direction, without a tape.

use std::sync::Arc;

use mlomae_kernels::{self as kernels, Mat};

use super::{CpuTensor, DfdxCpu};
use crate::engine::ops::{AttentionShape, NORM_EPS};
use crate::engine::tangent::Derivatives;
use crate::layout::{LinearWeights, NormWeights};
use crate::parallel::arena::Buffer;

impl DfdxCpu {
    fn plain(values: Buffer, rows: usize, columns: usize) -> CpuTensor {
        CpuTensor { values: Arc::new(values), rows, columns, slot: None }
    }
}

/// The matrix within rows of `ld` values whose first value is that at `start`.
fn columns(of: &[f32], start: usize, ld: usize, trans: bool) -> Mat<'_> {
    Mat { data: &of[start..], ld, trans }
}

impl Derivatives for DfdxCpu {
    fn linear_tangent(
        &mut self,
        moving: Option<&Self>,
        x: &CpuTensor,
        dx: &CpuTensor,
        w: &LinearWeights,
        residual: Option<&CpuTensor>,
    ) -> CpuTensor {
        let (rows, k, n) = (x.rows, w.inputs, w.outputs);
        let mut dy = match residual {
            Some(residual) => self.arena.copy_of(&residual.values),
            None => self.arena.take(rows * n),
        };
        let factors = self.factors;
        let product = |dy: &mut [f32], x: &[f32], weight: &[f32], accumulate: bool| {
            let (a, b) = (Mat { data: x, ld: k, trans: false }, Mat { data: weight, ld: k, trans: true });
            kernels::matmul_in(factors, dy, n, a, b, rows, n, k, accumulate);
        };
        product(&mut dy, &dx.values, &self.params_of(w.weight.level)[w.weight.range()], residual.is_some());
        if let Some(moving) = moving {
            let v = moving.params_of(w.weight.level);
            product(&mut dy, &x.values, &v[w.weight.range()], true);
            kernels::add_bias(&mut dy, &v[w.bias.range()]);
        }
        Self::plain(dy, rows, n)
    }

    fn gelu_tangent(&mut self, z: &CpuTensor, dz: &CpuTensor) -> (CpuTensor, CpuTensor) {
        let (mut pre, mut y) = (self.arena.copy_of(&z.values), self.arena.take(z.values.len()));
        kernels::bias_gelu(&mut pre, &mut y, &vec![0.0; z.columns]);
        let mut dy = self.arena.copy_of(&dz.values);
        kernels::gelu_grad(&mut dy, &pre);
        (Self::plain(y, z.rows, z.columns), Self::plain(dy, z.rows, z.columns))
    }

    fn layer_norm_tangent(
        &mut self,
        moving: Option<&Self>,
        x: &CpuTensor,
        dx: &CpuTensor,
        w: &NormWeights,
    ) -> CpuTensor {
        let n = w.dim;
        let params = self.params_of(w.gamma.level);
        let gamma = &params[w.gamma.range()];
        let v = moving.map(|moving| moving.params_of(w.gamma.level));
        let mut dy = self.arena.take(x.values.len());
        let inverse = 1.0 / n as f32;
        let mut xhat = vec![0.0; n];
        for ((dy, x), dx) in dy.chunks_exact_mut(n).zip(x.values.chunks_exact(n)).zip(dx.values.chunks_exact(n)) {
            let mean = x.iter().sum::<f32>() * inverse;
            let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() * inverse;
            let rstd = 1.0 / (var + NORM_EPS).sqrt();
            xhat.iter_mut().zip(x).for_each(|(xhat, x)| *xhat = (x - mean) * rstd);
            let dmean = dx.iter().sum::<f32>() * inverse;
            let dxhat = kernels::dot(dx, &xhat) as f32 * inverse;
            for i in 0..n {
                dy[i] = gamma[i] * rstd * (dx[i] - dmean - xhat[i] * dxhat);
            }
            if let Some(v) = v {
                let (dgamma, dbeta) = (&v[w.gamma.range()], &v[w.beta.range()]);
                for i in 0..n {
                    dy[i] += dgamma[i] * xhat[i] + dbeta[i];
                }
            }
        }
        Self::plain(dy, x.rows, x.columns)
    }

    /// With S = q·kᵀ/√d and P = softmax(S): dS = (dq·kᵀ + q·dkᵀ)/√d, dP = P∘(dS − Σ P∘dS), d out = dP·v + P·dv.
    fn attention_tangent(
        &mut self,
        qkv: &CpuTensor,
        dqkv: &CpuTensor,
        shape: &AttentionShape,
    ) -> (CpuTensor, CpuTensor) {
        let AttentionShape { batch, tokens, heads, head_dim, queries } = *shape;
        let dim = heads * head_dim;
        let rows = batch * queries;
        let (mut y, mut dy) = (self.arena.take(rows * dim), self.arena.take(rows * dim));
        let mut probs = self.arena.take(batch * heads * queries * tokens);
        kernels::attention_in(self.factors, &mut y, Some(&mut probs), &qkv.values, shape);
        let mut ds = self.arena.take(queries * tokens);
        let mut out = self.arena.take(queries * head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (qkv, dqkv) = (&qkv.values[..], &dqkv.values[..]);
        for (index, p) in probs.chunks_exact(queries * tokens).enumerate() {
            let (image, head) = (index / heads, index % heads);
            let [q, k, v] = [0, 1, 2].map(|which| image * tokens * 3 * dim + which * dim + head * head_dim);
            for (q_of, k_of, accumulate) in [(dqkv, qkv, false), (qkv, dqkv, true)] {
                let (a, b) = (columns(q_of, q, 3 * dim, false), columns(k_of, k, 3 * dim, true));
                kernels::matmul_in(self.factors, &mut ds, tokens, a, b, queries, tokens, head_dim, accumulate);
            }
            for (ds, p) in ds.chunks_exact_mut(tokens).zip(p.chunks_exact(tokens)) {
                let mean = kernels::dot(p, ds) as f32 * scale;
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds * scale - mean));
            }
            for (weights, v_of, accumulate) in [(&ds[..], qkv, false), (p, dqkv, true)] {
                let a = Mat { data: weights, ld: tokens, trans: false };
                kernels::matmul_in(
                    self.factors,
                    &mut out,
                    head_dim,
                    a,
                    columns(v_of, v, 3 * dim, false),
                    queries,
                    head_dim,
                    tokens,
                    accumulate,
                );
            }
            for (query, out) in out.chunks_exact(head_dim).enumerate() {
                dy[(image * queries + query) * dim + head * head_dim..][..head_dim].copy_from_slice(out);
            }
        }
        (Self::plain(y, rows, dim), Self::plain(dy, rows, dim))
    }

    fn patch_loss_tangent(&mut self, pred: &CpuTensor, dpred: &CpuTensor, target: &CpuTensor) -> CpuTensor {
        let mut gradient = self.arena.take(pred.values.len());
        let ones = vec![1.0; pred.rows];
        kernels::patch_loss_grad(&mut gradient, &pred.values, &target.values, &ones, pred.columns);
        let mut loss = self.arena.take(pred.rows);
        let rows = gradient.chunks_exact(pred.columns).zip(dpred.values.chunks_exact(pred.columns));
        for (loss, (gradient, dpred)) in loss.iter_mut().zip(rows) {
            *loss = kernels::dot(gradient, dpred) as f32;
        }
        Self::plain(loss, pred.rows, 1)
    }
}
