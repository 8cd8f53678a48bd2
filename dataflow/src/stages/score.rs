//! The score stage: patch scores and the masks that follow from them.

use mlomae_model::lane::Lane;
use mlomae_model::masking::MaskRule;
use mlomae_model::search::Policy;
use mlomae_model::{ModelError, Vector};

use crate::counts::{Step, Version};
use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::slot::{SlotError, SlotReader};
use crate::flow::stage::{Flow, Interrupt, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{ImageBatch, ScoredBatch};
use crate::record::Recorder;
use crate::record::statistics::internal;

/// What a control leaves on the encoder: θ ← θ − δ. For `multitask` δ is the sum of the perturbations ε·v that the
/// finite differences end with, for `supervised` a step of AdamW along v.
#[derive(Debug, Clone)]
pub struct Shift(pub Vector);

impl Shift {
    /// θ after the shift.
    ///
    /// # Errors
    /// When the lane fails.
    pub fn apply(&self, lane: &mut dyn Lane, theta: &Vector) -> Result<Vector, ModelError> {
        lane.shifted(theta, &self.0, -1.0)
    }
}

/// Input of one scoring.
#[derive(Debug, Clone)]
pub struct ScoreInput {
    /// The images.
    pub batch: ImageBatch,
    /// The policy.
    pub policy: Policy,
    /// Its version.
    pub policy_version: Version,
    /// θ, where the masking network reads the patch embedding, or the teacher, where the masking reads it.
    pub theta: Option<Vector>,
    /// A shift that the encoder will apply before this step.
    pub shift: Option<Shift>,
}

/// The score stage. Its units are level-1 steps; it has no state that matters.
#[derive(Debug)]
pub struct ScoreStage {
    method: Method,
    /// The worker's lane, or why it has none.
    lane: Result<Box<dyn Lane>, String>,
}

impl ScoreStage {
    /// A scorer. The workers' stages are clones of one.
    #[must_use]
    pub const fn new(method: Method, lane: Box<dyn Lane>) -> Self {
        Self { method, lane: Ok(lane) }
    }
}

impl Clone for ScoreStage {
    fn clone(&self) -> Self {
        let lane = self.lane.as_ref().map_err(Clone::clone);
        let lane = lane.and_then(|lane| lane.fork().map_err(|error| error.to_string()));
        Self { method: self.method.clone(), lane }
    }
}

impl Stage for ScoreStage {
    type In = ScoreInput;
    type Out = ScoredBatch;
    type Log = Recorder;
    const NAME: StageName = StageName::Score;

    fn process(&mut self, unit: u64, input: ScoreInput, _: &mut Recorder) -> Result<ScoredBatch, StageError> {
        let ScoreInput { batch, policy: Policy { phi, is_random }, policy_version, theta, shift } = input;
        let missing = |message: &mut String| StageError::Internal { stage: StageName::Score, message: message.clone() };
        let lane = &mut **self.lane.as_mut().map_err(missing)?;
        let rule = MaskRule { objects: batch.objects.clone(), is_random, ..self.method.mask_rule(Step(unit)) };
        let scored = (|| {
            let theta = match (theta, shift) {
                (Some(theta), Some(shift)) => Some(shift.apply(lane, &theta)?),
                (theta, _) => theta,
            };
            let batch = batch.ingested(lane)?;
            let scored = lane.score(theta.as_ref(), &phi, &batch.images, &rule)?;
            Ok((batch, scored))
        })();
        let (batch, scored) = scored.map_err(internal(StageName::Score))?;
        Ok(ScoredBatch { batch, scored, rule, phi, policy_version })
    }

    fn device_ns(&mut self) -> Option<u64> {
        self.lane.as_mut().ok()?.device_ns()
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
    pub policy: SlotReader<Policy>,
    /// θ by level-1 steps done or the teacher by its versions, where scores need one of them.
    pub theta: Option<SlotReader<Vector>>,
    /// Shifts by policy version, where a control shifts the encoder.
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

/// The shift to apply before level-1 step `step`: the one that came with the policy which this outer iteration is the
/// first to use.
pub(super) fn shift_before(
    method: &Method,
    step: Step,
    slot: Option<&SlotReader<Option<Shift>>>,
    context: &WaitContext,
) -> Result<Option<Shift>, SlotError> {
    let version = method.policy_version(step.outer(method.unroll));
    let is_its_first = step.is_first_of_outer(method.unroll) && !version.is_initial();
    let Some(slot) = slot.filter(|_| is_its_first) else { return Ok(None) };
    Ok(slot.wait(version.0, context)?.as_ref().clone())
}

impl Wiring<ScoreStage> for ScorePorts {
    fn owns(&self, unit: u64) -> bool {
        unit % self.num_workers == self.worker
    }

    fn receive(&mut self, unit: u64, heed: StopLevel, context: &WaitContext) -> Result<Flow<ScoreInput>, Interrupt> {
        let batch = match self.batches.recv_heeding(unit, heed, context)? {
            Flow::Item(batch) => batch,
            Flow::Lost(lost) => return Ok(Flow::Lost(lost)),
        };
        let step = Step(unit);
        let refused = slot_interrupt(StageName::Score);
        let policy_version = self.method.policy_version(step.outer(self.method.unroll));
        let policy = self.policy.wait(policy_version.0, context).map_err(&refused)?.as_ref().clone();
        let theta = match &self.theta {
            Some(slot) => {
                Some(slot.wait(self.method.weights_version(step), context).map_err(&refused)?.as_ref().clone())
            }
            None => None,
        };
        let shift = shift_before(&self.method, step, self.shift.as_ref(), context).map_err(&refused)?;
        Ok(Flow::Item(ScoreInput { batch, policy, policy_version, theta, shift }))
    }

    fn send(&mut self, unit: u64, output: Flow<ScoredBatch>, context: &WaitContext) -> Result<usize, Interrupt> {
        let bytes = output.size_bytes();
        self.scored.send(unit, output, context)?;
        Ok(bytes)
    }
}
