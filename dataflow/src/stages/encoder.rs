//! The encoder stage: level 1, and the snapshots that levels 2 and 3 work on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::levels::{hypergradient, pretrain, scoring};
use mlomae_model::{Buffer, Compute, ParamSet, Params};

use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::slot::{SlotReader, SlotWriter};
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{Panel, ScoredBatch, Snapshot};
use crate::record::memory::process_memory;
use crate::record::statistics::{
    MaskStatistics, ObjectStatistics, SaturationWatch, check_loss, check_vector, internal,
};
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, MaskRecord, PartOf, RecordBody, Recorder};
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
    pub theta: Params,
    /// After the last step of an outer iteration: what levels 2 and 3 need, or what was lost of it.
    pub snapshot: Option<Flow<Snapshot>>,
}

/// The encoder stage. Its units are level-1 steps.
pub struct EncoderStage {
    method: Method,
    compute: Compute,
    theta: Params,
    optimizer: AdamW,
    last: Option<Arc<ScoredBatch>>,
    panel: Panel,
    statistics: MaskStatistics,
    saturation: SaturationWatch,
    previous_masks: HashMap<i64, Vec<bool>>,
    last_step_at: Option<Instant>,
}

impl EncoderStage {
    /// An encoder at `theta` with its optimizer's state; the masks of `panel` are logged.
    #[must_use]
    pub fn new(method: Method, compute: Compute, theta: Params, optimizer: AdamW, panel: Panel) -> Self {
        Self {
            method,
            compute,
            theta,
            optimizer,
            last: None,
            panel,
            statistics: MaskStatistics::default(),
            saturation: SaturationWatch::default(),
            previous_masks: HashMap::new(),
            last_step_at: None,
        }
    }

    /// The newest θ.
    #[must_use]
    pub const fn theta(&self) -> &Params {
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
        let layout = self.method.model.layout(ParamSet::Pretrain);
        let mut tensors = vec![FlatTensors::new(CheckpointFile::Model, "", layout, self.theta.clone())];
        tensors.extend(FlatTensors::moments("pretrain", layout, &self.optimizer));
        recorder.part(CheckpointPart {
            outer,
            step: outer * self.method.unroll,
            part: PartOf::Encoder,
            tensors,
            state: serde_json::json!({ "adamw_step": self.optimizer.step }),
        });
    }

    fn record_step(
        &mut self,
        step: u64,
        batch: &ScoredBatch,
        result: &pretrain::PretrainGradient,
        rate: f64,
        recorder: &mut Recorder,
    ) {
        let seconds = self.last_step_at.replace(Instant::now()).map(|at| at.elapsed().as_secs_f64());
        let order = &batch.scored.order;
        let masks = (0..order.batch()).map(|image| {
            (image * order.num_patches..(image + 1) * order.num_patches)
                .map(|i| order.is_masked(i))
                .collect::<Vec<bool>>()
        });
        let (mut num_changed, mut num_seen) = (0, 0);
        for (id, mask) in batch.batch.ids.iter().zip(masks) {
            self.statistics.add_mask(&mask);
            if let Some(previous) = self.previous_masks.get(id) {
                num_changed += previous.iter().zip(&mask).filter(|(a, b)| a != b).count();
                num_seen += mask.len();
            }
            self.previous_masks.insert(*id, mask);
        }
        let scores = batch.scored.weights().map(MaskStatistics::of_scores);
        if let Some((_, saturation)) = scores
            && self.saturation.has_become_saturated(saturation)
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
            return;
        }
        let moment = self.method.moment(step + 1, Level::Pretrain);
        let mut metric = |name: &'static str, value: f64, unit| recorder.metric(moment, name, value, "pretrain", unit);
        metric("loss", result.loss, "1");
        metric("lr", rate, "1");
        metric("grad_norm", hypergradient::norm(&self.compute, &result.gradient), "1");
        if let Some((entropy, saturation)) = scores {
            metric("score_entropy", entropy, "nat");
            metric("score_saturation", saturation, "share");
        }
        let (lowest, highest) = self.statistics.coverage();
        metric("mask_coverage_min", lowest, "share");
        metric("mask_coverage_max", highest, "share");
        if num_seen > 0 {
            metric("mask_change", num_changed as f64 / num_seen as f64, "share");
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
    }

    /// Scores, masks and reconstructs the panel at the newest θ and the policy that was in use.
    fn record_panel(&self, step: u64, phi: &Params, policy_version: u64, recorder: &mut Recorder) {
        let Panel { batch: panel, objects } = &self.panel;
        if panel.is_empty() {
            return;
        }
        let model = &self.method.model;
        // The panel's exploration and random masks are the same each time, so that only the policy makes a difference.
        let masker = self.method.masker(u64::MAX);
        let images = &panel.images;
        let scored = if self.method.baseline {
            scoring::random(model, panel.len(), &masker)
        } else {
            scoring::score(&self.compute, model, &self.theta, phi, images, &masker)
        };
        let losses = pretrain::patch_losses(&self.compute, model, &self.theta, images, &scored.order);
        let (num_patches, grid) = (model.config.num_patches(), model.config.grid() as i16);
        let side = model.config.grid();
        for (position, share) in self.statistics.coverage_by_position().iter().enumerate() {
            let name = format!("mask_coverage.{}.{}", position / side, position % side);
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
        for (image, (&id, &label)) in panel.ids.iter().zip(panel.labels.iter()).enumerate() {
            let place = image * num_patches..(image + 1) * num_patches;
            recorder.push(RecordBody::Mask(Box::new(MaskRecord {
                moment: self.method.moment(step + 1, Level::Pretrain),
                sample_id: id,
                label: (label >= 0).then_some(label),
                policy_version: policy_version.cast_signed(),
                mask_ratio: scored.order.num_masked() as f32 / num_patches as f32,
                mask: place.clone().map(|i| scored.order.is_masked(i)).collect(),
                score: scored.weights().map_or_else(|| vec![1.0; num_patches], |w| w[place.clone()].to_vec()),
                patch_loss: losses[place].to_vec(),
                grid: (grid, grid),
            })));
        }
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
        if let Some(shift) = shift {
            self.theta = shift.apply(&self.compute, &self.method, &self.theta);
        }
        let model = self.method.model.clone();
        let result =
            pretrain::gradient(&self.compute, &model, &self.theta, &batch.phi, &batch.batch.images, &batch.scored)
                .map_err(internal(StageName::Encoder))?;
        let layout = model.layout(ParamSet::Pretrain);
        check_loss("pretrain", step, result.loss)?;
        check_vector("pretrain", step, "gradient", &result.gradient, layout)?;
        let rate = self.method.schedules[0].rate(step);
        self.theta = self.optimizer.update(&self.compute, &self.theta, &result.gradient, rate);
        self.record_step(step, &batch, &result, rate, recorder);
        let every = self.method.masks_every_steps;
        if every > 0 && (step + 1).is_multiple_of(every) {
            self.record_panel(step, &batch.phi, batch.policy_version, recorder);
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
    pub theta: Option<SlotWriter<Buffer>>,
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
            slot.publish(step + 1, output.theta);
        }
        let Some(snapshot) = output.snapshot else { return Ok(0) };
        let bytes = snapshot.size_bytes();
        self.snapshots.send(step / self.method.unroll, snapshot, context)?;
        Ok(bytes)
    }
}
