//! The policy stage: level 3's hypergradient and the update of the masking network.

use std::collections::VecDeque;
use std::sync::Arc;

use mlomae_kernels as kernels;
use mlomae_model::levels::downstream::step_size;
use mlomae_model::levels::hypergradient::{along, cosine, norm, sum};
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::{Buffer, Compute, ParamSet, Params};

use crate::config::Hypergradient;
use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, WaitContext};
use crate::flow::slot::SlotWriter;
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::Direction;
use crate::record::statistics::check_vector;
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, PartOf, Recorder};
use crate::stages::evaluator::OptionalDirection;
use crate::stages::score::Shift;

/// Output of one policy update.
#[derive(Debug, Clone)]
pub struct PolicyOutput {
    /// φ after the update.
    pub phi: Params,
    /// The control `multitask`'s shift.
    pub shift: Option<Shift>,
}

/// One version of the policy.
#[derive(Debug, Clone)]
pub struct PolicyVersion {
    /// φ.
    pub phi: Params,
    /// The control `multitask`'s shift that came with it.
    pub shift: Option<Shift>,
}

/// The policy stage. Its units are outer iterations.
pub struct PolicyStage {
    method: Method,
    compute: Compute,
    /// The versions that may still be asked for, oldest first; the last is the newest.
    versions: VecDeque<PolicyVersion>,
    optimizer: AdamW,
    previous: Option<Params>,
}

impl PolicyStage {
    /// A policy with its `versions` in flight (oldest first, at least one), its optimizer's state and the hypergradient of the
    /// iteration before, if there was one.
    #[must_use]
    pub const fn new(
        method: Method,
        compute: Compute,
        versions: VecDeque<PolicyVersion>,
        optimizer: AdamW,
        previous: Option<Params>,
    ) -> Self {
        Self { method, compute, versions, optimizer, previous }
    }

    /// Version `version`, when `newest` is the newest.
    #[must_use]
    pub fn version(&self, version: u64, newest: u64) -> Option<&PolicyVersion> {
        let age = usize::try_from(newest.checked_sub(version)?).ok()?;
        self.versions.len().checked_sub(age + 1).and_then(|place| self.versions.get(place))
    }

    /// The versions in flight, oldest first.
    #[must_use]
    pub const fn versions(&self) -> &VecDeque<PolicyVersion> {
        &self.versions
    }

    /// The newest φ.
    #[must_use]
    pub fn phi(&self) -> &Params {
        &self.versions.back().expect("invariant: a policy has a version").phi
    }

    fn publish(&mut self, outer: u64, phi: Params, shift: Option<Shift>, recorder: &mut Recorder) {
        self.versions.push_back(PolicyVersion { phi, shift });
        while self.versions.len() as u64 > self.method.lag + 1 {
            self.versions.pop_front();
        }
        if self.method.checkpoint_due(outer + 1) {
            self.part(outer + 1, recorder);
        }
        self.method.checkpoint_request.forget(outer + 1);
    }

    fn part(&self, outer: u64, recorder: &mut Recorder) {
        let model = &self.method.model;
        let layout = model.layout(ParamSet::Mask);
        let mut tensors = Vec::new();
        for (age, version) in self.versions.iter().rev().enumerate() {
            let prefix = lag_prefix(age);
            if let Some(Shift(delta)) = &version.shift {
                let (prefix, layout) = (format!("policy.shift.{prefix}"), model.layout(ParamSet::Pretrain));
                tensors.push(FlatTensors::new(CheckpointFile::Optimizer, prefix, layout, delta.clone()));
            }
            tensors.push(FlatTensors::new(CheckpointFile::Mask, prefix, layout, version.phi.clone()));
        }
        tensors.extend(FlatTensors::moments("policy", layout, &self.optimizer));
        if let Some(previous) = &self.previous {
            let prefix = "policy.hypergradient.";
            tensors.push(FlatTensors::new(CheckpointFile::Optimizer, prefix, layout, previous.clone()));
        }
        recorder.part(CheckpointPart {
            outer,
            step: outer * self.method.unroll,
            part: PartOf::Policy,
            tensors,
            state: serde_json::json!({ "adamw_step": self.optimizer.step, "policy_version": outer }),
        });
    }

    /// ∂φ, and the norms of its two paths where they are computed one by one.
    fn hypergradient(&self, direction: &Direction) -> (Buffer, Option<(f64, f64)>) {
        let (method, compute) = (&self.method, &self.compute);
        let Direction { snapshot, v1, w, .. } = direction;
        let last = &snapshot.last;
        let along = |v: &[f32]| {
            let images = &last.batch.images;
            along(compute, &method.model, &snapshot.theta, v, self.phi(), images, &last.masker, method.alpha)
        };
        match method.hypergradient {
            Hypergradient::Clean => (along(&sum(compute, v1, w)), None),
            Hypergradient::Published => {
                let (mut g, g1) = (along(v1), along(w));
                let norms = (norm(compute, &g), norm(compute, &g1));
                kernels::add(&mut g, &g1);
                (g, Some(norms))
            }
        }
    }
}

/// Prefix of the tensors of the version that is `age` updates old; none for the newest.
pub(crate) fn lag_prefix(age: usize) -> String {
    if age == 0 { String::new() } else { format!("lag{age}.") }
}

impl Stage for PolicyStage {
    type In = Option<Direction>;
    type Out = PolicyOutput;
    type Log = Recorder;
    const NAME: StageName = StageName::Policy;

    fn process(&mut self, outer: u64, input: Self::In, recorder: &mut Recorder) -> Result<PolicyOutput, StageError> {
        let Some(direction) = input else {
            let phi = self.phi().clone();
            self.publish(outer, phi.clone(), None, recorder);
            return Ok(PolicyOutput { phi, shift: None });
        };
        let step = (outer + 1) * self.method.unroll;
        let (gradient, paths) = self.hypergradient(&direction);
        check_vector("mask", step, "gradient", &gradient, self.method.model.layout(ParamSet::Mask))?;
        let rate = self.method.schedules[2].rate(outer);
        let phi = self.phi().clone();
        let phi = self.optimizer.update(&self.compute, &phi, &gradient, rate);
        if self.method.metrics_due(step, self.method.unroll) {
            let moment = self.method.moment(step, Level::Mask);
            let mut metric = |name: &'static str, value| recorder.metric(moment, name, value, "validation", "1");
            metric("lr", rate);
            metric("hypergradient_norm", norm(&self.compute, &gradient));
            if let Some((indirect, direct)) = paths {
                metric("hypergradient_indirect_norm", indirect);
                metric("hypergradient_direct_norm", direct);
            }
            if let Some(previous) = &self.previous {
                metric("hypergradient_cosine", cosine(&self.compute, &gradient, previous));
            }
        }
        let shift = self.method.multitask.then(|| {
            let epsilon = |v: &[f32]| step_size(self.method.alpha, norm(&self.compute, v)) as f32;
            let Direction { v1, w, .. } = &direction;
            let mut delta = self.method.arena.zeros(w.len());
            kernels::axpy(&mut delta, epsilon(w), w);
            kernels::axpy(&mut delta, epsilon(v1), v1);
            Shift(Arc::new(delta))
        });
        self.previous = Some(Arc::new(gradient));
        self.publish(outer, phi.clone(), shift.clone(), recorder);
        Ok(PolicyOutput { phi, shift })
    }

    fn skip(&mut self, outer: u64, _: Lost, recorder: &mut Recorder) -> Result<Flow<PolicyOutput>, StageError> {
        let phi = self.phi().clone();
        self.publish(outer, phi.clone(), None, recorder);
        Ok(Flow::Item(PolicyOutput { phi, shift: None }))
    }

    fn sample_ids(&mut self, _: u64, input: &Self::In) -> Vec<i64> {
        input.as_ref().map_or_else(Vec::new, |direction| direction.snapshot.last.batch.ids.to_vec())
    }

    fn finish(&mut self, next_outer: u64, recorder: &mut Recorder) -> Result<(), StageError> {
        self.part(next_outer, recorder);
        Ok(())
    }
}

/// The ports of the policy.
#[derive(Debug)]
pub struct PolicyPorts {
    /// From the evaluator.
    pub directions: OrderedReceiver<Flow<OptionalDirection>>,
    /// Policies by version.
    pub phi: SlotWriter<Buffer>,
    /// Shifts by policy version, where the control `multitask` is on.
    pub shift: Option<SlotWriter<Option<Shift>>>,
}

impl Wiring<PolicyStage> for PolicyPorts {
    fn receive(
        &mut self,
        outer: u64,
        heed: StopLevel,
        context: &WaitContext,
    ) -> Result<Flow<Option<Direction>>, Interrupt> {
        Ok(self.directions.recv_heeding(outer, heed, context)?.map(|direction| direction.0))
    }

    fn send(&mut self, outer: u64, output: Flow<PolicyOutput>, _: &WaitContext) -> Result<usize, Interrupt> {
        let Flow::Item(PolicyOutput { phi, shift }) = output else { return Ok(0) };
        let bytes = 4 * phi.len();
        if let Some(slot) = &mut self.shift {
            slot.publish(outer + 1, Arc::new(shift));
        }
        self.phi.publish(outer + 1, phi);
        Ok(bytes)
    }
}
