//! The file of an experiment: which arms, which seeds, what is judged, and how long each arm may train.

use std::collections::BTreeMap;

use mlomae_dataflow::config::{ConfigError, ConfigInputs, most_like, parse_toml};
use toml::{Table, Value};

use super::evaluations::{EVALUATIONS, loggable, logged_name, metric_names};
use super::judge::JudgeFile;
use super::ready::{READY, ReadyArm, by_name};
use super::statistics::MAX_SEEDS;

/// Combinations of a grid at most.
const MAX_TRIALS: usize = 256;
/// Characters of an arm's name at most: it names a folder.
const MAX_NAME: usize = 64;

/// How long an arm trains.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// As many outer iterations as `train.outer_iterations` says.
    Config,
    /// Outer iterations.
    Outer(f64),
    /// Level-1 steps.
    Steps(f64),
    /// Images that level 1 is trained on, repetitions counted.
    Images(f64),
    /// 10⁹ operations of all passes, those of levels 2 and 3 included.
    Gflop(f64),
    /// Seconds of training, alone on the machine.
    Seconds(f64),
}

impl Budget {
    /// The kinds that a file may name, in the words of messages.
    pub const KINDS: &'static str = "outer (outer iterations), steps (level-1 steps), images, gflop, seconds";

    fn new(kind: &str, value: f64) -> Option<Self> {
        Some(match kind {
            "outer" => Self::Outer(value),
            "steps" => Self::Steps(value),
            "images" => Self::Images(value),
            "gflop" => Self::Gflop(value),
            "seconds" => Self::Seconds(value),
            _ => return None,
        })
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config => f.write_str("train.outer_iterations of each arm"),
            Self::Outer(value) => write!(f, "{value} outer iterations"),
            Self::Steps(value) => write!(f, "{value} level-1 steps"),
            Self::Images(value) => write!(f, "{value} pretraining images"),
            Self::Gflop(value) => write!(f, "{value} GFLOP, levels 2 and 3 included"),
            Self::Seconds(value) => write!(f, "{value} s of training on this machine alone"),
        }
    }
}

/// A grid of hyperparameters: keys with the values that are tried, all combined.
pub type Grid = Vec<(String, Vec<Value>)>;

/// An arm as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Its name, which is a folder's too.
    pub name: String,
    /// What it is, in the file's words.
    pub about: String,
    /// The ready-made arm that it begins from.
    pub ready: Option<String>,
    /// Settings: those of the ready-made arm, then its own.
    pub set: Vec<String>,
    /// Whether it is the initial encoder, without a step of training.
    pub untrained: bool,
    /// Hyperparameters to choose; empty if none.
    pub grid: Grid,
}

/// An experiment's file.
#[derive(Debug, Clone, PartialEq)]
pub struct ExperimentFile {
    /// The configuration under all arms: a path, relative to this file, or `quickstart`.
    pub base: String,
    /// Seeds, each a pair of all arms.
    pub seeds: Vec<u64>,
    /// Seeds on which hyperparameters are chosen.
    pub tuning_seeds: Vec<u64>,
    /// Arms that the others are held against.
    pub references: Vec<String>,
    /// Arms that verdicts are given on, which are adjusted for their number.
    pub tested: Vec<String>,
    /// The metric of the verdicts.
    pub primary: String,
    /// Evaluations of every cell.
    pub evals: Vec<String>,
    /// Numbers of the logs that are shown beside the evaluations.
    pub logged: Vec<String>,
    /// Settings of all arms.
    pub set: Vec<String>,
    /// How long an arm trains.
    pub budget: Budget,
    /// What judges, if other data than those that train.
    pub judge: Option<JudgeFile>,
    /// The arms, references first, then in the order of the file.
    pub arms: Vec<Arm>,
}

/// The errors of a file, collected.
pub(super) struct Errors {
    file: String,
    all: Vec<ConfigError>,
}

impl Errors {
    pub(super) fn add(
        &mut self,
        key: &str,
        value: Option<&Value>,
        problem: &str,
        allowed: &str,
        suggestion: Option<&str>,
    ) {
        self.all.push(ConfigError {
            key: format!("{}: {key}", self.file),
            value: value.map(Value::to_string).unwrap_or_default(),
            problem: problem.to_owned(),
            allowed: allowed.to_owned(),
            suggestion: suggestion.map(str::to_owned),
        });
    }

    /// Reports every key of `table` that is not among `known`.
    pub(super) fn unknown(&mut self, prefix: &str, table: &Table, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
            let like = most_like(key, known.iter().copied());
            self.add(&format!("{prefix}{key}"), None, "unknown key", &known.join(", "), like);
        }
    }

    pub(super) fn text(&mut self, table: &Table, prefix: &str, key: &str, allowed: &str) -> Option<String> {
        match table.get(key)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.add(&format!("{prefix}{key}"), Some(other), "is no text", allowed, None);
                None
            }
        }
    }

    pub(super) fn texts(&mut self, table: &Table, prefix: &str, key: &str, allowed: &str) -> Option<Vec<String>> {
        let value = table.get(key)?;
        let texts = value.as_array().and_then(|items| {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
        });
        if texts.is_none() {
            self.add(&format!("{prefix}{key}"), Some(value), "is no list of texts", allowed, None);
        }
        texts
    }

    fn seeds(&mut self, table: &Table, key: &str) -> Vec<u64> {
        let Some(value) = table.get(key) else { return Vec::new() };
        let allowed = format!("a list of 1 to {MAX_SEEDS} different whole numbers from 0");
        let number = |item: &Value| item.as_integer().and_then(|seed| u64::try_from(seed).ok());
        let seeds: Option<Vec<u64>> = value.as_array().and_then(|items| items.iter().map(number).collect());
        match seeds {
            Some(seeds) if !seeds.is_empty() && seeds.len() <= MAX_SEEDS => {
                let twice = seeds.iter().enumerate().find(|(i, seed)| seeds[..*i].contains(seed));
                if let Some((_, seed)) = twice {
                    self.add(key, Some(value), &format!("names seed {seed} twice"), &allowed, None);
                }
                seeds
            }
            _ => {
                self.add(key, Some(value), "is no list of seeds", &allowed, None);
                Vec::new()
            }
        }
    }

    /// Reports `name` unless it is one of `known`.
    fn one_of(&mut self, key: &str, name: &str, known: &[&str], problem: &str) {
        if !known.contains(&name) {
            let value = Value::String(name.to_owned());
            self.add(key, Some(&value), problem, &known.join(", "), most_like(name, known.iter().copied()));
        }
    }
}

const KEYS: [&str; 13] = [
    "base",
    "seeds",
    "tuning_seeds",
    "reference",
    "references",
    "tested",
    "primary",
    "evals",
    "logged",
    "set",
    "budget",
    "judge",
    "arms",
];
const ARM_KEYS: [&str; 6] = ["ready", "set", "about", "untrained", "steps", "grid"];

impl ExperimentFile {
    /// Reads the text of an experiment's file, which messages call `file`.
    ///
    /// # Errors
    /// Every error that can be found, not only the first. Settings are checked where they become configurations.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<ConfigError>> {
        let table = parse_toml(file, text).map_err(|error| vec![error])?;
        let mut errors = Errors { file: file.to_owned(), all: Vec::new() };
        errors.unknown("", &table, &KEYS);
        let base = errors.text(&table, "", "base", "a path or \"quickstart\"");
        if !table.contains_key("base") {
            errors.add("base", None, "is missing", "a path relative to the experiment's file, or \"quickstart\"", None);
        }
        let seeds = errors.seeds(&table, "seeds");
        if !table.contains_key("seeds") {
            errors.add("seeds", None, "is missing", "a list of whole numbers, as in seeds = [0, 1, 2, 3, 4, 5]", None);
        }
        let tuning_seeds = errors.seeds(&table, "tuning_seeds");
        if let Some(seed) = tuning_seeds.iter().find(|seed| seeds.contains(seed)) {
            let value = table.get("tuning_seeds");
            let problem = format!("seed {seed} is one of seeds too: what is chosen on it cannot be judged on it");
            errors.add("tuning_seeds", value, &problem, "seeds that are not in seeds", None);
        }
        let mut arms = arms(&table, text, &mut errors);
        let names: Vec<String> = arms.iter().map(|arm| arm.name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();

        let references = references(&table, &names, &mut errors);
        let others = || names.iter().filter(|name| !references.iter().any(|reference| reference == *name));
        let tested = match errors.texts(&table, "", "tested", "names of arms") {
            Some(tested) => {
                tested.iter().for_each(|name| errors.one_of("tested", name, &names, "is no arm"));
                tested
            }
            None => others().map(|name| (*name).to_owned()).collect(),
        };
        let evals = evals(&table, &mut errors);
        let loggable: Vec<&str> = loggable().map(|metric| metric.name()).collect();
        let logged = errors.texts(&table, "", "logged", &loggable.join(", ")).unwrap_or_default();
        logged.iter().for_each(|name| errors.one_of("logged", name, &loggable, "is no number of the logs"));
        let metrics: Vec<String> = evals.iter().flat_map(|eval| metric_names(eval)).collect();
        let metrics: Vec<&str> = metrics.iter().map(String::as_str).collect();
        let primary = errors.text(&table, "", "primary", &metrics.join(", "));
        if let Some(primary) = &primary {
            errors.one_of("primary", primary, &metrics, "is no metric of an evaluation in evals");
        }
        let primary = primary.or_else(|| metrics.last().map(|metric| (*metric).to_owned())).unwrap_or_default();
        let set = errors.texts(&table, "", "set", "settings, as in [\"pretrain.lr=1e-3\"]").unwrap_or_default();
        let budget = budget(&table, &mut errors);
        let judge = JudgeFile::parse(&table, &mut errors);
        check_grids(&arms, &table, &tuning_seeds, &mut errors);
        for setting in &set {
            check_setting("set", setting, budget, &mut errors);
        }
        for arm in &arms {
            arm.set.iter().for_each(|set| check_setting(&format!("arms.{}.set", arm.name), set, budget, &mut errors));
            let of_grid = arm.grid.iter().map(|(key, values)| format!("{key}={}", values[0]));
            of_grid.for_each(|set| check_setting(&format!("arms.{}.grid", arm.name), &set, budget, &mut errors));
        }
        arms.sort_by_key(|arm| references.iter().position(|name| *name == arm.name).unwrap_or(usize::MAX));
        if !errors.all.is_empty() {
            return Err(errors.all);
        }
        let base = base.unwrap_or_default();
        Ok(Self { base, seeds, tuning_seeds, references, tested, primary, evals, logged, set, budget, judge, arms })
    }

    /// Full names of all metrics, those of evaluations first.
    #[must_use]
    pub fn metrics(&self) -> Vec<String> {
        let of_evals = self.evals.iter().flat_map(|eval| metric_names(eval));
        of_evals.chain(self.logged.iter().map(|name| logged_name(name))).collect()
    }
}

/// Why the experiment itself says what `setting` would say, which would be passed over: the key and where it is said.
#[must_use]
pub fn overruled(setting: &str, budget: Budget) -> Option<(&'static str, &'static str)> {
    const KEYS: [(&str, &str); 5] = [
        ("seed", "seeds says it"),
        ("run.root", "cells lie in the comparison's folder"),
        ("run.id", "cells lie in the comparison's folder"),
        ("eval.at_end", "cells are judged by the comparison"),
        ("train.outer_iterations", "budget says it"),
    ];
    let inputs = ConfigInputs::default().set(setting);
    let is_overruled =
        |(key, _): &&(&str, &str)| inputs.gives(key) && !(budget == Budget::Config && *key == "train.outer_iterations");
    KEYS.iter().find(is_overruled).copied()
}

/// Refuses a setting that would be passed over.
fn check_setting(place: &str, setting: &str, budget: Budget, errors: &mut Errors) {
    if let Some((key, why)) = overruled(setting, budget) {
        let shown = Value::String(setting.to_owned());
        errors.add(place, Some(&shown), &format!("has no effect here: {why}"), &format!("no {key}"), None);
    }
}

fn references(table: &Table, names: &[&str], errors: &mut Errors) -> Vec<String> {
    let key = if table.contains_key("references") { "references" } else { "reference" };
    if table.contains_key("reference") && table.contains_key("references") {
        errors.add("references", None, "stands beside reference", "one of the two", None);
    }
    let references = match key {
        "reference" => errors.text(table, "", key, &names.join(", ")).map(|name| vec![name]),
        _ => errors.texts(table, "", key, &names.join(", ")),
    };
    match &references {
        Some(references) => {
            references.iter().for_each(|name| errors.one_of(key, name, names, "is no arm"));
            if references.is_empty() {
                errors.add(key, table.get(key), "is empty", &names.join(", "), None);
            }
        }
        None if !table.contains_key(key) => errors.add(key, None, "is missing", &names.join(", "), None),
        None => {}
    }
    references.unwrap_or_default()
}

fn evals(table: &Table, errors: &mut Errors) -> Vec<String> {
    let known: Vec<&str> = EVALUATIONS.iter().map(|eval| eval.name).collect();
    let Some(evals) = errors.texts(table, "", "evals", &known.join(", ")) else {
        return known.iter().map(|name| (*name).to_owned()).collect();
    };
    evals.iter().for_each(|name| errors.one_of("evals", name, &known, "is no evaluation"));
    if evals.is_empty() {
        errors.add("evals", table.get("evals"), "is empty", &known.join(", "), None);
    }
    evals
}

fn budget(table: &Table, errors: &mut Errors) -> Budget {
    let Some(value) = table.get("budget") else { return Budget::Config };
    let Some(inner) = value.as_table() else {
        errors.add("budget", Some(value), "is no table", "{ kind = \"steps\", value = 2000 }", None);
        return Budget::Config;
    };
    errors.unknown("budget.", inner, &["kind", "value"]);
    let kind = errors.text(inner, "budget.", "kind", Budget::KINDS);
    if !inner.contains_key("kind") {
        errors.add("budget.kind", None, "is missing", Budget::KINDS, None);
    }
    let number = inner.get("value").and_then(|v| v.as_float().or_else(|| v.as_integer().map(|v| v as f64)));
    let number = number.filter(|number| number.is_finite() && *number > 0.0);
    if number.is_none() {
        errors.add("budget.value", inner.get("value"), "is no number above 0", "a number above 0", None);
    }
    let Some((kind, number)) = kind.zip(number) else { return Budget::Config };
    Budget::new(&kind, number).unwrap_or_else(|| {
        let kinds = ["outer", "steps", "images", "gflop", "seconds"];
        let like = most_like(&kind, kinds.into_iter());
        errors.add("budget.kind", inner.get("kind"), "is no kind of budget", Budget::KINDS, like);
        Budget::Config
    })
}

/// The arms in the order of the file.
fn arms(table: &Table, text: &str, errors: &mut Errors) -> Vec<Arm> {
    let tables = match table.get("arms") {
        Some(Value::Table(arms)) if !arms.is_empty() => arms,
        Some(other) => {
            errors.add("arms", Some(other), "has no arms", "[arms.NAME] with set, ready, about, untrained, grid", None);
            return Vec::new();
        }
        None => {
            errors.add("arms", None, "is missing", "[arms.NAME] with set, ready, about, untrained, grid", None);
            return Vec::new();
        }
    };
    let places = places(text);
    let mut names: Vec<&String> = tables.keys().collect();
    names.sort_by_key(|name| places.get(*name).copied().unwrap_or(usize::MAX));
    names.into_iter().filter_map(|name| arm(name, &tables[name], errors)).collect()
}

/// Where in the text each arm is first named.
fn places(text: &str) -> BTreeMap<String, usize> {
    let Ok(table) = toml::de::DeTable::parse(text) else { return BTreeMap::new() };
    let Some(arms) = table.get_ref().get("arms").and_then(|arms| arms.get_ref().as_table()) else {
        return BTreeMap::new();
    };
    arms.iter().map(|(key, _)| (key.get_ref().to_string(), key.span().start)).collect()
}

fn arm(name: &str, value: &Value, errors: &mut Errors) -> Option<Arm> {
    let key = format!("arms.{name}");
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || name.len() > MAX_NAME || !name.chars().all(is_name) {
        let allowed = "up to 64 letters, digits, dots, hyphens and underscores, a letter or digit first";
        errors.add(&key, None, "is no name of an arm", allowed, None);
    }
    let Some(table) = value.as_table() else {
        errors.add(&key, Some(value), "is no table", &ARM_KEYS.join(", "), None);
        return None;
    };
    let prefix = format!("{key}.");
    errors.unknown(&prefix, table, &ARM_KEYS);
    let known: Vec<&str> = READY.iter().map(|arm| arm.name).collect();
    let ready = errors.text(table, &prefix, "ready", &known.join(", "));
    if let Some(ready) = &ready {
        errors.one_of(&format!("{prefix}ready"), ready, &known, "is no ready-made arm");
    }
    let made: Option<&ReadyArm> = ready.as_deref().and_then(by_name);
    let mut untrained = made.is_some_and(|made| made.untrained);
    match table.get("untrained") {
        Some(Value::Boolean(given)) => untrained = *given,
        Some(other) => errors.add(&format!("{prefix}untrained"), Some(other), "is no truth value", "true, false", None),
        None => {}
    }
    match table.get("steps") {
        Some(Value::Integer(0)) => untrained = true,
        Some(other) => {
            let problem = "is not 0; how long arms train is a matter of budget";
            errors.add(&format!("{prefix}steps"), Some(other), problem, "0, the same as untrained = true", None);
        }
        None => {}
    }
    let own = errors.texts(table, &prefix, "set", "settings, as in [\"mask.strategy=random\"]").unwrap_or_default();
    let set = made.map(ReadyArm::settings).unwrap_or_default().into_iter().chain(own).collect();
    let about = errors.text(table, &prefix, "about", "a text");
    let about = about.or_else(|| made.map(|made| made.about.to_owned())).unwrap_or_default();
    let grid = grid(table, &prefix, errors);
    if untrained && !grid.is_empty() {
        errors.add(&format!("{prefix}grid"), None, "an untrained arm has nothing to choose", "no grid", None);
    }
    Some(Arm { name: name.to_owned(), about, ready, set, untrained, grid })
}

fn grid(arm: &Table, prefix: &str, errors: &mut Errors) -> Grid {
    let Some(value) = arm.get("grid") else { return Grid::new() };
    let allowed = "keys with lists of values, as in \"policy.lr\" = [1e-4, 1e-3]";
    let Some(table) = value.as_table().filter(|table| !table.is_empty()) else {
        errors.add(&format!("{prefix}grid"), Some(value), "has no keys", allowed, None);
        return Grid::new();
    };
    let mut grid = Grid::new();
    flatten(table, "", &mut grid, &mut |key, value| {
        errors.add(&format!("{prefix}grid.{key}"), Some(value), "is no list of values", allowed, None);
    });
    if num_trials(&grid) > MAX_TRIALS {
        let problem = format!("has {} combinations", num_trials(&grid));
        errors.add(&format!("{prefix}grid"), None, &problem, &format!("at most {MAX_TRIALS}"), None);
    }
    grid
}

/// Collects the lists of `table` under dotted keys: `"policy.lr"` and `policy.lr` are the same.
fn flatten(table: &Table, prefix: &str, grid: &mut Grid, refuse: &mut dyn FnMut(&str, &Value)) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => flatten(inner, &key, grid, refuse),
            Value::Array(values) if !values.is_empty() => grid.push((key, values.clone())),
            other => refuse(&key, other),
        }
    }
}

/// The combinations of a grid; 1 of an empty one.
#[must_use]
pub fn num_trials(grid: &Grid) -> usize {
    grid.iter().map(|(_, values)| values.len()).fold(1, usize::saturating_mul)
}

/// The settings of each combination of a grid, in order.
#[must_use]
pub fn trials(grid: &Grid) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    for (key, values) in grid {
        let with = |trial: &Vec<String>| -> Vec<Vec<String>> {
            let setting = |value: &Value| trial.iter().cloned().chain([format!("{key}={value}")]).collect();
            values.iter().map(setting).collect()
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

/// Arms with grids need seeds of their own to be chosen on, and the same number of trials.
fn check_grids(arms: &[Arm], table: &Table, tuning_seeds: &[u64], errors: &mut Errors) {
    let with_grid: Vec<&Arm> = arms.iter().filter(|arm| !arm.grid.is_empty()).collect();
    let Some(first) = with_grid.first() else { return };
    if !table.contains_key("tuning_seeds") && tuning_seeds.is_empty() {
        let problem = format!("is missing, and arms.{}.grid is to be chosen from", first.name);
        errors.add("tuning_seeds", None, &problem, "seeds that are not in seeds", None);
    }
    let num_first = num_trials(&first.grid);
    for arm in with_grid.iter().filter(|arm| num_trials(&arm.grid) != num_first) {
        let problem = format!("has {} combinations, arms.{} has {num_first}", num_trials(&arm.grid), first.name);
        errors.add(&format!("arms.{}.grid", arm.name), None, &problem, "the same number in all grids", None);
    }
}

#[cfg(test)]
#[path = "experiment_tests.rs"]
mod tests;
