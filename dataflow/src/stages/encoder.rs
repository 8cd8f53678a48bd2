//! The encoder stage: level 1, and the snapshots that levels 2 and 3 work on.

use std::sync::Arc;
use std::time::Instant;

use mlomae_model::lane::{Lane, PretrainGradient};
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::{Level as TrainLevel, ModelError, Vector};

use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::slot::{SlotReader, SlotWriter};
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{Panel, ScoredBatch, Snapshot};
use crate::record::memory::process_memory;
use crate::record::statistics::{MaskHistory, MaskStatistics, ObjectStatistics, check_loss, check_vector, internal};
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, MaskRow, Metric, PartOf, Recorder};
use crate::stages::score::{Shift, shift_before, slot_interrupt};

/// Input of one level-1 step.
#[derive(Debug, Clone)]
pub struct EncoderInput {
    /// The batch with its masks.
    pub scored: ScoredBatch,
    /// The control `multitask`'s shift, applied before the step.
    pub shift: Option<Shift>,
}

/// Output of one level-1 step.
#[derive(Debug, Clone)]
pub struct EncoderOutput {
    /// θ after the step.
    pub theta: Vector,
    /// After the last step of an outer iteration: what levels 2 and 3 need, or what was lost of it.
    pub snapshot: Option<Flow<Snapshot>>,
}

/// The encoder stage. Its units are level-1 steps.
pub struct EncoderStage {
    method: Method,
    lane: Box<dyn Lane>,
    theta: Vector,
    optimizer: AdamW,
    last: Option<Arc<ScoredBatch>>,
    panel: Panel,
    history: MaskHistory,
    last_step_at: Option<Instant>,
}

impl EncoderStage {
    /// An encoder at `theta` with its optimizer's state and what is known of its masks; the masks of `panel` are
    /// logged.
    #[must_use]
    pub fn new(
        method: Method,
        lane: Box<dyn Lane>,
        theta: Vector,
        optimizer: AdamW,
        history: MaskHistory,
        panel: Panel,
    ) -> Self {
        Self { method, lane, theta, optimizer, last: None, panel, history, last_step_at: None }
    }

    /// The newest θ.
    #[must_use]
    pub const fn theta(&self) -> &Vector {
        &self.theta
    }

    fn is_last(&self, step: u64) -> bool {
        (step + 1).is_multiple_of(self.method.unroll)
    }

    /// What leaves after step `step`.
    fn output(&mut self, step: u64, lost: Option<Lost>, recorder: &mut Recorder) -> EncoderOutput {
        let mut snapshot = None;
        if self.is_last(step) {
            let outer = step / self.method.unroll;
            snapshot = Some(match (self.last.take(), lost) {
                (Some(last), _) => Flow::Item(Snapshot { outer, theta: self.theta.clone(), last }),
                (None, lost) => Flow::Lost(lost.unwrap_or_else(|| Lost {
                    stage: StageName::Encoder,
                    sample_ids: Vec::new(),
                    message: "no batch of the outer iteration is left".into(),
                })),
            });
            // Before the snapshot leaves, so that the stages behind know of it when it reaches them.
            self.method.checkpoint_request.take(outer + 1);
            if self.method.checkpoint_due(outer + 1) {
                self.part(outer + 1, recorder);
            }
        }
        EncoderOutput { theta: self.theta.clone(), snapshot }
    }

    fn part(&self, outer: u64, recorder: &mut Recorder) {
        let layout = self.method.model.layout(TrainLevel::Pretrain);
        let mut tensors = vec![FlatTensors::new(CheckpointFile::Model, "", layout, self.theta.clone())];
        tensors.extend(FlatTensors::moments(TrainLevel::Pretrain, layout, &self.optimizer));
        recorder.part(CheckpointPart {
            outer,
            step: outer * self.method.unroll,
            part: PartOf::Encoder,
            tensors,
            state: serde_json::json!({ "adamw_step": self.optimizer.step, "masks": self.history.to_json() }),
        });
    }

    fn record_step(
        &mut self,
        step: u64,
        batch: &ScoredBatch,
        result: &PretrainGradient,
        rate: f64,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let seconds = self.last_step_at.replace(Instant::now()).map(|at| at.elapsed().as_secs_f64());
        let change = self.history.add(&batch.batch.ids, &batch.scored.order);
        let scores = batch.scored.weights().map(MaskStatistics::of_scores);
        if let Some((_, saturation)) = scores
            && self.history.saturation.has_become_saturated(saturation)
        {
            tracing::warn!(
                kind = "scores_saturated",
                stage = %StageName::Encoder,
                step = step + 1,
                "scores have saturated, so masks hardly change any more; lower policy.lr, raise mask.explore or \
                 set mask.input to \"pixels\": {:.0} % of them lie outside 0.02..0.98",
                100.0 * saturation
            );
        }
        if !self.method.metrics_due(step + 1, 1) {
            return Ok(());
        }
        let gradient_norm = self.lane.norm(&result.gradient)?;
        let moment = self.method.moment(step + 1, Level::Pretrain);
        let mut metric = |name: &'static str, value: f64, unit| recorder.metric(moment, name, value, "pretrain", unit);
        metric("loss", result.loss, "1");
        metric("lr", rate, "1");
        metric("grad_norm", gradient_norm, "1");
        if let Some((entropy, saturation)) = scores {
            metric("score_entropy", entropy, "nat");
            metric("score_saturation", saturation, "share");
        }
        let (lowest, highest) = self.history.statistics.coverage();
        metric("mask_coverage_min", lowest, "share");
        metric("mask_coverage_max", highest, "share");
        if let Some(share) = change.share() {
            metric("mask_change", share, "share");
        }
        metric(
            "policy_lag",
            (step / self.method.unroll).saturating_sub(batch.policy_version) as f64,
            "outer iterations",
        );
        if let Some((resident, peak)) = self.is_last(step).then(process_memory).flatten() {
            metric("memory_resident", resident as f64, "bytes");
            metric("memory_peak", peak as f64, "bytes");
        }
        if let Some(seconds) = seconds {
            metric("images_per_second", batch.batch.len() as f64 / seconds, "images/s");
        }
        Ok(())
    }

    /// Scores, masks and reconstructs the panel at the newest θ and the policy that was in use.
    fn record_panel(
        &mut self,
        step: u64,
        phi: &Vector,
        policy_version: u64,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let Panel { batch: panel, objects } = &self.panel;
        if panel.is_empty() {
            return Ok(());
        }
        let (model, lane) = (&self.method.model, &mut *self.lane);
        // The panel's exploration and random masks are the same each time, so that only the policy makes a difference.
        let rule = self.method.mask_rule(u64::MAX);
        let images = lane.upload(&panel.images)?;
        let scored = lane.score(Some(&self.theta), phi, &images, &rule)?;
        let losses = lane.patch_losses(&self.theta, &images, &scored)?.to_host()?;
        let (num_patches, grid) = (model.config.num_patches(), model.config.grid() as i16);
        let side = model.config.grid();
        for (position, share) in self.history.statistics.coverage_by_position().iter().enumerate() {
            let name = Metric::mask_coverage_at(position / side, position % side);
            recorder.metric(self.method.moment(step + 1, Level::Pretrain), name, *share, "pretrain", "share");
        }
        if let Some(objects) = objects {
            let masked: Vec<bool> = (0..objects.len()).map(|patch| scored.order.is_masked(patch)).collect();
            let found = ObjectStatistics::of(objects, &masked, scored.weights(), num_patches);
            let moment = self.method.moment(step + 1, Level::Mask);
            for (name, value, unit) in [
                ("object_score_auc", found.score_auc, "1"),
                ("object_mask_share", found.object_share, "share"),
                ("background_mask_share", found.background_share, "share"),
            ] {
                if let Some(value) = value {
                    recorder.metric(moment, name, value, "validation", unit);
                }
            }
        }
        for (image, &id) in panel.ids.iter().enumerate() {
            let place = image * num_patches..(image + 1) * num_patches;
            let row = MaskRow {
                sample_id: id,
                label: panel.targets.class(image),
                policy_version: policy_version.cast_signed(),
                mask_ratio: scored.order.num_masked() as f32 / num_patches as f32,
                mask: place.clone().map(|i| scored.order.is_masked(i)).collect(),
                score: Some(scored.weights().map_or_else(|| vec![1.0; num_patches], |w| w[place.clone()].to_vec())),
                patch_loss: Some(losses[place].to_vec()),
                grid_h: grid,
                grid_w: grid,
            };
            recorder.row(self.method.moment(step + 1, Level::Pretrain), row);
        }
        Ok(())
    }
}

impl Stage for EncoderStage {
    type In = EncoderInput;
    type Out = EncoderOutput;
    type Log = Recorder;
    const NAME: StageName = StageName::Encoder;

    fn process(
        &mut self,
        step: u64,
        input: EncoderInput,
        recorder: &mut Recorder,
    ) -> Result<EncoderOutput, StageError> {
        let EncoderInput { scored: batch, shift } = input;
        let failed = internal(StageName::Encoder);
        if let Some(shift) = shift {
            self.theta = shift.apply(&mut *self.lane, &self.theta).map_err(&failed)?;
        }
        let result =
            self.lane.pretrain(&self.theta, &batch.phi, &batch.batch.images, &batch.scored).map_err(&failed)?;
        check_loss("pretrain", step, result.loss)?;
        let layout = self.method.model.layout(TrainLevel::Pretrain);
        check_vector(&mut *self.lane, "pretrain", step, "gradient", &result.gradient, layout)?;
        let rate = self.method.rate(TrainLevel::Pretrain, step);
        self.theta = self.lane.update(&mut self.optimizer, &self.theta, &result.gradient, rate).map_err(&failed)?;
        self.record_step(step, &batch, &result, rate, recorder).map_err(&failed)?;
        let every = self.method.masks_every_steps;
        if every > 0 && (step + 1).is_multiple_of(every) {
            self.record_panel(step, &batch.phi, batch.policy_version, recorder).map_err(&failed)?;
        }
        self.last = Some(Arc::new(batch));
        Ok(self.output(step, None, recorder))
    }

    fn skip(&mut self, step: u64, lost: Lost, recorder: &mut Recorder) -> Result<Flow<EncoderOutput>, StageError> {
        Ok(Flow::Item(self.output(step, Some(lost), recorder)))
    }

    fn sample_ids(&mut self, _: u64, input: &EncoderInput) -> Vec<i64> {
        input.scored.batch.ids.to_vec()
    }

    fn may_stop_before(&self, step: u64) -> bool {
        step.is_multiple_of(self.method.unroll)
    }

    fn finish(&mut self, next_step: u64, recorder: &mut Recorder) -> Result<(), StageError> {
        self.part(next_step / self.method.unroll, recorder);
        Ok(())
    }
}

/// The ports of the encoder.
#[derive(Debug)]
pub struct EncoderPorts {
    /// The method.
    pub method: Method,
    /// From the scorer.
    pub scored: OrderedReceiver<Flow<ScoredBatch>>,
    /// Shifts by policy version, where the control `multitask` is on.
    pub shift: Option<SlotReader<Option<Shift>>>,
    /// θ by level-1 steps done, where scores need it.
    pub theta: Option<SlotWriter<Vector>>,
    /// To the evaluator.
    pub snapshots: OrderedSender<Flow<Snapshot>>,
}

impl Wiring<EncoderStage> for EncoderPorts {
    fn receive(&mut self, step: u64, heed: StopLevel, context: &WaitContext) -> Result<Flow<EncoderInput>, Interrupt> {
        let scored = self.scored.recv_heeding(step, heed, context)?;
        let shift = shift_before(&self.method, step, self.shift.as_ref(), context)
            .map_err(slot_interrupt(StageName::Encoder))?;
        Ok(scored.map(|scored| EncoderInput { scored, shift }))
    }

    fn send(&mut self, step: u64, output: Flow<EncoderOutput>, context: &WaitContext) -> Result<usize, Interrupt> {
        let Flow::Item(output) = output else { return Ok(0) };
        if let Some(slot) = &mut self.theta {
            slot.publish(step + 1, Arc::new(output.theta));
        }
        let Some(snapshot) = output.snapshot else { return Ok(0) };
        let bytes = snapshot.size_bytes();
        self.snapshots.send(step / self.method.unroll, snapshot, context)?;
        Ok(bytes)
    }
}
