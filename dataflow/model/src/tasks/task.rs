//! What a task is: its targets, its head, its loss and what it reads of the encoder.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::choice::Named;
use crate::error::ModelError;
use crate::layout::SharedLayout;
use crate::parallel::arena::Buffer;
use crate::rng::{Purpose, keyed};
use crate::tap::Tap;

/// Tokens that a head reads at one tap, `[images, per_image, dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Tokens of an image.
    pub per_image: usize,
    /// Width.
    pub dim: usize,
    /// The values, row-major.
    pub values: &'a [f32],
}

impl<'a> Tokens<'a> {
    /// Images.
    #[must_use]
    pub const fn images(&self) -> usize {
        self.values.len() / (self.per_image * self.dim)
    }

    /// The tokens of the images `range`.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Tokens<'a> {
        let per_image = self.per_image * self.dim;
        Tokens { values: &self.values[range.start * per_image..range.end * per_image], ..*self }
    }
}

/// What the head should find in the images of a batch. Cloning shares the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// A class of each image, `[batch]`; -1 where it is unknown.
    Classes(Arc<[i32]>),
}

impl Targets {
    /// Images.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Targets::Classes(classes) => classes.len(),
        }
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of image `image`, where targets are classes and it is known.
    #[must_use]
    pub fn class(&self, image: usize) -> Option<i32> {
        match self {
            Targets::Classes(classes) => classes.get(image).copied().filter(|class| *class >= 0),
        }
    }

    /// Bytes of the values.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Targets::Classes(classes) => 4 * classes.len(),
        }
    }

    /// The targets of the images `range`.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Targets {
        match self {
            Targets::Classes(classes) => Targets::Classes(classes[range].into()),
        }
    }
}

/// What a loss is divided by, additive over images: for classification, images.
pub type Total = [f64; 2];

/// Dropout of one pass, as data: its draws are keyed by seed, outer iteration and pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Share of the features that is dropped.
    pub rate: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Outer iteration.
    pub outer: u64,
    /// Pass of the outer iteration: level 2's step is 0, the published form redraws in each.
    pub pass: u64,
}

impl Noise {
    /// A factor for each of `num` features of a batch: 0 for dropped ones, 1/(1 − rate) for the others.
    #[must_use]
    pub fn factors(&self, num: usize) -> Vec<f32> {
        let mut rng = keyed(self.seed, Purpose::Dropout, self.outer, self.pass);
        let keep = (1.0 / (1.0 - self.rate)) as f32;
        (0..num).map(|_| if crate::rng::uniform(&mut rng) < self.rate { 0.0 } else { keep }).collect()
    }
}

/// Where a task is evaluated: a whole batch, or some of its images.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// c, flat.
    pub c: &'a [f64],
    /// What the head reads, in the order of [`Task::reads`].
    pub z: &'a [Tokens<'a>],
    /// The targets of these images.
    pub y: &'a Targets,
    /// [`Task::total`] of the whole batch.
    pub total: Total,
    /// Dropout, in level 2's own step. Only for whole batches.
    pub noise: Option<Noise>,
}

/// Which gradients are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// ∂ℓ/∂c.
    pub dc: bool,
    /// ∂ℓ/∂Z.
    pub dz: bool,
}

impl Want {
    /// Both gradients.
    pub const BOTH: Want = Want { dc: true, dz: true };
    /// The loss alone.
    pub const LOSS: Want = Want { dc: false, dz: false };
}

/// The part of a batch's loss, figures and gradients that is due to some of its images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share {
    /// Loss.
    pub loss: f64,
    /// The figures of [`Task::figures`], additive over images like the loss.
    pub figures: Vec<f64>,
    /// ∂ℓ/∂c, flat; empty where it was not wanted.
    pub dc: Vec<f64>,
    /// ∂ℓ/∂Z, `[images, per_image, dim]` for each tap; empty where it was not wanted.
    pub dz: Vec<Vec<f64>>,
}

/// A number beside the loss that a task gives of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its name in the logs, for example `accuracy`.
    pub name: &'static str,
    /// Its unit in the logs.
    pub unit: &'static str,
}

/// A downstream task: a head c on the encoder, and its loss. Heads compute in f64, so that finite differences over c lose nothing.
pub trait Task: Send + Sync + fmt::Debug {
    /// What the head reads of the encoder.
    fn reads(&self) -> &[Tap];

    /// Names and places of the head's weights.
    fn layout(&self) -> &SharedLayout;

    /// Initial weights.
    fn init(&self, seed: u64) -> Buffer;

    /// The unit of the loss in the logs.
    fn loss_unit(&self) -> &'static str;

    /// The numbers beside the loss, in the order of [`Share::figures`].
    fn figures(&self) -> &[Figure];

    /// What the losses of a batch with these targets are divided by.
    fn total(&self, y: &Targets) -> Total;

    /// Loss, figures and gradients of some images of a batch.
    ///
    /// # Errors
    /// When targets or taps are not those of the task.
    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError>;

    /// The head's outputs for some images, `[images, outputs]`; for classification, logits.
    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Vec<f32>;
}

/// What a task's head is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskFacts {
    /// Width of the encoder.
    pub dim: usize,
    /// Patches along one side.
    pub grid: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Classes of the data.
    pub num_classes: usize,
}

/// A task as an entry of [`TASKS`](super::TASKS).
pub trait TaskKind: Named {
    /// The task on an encoder of that shape.
    fn build(&self, facts: &TaskFacts) -> Arc<dyn Task>;
}
