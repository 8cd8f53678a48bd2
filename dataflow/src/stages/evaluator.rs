//! The evaluator stage: level 2, and the downstream gradient of level 3.

use std::sync::Arc;

use mlomae_model::levels::downstream::{Labelled, evaluate_clean, evaluate_published};
use mlomae_model::levels::hypergradient;
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::{Compute, ParamSet, Params};

use crate::config::Hypergradient;
use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{Direction, LabelledPair, Snapshot};
use crate::record::statistics::{check_loss, check_vector, internal};
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, PartOf, Recorder};

/// The evaluator stage. Its units are outer iterations.
pub struct EvaluatorStage {
    method: Method,
    compute: Compute,
    head: Params,
    optimizer: AdamW,
}

impl EvaluatorStage {
    /// An evaluator at `head` with its optimizer's state.
    #[must_use]
    pub const fn new(method: Method, compute: Compute, head: Params, optimizer: AdamW) -> Self {
        Self { method, compute, head, optimizer }
    }

    fn part(&self, outer: u64, recorder: &mut Recorder) {
        let layout = self.method.model.layout(ParamSet::Head);
        let mut tensors = vec![FlatTensors::new(CheckpointFile::Head, "", layout, self.head.clone())];
        tensors.extend(FlatTensors::moments("finetune", layout, &self.optimizer));
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
    /// None where level 3 rests (the baseline).
    type Out = Option<Direction>;
    type Log = Recorder;
    const NAME: StageName = StageName::Evaluator;

    fn process(&mut self, outer: u64, input: Self::In, recorder: &mut Recorder) -> Result<Self::Out, StageError> {
        let (snapshot, pair) = input;
        let mut direction = None;
        if !self.method.baseline {
            let (method, compute) = (&self.method, &self.compute);
            let model = &method.model;
            let rate = method.schedules[1].rate(outer);
            let optimizer = &mut self.optimizer;
            let step = |head: &Params, gradient: &[f64]| {
                let gradient: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
                // The head is a thousandth of the work, and this runs inside the pool already.
                optimizer.update(&Compute::serial(1), head, &gradient, rate)
            };
            let finetune = Labelled { images: &pair.finetune.images, labels: &pair.finetune.labels };
            let validation = Labelled { images: &pair.validation.images, labels: &pair.validation.labels };
            let (theta, head) = (&snapshot.theta, &self.head);
            let result = match method.hypergradient {
                Hypergradient::Clean => {
                    let dropout = method.dropout(outer, 0);
                    evaluate_clean(compute, model, theta, head, finetune, validation, method.alpha, dropout, step)
                }
                Hypergradient::Published => {
                    let dropout = |pass| method.dropout(outer, pass);
                    evaluate_published(compute, model, theta, head, finetune, validation, method.alpha, dropout, step)
                }
            }
            .map_err(internal(StageName::Evaluator))?;
            let gradient: Vec<f32> = result.finetune_gradient.iter().map(|&g| g as f32).collect();
            let level1_step = (outer + 1) * method.unroll;
            check_loss("finetune", level1_step, result.finetune_loss)?;
            check_vector("finetune", level1_step, "gradient", &gradient, model.layout(ParamSet::Head))?;
            check_loss("mask", level1_step, result.validation_loss)?;
            check_vector("mask", level1_step, "w", &result.w, model.layout(ParamSet::Pretrain))?;
            check_vector("mask", level1_step, "v1", &result.v1, model.layout(ParamSet::Pretrain))?;
            if method.metrics_due(level1_step, method.unroll) {
                let moment = method.moment(level1_step, Level::Finetune);
                recorder.metric(moment, "loss", result.finetune_loss, "train", "nat");
                recorder.metric(moment, "accuracy", result.finetune_accuracy, "train", "share");
                recorder.metric(moment, "lr", rate, "train", "1");
                recorder.metric(moment, "grad_norm", hypergradient::norm(compute, &gradient), "train", "1");
                let moment = method.moment(level1_step, Level::Mask);
                recorder.metric(moment, "loss", result.validation_loss, "validation", "nat");
                recorder.metric(moment, "accuracy", result.validation_accuracy, "validation", "share");
                recorder.metric(moment, "v1_norm", hypergradient::norm(compute, &result.v1), "train", "1");
                recorder.metric(moment, "w_norm", hypergradient::norm(compute, &result.w), "validation", "1");
            }
            self.head = result.head;
            direction = Some(Direction {
                snapshot,
                v1: Arc::new(result.v1),
                w: Arc::new(result.w),
                validation_loss: result.validation_loss,
            });
        }
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
        // The snapshot first: after a graceful stop the loader may be ahead, but it is the encoder that says where the run ends.
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
