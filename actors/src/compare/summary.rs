//! What the cells of a comparison say: values of each arm, differences to the references, verdicts.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cell::{Cell, CellRecord, Status};
use super::evaluations::{MetricValue, kind_of};
use super::experiment::{Budget, ExperimentFile};
use super::plan::{Amount, PlannedArm, differences};
use super::statistics::{Paired, Verdict, holm, mean_sd, paired, seeds_needed, t_interval, verdict};

/// By how much of a budget of time training may be off before it is said.
const BUDGET_TOLERANCE: f64 = 0.2;

/// A whole comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Name of the experiment.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Machine on which the summary was written.
    pub machine: String,
    /// The configuration under all arms.
    pub base: String,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// How long arms train, in words.
    pub budget: String,
    /// What judges, if other data than those that train.
    pub judge: Option<String>,
    /// The metric of the verdicts.
    pub primary: String,
    /// All metrics in order.
    pub metrics: Vec<String>,
    /// Arms that others are held against.
    pub references: Vec<String>,
    /// Arms that get verdicts, adjusted for their number.
    pub tested: Vec<String>,
    /// Whether every cell is finished.
    pub is_complete: bool,
    /// Notes for whoever reads the verdicts.
    pub warnings: Vec<String>,
    /// The arms in order.
    pub arms: Vec<ArmSummary>,
    /// Every arm against every reference, by metric.
    pub comparisons: Vec<Comparison>,
    /// What was chosen on the tuning seeds.
    pub tuning: Vec<Choice>,
}

/// An arm over its seeds.
#[derive(Debug, Clone, Serialize)]
pub struct ArmSummary {
    /// The name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Settings over those of all arms.
    pub set: Vec<String>,
    /// Keys in which it differs from the first reference, with its values.
    pub differs: Vec<(String, String)>,
    /// Whether it is the initial encoder.
    pub untrained: bool,
    /// What a cell takes.
    #[serde(flatten)]
    pub amount: Amount,
    /// Seconds of training of a cell, mean over the seeds. None if none is finished.
    pub seconds: Option<f64>,
    /// Most cells that ran at a time while one of it was trained.
    pub jobs: usize,
    /// Its cells.
    pub cells: Vec<CellSummary>,
    /// Values by metric.
    pub values: BTreeMap<String, Values>,
}

/// A cell in a summary.
#[derive(Debug, Clone, Serialize)]
pub struct CellSummary {
    /// The seed.
    pub seed: u64,
    /// How far it is.
    pub status: Status,
    /// Exit code of what failed.
    pub exit_code: Option<i32>,
    /// Its error.
    pub error: Option<String>,
    /// Its run directory.
    pub run: String,
    /// Hash of what its weights depend on.
    pub key: String,
    /// Its results, with their bootstrap intervals over the images that judged; none until it is finished.
    pub metrics: Vec<MetricValue>,
}

/// Values of an arm over the seeds.
#[derive(Debug, Clone, Serialize)]
pub struct Values {
    /// The unit.
    pub unit: String,
    /// Seed and value of each finished cell.
    pub by_seed: Vec<(u64, f64)>,
    /// The mean.
    pub mean: f64,
    /// Standard deviation over the seeds.
    pub sd: Option<f64>,
    /// 95 % t-interval of the mean over seeds: not to compare arms by, whose seeds are paired.
    pub interval: Option<[f64; 2]>,
}

/// An arm against a reference in a metric.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The reference.
    pub reference: String,
    /// The arm.
    pub arm: String,
    /// The metric.
    pub metric: String,
    /// The unit of the differences.
    pub unit: String,
    /// Whether higher is better.
    pub is_higher_better: bool,
    /// Seed and difference, arm − reference, of each pair of finished cells.
    pub differences: Vec<(u64, f64)>,
    /// What follows from them.
    #[serde(flatten)]
    pub paired: Paired,
    /// Holm's adjusted p-value over the tested arms. None where no verdict is given.
    pub p_holm: Option<f64>,
    /// The verdict: of tested arms in the primary metric.
    pub verdict: Option<Verdict>,
    /// Seeds with which a difference like this one would be found with the chance 0.8. None if the verdict needs none,
    /// or beyond ten thousand.
    pub seeds_needed: Option<u64>,
}

/// A choice among the trials of an arm's grid.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    /// The arm.
    pub arm: String,
    /// The metric that was maximised, on the role validation.
    pub metric: String,
    /// Settings of each trial with its value on every tuning seed; none of a cell that failed.
    pub trials: Vec<(Vec<String>, Vec<Option<f64>>)>,
    /// The trial that was chosen: the best mean, of equal ones the first.
    pub chosen: usize,
}

impl Choice {
    /// The trial with the best mean over the seeds; a trial with a failed cell is none. None if all are.
    #[must_use]
    pub fn best(trials: &[(Vec<String>, Vec<Option<f64>>)], is_higher_better: bool) -> Option<usize> {
        let mean = |values: &Vec<Option<f64>>| -> Option<f64> {
            let values: Option<Vec<f64>> = values.iter().copied().collect();
            values.filter(|values| !values.is_empty()).map(|values| mean_sd(&values).0)
        };
        let means = trials.iter().enumerate().filter_map(|(i, (_, values))| Some((i, mean(values)?)));
        let is_better = |a: f64, b: f64| if is_higher_better { a > b } else { a < b };
        means
            .fold(None, |best: Option<(usize, f64)>, (i, mean)| match best {
                Some((_, before)) if !is_better(mean, before) => best,
                _ => Some((i, mean)),
            })
            .map(|(i, _)| i)
    }
}

/// A cell with what is known of it.
pub type Known<'a> = (&'a Cell, CellRecord);

/// Summarises an experiment's cells, those of one arm in the order of the seeds.
#[must_use]
pub fn summarise(
    name: &str,
    file: &ExperimentFile,
    seeds: &[u64],
    arms: &[PlannedArm],
    cells: &[Known<'_>],
    mut warnings: Vec<String>,
    tuning: Vec<Choice>,
) -> Summary {
    let metrics = file.metrics();
    let is_complete = cells.iter().all(|(cell, record)| cell.is_finished(record, &file.evals));
    let arms: Vec<ArmSummary> = arms.iter().map(|arm| arm_summary(arm, &arms[0], file, cells, &metrics)).collect();
    if let Budget::Seconds(budget) = file.budget {
        warnings.extend(arms.iter().filter_map(|arm| off_budget(arm, budget)));
    }
    let mut comparisons = Vec::new();
    for reference in &file.references {
        for metric in &metrics {
            comparisons.extend(compare(reference, metric, file, &arms));
        }
    }
    Summary {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: super::cost::machine(),
        base: file.base.clone(),
        seeds: seeds.to_vec(),
        budget: file.budget.to_string(),
        judge: file.judge.as_ref().map(ToString::to_string),
        primary: file.primary.clone(),
        metrics,
        references: file.references.clone(),
        tested: file.tested.clone(),
        is_complete,
        warnings,
        arms,
        comparisons,
        tuning,
    }
}

/// Says so if training took another time than its budget: iterations were timed before, without checkpoints, and the
/// machine may have been busy.
fn off_budget(arm: &ArmSummary, budget: f64) -> Option<String> {
    let seconds = arm.seconds.filter(|_| arm.amount.outer > 0)?;
    let is_off = (seconds / budget - 1.0).abs() > BUDGET_TOLERANCE;
    is_off.then(|| {
        format!(
            "{} took {seconds:.1} s of a budget of {budget} s: checkpoints and other work come to its iterations",
            arm.name
        )
    })
}

fn arm_summary(
    arm: &PlannedArm,
    first: &PlannedArm,
    file: &ExperimentFile,
    cells: &[Known<'_>],
    metrics: &[String],
) -> ArmSummary {
    let own: Vec<&Known<'_>> = cells.iter().filter(|(cell, _)| cell.arm == arm.name).collect();
    let finished = || own.iter().filter(|(cell, record)| cell.is_finished(record, &file.evals));
    let values = |metric: &String| {
        let by_seed: Vec<(u64, f64)> =
            finished().filter_map(|(cell, record)| Some((cell.seed, record.value(metric)?))).collect();
        let plain: Vec<f64> = by_seed.iter().map(|(_, value)| *value).collect();
        let unit = kind_of(metric).map_or("1", |kind| kind.unit).to_owned();
        let (mean, sd) = mean_sd(&plain);
        let values = Values { unit, by_seed, mean, sd, interval: t_interval(&plain) };
        (!plain.is_empty()).then(|| (metric.clone(), values))
    };
    let seconds: Vec<f64> = finished().map(|(_, record)| record.seconds).collect();
    ArmSummary {
        name: arm.name.clone(),
        about: arm.about.clone(),
        set: arm.set.clone(),
        differs: differences(&first.config, &arm.config)
            .into_iter()
            .filter(|(key, _)| !(arm.untrained || first.untrained) || key != "train.outer_iterations")
            .collect(),
        untrained: arm.untrained,
        amount: arm.amount(),
        seconds: (!seconds.is_empty()).then(|| mean_sd(&seconds).0),
        jobs: finished().map(|(_, record)| record.jobs).max().unwrap_or(1),
        cells: own
            .iter()
            .map(|(cell, record)| CellSummary {
                seed: cell.seed,
                status: record.status,
                exit_code: record.exit_code,
                error: record.error.clone(),
                run: cell.dir.display().to_string(),
                key: cell.key.clone(),
                metrics: if cell.is_finished(record, &file.evals) { record.metrics.clone() } else { Vec::new() },
            })
            .collect(),
        values: metrics.iter().filter_map(values).collect(),
    }
}

/// All arms against a reference in one metric.
fn compare(reference: &str, metric: &str, file: &ExperimentFile, arms: &[ArmSummary]) -> Vec<Comparison> {
    let values = |arm: &ArmSummary| arm.values.get(metric).map(|values| values.by_seed.clone()).unwrap_or_default();
    let Some(of_reference) = arms.iter().find(|arm| arm.name == reference).map(values) else { return Vec::new() };
    let kind = kind_of(metric);
    let is_higher_better = kind.is_none_or(|kind| kind.is_higher_better);
    let comparison = |arm: &ArmSummary| {
        let before = |seed: u64| of_reference.iter().find(|(other, _)| *other == seed).map(|(_, value)| *value);
        let differences: Vec<(u64, f64)> =
            values(arm).into_iter().filter_map(|(seed, value)| Some((seed, value - before(seed)?))).collect();
        let plain: Vec<f64> = differences.iter().map(|(_, difference)| *difference).collect();
        Some(Comparison {
            reference: reference.to_owned(),
            arm: arm.name.clone(),
            metric: metric.to_owned(),
            unit: kind.map_or("1", |kind| kind.unit).to_owned(),
            is_higher_better,
            differences,
            paired: paired(&plain)?,
            p_holm: None,
            verdict: None,
            seeds_needed: None,
        })
    };
    let mut all: Vec<Comparison> = arms.iter().filter(|arm| arm.name != reference).filter_map(comparison).collect();
    if metric == file.primary {
        // An arm that has no results yet is tested all the same: what is claimed now still holds when it has.
        let num_tested = file.tested.iter().filter(|arm| *arm != reference).count();
        let is_tested = |comparison: &&mut Comparison| file.tested.contains(&comparison.arm);
        let mut p: Vec<f64> = all.iter().filter(|one| file.tested.contains(&one.arm)).map(|one| one.paired.p).collect();
        p.resize(num_tested.max(p.len()), 1.0);
        for (comparison, adjusted) in all.iter_mut().filter(is_tested).zip(holm(&p)) {
            let found = verdict(&comparison.paired, adjusted, is_higher_better);
            (comparison.p_holm, comparison.verdict) = (Some(adjusted), Some(found));
            if found == Verdict::NotShown {
                let Paired { mean, sd, .. } = comparison.paired;
                comparison.seeds_needed = sd.and_then(|sd| seeds_needed(mean, sd, num_tested));
            }
        }
    }
    all
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
