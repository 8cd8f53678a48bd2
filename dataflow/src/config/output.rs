//! `[checkpoint]`, `[logs]` and `[eval]`: what a run leaves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::counts::Outer;

/// When checkpoints are written and how many stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Level-1 steps between checkpoints, which fall on the ends of outer iterations. 0: only at
    /// the end of the run and at a stop.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub every_steps: u64,
    /// Newest checkpoints that are kept.
    #[schemars(range(min = 1, max = 100_000))]
    pub keep: usize,
}

impl CheckpointConfig {
    /// Whether `outer` iterations of `unroll` level-1 steps end at the first boundary at or after a multiple of
    /// `every_steps`.
    #[must_use]
    pub const fn is_due(&self, outer: Outer, unroll: u64) -> bool {
        let every = self.every_steps;
        every > 0 && outer.0 > 0 && outer.first_step(unroll).has_passed(every, unroll)
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 500, keep: 3 }
    }
}

/// What is logged, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogsConfig {
    /// Level-1 steps between rows of the losses and their companions.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub metrics_every_steps: u64,
    /// Level-1 steps between rows of the masks of the panel. 0: never.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub masks_every_steps: u64,
    /// Images of the fixed panel whose masks are logged each time.
    #[schemars(range(min = 1, max = 1024))]
    pub panel_size: usize,
    /// Seconds between samples of the stages' counters.
    #[schemars(range(min = 0.1, max = 3600.0))]
    pub actors_every_seconds: f64,
    /// Rows after which a live log is sealed as Parquet.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub rotate_rows: usize,
    /// Seconds after which a live log is sealed as Parquet.
    #[schemars(range(min = 1.0, max = 86_400.0))]
    pub rotate_seconds: f64,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            metrics_every_steps: 1,
            masks_every_steps: 100,
            panel_size: 16,
            actors_every_seconds: 1.0,
            rotate_rows: 100_000,
            rotate_seconds: 10.0,
        }
    }
}

/// Evaluations on the test role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Whether `train` ends with the k-NN accuracy.
    pub at_end: bool,
    /// Neighbours of the k-NN evaluation.
    #[schemars(range(min = 1, max = 1000))]
    pub knn_k: usize,
    /// Temperature of the k-NN votes.
    #[schemars(range(min = 0.001, max = 10.0))]
    pub knn_temperature: f64,
    /// Images in one batch.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: usize,
    /// Labelled images at most that an evaluation learns from.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_train: usize,
    /// Test images at most.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_test: usize,
    /// Memory in MiB for what the frozen encoder says of the images that a task's probe learns from; what is beyond is
    /// computed again in each epoch.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub cache_mib: usize,
    /// Epochs of the linear probe.
    #[schemars(range(min = 1, max = 100_000))]
    pub linear_epochs: usize,
    /// Learning rate of the linear probe.
    #[schemars(range(min = 0.000_001, max = 100.0))]
    pub linear_lr: f64,
    /// Weight decay of the linear probe.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub linear_weight_decay: f64,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            at_end: true,
            knn_k: 20,
            knn_temperature: 0.07,
            batch: 64,
            max_train: 10_000,
            max_test: 5_000,
            cache_mib: 1024,
            linear_epochs: 50,
            linear_lr: 1e-2,
            linear_weight_decay: 0.0,
        }
    }
}
