//! What an outer iteration of an arm costs: arithmetic by count, time by a short stretch of training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlomae_dataflow::config::{Config, PolicyConfig};
use mlomae_dataflow::counts::Outer;
use mlomae_dataflow::flow::fault::FaultPlan;
use mlomae_dataflow::flow::stop::StopFlag;
use mlomae_dataflow::run::sink::Latest;
use mlomae_dataflow::run::state::TrainState;
use mlomae_kernels as kernels;
use mlomae_model::Precision;
use mlomae_model::lane::cpu::Cpus;
use mlomae_model::lane::{DeviceChoice, Engine};
use mlomae_model::search::PolicySearch;
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
    /// done and what there is to do.
    ///
    /// # Errors
    /// If data cannot be opened, or a measured run fails, with the number of its configuration.
    pub fn of(
        &mut self,
        configs: &[(&Config, Key)],
        timed: bool,
        is_kept: bool,
        events: &EventQueue,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Cost>, (usize, CliError)> {
        let machine = machine();
        let names: Vec<String> = configs.iter().map(|(config, data)| cost_key(config, *data, &machine)).collect();
        let all = configs.len() * if timed { 1 + NUM_ROUNDS } else { 1 };
        let mut done = 0;
        let mut step = |progress: &mut dyn FnMut(usize, usize)| {
            done += 1;
            progress(done, all);
        };
        for (index, (config, _)) in configs.iter().enumerate() {
            if !self.known.contains_key(&names[index]) {
                let gflop =
                    mean_of(&parts(config), |part| gflop_outer(part, events)).map_err(|error| (index, error))?;
                self.known.insert(names[index].clone(), Cost { gflop, seconds: None });
            }
            step(progress);
        }
        if timed {
            let untimed: Vec<bool> = names.iter().map(|name| self.known[name].seconds.is_none()).collect();
            let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for _ in 0..NUM_ROUNDS {
                for (index, (config, _)) in configs.iter().enumerate() {
                    if untimed[index] {
                        let seconds = mean_of(&parts(config), |part| seconds_outer(part, events));
                        let seconds = seconds.map_err(|error| (index, error))?;
                        times.entry(&names[index]).or_default().push(seconds);
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
            write_atomic(&self.path, &text).map_err(|error| (0, error.into()))?;
        }
        Ok(names.iter().map(|name| self.known[name]).collect())
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

/// Configurations whose outer iterations all cost the same, with their shares in those of `config`. A branch search does
/// not work in all of them: it waits for its proposal, trains, and judges at the end of that.
fn parts(config: &Config) -> Vec<(f64, Config)> {
    let policy = &config.policy;
    if policy.search == PolicySearch::Gradient {
        return vec![(1.0, config.clone())];
    }
    let default = PolicyConfig::default();
    let part = |search, average, branch_steps, branch_judges| {
        let policy = PolicyConfig { search, average, branch_steps, branch_judges, ..policy.clone() };
        Config { policy, ..config.clone() }
    };
    // The longest search comes to no judgement in a measured stretch.
    let without = part(PolicySearch::Gradient, 1, default.branch_steps, default.branch_judges);
    let (trained, judged) = (part(PolicySearch::Branch, 1, 65_536, 1), part(PolicySearch::Branch, 1, 1, 1));
    let period = policy.average.max(policy.branch_steps) as f64;
    let (of_training, of_judging) = (policy.branch_steps as f64 / period, policy.branch_judges as f64 / period);
    vec![(1.0 - of_training, without), (of_training - of_judging, trained), (of_judging, judged)]
}

/// The mean of what `measure` finds of the parts, by their shares.
fn mean_of<E>(parts: &[(f64, Config)], mut measure: impl FnMut(&Config) -> Result<f64, E>) -> Result<f64, E> {
    let parts = parts.iter().filter(|(share, _)| *share > 0.0);
    parts.map(|(share, part)| Ok(share * measure(part)?)).sum()
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use mlomae_dataflow::config::ConfigInputs;

    use super::*;

    #[test]
    fn a_search_is_counted_by_the_shares_of_its_iterations() {
        let cost = |settings: &[&str]| {
            let inputs = settings.iter().fold(ConfigInputs::quickstart(), |inputs, setting| inputs.set(setting));
            let parts = parts(&Config::resolve(&inputs).unwrap());
            assert!((parts.iter().map(|(share, _)| share).sum::<f64>() - 1.0).abs() < 1e-12);
            // An iteration costs 10, training three branches 3, judging them 1.
            let measure = |part: &Config| {
                let (policy, is_branch) = (&part.policy, part.policy.search == PolicySearch::Branch);
                let is_judged = is_branch && policy.branch_steps == 1;
                assert!(policy.average == 1 || !is_branch, "the search is on from the second iteration on");
                Ok::<_, Infallible>(10.0 + f64::from(u8::from(is_branch)) * 3.0 + f64::from(u8::from(is_judged)))
            };
            mean_of(&parts, measure).unwrap_or_else(|never| match never {})
        };
        assert_eq!(cost(&["policy.average=7"]), 10.0);
        let branch = ["policy.search=branch", "policy.branch_steps=8", "policy.branch_judges=2"];
        assert_eq!(cost(&branch), 13.25);
        assert_eq!(cost(&[&branch[..], &["policy.average=16"]].concat()), 11.625);
        assert_eq!(cost(&[&branch[..], &["policy.average=4", "policy.branch_judges=8"]].concat()), 14.0);
    }
}
