//! The policy stage: level 3's hypergradient and the update of the masking network.

use std::collections::VecDeque;
use std::sync::Arc;

use mlomae_model::hypergradient::{Along, Carried};
use mlomae_model::lane::{Lane, Upstream};
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::levels::vectors::step_size;
use mlomae_model::masking::MaskRule;
use mlomae_model::masking::scales::softmax;
use mlomae_model::search::Policy;
use mlomae_model::{Level as TrainLevel, ModelError, Vector};

use crate::counts::{Outer, Step, Version};
use crate::flow::exit::StageError;
use crate::flow::ports::{OrderedReceiver, WaitContext};
use crate::flow::slot::SlotWriter;
use crate::flow::stage::{Flow, Interrupt, Lost, Stage, Wiring};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::method::Method;
use crate::method::batch::{Direction, Snapshot, StepMetric};
use crate::record::statistics::{check_vector, internal};
use crate::record::{CheckpointFile, CheckpointPart, FlatTensors, Level, Metric, PartOf, Recorder};
use crate::stages::evaluator::OptionalDirection;
use crate::stages::score::Shift;
use crate::stages::search;

/// One version of the policy, which an update of it puts out.
#[derive(Debug, Clone)]
pub struct PolicyVersion {
    /// What masks.
    pub policy: Policy,
    /// A control's shift that came with it.
    pub shift: Option<Shift>,
}

/// The policy stage. Its units are outer iterations.
pub struct PolicyStage {
    method: Method,
    lane: Box<dyn Lane>,
    /// The versions that may still be asked for, oldest first; the last is the newest.
    versions: VecDeque<PolicyVersion>,
    optimizer: AdamW,
    previous: Option<Vector>,
    carried: Carried,
    /// The optimizer of the control `supervised`.
    supervised: Option<AdamW>,
}

impl PolicyStage {
    /// A policy with its `versions` in flight (oldest first, at least one), its optimizer's state, the hypergradient of
    /// the iteration before, if there was one, what it keeps from one iteration to the next, and the optimizer of the
    /// control `supervised`.
    #[must_use]
    pub const fn new(
        method: Method,
        lane: Box<dyn Lane>,
        versions: VecDeque<PolicyVersion>,
        optimizer: AdamW,
        previous: Option<Vector>,
        carried: Carried,
        supervised: Option<AdamW>,
    ) -> Self {
        Self { method, lane, versions, optimizer, previous, carried, supervised }
    }

    /// Version `version`, when `newest` is the newest.
    #[must_use]
    pub fn version(&self, version: Version, newest: Version) -> Option<&PolicyVersion> {
        let age = usize::try_from(newest.0.checked_sub(version.0)?).ok()?;
        self.versions.len().checked_sub(age + 1).and_then(|place| self.versions.get(place))
    }

    /// The versions in flight, oldest first.
    #[must_use]
    pub const fn versions(&self) -> &VecDeque<PolicyVersion> {
        &self.versions
    }

    /// The newest policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.versions.back().expect("invariant: a policy has a version").policy
    }

    /// The newest φ with the decision of the last search, as the next version.
    fn publish(&mut self, outer: Outer, phi: Vector, shift: Option<Shift>, recorder: &mut Recorder) -> PolicyVersion {
        let version = PolicyVersion { policy: Policy { phi, is_random: self.carried.is_random }, shift };
        self.versions.push_back(version.clone());
        while self.versions.len() as u64 > self.method.lag + 1 {
            self.versions.pop_front();
        }
        if self.method.checkpoint_due(outer.next()) {
            self.part(outer.next(), recorder);
        }
        self.method.checkpoint_request.forget(outer.next());
        version
    }

    fn part(&self, outer: Outer, recorder: &mut Recorder) {
        let model = &self.method.model;
        let layout = model.layout(TrainLevel::Mask);
        let mut tensors = Vec::new();
        for (age, version) in self.versions.iter().rev().enumerate() {
            let prefix = lag_prefix(age);
            if let Some(Shift(delta)) = &version.shift {
                let (prefix, layout) = (format!("policy.shift.{prefix}"), model.layout(TrainLevel::Pretrain));
                tensors.push(FlatTensors::new(CheckpointFile::Optimizer, prefix, layout, delta.clone()));
            }
            tensors.push(FlatTensors::new(CheckpointFile::Mask, prefix, layout, version.policy.phi.clone()));
        }
        tensors.extend(FlatTensors::moments(TrainLevel::Mask, layout, &self.optimizer));
        if let Some(previous) = &self.previous {
            let prefix = "policy.hypergradient.";
            tensors.push(FlatTensors::new(CheckpointFile::Optimizer, prefix, layout, previous.clone()));
        }
        if let Some((sum, _)) = &self.carried.sum {
            tensors.push(FlatTensors::new(CheckpointFile::Optimizer, SUM_PREFIX, layout, sum.clone()));
        }
        if let Some(adamw) = &self.supervised {
            let layout = model.layout(TrainLevel::Pretrain);
            for (prefix, moment) in SUPERVISED_PREFIXES.iter().zip([&adamw.m, &adamw.v]) {
                tensors.push(FlatTensors::new(CheckpointFile::Optimizer, *prefix, layout, moment.clone()));
            }
        }
        let mut state = serde_json::json!({
            "adamw_step": self.optimizer.step,
            "policy_version": outer.newest_version(),
            RATIO_BASELINE: self.carried.ratio_baseline,
            "num_summed": self.carried.sum.as_ref().map_or(0, |(_, num)| *num),
            "supervised_step": self.supervised.as_ref().map_or(0, |adamw| adamw.step),
        });
        if self.method.searches_branches() {
            let are_random = self.versions.iter().rev().map(|version| version.policy.is_random);
            state[search::ARE_RANDOM] = are_random.collect::<Vec<_>>().into();
        }
        if let Some(search) = &self.carried.search {
            tensors.extend(search::branch_tensors(search, model));
            state[search::BRANCH] = search::branch_state(search);
        }
        recorder.part(CheckpointPart {
            outer,
            step: outer.first_step(self.method.unroll),
            part: PartOf::Policy,
            tensors,
            state,
        });
    }

    /// ∂φ at the snapshot's θ and the *newest* φ, which is the one that the step then moves.
    ///
    /// With a lag that is not the φ that scored x_p: the direction v is as old as the snapshot, but the derivative of
    /// L_m for φ is taken where AdamW applies it, with x_p scored and masked anew. The other choice, the φ of the
    /// snapshot, would be stale twice.
    ///
    /// Where random masks are in use, x_p is masked here as φ would have it all the same: what is asked is how the
    /// learned masks should change.
    fn hypergradient(
        &mut self,
        phi: &Vector,
        snapshot: &Snapshot,
        [mut v1, mut w]: [Vector; 2],
        want_signal: bool,
    ) -> Result<Along, ModelError> {
        let settings = &self.method.settings;
        let last = &snapshot.last;
        if let Some(StepMetric { second_moment, step, adamw, .. }) =
            snapshot.metric.as_ref().filter(|_| settings.precondition)
        {
            for v in [&mut v1, &mut w] {
                *v = self.lane.preconditioned(v, second_moment, *step, adamw)?;
            }
        }
        let (rule, estimator) = (&MaskRule { is_random: false, ..last.rule.clone() }, settings.estimator);
        let (theta, images) = (&snapshot.theta, &last.batch.images);
        let at = Upstream { theta, phi, images, rule, estimator, want_signal };
        self.carried.along(self.method.hypergradient.get(), &mut *self.lane, &at, [v1, w], settings)
    }

    /// What φ holds beside the masking network, as shares that can be read.
    fn record_shares(&mut self, phi: &Vector, step: Step, recorder: &mut Recorder) -> Result<(), ModelError> {
        let model = self.method.model.clone();
        let moment = self.method.moment(step, Level::Mask);
        if let Some(scales) = model.masking.scales() {
            let gates = softmax(&self.lane.values(phi, scales.gates().range())?);
            for (&size, gate) in scales.sizes().iter().zip(gates) {
                let (metric, name) = (Metric::ScaleGate, Metric::scale_gate(size));
                recorder.figure(moment, metric, name, gate, metric.unit());
            }
        }
        let explore = model.masking.explore_arms().map(|arms| (arms.shares(), arms.logits()));
        let ratio = model.masking.ratio_arms().map(|arms| (arms.ratios(), arms.logits()));
        for (arms, metric, of_entropy) in [
            (explore, Metric::ExploreProbability, Metric::ExploreEntropy),
            (ratio, Metric::RatioProbability, Metric::RatioEntropy),
        ] {
            let Some((arms, logits)) = arms else { continue };
            let probabilities = softmax(&self.lane.values(phi, logits.range())?);
            for (&arm, probability) in arms.iter().zip(&probabilities) {
                recorder.figure(moment, metric, metric.of_arm(arm), *probability, metric.unit());
            }
            let surprise = |p: &f64| if *p > 0.0 { -p * p.ln() } else { 0.0 };
            recorder.metric(moment, of_entropy, probabilities.iter().map(surprise).sum());
        }
        Ok(())
    }

    /// What a control does to the encoder: the perturbation ε·w + ε·v1 that `multitask` leaves on it, or a step of
    /// AdamW along v1 + w, without weight decay.
    fn shift(&mut self, direction: &Direction) -> Result<Shift, ModelError> {
        let Direction { v1, w, snapshot, .. } = direction;
        if let Some(adamw) = &mut self.supervised {
            let rate = self.method.rate(TrainLevel::Pretrain, snapshot.outer.end_step(self.method.unroll).0);
            let v = self.lane.sum(v1, w)?;
            // From zero, so that what comes out is the step alone.
            let zero = self.lane.combined(0.0, &v, 0.0, &v)?;
            let step = self.lane.update(adamw, &zero, &v, rate)?;
            return self.lane.combined(-1.0, &step, 0.0, &step).map(Shift);
        }
        let alpha = self.method.settings.alpha;
        let epsilon_w = step_size(alpha, self.lane.norm(w)?);
        let epsilon_v1 = step_size(alpha, self.lane.norm(v1)?);
        self.lane.combined(epsilon_w, w, epsilon_v1, v1).map(Shift)
    }
}

/// Key of the state's running mean of a learned mask ratio's rewards.
pub(crate) const RATIO_BASELINE: &str = "ratio_baseline";
/// Prefix of the tensors of the hypergradients that wait for their mean.
pub(crate) const SUM_PREFIX: &str = "policy.sum.";
/// Prefixes of the moments of the control `supervised`.
pub(crate) const SUPERVISED_PREFIXES: [&str; 2] = ["policy.supervised.m.", "policy.supervised.v."];

/// Prefix of the tensors of the version that is `age` updates old; none for the newest.
pub(crate) fn lag_prefix(age: usize) -> String {
    if age == 0 { String::new() } else { format!("lag{age}.") }
}

impl Stage for PolicyStage {
    type In = Option<Direction>;
    type Out = PolicyVersion;
    type Log = Recorder;
    const NAME: StageName = StageName::Policy;

    fn process(&mut self, unit: u64, input: Self::In, recorder: &mut Recorder) -> Result<PolicyVersion, StageError> {
        let outer = Outer(unit);
        let mut phi = self.policy().phi.clone();
        let Some(direction) = input else {
            return Ok(self.publish(outer, phi, None, recorder));
        };
        let step = outer.end_step(self.method.unroll);
        let failed = internal(StageName::Policy);
        let shift = if self.method.shifts_encoder() { Some(self.shift(&direction).map_err(&failed)?) } else { None };
        if self.method.supervised {
            // The labels train the encoder, and no masks.
            return Ok(self.publish(outer, phi, shift, recorder));
        }
        let is_due = self.method.metrics_due(step, self.method.unroll);
        let Direction { snapshot, v1, w, pair } = direction;
        let optimizer = search::level_1(&self.method, &snapshot);
        let now = optimizer.as_ref().zip(pair.as_ref());
        let now = now.map(|(adamw, pair)| search::moment(&self.method, &snapshot, adamw, pair));
        if let Some(now) = &now {
            let (lane, settings) = (&mut *self.lane, &self.method.settings);
            if let Some(progress) = self.carried.advance_search(lane, &phi, now, settings).map_err(&failed)? {
                search::record(&self.method, &progress, step, recorder);
                if let Some((_, policy)) = progress.end {
                    phi = policy.phi;
                }
            }
        }
        let Along { gradient, path_norms, signal, ratio_reward } =
            self.hypergradient(&phi, &snapshot, [v1, w], is_due).map_err(&failed)?;
        let layout = self.method.model.layout(TrainLevel::Mask);
        check_vector(&mut *self.lane, TrainLevel::Mask, step, "gradient", &gradient, layout)?;
        let rate = self.method.rate(TrainLevel::Mask, outer.0);
        let (lane, at) = (&mut *self.lane, (now.as_ref(), &self.method.settings));
        phi = self.carried.update(lane, &mut self.optimizer, &phi, &gradient, rate, at).map_err(&failed)?;
        if is_due {
            let moment = self.method.moment(step, Level::Mask);
            let mut metric = |metric, value| recorder.metric(moment, metric, value);
            metric(Metric::MaskRate, rate);
            metric(Metric::HypergradientNorm, self.lane.norm(&gradient).map_err(&failed)?);
            if let Some([indirect, direct]) = path_norms {
                metric(Metric::HypergradientIndirectNorm, indirect);
                metric(Metric::HypergradientDirectNorm, direct);
            }
            if let Some(signal) = signal {
                metric(Metric::HypergradientSignal, signal.halves_cosine);
                metric(Metric::UtilityPositive, signal.positive_share);
                metric(Metric::UtilityMean, signal.mean_to_deviation);
            }
            if let Some(reward) = ratio_reward {
                metric(Metric::RatioReward, f64::from(reward));
            }
            if let Some(previous) = &self.previous {
                metric(Metric::HypergradientCosine, self.lane.cosine(&gradient, previous).map_err(&failed)?);
            }
            self.record_shares(&phi, step, recorder).map_err(&failed)?;
        }
        self.previous = Some(gradient);
        Ok(self.publish(outer, phi, shift, recorder))
    }

    fn skip(&mut self, unit: u64, _: Lost, recorder: &mut Recorder) -> Result<Flow<PolicyVersion>, StageError> {
        let phi = self.policy().phi.clone();
        Ok(Flow::Item(self.publish(Outer(unit), phi, None, recorder)))
    }

    fn device_ns(&mut self) -> Option<u64> {
        self.lane.device_ns()
    }

    fn sample_ids(&mut self, _: u64, input: &Self::In) -> Vec<i64> {
        input.as_ref().map_or_else(Vec::new, |direction| direction.snapshot.last.batch.ids.to_vec())
    }

    fn finish(&mut self, next_unit: u64, recorder: &mut Recorder) -> Result<(), StageError> {
        self.part(Outer(next_unit), recorder);
        Ok(())
    }
}

/// The ports of the policy.
#[derive(Debug)]
pub struct PolicyPorts {
    /// From the evaluator.
    pub directions: OrderedReceiver<Flow<OptionalDirection>>,
    /// Policies by version.
    pub policies: SlotWriter<Policy>,
    /// Shifts by policy version, where a control shifts the encoder.
    pub shift: Option<SlotWriter<Option<Shift>>>,
}

impl Wiring<PolicyStage> for PolicyPorts {
    fn receive(
        &mut self,
        unit: u64,
        heed: StopLevel,
        context: &WaitContext,
    ) -> Result<Flow<Option<Direction>>, Interrupt> {
        Ok(self.directions.recv_heeding(unit, heed, context)?.map(|direction| direction.0))
    }

    fn send(&mut self, unit: u64, output: Flow<PolicyVersion>, _: &WaitContext) -> Result<usize, Interrupt> {
        let Flow::Item(PolicyVersion { policy, shift }) = output else { return Ok(0) };
        let bytes = 4 * policy.phi.len();
        let version = Outer(unit).next().newest_version();
        if let Some(slot) = &mut self.shift {
            slot.publish(version.0, Arc::new(shift));
        }
        self.policies.publish(version.0, Arc::new(policy));
        Ok(bytes)
    }
}
