//! Object detection by a head on patch tokens: FCOS (arXiv 1904.01355) with one level, which learns objects of all
//! sizes.
//!
//! Each patch, or each of its four quarters, claims an object of which it is near the centre: its class, the distances to
//! its edges, and how central the location is. Which location learns which object, and what the losses are divided by,
//! follows from the targets alone ([`assignment`]). So the loss is a sum over images and the same function at every c, as
//! [`tasks`](super) asks: matching by predictions (SimOTA, DETR) would move between c + εv and c − εv. It is smooth but
//! for GIoU where a predicted edge is exactly that of the target.
//!
//! An object in which there is no location is not learned, as in FCOS: patches must be small enough for the objects.

pub mod assignment;
pub mod inference;
pub mod losses;
pub mod outputs;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use assignment::{Assignment, Locations, assign};
use losses::{binary_cross_entropy, focal, giou};
use outputs::{BOX_CHANNELS, Outputs};

use super::layers::activation::{gelu, gelu_derivative, sigmoid, softplus};
use super::layers::linear;
use super::metrics::{CocoAveragePrecision, Metrics};
use super::options::{OptionValues, TaskOption, TaskOptions};
use super::predictions::{Detection, Predictions};
use super::segmentation::{TokenLinear, TokenPass};
use super::targets::{BoxTarget, Targets};
use super::task::{At, Figure, Share, Task, TaskFacts, TaskKind, Tokens, Total, Want, wrong_kind};
use crate::choice::Named;
use crate::error::ModelError;
use crate::init;
use crate::layout::{Layout, LinearWeights, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::rng::{Purpose, below, keyed};
use crate::tap::Tap;

/// The entry of [`super::TASKS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "detection"
    }
    fn summary(&self) -> &'static str {
        "Object detection: class and box of each patch, losses of FCOS"
    }
}

/// How many locations a patch has.
const UPSAMPLE: TaskOption = TaskOption {
    name: "upsample",
    summary: "Places along the side of a patch at each of which one object can be found",
    values: OptionValues::Integers(&[1, 2]),
};

impl TaskKind for Kind {
    fn options(&self) -> &'static [TaskOption] {
        &[UPSAMPLE]
    }

    fn build(&self, facts: &TaskFacts, options: &TaskOptions) -> Result<Arc<dyn Task>, ModelError> {
        let TaskFacts { dim, grid, patch, num_classes, .. } = *facts;
        let upsample = options.integer(UPSAMPLE.name);
        Ok(Arc::new(ObjectDetection::new(DetectionShape { dim, grid, patch, num_classes, upsample })))
    }

    /// None to three objects an image, some of them ignored.
    fn example(&self, facts: &TaskFacts, num_images: usize, seed: u64) -> Targets {
        let mut rng = keyed(seed, Purpose::Panel, 0, 0);
        let side = facts.side() as u64;
        let (mut starts, mut boxes) = (vec![0], Vec::new());
        for _ in 0..num_images {
            for _ in 0..below(&mut rng, 4) {
                let mut span = || {
                    let length = 1 + below(&mut rng, side);
                    let start = below(&mut rng, side - length + 1);
                    [start as f32, (start + length) as f32]
                };
                let ([left, right], [top, bottom]) = (span(), span());
                boxes.push(BoxTarget {
                    edges: [left, top, right, bottom],
                    class: below(&mut rng, facts.num_classes as u64) as u32,
                    ignored: below(&mut rng, 4) == 0,
                    area: (right - left) * (bottom - top),
                });
            }
            starts.push(boxes.len());
        }
        Targets::Boxes { starts: starts.into(), boxes: boxes.into() }
    }
}

/// Width of the hidden layer.
pub const HIDDEN: usize = 128;
/// Probability of every class before training.
const PRIOR: f64 = 0.01;

/// What a head for detection is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DetectionShape {
    /// Width of the encoder.
    pub dim: usize,
    /// Patches along one side.
    pub grid: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Classes.
    pub num_classes: usize,
    /// Locations along the side of a patch: 1 or 2.
    pub upsample: usize,
}

/// Detection of objects: LayerNorm → dropout → Linear → GELU → Linear on every patch token, with the losses of FCOS.
///
/// The loss is Σ focal/N + Σ centerness·(1 − GIoU)/Σ centerness + Σ BCE(centerness)/N, where N is the number of locations
/// of the batch that learn an object.
#[derive(Clone, Debug)]
pub struct ObjectDetection {
    layout: SharedLayout,
    tokens: TokenLinear,
    head: LinearWeights,
    shape: DetectionShape,
}

/// The three losses, of which the loss is the sum.
static FIGURES: [Figure; 3] =
    [Figure::new("class_loss", "nat"), Figure::new("box_loss", "share"), Figure::new("centerness_loss", "nat")];

/// What the head computes for an image, for the backward pass.
struct Forward {
    pass: TokenPass,
    /// The hidden layer before its activation, `[patches, hidden]`.
    before: Vec<f64>,
    /// And after it.
    after: Vec<f64>,
    /// `[patches, (K + 5)·u²]`, see [`Outputs`].
    outputs: Vec<f64>,
}

impl ObjectDetection {
    /// Lays the weights out, for a hidden layer of [`HIDDEN`].
    #[must_use]
    pub fn new(shape: DetectionShape) -> Self {
        Self::with_hidden(shape, HIDDEN)
    }

    fn with_hidden(shape: DetectionShape, hidden: usize) -> Self {
        let mut layout = Layout::new(Level::Finetune);
        let tokens = TokenLinear::named(&mut layout, "fc", shape.dim, hidden);
        let num_outputs = (shape.num_classes + BOX_CHANNELS) * shape.upsample * shape.upsample;
        let head = layout.linear("head", &[num_outputs, hidden]);
        ObjectDetection { layout: Arc::new(layout), tokens, head, shape }
    }

    /// Where the head looks for objects.
    #[must_use]
    pub fn locations(&self) -> Locations {
        let DetectionShape { grid, patch, upsample, .. } = self.shape;
        Locations { side: grid * upsample, stride: patch as f64 / upsample as f64 }
    }

    fn outputs<'a>(&self, values: &'a [f64]) -> Outputs<'a> {
        Outputs::new(values, self.shape.num_classes, self.shape.grid, self.shape.upsample)
    }

    /// The patch tokens of each image.
    fn images<'a>(&self, z: &[Tokens<'a>]) -> Result<std::slice::ChunksExact<'a, f32>, ModelError> {
        let DetectionShape { dim, grid, .. } = self.shape;
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

    fn forward(&self, c: &[f64], z: &[f32], dropout: Option<&[f32]>) -> Forward {
        let (before, pass) = self.tokens.forward(c, z, dropout);
        let after: Vec<f64> = before.iter().map(|x| gelu(*x)).collect();
        let outputs = linear::forward(&self.head, c, &after);
        Forward { pass, before, after, outputs }
    }

    /// The three losses of an image, and their derivatives for its outputs.
    fn losses(
        &self,
        outputs: &[f64],
        assignment: &Assignment,
        [num_positives, sum_centerness]: Total,
    ) -> ([f64; 3], Vec<f64>) {
        let (values, num_classes) = (self.outputs(outputs), self.shape.num_classes);
        let (mut sums, mut derivative) = ([0.0; 3], vec![0.0; outputs.len()]);
        let mut add = |kind: usize, location: usize, channel: usize, loss: f64, slope: f64| {
            sums[kind] += loss;
            derivative[values.place(location, channel)] = slope;
        };
        let mut positives = assignment.positives.iter().peekable();
        for (location, ignored) in assignment.ignored.iter().enumerate() {
            let positive = positives.next_if(|positive| positive.location == location);
            if *ignored {
                continue;
            }
            for class in 0..num_classes {
                let is_there = positive.is_some_and(|positive| positive.class == class);
                let (loss, slope) = focal(values.class(location, class), is_there);
                add(0, location, class, loss / num_positives, slope / num_positives);
            }
            let Some(positive) = positive else { continue };
            let raw: [f64; 4] = std::array::from_fn(|side| values.distance(location, side));
            let (loss, slopes) = giou(raw.map(softplus), positive.distances);
            let weight = positive.centerness / sum_centerness;
            for side in 0..4 {
                let loss = if side == 0 { weight * loss } else { 0.0 };
                add(1, location, num_classes + side, loss, weight * slopes[side] * sigmoid(raw[side]));
            }
            let (loss, slope) = binary_cross_entropy(values.centerness(location), positive.centerness);
            add(2, location, num_classes + 4, loss / num_positives, slope / num_positives);
        }
        (sums, derivative)
    }

    /// The objects of each image, of which the head must know the classes.
    fn boxes<'a>(&self, y: &'a Targets) -> Result<Vec<&'a [BoxTarget]>, ModelError> {
        let Targets::Boxes { boxes, .. } = y else { return Err(wrong_kind("boxes", y)) };
        let num_classes = self.shape.num_classes;
        match boxes.iter().find(|target| target.class as usize >= num_classes) {
            Some(target) => Err(ModelError::Targets {
                problem: format!("a class must be in 0..{num_classes}, got {}", target.class),
            }),
            None => Ok((0..y.len()).filter_map(|image| y.boxes(image)).collect()),
        }
    }
}

impl Task for ObjectDetection {
    fn reads(&self) -> &[Tap] {
        &[Tap::Patches]
    }

    fn layout(&self) -> &SharedLayout {
        &self.layout
    }

    /// Unit norm gain, U(±1/√dim) for the hidden layer, N(0, 0.01²) for the outputs, and −ln 99 as bias of class
    /// logits, so that every class begins with a probability of 0.01 (arXiv 1708.02002).
    fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        self.tokens.init(&self.layout, &mut values, seed);
        let LinearWeights { weight, bias, .. } = self.head;
        let mut rng = init::tensor_rng(seed, &self.layout.entries[weight.entry].name);
        init::normals(&mut values[weight.range()], 0.01, &mut rng);
        let num_class_outputs = self.shape.num_classes * self.shape.upsample * self.shape.upsample;
        values[bias.range()][..num_class_outputs].fill(-((1.0 - PRIOR) / PRIOR).ln() as f32);
        Buffer::from_vec(values)
    }

    fn loss_unit(&self) -> &'static str {
        "nat"
    }

    fn figures(&self) -> &[Figure] {
        &FIGURES
    }

    /// The number of locations that learn an object, and the sum of their centerness; 1 and 1 where there are none, as
    /// such a batch has losses of classes alone.
    fn total(&self, y: &Targets) -> Total {
        let (locations, mut total) = (self.locations(), [0.0; 2]);
        for image in 0..y.len() {
            for positive in assign(&locations, y.boxes(image).unwrap_or_default()).positives {
                total[0] += 1.0;
                total[1] += positive.centerness;
            }
        }
        if total[0] > 0.0 { total } else { [1.0; 2] }
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let (c, locations) = (at.c, self.locations());
        let (images, boxes) = (self.images(at.z)?, self.boxes(at.y)?);
        if images.len() != boxes.len() {
            let problem = format!("targets of {} images, tokens of {}", boxes.len(), images.len());
            return Err(ModelError::Targets { problem });
        }
        let per_tokens = self.shape.grid * self.shape.grid * self.shape.dim;
        let factors = at.noise.map(|noise| noise.factors(boxes.len(), per_tokens));
        let mut dc = vec![0.0; if want.dc { self.layout.len } else { 0 }];
        let mut dz = vec![0.0; if want.dz { boxes.len() * per_tokens } else { 0 }];
        let mut sums = [0.0; 3];
        for (image, (z, boxes)) in images.zip(boxes).enumerate() {
            let place = image * per_tokens..(image + 1) * per_tokens;
            let forward = self.forward(c, z, factors.as_ref().map(|factors| &factors[place.clone()]));
            let (losses, d_outputs) = self.losses(&forward.outputs, &assign(&locations, boxes), at.total());
            sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
            if want == Want::LOSS {
                continue;
            }
            let mut d_hidden = linear::input_gradient(&self.head, c, &d_outputs);
            d_hidden.iter_mut().zip(&forward.before).for_each(|(d, x)| *d *= gelu_derivative(*x));
            let mut dc = want.dc.then_some(&mut dc[..]);
            if let Some(dc) = &mut dc {
                linear::add_weight_gradient(&self.head, &forward.after, &d_outputs, dc);
            }
            let dz = if want.dz { Some(&mut dz[place]) } else { None };
            self.tokens.backward(c, &forward.pass, &d_hidden, dc, dz);
        }
        let dz = if want.dz { vec![dz] } else { Vec::new() };
        Ok(Share { loss: sums.iter().sum(), figures: sums.to_vec(), dc, dz })
    }

    /// The objects found in each image, see [`inference`].
    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        let locations = self.locations();
        let of_image = |z: &[f32]| -> Vec<Detection> {
            inference::detections(&self.outputs(&self.forward(c, z, None).outputs), &locations)
        };
        Ok(Predictions::Boxes(self.images(z)?.map(of_image).collect()))
    }

    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(CocoAveragePrecision::new(self.shape.num_classes))
    }
}
