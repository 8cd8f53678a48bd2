//! The encoder stage: level 1, and the snapshots that levels 2 and 3 work on.

use std::sync::Arc;
use std::time::Instant;

use mlomae_model::lane::{Lane, PretrainGradient};
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::masking::MaskRule;
use mlomae_model::masking::weights::effective_share;
use mlomae_model::{Level as TrainLevel, ModelError, Vector};

use crate::counts::{Outer, Step};
use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::slot::{SlotReader, SlotWriter};
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{Panel, ScoredBatch, Snapshot, StepMetric};
use crate::record::memory::process_memory;
use crate::record::statistics::{MaskHistory, MaskStatistics, ObjectStatistics, check_loss, check_vector, internal};
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, MaskRow, Metric, PartOf, Recorder};
use crate::stages::score::{Shift, shift_before, slot_interrupt};

/// What the names of the teacher's tensors begin with in a checkpoint.
pub const TEACHER_PREFIX: &str = "encoder.teacher.";

/// Input of one level-1 step.
#[derive(Debug, Clone)]
pub struct EncoderInput {
    /// The batch with its masks.
    pub scored: ScoredBatch,
    /// A control's shift, applied before the step.
    pub shift: Option<Shift>,
}

/// Output of one level-1 step.
#[derive(Debug, Clone)]
pub struct EncoderOutput {
    /// θ after the step.
    pub theta: Vector,
    /// The teacher's version and weights, where this step has renewed it.
    pub teacher: Option<(u64, Vector)>,
    /// After the last step of an outer iteration: what levels 2 and 3 need, or what was lost of it.
    pub snapshot: Option<Flow<Snapshot>>,
}

/// The encoder stage. Its units are level-1 steps.
pub struct EncoderStage {
    method: Method,
    lane: Box<dyn Lane>,
    theta: Vector,
    /// What scores read of θ's past, where they do.
    teacher: Option<Vector>,
    optimizer: AdamW,
    last: Option<Arc<ScoredBatch>>,
    panel: Panel,
    history: MaskHistory,
    last_step_at: Option<Instant>,
}

impl EncoderStage {
    /// An encoder at `theta` with the `teacher` that scores read, its optimizer's state and what is known of its masks; the masks of `panel` are
    /// logged.
    #[must_use]
    pub fn new(
        method: Method,
        lane: Box<dyn Lane>,
        theta: Vector,
        teacher: Option<Vector>,
        optimizer: AdamW,
        history: MaskHistory,
        panel: Panel,
    ) -> Self {
        Self { method, lane, theta, teacher, optimizer, last: None, panel, history, last_step_at: None }
    }

    /// The newest θ.
    #[must_use]
    pub const fn theta(&self) -> &Vector {
        &self.theta
    }

    /// The teacher that scores read; none where they read none.
    #[must_use]
    pub const fn teacher(&self) -> Option<&Vector> {
        self.teacher.as_ref()
    }

    /// Renews the teacher after step `step`, if it is due: d·teacher + (1 − d)·θ with the decay d.
    fn renew_teacher(&mut self, step: Step) -> Result<Option<(u64, Vector)>, ModelError> {
        let (Some(teacher), Some(decay)) = (&self.teacher, self.method.teacher_decay(step)) else { return Ok(None) };
        let renewed = match decay {
            0.0 => self.theta.clone(),
            _ => self.lane.combined(decay, teacher, 1.0 - decay, &self.theta)?,
        };
        self.teacher = Some(renewed.clone());
        Ok(Some((self.method.teacher_version(step.next()), renewed)))
    }

    fn is_last(&self, step: Step) -> bool {
        step.is_last_of_outer(self.method.unroll)
    }

    /// What leaves after step `step`.
    fn output(&mut self, step: Step, lost: Option<Lost>, recorder: &mut Recorder) -> Result<EncoderOutput, StageError> {
        let teacher = self.renew_teacher(step).map_err(internal(StageName::Encoder))?;
        let mut snapshot = None;
        if self.is_last(step) {
            let outer = step.outer(self.method.unroll);
            let searches = self.method.searches_branches();
            let metric = (self.method.settings.precondition || searches).then(|| StepMetric {
                first_moment: searches.then(|| self.optimizer.m.clone()),
                second_moment: self.optimizer.v.clone(),
                step: self.optimizer.step,
                adamw: self.optimizer.config,
            });
            snapshot = Some(match (self.last.take(), lost) {
                (Some(last), _) => Flow::Item(Snapshot { outer, theta: self.theta.clone(), last, metric }),
                (None, lost) => Flow::Lost(lost.unwrap_or_else(|| Lost {
                    stage: StageName::Encoder,
                    sample_ids: Vec::new(),
                    message: "no batch of the outer iteration is left".into(),
                })),
            });
            // Before the snapshot leaves, so that the stages behind know of it when it reaches them.
            self.method.checkpoint_request.take(outer.next());
            if self.method.checkpoint_due(outer.next()) {
                self.part(outer.next(), recorder);
            }
        }
        Ok(EncoderOutput { theta: self.theta.clone(), teacher, snapshot })
    }

    fn part(&self, outer: Outer, recorder: &mut Recorder) {
        let layout = self.method.model.layout(TrainLevel::Pretrain);
        let mut tensors = vec![FlatTensors::new(CheckpointFile::Model, "", layout, self.theta.clone())];
        tensors.extend(FlatTensors::moments(TrainLevel::Pretrain, layout, &self.optimizer));
        if let Some(teacher) = &self.teacher {
            tensors.push(FlatTensors::new(CheckpointFile::Optimizer, TEACHER_PREFIX, layout, teacher.clone()));
        }
        recorder.part(CheckpointPart {
            outer,
            step: outer.first_step(self.method.unroll),
            part: PartOf::Encoder,
            tensors,
            state: serde_json::json!({ "adamw_step": self.optimizer.step, "masks": self.history.to_json() }),
        });
    }

    fn record_step(
        &mut self,
        step: Step,
        batch: &ScoredBatch,
        result: &PretrainGradient,
        rate: f64,
        recorder: &mut Recorder,
    ) -> Result<(), ModelError> {
        let seconds = self.last_step_at.replace(Instant::now()).map(|at| at.elapsed().as_secs_f64());
        let change = self.history.add(&batch.batch.ids, &batch.scored.order);
        let scores = batch.scored.scores().map(MaskStatistics::of_scores);
        if let Some((_, saturation)) = scores
            && self.history.saturation.has_become_saturated(saturation)
        {
            tracing::warn!(
                kind = "scores_saturated",
                stage = %StageName::Encoder,
                step = step.next().0,
                "scores have saturated, so masks hardly change any more; lower policy.lr, raise mask.explore or \
                 set mask.input to \"pixels\": {:.0} % of them lie outside 0.02..0.98",
                100.0 * saturation
            );
        }
        if !self.method.metrics_due(step.next(), 1) {
            return Ok(());
        }
        let gradient_norm = self.lane.norm(&result.gradient)?;
        let moment = self.method.moment(step.next(), Level::Pretrain);
        let mut metric = |metric, value| recorder.metric(moment, metric, value);
        metric(Metric::PretrainLoss, result.loss);
        metric(Metric::PretrainRate, rate);
        metric(Metric::PretrainGradientNorm, gradient_norm);
        if let Some((entropy, saturation)) = scores {
            metric(Metric::ScoreEntropy, entropy);
            metric(Metric::ScoreSaturation, saturation);
        }
        if let Some(weights) = batch.scored.weights() {
            metric(Metric::EffectiveShare, effective_share(weights, &batch.scored.order));
        }
        let (lowest, highest) = self.history.statistics.coverage();
        metric(Metric::MaskCoverageMin, lowest);
        metric(Metric::MaskCoverageMax, highest);
        let order = &batch.scored.order;
        for (course, name, value) in [
            (&self.method.ratio, Metric::MaskRatio, order.num_masked() as f64 / order.num_patches as f64),
            (&self.method.explore, Metric::MaskExplore, batch.rule.explore),
        ] {
            let is_drawn = name == Metric::MaskRatio && self.method.ratio_arms;
            if !course.is_constant() || is_drawn {
                metric(name, value);
            }
        }
        if let Some(share) = change.share() {
            metric(Metric::MaskChange, share);
        }
        let newest = step.outer(self.method.unroll).newest_version();
        metric(Metric::PolicyLag, newest.since(batch.policy_version) as f64);
        if let Some((resident, peak)) = self.is_last(step).then(process_memory).flatten() {
            metric(Metric::MemoryResident, resident as f64);
            metric(Metric::MemoryPeak, peak as f64);
        }
        if let Some(seconds) = seconds {
            metric(Metric::ImagesPerSecond, batch.batch.len() as f64 / seconds);
        }
        Ok(())
    }

    /// Scores, masks and reconstructs the panel at the newest θ and the policy that was in use with `used`. Where that
    /// masked at random the masks are random, and the scores those of its φ.
    fn record_panel(&mut self, step: Step, used: &ScoredBatch, recorder: &mut Recorder) -> Result<(), ModelError> {
        let Panel { batch: panel, objects } = &self.panel;
        if panel.is_empty() {
            return Ok(());
        }
        let (model, lane) = (&self.method.model, &mut *self.lane);
        let objects_known = objects.as_ref().filter(|_| self.method.masks_need_objects());
        let known = objects_known.map(|objects| objects.as_slice().into());
        let is_random = used.rule.is_random;
        let rule = MaskRule { objects: known, is_random, ..self.method.panel_rule(step) };
        let images = lane.ingest(&panel.images)?;
        let weights = self.teacher.as_ref().unwrap_or(&self.theta);
        let scored = lane.score(Some(weights), &used.phi, &images, &rule)?;
        let by_phi = match is_random {
            true => lane.score(Some(weights), &used.phi, &images, &MaskRule { is_random: false, ..rule })?,
            false => scored.clone(),
        };
        let scores = by_phi.scores();
        let losses = lane.patch_losses(&self.theta, &images, &scored)?.to_host()?;
        let (num_patches, grid) = (model.config.num_patches(), model.config.grid() as i16);
        let side = model.config.grid();
        for (position, share) in self.history.statistics.coverage_by_position().iter().enumerate() {
            let name = Metric::mask_coverage_at(position / side, position % side);
            let (moment, metric) = (self.method.moment(step.next(), Level::Pretrain), Metric::MaskCoverageAt);
            recorder.figure(moment, metric, name, *share, metric.unit());
        }
        if let Some(objects) = objects {
            let masked: Vec<bool> = (0..objects.len()).map(|patch| scored.order.is_masked(patch)).collect();
            let guide = scores.or(scored.guide.as_deref());
            let found = ObjectStatistics::of(objects, &masked, guide, num_patches);
            let moment = self.method.moment(step.next(), Level::Mask);
            for (metric, value) in [
                (Metric::ObjectScoreAuc, found.score_auc),
                (Metric::ObjectMaskShare, found.object_share),
                (Metric::BackgroundMaskShare, found.background_share),
            ] {
                if let Some(value) = value {
                    recorder.metric(moment, metric, value);
                }
            }
        }
        for (image, &id) in panel.ids.iter().enumerate() {
            let place = image * num_patches..(image + 1) * num_patches;
            let row = MaskRow {
                sample_id: id,
                label: panel.targets.class(image),
                policy_version: used.policy_version.0.cast_signed(),
                mask_ratio: scored.order.num_masked() as f32 / num_patches as f32,
                mask: place.clone().map(|i| scored.order.is_masked(i)).collect(),
                score: Some(scores.map_or_else(|| vec![1.0; num_patches], |w| w[place.clone()].to_vec())),
                patch_loss: Some(losses[place].to_vec()),
                grid_h: grid,
                grid_w: grid,
            };
            recorder.row(self.method.moment(step.next(), Level::Pretrain), row);
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
        unit: u64,
        input: EncoderInput,
        recorder: &mut Recorder,
    ) -> Result<EncoderOutput, StageError> {
        let EncoderInput { scored: batch, shift } = input;
        let step = Step(unit);
        let failed = internal(StageName::Encoder);
        if let Some(shift) = shift {
            self.theta = shift.apply(&mut *self.lane, &self.theta).map_err(&failed)?;
        }
        let result =
            self.lane.pretrain(&self.theta, &batch.phi, &batch.batch.images, &batch.scored).map_err(&failed)?;
        check_loss(TrainLevel::Pretrain, step, result.loss)?;
        let layout = self.method.model.layout(TrainLevel::Pretrain);
        check_vector(&mut *self.lane, TrainLevel::Pretrain, step, "gradient", &result.gradient, layout)?;
        let rate = self.method.rate(TrainLevel::Pretrain, step.0);
        self.theta = self.lane.update(&mut self.optimizer, &self.theta, &result.gradient, rate).map_err(&failed)?;
        self.record_step(step, &batch, &result, rate, recorder).map_err(&failed)?;
        let every = self.method.masks_every_steps;
        if every > 0 && step.next().0.is_multiple_of(every) {
            self.record_panel(step, &batch, recorder).map_err(&failed)?;
        }
        self.last = Some(Arc::new(batch));
        self.output(step, None, recorder)
    }

    fn skip(&mut self, unit: u64, lost: Lost, recorder: &mut Recorder) -> Result<Flow<EncoderOutput>, StageError> {
        self.output(Step(unit), Some(lost), recorder).map(Flow::Item)
    }

    fn device_ns(&mut self) -> Option<u64> {
        self.lane.device_ns()
    }

    fn sample_ids(&mut self, _: u64, input: &EncoderInput) -> Vec<i64> {
        input.scored.batch.ids.to_vec()
    }

    fn may_stop_before(&self, unit: u64) -> bool {
        Step(unit).is_first_of_outer(self.method.unroll)
    }

    fn finish(&mut self, next_unit: u64, recorder: &mut Recorder) -> Result<(), StageError> {
        self.part(Step(next_unit).outer(self.method.unroll), recorder);
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
    /// Shifts by policy version, where a control shifts the encoder.
    pub shift: Option<SlotReader<Option<Shift>>>,
    /// θ by level-1 steps done or the teacher by its versions, where scores need one of them.
    pub theta: Option<SlotWriter<Vector>>,
    /// To the evaluator.
    pub snapshots: OrderedSender<Flow<Snapshot>>,
}

impl Wiring<EncoderStage> for EncoderPorts {
    fn receive(&mut self, unit: u64, heed: StopLevel, context: &WaitContext) -> Result<Flow<EncoderInput>, Interrupt> {
        let scored = self.scored.recv_heeding(unit, heed, context)?;
        let shift = shift_before(&self.method, Step(unit), self.shift.as_ref(), context)
            .map_err(slot_interrupt(StageName::Encoder))?;
        Ok(scored.map(|scored| EncoderInput { scored, shift }))
    }

    fn send(&mut self, unit: u64, output: Flow<EncoderOutput>, context: &WaitContext) -> Result<usize, Interrupt> {
        let Flow::Item(output) = output else { return Ok(0) };
        let step = Step(unit);
        match (&mut self.theta, output.teacher) {
            (Some(slot), Some((version, teacher))) => slot.publish(version, Arc::new(teacher)),
            (Some(slot), None) if !self.method.reads_teacher() => slot.publish(step.next().0, Arc::new(output.theta)),
            _ => {}
        }
        let Some(snapshot) = output.snapshot else { return Ok(0) };
        let bytes = snapshot.size_bytes();
        self.snapshots.send(step.outer(self.method.unroll).0, snapshot, context)?;
        Ok(bytes)
    }
}
