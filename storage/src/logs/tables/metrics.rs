//! `metrics`: one value a row.

use crate::logs::row::table;
use crate::logs::words::Text;

table! {
    "metrics": "losses, norms and rates, one value a row", is_truncated: true;
    /// A value of `metrics`.
    pub struct MetricRow {
        /// What was measured: `loss`, `lr`, `grad_norm`, ...
        name: Text,
        /// The value; NaN and infinities are kept.
        value: f64,
        /// Data role: `pretrain`, `train`, `validation`, `test`, or empty.
        split: Text,
        /// Unit: `1`, `s`, `images/s`, `bytes`, ...
        unit: Text,
    }
}
