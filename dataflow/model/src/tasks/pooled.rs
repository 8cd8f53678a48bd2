//! LayerNorm(eps 1e-6) → dropout → Linear on one token an image: the head of tasks that say something of a whole image.
//!
//! It reads `[batch, dim]` features and costs a thousandth of an encoder pass. So it has plain loops in f64, in which the
//! finite difference over c has no cancellation to speak of.

use std::ops::Range;
use std::sync::Arc;

use super::predictions::Predictions;
use super::task::{At, Tokens, Want};
use crate::engine::NORM_EPS;
use crate::error::ModelError;
use crate::init;
use crate::layout::{Layout, LinearWeights, NormWeights, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::tap::Tap;

/// The head, without weights.
#[derive(Clone, Debug)]
pub struct PooledHead {
    layout: SharedLayout,
    norm: NormWeights,
    fc: LinearWeights,
    reads: [Tap; 1],
}

/// Gradients of a sweep over images.
#[derive(Clone, Debug, Default)]
pub struct PooledGradients {
    /// ∂ℓ/∂c, flat; empty unless wanted.
    pub dc: Vec<f64>,
    /// ∂ℓ/∂Z of the only tap, `[images, dim]`; none unless wanted.
    pub dz: Vec<Vec<f64>>,
}

/// z less its mean and divided by its standard deviation σ (with [`NORM_EPS`]), and 1/σ.
pub(super) fn normalise(z: &[f32]) -> (Vec<f64>, f64) {
    let n = z.len() as f64;
    let mean = z.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let var = z.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let rstd = 1.0 / (var + f64::from(NORM_EPS)).sqrt();
    (z.iter().map(|&v| (f64::from(v) - mean) * rstd).collect(), rstd)
}

/// Writes the cotangent of z from that of the layer norm's output before its gain γ and bias, `dy`.
pub(super) fn norm_gradient(dz: &mut [f64], dy: &[f64], gamma: &[f64], normed: &[f64], rstd: f64) {
    let dim = dz.len();
    let dx_hat: Vec<f64> = dy.iter().zip(gamma).map(|(dy, gamma)| dy * gamma).collect();
    let mean = dx_hat.iter().sum::<f64>() / dim as f64;
    let mean_product = dx_hat.iter().zip(normed).map(|(a, b)| a * b).sum::<f64>() / dim as f64;
    for i in 0..dim {
        dz[i] = (dx_hat[i] - mean - normed[i] * mean_product) * rstd;
    }
}

impl PooledHead {
    /// Lays the weights out: `fc_norm.*`, then `head.*`.
    #[must_use]
    pub fn new(dim: usize, outputs: usize, tap: Tap) -> Self {
        let mut layout = Layout::new(Level::Finetune);
        let norm = layout.norm("fc_norm", dim);
        let fc = layout.linear("head", &[outputs, dim]);
        PooledHead { layout: Arc::new(layout), norm, fc, reads: [tap] }
    }

    /// The tap that it reads.
    #[must_use]
    pub const fn reads(&self) -> &[Tap] {
        &self.reads
    }

    /// Names and shapes.
    #[must_use]
    pub const fn layout(&self) -> &SharedLayout {
        &self.layout
    }

    /// Numbers that it gives for an image.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.fc.outputs
    }

    /// Places in c: gain and bias of the norm, weight and bias of the linear layer.
    #[must_use]
    pub fn places(&self) -> [Range<usize>; 4] {
        [self.norm.gamma, self.norm.beta, self.fc.weight, self.fc.bias].map(|weight| weight.range())
    }

    /// Unit norm gain, U(±1/√dim) for the linear layer.
    #[must_use]
    pub fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        values[self.norm.gamma.range()].fill(1.0);
        let bound = 1.0 / (self.fc.inputs as f64).sqrt();
        for weight in [self.fc.weight, self.fc.bias] {
            let mut rng = init::tensor_rng(seed, &self.layout.entries[weight.entry].name);
            init::symmetric(&mut values[weight.range()], bound, &mut rng);
        }
        Buffer::from_vec(values)
    }

    /// The features of images in the head's only tap.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when there are other taps, or they are of another width.
    fn features<'a>(&self, z: &[Tokens<'a>]) -> Result<&'a [f32], ModelError> {
        match z {
            [z] if z.per_image == 1 && z.dim == self.norm.dim => Ok(z.values),
            [z] => {
                let problem = format!(
                    "the head reads one token of {} values an image, got {} of {}",
                    self.norm.dim, z.per_image, z.dim
                );
                Err(ModelError::Targets { problem })
            }
            _ => Err(ModelError::Targets { problem: format!("the head reads one tap, got {}", z.len()) }),
        }
    }

    fn linear(&self, c: &[f64], normed: &[f64], dropout: Option<&[f32]>) -> Vec<f64> {
        let dim = self.norm.dim;
        let gamma = &c[self.norm.gamma.range()];
        let beta = &c[self.norm.beta.range()];
        let y: Vec<f64> =
            (0..dim).map(|i| (normed[i] * gamma[i] + beta[i]) * dropout.map_or(1.0, |d| f64::from(d[i]))).collect();
        (0..self.fc.outputs)
            .map(|output| {
                let row = &c[self.fc.weight.offset + output * dim..][..dim];
                c[self.fc.bias.offset + output] + row.iter().zip(&y).map(|(w, y)| w * y).sum::<f64>()
            })
            .collect()
    }

    /// What it gives for images, `[images, outputs]`, without dropout.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when taps are not those of the head.
    pub fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Vec<f64>, ModelError> {
        let rows = self.features(z)?.chunks_exact(self.norm.dim);
        Ok(rows.flat_map(|row| self.linear(c, &normalise(row).0, None)).collect())
    }

    /// What it gives for images as [`Predictions::Scores`].
    ///
    /// # Errors
    /// As [`PooledHead::predict`].
    pub fn scores(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        let values = self.predict(c, z)?.iter().map(|logit| *logit as f32).collect();
        Ok(Predictions::Scores { num: self.outputs(), values })
    }

    /// Calls `loss(image, outputs, cotangent)` for the first `num_images` images in order, which must overwrite the
    /// cotangent `[outputs]` with its gradient for the outputs unless nothing is wanted. The gradients are the sums over
    /// these images.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when taps are not those of the head, or are of fewer images.
    pub fn sweep(
        &self,
        at: &At<'_>,
        want: Want,
        num_images: usize,
        mut loss: impl FnMut(usize, &[f64], &mut [f64]),
    ) -> Result<PooledGradients, ModelError> {
        let (c, dim) = (at.c, self.norm.dim);
        let values = self.features(at.z)?;
        if values.len() != num_images * dim {
            let problem = format!("targets of {num_images} images, tokens of {}", values.len() / dim);
            return Err(ModelError::Targets { problem });
        }
        let dropout = at.noise.map(|noise| noise.factors(num_images, dim));
        let gamma = &c[self.norm.gamma.range()];
        let weight = &c[self.fc.weight.range()];
        let mut dc = vec![0f64; if want.dc { self.layout.len } else { 0 }];
        let mut dz = vec![0f64; if want.dz { values.len() } else { 0 }];
        let mut cotangent = vec![0f64; self.fc.outputs];
        for (b, z) in values.chunks_exact(dim).enumerate() {
            let (normed, rstd) = normalise(z);
            let factors = dropout.as_ref().map(|d| &d[b * dim..(b + 1) * dim]);
            let factor = |i: usize| factors.map_or(1.0, |d| f64::from(d[i]));
            let outputs = self.linear(c, &normed, factors);
            loss(b, &outputs, &mut cotangent);
            if want == Want::LOSS {
                continue;
            }
            // The cotangent of the layer norm's output (after gain and bias), with dropout's factor applied.
            let mut dy = vec![0f64; dim];
            for (output, &d) in cotangent.iter().enumerate() {
                let row = &weight[output * dim..(output + 1) * dim];
                for i in 0..dim {
                    dy[i] += d * row[i] * factor(i);
                }
                if want.dc {
                    dc[self.fc.bias.offset + output] += d;
                    let grad = &mut dc[self.fc.weight.offset + output * dim..][..dim];
                    for i in 0..dim {
                        let y = normed[i] * gamma[i] + c[self.norm.beta.offset + i];
                        grad[i] += d * y * factor(i);
                    }
                }
            }
            if want.dc {
                for i in 0..dim {
                    dc[self.norm.gamma.offset + i] += dy[i] * normed[i];
                    dc[self.norm.beta.offset + i] += dy[i];
                }
            }
            if want.dz {
                norm_gradient(&mut dz[b * dim..(b + 1) * dim], &dy, gamma, &normed, rstd);
            }
        }
        Ok(PooledGradients { dc, dz: if want.dz { vec![dz] } else { Vec::new() } })
    }
}
