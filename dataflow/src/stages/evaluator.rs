//! The evaluator stage: level 2, and the downstream gradient of level 3.

use std::sync::Arc;

use mlomae_model::balance::direction;
use mlomae_model::hypergradient::Carried;
use mlomae_model::lane::{Downstream, LabelledImages, Lane};
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::tasks::ridge::Bank;
use mlomae_model::{Layout, Level as TrainLevel, Vector};

use crate::counts::Outer;
use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{Direction, ImageBatch, LabelledBatch, LabelledPair, Snapshot};
use crate::record::statistics::{check_loss, check_vector, internal};
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, Metric, PartOf, Recorder};

/// The evaluator stage. Its units are outer iterations.
pub struct EvaluatorStage {
    method: Method,
    lane: Box<dyn Lane>,
    head: Vector,
    optimizer: AdamW,
    carried: Carried,
}

impl EvaluatorStage {
    /// An evaluator at `head` with its optimizer's state and a bank of features of earlier batches.
    #[must_use]
    pub fn new(method: Method, lane: Box<dyn Lane>, head: Vector, optimizer: AdamW, bank: Bank) -> Self {
        Self { method, lane, head, optimizer, carried: Carried { bank, ..Carried::default() } }
    }

    /// Level 2's step, and the direction of level 3 at the updated head.
    fn direction(
        &mut self,
        outer: Outer,
        snapshot: Snapshot,
        pair: &LabelledPair,
        recorder: &mut Recorder,
    ) -> Result<Direction, StageError> {
        let (method, lane) = (&self.method, &mut *self.lane);
        let failed = internal(StageName::Evaluator);
        let ingest = |batch: &ImageBatch| lane.ingest(&batch.images).map_err(&failed);
        let (images_f, images_v) = (ingest(&pair.finetune)?, ingest(&pair.validation)?);
        let finetune = LabelledImages { images: &images_f, targets: &pair.finetune.targets };
        let validation = LabelledImages { images: &images_v, targets: &pair.validation.targets };
        let (theta, form) = (&snapshot.theta, method.hypergradient);
        let noise = |pass| method.noise(outer, pass);
        let rate = method.rate(TrainLevel::Finetune, outer.0);

        let bank = &self.carried.bank;
        let at = Downstream { theta, c: &self.head, finetune, validation, bank };
        let f = form.finetune(lane, &at, &noise).map_err(&failed)?;
        let level1_step = outer.end_step(method.unroll);
        let (theta_layout, head_layout) =
            (method.model.layout(TrainLevel::Pretrain), method.model.layout(TrainLevel::Finetune));
        check_loss(TrainLevel::Finetune, level1_step, f.loss)?;
        check_vector(lane, TrainLevel::Finetune, level1_step, "gradient", &f.gradient, head_layout)?;
        let head = lane.update(&mut self.optimizer, &self.head, &f.gradient, rate).map_err(&failed)?;

        let (loss_f, figures_f, gradient_f) = (f.loss, f.figures.clone(), f.gradient.clone());
        let at = Downstream { c: &head, ..at };
        let v = direction(form.get(), lane, &at, f, &method.settings, &noise).map_err(&failed)?;
        check_loss(TrainLevel::Mask, level1_step, v.loss)?;
        check_vector(lane, TrainLevel::Mask, level1_step, "w", &v.w, theta_layout)?;
        check_vector(lane, TrainLevel::Mask, level1_step, "v1", &v.v1, theta_layout)?;
        if method.metrics_due(level1_step, method.unroll) {
            let mut norm = |vector: &Vector| lane.norm(vector).map_err(&failed);
            let [norm_f, norm_v1, norm_w] = [norm(&gradient_f)?, norm(&v.v1)?, norm(&v.w)?];
            let task = &method.model.task;
            let moment = method.moment(level1_step, Level::Finetune);
            let mut record = |loss: Metric, figure: Metric, value, figures: Vec<f64>| {
                recorder.figure(moment, loss, loss.name(), value, task.loss_unit());
                for (kind, value) in task.figures().iter().zip(figures) {
                    recorder.figure(moment, figure, kind.name.clone(), value, kind.unit);
                }
            };
            record(Metric::FinetuneLoss, Metric::FinetuneAccuracy, loss_f, figures_f);
            record(Metric::ValidationLoss, Metric::ValidationAccuracy, v.loss, v.figures);
            recorder.metric(moment, Metric::FinetuneRate, rate);
            recorder.metric(moment, Metric::FinetuneGradientNorm, norm_f);
            recorder.metric(moment, Metric::V1Norm, norm_v1);
            recorder.metric(moment, Metric::WNorm, norm_w);
            let parts = task.parts();
            let pairs = (0..parts.len()).flat_map(|i| (i + 1..parts.len()).map(move |j| (i, j)));
            for ((i, j), cosine) in pairs.zip(&v.cosines) {
                let (moment, metric) = (method.moment(level1_step, Level::Mask), Metric::TaskCosine);
                recorder.figure(
                    moment,
                    metric,
                    Metric::task_cosine(&parts[i].name, &parts[j].name),
                    *cosine,
                    metric.unit(),
                );
            }
            if let Some(response) = &v.response {
                recorder.metric(moment, Metric::RidgeLoss, response.loss);
                if let Some(accuracy) = response.accuracy {
                    recorder.metric(moment, Metric::RidgeAccuracy, accuracy);
                }
            }
        }
        self.head = head;
        self.carried.add_response(v.response, &method.settings);
        let pair = method.searches_branches().then(|| {
            let [targets_f, targets_v] = [&pair.finetune, &pair.validation].map(|batch| batch.targets.clone());
            [
                LabelledBatch { images: images_f, targets: targets_f },
                LabelledBatch { images: images_v, targets: targets_v },
            ]
        });
        Ok(Direction { snapshot, v1: v.v1, w: v.w, pair })
    }

    fn part(&self, outer: Outer, recorder: &mut Recorder) {
        let layout = self.method.model.layout(TrainLevel::Finetune);
        let mut tensors = vec![FlatTensors::new(CheckpointFile::Head, "", layout, self.head.clone())];
        tensors.extend(FlatTensors::moments(TrainLevel::Finetune, layout, &self.optimizer));
        tensors.extend(bank_tensors(&self.carried.bank));
        recorder.part(CheckpointPart {
            outer,
            step: outer.first_step(self.method.unroll),
            part: PartOf::Evaluator,
            tensors,
            state: serde_json::json!({ "adamw_step": self.optimizer.step }),
        });
    }
}

/// What the names of the tensors of a bank's batches begin with, oldest first.
pub(crate) fn bank_prefix(age: usize) -> String {
    format!("ridge.bank{age}.")
}

/// The names of the four tensors of a pair of batches, each `[rows, columns]`.
pub(crate) const BANK_TENSORS: [&str; 4] =
    ["finetune.features", "finetune.targets", "validation.features", "validation.targets"];

/// The features of a bank, which came from `f32`, as tensors.
fn bank_tensors(bank: &Bank) -> Vec<FlatTensors> {
    let pairs = bank.finetune.iter().zip(&bank.validation).enumerate();
    let tensors = pairs.map(|(age, (finetune, validation))| {
        let (mut layout, mut values) = (Layout::new(TrainLevel::Finetune), Vec::new());
        let parts = [&finetune.features, &finetune.targets, &validation.features, &validation.targets];
        let rows = [finetune.num_rows, finetune.num_rows, validation.num_rows, validation.num_rows];
        for ((name, part), rows) in BANK_TENSORS.iter().zip(parts).zip(rows) {
            layout.add(*name, &[rows, part.len() / rows.max(1)]);
            values.extend(part.iter().map(|&value| value as f32));
        }
        FlatTensors::new(CheckpointFile::Optimizer, bank_prefix(age), &Arc::new(layout), values.into())
    });
    tensors.collect()
}

impl Stage for EvaluatorStage {
    type In = (Snapshot, LabelledPair);
    /// None where nothing is learned of masks: levels 2 and 3 rest.
    type Out = Option<Direction>;
    type Log = Recorder;
    const NAME: StageName = StageName::Evaluator;

    fn process(&mut self, unit: u64, input: Self::In, recorder: &mut Recorder) -> Result<Self::Out, StageError> {
        let outer = Outer(unit);
        let (snapshot, pair) = input;
        let direction =
            if self.method.is_learned() { Some(self.direction(outer, snapshot, &pair, recorder)?) } else { None };
        if self.method.checkpoint_due(outer.next()) {
            self.part(outer.next(), recorder);
        }
        Ok(direction)
    }

    fn skip(&mut self, unit: u64, lost: Lost, recorder: &mut Recorder) -> Result<Flow<Self::Out>, StageError> {
        let outer = Outer(unit);
        if self.method.checkpoint_due(outer.next()) {
            self.part(outer.next(), recorder);
        }
        Ok(Flow::Lost(lost))
    }

    fn device_ns(&mut self) -> Option<u64> {
        self.lane.device_ns()
    }

    fn sample_ids(&mut self, _: u64, (_, pair): &Self::In) -> Vec<i64> {
        pair.finetune.ids.iter().chain(pair.validation.ids.iter()).copied().collect()
    }

    fn finish(&mut self, next_unit: u64, recorder: &mut Recorder) -> Result<(), StageError> {
        self.part(Outer(next_unit), recorder);
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
        unit: u64,
        heed: StopLevel,
        context: &WaitContext,
    ) -> Result<Flow<(Snapshot, LabelledPair)>, Interrupt> {
        // The snapshot first: after a graceful stop the loader may be ahead, but it is the encoder that says where the
        // run ends.
        let snapshot = self.snapshots.recv_heeding(unit, heed, context)?;
        let pair = self.labelled.recv_heeding(unit, heed, context)?;
        Ok(snapshot.zip(pair))
    }

    fn send(&mut self, unit: u64, output: Flow<Option<Direction>>, context: &WaitContext) -> Result<usize, Interrupt> {
        let output = output.map(OptionalDirection);
        let bytes = output.size_bytes();
        self.directions.send(unit, output, context)?;
        Ok(bytes)
    }
}
