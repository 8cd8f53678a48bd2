//! Whole runs of the real stages: serial equals threaded to the bit, whatever the workers, queues and lag.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use mlomae_model::tasks::{TASKS, TaskFacts};
use mlomae_storage::logs::LogRow;

use crate::config::{Config, ConfigInputs};
use crate::counts::{Outer, Step};
use crate::flow::exit::{Exit, StageError};
use crate::flow::stop::StopFlag;
use crate::record::{CheckpointPart, Level, Metric, Record, RecordBody, When};
use crate::run::data::RunData;
use crate::run::pipeline::{Worker, build};
use crate::run::serial::SerialRun;
use crate::run::state::TrainState;
use crate::stages::log::{AssembledCheckpoint, RecordSink};

/// Outer iterations, tensors by name and the stages' states of one checkpoint.
type Kept = (u64, Vec<(String, Vec<u32>)>, Vec<String>);

/// What a run leaves: the bits of every checkpoint part and the metrics that do not depend on time.
#[derive(Debug, Clone, Default, PartialEq)]
struct Trace {
    checkpoints: Vec<Kept>,
    metrics: Vec<(Step, String, String, u64)>,
    masks: Vec<(Step, i64, Vec<bool>)>,
    /// When each level did its work, with the level-1 steps done.
    work: Vec<(SystemTime, Step, String)>,
}

/// Whether a task has a loss or a figure of that name and unit.
fn is_of_a_task(name: &str, unit: &str) -> bool {
    let facts = TaskFacts { dim: 8, grid: 2, patch: 2, num_classes: 2 };
    TASKS.iter().map(|kind| kind.build(&facts)).any(|task| {
        (name, unit) == ("loss", task.loss_unit())
            || task.figures().iter().any(|figure| (figure.name, figure.unit) == (name, unit))
    })
}

#[derive(Clone, Default)]
struct MemorySink(Arc<Mutex<Trace>>);

impl RecordSink for MemorySink {
    fn write(&mut self, record: Record) -> Result<(), StageError> {
        let mut trace = self.0.lock().unwrap();
        if let RecordBody::Row(When::At(moment), LogRow::Metrics(m)) = &record.body {
            // Whatever a stage writes is on the list, or is what a task calls its own.
            if !(matches!(moment.level, Level::Finetune | Level::Mask) && is_of_a_task(&m.name, &m.unit)) {
                let metric = Metric::of(moment.level, &m.name);
                let metric = metric.unwrap_or_else(|| panic!("not listed: {moment:?} {m:?}"));
                assert_eq!((&*m.split, &*m.unit), (metric.split(), metric.unit()), "{metric:?}");
            }
            // What the stage that does a level's work logs when it is done; the mask loss comes from the evaluator.
            let mark = if moment.level == Level::Mask { "hypergradient_norm" } else { "loss" };
            if m.name == mark {
                trace.work.push((record.at, moment.step, moment.level.name().into()));
            }
        }
        match record.body {
            RecordBody::Row(When::At(moment), LogRow::Metrics(m))
                if m.name != "images_per_second" && m.unit != "bytes" =>
            {
                trace.metrics.push((moment.step, moment.level.name().into(), m.name.into(), m.value.to_bits()));
            }
            RecordBody::Row(When::At(moment), LogRow::Masks(m)) => {
                trace.masks.push((moment.step, m.sample_id, m.mask));
            }
            RecordBody::Row(_, LogRow::Events(event)) => {
                assert!(matches!(&*event.kind, "checkpoint" | "branch_decided"), "{event:?}");
            }
            _ => {}
        }
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &AssembledCheckpoint) -> Result<String, StageError> {
        let tensors = checkpoint.parts.iter().flat_map(|part: &Arc<CheckpointPart>| &part.tensors);
        let bits = tensors.map(|t| {
            (format!("{:?} {}", t.file, t.prefix), t.values.to_host().unwrap().iter().map(|v| v.to_bits()).collect())
        });
        let states = checkpoint.parts.iter().map(|part| part.state.to_string()).collect();
        self.0.lock().unwrap().checkpoints.push((checkpoint.outer.0, bits.collect(), states));
        Ok(format!("step {}", checkpoint.step))
    }

    fn flush(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), StageError> {
        let mut trace = self.0.lock().unwrap();
        // Stages log concurrently, so only the order within a level and name is defined.
        trace.metrics.sort();
        trace.masks.sort();
        trace.work.sort();
        trace.checkpoints.sort_by_key(|c| c.0);
        Ok(())
    }
}

fn config(settings: &[&str]) -> Config {
    let base = include_str!("../../../tests/fixtures/tiny.toml");
    let inputs = settings.iter().fold(ConfigInputs::default().layer("test", base), |inputs, s| inputs.set(s));
    Config::resolve(&inputs).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn setup(config: &Config) -> crate::run::pipeline::Setup {
    let data = RunData::open(config, None).unwrap();
    let method = data.method(config).unwrap();
    let state = TrainState::fresh(&method);
    data.setup(config, method, state).unwrap()
}

fn serial(config: &Config) -> Trace {
    let sink = MemorySink::default();
    let (exit, _) = SerialRun::new(setup(config), sink.clone(), StopFlag::new()).unwrap().run();
    assert!(matches!(exit, Exit::Finished), "{exit}");
    sink.0.lock().unwrap().clone()
}

fn threaded(config: &Config) -> Trace {
    let sink = MemorySink::default();
    let pipeline = build(setup(config), sink.clone(), &StopFlag::new()).unwrap();
    let threads: Vec<_> = pipeline.workers.into_iter().map(|Worker { run, .. }| std::thread::spawn(run)).collect();
    drop(pipeline.log);
    for thread in threads {
        let exit = thread.join().unwrap();
        assert!(matches!(exit, Exit::Finished), "{exit}");
    }
    sink.0.lock().unwrap().clone()
}

fn assert_same(expected: &Trace, got: &Trace, what: &str) {
    assert_eq!(expected.checkpoints.len(), got.checkpoints.len(), "{what}");
    for (a, b) in expected.checkpoints.iter().zip(&got.checkpoints) {
        assert!(a == b, "{what}: checkpoints after outer iteration {} differ", a.0);
    }
    assert!(expected.metrics == got.metrics, "{what}: metrics differ");
    assert!(expected.masks == got.masks, "{what}: masks differ");
}

#[test]
fn serial_equals_threaded_at_any_workers_and_queues() {
    let expected = serial(&config(&[]));
    assert_eq!(expected.checkpoints.iter().map(|c| c.0).collect::<Vec<_>>(), [3, 6, 7]);
    assert!(expected.metrics.len() > 100 && expected.masks.len() == 9);
    for workers in [1, 3] {
        for queue_cap in [0, 1, 4] {
            let settings: Vec<String> = ["load", "score", "encoder", "evaluator", "policy"]
                .iter()
                .flat_map(|stage| {
                    [format!("actors.{stage}.workers={workers}"), format!("actors.{stage}.queue_cap={queue_cap}")]
                })
                .collect();
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            assert_same(&expected, &threaded(&config(&settings)), &format!("{workers} workers, queues of {queue_cap}"));
        }
    }
}

#[test]
fn serial_equals_threaded_in_every_variant() {
    for variant in [
        vec!["pipeline.lag=1"],
        vec!["pipeline.lag=2", "mask.input=\"pixels\""],
        vec!["mask.net=\"token-mlp\"", "mask.explore=0.25", "method.head_dropout=0.3"],
        vec!["method.hypergradient=\"published\"", "method.unroll=3"],
        vec!["mask.strategy=random"],
        vec![
            "mask.ratio_schedule=random",
            "mask.ratio_end=0.5",
            "mask.explore_schedule=linear",
            "mask.explore_end=0.5",
            "pipeline.lag=1",
        ],
        vec!["mask.strategy=attention", "mask.attention=hint", "mask.refresh=0", "mask.ema=0.5"],
        vec!["mask.strategy=parts", "mask.refresh=2", "mask.ema=0"],
        vec!["mask.strategy=loss", "compute.precision=bf16"],
        vec!["mask.strategy=mixture", "mask.mixture={ random = 0.5, attention = 0.5 }", "mask.refresh=3"],
        vec![
            "mask.strategy=oracle",
            "mask.oracle_masked=half",
            "mask.oracle_weight=10",
            "data.augment.crop=none",
            "data.augment.flip=false",
        ],
        vec!["mask.strategy=block", "pipeline.lag=1"],
        vec!["mask.strategy=grid"],
        vec!["mask.strategy=noise", "mask.noise=purple"],
        vec!["method.multitask=true", "pipeline.lag=1"],
        vec!["compute.precision=bf16"],
        vec!["compute.precision=bf16", "method.hypergradient=clean", "mask.input=pixels", "pipeline.lag=1"],
        vec![
            "mask.strategy=linear",
            "mask.input=pixels",
            "mask.weights=normalised",
            "mask.select=sample",
            "method.hypergradient=ridge",
            "method.ridge_bank=2",
            "method.precondition=adam",
            "policy.average=3",
            "policy.estimator=both",
            "pipeline.lag=1",
        ],
        vec!["method.supervised=true", "method.hypergradient=cg", "mask.select=random"],
        vec!["mask.strategy=token-mlp", "mask.input=pixels", "mask.scales=[1,2]", "mask.weights=normalised"],
        vec!["mask.strategy=linear", "mask.input=pixels", "mask.explore_arms=[0.0,0.5,1.0]", "pipeline.lag=1"],
        vec!["mask.ratio_arms=[0.5,0.75]", "pipeline.lag=1"],
        vec!["policy.search=branch", "policy.branch_steps=1", "policy.branch_judges=1", "method.unroll=3"],
        vec![
            "mask.strategy=linear",
            "mask.input=pixels",
            "mask.select=random",
            "policy.search=branch",
            "policy.branch_steps=2",
            "policy.branch_judges=1",
            "method.hypergradient=ridge",
            "pipeline.lag=1",
        ],
        vec!["model.pos_embed=\"frozen\"", "pretrain.decay_group=\"matrices\"", "method.unroll=1"],
    ] {
        let expected = serial(&config(&variant));
        let mut settings = variant.clone();
        settings.extend(["actors.load.workers=2", "actors.score.workers=3", "actors.encoder.workers=2"]);
        assert_same(&expected, &threaded(&config(&settings)), &format!("{variant:?}"));
    }
}

#[test]
fn seeds_and_settings_make_a_difference() {
    let base = serial(&config(&[]));
    for setting in [
        "seed=4",
        "pipeline.lag=1",
        "method.multitask=true",
        "mask.explore=0.5",
        "mask.strategy=random",
        "mask.select=sample",
        "method.supervised=true",
        "method.shuffle_labels=true",
        "method.hypergradient=ridge",
        "method.hypergradient=cg",
        "policy.average=2",
        "policy.search=branch",
        "method.precondition=adam",
        "compute.precision=bf16",
    ] {
        assert_ne!(base.checkpoints.last(), serial(&config(&[setting])).checkpoints.last(), "{setting}");
    }
}

#[test]
fn the_levels_work_in_the_published_order() {
    // In lag 0 each level waits for the one before it, so the order of the work is defined with threads too.
    let settings = ["train.outer_iterations=5", "actors.score.workers=2", "actors.load.workers=2"];
    let expected: Vec<(Step, &str)> = Outer(0)
        .until(Outer(5))
        .flat_map(|outer| {
            let (first, last) = (outer.first_step(2).next(), outer.end_step(2));
            [(first, "pretrain"), (last, "pretrain"), (last, "finetune"), (last, "mask")]
        })
        .collect();
    for variant in ["mask.input=embedding", "mask.input=pixels", "method.hypergradient=published"] {
        let config = config(&[&settings[..], &[variant]].concat());
        for (executor, trace) in [("serial", serial(&config)), ("threaded", threaded(&config))] {
            let work: Vec<(Step, &str)> = trace.work.iter().map(|(_, step, level)| (*step, level.as_str())).collect();
            assert_eq!(work, expected, "{executor}, {variant}");
        }
    }
}
