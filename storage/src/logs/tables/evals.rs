//! `evals`: results of evaluations.

use crate::logs::row::table;
use crate::logs::words::Text;

table! {
    "evals": "results of evaluations", is_truncated: true;
    /// A result of an evaluation.
    pub struct EvalRow {
        /// `linear_probe`, `knn` or `finetune`.
        task: Text,
        /// The split that judged; `judge/` and its name where other data judged than those of the run.
        split: Text,
        /// `accuracy`, `loss`, ...
        metric: Text,
        /// The value.
        value: f64,
        /// Samples evaluated.
        n: i64,
        /// The checkpoint's folder name.
        checkpoint: String,
        /// Seconds it took.
        seconds: f64,
        /// Lower end of the 95 % bootstrap interval of the value over the samples evaluated; null before schema 1.2.
        ci_low: Option<f64>,
        /// Its upper end.
        ci_high: Option<f64>,
    }
}
