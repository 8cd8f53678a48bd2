//! LayerNorm → dropout → Linear on every patch token, in f64.

use crate::init;
use crate::layout::{Layout, LinearWeights, NormWeights};
use crate::tasks::pooled::{norm_gradient, normalise};
use crate::tasks::product::{Factor, add_product};

/// The layers, without weights.
#[derive(Clone, Copy, Debug)]
pub struct TokenLinear {
    norm: NormWeights,
    fc: LinearWeights,
}

/// What the backward pass over an image needs.
#[derive(Clone, Debug)]
pub struct TokenPass {
    /// The tokens less their mean, over their standard deviation, `[L, dim]`.
    normed: Vec<f64>,
    /// 1/σ `[L]`.
    rstd: Vec<f64>,
    /// What the linear layer reads, `[L, dim]`.
    features: Vec<f64>,
    /// Factors of dropout `[L, dim]`.
    dropout: Option<Vec<f32>>,
}

impl TokenLinear {
    /// Appends `norm.*`, then `head.*` with `outputs` outputs.
    #[must_use]
    pub fn new(layout: &mut Layout, dim: usize, outputs: usize) -> Self {
        Self::named(layout, "head", dim, outputs)
    }

    /// Appends `norm.*`, then `NAME.*` with `outputs` outputs, for heads that go on from there.
    #[must_use]
    pub fn named(layout: &mut Layout, name: &str, dim: usize, outputs: usize) -> Self {
        TokenLinear { norm: layout.norm("norm", dim), fc: layout.linear(name, &[outputs, dim]) }
    }

    /// The outputs of a token.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.fc.outputs
    }

    /// Unit norm gain, U(±1/√dim) for the linear layer.
    pub fn init(&self, layout: &Layout, values: &mut [f32], seed: u64) {
        values[self.norm.gamma.range()].fill(1.0);
        for weight in [self.fc.weight, self.fc.bias] {
            let mut rng = init::tensor_rng(seed, &layout.entries[weight.entry].name);
            init::symmetric(&mut values[weight.range()], 1.0 / (self.norm.dim as f64).sqrt(), &mut rng);
        }
    }

    /// The outputs `[L, outputs]` of tokens `[L, dim]`.
    #[must_use]
    pub fn forward(&self, c: &[f64], tokens: &[f32], dropout: Option<&[f32]>) -> (Vec<f64>, TokenPass) {
        let (dim, outputs) = (self.norm.dim, self.fc.outputs);
        let num_tokens = tokens.len() / dim;
        let (gamma, beta) = (&c[self.norm.gamma.range()], &c[self.norm.beta.range()]);
        let (mut normed, mut rstd) = (Vec::with_capacity(tokens.len()), Vec::with_capacity(num_tokens));
        for token in tokens.chunks_exact(dim) {
            let (values, scale) = normalise(token);
            normed.extend(values);
            rstd.push(scale);
        }
        let mut features: Vec<f64> =
            normed.iter().enumerate().map(|(i, x)| x * gamma[i % dim] + beta[i % dim]).collect();
        if let Some(factors) = dropout {
            features.iter_mut().zip(factors).for_each(|(x, factor)| *x *= f64::from(*factor));
        }
        let mut out = Vec::with_capacity(num_tokens * outputs);
        (0..num_tokens).for_each(|_| out.extend_from_slice(&c[self.fc.bias.range()]));
        let weight = Factor::rows(&c[self.fc.weight.range()], dim);
        add_product(&mut out, Factor::rows(&features, dim), weight.transposed());
        (out, TokenPass { normed, rstd, features, dropout: dropout.map(<[f32]>::to_vec) })
    }

    /// From the cotangent `[L, outputs]` of the outputs: adds that of c to `dc`, and overwrites `dz` `[L, dim]` with that
    /// of the tokens.
    pub fn backward(&self, c: &[f64], pass: &TokenPass, dout: &[f64], dc: Option<&mut [f64]>, dz: Option<&mut [f64]>) {
        let (dim, outputs) = (self.norm.dim, self.fc.outputs);
        let dout_rows = Factor::rows(dout, outputs);
        let mut dy = vec![0.0; pass.features.len()];
        add_product(&mut dy, dout_rows, Factor::rows(&c[self.fc.weight.range()], dim));
        if let Some(factors) = &pass.dropout {
            dy.iter_mut().zip(factors).for_each(|(d, factor)| *d *= f64::from(*factor));
        }
        if let Some(dc) = dc {
            let features = Factor::rows(&pass.features, dim);
            add_product(&mut dc[self.fc.weight.range()], dout_rows.transposed(), features);
            let bias = &mut dc[self.fc.bias.range()];
            for row in dout.chunks_exact(outputs) {
                bias.iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
            }
            for (dy, normed) in dy.chunks_exact(dim).zip(pass.normed.chunks_exact(dim)) {
                for i in 0..dim {
                    dc[self.norm.gamma.offset + i] += dy[i] * normed[i];
                    dc[self.norm.beta.offset + i] += dy[i];
                }
            }
        }
        if let Some(dz) = dz {
            let gamma = &c[self.norm.gamma.range()];
            let rows = dz.chunks_exact_mut(dim).zip(dy.chunks_exact(dim)).zip(pass.normed.chunks_exact(dim));
            for (((dz, dy), normed), rstd) in rows.zip(&pass.rstd) {
                norm_gradient(dz, dy, gamma, normed, *rstd);
            }
        }
    }
}
