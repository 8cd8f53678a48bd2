//! What a masking is: its keys, and where it is learned its scores and their gradient.

use std::fmt;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use serde::{Deserialize, Serialize};

use crate::choice::Named;
use crate::engine::TokenOrder;
use crate::init;
use crate::layout::{Layout, SharedLayout};
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::rng::{Purpose, keyed};

/// What the masking network reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MaskInput {
    /// The autoencoder's own patch embedding, as published: scores depend on both networks.
    Embedding,
    /// The image's patches: scores depend on the masking network alone.
    Pixels,
}

/// What a masking reads of the images before it can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: its keys are drawn.
    Nothing,
    /// The patches' pixels, `[batch, L, C·P·P]`.
    Pixels,
    /// The autoencoder's patch embedding with positions, `[batch, L, dim]`: scoring waits for θ, and θ gets a gradient through p.
    Embedding,
}

/// How a batch is masked, as data: the same rule on the same scores always gives the same masks, wherever it is applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskRule {
    /// Seed of the run.
    pub seed: u64,
    /// Level-1 step; a number of its own for batches outside training.
    pub step: u64,
    /// Share of the patches of an image that are placed at random, in [0, 1].
    pub explore: f64,
    /// Place of the first image within the batch of all ranks; [`score`](crate::levels::score::score) knows it.
    pub first_image: u64,
}

impl MaskRule {
    /// Masks by score alone.
    pub const BY_SCORE: MaskRule = MaskRule { seed: 0, step: 0, explore: 0.0, first_image: 0 };

    /// The generator of an image, by its place in the batch of this rank.
    #[must_use]
    pub fn rng(&self, image: usize) -> ChaCha8Rng {
        keyed(self.seed, Purpose::Mask, self.step, self.first_image + image as u64)
    }
}

/// Scores of a batch, and what their gradient needs.
#[derive(Clone, Debug)]
pub struct Trace {
    /// p `[batch, L]`.
    pub scores: Arc<Buffer>,
    /// What was read, `[batch, L, features]`.
    pub input: Arc<Buffer>,
    /// Hidden layers, as the masking lays them out. Cut by grain, never by micro-batch: a trace is made in one stage and read in another,
    /// whose micro-batches may have another size.
    pub hidden: Vec<Arc<Buffer>>,
    /// Images.
    pub batch: usize,
}

/// A way to mask patches.
///
/// The methods for φ are called on a masking with a [`layout`](Masking::layout) alone.
pub trait Masking: Send + Sync + fmt::Debug {
    /// What it reads.
    fn needs(&self) -> Needs;

    /// Keys `[images, L]` for [`order_by_keys`](super::order::order_by_keys); `scores` are those of [`Masking::forward`].
    fn keys(&self, num_images: usize, scores: Option<&[f32]>, rule: &MaskRule) -> Vec<f32>;

    /// Names and places of φ; none where nothing is learned, so that levels 2 and 3 rest.
    fn layout(&self) -> Option<&SharedLayout> {
        None
    }

    /// Initial φ.
    fn init(&self, _seed: u64) -> Buffer {
        Buffer::default()
    }

    /// Values of an image that a [`Trace`] keeps, for the memory bound of queues.
    fn trace_values(&self) -> usize {
        0
    }

    /// Scores of `input` `[batch, L, features]` at φ; none where nothing is learned.
    fn forward(&self, _compute: &Compute, _phi: &[f32], _input: &Arc<Buffer>) -> Option<Trace> {
        None
    }

    /// Carries `dscores` = ∂F/∂p `[batch, L]` back: adds to `dphi` where given, and returns ∂F/∂input where wanted.
    fn backward(
        &self,
        _compute: &Compute,
        _phi: &[f32],
        _trace: &Trace,
        _dscores: &[f32],
        _dphi: Option<&mut [f32]>,
        _want_input: bool,
    ) -> Option<Buffer> {
        None
    }
}

/// What a masking is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskingFacts {
    /// Patches along one side.
    pub grid: usize,
    /// Values of a patch.
    pub patch_values: usize,
    /// Width of the encoder.
    pub dim: usize,
    /// What a network reads.
    pub input: MaskInput,
    /// Hidden width of a network.
    pub hidden: usize,
}

impl MaskingFacts {
    /// L: patches of an image.
    #[must_use]
    pub const fn num_patches(&self) -> usize {
        self.grid * self.grid
    }

    /// Features of a patch that a network reads.
    #[must_use]
    pub const fn features(&self) -> usize {
        match self.input {
            MaskInput::Embedding => self.dim,
            MaskInput::Pixels => self.patch_values,
        }
    }

    /// What a network needs.
    #[must_use]
    pub const fn needs(&self) -> Needs {
        match self.input {
            MaskInput::Embedding => Needs::Embedding,
            MaskInput::Pixels => Needs::Pixels,
        }
    }
}

/// A masking as an entry of [`MASKINGS`](super::MASKINGS).
pub trait MaskingKind: Named {
    /// Whether it has a φ.
    fn is_learned(&self) -> bool;

    /// The masking for networks of that shape.
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking>;
}

/// A batch with its masks.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Scores and what their gradient needs; none where nothing is learned.
    pub trace: Option<Trace>,
    /// Visible patches.
    pub order: Arc<TokenOrder>,
}

impl Scored {
    /// Weight p of each patch's loss, `[batch, L]`; none where nothing is learned: then it is 1.
    #[must_use]
    pub fn weights(&self) -> Option<&[f32]> {
        self.trace.as_ref().map(|trace| &trace.scores[..])
    }
}

/// U(±1/√inputs) for every linear layer of a masking network, weight and bias alike.
pub(super) fn init_linear_layers(layout: &Layout, seed: u64) -> Buffer {
    let mut values = vec![0.0; layout.len];
    let mut bound = 0.0;
    for entry in &layout.entries {
        if entry.shape.len() == 2 {
            bound = 1.0 / (entry.shape[1] as f64).sqrt();
        }
        init::symmetric(&mut values[entry.range()], bound, &mut init::tensor_rng(seed, &entry.name));
    }
    Buffer::from_vec(values)
}
