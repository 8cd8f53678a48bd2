//! What an outer iteration of an arm costs: arithmetic by count, time by a short stretch of training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlomae_dataflow::config::Config;
use mlomae_dataflow::counts::Outer;
use mlomae_dataflow::flow::fault::FaultPlan;
use mlomae_dataflow::flow::stop::StopFlag;
use mlomae_dataflow::run::sink::Latest;
use mlomae_dataflow::run::state::TrainState;
use mlomae_kernels as kernels;
use mlomae_model::Precision;
use mlomae_model::lane::cpu::Cpus;
use mlomae_model::lane::{DeviceChoice, Engine};
use mlomae_storage::atomic::write_atomic;
use mlomae_storage::unfinished::Unfinished;
use serde::{Deserialize, Serialize};

use super::key::{Key, config_key};
use crate::measure::measurement::{Limits, measure};
use crate::process::error::{CliError, check_outcome};
use crate::process::logging::EventQueue;
use crate::train::experiment::Experiment;
use crate::train::run::Run;
use crate::train::training::{TrainingOptions, train};

/// Outer iterations over which arithmetic is counted.
const NUM_COUNTED: u64 = 2;
/// Rounds in which arms take turns at being timed.
const NUM_ROUNDS: usize = 3;
/// The stretch of a round.
const STRETCH: Limits = Limits { num_warm_up: 2, min_outer: 3, min_seconds: 0.3 };

/// Cost of one outer iteration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// 10⁹ operations of all products of all three levels. Counted on the processor, whose passes are those of the
    /// algorithm; what a GPU computes twice to save memory is not in it.
    pub gflop: f64,
    /// Seconds, the median of several stretches. None if it was not timed.
    pub seconds: Option<f64>,
}

/// Costs of configurations, kept in a file, so that a budget means the same iterations on every rerun.
#[derive(Debug)]
pub struct Costs {
    path: PathBuf,
    known: BTreeMap<String, Cost>,
}

impl Costs {
    /// Those that are known in the file at `path`; none if it is missing or of no use.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let known = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path: path.to_owned(), known }
    }

    /// The costs of `configs`, each with its data's hash: arithmetic, and time if `timed`, of what is not known yet.
    /// Configurations take turns at being timed. They are written to the file if `is_kept`. `progress` gets what is
    /// done and what there is to do. A configuration of which a measured run fails has the error in its place.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn of(
        &mut self,
        configs: &[(&Config, Key)],
        timed: bool,
        is_kept: bool,
        events: &EventQueue,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Result<Cost, CliError>>, CliError> {
        let machine = machine();
        let names: Vec<String> = configs.iter().map(|(config, data)| cost_key(config, *data, &machine)).collect();
        let all = configs.len() * if timed { 1 + NUM_ROUNDS } else { 1 };
        let mut failed: BTreeMap<usize, CliError> = BTreeMap::new();
        let mut done = 0;
        let mut step = |progress: &mut dyn FnMut(usize, usize)| {
            done += 1;
            progress(done, all);
        };
        for (index, (config, _)) in configs.iter().enumerate() {
            if !self.known.contains_key(&names[index]) {
                match gflop_outer(config, events) {
                    Ok(gflop) => {
                        self.known.insert(names[index].clone(), Cost { gflop, seconds: None });
                    }
                    Err(error) => {
                        failed.insert(index, error);
                    }
                }
            }
            step(progress);
        }
        if timed {
            let is_untimed = |name: &String| self.known.get(name).is_some_and(|cost| cost.seconds.is_none());
            let untimed: Vec<bool> = names.iter().map(is_untimed).collect();
            let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for _ in 0..NUM_ROUNDS {
                for (index, (config, _)) in configs.iter().enumerate() {
                    if untimed[index] && !failed.contains_key(&index) {
                        match seconds_outer(config, events) {
                            Ok(seconds) => times.entry(&names[index]).or_default().push(seconds),
                            Err(error) => {
                                failed.insert(index, error);
                            }
                        }
                    }
                    step(progress);
                }
            }
            for (name, mut times) in times {
                times.sort_by(f64::total_cmp);
                if let Some(cost) = self.known.get_mut(name) {
                    cost.seconds = Some(times[times.len() / 2]);
                }
            }
        }
        if is_kept {
            let text = serde_json::to_vec_pretty(&self.known).unwrap_or_default();
            write_atomic(&self.path, &text)?;
        }
        let found = |(index, name): (usize, &String)| match failed.remove(&index) {
            Some(error) => Err(error),
            // What did not fail is known.
            None => Ok(self.known.get(name).copied().unwrap_or_default()),
        };
        Ok(names.iter().enumerate().map(found).collect())
    }
}

/// The machine, as far as its speed depends on it.
#[must_use]
pub fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let host = mlomae_storage::run_dir::Host::this(kernels::isa().name());
    format!("{}, {cpus} cores, {}", host.name, host.isa)
}

fn cost_key(config: &Config, data: Key, machine: &str) -> String {
    let mut config = config.clone();
    // Neither changes what an iteration costs.
    config.seed = 0;
    config.train.outer_iterations = 1;
    format!("{} on {machine}", config_key(&config, data, &[]))
}

/// Keeps all weights as they are, which costs the same: an arm that diverges costs as much as another, and its warnings
/// are for its cells to give.
fn at_rest(config: &mut Config) {
    config.checkpoint.every_steps = 0;
    config.eval.at_end = false;
    for rate in [&mut config.pretrain.lr, &mut config.finetune.lr, &mut config.policy.lr] {
        *rate = 0.0;
    }
}

/// 10⁹ operations of an outer iteration: of a serial run on the processor, between its start and its end.
fn gflop_outer(config: &Config, events: &EventQueue) -> Result<f64, CliError> {
    let mut config = config.clone();
    config.engine = Engine::Of(DeviceChoice::of(&Cpus));
    if config.compute.precision == Precision::Tf32 {
        config.compute.precision = Precision::F32;
    }
    config.logs.masks_every_steps = 0;
    at_rest(&mut config);
    let mut experiment = Experiment::new(config, None)?;
    // With a lag the first iterations do less.
    let first = 2 + u64::from(experiment.config.pipeline.lag);
    let few = operations(&mut experiment, first, events)?;
    let more = operations(&mut experiment, first + NUM_COUNTED, events)?;
    Ok(more.saturating_sub(few) as f64 / NUM_COUNTED as f64 * 1e-9)
}

/// Operations of a run of `num_outer` outer iterations.
fn operations(experiment: &mut Experiment, num_outer: u64, events: &EventQueue) -> Result<u64, CliError> {
    experiment.config.train.outer_iterations = num_outer;
    experiment.method = experiment.data.method(&experiment.config)?;
    let scratch =
        tempfile::tempdir().map_err(|error| CliError::file("create folder", &std::env::temp_dir(), &error))?;
    let _unfinished = Unfinished::note(scratch.path());
    let latest = Latest::default();
    let sink = Run::scratch(scratch.path(), experiment)?.sink(experiment, Outer(0), latest.clone())?;
    let state = TrainState::fresh(&experiment.method);
    let options = TrainingOptions {
        serial: true,
        display: None,
        events: events.clone(),
        stop: StopFlag::new(),
        latest,
        observer: None,
        faults: FaultPlan::default(),
    };
    let before = kernels::flops();
    let report = train(experiment, state, sink, options)?;
    check_outcome(&report.outcome)?;
    Ok(kernels::flops() - before)
}

/// Seconds of an outer iteration, on the configuration's own device.
fn seconds_outer(config: &Config, events: &EventQueue) -> Result<f64, CliError> {
    let mut config = config.clone();
    config.train.outer_iterations = 1_000_000_000;
    at_rest(&mut config);
    let experiment = Experiment::new(config, None)?;
    Ok(1e-3 * measure(&experiment, STRETCH, events)?.ms_outer())
}
