//! The plan of an experiment: every arm's configuration, how long it trains, what that costs, and its cells.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlomae_dataflow::config::{Config, ConfigError, ConfigInputs};
use mlomae_dataflow::input::augment::Normalisation;
use mlomae_kernels as kernels;
use mlomae_storage::dataset::Split;
use mlomae_storage::exit_code::ExitCode;
use serde::Serialize;

use super::cell::{Cell, Failure, JudgedOn};
use super::cost::{Cost, Costs};
use super::experiment::{Arm, Budget, ExperimentFile, trials};
use super::judge::PlannedJudge;
use super::key::{Key, config_key, data_key, judge_key};
use super::statistics::fewest_seeds;
use crate::process::error::CliError;
use crate::process::logging::EventQueue;
use crate::train::experiment::Experiment;

/// Outer iterations of a run at most, as the schema of the configuration has it.
const MAX_OUTER: f64 = 1e9;
/// Sections whose keys must be the same in two arms for their seeds to fix the same data, order and initial weights.
const PAIRED_SECTIONS: [&str; 5] = ["data.", "model.", "pretrain.batch", "finetune.batch", "policy.batch"];

/// An arm, or a trial of one's grid, that is ready to be run on any seed.
#[derive(Debug, Clone)]
pub struct PlannedArm {
    /// The arm's name.
    pub name: String,
    /// The trial's number from 0, if it is one.
    pub trial: Option<usize>,
    /// What it is, in the file's words.
    pub about: String,
    /// Its settings over those of all arms.
    pub set: Vec<String>,
    /// Its configuration, of the first seed.
    pub config: Config,
    /// Whether it is the initial encoder.
    pub untrained: bool,
    /// Hash of the content of its data.
    pub data: Key,
    /// What judges it, if other data than those that train.
    pub judge: Option<PlannedJudge>,
    /// Cost of an outer iteration; of an untrained arm, and of one that cannot be measured, nothing.
    pub cost: Cost,
    /// Why it cannot be measured, and so not be run.
    pub failure: Option<Failure>,
}

/// What a cell of an arm takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Amount {
    /// Outer iterations.
    pub outer: u64,
    /// Level-1 steps.
    pub steps: u64,
    /// Images that level 1 is trained on, repetitions counted.
    pub images: u64,
    /// Labels that levels 2 and 3 see, repetitions counted.
    pub labels: u64,
    /// 10⁹ operations.
    pub gflop: f64,
}

impl PlannedArm {
    /// What a cell of it takes.
    #[must_use]
    pub fn amount(&self) -> Amount {
        if self.untrained || self.failure.is_some() {
            return Amount::default();
        }
        let outer = self.config.train.outer_iterations;
        let steps = outer * self.config.method.unroll;
        Amount {
            outer,
            steps,
            images: steps * self.config.pretrain.batch as u64,
            labels: outer * labels_per_outer(&self.config),
            gflop: outer as f64 * self.cost.gflop,
        }
    }

    /// Seconds of training that a cell is expected to take. None if the arm was not timed.
    #[must_use]
    pub fn expected_seconds(&self) -> Option<f64> {
        if self.untrained {
            return Some(0.0);
        }
        self.cost.seconds.map(|seconds| seconds * self.config.train.outer_iterations as f64)
    }

    /// Its name with that of its trial.
    #[must_use]
    pub fn title(&self) -> String {
        match self.trial {
            Some(trial) => format!("{} trial {trial}", self.name),
            None => self.name.clone(),
        }
    }

    /// Its cell of `seed` below the comparison's folder `out`; `logged` numbers of its logs are among its results.
    ///
    /// # Errors
    /// If the engine is not here.
    pub fn cell(&self, out: &Path, seed: u64, logged: &[String]) -> Result<Cell, CliError> {
        let mut config = self.config.clone();
        config.seed = seed;
        let (folder, on) = match self.trial {
            None => (out.join("cells").join(&self.name), JudgedOn::Test),
            Some(trial) => (out.join("tuning").join(&self.name).join(format!("trial-{trial}")), JudgedOn::Validation),
        };
        let engine = config.engine.choose()?;
        let length = if self.untrained { "untrained" } else { "trained" };
        let judge = self.judge.as_ref().map(|judge| Config { seed, ..judge.config.clone() });
        let data = self.judge.as_ref().map(|judge| judge.data);
        let further = [kernels::isa().name(), engine.device.name(), &engine.description, length];
        Ok(Cell {
            title: format!("{} seed {seed}", self.title()),
            arm: self.name.clone(),
            seed,
            key: config_key(&config, self.data, &further).to_string(),
            judge_key: judge_key(judge.as_ref().unwrap_or(&config), on.as_str(), logged, data).to_string(),
            dir: folder.join(format!("seed-{seed}")),
            config,
            judge,
            untrained: self.untrained,
            on,
            amount: self.amount(),
            failure: self.failure.clone(),
        })
    }
}

/// Labels that an outer iteration sees: those of its two labelled batches, where something learns from them.
fn labels_per_outer(config: &Config) -> u64 {
    let table = toml::Value::try_from(config).unwrap_or(toml::Value::Boolean(false));
    let is_set = |key: &str| table.get("method").and_then(|method| method.get(key)?.as_bool()).unwrap_or(false);
    if config.mask.strategy.is_learned() || is_set("multitask") || is_set("supervised") {
        (config.finetune.batch + config.policy.batch) as u64
    } else {
        0
    }
}

/// Makes plans of an experiment's arms.
#[derive(Debug)]
pub struct Planner<'a> {
    /// The experiment.
    pub file: &'a ExperimentFile,
    /// The experiment's file, as messages name it.
    pub name: &'a str,
    /// The configuration under all arms.
    pub base: ConfigInputs,
    /// The configuration whose data judge, where the experiment names one.
    pub judge_base: Option<ConfigInputs>,
    /// Settings of all arms from the command line.
    pub set: &'a [String],
    /// Events of measured runs.
    pub events: &'a EventQueue,
    /// What is known of the data that were opened, by their section of the configuration.
    data: BTreeMap<String, Opened>,
}

/// What is known of data that were opened.
#[derive(Debug, Clone)]
struct Opened {
    key: Key,
    /// Side of the images in pixels, and their channels, as the networks see them.
    shape: (usize, usize),
    normalisation: Normalisation,
}

impl<'a> Planner<'a> {
    /// A planner that has opened no data yet.
    #[must_use]
    pub fn new(
        file: &'a ExperimentFile,
        name: &'a str,
        base: ConfigInputs,
        judge_base: Option<ConfigInputs>,
        set: &'a [String],
        events: &'a EventQueue,
    ) -> Self {
        Self { file, name, base, judge_base, set, events, data: BTreeMap::new() }
    }

    /// The arms as the file has them, those with grids with the settings in `chosen`.
    ///
    /// # Errors
    /// If a configuration is wrong, or data cannot be opened.
    pub fn arms(&mut self, chosen: &BTreeMap<String, Vec<String>>) -> Result<Vec<PlannedArm>, CliError> {
        let none = Vec::new();
        let file = self.file;
        self.resolve(file.arms.iter().map(|arm| (arm, None, chosen.get(&arm.name).unwrap_or(&none).clone())))
    }

    /// The trials of all arms with grids.
    ///
    /// # Errors
    /// If a configuration is wrong, or data cannot be opened.
    pub fn trials(&mut self) -> Result<Vec<PlannedArm>, CliError> {
        let with_grid = self.file.arms.iter().filter(|arm| !arm.grid.is_empty());
        let all: Vec<_> = with_grid
            .flat_map(|arm| trials(&arm.grid).into_iter().enumerate().map(move |(i, set)| (arm, Some(i), set)))
            .collect();
        self.resolve(all.into_iter())
    }

    fn resolve<'f>(
        &mut self,
        arms: impl Iterator<Item = (&'f Arm, Option<usize>, Vec<String>)>,
    ) -> Result<Vec<PlannedArm>, CliError> {
        let mut common = self.base.clone();
        common.sets.extend(self.file.set.iter().chain(self.set).cloned());
        // What is wrong for all arms is said once.
        Config::resolve(&self.base)?;
        let of_all = |error: ConfigError| ConfigError { key: format!("{}: set: {}", self.name, error.key), ..error };
        Config::resolve(&common).map_err(|errors| errors.into_iter().map(of_all).collect::<Vec<_>>())?;
        let (mut planned, mut errors, mut of_judge) = (Vec::new(), Vec::new(), Vec::new());
        for (arm, trial, further) in arms {
            let mut inputs = common.clone();
            inputs.sets.extend(arm.set.iter().chain(&further).cloned());
            // Cells are judged by the comparison, all in the same way.
            inputs.sets.push("eval.at_end=false".to_owned());
            match Config::resolve(&inputs) {
                Ok(mut config) => {
                    let seeds = if trial.is_some() { &self.file.tuning_seeds } else { &self.file.seeds };
                    config.seed = seeds.first().copied().unwrap_or(0);
                    let judge = self.file.judge.as_ref().map(|judge| judge.config(&inputs, self.judge_base.as_ref()));
                    let judge = judge.transpose().unwrap_or_else(|errors| {
                        // Most are the same for all arms.
                        of_judge
                            .extend(errors.into_iter().filter(|error| !of_judge.contains(error)).collect::<Vec<_>>());
                        None
                    });
                    planned.push(PlannedArm {
                        name: arm.name.clone(),
                        trial,
                        about: arm.about.clone(),
                        set: arm.set.iter().chain(&further).cloned().collect(),
                        config,
                        untrained: arm.untrained,
                        data: Key::of(&[]),
                        judge: judge.map(|config| PlannedJudge { config, data: Key::of(&[]) }),
                        cost: Cost::default(),
                        failure: None,
                    });
                }
                Err(found) => errors.extend(found.into_iter().map(|error| ConfigError {
                    key: format!("{}: arms.{}: {}", self.name, arm.name, error.key),
                    ..error
                })),
            }
        }
        errors.extend(
            of_judge
                .into_iter()
                .map(|error| ConfigError { key: format!("{}: judge: {}", self.name, error.key), ..error }),
        );
        if !errors.is_empty() {
            return Err(errors.into());
        }
        for arm in &mut planned {
            let opened =
                self.opened(&arm.config, None).map_err(|error| self.of(&format!("arms.{}", arm.name), error))?;
            arm.data = opened.key;
            if let Some(judge) = &mut arm.judge {
                judge.data = self.judging(&arm.name, &opened, &judge.config)?;
            }
        }
        Ok(planned)
    }

    /// What is known of the data of `config`. They are opened to judge if the `normalisation` is that of others.
    fn opened(&mut self, config: &Config, normalisation: Option<&Normalisation>) -> Result<Opened, CliError> {
        let what = if normalisation.is_some() { "judge" } else { "train" };
        let section = format!("{what} {}", toml::to_string(&config.data).unwrap_or_default());
        if let Some(opened) = self.data.get(&section) {
            return Ok(opened.clone());
        }
        let experiment = Experiment::new(config.clone(), normalisation.cloned())?;
        if normalisation.is_some() {
            // Says so now if no images judge, and not in every cell.
            experiment.loader(Split::Test)?;
        }
        let shape = (experiment.data.image, experiment.data.channels);
        let opened = Opened { key: data_key(&experiment)?, shape, normalisation: experiment.data.normalisation };
        self.data.insert(section, opened.clone());
        Ok(opened)
    }

    /// The hash of the data of `judge`, whose images must be of the shape of those that `arm` is `trained` on.
    fn judging(&mut self, arm: &str, trained: &Opened, judge: &Config) -> Result<Key, CliError> {
        let opened = self.opened(judge, Some(&trained.normalisation)).map_err(|error| self.of("judge", error))?;
        let text = |(side, channels): (usize, usize)| {
            let plural = if channels == 1 { "" } else { "s" };
            format!("images of {side} x {side} pixels and {channels} channel{plural}")
        };
        if opened.shape != trained.shape {
            let line = format!(
                "{}: judge: has {}, arms.{arm} trains on {} (allowed: the same; data.image and data.channels in its set \
                 resize and convert)",
                self.name,
                text(opened.shape),
                text(trained.shape)
            );
            return Err(CliError::new(ExitCode::Config, line));
        }
        Ok(opened.key)
    }

    /// The `error` of a part of the experiment's file.
    fn of(&self, part: &str, error: CliError) -> CliError {
        match error {
            CliError::Failed { lines, exit_code } => {
                let lines = lines.into_iter().map(|line| format!("{}: {part}: {line}", self.name)).collect();
                CliError::Failed { lines, exit_code }
            }
            other => other,
        }
    }

    /// Counts what the arms cost and gives each the outer iterations of the experiment's budget. They are timed if
    /// `timed`, or where the budget is time. What is measured is kept in the file of `costs` if `is_kept`. An arm that
    /// cannot be measured gets its failure.
    ///
    /// # Errors
    /// If costs cannot be kept, or the budget is less than one outer iteration of an arm.
    pub fn spend(
        &self,
        arms: &mut [PlannedArm],
        costs: &mut Costs,
        timed: bool,
        is_kept: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), CliError> {
        let timed = timed || matches!(self.file.budget, Budget::Seconds(_));
        let trained: Vec<usize> = (0..arms.len()).filter(|i| !arms[*i].untrained).collect();
        let configs: Vec<(&Config, Key)> = trained.iter().map(|i| (&arms[*i].config, arms[*i].data)).collect();
        let found = costs.of(&configs, timed, is_kept, self.events, progress)?;
        for (i, cost) in trained.into_iter().zip(found) {
            let arm = &mut arms[i];
            let cost = match cost {
                Ok(cost) => cost,
                Err(error) => {
                    arm.failure = Some(Failure::of(&error));
                    continue;
                }
            };
            arm.cost = cost;
            let config = &mut arm.config;
            let unroll = config.method.unroll as f64;
            let seconds = cost.seconds.unwrap_or(f64::NAN);
            let outer = match self.file.budget {
                Budget::Config => config.train.outer_iterations as f64,
                Budget::Outer(value) => value,
                Budget::Steps(value) => value / unroll,
                Budget::Images(value) => value / (unroll * config.pretrain.batch as f64),
                Budget::Gflop(value) => value / cost.gflop,
                Budget::Seconds(value) => value / seconds,
            };
            // A quotient that is whole but for rounding is not rounded down.
            let outer = (outer * (1.0 + 1e-12)).floor();
            if !(1.0..=MAX_OUTER).contains(&outer) {
                let what = if outer > MAX_OUTER { "more than 1e9 outer iterations" } else { "less than one" };
                let line = format!(
                    "{}: budget: {} are {what} of arms.{}, of {} GFLOP and {} level-1 images each",
                    self.name,
                    self.file.budget,
                    arm.name,
                    cost.gflop,
                    unroll as usize * config.pretrain.batch
                );
                return Err(CliError::new(ExitCode::Config, line));
            }
            config.train.outer_iterations = outer as u64;
        }
        Ok(())
    }

    /// What a reader of the results should know, and whoever pays for them before.
    #[must_use]
    pub fn warnings(&self, arms: &[PlannedArm], num_seeds: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        for reference in &self.file.references {
            let num_tested = self.file.tested.iter().filter(|arm| *arm != reference).count();
            let fewest = fewest_seeds(num_tested);
            if num_tested > 0 && num_seeds < fewest {
                warnings.push(format!(
                    "{num_seeds} seeds can show nothing against {reference}: with {num_tested} tested arms the exact \
                     test needs at least {fewest} (tested = [...] names those that matter)"
                ));
            }
        }
        for arm in arms.iter().filter(|arm| !arm.untrained && arm.failure.is_none()) {
            let of_arm = |line: String| format!("{}: {line}", arm.title());
            warnings.extend(arm.config.unending_warmups().into_iter().map(of_arm));
        }
        let Some(first) = arms.first() else { return warnings };
        for arm in &arms[1..] {
            let differs = differences(&first.config, &arm.config);
            let of_pairs: Vec<&str> = differs
                .iter()
                .map(|(key, _)| key.as_str())
                .filter(|key| PAIRED_SECTIONS.iter().any(|section| key.starts_with(section)))
                .collect();
            if !of_pairs.is_empty() {
                warnings.push(format!(
                    "{} differs from {} in {}: a seed does not give both the same data, order or initial weights",
                    arm.title(),
                    first.name,
                    of_pairs.join(", ")
                ));
            }
        }
        warnings
    }
}

/// The keys in which two configurations differ, with the value in `other`; those without effect on weights left out.
#[must_use]
pub fn differences(one: &Config, other: &Config) -> Vec<(String, String)> {
    let table = |config: &Config| toml::Value::try_from(config).unwrap_or(toml::Value::Boolean(false));
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves(&table(one), "", &mut before);
    leaves(&table(other), "", &mut after);
    let is_of_arm = |key: &str| !["seed", "run.", "actors."].iter().any(|skipped| key.starts_with(skipped));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter(|key| is_of_arm(key) && before.get(*key) != after.get(*key))
        .map(|key| (key.clone(), after.get(key).cloned().unwrap_or_default()))
        .collect()
}

fn leaves(value: &toml::Value, prefix: &str, all: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, inner) in table {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                leaves(inner, &key, all);
            }
        }
        other => {
            all.insert(prefix.to_owned(), other.to_string());
        }
    }
}

/// Where a comparison keeps what it has measured.
#[must_use]
pub fn costs_path(out: &Path) -> PathBuf {
    out.join("costs.json")
}
