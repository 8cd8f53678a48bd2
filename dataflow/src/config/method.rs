//! `[method]` and the optimisers of the three levels: `[pretrain]`, `[finetune]` and `[policy]`.

use mlomae_model::hypergradient::{HypergradientChoice, Settings};
use mlomae_model::levels::optimizer::{Decay, DecayGroup};
use mlomae_model::policy::Estimator;
use mlomae_model::search::PolicySearch;
use mlomae_model::tasks::{Balance, TaskChoice};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::Preset;

/// A named set of values for how masks are learned. Keys that are written out win over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MethodPreset {
    /// The paper's: scores of the embedding weigh the losses and choose the masks, head and masks learn by single steps.
    #[default]
    Published,
    /// What carries signal in the experiments of docs/results.md: a head in closed form, weights that sum to one, masks
    /// drawn by score, a gradient through both, and a policy that waits for the encoder.
    Recommended,
}

impl MethodPreset {
    /// Its keys with their values in TOML's notation.
    #[must_use]
    pub const fn values(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // The defaults of all keys.
            Self::Published => &[],
            Self::Recommended => &[
                ("mask.strategy", "\"linear\""),
                ("mask.input", "\"pixels\""),
                ("mask.weights", "\"normalised\""),
                ("mask.select", "\"sample\""),
                ("mask.explore", "0.0"),
                ("method.hypergradient", "\"ridge\""),
                ("method.precondition", "\"adam\""),
                ("finetune.batch", "256"),
                ("policy.batch", "256"),
                ("policy.estimator", "\"both\""),
                ("policy.lr", "0.1"),
                // The features must say something before the policy hears it.
                ("policy.warmup_steps", "75"),
                ("policy.weight_decay", "0.0"),
            ],
        }
    }

    /// The preset of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Published, Self::Recommended]
            .into_iter()
            .find(|preset| serde_json::to_value(preset).is_ok_and(|value| value == name))
    }
}

/// The method's variants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MethodConfig {
    /// Values for the keys of `mask`, `method`, `finetune` and `policy` that say how masks are learned, where they are
    /// not written out.
    pub preset: MethodPreset,
    /// Level-1 steps in one outer iteration.
    #[schemars(range(min = 1, max = 64))]
    pub unroll: u64,
    /// How the gradient of the masking network is computed. Where it is not given: `clean`, with
    /// `compute.precision = "bf16"` `tangent`.
    pub hypergradient: HypergradientChoice,
    /// The downstream task of levels 2 and 3 with its defaults, where there is no table `[[task]]`.
    pub task: TaskChoice,
    /// How the directions of several tasks are put together.
    pub balance: Balance,
    /// Control: adds the supervised gradient to the encoder at every outer iteration, as an
    /// accident of the published program does.
    pub multitask: bool,
    /// Control: the direction of the hypergradient trains the encoder itself, by AdamW at level 1's learning rate, and
    /// no masks: what the same labels bring when they are used directly.
    pub supervised: bool,
    /// Control: the labels of the roles finetune and validation are permuted among their images, so that the feedback
    /// says nothing. Evaluations have the true labels.
    pub shuffle_labels: bool,
    /// Metric of the direction along which patches are judged.
    pub precondition: Precondition,
    /// With `hypergradient = "ridge"` or `policy.search = "branch"`: the penalty of the head, relative to the mean
    /// variance of the features.
    #[schemars(range(min = 0.000_001, max = 1000.0))]
    pub ridge_penalty: f64,
    /// With `hypergradient = "ridge"`: earlier pairs of labelled batches whose features, as old as they are, still count
    /// in the head.
    #[schemars(range(min = 0, max = 1024))]
    pub ridge_bank: usize,
    /// With `hypergradient = "cg"`: added to the Hessian of the head's loss.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub cg_damping: f64,
    /// With `hypergradient = "cg"`: steps of conjugate gradients; 0 is the identity.
    #[schemars(range(min = 0, max = 1000))]
    pub cg_steps: usize,
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
            preset: MethodPreset::default(),
            unroll: 2,
            hypergradient: HypergradientChoice::default(),
            task: TaskChoice::default(),
            balance: Balance::default(),
            multitask: false,
            supervised: false,
            shuffle_labels: false,
            precondition: Precondition::None,
            ridge_penalty: 0.03,
            ridge_bank: 0,
            cg_damping: 0.01,
            cg_steps: 10,
            alpha: 0.01,
            head_dropout: 0.0,
        }
    }
}

/// The metric of the direction v along which the utilities of patches are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precondition {
    /// As it is, as published.
    #[default]
    None,
    /// Divided by the root of level 1's second moments: AdamW's own steps are judged.
    Adam,
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

/// Level 3: the optimiser of the masking network, the size of the validation batch, and how its gradient comes about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
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
    /// Outer iterations whose mean hypergradient makes one step; with `search = "branch"` the fewest.
    #[schemars(range(min = 1, max = 4096))]
    pub average: u64,
    /// What the gradient goes through.
    pub estimator: Estimator,
    /// How the policy follows from its gradient.
    pub search: PolicySearch,
    /// With `search = "branch"`: steps of level 1, one an outer iteration, that each branch trains before the best is
    /// chosen.
    #[schemars(range(min = 1, max = 65_536))]
    pub branch_steps: u64,
    /// With `search = "branch"`: how many of the last of these steps are judged, each on the labels of its outer
    /// iteration.
    #[schemars(range(min = 1, max = 65_536))]
    pub branch_judges: u64,
}

impl PolicyConfig {
    /// What the level has in common with the others.
    #[must_use]
    pub const fn level(&self) -> LevelConfig {
        let Self { batch, lr, weight_decay, decay_group, warmup_steps, schedule, betas, .. } = *self;
        LevelConfig { batch, lr, weight_decay, decay_group, warmup_steps, schedule, betas }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        let LevelConfig { batch, lr, weight_decay, decay_group, warmup_steps, schedule, betas } =
            LevelConfig::published(1e-3);
        let Settings { average, estimator, search, branch_steps, branch_judges, .. } = Settings::default();
        Self {
            batch,
            lr,
            weight_decay,
            decay_group,
            warmup_steps,
            schedule,
            betas,
            average,
            estimator,
            search,
            branch_steps,
            branch_judges,
        }
    }
}

impl Default for LevelConfig {
    fn default() -> Self {
        Self::published(1e-3)
    }
}
