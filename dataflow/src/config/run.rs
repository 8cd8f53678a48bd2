//! `[run]`, `[train]` and `[pipeline]`: where, how long and how concurrently.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the run's files go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Folder that holds the run directories.
    #[schemars(length(min = 1))]
    pub root: String,
    /// Identifier of the run, which names its directory. Without it: the date, the time and a
    /// short random suffix.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"))]
    pub id: Option<String>,
    /// What happens if the run needs more memory than the machine, its cgroup and its resource limits leave: it is
    /// refused before any is taken, or a warning is all. Data that do not fit are refused as well, unless it is `warn`.
    pub memory_check: MemoryCheck,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { root: "runs".into(), id: None, memory_check: MemoryCheck::default() }
    }
}

/// What happens if there is too little memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryCheck {
    /// The run does not begin.
    #[default]
    Refuse,
    /// A warning, and the run begins: the system may end it.
    Warn,
}

/// How long to train, and in what portions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Outer iterations: `method.unroll` level-1 steps, then one step of level 2 and one of level 3.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub outer_iterations: u64,
    /// Images over which a sum is taken before such sums are added up along a tree. It changes
    /// rounding, unlike the number of threads and the micro-batches, which consist of grains.
    #[schemars(range(min = 1, max = 4096))]
    pub grain: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self { outer_iterations: 200, grain: 8 }
    }
}

/// How the three levels overlap.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineConfig {
    /// 0: every outer iteration sees the newest mask policy, as published. d: the policy update
    /// computed from outer iteration j takes effect at the start of iteration j + 1 + d, exactly,
    /// and the levels run concurrently.
    #[schemars(range(min = 0, max = 8))]
    pub lag: u32,
}
