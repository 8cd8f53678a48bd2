//! The trait of a task: its targets, its head, its loss and what it reads of the encoder.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::metrics::Metrics;
use super::options::{TaskOption, TaskOptions};
use super::predictions::Predictions;
use super::targets::Targets;
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
    /// Number of images.
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

/// What a batch's loss is divided by: two numbers whose meaning is the task's own. For classification, the number of
/// images and 1, which is not used.
pub type Total = [f64; 2];

/// The dropout of one pass, as data: seed, outer iteration and pass are the key of its draws. Several tasks on one batch
/// have the same draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Share of the features that is dropped, in [0, 1).
    pub rate: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Outer iteration.
    pub outer: u64,
    /// Pass of the outer iteration, see [`Hypergradient`](crate::hypergradient::Hypergradient): 0 is level 2's own
    /// step.
    pub pass: u64,
    /// Place in the batch of the first image that it is for: 0 for a whole batch.
    pub first_image: usize,
}

impl Noise {
    /// Factors for `num_images` images of `per_image` features each, row-major: 0 where a feature is dropped, else
    /// 1/(1 − rate). An image's are the same alone and in its batch.
    #[must_use]
    pub fn factors(&self, num_images: usize, per_image: usize) -> Vec<f32> {
        let mut rng = keyed(self.seed, Purpose::Dropout, self.outer, self.pass);
        // A uniform draw takes two words of the generator.
        rng.set_word_pos(2 * (self.first_image as u128) * (per_image as u128));
        let keep = (1.0 / (1.0 - self.rate)) as f32;
        let draws = 0..num_images * per_image;
        draws.map(|_| if crate::rng::uniform(&mut rng) < self.rate { 0.0 } else { keep }).collect()
    }

    /// The same for images that begin `num` places later.
    #[must_use]
    pub const fn skip(self, num: usize) -> Noise {
        Noise { first_image: self.first_image + num, ..self }
    }
}

/// The point at which a task is evaluated: on a whole batch, or on some of its images.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// c, flat.
    pub c: &'a [f64],
    /// The encoder's tokens of these images, one entry for each tap of [`Task::reads`], in that order.
    pub z: &'a [Tokens<'a>],
    /// The targets of these images.
    pub y: &'a Targets,
    /// [`Task::totals`] of the whole batch; never empty.
    pub totals: &'a [Total],
    /// Dropout of the head; none in most passes.
    pub noise: Option<Noise>,
}

impl At<'_> {
    /// The total of a task that is one alone.
    #[must_use]
    pub fn total(&self) -> Total {
        self.totals.first().copied().unwrap_or([1.0; 2])
    }
}

/// A head that normalises one token an image, drops some of its features, and maps it to logits, with their cross entropy:
/// dropout(norm(z)·γ + β)·Wᵀ + b with the norm's epsilon [`NORM_EPS`](crate::engine::NORM_EPS).
///
/// Its task reads one tap that [is pooled](Tap::is_pooled), has the mean over images as loss, the share of images whose
/// largest logit is that of their class (the first of equals) as its only figure, and the weights of these places as all of c.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearHead {
    /// γ `[dim]`.
    pub gamma: Range<usize>,
    /// β `[dim]`.
    pub beta: Range<usize>,
    /// W `[classes, dim]`.
    pub weight: Range<usize>,
    /// b `[classes]`.
    pub bias: Range<usize>,
}

impl LinearHead {
    /// The classes of a batch, each of which the head must know.
    ///
    /// # Errors
    /// [`ModelError::Targets`] with the first that it does not.
    pub fn classes<'a>(&self, y: &'a Targets) -> Result<&'a [i32], ModelError> {
        let Targets::Classes(classes) = y else { return Err(wrong_kind("classes", y)) };
        let num_classes = self.bias.len();
        match classes.iter().find(|class| usize::try_from(**class).map_or(true, |class| class >= num_classes)) {
            Some(class) => {
                Err(ModelError::Targets { problem: format!("a class must be in 0..{num_classes}, got {class}") })
            }
            None => Ok(classes),
        }
    }
}

/// The error of a task that learns from `needed` and was given other targets.
pub(crate) fn wrong_kind(needed: &'static str, got: &Targets) -> ModelError {
    ModelError::Targets { problem: format!("the task learns from {needed}, got {}", got.kind()) }
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

/// The contribution of some images to a batch's loss, figures and gradients. The sum over all images is the batch's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share {
    /// Loss, already divided by the batch's total.
    pub loss: f64,
    /// The figures of [`Task::figures`], additive over images like the loss.
    pub figures: Vec<f64>,
    /// ∂ℓ/∂c, flat; empty unless wanted.
    pub dc: Vec<f64>,
    /// ∂ℓ/∂Z, `[images, per_image, dim]` for each tap; empty unless wanted.
    pub dz: Vec<Vec<f64>>,
}

/// What follows from the taps of both labelled batches (finetune, then validation): a cotangent for each tap of each,
/// `[images, per_image, dim]`.
pub type TapCotangents<'a> = dyn FnMut(&[Tokens<'_>], &[Tokens<'_>]) -> Result<[Vec<Vec<f64>>; 2], ModelError> + 'a;

/// A number that is logged beside a batch's loss, for example its accuracy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its name in the logs, for example `accuracy`.
    pub name: Cow<'static, str>,
    /// Its unit in the logs.
    pub unit: &'static str,
}

impl Figure {
    /// A figure of that name and unit.
    #[must_use]
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Figure { name: Cow::Borrowed(name), unit }
    }
}

/// A downstream task: a head c on the encoder, and its loss.
///
/// A task has no mutable state: one instance serves all stages and threads at once. Heads compute on the calling
/// thread, in host memory, and in f64, so that finite differences over c do not cancel. The conditions on the loss are
/// those of [`tasks`](super).
pub trait Task: Send + Sync + fmt::Debug {
    /// The taps that the head reads, at least one, the same in every call; they fix the order of [`At::z`] and
    /// [`Share::dz`].
    fn reads(&self) -> &[Tap];

    /// Names and shapes of c, a layout of [`Level::Finetune`](crate::Level::Finetune).
    fn layout(&self) -> &SharedLayout;

    /// Initial c, as long as the layout; keyed by `seed` and tensor name (see [`init`](crate::init)).
    fn init(&self, seed: u64) -> Buffer;

    /// The unit of the loss in the logs, for example `nat`.
    fn loss_unit(&self) -> &'static str;

    /// The numbers logged beside the loss, in the order of [`Share::figures`].
    fn figures(&self) -> &[Figure];

    /// What the loss of a whole batch with these targets is divided by; finite and above 0 whatever the targets.
    fn total(&self, y: &Targets) -> Total;

    /// What is handed to every [`Task::evaluate`] on images of a batch: its total, or one for each task that this one
    /// consists of.
    fn totals(&self, y: &Targets) -> Vec<Total> {
        vec![self.total(y)]
    }

    /// Loss, figures and the wanted gradients of some images of a batch: of a whole batch where all taps
    /// [are pooled](Tap::is_pooled), else of a grain, several grains at once on a thread each. Its gradient for the
    /// tokens of an image must not depend on the others in the call.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when targets or taps are not those of the task.
    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError>;

    /// Whether [`Task::regression`] gives targets: the head is linear in one tap that [is pooled](Tap::is_pooled).
    fn is_linear(&self) -> bool {
        false
    }

    /// The targets as numbers `[images, K]` and K, for the best linear head by squared error ([`ridge`](super::ridge));
    /// none where the task has no such form.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when targets are not those of the task, or some are unknown.
    fn regression(&self, _y: &Targets) -> Result<Option<(usize, Vec<f64>)>, ModelError> {
        Ok(None)
    }

    /// The head as data, if it is a [`LinearHead`]: a device may then compute it by itself, to the same results but for
    /// the rounding of f64, instead of calling [`Task::evaluate`].
    fn linear_head(&self) -> Option<LinearHead> {
        None
    }

    /// What the head says of some images, without dropout. `z` is as [`At::z`].
    ///
    /// # Errors
    /// [`ModelError::Targets`] when taps are not those of the task.
    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError>;

    /// The metrics that judge its predictions, over no images yet.
    fn metrics(&self) -> Box<dyn Metrics>;

    /// The tasks that this one consists of; empty for a task that is one alone.
    fn parts(&self) -> &[Part] {
        &[]
    }

    /// The same task with the loss and figures of one of its [`Task::parts`], unweighted: the same c, taps and figures,
    /// which are 0 for the others. None if there is no such part.
    fn only(&self, _part: usize) -> Option<Arc<dyn Task>> {
        None
    }
}

/// One of several tasks of a run.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name, which begins the names of its tensors and figures.
    pub name: String,
    /// λ, by which its loss counts in the sum.
    pub weight: f64,
    /// The task.
    pub task: Arc<dyn Task>,
}

/// The shapes that a task's head is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskFacts {
    /// Width of the encoder.
    pub dim: usize,
    /// Blocks of the encoder.
    pub depth: usize,
    /// Patches along one side.
    pub grid: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Classes of the data; for tasks of other targets, labels or values of an image.
    pub num_classes: usize,
}

impl TaskFacts {
    /// Patches of an image.
    #[must_use]
    pub const fn num_patches(&self) -> usize {
        self.grid * self.grid
    }

    /// Side of the square image in pixels.
    #[must_use]
    pub const fn side(&self) -> usize {
        self.grid * self.patch
    }
}

/// A task as an entry of [`TASKS`](super::TASKS).
pub trait TaskKind: Named {
    /// Whether its tasks have a head in closed form: a [`Task::regression`], and one tap of one token an image.
    fn has_closed_form(&self) -> bool {
        false
    }

    /// The options that it takes, each with its default first.
    fn options(&self) -> &'static [TaskOption] {
        &[]
    }

    /// The task for these shapes, which have been checked ([`ModelConfig::problems`](crate::ModelConfig::problems)), and
    /// with these options, which are among [`TaskKind::options`].
    ///
    /// # Errors
    /// [`ModelError::Config`] with one line when an option does not fit the shapes or another option.
    fn build(&self, facts: &TaskFacts, options: &TaskOptions) -> Result<Arc<dyn Task>, ModelError>;

    /// Targets of `num_images` images, drawn by `seed`, with some that are unknown where the kind has such: for
    /// [`conditions`](super::conditions) and for measurements.
    fn example(&self, facts: &TaskFacts, num_images: usize, seed: u64) -> Targets;
}
