//! Classification: LayerNorm(eps 1e-6) → dropout → Linear on the CLS token, and its cross entropy.
//!
//! The head reads `[batch, dim]` features and costs a thousandth of an encoder pass. So it has plain loops in f64, in
//! which the finite difference over c has no cancellation to speak of.

use std::sync::Arc;

use super::targets::Targets;
use super::task::{At, Figure, LinearHead, Share, Task, TaskFacts, TaskKind, Tokens, Total, Want};
use crate::choice::Named;
use crate::engine::NORM_EPS;
use crate::error::ModelError;
use crate::init;
use crate::layout::{Layout, LinearWeights, NormWeights, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::tap::Tap;

/// The entry of [`super::TASKS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "class"
    }
    fn summary(&self) -> &'static str {
        "Classification: a linear layer on the normalised CLS token, cross entropy"
    }
}

impl TaskKind for Kind {
    fn has_closed_form(&self) -> bool {
        true
    }
    fn build(&self, facts: &TaskFacts) -> Arc<dyn Task> {
        Arc::new(Classification::new(facts.dim, facts.num_classes))
    }
}

/// Classification of images.
#[derive(Clone, Debug)]
pub struct Classification {
    layout: SharedLayout,
    norm: NormWeights,
    fc: LinearWeights,
}

/// The only number logged beside the loss.
const FIGURES: [Figure; 1] = [Figure { name: "accuracy", unit: "share" }];

impl Classification {
    /// Lays the weights out.
    #[must_use]
    pub fn new(dim: usize, num_classes: usize) -> Self {
        let mut layout = Layout::new(Level::Finetune);
        let norm = layout.norm("fc_norm", dim);
        let fc = layout.linear("head", &[num_classes, dim]);
        Classification { layout: Arc::new(layout), norm, fc }
    }

    /// z less its mean and divided by its standard deviation σ (with [`NORM_EPS`]), and 1/σ.
    fn normalise(&self, z: &[f32]) -> (Vec<f64>, f64) {
        let n = z.len() as f64;
        let mean = z.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let var = z.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (var + f64::from(NORM_EPS)).sqrt();
        (z.iter().map(|&v| (f64::from(v) - mean) * rstd).collect(), rstd)
    }

    fn logits(&self, c: &[f64], normed: &[f64], dropout: Option<&[f32]>) -> Vec<f64> {
        let dim = self.norm.dim;
        let gamma = &c[self.norm.gamma.range()];
        let beta = &c[self.norm.beta.range()];
        let y: Vec<f64> =
            (0..dim).map(|i| (normed[i] * gamma[i] + beta[i]) * dropout.map_or(1.0, |d| f64::from(d[i]))).collect();
        (0..self.fc.outputs)
            .map(|class| {
                let row = &c[self.fc.weight.offset + class * dim..][..dim];
                c[self.fc.bias.offset + class] + row.iter().zip(&y).map(|(w, y)| w * y).sum::<f64>()
            })
            .collect()
    }

    fn head(&self) -> LinearHead {
        LinearHead {
            gamma: self.norm.gamma.range(),
            beta: self.norm.beta.range(),
            weight: self.fc.weight.range(),
            bias: self.fc.bias.range(),
        }
    }
}

impl Task for Classification {
    fn reads(&self) -> &[Tap] {
        &[Tap::Cls]
    }

    fn layout(&self) -> &SharedLayout {
        &self.layout
    }

    /// Unit norm gain, U(±1/√dim) for the linear layer.
    fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        values[self.norm.gamma.range()].fill(1.0);
        let bound = 1.0 / (self.fc.inputs as f64).sqrt();
        for weight in [self.fc.weight, self.fc.bias] {
            let mut rng = init::tensor_rng(seed, &self.layout.entries[weight.entry].name);
            init::symmetric(&mut values[weight.range()], bound, &mut rng);
        }
        Buffer::from_vec(values)
    }

    fn loss_unit(&self) -> &'static str {
        "nat"
    }

    fn figures(&self) -> &[Figure] {
        &FIGURES
    }

    fn total(&self, y: &Targets) -> Total {
        [y.len() as f64, 1.0]
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let [z] = at.z else {
            return Err(ModelError::Targets { problem: format!("the head reads one tap, got {}", at.z.len()) });
        };
        let (c, dim, num_images) = (at.c, self.norm.dim, at.total[0]);
        let head = self.head();
        let classes = head.classes(at.y)?;
        let dropout = at.noise.map(|noise| noise.factors(classes.len() * dim));
        let gamma = &c[self.norm.gamma.range()];
        let weight = &c[self.fc.weight.range()];
        let mut dc = vec![0f64; if want.dc { self.layout.len } else { 0 }];
        let mut dz = vec![0f64; if want.dz { classes.len() * dim } else { 0 }];
        let (mut loss, mut num_right) = (0.0, 0usize);
        for (b, (z, &label)) in z.values.chunks_exact(dim).zip(classes).enumerate() {
            let (normed, rstd) = self.normalise(z);
            let factors = dropout.as_ref().map(|d| &d[b * dim..(b + 1) * dim]);
            let factor = |i: usize| factors.map_or(1.0, |d| f64::from(d[i]));
            let logits = self.logits(c, &normed, factors);
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            loss += log_sum - logits[label as usize];
            let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
            num_right += usize::from(best == label as usize);
            if want == Want::LOSS {
                continue;
            }
            // The cotangent of the layer norm's output (after gain and bias), with dropout's factor applied.
            let mut dy = vec![0f64; dim];
            for (class, &l) in logits.iter().enumerate() {
                let d = ((l - log_sum).exp() - f64::from(u8::from(class == label as usize))) / num_images;
                let row = &weight[class * dim..(class + 1) * dim];
                for i in 0..dim {
                    dy[i] += d * row[i] * factor(i);
                }
                if want.dc {
                    dc[self.fc.bias.offset + class] += d;
                    let grad = &mut dc[self.fc.weight.offset + class * dim..][..dim];
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
                let dx_hat: Vec<f64> = dy.iter().zip(gamma).map(|(dy, gamma)| dy * gamma).collect();
                let mean = dx_hat.iter().sum::<f64>() / dim as f64;
                let mean_product = dx_hat.iter().zip(&normed).map(|(a, b)| a * b).sum::<f64>() / dim as f64;
                for i in 0..dim {
                    dz[b * dim + i] = (dx_hat[i] - mean - normed[i] * mean_product) * rstd;
                }
            }
        }
        Ok(Share {
            loss: loss / num_images,
            figures: vec![num_right as f64 / num_images],
            dc,
            dz: if want.dz { vec![dz] } else { Vec::new() },
        })
    }

    /// One column a class: 1 for the image's own, else 0.
    fn regression(&self, y: &Targets) -> Result<Option<(usize, Vec<f64>)>, ModelError> {
        let num_classes = self.fc.outputs;
        let rows = self.head().classes(y)?.iter();
        let columns = |class: &i32| {
            let class = *class as usize;
            (0..num_classes).map(move |column| f64::from(u8::from(column == class)))
        };
        Ok(Some((num_classes, rows.flat_map(columns).collect())))
    }

    fn linear_head(&self) -> Option<LinearHead> {
        Some(self.head())
    }

    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Vec<f32> {
        let rows = z.iter().flat_map(|z| z.values.chunks_exact(self.norm.dim));
        rows.flat_map(|row| self.logits(c, &self.normalise(row).0, None)).map(|logit| logit as f32).collect()
    }
}
