//! The score stage: patch scores and the masks that follow from them.

use std::sync::Arc;

use mlomae_model::levels::hypergradient;
use mlomae_model::levels::scoring::{random, score};
use mlomae_model::{Buffer, Compute, Params};

use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::slot::{SlotError, SlotReader};
use crate::flow::stage::{Flow, Interrupt, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{ImageBatch, ScoredBatch};
use crate::record::Recorder;

/// What the control `multitask` leaves on the encoder: θ ← θ − δ, where δ is the sum of the perturbations ε·v that the finite
/// differences end with.
#[derive(Debug, Clone)]
pub struct Shift(pub Params);

impl Shift {
    /// θ after the shift.
    #[must_use]
    pub fn apply(&self, compute: &Compute, method: &Method, theta: &Params) -> Params {
        Arc::new(hypergradient::shifted(compute, &method.model, theta, &self.0, -1.0))
    }
}

/// Input of one scoring.
#[derive(Debug, Clone)]
pub struct ScoreInput {
    /// The images.
    pub batch: ImageBatch,
    /// The policy φ.
    pub phi: Params,
    /// Its version.
    pub policy_version: u64,
    /// θ, where the masking network reads the patch embedding.
    pub theta: Option<Params>,
    /// A shift that the encoder will apply before this step.
    pub shift: Option<Shift>,
}

/// The score stage. Its units are level-1 steps; it has no state that matters.
#[derive(Debug, Clone)]
pub struct ScoreStage {
    method: Method,
    compute: Compute,
}

impl ScoreStage {
    /// A scorer. The workers' stages are clones of one.
    #[must_use]
    pub const fn new(method: Method, compute: Compute) -> Self {
        Self { method, compute }
    }
}

impl Stage for ScoreStage {
    type In = ScoreInput;
    type Out = ScoredBatch;
    type Log = Recorder;
    const NAME: StageName = StageName::Score;

    fn process(&mut self, step: u64, input: ScoreInput, _: &mut Recorder) -> Result<ScoredBatch, StageError> {
        let ScoreInput { batch, phi, policy_version, theta, shift } = input;
        let masker = self.method.masker(step);
        let model = &self.method.model;
        let scored = if self.method.baseline {
            random(model, batch.len(), &masker)
        } else {
            let theta = match (theta, shift) {
                (Some(theta), Some(shift)) => shift.apply(&self.compute, &self.method, &theta),
                (Some(theta), None) => theta,
                // Pixels are scored: θ is not looked at.
                (None, _) => phi.clone(),
            };
            score(&self.compute, model, &theta, &phi, &batch.images, &masker)
        };
        Ok(ScoredBatch { batch, scored, masker, phi, policy_version })
    }

    fn sample_ids(&mut self, _: u64, input: &ScoreInput) -> Vec<i64> {
        input.batch.ids.to_vec()
    }
}

/// The ports of one score worker.
#[derive(Debug)]
pub struct ScorePorts {
    /// Worker number.
    pub worker: u64,
    /// Workers of the stage.
    pub num_workers: u64,
    /// The method: which versions to wait for.
    pub method: Method,
    /// Pretrain batches.
    pub batches: OrderedReceiver<Flow<ImageBatch>>,
    /// Policies by version.
    pub phi: SlotReader<Buffer>,
    /// θ by level-1 steps done, where scores need it.
    pub theta: Option<SlotReader<Buffer>>,
    /// Shifts by policy version, where the control `multitask` is on.
    pub shift: Option<SlotReader<Option<Shift>>>,
    /// To the encoder.
    pub scored: OrderedSender<Flow<ScoredBatch>>,
}

/// A slot's error as an interrupt of `stage`.
pub(super) fn slot_interrupt(stage: StageName) -> impl Fn(SlotError) -> Interrupt {
    move |error| match error {
        SlotError::Halted(halt) => Interrupt::Halt(halt),
        evicted @ SlotError::Evicted { .. } => {
            Interrupt::Error(StageError::Internal { stage, message: evicted.to_string() })
        }
    }
}

/// The shift to apply before level-1 step `step`: the one that came with the policy which this outer iteration is the first to use.
pub(super) fn shift_before(
    method: &Method,
    step: u64,
    slot: Option<&SlotReader<Option<Shift>>>,
    context: &WaitContext,
) -> Result<Option<Shift>, SlotError> {
    let outer = step / method.unroll;
    let version = method.policy_version(outer);
    let Some(slot) = slot.filter(|_| step.is_multiple_of(method.unroll) && version > 0) else { return Ok(None) };
    Ok(slot.wait(version, context)?.as_ref().clone())
}

impl Wiring<ScoreStage> for ScorePorts {
    fn owns(&self, step: u64) -> bool {
        step % self.num_workers == self.worker
    }

    fn receive(&mut self, step: u64, heed: StopLevel, context: &WaitContext) -> Result<Flow<ScoreInput>, Interrupt> {
        let batch = match self.batches.recv_heeding(step, heed, context)? {
            Flow::Item(batch) => batch,
            Flow::Lost(lost) => return Ok(Flow::Lost(lost)),
        };
        let refused = slot_interrupt(StageName::Score);
        let policy_version = self.method.policy_version(step / self.method.unroll);
        let phi = self.phi.wait(policy_version, context).map_err(&refused)?;
        let theta = match &self.theta {
            Some(slot) => Some(slot.wait(step, context).map_err(&refused)?),
            None => None,
        };
        let shift = shift_before(&self.method, step, self.shift.as_ref(), context).map_err(&refused)?;
        Ok(Flow::Item(ScoreInput { batch, phi, policy_version, theta, shift }))
    }

    fn send(&mut self, step: u64, output: Flow<ScoredBatch>, context: &WaitContext) -> Result<usize, Interrupt> {
        let bytes = output.size_bytes();
        self.scored.send(step, output, context)?;
        Ok(bytes)
    }
}
