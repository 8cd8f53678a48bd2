//! What a lane and a device are.

use std::fmt;
use std::sync::Arc;

use crate::choice::Named;
use crate::error::ModelError;
use crate::levels::optimizer::AdamW;
use crate::masking::{MaskRule, Scored};
use crate::model::Model;
use crate::parallel::arena::Arena;
use crate::tasks::{Noise, Targets};
use crate::vector::Vector;

/// Labelled images.
#[derive(Clone, Copy, Debug)]
pub struct LabelledImages<'a> {
    /// `[batch, C, H, W]`.
    pub images: &'a Vector,
    /// `[batch]`.
    pub targets: &'a Targets,
}

/// Result of a level-1 pass.
#[derive(Clone, Debug)]
pub struct PretrainGradient {
    /// L_m.
    pub loss: f64,
    /// ∂L_m/∂θ.
    pub gradient: Vector,
    /// ℓ `[batch, L]`, of visible patches too.
    pub patch_loss: Vector,
}

/// Result of a level-2 pass.
#[derive(Debug)]
pub struct FinetuneGradient {
    /// L_f.
    pub loss: f64,
    /// The task's figures on the finetune batch.
    pub figures: Vec<f64>,
    /// ∂L_f/∂c.
    pub gradient: Vector,
    /// Encoder passes that wait for [`Lane::direction`], if they were to be kept.
    pub recorded: Option<Recording>,
}

/// Encoder passes over the finetune batch, as the lane that made them knows them. Only that lane can end them; dropping frees them.
pub struct Recording(pub Box<dyn std::any::Any + Send>);

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

/// The vectors of level 3 at the updated head.
#[derive(Clone, Debug)]
pub struct Direction {
    /// L_v.
    pub loss: f64,
    /// The task's figures on the validation batch.
    pub figures: Vec<f64>,
    /// v0 = ∂L_v/∂c, flat.
    pub v0: Vec<f64>,
    /// v1 = D[v0; c; L_f; θ], flat over θ, zero on the decoder.
    pub v1: Vector,
    /// w = ∂L_v/∂θ, flat over θ, zero on the decoder.
    pub w: Vector,
}

/// Where level 2 and the direction of level 3 are evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Downstream<'a> {
    /// θ.
    pub theta: &'a Vector,
    /// c.
    pub c: &'a Vector,
    /// Batch F of level 2.
    pub finetune: LabelledImages<'a>,
    /// Batch V of level 3.
    pub validation: LabelledImages<'a>,
}

/// Where the hypergradient is evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// θ.
    pub theta: &'a Vector,
    /// φ.
    pub phi: &'a Vector,
    /// The last batch x_p of level 1, `[batch, C, H, W]`.
    pub images: &'a Vector,
    /// How x_p is masked.
    pub rule: &'a MaskRule,
}

/// One stage's way to the arithmetic of a device.
///
/// Losses come back to the host; vectors stay where the lane computes.
pub trait Lane: Send + fmt::Debug {
    /// The networks.
    fn model(&self) -> &Arc<Model>;

    /// A lane of the same device for another worker.
    fn fork(&self) -> Box<dyn Lane>;

    /// Brings a vector to where the lane computes; shared if it is there. All methods below take vectors that were brought there or came
    /// from a lane of the same [`Lanes`], moments of the optimizer and empty vectors among them.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    fn upload(&self, vector: &Vector) -> Result<Vector, ModelError>;

    /// Masks images `[batch, C, H, W]` by `rule`. θ is needed where the masking reads the patch embedding.
    ///
    /// # Errors
    /// When the device fails, or a θ that is needed is not given.
    fn score(
        &mut self,
        theta: Option<&Vector>,
        phi: &Vector,
        images: &Vector,
        rule: &MaskRule,
    ) -> Result<Scored, ModelError>;

    /// L_m and ∂L_m/∂θ on images that were masked at φ.
    ///
    /// # Errors
    /// When the device fails.
    fn pretrain(
        &mut self,
        theta: &Vector,
        phi: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<PretrainGradient, ModelError>;

    /// L_f and ∂L_f/∂c; with `keep` the encoder's passes wait for [`Lane::direction`].
    ///
    /// # Errors
    /// When the device fails, or targets are not the task's.
    fn finetune(
        &mut self,
        at: &Downstream<'_>,
        noise: Option<Noise>,
        keep: bool,
    ) -> Result<FinetuneGradient, ModelError>;

    /// v0, v1 and w at the updated c, with one backward pass over what [`Lane::finetune`] kept.
    ///
    /// # Errors
    /// When the device fails, or the recording is not this lane's.
    fn direction(&mut self, at: &Downstream<'_>, recorded: Recording, alpha: f64) -> Result<Direction, ModelError>;

    /// As [`Lane::direction`] by the published passes, with the dropout that `noise` gives of each pass.
    ///
    /// # Errors
    /// When the device fails.
    fn direction_published(
        &mut self,
        at: &Downstream<'_>,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError>;

    /// D[v; θ; L_m; φ], by a central difference over θ.
    ///
    /// # Errors
    /// When the device fails.
    fn difference(&mut self, at: &Upstream<'_>, v: &Vector, alpha: f64) -> Result<Vector, ModelError>;

    /// One AdamW step: the new values; the old ones are left to whoever shares them.
    ///
    /// # Errors
    /// When the device fails.
    fn update(
        &mut self,
        adamw: &mut AdamW,
        values: &Vector,
        gradient: &Vector,
        rate: f64,
    ) -> Result<Vector, ModelError>;

    /// Patch losses ℓ `[batch, L]` alone.
    ///
    /// # Errors
    /// When the device fails.
    fn patch_losses(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vector, ModelError>;

    /// Reconstructed patches `[batch·L, P·P·C]` in units of the normalised target, for pictures.
    ///
    /// # Errors
    /// When the device fails.
    fn reconstruct(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vec<f32>, ModelError>;

    /// CLS features `[batch, dim]` of images `[batch, C, H, W]`, for evaluations.
    ///
    /// # Errors
    /// When the device fails.
    fn features(&mut self, theta: &Vector, images: &Vector) -> Result<Vec<f32>, ModelError>;

    /// θ + ε·v, where v is zero on the decoder.
    ///
    /// # Errors
    /// When the device fails.
    fn shifted(&mut self, theta: &Vector, v: &Vector, epsilon: f64) -> Result<Vector, ModelError>;

    /// a·x + b·y.
    ///
    /// # Errors
    /// When the device fails.
    fn combined(&mut self, a: f64, x: &Vector, b: f64, y: &Vector) -> Result<Vector, ModelError>;

    /// x + y.
    ///
    /// # Errors
    /// When the device fails.
    fn sum(&mut self, x: &Vector, y: &Vector) -> Result<Vector, ModelError>;

    /// ‖x‖₂.
    ///
    /// # Errors
    /// When the device fails.
    fn norm(&mut self, x: &Vector) -> Result<f64, ModelError>;

    /// Cosine between two vectors; 0 where one of them is zero.
    ///
    /// # Errors
    /// When the device fails.
    fn cosine(&mut self, x: &Vector, y: &Vector) -> Result<f64, ModelError>;

    /// Place and value of the first value that is not finite.
    ///
    /// # Errors
    /// When the device fails.
    fn first_non_finite(&mut self, x: &Vector) -> Result<Option<(usize, f32)>, ModelError>;

    /// Bytes that the lane's recycled memory has ever taken from the system: constant once training has warmed up.
    fn allocated_bytes(&self) -> u64;
}

/// Threads and sizes of one stage's lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSize {
    /// Compute threads, where the device is the CPU.
    pub num_threads: usize,
    /// Images that a thread takes at a time.
    pub micro_batch: usize,
}

/// What the lanes of a run are made for.
#[derive(Clone, Debug)]
pub struct LanesSpec {
    /// The networks.
    pub model: Arc<Model>,
    /// Recycled host memory of the run.
    pub arena: Arena,
    /// Images of a grain, over which sums are taken first.
    pub grain: usize,
    /// Whether the levels take turns, so that they may share threads.
    pub take_turns: bool,
    /// Of the scorer, which lets level 1 wait where scores need the newest θ.
    pub score: LaneSize,
    /// Of level 1.
    pub pretrain: LaneSize,
    /// Of level 2 and the direction of level 3.
    pub finetune: LaneSize,
    /// Of level 3.
    pub mask: LaneSize,
}

/// The lanes of a run. They share one memory: θ, φ, directions and images go from one to another without an upload.
#[derive(Debug)]
pub struct Lanes {
    /// Of the scorer; its other workers fork it.
    pub score: Box<dyn Lane>,
    /// Of level 1.
    pub pretrain: Box<dyn Lane>,
    /// Of level 2 and the direction of level 3.
    pub finetune: Box<dyn Lane>,
    /// Of level 3.
    pub mask: Box<dyn Lane>,
}

/// A device as an entry of [`DEVICES`](super::DEVICES).
pub trait Device: Named {
    /// Why the device cannot be used here; none if it can.
    fn problem(&self) -> Option<String>;

    /// The lanes of a run.
    ///
    /// # Errors
    /// When threads cannot be started or the device cannot be opened.
    fn lanes(&self, spec: &LanesSpec) -> Result<Lanes, ModelError>;

    /// A lane of its own, for evaluations and pictures.
    ///
    /// # Errors
    /// As [`Device::lanes`].
    fn lane(
        &self,
        model: &Arc<Model>,
        arena: &Arena,
        grain: usize,
        size: LaneSize,
    ) -> Result<Box<dyn Lane>, ModelError>;
}
