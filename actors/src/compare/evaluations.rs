//! The evaluations that an experiment may name, and their metrics; and the numbers of the logs that it may show beside
//! them.

use std::path::Path;

use mlomae_dataflow::record::Metric;
use mlomae_model::Vector;
use mlomae_storage::logs::{MetricRow, TableReader};
use serde::{Deserialize, Serialize};

use crate::process::error::CliError;
use crate::train::eval::{Judge, JudgedImage, Judgement, Progress, Protocol};

/// What the names of logged numbers begin with, among those of metrics.
const LOGGED: &str = "log.";

/// An evaluation by the name that `mlomae eval` gives it.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation {
    /// The name.
    pub name: &'static str,
    /// How features are judged.
    pub protocol: Protocol,
    /// Its metrics.
    pub metrics: &'static [MetricKind],
}

/// A metric of an evaluation.
#[derive(Debug, Clone, Copy)]
pub struct MetricKind {
    /// The name behind that of the evaluation and a dot.
    pub name: &'static str,
    /// The unit: `share` is shown in per cent.
    pub unit: &'static str,
    /// Whether a higher value is a better one.
    pub is_higher_better: bool,
}

const ACCURACY: &[MetricKind] = &[MetricKind { name: "accuracy", unit: "share", is_higher_better: true }];

/// All of them.
pub const EVALUATIONS: &[Evaluation] = &[
    Evaluation { name: "knn", protocol: Protocol::Knn, metrics: ACCURACY },
    Evaluation { name: "linear", protocol: Protocol::Linear, metrics: ACCURACY },
];

/// The evaluation of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Evaluation> {
    EVALUATIONS.iter().find(|eval| eval.name == name)
}

/// The full names of an evaluation's metrics; none if there is no such evaluation.
#[must_use]
pub fn metric_names(eval: &str) -> Vec<String> {
    let names = |eval: &Evaluation| eval.metrics.iter().map(|kind| format!("{}.{}", eval.name, kind.name)).collect();
    by_name(eval).map(names).unwrap_or_default()
}

/// The kind of the metric with that full name.
#[must_use]
pub fn kind_of(metric: &str) -> Option<MetricKind> {
    if let Some(name) = metric.strip_prefix(LOGGED) {
        let logged = loggable().find(|logged| logged.name() == name)?;
        return Some(MetricKind { name: logged.name(), unit: logged.unit(), is_higher_better: true });
    }
    let (eval, name) = metric.split_once('.')?;
    by_name(eval)?.metrics.iter().find(|kind| kind.name == name).copied()
}

/// The numbers of the logs whose names are unique, which names without a level can mean.
pub fn loggable() -> impl Iterator<Item = Metric> {
    let is_unique = |metric: &Metric| Metric::ALL.iter().filter(|other| other.name() == metric.name()).count() == 1;
    let is_plain =
        |metric: &Metric| metric.name().chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    Metric::ALL.iter().copied().filter(is_unique).filter(is_plain)
}

/// The full name of a logged number as a metric.
#[must_use]
pub fn logged_name(name: &str) -> String {
    format!("{LOGGED}{name}")
}

/// The last values of the numbers `names` in the logs of a run; those that it did not log are left out.
///
/// # Errors
/// If the logs cannot be read.
pub fn last_logged(run: &Path, names: &[String]) -> Result<Vec<MetricValue>, CliError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let rows = TableReader::<MetricRow>::new(run).poll()?;
    let last = |name: &String| {
        let is_it = |row: &&MetricRow| row.name == name.as_str() && row.value.is_finite();
        let value = rows.iter().rev().map(|logged| &logged.row).find(is_it)?.value;
        let unit = kind_of(&logged_name(name))?.unit.to_owned();
        Some(MetricValue { name: logged_name(name), value, unit, num_items: 1, ci_low: None, ci_high: None })
    };
    Ok(names.iter().filter_map(last).collect())
}

/// A result of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// Full name, as `knn.accuracy`.
    pub name: String,
    /// The value.
    pub value: f64,
    /// The unit.
    pub unit: String,
    /// Images that were judged; 1 of a logged number.
    pub num_items: usize,
    /// Lower end of the 95 % bootstrap interval of the value over these images. None of a logged number.
    #[serde(default)]
    pub ci_low: Option<f64>,
    /// Its upper end.
    #[serde(default)]
    pub ci_high: Option<f64>,
}

impl Evaluation {
    /// Judges the encoder in `theta`; gives the metrics, the judgement itself for the run's logs, and what is said of
    /// each image.
    ///
    /// # Errors
    /// As [`Judge::judge`].
    pub fn run(
        &self,
        judge: &Judge<'_>,
        theta: &Vector,
        progress: Progress<'_>,
    ) -> Result<(Vec<MetricValue>, Judgement, Vec<JudgedImage>), CliError> {
        let (judgement, images) = judge.judge_images(self.protocol, theta, progress)?;
        let value = |kind: &MetricKind| MetricValue {
            name: format!("{}.{}", self.name, kind.name),
            value: judgement.accuracy,
            unit: kind.unit.to_owned(),
            num_items: judgement.num_test,
            ci_low: judgement.interval.map(|[low, _]| low),
            ci_high: judgement.interval.map(|[_, high]| high),
        };
        Ok((self.metrics.iter().map(value).collect(), judgement, images))
    }
}
