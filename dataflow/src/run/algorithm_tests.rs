//! The stages are the algorithm, cut apart: the serial executor against [`outer_iteration`], to the bit.

use std::sync::{Arc, Mutex};

use mlomae_model::algorithm::{Batches, Constants, State, outer_iteration};
use mlomae_model::hypergradient::{Carried, FORMS};
use mlomae_model::lane::{CpuLane, Lane, Upstream};
use mlomae_model::levels::Cpu;
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::search::{Candidate, Policy};
use mlomae_model::{Compute, Level, PerLevel, Vector};

use crate::config::{Config, ConfigInputs};
use crate::counts::{Outer, Step, Version};
use crate::flow::exit::{Exit, StageError};
use crate::flow::stage::Stage;
use crate::flow::stop::StopFlag;
use crate::method::batch::{Direction, ScoredBatch, Snapshot};
use crate::record::{Record, Recorder};
use crate::run::data::RunData;
use crate::run::serial::SerialRun;
use crate::run::state::TrainState;
use crate::stages::load::{LoadUnit, Loaded};
use crate::stages::log::{AssembledCheckpoint, RecordSink};
use crate::stages::policy::{PolicyStage, PolicyVersion};

const NUM_OUTER: u64 = 20;

/// The last checkpoint's tensors by file and prefix.
type Tensors = Vec<(String, Vec<u32>)>;

#[derive(Clone, Default)]
struct LastCheckpoint(Arc<Mutex<Tensors>>);

fn bits(vector: &Vector) -> Vec<u32> {
    vector.to_host().unwrap().iter().map(|value| value.to_bits()).collect()
}

impl RecordSink for LastCheckpoint {
    fn write(&mut self, _: Record) -> Result<(), StageError> {
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &AssembledCheckpoint) -> Result<String, StageError> {
        let tensors = checkpoint.parts.iter().flat_map(|part| &part.tensors);
        *self.0.lock().unwrap() = tensors.map(|t| (format!("{:?} {}", t.file, t.prefix), bits(&t.values))).collect();
        Ok(String::new())
    }

    fn flush(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), StageError> {
        Ok(())
    }
}

fn config(settings: &[String]) -> Config {
    let base = include_str!("../../../tests/fixtures/tiny.toml");
    let inputs = ConfigInputs::default().layer("tiny", base).set(&format!("train.outer_iterations={NUM_OUTER}"));
    let inputs = settings.iter().fold(inputs, |inputs, setting| inputs.set(setting));
    Config::resolve(&inputs).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// The state after all outer iterations, by the algorithm alone.
fn by_algorithm(config: &Config) -> State {
    let data = RunData::open(config, None).unwrap();
    let method = data.method(config).unwrap();
    let fresh = TrainState::fresh(&method);
    let mut load = data.loader(config, &data.train, &method).unwrap();
    let cpu = Cpu::new(method.model.clone(), Compute::serial(method.grain));
    let mut lane = CpuLane::new(cpu.with_precision(method.precision));
    let constants = Constants {
        form: method.hypergradient.get(),
        settings: method.settings,
        rates: PerLevel {
            pretrain: &|step| method.rate(Level::Pretrain, step),
            finetune: &|step| method.rate(Level::Finetune, step),
            mask: &|step| method.rate(Level::Mask, step),
        },
        rule: &|step| method.mask_rule(Step(step)),
        noise: &|outer, pass| method.noise(Outer(outer), pass),
    };
    let phi = fresh.phi().clone();
    let mut state = State { theta: fresh.theta, c: fresh.head, phi, adamw: fresh.optimizers, carried: fresh.carried };
    let mut recorder = Recorder::default();
    for outer in Outer(0).until(Outer(NUM_OUTER)) {
        let mut x_p = Vec::new();
        let mut pair = None;
        for unit in LoadUnit::first_of(outer, method.unroll)..LoadUnit::first_of(outer.next(), method.unroll) {
            match load.process(unit, (), &mut recorder).unwrap() {
                Loaded::Pretrain(batch) => x_p.push(batch.ingested(&lane).unwrap().images),
                Loaded::Labelled(labelled) => pair = Some(labelled),
            }
        }
        let pair = pair.unwrap();
        let [finetune, validation] = [pair.finetune, pair.validation].map(|batch| batch.ingested(&lane).unwrap());
        let batches = Batches { pretrain: &x_p, finetune: finetune.labelled(), validation: validation.labelled() };
        outer_iteration(&mut lane, &constants, &mut state, &batches, outer.0, &mut |_| {}).unwrap();
    }
    state
}

/// The tensors of the last checkpoint of a serial run.
fn by_stages(config: &Config) -> Tensors {
    let data = RunData::open(config, None).unwrap();
    let method = data.method(config).unwrap();
    let state = TrainState::fresh(&method);
    let setup = data.setup(config, method, state).unwrap();
    let sink = LastCheckpoint::default();
    let (exit, _) = SerialRun::new(setup, sink.clone(), StopFlag::new()).unwrap().run();
    assert!(matches!(exit, Exit::Finished), "{exit}");
    sink.0.lock().unwrap().clone()
}

#[test]
fn the_serial_executor_is_the_algorithm_to_the_bit() {
    let forms: Vec<String> = FORMS.iter().map(|form| format!("method.hypergradient={}", form.name())).collect();
    for form in &forms {
        for variant in [
            "mask.input=embedding",
            "mask.strategy=token-mlp",
            "method.head_dropout=0.3",
            "mask.strategy=random",
            "mask.strategy=attention mask.ema=0 mask.refresh=0",
            "mask.strategy=loss mask.ema=0 mask.refresh=0",
            "mask.ratio_schedule=random mask.ratio_end=0.5 mask.explore_schedule=cosine mask.explore_end=0.5",
            "compute.precision=bf16",
            "mask.input=pixels mask.weights=normalised mask.select=sample policy.estimator=both policy.average=3 \
             method.precondition=adam",
            "mask.strategy=linear mask.input=pixels mask.weights=normalised mask.select=random",
            "mask.strategy=token-mlp mask.input=pixels mask.select=sample mask.scales=[1,2] mask.explore_arms=[0.0,0.5]",
            "mask.input=embedding mask.select=sample mask.ratio_arms=[0.5,0.6,0.75] policy.average=2",
            "mask.input=embedding policy.search=branch policy.branch_steps=2 policy.branch_judges=1",
            "mask.strategy=linear mask.input=pixels mask.weights=normalised mask.select=sample policy.lr=0.5 \
             policy.search=branch policy.average=2 policy.branch_steps=4 policy.branch_judges=2",
        ] {
            let mut settings: Vec<String> = variant.split_whitespace().map(str::to_owned).collect();
            settings.push(form.clone());
            if form.ends_with("ridge") {
                settings.push("method.ridge_bank=2".to_owned());
            }
            let has_scores =
                !["=random", "=attention", "=loss"].iter().any(|name| variant.contains(&format!("strategy{name}")));
            if has_scores && !variant.contains("mask.select") && !variant.contains("mask.explore") {
                settings.push("mask.explore=0.25".to_owned());
            }
            let config = config(&settings);
            let tensors = by_stages(&config);
            let found = |name: &str| {
                let tensor = tensors.iter().find(|(prefix, _)| prefix == name);
                tensor.unwrap_or_else(|| panic!("{name} is not among {:?}", tensors.iter().map(|t| &t.0))).1.clone()
            };
            let state = by_algorithm(&config);
            assert!(found("Model ") == bits(&state.theta), "{form} {variant}: θ");
            assert!(found("Head ") == bits(&state.c), "{form} {variant}: c");
            assert!(found("Mask ") == bits(&state.phi), "{form} {variant}: φ");
            assert_eq!(state.carried.search.is_some(), variant.contains("search=branch"), "{form} {variant}");
            for (candidate, branch) in Candidate::ALL.iter().zip(state.carried.search.iter().flat_map(|s| &s.branches))
            {
                let place = format!("Optimizer policy.branch.{candidate}");
                assert!(found(&format!("{place}.theta.")) == bits(&branch.theta), "{form} {variant}: θ of {candidate}");
                assert!(found(&format!("{place}.v.")) == bits(&branch.adamw.v), "{form} {variant}: v of {candidate}");
            }
            for (level, adamw) in state.adamw.iter() {
                let prefix = crate::record::optimizer_prefix(level);
                assert!(found(&format!("Optimizer {prefix}.m.")) == bits(&adamw.m), "{form} {variant}: {level} m");
                assert!(found(&format!("Optimizer {prefix}.v.")) == bits(&adamw.v), "{form} {variant}: {level} v");
            }
        }
    }
}

/// With a lag, x_p was scored by an older φ than the newest: the hypergradient is taken at the newest, which the step
/// moves.
#[test]
fn the_hypergradient_is_taken_at_the_newest_policy() {
    let config = config(&["pipeline.lag=1".to_owned(), "mask.input=pixels".to_owned()]);
    let data = RunData::open(&config, None).unwrap();
    let method = data.method(&config).unwrap();
    let mut load = data.loader(&config, &data.train, &method).unwrap();
    let mut recorder = Recorder::default();
    let Loaded::Pretrain(batch) = load.process(0, (), &mut recorder).unwrap() else { panic!("a pretrain batch") };
    let mut lane = CpuLane::serial(method.model.clone(), method.grain);
    let batch = batch.ingested(&lane).unwrap();
    let theta = Vector::from(method.model.init(Level::Pretrain, 1));
    let [older, newest] = [1, 2].map(|seed| Vector::from(method.model.init(Level::Mask, seed)));
    let rule = method.mask_rule(Step(0));
    let scored = lane.score(None, &older, &batch.images, &rule).unwrap();
    let v = |seed| Vector::from(method.model.init(Level::Pretrain, seed));
    let (v1, w) = (v(3), v(4));
    let expected = |lane: &mut CpuLane, phi: &Vector| {
        let (estimator, want_signal) = (method.settings.estimator, false);
        let at = Upstream { theta: &theta, phi, images: &batch.images, rule: &rule, estimator, want_signal };
        let along = method.hypergradient.along(lane, &at, v1.clone(), w.clone(), &method.settings).unwrap();
        let mut adamw = AdamW::new(method.adamw.mask, method.model.layout(Level::Mask));
        lane.update(&mut adamw, &newest, &along.gradient, method.rate(Level::Mask, 0)).unwrap()
    };
    let (at_newest, at_older) = (expected(&mut lane, &newest), expected(&mut lane, &older));
    assert_ne!(bits(&at_newest), bits(&at_older), "the choice makes a difference");

    let versions = [older.clone(), newest.clone()]
        .map(|phi| PolicyVersion { policy: Policy { phi, is_random: false }, shift: None });
    let adamw = AdamW::new(method.adamw.mask, method.model.layout(Level::Mask));
    let mut policy =
        PolicyStage::new(method.clone(), Box::new(lane), versions.into(), adamw, None, Carried::default(), None);
    let last = Arc::new(ScoredBatch { batch, scored, rule, phi: older, policy_version: Version(0) });
    let direction = Direction { snapshot: Snapshot { outer: Outer(0), theta, last, metric: None }, v1, w, pair: None };
    let output = policy.process(0, Some(direction), &mut recorder).unwrap();
    assert_eq!(bits(&output.policy.phi), bits(&at_newest));
}
