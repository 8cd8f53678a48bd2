//! Makes a run directory with made-up rows, for checking the logs with other programs (see
//! `tests/python/check_logs.py`).
//!
//! `cargo run --release -p mlomae-storage --example sample_run -- ROOT finished|killed|slow STEPS`
//!
//! `finished` closes its logs; `killed` aborts in the middle, with a torn stream; `slow` takes 20 ms a step, so that
//! one can look at a running run. Prints the run directory.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use mlomae_storage::checkpoint::{self, CheckpointRef, TensorRef};
use mlomae_storage::logs::{
    ActorRow, Clock, EvalRow, EventRow, Level, LogContext, LogPolicy, LogWriter, MaskRow, MetricRow, Place,
    SCHEMA_VERSION, Severity,
};
use mlomae_storage::run_dir::{RunDir, RunRecord, RunStatus, new_run_id};

type Failure = Box<dyn std::error::Error>;

const GRID: (u16, u16) = (4, 4);

fn step_rows(log: &mut LogWriter, step: i64) -> Result<(), Failure> {
    let stamp = log.clock().stamp();
    let place = |level| Place { stamp, epoch: (step / 100) as i32, step, level };
    let value = 1.0 / (1.0 + step as f64);
    for (level, name, unit) in
        [(Level::Pretrain, "loss", "1"), (Level::Pretrain, "lr", "1"), (Level::Mask, "hypergradient_norm", "1")]
    {
        let value = if step == 5 && name == "lr" { f64::NAN } else { value };
        let row = MetricRow { name: name.into(), value, split: "pretrain".into(), unit: unit.into() };
        log.push(place(Some(level)), row)?;
    }
    if step % 10 == 0 {
        for sample in 0..4 {
            let row = MaskRow {
                sample_id: sample * 1000,
                label: (sample != 3).then_some(sample as i32),
                policy_version: step / 10,
                mask_ratio: 0.75,
                mask: (0..16).map(|i| (i + step) % 4 != 0).collect(),
                score: (sample != 2).then(|| (0..16).map(|i| i as f32 / 16.0).collect()),
                patch_loss: (step % 20 == 0).then(|| vec![0.5; 16]),
                grid_h: GRID.0 as i16,
                grid_w: GRID.1 as i16,
            };
            log.push(place(Some(Level::Mask)), row)?;
        }
        for (i, stage) in ["load", "score", "encoder", "evaluator", "policy", "log"].into_iter().enumerate() {
            let row = ActorRow {
                stage: stage.into(),
                instance: 0,
                items: step,
                bytes: step * 4096,
                busy_s: stamp.wall_s * 0.5,
                wait_in_s: stamp.wall_s * 0.25,
                wait_out_s: 0.0,
                queue_len: (step % 4) as i32,
                queue_cap: 4,
                queue_bytes: 4096 * (step % 4),
                utilization: 0.1 * i as f32,
                restarts: 0,
                lag: 0,
                device_s: None,
            };
            log.push(place((stage == "encoder").then_some(Level::Pretrain)), row)?;
        }
    }
    if step % 50 == 0 {
        let row = EventRow {
            severity: Severity::Info,
            // A new word now and then, so that dictionaries grow while a stream is open.
            kind: format!("milestone_{}", step / 50).into(),
            stage: (step > 0).then_some("log".into()),
            message: format!("step {step}, \"quoted\", ünïcode"),
            fields: format!("{{\"step\":{step}}}"),
        };
        log.push(place(None), row)?;
    }
    Ok(())
}

fn save(run: &Path, step: i64, wall_s: f64) -> Result<PathBuf, Failure> {
    let values = vec![step as f32; 12];
    let weight = TensorRef { name: "patch_embed.proj.weight", shape: &[3, 4], values: &values };
    let state = serde_json::json!({ "step": step, "wall_s": wall_s });
    let checkpoint = CheckpointRef {
        model: vec![weight],
        head: vec![],
        mask: vec![],
        optimizer: vec![weight],
        state: &state,
        keep: 2,
    };
    Ok(checkpoint::save(run, u64::try_from(step)?, &checkpoint)?)
}

fn make(root: &Path, mode: &str, steps: i64) -> Result<(), Failure> {
    let run = RunDir::create(root, &new_run_id(mode))?;
    let mut record = RunRecord::begin(&run.id(), env!("CARGO_PKG_VERSION"), "", 42).with_log_schema(SCHEMA_VERSION);
    run.write_record(&record)?;
    println!("{}", run.path().display());
    let clock = Clock::start();
    let ctx = LogContext {
        run_id: run.id(),
        segment: 0,
        patch_grid: GRID,
        program_version: env!("CARGO_PKG_VERSION").into(),
        clock,
    };
    let policy = LogPolicy {
        flush_every: Duration::from_millis(20),
        seal_rows: 500,
        seal_age: Duration::from_secs(2),
        ..LogPolicy::default()
    };
    let mut log = LogWriter::open(run.path(), ctx, policy)?;
    for step in 0..steps {
        step_rows(&mut log, step)?;
        log.tick()?;
        if step % 100 == 99 {
            log.sync()?;
            save(run.path(), step + 1, clock.wall_s())?;
        }
        if mode == "slow" {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    if mode == "killed" {
        log.flush()?;
        // Half a frame, as if the process had died within a write.
        let live = run.logs().join("live");
        for entry in std::fs::read_dir(&live)?.filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with("metrics-") {
                let torn = [0xff, 0xff, 0xff, 0xff, 0x40, 0x02, 0, 0, 0x10];
                OpenOptions::new().append(true).open(entry.path())?.write_all(&torn)?;
            }
        }
        std::process::abort();
    }
    let row = EvalRow {
        task: "knn".into(),
        split: "test".into(),
        metric: "accuracy".into(),
        value: 0.75,
        n: 1000,
        checkpoint: format!("step-{steps:08}"),
        seconds: 1.5,
        ci_low: None,
        ci_high: None,
    };
    log.push(Place { stamp: clock.stamp(), epoch: 0, step: steps, level: Some(Level::Eval) }, row)?;
    log.close()?;
    record.wall_s = clock.wall_s();
    record.step = steps;
    record.end(RunStatus::Finished, 0, None);
    Ok(run.write_record(&record)?)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match args.as_slice() {
        [root, mode, steps] if ["finished", "killed", "slow"].contains(&mode.as_str()) => {
            steps.parse().ok().map(|steps| (PathBuf::from(root), mode.clone(), steps))
        }
        _ => None,
    };
    let Some((root, mode, steps)) = parsed else {
        eprintln!("usage: sample_run ROOT finished|killed|slow STEPS");
        return ExitCode::from(2);
    };
    match make(&root, &mode, steps) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(74)
        }
    }
}
