//! The whole pipeline on small networks: serial and threaded runs agree to the bit in every variant of the method, at
//! any lag, number of workers and capacity; a stopped and resumed run agrees with an uninterrupted one.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlomae_model::Params;
use mlomae_model::lane::cpu::Cpus;
use mlomae_model::lane::{Device, DeviceChoice, LaneSize};
use mlomae_model::search::Candidate;
use mlomae_storage::logs::LogRow;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::{Config, ConfigInputs};
use crate::counts::{Outer, Step};
use crate::flow::counters::StageCounters;
use crate::flow::exit::{Exit, StageError};
use crate::flow::stage_name::{EdgeId, StageName};
use crate::flow::stop::{StopFlag, StopReason};
use crate::input::plan::Role;
use crate::method::batch::Panel;
use crate::method::{Method, model_config};
use crate::record::{CheckpointFile, FlatTensors, PartOf, Record, RecordBody, When};
use crate::run::evaluation::Features;
use crate::run::mirror::{Mirror, NS_A_CALL};
use crate::run::pipeline::{Setup, build};
use crate::run::serial::SerialRun;
use crate::run::state::{TensorSource, TensorView, TrainState};
use crate::stages::load_tests::{Memory, UNROLL, stage};
use crate::stages::log::{AssembledCheckpoint, RecordSink};

const NUM_OUTER: u64 = 6;

/// What a run left.
#[derive(Debug, Default)]
struct Kept {
    checkpoints: Vec<AssembledCheckpoint>,
    /// (level, name, step, bits of the value) of every row that does not tell time or memory.
    metrics: Vec<(&'static str, String, Step, u64)>,
    events: Vec<String>,
    /// Asks for a stop when so many further rows are written.
    stop: Option<(usize, StopFlag)>,
}

#[derive(Debug, Default, Clone)]
struct KeepsAll(Arc<Mutex<Kept>>);

impl RecordSink for KeepsAll {
    fn write(&mut self, record: Record) -> Result<(), StageError> {
        let mut kept = self.0.lock().expect("not poisoned");
        if let Some((num_rows, stop)) = &mut kept.stop {
            *num_rows = num_rows.saturating_sub(1);
            if *num_rows == 0 {
                stop.request(StopReason::Terminate);
                kept.stop = None;
            }
        }
        match record.body {
            // Times and memory are the machine's.
            RecordBody::Row(When::At(moment), LogRow::Metrics(row)) if !matches!(&*row.unit, "images/s" | "bytes") => {
                kept.metrics.push((moment.level.name(), row.name.into_owned(), moment.step, row.value.to_bits()));
            }
            RecordBody::Row(_, LogRow::Events(event)) => kept.events.push(event.kind.into_owned()),
            _ => {}
        }
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &AssembledCheckpoint) -> Result<String, StageError> {
        self.0.lock().expect("not poisoned").checkpoints.push(checkpoint.clone());
        Ok(format!("{}", checkpoint.step))
    }

    fn flush(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), StageError> {
        Ok(())
    }
}

impl KeepsAll {
    fn take(&self) -> Kept {
        let mut kept = std::mem::take(&mut *self.0.lock().expect("not poisoned"));
        kept.metrics.sort_unstable();
        kept
    }
}

/// The tensors and states of a checkpoint in an order of their own.
fn bits(checkpoint: &AssembledCheckpoint) -> Vec<(String, Vec<u32>)> {
    let mut all = Vec::new();
    for part in &checkpoint.parts {
        all.push((format!("{:?} {} {}", part.part, part.outer, part.state), Vec::new()));
        for tensors in &part.tensors {
            let values = tensors.values.to_host().unwrap().iter().map(|value| value.to_bits()).collect();
            all.push((format!("{:?} {}", tensors.file, tensors.prefix), values));
        }
    }
    all
}

/// Tensors with their values in host memory.
struct Parts<'a>(Vec<(&'a FlatTensors, Params)>);

impl TensorSource for Parts<'_> {
    fn tensor(&self, file: CheckpointFile, name: &str) -> Option<TensorView<'_>> {
        let all = self.0.iter().filter(|(tensors, _)| tensors.file == file);
        all.filter_map(|(tensors, values)| {
            let entry = tensors.layout.get(name.strip_prefix(&tensors.prefix)?)?;
            Some((&entry.shape[..], &values[entry.range()]))
        })
        .next()
    }
}

fn restore(method: &Method, checkpoint: &AssembledCheckpoint) -> TrainState {
    let state = |part: PartOf| {
        let part = checkpoint.parts.iter().find(|other| other.part == part);
        part.map(|part| part.state.clone()).expect("a part")
    };
    let state = serde_json::json!({
        "outer_iteration": checkpoint.outer,
        "encoder": state(PartOf::Encoder),
        "evaluator": state(PartOf::Evaluator),
        "policy": state(PartOf::Policy),
    });
    let tensors = checkpoint.parts.iter().flat_map(|part| &part.tensors);
    let tensors = tensors.map(|tensors| (tensors, tensors.values.to_host().expect("readable"))).collect();
    TrainState::restore(method, &Parts(tensors), &state).expect("fits")
}

/// Settings that change results.
#[derive(Debug, Clone)]
struct Variant {
    lag: u64,
    settings: Vec<&'static str>,
}

/// A branch search.
const SEARCH: [&str; 8] = [
    "mask.strategy=linear",
    "mask.input=pixels",
    "mask.weights=normalised",
    "mask.select=sample",
    "policy.search=branch",
    "policy.branch_steps=2",
    "policy.branch_judges=2",
    "policy.estimator=both",
];

/// Variants at each lag.
const NUM_FORMS: usize = 14;

fn variants() -> Vec<Variant> {
    let forms: [&[&str]; NUM_FORMS] = [
        &[],
        &["mask.input=pixels", "mask.net=token-mlp", "mask.explore=0.3"],
        &["method.hypergradient=published", "method.head_dropout=0.2"],
        &["mask.strategy=random"],
        &["method.multitask=true"],
        &["compute.precision=bf16"],
        &["mask.input=pixels", "model.pos_embed=frozen", "method.head_dropout=0.1"],
        &[
            "mask.strategy=linear",
            "mask.input=pixels",
            "mask.weights=normalised",
            "mask.select=random",
            "method.hypergradient=ridge",
            "method.ridge_bank=2",
            "method.precondition=adam",
            "policy.average=3",
        ],
        &[
            "mask.input=pixels",
            "mask.weights=none",
            "mask.select=sample",
            "method.hypergradient=cg",
            "policy.estimator=score",
            "policy.average=2",
        ],
        &["method.supervised=true", "mask.select=random", "method.shuffle_labels=true"],
        &["mask.strategy=linear", "mask.input=pixels", "mask.scales=[1,2,4]", "mask.explore_arms=[0.0,0.25,1.0]"],
        &[
            "mask.ratio_arms=[0.5,0.6,0.75]",
            "mask.ratio_per_flop=true",
            "method.hypergradient=tangent",
            "policy.average=2",
        ],
        &SEARCH,
        &[
            "policy.search=branch",
            "policy.average=2",
            "policy.branch_steps=1",
            "policy.branch_judges=1",
            "method.precondition=adam",
        ],
    ];
    let lags = 0..=2;
    lags.flat_map(|lag| forms.iter().map(move |form| Variant { lag, settings: form.to_vec() })).collect()
}

fn config(variant: &Variant, num_outer: u64, actors: &[String]) -> Config {
    let fixed = [
        "data.format=synthetic",
        "data.image=8",
        "model.patch=2",
        "model.dim=8",
        "model.depth=1",
        "model.heads=2",
        "model.dec_dim=8",
        "model.dec_depth=1",
        "model.dec_heads=2",
        "mask.hidden=8",
        "train.grain=2",
        "pretrain.batch=8",
        "finetune.batch=4",
        "policy.batch=4",
        "pretrain.lr=0.01",
        "policy.lr=0.05",
        "checkpoint.every_steps=4",
        "logs.masks_every_steps=3",
    ];
    let mut inputs = ConfigInputs::default();
    for setting in fixed.iter().chain(&variant.settings) {
        inputs = inputs.set(setting);
    }
    for setting in actors {
        inputs = inputs.set(setting);
    }
    let inputs = inputs
        .set(&format!("pipeline.lag={}", variant.lag))
        .set(&format!("train.outer_iterations={num_outer}"))
        .set(&format!("method.unroll={UNROLL}"));
    Config::resolve(&inputs).expect("valid")
}

fn setup(config: &Config, memory: Memory, from: Option<&AssembledCheckpoint>) -> Setup {
    let load = stage(Arc::new(memory));
    let steps_per_epoch = load.plan().batches_per_epoch(Role::Pretrain);
    let method = Method::new(config, &model_config(config, 8, 1, 3), steps_per_epoch).expect("valid");
    let batch = load.samples(&load.plan().panel(Role::Validation, 4)).expect("readable");
    let panel = Panel { batch, objects: None };
    let state = match from {
        Some(checkpoint) => restore(&method, checkpoint),
        None => TrainState::fresh(&method),
    };
    Setup { method, load, state, panel, actors: config.actors.clone() }
}

/// The run on that device, with images as it takes them.
fn on(device: &'static dyn Device, setup: Setup) -> Setup {
    let Setup { mut method, load, panel, .. } = setup;
    method.engine.device = DeviceChoice::of(device);
    let load = load.with_raw_images(method.takes_raw_images());
    let indices: Vec<usize> = panel.batch.ids.iter().map(|id| *id as usize).collect();
    let batch = load.samples(&indices).expect("readable");
    Setup { method, load, panel: Panel { batch, ..panel }, ..setup }
}

fn serial(config: &Config) -> Kept {
    let sink = KeepsAll::default();
    let run = SerialRun::new(setup(config, Memory::new(100), None), sink.clone(), StopFlag::new());
    let (exit, _) = run.expect("threads").run();
    assert!(matches!(exit, Exit::Finished), "{exit}");
    sink.take()
}

fn threaded(setup: Setup, stop_after_rows: Option<usize>) -> (Vec<Exit>, Kept) {
    let sink = KeepsAll::default();
    let stop = StopFlag::new();
    sink.0.lock().expect("not poisoned").stop = stop_after_rows.map(|num_rows| (num_rows, stop.clone()));
    let pipeline = build(setup, sink.clone(), &stop).expect("builds");
    let topology = pipeline.topology.to_string();
    drop(pipeline.log);
    let run = |mut worker: crate::run::pipeline::Worker| {
        std::thread::spawn(move || {
            loop {
                let exit = (worker.run)();
                if !(worker.id.stage.is_restartable() && matches!(exit, Exit::Panicked { .. })) {
                    return exit;
                }
            }
        })
    };
    let threads: Vec<_> = pipeline.workers.into_iter().map(run).collect();
    let begin = Instant::now();
    while threads.iter().any(|thread| !thread.is_finished()) {
        assert!(begin.elapsed() < Duration::from_secs(120), "deadlock:\n{topology}");
        std::thread::sleep(Duration::from_micros(200));
    }
    let exits = threads.into_iter().map(|thread| thread.join().expect("caught")).collect();
    (exits, sink.take())
}

fn random_actors(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut settings = Vec::new();
    for name in StageName::ALL {
        if name != StageName::Log {
            settings.push(format!("actors.{name}.workers={}", rng.random_range(1..=3)));
        }
        settings.push(format!("actors.{name}.queue_cap={}", rng.random_range(0..=4)));
        if !matches!(name, StageName::Load | StageName::Log) {
            settings.push(format!("actors.{name}.micro_batch={}", rng.random_range(0..=12)));
        }
    }
    settings
}

fn last(kept: &Kept) -> Vec<(String, Vec<u32>)> {
    bits(kept.checkpoints.last().expect("a checkpoint"))
}

#[test]
fn serial_and_threaded_agree_to_the_bit_in_every_variant_at_any_workers_and_capacities() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for variant in variants() {
        let wanted = serial(&config(&variant, NUM_OUTER, &[]));
        assert_eq!(wanted.checkpoints.last().map(|checkpoint| checkpoint.outer), Some(Outer(NUM_OUTER)));
        assert!(wanted.metrics.len() > 5 * NUM_OUTER as usize, "{}", wanted.metrics.len());
        for _ in 0..3 {
            let actors = random_actors(&mut rng);
            let config = config(&variant, NUM_OUTER, &actors);
            let (exits, kept) = threaded(setup(&config, Memory::new(100), None), None);
            let what = format!("{variant:?} {actors:?}");
            assert!(exits.iter().all(|exit| matches!(exit, Exit::Finished)), "{what}: {exits:?}");
            let at = |kept: &Kept| kept.checkpoints.iter().map(bits).collect::<Vec<_>>();
            assert!(at(&kept) == at(&wanted), "checkpoints differ: {what}");
            assert!(kept.metrics == wanted.metrics, "metrics differ: {what}");
        }
    }
}

#[test]
fn the_bound_of_the_log_queue_covers_weights_and_moments() {
    for variant in variants() {
        let config = config(&variant, NUM_OUTER, &[]);
        let bounds = setup(&config, Memory::new(100), None).topology().expect("a topology").bounds();
        let bound =
            bounds.iter().find(|bound| bound.id == EdgeId::fan_in(StageName::Log)).expect("the log's edge").large_bytes;
        for checkpoint in serial(&config).checkpoints {
            let tensors = checkpoint.parts.iter().flat_map(|part| &part.tensors);
            let bytes: usize = tensors.map(|tensors| 4 * tensors.values.len()).sum();
            // One in the sender's hand, one queued, one in the hand of the log stage, the final state.
            assert!(bound >= 4 * bytes, "{variant:?}: {bound}, a checkpoint has {bytes}");
        }
    }
}

#[test]
fn the_lag_and_every_variant_change_the_result() {
    let results: Vec<_> = variants().iter().map(|variant| last(&serial(&config(variant, NUM_OUTER, &[])))).collect();
    let weights = |result: &[(String, Vec<u32>)]| {
        result.iter().find(|(name, _)| name.starts_with("Model")).map(|(_, values)| values.clone())
    };
    for (place, result) in results.iter().enumerate() {
        for (other_place, other) in results[..place].iter().enumerate() {
            // Random masks know no policy, so the baseline (form 3) is the same at every lag.
            let same = place % NUM_FORMS == 3 && other_place % NUM_FORMS == 3;
            assert_eq!(
                weights(result) == weights(other),
                same,
                "{:?} {:?}",
                variants()[place],
                variants()[other_place]
            );
        }
    }
}

/// Whether random masks are in use by the newest policy of a checkpoint.
fn is_random(checkpoint: &AssembledCheckpoint) -> bool {
    let part = checkpoint.parts.iter().find(|part| part.part == PartOf::Policy).expect("a part");
    part.state["random_masks"][0].as_bool().expect("a truth value")
}

#[test]
fn random_masks_are_in_use_from_a_decision_for_them_to_the_next() {
    let variant = Variant { lag: 0, settings: [&SEARCH[..], &["checkpoint.every_steps=2"]].concat() };
    let num_outer = 60;
    let kept = serial(&config(&variant, num_outer, &[]));
    let of_name = |name: &str| kept.metrics.iter().filter(|(_, other, ..)| other == name).collect::<Vec<_>>();
    // After outer iteration o the policy of the last decision is the newest.
    let winners: Vec<(Step, f64)> =
        of_name("branch_winner").into_iter().map(|(_, _, step, bits)| (*step, f64::from_bits(*bits))).collect();
    for sign in [-1.0, 0.0, 1.0] {
        assert!(winners.iter().any(|(_, winner)| *winner == sign), "{winners:?}");
    }
    let mut num_random = 0;
    for checkpoint in &kept.checkpoints {
        let done = checkpoint.outer.first_step(UNROLL);
        let last = winners.iter().rev().find(|(step, _)| *step <= done);
        assert_eq!(is_random(checkpoint), last.is_some_and(|(_, winner)| *winner == 0.0), "{done}");
        // The steps that follow mask by it: random masks have no scores.
        for step in [done.next(), done.next().next()] {
            let has_scores = of_name("score_entropy").iter().any(|(_, _, other, _)| *other == step);
            assert!(has_scores != is_random(checkpoint) || checkpoint.outer == Outer(num_outer), "{step}");
        }
        num_random += usize::from(is_random(checkpoint));
    }
    assert!((5..55).contains(&num_random), "{num_random} of {}", kept.checkpoints.len());
    let judged: Vec<_> = Candidate::ALL.iter().map(|c| of_name(&format!("branch_loss.{c}")).len()).collect();
    assert!(judged.iter().all(|num| *num == 2 * winners.len() || *num == 2 * winners.len() + 1), "{judged:?}");
}

/// Stops a run at random moments until it is through; gives its last checkpoint and all metrics.
fn interrupted(variant: &Variant, num_outer: u64, rng: &mut ChaCha8Rng) -> (Vec<(String, Vec<u32>)>, Kept, usize) {
    let mut all = Kept::default();
    let mut checkpoint: Option<AssembledCheckpoint> = None;
    let mut num_runs = 0;
    while checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.outer < Outer(num_outer)) {
        num_runs += 1;
        let config = config(variant, num_outer, &random_actors(rng));
        let stop_after_rows = Some(rng.random_range(1..100));
        let (exits, kept) = threaded(setup(&config, Memory::new(100), checkpoint.as_ref()), stop_after_rows);
        assert!(exits.iter().all(Exit::is_clean), "{variant:?}: {exits:?}");
        assert!(!kept.events.contains(&"incomplete_checkpoint".to_owned()), "{variant:?}");
        // A stop before the first iteration leaves the checkpoint that it began with.
        checkpoint = kept.checkpoints.last().cloned().or(checkpoint);
        all.metrics.extend(kept.metrics);
    }
    all.metrics.sort_unstable();
    (bits(&checkpoint.expect("an end")), all, num_runs)
}

#[test]
fn a_stopped_and_resumed_run_equals_the_uninterrupted_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let num_outer = 40;
    let mut num_runs = 0;
    for variant in variants() {
        let wanted = serial(&config(&variant, num_outer, &[]));
        let (got, kept, runs) = interrupted(&variant, num_outer, &mut rng);
        num_runs += runs;
        assert!(got == last(&wanted), "checkpoints differ: {variant:?}");
        assert!(kept.metrics == wanted.metrics, "metrics have a gap or a repeat: {variant:?}");
    }
    assert!(num_runs >= 2 * variants().len(), "too few runs were interrupted: {num_runs}");
}

#[test]
fn a_panic_in_the_loader_loses_one_batch_and_the_run_ends_well() {
    let roles = stage(Arc::new(Memory::new(100))).plan().roles().clone();
    for lag in 0..=2 {
        for role in Role::ALL {
            let variant = Variant { lag, settings: Vec::new() };
            let actors = ["actors.load.workers=3".into(), "actors.score.queue_cap=0".into()];
            let config = config(&variant, 2 * NUM_OUTER, &actors);
            // The panel is loaded before; a sample outside it strikes in a batch.
            let mut setup = setup(&config, Memory::new(100), None);
            let panel: Vec<i64> = setup.panel.batch.ids.to_vec();
            let poisoned = roles.indices(role).iter().copied().find(|index| !panel.contains(&(*index as i64)));
            let mut memory = Memory::new(100);
            memory.panics_at = poisoned;
            setup.load = stage(Arc::new(memory));
            let (exits, kept) = threaded(setup, None);
            assert!(exits.iter().all(|exit| matches!(exit, Exit::Finished)), "{exits:?}");
            assert_eq!(kept.events.iter().filter(|kind| *kind == "lost_batch").count(), 1, "{role}");
            assert_eq!(kept.checkpoints.last().map(|checkpoint| checkpoint.outer), Some(Outer(2 * NUM_OUTER)));
        }
    }
}

#[test]
fn a_run_that_is_done_has_nothing_left() {
    let variant = Variant { lag: 1, settings: Vec::new() };
    let config = config(&variant, 2, &[]);
    let done = serial(&config);
    let setup = setup(&config, Memory::new(100), done.checkpoints.last());
    let left: Range<Outer> = setup.outers();
    assert!(left.is_empty());
    let (exits, kept) = threaded(setup, None);
    assert!(exits.iter().all(|exit| matches!(exit, Exit::Finished)), "{exits:?}");
    assert!(kept.metrics.is_empty());
}

#[test]
fn a_device_with_a_memory_of_its_own_computes_the_same_and_resumes() {
    for variant in variants() {
        let config = config(&variant, NUM_OUTER, &[]);
        let wanted = serial(&config);
        let run = |from: Option<&AssembledCheckpoint>| {
            let (exits, kept) = threaded(on(&Mirror, setup(&config, Memory::new(100), from)), None);
            assert!(exits.iter().all(|exit| matches!(exit, Exit::Finished)), "{variant:?}: {exits:?}");
            kept
        };
        let whole = run(None);
        assert!(last(&whole) == last(&wanted), "checkpoints differ: {variant:?}");
        assert!(whole.metrics == wanted.metrics, "metrics differ: {variant:?}");
        assert!(whole.checkpoints.len() > 1, "there is one to resume from");
        assert!(last(&run(whole.checkpoints.first())) == last(&wanted), "a resume differs: {variant:?}");
    }
}

#[test]
fn the_time_of_a_device_is_counted_by_stage_and_is_the_same_serially() {
    let config = config(&Variant { lag: 1, settings: Vec::new() }, NUM_OUTER, &[]);
    let on = |device| on(device, setup(&config, Memory::new(100), None));
    let device_ns = |counted: Vec<(StageName, StageCounters)>| -> Vec<(StageName, Option<u64>)> {
        counted.into_iter().map(|(stage, counters)| (stage, counters.snapshot().device_ns)).collect()
    };
    let serially = |device: &'static dyn Device| {
        let run = SerialRun::new(on(device), KeepsAll::default(), StopFlag::new()).expect("starts");
        let counted = run.counters();
        assert!(matches!(run.run().0, Exit::Finished));
        device_ns(counted)
    };
    assert!(serially(&Cpus).iter().all(|(_, ns)| ns.is_none()), "the host has no other clock");
    let serial = serially(&Mirror);
    for (stage, ns) in &serial {
        let computes =
            matches!(stage, StageName::Score | StageName::Encoder | StageName::Evaluator | StageName::Policy);
        assert_eq!(ns.is_some_and(|ns| ns >= NUM_OUTER * NS_A_CALL), computes, "{stage}: {ns:?}");
    }
    let stop = StopFlag::new();
    let pipeline = build(on(&Mirror), KeepsAll::default(), &stop).expect("builds");
    drop(pipeline.log);
    let counted = pipeline.workers.iter().map(|worker| (worker.id.stage, worker.counters.clone())).collect();
    let threads: Vec<_> =
        pipeline.workers.into_iter().map(|mut worker| std::thread::spawn(move || (worker.run)())).collect();
    for thread in threads {
        assert!(matches!(thread.join().expect("caught"), Exit::Finished));
    }
    for (stage, ns) in device_ns(counted) {
        assert_eq!(serial.iter().find(|(other, _)| *other == stage).and_then(|(_, ns)| *ns), ns, "{stage}");
    }
}

#[test]
fn a_device_with_a_memory_of_its_own_has_the_same_features() {
    let variant = Variant { lag: 0, settings: Vec::new() };
    let Setup { method, load, state, .. } = setup(&config(&variant, 1, &[]), Memory::new(100), None);
    let size = LaneSize { num_threads: 1, micro_batch: 2 };
    let features = |device: &'static dyn Device| {
        let mut lane =
            device.lane(&method.model, &method.arena, method.grain, method.precision, size).expect("threads");
        let load = load.clone().with_raw_images(device.takes_raw_images());
        Features::extract(&mut *lane, &state.theta, &load, &[0, 1, 2, 3, 4], 2, &mut |_, _| {}).expect("readable")
    };
    let (here, behind) = (features(&Cpus), features(&Mirror));
    assert_eq!((here.values, here.labels), (behind.values, behind.labels));
}
