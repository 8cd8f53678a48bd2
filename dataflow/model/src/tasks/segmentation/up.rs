//! A head that enlarges patches step by step (as SETR-PUP, arXiv 2012.15840): the classes of pixels follow from
//! neighbouring patches too.
//!
//! LayerNorm → Linear D→64 → log₂ P times [convolution 3×3, GroupNorm, GELU, bilinear ×2] → Linear 64→K for each pixel.
//! Two things differ from SETR-PUP because of what [`tasks`](crate::tasks) ask. Group norm takes the place of batch norm,
//! so that images do not touch each other. GELU takes the place of ReLU: with some 10⁶ units an image, a step of c moves
//! units over ReLU's kink however small it is, and a difference of ∂ℓ/∂Z over c would have a part of each of these jumps
//! that the derivative at c does not have.

use super::heads::{PixelHead, PixelPass};
use super::tokens::{TokenLinear, TokenPass};
use crate::error::ModelError;
use crate::init;
use crate::layout::{Layout, LinearWeights, NormWeights};
use crate::tasks::TaskFacts;
use crate::tasks::layers::activation::{gelu, gelu_derivative};
use crate::tasks::layers::convolution::{Convolution, enlarge, enlarge_gradient};
use crate::tasks::layers::{linear, norm};

/// Channels between the tokens and the classes.
const CHANNELS: usize = 64;
/// Groups of the group norm.
const GROUPS: usize = 8;

/// One step of enlargement.
#[derive(Clone, Copy, Debug)]
struct Stage {
    convolution: Convolution,
    norm: NormWeights,
    /// Side of the image before it is enlarged.
    side: usize,
}

/// The head, without weights.
#[derive(Clone, Debug)]
pub struct Up {
    tokens: TokenLinear,
    stages: Vec<Stage>,
    head: LinearWeights,
    num_groups: usize,
}

impl Up {
    /// Appends its weights to the layout.
    ///
    /// # Errors
    /// [`ModelError::Config`] when the side of a patch is not a power of two.
    pub fn new(layout: &mut Layout, facts: &TaskFacts) -> Result<Self, ModelError> {
        Self::with_channels(layout, facts, CHANNELS, GROUPS)
    }

    fn with_channels(
        layout: &mut Layout,
        facts: &TaskFacts,
        channels: usize,
        num_groups: usize,
    ) -> Result<Self, ModelError> {
        if !facts.patch.is_power_of_two() {
            let problem = format!("head up needs a patch size that is a power of two, got {}", facts.patch);
            return Err(ModelError::Config(problem));
        }
        let tokens = TokenLinear::named(layout, "fc", facts.dim, channels);
        let stage = |number: u32| Stage {
            convolution: Convolution {
                weight: layout.add(format!("stages.{number}.conv.weight"), &[channels, channels, 3, 3]),
                inputs: channels,
                outputs: channels,
            },
            norm: layout.norm(&format!("stages.{number}.norm"), channels),
            side: facts.grid << number,
        };
        let stages = (0..facts.patch.ilog2()).map(stage).collect();
        let head = layout.linear("head", &[facts.num_classes, channels]);
        Ok(Up { tokens, stages, head, num_groups })
    }
}

impl PixelHead for Up {
    /// Unit gain of norms, U(±1/√inputs) for all other weights.
    fn init(&self, layout: &Layout, values: &mut [f32], seed: u64) {
        self.tokens.init(layout, values, seed);
        let mut symmetric = |weight: crate::layout::Weight, inputs: usize| {
            let mut rng = init::tensor_rng(seed, &layout.entries[weight.entry].name);
            init::symmetric(&mut values[weight.range()], 1.0 / (inputs as f64).sqrt(), &mut rng);
        };
        for Convolution { weight, inputs, .. } in self.stages.iter().map(|stage| stage.convolution) {
            symmetric(weight, 9 * inputs);
        }
        symmetric(self.head.weight, self.head.inputs);
        symmetric(self.head.bias, self.head.inputs);
        for stage in &self.stages {
            values[stage.norm.gamma.range()].fill(1.0);
        }
    }

    fn pass<'a>(&'a self, c: &'a [f64], tokens: &[f32], dropout: Option<&[f32]>) -> Box<dyn PixelPass + 'a> {
        let (mut pixels, pass) = self.tokens.forward(c, tokens, dropout);
        let channels = self.tokens.outputs();
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let convolved = stage.convolution.forward(c, &pixels, stage.side);
            let normed = norm::group_norm(convolved, channels, self.num_groups);
            let mut active = norm::scale(&stage.norm, c, &normed.values);
            active.iter_mut().for_each(|x| *x = gelu(*x));
            let input = std::mem::replace(&mut pixels, enlarge(&active, stage.side, channels));
            stages.push(Passed { input, normed });
        }
        let logits = linear::forward(&self.head, c, &pixels);
        Box::new(UpPass { head: self, c, pass, stages, pixels, logits })
    }
}

/// What a stage computes for an image, for the backward pass.
struct Passed {
    /// `[side, side, channels]`.
    input: Vec<f64>,
    /// The convolution, normalised.
    normed: norm::Normed,
}

struct UpPass<'a> {
    head: &'a Up,
    c: &'a [f64],
    pass: TokenPass,
    stages: Vec<Passed>,
    /// What the last layer reads, `[side, side, channels]`.
    pixels: Vec<f64>,
    logits: Vec<f64>,
}

impl PixelPass for UpPass<'_> {
    fn logits(&mut self) -> &mut [f64] {
        &mut self.logits
    }

    fn backward(self: Box<Self>, mut dc: Option<&mut [f64]>, dz: Option<&mut [f64]>) {
        let UpPass { head: Up { tokens, stages, head, .. }, c, .. } = *self;
        let channels = tokens.outputs();
        if let Some(dc) = &mut dc {
            linear::add_weight_gradient(head, &self.pixels, &self.logits, dc);
        }
        let mut d_pixels = linear::input_gradient(head, c, &self.logits);
        for (stage, Passed { input, normed }) in stages.iter().zip(&self.stages).rev() {
            let mut d = enlarge_gradient(&d_pixels, stage.side, channels);
            let scaled = norm::scale(&stage.norm, c, &normed.values);
            d.iter_mut().zip(scaled).for_each(|(d, x)| *d *= gelu_derivative(x));
            if let Some(dc) = &mut dc {
                norm::add_scale_gradient(&stage.norm, &normed.values, &d, dc);
            }
            norm::group_norm_gradient(&stage.norm, c, normed, &mut d);
            if let Some(dc) = &mut dc {
                stage.convolution.add_weight_gradient(input, stage.side, &d, dc);
            }
            d_pixels = stage.convolution.input_gradient(c, stage.side, &d);
        }
        tokens.backward(c, &self.pass, &d_pixels, dc, dz);
    }
}

#[cfg(test)]
mod tests;
