//! `[method]` and the optimisers of the three levels: `[pretrain]`, `[finetune]` and `[policy]`.

use mlomae_model::hypergradient::HypergradientChoice;
use mlomae_model::levels::optimizer::{Decay, DecayGroup};
use mlomae_model::tasks::TaskChoice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::Preset;

/// The method's variants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MethodConfig {
    /// Level-1 steps in one outer iteration.
    #[schemars(range(min = 1, max = 64))]
    pub unroll: u64,
    /// How the gradient of the masking network is computed. Where it is not given: `clean`, with
    /// `compute.precision = "bf16"` `tangent`.
    pub hypergradient: HypergradientChoice,
    /// The downstream task of levels 2 and 3.
    pub task: TaskChoice,
    /// Control: adds the supervised gradient to the encoder at every outer iteration, as an
    /// accident of the published program does.
    pub multitask: bool,
    /// Length of the finite differences' step.
    #[schemars(range(min = 0.000_001, max = 1.0))]
    pub alpha: f64,
    /// Dropout before the downstream head in level 2.
    #[schemars(range(min = 0.0, max = 0.9))]
    pub head_dropout: f64,
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self {
            unroll: 2,
            hypergradient: HypergradientChoice::default(),
            task: TaskChoice::default(),
            multitask: false,
            alpha: 0.01,
            head_dropout: 0.0,
        }
    }
}

/// The optimiser (AdamW) of one level and the size of its batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LevelConfig {
    /// Images in one batch.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: usize,
    /// Learning rate after the warm-up.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub lr: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
    /// Which weights the weight decay shrinks.
    pub decay_group: DecayGroup,
    /// Steps of this level over which the learning rate rises from 0.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub warmup_steps: u64,
    /// How the learning rate changes after the warm-up.
    pub schedule: Decay,
    /// Decay rates of the two moments.
    #[schemars(inner(range(min = 0.0, max = 0.999_999)))]
    pub betas: [f64; 2],
}

impl LevelConfig {
    /// The published values with learning rate `lr`.
    #[must_use]
    pub fn published(lr: f64) -> Self {
        Self {
            batch: Preset::default().values().batch,
            lr,
            weight_decay: 0.01,
            decay_group: DecayGroup::All,
            warmup_steps: 0,
            schedule: Decay::Cosine,
            betas: [0.9, 0.95],
        }
    }
}

impl Default for LevelConfig {
    fn default() -> Self {
        Self::published(1e-3)
    }
}
