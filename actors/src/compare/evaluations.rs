//! The evaluations that an experiment may name, and their metrics.

use serde::{Deserialize, Serialize};

use crate::process::error::CliError;
use crate::train::eval::{Judge, Judgement, Progress, Protocol};
use mlomae_model::Vector;

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
pub fn kind_of(metric: &str) -> Option<&'static MetricKind> {
    let (eval, name) = metric.split_once('.')?;
    by_name(eval)?.metrics.iter().find(|kind| kind.name == name)
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
    /// Images that were judged.
    pub num_items: usize,
}

impl Evaluation {
    /// Judges the encoder in `theta`; gives the metrics, and the judgement itself for the run's logs.
    ///
    /// # Errors
    /// As [`Judge::judge`].
    pub fn run(
        &self,
        judge: &Judge<'_>,
        theta: &Vector,
        progress: Progress<'_>,
    ) -> Result<(Vec<MetricValue>, Judgement), CliError> {
        let judgement = judge.judge(self.protocol, theta, progress)?;
        let value = |kind: &MetricKind| MetricValue {
            name: format!("{}.{}", self.name, kind.name),
            value: judgement.accuracy,
            unit: kind.unit.to_owned(),
            num_items: judgement.num_test,
        };
        Ok((self.metrics.iter().map(value).collect(), judgement))
    }
}
