//! The traits of a lane and a device, and the types of their arguments and results.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::choice::Named;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::images::Images;
use crate::level::PerLevel;
use crate::levels::optimizer::AdamW;
use crate::levels::optimizer::AdamWConfig;
use crate::masking::{MaskRule, Scored};
use crate::model::Model;
use crate::parallel::arena::Arena;
use crate::policy::Estimator;
use crate::precision::Precision;
use crate::tasks::ridge::{Bank, Rows};
use crate::tasks::{Noise, TapCotangents, Targets};
use crate::vector::Vector;

/// Images with their targets.
#[derive(Clone, Copy, Debug)]
pub struct LabelledImages<'a> {
    /// Normalised images `[batch, C, H, W]`; of several ranks, those of this rank.
    pub images: &'a Vector,
    /// The targets of these images, in host memory; of several ranks, the targets of all ranks' images in order of
    /// rank.
    pub targets: &'a Targets,
}

/// Result of [`Lane::pretrain`].
#[derive(Clone, Debug)]
pub struct PretrainGradient {
    /// L_m of the batch.
    pub loss: f64,
    /// ∂L_m/∂θ, flat over θ, zero on frozen weights.
    pub gradient: Vector,
    /// Patch losses ℓ `[batch, L]`, of masked and visible patches: the mean squared error of each patch, in units of
    /// the normalised target.
    pub patch_loss: Vector,
}

/// Result of [`Lane::finetune`].
#[derive(Debug)]
pub struct FinetuneGradient {
    /// L_f of the batch.
    pub loss: f64,
    /// The task's figures on the finetune batch, see [`Task::figures`](crate::tasks::Task::figures).
    pub figures: Vec<f64>,
    /// ∂L_f/∂c, flat over c.
    pub gradient: Vector,
    /// Recorded encoder passes for [`Lane::direction`]; none without `keep`.
    pub recorded: Option<Recording>,
}

/// Recorded encoder passes over the finetune batch (an autograd tape), of a type that only the lane knows which made
/// them. That lane runs them backward, in [`Lane::direction`]; dropping frees their memory.
pub struct Recording(pub Box<dyn std::any::Any + Send>);

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

/// The directions of level 3 at the updated head, see [`hypergradient`](crate::hypergradient).
#[derive(Clone, Debug)]
pub struct Direction {
    /// L_v of the batch.
    pub loss: f64,
    /// The task's figures on the validation batch.
    pub figures: Vec<f64>,
    /// v0 = ∂L_v/∂c, flat over c, in host memory.
    pub v0: Vec<f64>,
    /// v1 = D[v0; c; L_f; θ], flat over θ, zero on the decoder.
    pub v1: Vector,
    /// w = ∂L_v/∂θ, flat over θ, zero on the decoder.
    pub w: Vector,
    /// What a head in closed form gave, for the forms that have one.
    pub response: Option<Response>,
}

/// A head in closed form on the labelled batches, see [`ridge`](crate::tasks::ridge).
#[derive(Clone, Debug)]
pub struct Response {
    /// Its squared error on the validation batch.
    pub loss: f64,
    /// Share of the validation images that it classifies rightly.
    pub accuracy: f64,
    /// Features and targets of both batches, for the bank.
    pub rows: [Arc<Rows>; 2],
}

/// The point at which level 2 and the direction of level 3 are evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Downstream<'a> {
    /// θ, flat.
    pub theta: &'a Vector,
    /// c, flat: before level 2's step in [`Lane::finetune`], after it for the direction.
    pub c: &'a Vector,
    /// Batch F of level 2.
    pub finetune: LabelledImages<'a>,
    /// Batch V of level 3.
    pub validation: LabelledImages<'a>,
    /// Features of earlier batches, for the forms that have a head in closed form.
    pub bank: &'a Bank,
}

/// The point at which ∂L_m/∂φ is differentiated for the hypergradient.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// θ, flat.
    pub theta: &'a Vector,
    /// φ, flat.
    pub phi: &'a Vector,
    /// The last batch x_p of level 1, `[batch, C, H, W]`.
    pub images: &'a Vector,
    /// How x_p is masked.
    pub rule: &'a MaskRule,
    /// What the gradient goes through.
    pub estimator: Estimator,
    /// Whether [`Along::signal`](crate::hypergradient::Along::signal) is wanted, at the cost of two backward passes of
    /// the masking network.
    pub want_signal: bool,
}

/// One stage's handle to a device.
///
/// - **Memory.** Every [`Vector`] argument must be in memory of the lane's device, see [`Lane::upload`]; vectors of one
///   lane may be passed to every other lane of the device. Arguments are shared snapshots and must never be written: a
///   result is a new vector. Losses, figures, [`Scored`] and v0 are in host memory.
/// - **Threads.** A lane is used by one thread at a time, and may move to another between calls, with one exception:
///   see [`Lane::direction`]. Different lanes may run at the same time, and wait for each other where they share
///   threads.
/// - **Order.** A call may return before the device has finished a vector; whatever reads the vector later, on any lane
///   or by [`Vector::to_host`], must then wait for it.
/// - **Results** depend on the arguments alone, to the bit: not on threads, micro-batches ([`LaneSize`]) or timing.
/// - **Errors.** Besides those named, any method may fail with [`ModelError::Lane`] when the device fails, is out of
///   memory, or an argument is in memory of another device, and with the error of a [`Collective`] when another rank is
///   gone. Lengths that do not fit the networks are bugs of the caller: a lane may panic.
///
/// [`Collective`]: crate::parallel::collective::Collective
pub trait Lane: Send + fmt::Debug {
    /// The networks; the same for all lanes of a run.
    fn model(&self) -> &Arc<Model>;

    /// A lane of the same device and size for another worker of the stage; on the CPU it shares threads and memory.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    fn fork(&self) -> Result<Box<dyn Lane>, ModelError>;

    /// The vector in memory of the lane's device; shared, not copied, if it is there. Called for initial or restored
    /// weights and moments.
    /// All methods below take vectors that were brought there or came from a lane of the same [`Lanes`], moments of the
    /// optimizer and empty vectors among them.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    fn upload(&self, vector: &Vector) -> Result<Vector, ModelError>;

    /// The values `[batch, C, H, W]` of a batch's images in memory of the lane's device. Pixels become values there if
    /// the device [takes them raw](Device::takes_raw_images), else before; the bits are those of [`Images::to_values`]
    /// either way.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    fn ingest(&self, images: &Images) -> Result<Vector, ModelError> {
        match images {
            Images::Values(values) => self.upload(values),
            Images::Raw(raw) => self.upload(&raw.values().into()),
        }
    }

    /// Scores images `[batch, C, H, W]` at φ (where masks are learned) and masks them by `rule`. θ may be left out
    /// unless [`Masking::needs`](crate::masking::Masking::needs) is
    /// [`Needs::Embedding`](crate::masking::Needs::Embedding), or a teacher is read: then it is the teacher's.
    ///
    /// The result is in host memory: it goes to another stage, whose lane may have other micro-batches.
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

    /// L_m and ∂L_m/∂θ on the images `[batch, C, H, W]` that `scored` was made of, at the same φ. Where the masking
    /// network reads the patch embedding, the gradient has a second part, through the scores p.
    ///
    /// # Errors
    /// When the device fails, or the batch has no image.
    fn pretrain(
        &mut self,
        theta: &Vector,
        phi: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<PretrainGradient, ModelError>;

    /// L_f and ∂L_f/∂c on `at.finetune`, θ frozen (`at.validation` is not read). `noise` is the head's dropout. With
    /// `keep` the encoder's passes are recorded for [`Lane::direction`], so that it needs no second forward pass.
    ///
    /// # Errors
    /// When the device fails, or targets are not those of the task.
    fn finetune(
        &mut self,
        at: &Downstream<'_>,
        noise: Option<Noise>,
        keep: bool,
    ) -> Result<FinetuneGradient, ModelError>;

    /// L_v, v0, v1 and w at the updated c, `at.c`, without dropout: v1 by one backward pass over what
    /// [`Lane::finetune`] recorded on this lane with the same θ and finetune batch, w by a pass over `at.validation`.
    /// The step of the difference over c is ε = `alpha`/‖v0‖₂.
    ///
    /// On the CPU without a thread pool it must be called on the thread that called [`Lane::finetune`], where the tapes
    /// are.
    ///
    /// # Errors
    /// When the device fails, targets are not those of the task, or the recording is of another lane or thread.
    fn direction(&mut self, at: &Downstream<'_>, recorded: Recording, alpha: f64) -> Result<Direction, ModelError>;

    /// As [`Lane::direction`], by the passes of the published program: one over the validation batch with dropout
    /// `noise(1)`, and one over the finetune batch at c + εv0 and at c − εv0 each, with `noise(2)` and `noise(3)`.
    ///
    /// # Errors
    /// When the device fails, or targets are not those of the task.
    fn direction_published(
        &mut self,
        at: &Downstream<'_>,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError>;

    /// Gradients for θ `[finetune, validation]`, each flat and zero on the decoder, of a function of the taps of both
    /// labelled batches, which gives their cotangents: one backward pass over what [`Lane::finetune`] recorded on this
    /// lane with the same θ and finetune batch, one over `at.validation`. For several ranks the function sees the taps
    /// of all ranks' images and returns cotangents for them all.
    ///
    /// On the CPU without a thread pool it must be called on the thread that called [`Lane::finetune`].
    ///
    /// # Errors
    /// Those of the function; when the device fails, or the recording is of another lane or thread.
    fn pull_back(
        &mut self,
        at: &Downstream<'_>,
        recorded: Recording,
        cotangents: &mut TapCotangents<'_>,
    ) -> Result<[Vector; 2], ModelError>;

    /// x / (√v̂ + eps) with v̂ = v/(1 − β₂ᵗ): a direction in the metric of AdamW at its second moment `v` after t = `step`
    /// steps. `x` and `v` are of one length.
    ///
    /// # Errors
    /// When the device fails.
    fn preconditioned(&mut self, x: &Vector, v: &Vector, step: u64, adamw: &AdamWConfig) -> Result<Vector, ModelError>;

    /// dℓ/dv `[batch, L]`, the derivatives of the patch losses of images `[batch, C, H, W]` along v (flat over θ, zero
    /// on the decoder) under the masks of `scored`, by forward-mode differentiation; in host memory.
    ///
    /// # Errors
    /// When the device fails.
    fn patch_loss_tangents(
        &mut self,
        theta: &Vector,
        v: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<Vec<f32>, ModelError>;

    /// ∂F/∂φ, flat, of a function of the scores of `scored`, which this lane made at `phi`, from its gradient
    /// `dscores` = ∂F/∂p `[batch, L]`; the sum over all ranks.
    ///
    /// # Errors
    /// When the device fails.
    fn mask_gradient(&mut self, phi: &Vector, scored: &Scored, dscores: &[f32]) -> Result<Vector, ModelError>;

    /// This rank's number among the ranks of the run.
    fn rank(&self) -> usize {
        0
    }

    /// Ranks of the run.
    fn num_ranks(&self) -> usize {
        1
    }

    /// `values` of all ranks, by rank.
    ///
    /// # Errors
    /// When another rank is gone.
    fn gather(&mut self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(values)
    }

    /// D[v; θ; L_m; φ] (see [`hypergradient`](crate::hypergradient)) at `at`, flat over φ, with ε = `alpha`/‖v‖₂; zero
    /// for v = 0. v is flat over θ and zero on the decoder. The images are scored and masked anew at θ ± εv.
    ///
    /// # Errors
    /// When the device fails.
    fn difference(&mut self, at: &Upstream<'_>, v: &Vector, alpha: f64) -> Result<Vector, ModelError>;

    /// D[v; θ; L_m; φ] as ε → 0, by forward-mode differentiation; v is zero on the decoder.
    ///
    /// # Errors
    /// When the device fails, or the masking has no derivative along its input.
    fn tangent(&mut self, at: &Upstream<'_>, v: &Vector) -> Result<Vector, ModelError>;

    /// One AdamW step with learning rate `rate`: the new values of a parameter set, in a vector of their own, so that
    /// the old ones stay a snapshot. Advances the moments and the step of `adamw`, whose moments must be in memory of
    /// the device. Frozen weights keep their values.
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

    /// Patch losses ℓ `[batch, L]` of images `[batch, C, H, W]` under the masks of `scored`, as in
    /// [`PretrainGradient::patch_loss`], by a forward pass alone.
    ///
    /// # Errors
    /// When the device fails.
    fn patch_losses(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vector, ModelError>;

    /// Reconstructed patches `[batch·L, P·P·C]` of images `[batch, C, H, W]` under the masks of `scored`, for pictures.
    /// Values have the order (row, column, channel), and units of the normalised target: each patch less its mean,
    /// divided by its standard deviation.
    ///
    /// # Errors
    /// When the device fails.
    fn reconstruct(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vec<f32>, ModelError>;

    /// CLS tokens after the encoder's final norm, `[batch, dim]`, of all patches of images `[batch, C, H, W]`, for
    /// evaluations.
    ///
    /// # Errors
    /// When the device fails.
    fn features(&mut self, theta: &Vector, images: &Vector) -> Result<Vec<f32>, ModelError>;

    /// θ + ε·v for a v that is zero on the decoder, which is copied.
    ///
    /// # Errors
    /// When the device fails.
    fn shifted(&mut self, theta: &Vector, v: &Vector, epsilon: f64) -> Result<Vector, ModelError>;

    /// a·x + b·y for vectors of one length.
    ///
    /// # Errors
    /// When the device fails.
    fn combined(&mut self, a: f64, x: &Vector, b: f64, y: &Vector) -> Result<Vector, ModelError>;

    /// x + y for vectors of one length.
    ///
    /// # Errors
    /// When the device fails.
    fn sum(&mut self, x: &Vector, y: &Vector) -> Result<Vector, ModelError>;

    /// The values of x in `range`, in host memory.
    ///
    /// # Errors
    /// When the device fails.
    fn values(&mut self, x: &Vector, range: Range<usize>) -> Result<Vec<f32>, ModelError>;

    /// ‖x‖₂.
    ///
    /// # Errors
    /// When the device fails.
    fn norm(&mut self, x: &Vector) -> Result<f64, ModelError>;

    /// Cosine of the angle between two vectors of one length; 0 where one of them is zero.
    ///
    /// # Errors
    /// When the device fails.
    fn cosine(&mut self, x: &Vector, y: &Vector) -> Result<f64, ModelError>;

    /// Index and value of the first value that is not finite; none if all are.
    ///
    /// # Errors
    /// When the device fails.
    fn first_non_finite(&mut self, x: &Vector) -> Result<Option<(usize, f32)>, ModelError>;

    /// Nanoseconds for which the device itself has worked for this lane since the last call, as its own clock has them;
    /// none where the lane's time is the host's, as on the CPU. Must not wait for the device.
    fn device_ns(&mut self) -> Option<u64> {
        None
    }

    /// Operations of the products that the lane has given to its device since the last call; none where those of the
    /// process are counted together, as on the CPU by [`flops`](mlomae_kernels::flops).
    fn flops(&mut self) -> Option<u64> {
        None
    }

    /// The most bytes that all lanes of the process have taken of the device's own memory; none where the device
    /// computes in host memory.
    fn device_peak_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes that the lane's memory pool has ever taken from the system, constant once training has warmed up. Lanes of
    /// a run may share one pool, and then report the same bytes.
    fn allocated_bytes(&self) -> u64;
}

/// Threads and micro-batch of one stage's lane. Neither changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSize {
    /// Compute threads on the CPU; other devices ignore it.
    pub num_threads: usize,
    /// Images that are computed at a time, by one thread of the CPU; an upper bound, see
    /// [`Compute::with_micro_batch`](crate::Compute::with_micro_batch).
    pub micro_batch: usize,
}

/// What [`Device::lanes`] needs to know of a run.
#[derive(Clone, Debug)]
pub struct LanesSpec {
    /// The networks.
    pub model: Arc<Model>,
    /// Host memory pool of the run.
    pub arena: Arena,
    /// Images of a grain, the unit of every sum (see [`parallel`](crate::parallel)); it decides rounding.
    pub grain: usize,
    /// Precision of the networks' products.
    pub precision: Precision,
    /// Whether the levels never compute at the same time (policy lag 0), so that they may share threads.
    pub take_turns: bool,
    /// Of the scorer. Level 1 waits for it where scores need the newest θ.
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

/// Memory of a device beside what a run will take of it, see [`Device::memory_bound`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemoryBound {
    /// Bytes that the run takes at most, about.
    pub needed_bytes: u64,
    /// Bytes that the device has free now.
    pub available_bytes: u64,
}

/// What [`Device::memory_bound`] needs to know of a run.
#[derive(Clone, Copy, Debug)]
pub struct MemorySpec<'a> {
    /// The networks.
    pub model: &'a Model,
    /// Images of each level's batch.
    pub batch: PerLevel<usize>,
    /// `pipeline.lag`: how many outer iterations snapshots may be old, and whether the levels overlap.
    pub lag: u64,
    /// Whether level 3 trains branches of the encoder, see [`search`](crate::search).
    pub has_branches: bool,
    /// Whether level 3 differentiates in forward mode, which keeps derivatives beside the activations.
    pub is_tangent: bool,
    /// Precision of the networks' products.
    pub precision: Precision,
}

/// A device as an entry of [`DEVICES`](super::DEVICES).
pub trait Device: Named {
    /// Why the device cannot be used on this machine, as one line for the user; none if it can. Must be cheap and claim
    /// nothing: it is for checking a configuration.
    fn problem(&self) -> Option<String>;

    /// The device on this machine in a few words, for the start of a run and for `run.json`: its model, its driver and
    /// the libraries that decide how results are rounded. A run that goes on where this is another text is told. Empty
    /// where there is nothing to tell apart: what the CPU rounds by is its instruction set, which is recorded by
    /// itself.
    fn description(&self) -> String {
        String::new()
    }

    /// Whether it computes with the threads and in the memory of the host, so that both are what bounds it.
    fn is_host(&self) -> bool {
        false
    }

    /// Whether images should come to [`Lane::ingest`] as bytes with what is left to do (see
    /// [`RawImages`](crate::RawImages)): for a device to which the way is long, and that normalises them itself.
    fn takes_raw_images(&self) -> bool {
        false
    }

    /// What a run takes of the device's own memory, beside what is free there; none where the device computes in host
    /// memory, or its memory cannot be asked for. An estimate from above, made without allocating anything.
    fn memory_bound(&self, spec: &MemorySpec<'_>) -> Option<DeviceMemoryBound> {
        let _ = spec;
        None
    }

    /// Why the device cannot compute in `precision`, as one line for the user that says which it can; none if it can.
    fn refuses(&self, precision: Precision) -> Option<String>;

    /// Why the device cannot compute networks of these shapes, as one line for the user; none if it can.
    fn unfit(&self, config: &ModelConfig) -> Option<String> {
        let _ = config;
        None
    }

    /// The lanes of a run. They may share threads, streams and memory as `spec` allows, but no result may depend on it.
    ///
    /// # Errors
    /// When threads cannot be started or the device cannot be opened.
    fn lanes(&self, spec: &LanesSpec) -> Result<Lanes, ModelError>;

    /// A single lane, for evaluations and pictures. It reads vectors of the other lanes of the device.
    ///
    /// # Errors
    /// As [`Device::lanes`].
    fn lane(
        &self,
        model: &Arc<Model>,
        arena: &Arena,
        grain: usize,
        precision: Precision,
        size: LaneSize,
    ) -> Result<Box<dyn Lane>, ModelError>;
}
