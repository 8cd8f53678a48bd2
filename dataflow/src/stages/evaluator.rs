//! The evaluator stage: level 2, and the downstream gradient of level 3.

use mlomae_model::lane::{Downstream, LabelledImages, Lane};
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::{Level as TrainLevel, Vector};

use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{Direction, ImageBatch, LabelledPair, Snapshot};
use crate::record::statistics::{check_loss, check_vector, internal};
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, PartOf, Recorder};

/// The evaluator stage. Its units are outer iterations.
pub struct EvaluatorStage {
    method: Method,
    lane: Box<dyn Lane>,
    head: Vector,
    optimizer: AdamW,
}

impl EvaluatorStage {
    /// An evaluator at `head` with its optimizer's state.
    #[must_use]
    pub const fn new(method: Method, lane: Box<dyn Lane>, head: Vector, optimizer: AdamW) -> Self {
        Self { method, lane, head, optimizer }
    }

    /// Level 2's step, and the direction of level 3 at the updated head.
    fn direction(
        &mut self,
        outer: u64,
        snapshot: Snapshot,
        pair: &LabelledPair,
        recorder: &mut Recorder,
    ) -> Result<Direction, StageError> {
        let (method, lane) = (&self.method, &mut *self.lane);
        let failed = internal(StageName::Evaluator);
        let upload = |batch: &ImageBatch| lane.upload(&batch.images).map_err(&failed);
        let (images_f, images_v) = (upload(&pair.finetune)?, upload(&pair.validation)?);
        let finetune = LabelledImages { images: &images_f, targets: &pair.finetune.targets };
        let validation = LabelledImages { images: &images_v, targets: &pair.validation.targets };
        let (theta, form) = (&snapshot.theta, method.hypergradient);
        let noise = |pass| method.noise(outer, pass);
        let rate = method.rate(TrainLevel::Finetune, outer);

        let at = Downstream { theta, c: &self.head, finetune, validation };
        let f = form.finetune(lane, &at, &noise).map_err(&failed)?;
        let level1_step = (outer + 1) * method.unroll;
        let (theta_layout, head_layout) =
            (method.model.layout(TrainLevel::Pretrain), method.model.layout(TrainLevel::Finetune));
        check_loss("finetune", level1_step, f.loss)?;
        check_vector(lane, "finetune", level1_step, "gradient", &f.gradient, head_layout)?;
        let head = lane.update(&mut self.optimizer, &self.head, &f.gradient, rate).map_err(&failed)?;

        let (loss_f, figures_f, gradient_f) = (f.loss, f.figures.clone(), f.gradient.clone());
        let at = Downstream { c: &head, ..at };
        let v = form.direction(lane, &at, f, method.alpha, &noise).map_err(&failed)?;
        check_loss("mask", level1_step, v.loss)?;
        check_vector(lane, "mask", level1_step, "w", &v.w, theta_layout)?;
        check_vector(lane, "mask", level1_step, "v1", &v.v1, theta_layout)?;
        if method.metrics_due(level1_step, method.unroll) {
            let mut norm = |vector: &Vector| lane.norm(vector).map_err(&failed);
            let [norm_f, norm_v1, norm_w] = [norm(&gradient_f)?, norm(&v.v1)?, norm(&v.w)?];
            let (task, split) = (&method.model.task, "finetune");
            let moment = method.moment(level1_step, Level::Finetune);
            recorder.metric(moment, "loss", loss_f, split, task.loss_unit());
            for (figure, value) in task.figures().iter().zip(figures_f) {
                recorder.metric(moment, figure.name, value, split, figure.unit);
            }
            recorder.metric(moment, "lr", rate, split, "1");
            recorder.metric(moment, "grad_norm", norm_f, split, "1");
            let moment = method.moment(level1_step, Level::Mask);
            recorder.metric(moment, "loss", v.loss, "validation", task.loss_unit());
            for (figure, value) in task.figures().iter().zip(v.figures) {
                recorder.metric(moment, figure.name, value, "validation", figure.unit);
            }
            recorder.metric(moment, "v1_norm", norm_v1, split, "1");
            recorder.metric(moment, "w_norm", norm_w, "validation", "1");
        }
        self.head = head;
        Ok(Direction { snapshot, v1: v.v1, w: v.w })
    }

    fn part(&self, outer: u64, recorder: &mut Recorder) {
        let layout = self.method.model.layout(TrainLevel::Finetune);
        let mut tensors = vec![FlatTensors::new(CheckpointFile::Head, "", layout, self.head.clone())];
        tensors.extend(FlatTensors::moments(TrainLevel::Finetune, layout, &self.optimizer));
        recorder.part(CheckpointPart {
            outer,
            step: outer * self.method.unroll,
            part: PartOf::Evaluator,
            tensors,
            state: serde_json::json!({ "adamw_step": self.optimizer.step }),
        });
    }
}

impl Stage for EvaluatorStage {
    type In = (Snapshot, LabelledPair);
    /// None where nothing is learned of masks: levels 2 and 3 rest.
    type Out = Option<Direction>;
    type Log = Recorder;
    const NAME: StageName = StageName::Evaluator;

    fn process(&mut self, outer: u64, input: Self::In, recorder: &mut Recorder) -> Result<Self::Out, StageError> {
        let (snapshot, pair) = input;
        let direction =
            if self.method.is_learned() { Some(self.direction(outer, snapshot, &pair, recorder)?) } else { None };
        if self.method.checkpoint_due(outer + 1) {
            self.part(outer + 1, recorder);
        }
        Ok(direction)
    }

    fn skip(&mut self, outer: u64, lost: Lost, recorder: &mut Recorder) -> Result<Flow<Self::Out>, StageError> {
        if self.method.checkpoint_due(outer + 1) {
            self.part(outer + 1, recorder);
        }
        Ok(Flow::Lost(lost))
    }

    fn sample_ids(&mut self, _: u64, (_, pair): &Self::In) -> Vec<i64> {
        pair.finetune.ids.iter().chain(pair.validation.ids.iter()).copied().collect()
    }

    fn finish(&mut self, next_outer: u64, recorder: &mut Recorder) -> Result<(), StageError> {
        self.part(next_outer, recorder);
        Ok(())
    }
}

/// The ports of the evaluator.
#[derive(Debug)]
pub struct EvaluatorPorts {
    /// From the encoder.
    pub snapshots: OrderedReceiver<Flow<Snapshot>>,
    /// From the loader.
    pub labelled: OrderedReceiver<Flow<LabelledPair>>,
    /// To the policy.
    pub directions: OrderedSender<Flow<OptionalDirection>>,
}

/// A direction, or none where level 3 rests.
#[derive(Debug, Clone)]
pub struct OptionalDirection(pub Option<Direction>);

impl Payload for OptionalDirection {
    fn size_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, Payload::size_bytes)
    }
}

impl Wiring<EvaluatorStage> for EvaluatorPorts {
    fn receive(
        &mut self,
        outer: u64,
        heed: StopLevel,
        context: &WaitContext,
    ) -> Result<Flow<(Snapshot, LabelledPair)>, Interrupt> {
        // The snapshot first: after a graceful stop the loader may be ahead, but it is the encoder that says where the
        // run ends.
        let snapshot = self.snapshots.recv_heeding(outer, heed, context)?;
        let pair = self.labelled.recv_heeding(outer, heed, context)?;
        Ok(snapshot.zip(pair))
    }

    fn send(&mut self, outer: u64, output: Flow<Option<Direction>>, context: &WaitContext) -> Result<usize, Interrupt> {
        let output = output.map(OptionalDirection);
        let bytes = output.size_bytes();
        self.directions.send(outer, output, context)?;
        Ok(bytes)
    }
}
