//! `evals`: results of evaluations.

use crate::logs::row::table;
use crate::logs::words::Text;

table! {
    "evals": "results of evaluations", is_truncated: true;
    /// A result of an evaluation.
    pub struct EvalRow {
        /// `linear_probe`, `knn` or `finetune`.
        task: Text,
        /// Data role.
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
    }
}
