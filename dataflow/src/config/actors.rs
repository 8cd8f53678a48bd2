//! `[actors]`: workers and queues of the stages.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::flow::stage_name::StageName;

/// Workers, micro-batch and input queue of one stage. Results do not depend on any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// `load` and `score`: workers of the stage. `encoder`, `evaluator` and `policy`: threads that
    /// compute their micro-batches. 0: as many as the machine has cores (for `log` always 1).
    #[schemars(range(min = 0, max = 256))]
    pub workers: usize,
    /// Batches that each channel into the stage holds; 0 hands over directly. `load`, which has
    /// no input, uses it for its labelled batches to the evaluator. `log`: records, times 64.
    #[schemars(range(min = 0, max = 8))]
    pub queue_cap: usize,
    /// `score`, `encoder`, `evaluator` and `policy`: images that a compute thread takes at a time,
    /// rounded down to `train.grain` times a power of two. 0: at most 16, fewer where threads
    /// would be left without work. The other stages have none.
    #[schemars(range(min = 0, max = 4096))]
    pub micro_batch: usize,
}

/// Images of an automatic micro-batch: enough to use packed weights well, few enough to keep memory small.
const AUTOMATIC_MICRO_BATCH: usize = 16;

impl StageConfig {
    const fn new(workers: usize, queue_cap: usize) -> Self {
        Self { workers, queue_cap, micro_batch: 0 }
    }

    /// The number of workers on this machine.
    #[must_use]
    pub fn num_workers(&self) -> usize {
        self.num_workers_on(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }

    /// The number of workers on a machine with `num_cores` cores.
    #[must_use]
    pub const fn num_workers_on(&self, num_cores: usize) -> usize {
        if self.workers > 0 { self.workers } else { num_cores }
    }
}

impl Default for StageConfig {
    fn default() -> Self {
        Self::new(1, 2)
    }
}

/// The stages' workers and queues, restarts and the watchdog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActorsConfig {
    /// Reads, augments and normalises images.
    pub load: StageConfig,
    /// Scores patches with the masking network.
    pub score: StageConfig,
    /// Level 1: trains the masked autoencoder.
    pub encoder: StageConfig,
    /// Level 2 and the downstream gradient of level 3.
    pub evaluator: StageConfig,
    /// Level 3: updates the masking network.
    pub policy: StageConfig,
    /// Logs and checkpoints.
    pub log: StageConfig,
    /// How often a worker of a stage without state may be run again after a panic.
    #[schemars(range(min = 0, max = 1000))]
    pub max_restarts: u32,
    /// A worker that computes longer than this on one unit of work is reported as hanging. 0: never.
    #[schemars(range(min = 0.0, max = 86_400.0))]
    pub watchdog_seconds: f64,
}

impl ActorsConfig {
    /// The configuration of one stage.
    #[must_use]
    pub const fn stage(&self, name: StageName) -> &StageConfig {
        match name {
            StageName::Load => &self.load,
            StageName::Score => &self.score,
            StageName::Encoder => &self.encoder,
            StageName::Evaluator => &self.evaluator,
            StageName::Policy => &self.policy,
            StageName::Log => &self.log,
        }
    }

    /// Images of a stage's micro-batch before rounding, for batches of `batch` images on `num_threads` threads.
    #[must_use]
    pub fn micro_batch(&self, name: StageName, batch: usize, num_threads: usize) -> usize {
        match self.stage(name).micro_batch {
            0 => AUTOMATIC_MICRO_BATCH.min(batch / num_threads.max(1)),
            num_images => num_images,
        }
    }

    /// The configuration of one stage, to be changed.
    pub const fn stage_mut(&mut self, name: StageName) -> &mut StageConfig {
        match name {
            StageName::Load => &mut self.load,
            StageName::Score => &mut self.score,
            StageName::Encoder => &mut self.encoder,
            StageName::Evaluator => &mut self.evaluator,
            StageName::Policy => &mut self.policy,
            StageName::Log => &mut self.log,
        }
    }
}

impl Default for ActorsConfig {
    fn default() -> Self {
        Self {
            load: StageConfig::new(1, 2),
            score: StageConfig::new(1, 2),
            encoder: StageConfig::new(0, 2),
            evaluator: StageConfig::new(0, 1),
            policy: StageConfig::new(0, 1),
            log: StageConfig::new(1, 4),
            max_restarts: 3,
            watchdog_seconds: 120.0,
        }
    }
}
