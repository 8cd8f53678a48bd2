//! Segmentation by a head that enlarges patches step by step (as SETR-PUP, arXiv 2012.15840): the classes of pixels
//! follow from neighbouring patches too.
//!
//! LayerNorm → Linear D→64 → log₂ P times [convolution 3×3, GroupNorm, GELU, bilinear ×2] → Linear 64→K for each pixel.
//! Two things differ from SETR-PUP because of what [`tasks`](crate::tasks) ask. Group norm takes the place of batch norm,
//! so that images do not touch each other. GELU takes the place of ReLU: with some 10⁶ units an image, a step of c moves
//! units over ReLU's kink however small it is, and a difference of ∂ℓ/∂Z over c would have a part of each of these jumps
//! that the derivative at c does not have.

use std::sync::Arc;

use crate::error::ModelError;
use crate::init;
use crate::layout::{Layout, LinearWeights, NormWeights, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::tap::Tap;
use crate::tasks::layers::activation::{gelu, gelu_derivative};
use crate::tasks::layers::convolution::{Convolution, enlarge, enlarge_gradient};
use crate::tasks::layers::{linear, norm};
use crate::tasks::task::{At, Figure, Share, Task, Tokens, Total, Want, wrong_kind};
use crate::tasks::{Predictions, Targets, UNKNOWN_CLASS};

/// Channels between the tokens and the classes.
const CHANNELS: usize = 64;
/// Groups of the group norm.
const GROUPS: usize = 8;
/// Pixels whose logits are in memory at a time.
const BLOCK: usize = 1024;

/// What the head is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpShape {
    /// Width of the encoder.
    pub dim: usize,
    /// Patches along one side.
    pub grid: usize,
    /// Side of a patch in pixels, a power of two.
    pub patch: usize,
    /// Classes.
    pub num_classes: usize,
}

/// One step of enlargement.
#[derive(Clone, Copy, Debug)]
struct Stage {
    convolution: Convolution,
    norm: NormWeights,
    /// Side of the image before it is enlarged.
    side: usize,
}

/// Segmentation with the head `up`, and the mean cross entropy over pixels that have a class.
#[derive(Clone, Debug)]
pub struct UpSegmentation {
    layout: SharedLayout,
    norm: NormWeights,
    reduce: LinearWeights,
    stages: Vec<Stage>,
    head: LinearWeights,
    shape: UpShape,
    num_groups: usize,
}

/// The only number logged beside the loss.
static FIGURES: [Figure; 1] = [Figure::new("pixel_accuracy", "share")];

/// What a stage computes for an image, for the backward pass.
struct Passed {
    /// `[side, side, channels]`.
    input: Vec<f64>,
    /// The convolution, normalised.
    normed: norm::Normed,
}

/// What the head computes for an image up to the last layer.
struct Forward {
    normed: norm::Normed,
    /// The norm's output `[patches, dim]`.
    tokens: Vec<f64>,
    stages: Vec<Passed>,
    /// The last layer's input `[pixels, channels]`.
    pixels: Vec<f64>,
}

/// Sums over the pixels of an image.
#[derive(Default)]
struct Judged {
    loss: f64,
    num_right: usize,
    /// The gradient of the last layer's input `[pixels, channels]`, if it is wanted.
    d_pixels: Vec<f64>,
}

impl UpSegmentation {
    /// Lays the weights out.
    ///
    /// # Errors
    /// [`ModelError::Config`] when the side of a patch is not a power of two.
    pub fn new(shape: UpShape) -> Result<Self, ModelError> {
        Self::with_channels(shape, CHANNELS, GROUPS)
    }

    fn with_channels(shape: UpShape, channels: usize, num_groups: usize) -> Result<Self, ModelError> {
        if !shape.patch.is_power_of_two() {
            let problem = format!("the head \"up\" needs a patch size that is a power of two, got {}", shape.patch);
            return Err(ModelError::Config(problem));
        }
        let mut layout = Layout::new(Level::Finetune);
        let norm = layout.norm("fc_norm", shape.dim);
        let reduce = layout.linear("fc", &[channels, shape.dim]);
        let stage = |number: u32| Stage {
            convolution: Convolution {
                weight: layout.add(format!("stages.{number}.conv.weight"), &[channels, channels, 3, 3]),
                inputs: channels,
                outputs: channels,
            },
            norm: layout.norm(&format!("stages.{number}.norm"), channels),
            side: shape.grid << number,
        };
        let stages = (0..shape.patch.ilog2()).map(stage).collect();
        let head = layout.linear("head", &[shape.num_classes, channels]);
        Ok(UpSegmentation { layout: Arc::new(layout), norm, reduce, stages, head, shape, num_groups })
    }

    /// Side of the images in pixels.
    const fn side(&self) -> usize {
        self.shape.grid * self.shape.patch
    }

    fn channels(&self) -> usize {
        self.reduce.outputs
    }

    /// The patch tokens of each image.
    fn images<'a>(&self, z: &[Tokens<'a>]) -> Result<impl Iterator<Item = &'a [f32]> + use<'a>, ModelError> {
        let UpShape { dim, grid, .. } = self.shape;
        match z {
            [z] if z.dim == dim && z.per_image == grid * grid => Ok(z.values.chunks_exact(z.per_image * dim)),
            [z] => Err(ModelError::Targets {
                problem: format!(
                    "the head reads {} tokens of width {dim} for an image, got {} of width {}",
                    grid * grid,
                    z.per_image,
                    z.dim
                ),
            }),
            _ => Err(ModelError::Targets { problem: format!("the head reads one tap, got {}", z.len()) }),
        }
    }

    /// The class of each pixel, each of which the head must know.
    fn classes<'a>(&self, y: &'a Targets) -> Result<&'a [u16], ModelError> {
        let Targets::Maps { side, classes } = y else { return Err(wrong_kind("class maps", y)) };
        let refused = |problem: String| Err(ModelError::Targets { problem });
        if *side != self.side() {
            return refused(format!("class maps must have a side of {} pixels, got {side}", self.side()));
        }
        let num_classes = self.shape.num_classes;
        match classes.iter().find(|class| **class != UNKNOWN_CLASS && usize::from(**class) >= num_classes) {
            Some(class) => refused(format!("a class must be in 0..{num_classes}, got {class}")),
            None => Ok(classes),
        }
    }

    fn forward(&self, c: &[f64], z: &[f32]) -> Forward {
        let normed = norm::normalise(z, self.shape.dim);
        let tokens = norm::scale(&self.norm, c, &normed.values);
        let mut pixels = linear::forward(&self.reduce, c, &tokens);
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let convolved = stage.convolution.forward(c, &pixels, stage.side);
            let normed = norm::group_norm(convolved, self.channels(), self.num_groups);
            let mut active = norm::scale(&stage.norm, c, &normed.values);
            active.iter_mut().for_each(|x| *x = gelu(*x));
            let input = std::mem::replace(&mut pixels, enlarge(&active, stage.side, self.channels()));
            stages.push(Passed { input, normed });
        }
        Forward { normed, tokens, stages, pixels }
    }

    /// Calls `f` with the logits of pixels, block by block, and with the first of these pixels.
    fn logits(&self, c: &[f64], pixels: &[f64], mut f: impl FnMut(usize, &mut Vec<f64>)) {
        for (block, rows) in pixels.chunks(BLOCK * self.channels()).enumerate() {
            f(block * BLOCK, &mut linear::forward(&self.head, c, rows));
        }
    }

    /// Loss and figures of an image, and what is wanted of their gradients.
    fn judge(&self, at: &At<'_>, pixels: &[f64], classes: &[u16], want: Want, dc: &mut [f64]) -> Judged {
        let (mut judged, num_valid) = (Judged::default(), at.total()[0]);
        let num_classes = self.shape.num_classes;
        self.logits(at.c, pixels, |first, logits| {
            for (pixel, row) in logits.chunks_exact_mut(num_classes).enumerate() {
                let class = classes[first + pixel];
                if class == UNKNOWN_CLASS {
                    row.fill(0.0);
                    continue;
                }
                let class = usize::from(class);
                let best = first_largest(row);
                let sum: f64 = row.iter().map(|l| (l - row[best]).exp()).sum();
                let log_sum = row[best] + sum.ln();
                judged.loss += (log_sum - row[class]) / num_valid;
                judged.num_right += usize::from(best == class);
                row.iter_mut().for_each(|l| *l = (*l - log_sum).exp() / num_valid);
                row[class] -= 1.0 / num_valid;
            }
            if want.dc {
                let rows = &pixels[first * self.channels()..][..logits.len() / num_classes * self.channels()];
                linear::add_weight_gradient(&self.head, rows, logits, dc);
            }
            if want != Want::LOSS {
                judged.d_pixels.extend(linear::input_gradient(&self.head, at.c, logits));
            }
        });
        judged
    }

    /// Adds to the gradient of c if it is wanted, and returns that of the tokens.
    fn backward(&self, c: &[f64], forward: &Forward, d_pixels: Vec<f64>, want: Want, dc: &mut [f64]) -> Vec<f64> {
        let mut d_pixels = d_pixels;
        for (stage, Passed { input, normed }) in self.stages.iter().zip(&forward.stages).rev() {
            let mut d = enlarge_gradient(&d_pixels, stage.side, self.channels());
            let scaled = norm::scale(&stage.norm, c, &normed.values);
            d.iter_mut().zip(scaled).for_each(|(d, x)| *d *= gelu_derivative(x));
            if want.dc {
                norm::add_scale_gradient(&stage.norm, &normed.values, &d, dc);
            }
            norm::group_norm_gradient(&stage.norm, c, normed, &mut d);
            if want.dc {
                stage.convolution.add_weight_gradient(input, stage.side, &d, dc);
            }
            d_pixels = stage.convolution.input_gradient(c, stage.side, &d);
        }
        let d_tokens = linear::input_gradient(&self.reduce, c, &d_pixels);
        if want.dc {
            linear::add_weight_gradient(&self.reduce, &forward.tokens, &d_pixels, dc);
            norm::add_scale_gradient(&self.norm, &forward.normed.values, &d_tokens, dc);
        }
        d_tokens
    }
}

/// The place of the largest value, the first of equals.
fn first_largest(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

impl Task for UpSegmentation {
    fn reads(&self) -> &[Tap] {
        &[Tap::Patches]
    }

    fn layout(&self) -> &SharedLayout {
        &self.layout
    }

    /// Unit gain of norms, Xavier uniform for the first layer, U(±1/√inputs) for convolutions and the last one.
    fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        let rng = |entry: usize| init::tensor_rng(seed, &self.layout.entries[entry].name);
        for norm in self.stages.iter().map(|stage| &stage.norm).chain([&self.norm]) {
            values[norm.gamma.range()].fill(1.0);
        }
        let LinearWeights { weight, inputs, outputs, .. } = self.reduce;
        init::xavier_uniform(&mut values[weight.range()], inputs, outputs, &mut rng(weight.entry));
        for Convolution { weight, inputs, .. } in self.stages.iter().map(|stage| stage.convolution) {
            init::symmetric(&mut values[weight.range()], 1.0 / (9.0 * inputs as f64).sqrt(), &mut rng(weight.entry));
        }
        for weight in [self.head.weight, self.head.bias] {
            let bound = 1.0 / (self.head.inputs as f64).sqrt();
            init::symmetric(&mut values[weight.range()], bound, &mut rng(weight.entry));
        }
        Buffer::from_vec(values)
    }

    fn loss_unit(&self) -> &'static str {
        "nat"
    }

    fn figures(&self) -> &[Figure] {
        &FIGURES
    }

    /// The number of pixels that have a class, at least 1; and 1.
    fn total(&self, y: &Targets) -> Total {
        let Targets::Maps { classes, .. } = y else { return [1.0; 2] };
        let num_valid = classes.iter().filter(|class| **class != UNKNOWN_CLASS).count();
        [num_valid.max(1) as f64, 1.0]
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let (images, classes) = (self.images(at.z)?, self.classes(at.y)?);
        let [num_valid, _] = at.total();
        let mut dc = vec![0.0; if want.dc { self.layout.len } else { 0 }];
        let (mut dz, mut loss, mut num_right) = (Vec::new(), 0.0, 0);
        for (z, classes) in images.zip(classes.chunks_exact(self.side() * self.side())) {
            let forward = self.forward(at.c, z);
            let judged = self.judge(at, &forward.pixels, classes, want, &mut dc);
            loss += judged.loss;
            num_right += judged.num_right;
            if want == Want::LOSS {
                continue;
            }
            let d_tokens = self.backward(at.c, &forward, judged.d_pixels, want, &mut dc);
            if want.dz {
                dz.extend(norm::normalise_gradient(&self.norm, at.c, &forward.normed, &d_tokens));
            }
        }
        let dz = if want.dz { vec![dz] } else { Vec::new() };
        Ok(Share { loss, figures: vec![num_right as f64 / num_valid], dc, dz })
    }

    /// The class of each pixel, the first of equals.
    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        let mut classes = Vec::new();
        for z in self.images(z)? {
            self.logits(c, &self.forward(c, z).pixels, |_, logits| {
                classes.extend(logits.chunks_exact(self.shape.num_classes).map(|row| first_largest(row) as u16));
            });
        }
        Ok(Predictions::Maps { side: self.side(), classes })
    }
}

#[cfg(test)]
mod tests;
