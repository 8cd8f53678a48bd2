//! The classification head: LayerNorm(eps 1e-6) → dropout → Linear on the CLS token, and its cross entropy.
//!
//! The head works on `[batch, dim]` features, a thousandth of an encoder pass. It is written with plain loops in f64, so that the
//! finite difference over c loses nothing.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use crate::engine::NORM_EPS;
use crate::layout::{Layout, LinearWeights, NormWeights, ParamSet, SharedLayout};
use crate::nets::init;
use crate::parallel::arena::Buffer;

/// The downstream head c.
#[derive(Clone, Debug)]
pub struct Head {
    /// Names and places of the weights.
    pub layout: SharedLayout,
    norm: NormWeights,
    fc: LinearWeights,
}

/// A factor per feature, `[batch, dim]`: 0 for dropped features, 1/(1−rate) for the others.
pub type DropoutFactors = Vec<f32>;

/// What one evaluation of the task loss gives.
#[derive(Debug)]
pub struct TaskGradient {
    /// Mean cross entropy in nats.
    pub loss: f64,
    /// Share of right answers.
    pub accuracy: f64,
    /// ∂L/∂c, flat.
    pub head: Vec<f64>,
    /// ∂L/∂z `[batch, dim]`.
    pub features: Vec<f64>,
}

impl Head {
    /// Lays the weights out.
    pub fn new(dim: usize, num_classes: usize) -> Self {
        let mut layout = Layout::new(ParamSet::Head);
        let norm = layout.norm("fc_norm", dim);
        let fc = layout.linear("head", &[num_classes, dim]);
        Head { layout: Arc::new(layout), norm, fc }
    }

    /// Initial values: unit norm gain, U(±1/√dim) for the linear layer.
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

    /// Draws dropout factors for a batch.
    pub fn dropout(&self, batch: usize, rate: f64, rng: &mut ChaCha8Rng) -> DropoutFactors {
        let keep = (1.0 / (1.0 - rate)) as f32;
        (0..batch * self.norm.dim).map(|_| if init::uniform(rng) < rate { 0.0 } else { keep }).collect()
    }

    /// Logits `[batch, classes]` without dropout.
    pub fn logits(&self, params: &[f64], features: &[f32]) -> Vec<f32> {
        let mut logits = Vec::with_capacity(features.len() / self.norm.dim * self.fc.outputs);
        for z in features.chunks_exact(self.norm.dim) {
            let (normed, _) = self.normalise(z);
            logits.extend(self.row_logits(params, &normed, None).iter().map(|&l| l as f32));
        }
        logits
    }

    /// Loss and gradients at `params` for features `[batch, dim]` and labels `[batch]`.
    pub fn gradient(
        &self,
        params: &[f64],
        features: &[f32],
        labels: &[i32],
        dropout: Option<&DropoutFactors>,
    ) -> TaskGradient {
        self.share(params, features, labels, dropout, labels.len())
    }

    /// As [`Head::gradient`], for a part of a batch of `batch` images: its share of the whole batch's loss, accuracy and gradients.
    pub fn share(
        &self,
        params: &[f64],
        features: &[f32],
        labels: &[i32],
        dropout: Option<&DropoutFactors>,
        batch: usize,
    ) -> TaskGradient {
        let dim = self.norm.dim;
        let gamma = &params[self.norm.gamma.range()];
        let weight = &params[self.fc.weight.range()];
        let mut head = vec![0f64; self.layout.len];
        let mut out = vec![0f64; labels.len() * dim];
        let (mut loss, mut num_right) = (0.0, 0usize);
        for (b, (z, &label)) in features.chunks_exact(dim).zip(labels).enumerate() {
            let (normed, rstd) = self.normalise(z);
            let factor = |i: usize| dropout.map_or(1.0, |d| f64::from(d[b * dim + i]));
            let logits = self.row_logits(params, &normed, dropout.map(|d| &d[b * dim..(b + 1) * dim]));
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            loss += log_sum - logits[label as usize];
            let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
            num_right += usize::from(best == label as usize);
            // Cotangent of the layer norm's affine output, before it goes back through gain, bias and dropout.
            let mut dy = vec![0f64; dim];
            for (class, &l) in logits.iter().enumerate() {
                let d = ((l - log_sum).exp() - f64::from(u8::from(class == label as usize))) / batch as f64;
                head[self.fc.bias.offset + class] += d;
                let row = &weight[class * dim..(class + 1) * dim];
                let grad = &mut head[self.fc.weight.offset + class * dim..][..dim];
                for i in 0..dim {
                    let y = normed[i] * gamma[i] + params[self.norm.beta.offset + i];
                    grad[i] += d * y * factor(i);
                    dy[i] += d * row[i] * factor(i);
                }
            }
            let mut dx_hat = vec![0f64; dim];
            for i in 0..dim {
                head[self.norm.gamma.offset + i] += dy[i] * normed[i];
                head[self.norm.beta.offset + i] += dy[i];
                dx_hat[i] = dy[i] * gamma[i];
            }
            let mean = dx_hat.iter().sum::<f64>() / dim as f64;
            let mean_product = dx_hat.iter().zip(&normed).map(|(a, b)| a * b).sum::<f64>() / dim as f64;
            for i in 0..dim {
                out[b * dim + i] = (dx_hat[i] - mean - normed[i] * mean_product) * rstd;
            }
        }
        TaskGradient { loss: loss / batch as f64, accuracy: num_right as f64 / batch as f64, head, features: out }
    }

    fn normalise(&self, z: &[f32]) -> (Vec<f64>, f64) {
        let n = z.len() as f64;
        let mean = z.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let var = z.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (var + f64::from(NORM_EPS)).sqrt();
        (z.iter().map(|&v| (f64::from(v) - mean) * rstd).collect(), rstd)
    }

    fn row_logits(&self, params: &[f64], normed: &[f64], dropout: Option<&[f32]>) -> Vec<f64> {
        let dim = self.norm.dim;
        let gamma = &params[self.norm.gamma.range()];
        let beta = &params[self.norm.beta.range()];
        let y: Vec<f64> =
            (0..dim).map(|i| (normed[i] * gamma[i] + beta[i]) * dropout.map_or(1.0, |d| f64::from(d[i]))).collect();
        (0..self.fc.outputs)
            .map(|class| {
                let row = &params[self.fc.weight.offset + class * dim..][..dim];
                params[self.fc.bias.offset + class] + row.iter().zip(&y).map(|(w, y)| w * y).sum::<f64>()
            })
            .collect()
    }
}
