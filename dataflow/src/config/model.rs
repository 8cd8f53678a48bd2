//! `[model]` and `[mask]`: the shapes of the networks.

use std::collections::BTreeMap;

use mlomae_model::choice::Named;
use mlomae_model::masking::attention::{Attended, AttentionMap};
use mlomae_model::masking::mixture;
use mlomae_model::masking::oracle::{self, OracleConfig, OracleMasked};
use mlomae_model::masking::schedule::{Course, MaskSchedule, Scheduled};
use mlomae_model::masking::{MaskNoise, MaskSelect, MaskWeights, MaskingChoice};
use mlomae_model::{MaskInput, PosEmbed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named set of values for the model's shape, the mask network's width and the batch sizes.
/// Keys that are written out win over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Patch 4, encoder 96 x 4 (3 heads), decoder 64 x 2 (2 heads), mask hidden 128, batch 64.
    #[default]
    Tiny,
    /// Patch 4, encoder 192 x 6 (3 heads), decoder 128 x 2 (4 heads), mask hidden 512, batch 64.
    Small,
    /// Patch 2, encoder 768 x 12 (12 heads), decoder 512 x 8 (16 heads), mask hidden 512, batch 128.
    Base,
}

/// The numbers of a preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresetValues {
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Encoder width, depth and heads.
    pub encoder: (usize, usize, usize),
    /// Decoder width, depth and heads.
    pub decoder: (usize, usize, usize),
    /// Hidden width of the mask network.
    pub mask_hidden: usize,
    /// Batch size of each level.
    pub batch: usize,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::Tiny, Self::Small, Self::Base];

    /// The preset's numbers.
    #[must_use]
    pub const fn values(self) -> PresetValues {
        let (patch, encoder, decoder, mask_hidden, batch) = match self {
            Self::Tiny => (4, (96, 4, 3), (64, 2, 2), 128, 64),
            Self::Small => (4, (192, 6, 3), (128, 2, 4), 512, 64),
            Self::Base => (2, (768, 12, 12), (512, 8, 16), 512, 128),
        };
        PresetValues { patch, encoder, decoder, mask_hidden, batch }
    }

    /// Its name in configurations and files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Base => "base",
        }
    }

    /// The preset of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.as_str() == name)
    }
}

/// Shape of the masked autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Values for the other keys here, `mask.hidden` and the batch sizes, where they are not written out.
    pub preset: Preset,
    /// Side of a patch in pixels; divides the image's side.
    #[schemars(range(min = 1, max = 64))]
    pub patch: usize,
    /// Width of the encoder; a multiple of 4 and of `heads`.
    #[schemars(range(min = 4, max = 4096))]
    pub dim: usize,
    /// Blocks of the encoder.
    #[schemars(range(min = 1, max = 64))]
    pub depth: usize,
    /// Attention heads of the encoder.
    #[schemars(range(min = 1, max = 64))]
    pub heads: usize,
    /// Width of the decoder; a multiple of 4 and of `dec_heads`.
    #[schemars(range(min = 4, max = 4096))]
    pub dec_dim: usize,
    /// Blocks of the decoder.
    #[schemars(range(min = 1, max = 64))]
    pub dec_depth: usize,
    /// Attention heads of the decoder.
    #[schemars(range(min = 1, max = 64))]
    pub dec_heads: usize,
    /// Whether position embeddings are trained.
    pub pos_embed: PosEmbed,
}

impl Default for ModelConfig {
    fn default() -> Self {
        let preset = Preset::default();
        let values = preset.values();
        Self {
            preset,
            patch: values.patch,
            dim: values.encoder.0,
            depth: values.encoder.1,
            heads: values.encoder.2,
            dec_dim: values.decoder.0,
            dec_depth: values.decoder.1,
            dec_heads: values.decoder.2,
            pos_embed: PosEmbed::Trained,
        }
    }
}

/// The masking network and how its scores become masks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// How patches are chosen: by a masking network of one of these forms, or without one.
    pub strategy: MaskingChoice,
    /// What the network reads.
    pub input: MaskInput,
    /// Width of the network's hidden layer.
    #[schemars(range(min = 1, max = 8192))]
    pub hidden: usize,
    /// Sides of blocks of patches: a patch's logit is a learned mixture of the mean logits of the blocks that it lies
    /// in, for the strategies `token-mlp` and `linear` on pixels. `[1]`: its own alone.
    #[schemars(inner(range(min = 1, max = 64)))]
    pub scales: Vec<usize>,
    /// Share of the patches that is masked.
    #[schemars(range(min = 0.05, max = 0.95))]
    pub ratio: f64,
    /// How the ratio goes to `ratio_end` over the level-1 steps of the run.
    pub ratio_schedule: MaskSchedule,
    /// Where a schedule leads from `ratio`; with `random` each batch's ratio is drawn between the two.
    #[schemars(range(min = 0.05, max = 0.95))]
    pub ratio_end: Option<f64>,
    /// Mask ratios, rising, of which each batch's is drawn by probabilities that are learned, for learned strategies;
    /// the panel and pictures keep `ratio`. Empty: off.
    #[schemars(inner(range(min = 0.05, max = 0.95)))]
    pub ratio_arms: Vec<f64>,
    /// With `ratio_arms`: the reward of a ratio is divided by the operations of a pass of level 1, relative to those at
    /// `ratio`.
    pub ratio_per_flop: bool,
    /// Share of the patches whose place in the order is drawn at random, so that the patches of
    /// low score are explored too. 0 as published.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub explore: f64,
    /// How exploration goes to `explore_end` over the level-1 steps of the run.
    pub explore_schedule: MaskSchedule,
    /// Where a schedule leads from `explore`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub explore_end: Option<f64>,
    /// Shares of patches placed at random, rising, of which each image's is drawn by probabilities that are learned, in
    /// place of `explore`, for learned strategies on pixels. Empty: off.
    #[schemars(inner(range(min = 0.0, max = 1.0)))]
    pub explore_arms: Vec<f64>,
    /// How a network's scores weigh the losses of masked patches.
    pub weights: MaskWeights,
    /// How a network's scores choose the masked patches.
    pub select: MaskSelect,
    /// With `select = "sample"` or `strategy = "attention"`: draws follow the scores (the attention) the more closely
    /// the lower it is.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub temperature: f64,
    /// Control: the scores of an image are permuted over its patches, anew in each level-1 step, before they choose and
    /// weigh. As much is masked and weighed as without, at another place; logs show the scores that did.
    pub shuffle_scores: bool,
    /// With `strategy = "noise"`: the colour of the noise.
    pub noise: MaskNoise,
    /// Decay of the average over θ's past, for each level-1 step, of the teacher that the strategies `attention`, `parts`
    /// and `loss` read; 0 for θ itself.
    #[schemars(range(min = 0.0, max = 0.99999))]
    pub ema: f64,
    /// Outer iterations between two states of the teacher, so that scores may run ahead in between; 0 for a new one
    /// after each level-1 step.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub refresh: u64,
    /// With `strategy = "attention"`: which patches are masked.
    pub attention: Attended,
    /// With `strategy = "attention"`: the attention of CLS in the last block, or through all blocks.
    pub attention_map: AttentionMap,
    /// With `attention = "hint"`: hints as a share of all patches.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub hints: f64,
    /// With `strategy = "parts"`: parts of an image.
    #[schemars(range(min = 1, max = 1024))]
    pub parts: usize,
    /// With `strategy = "oracle"`: which patches of the object are masked.
    pub oracle_masked: OracleMasked,
    /// With `strategy = "oracle"`: weight of the losses of masked object patches, beside `oracle_background` for the
    /// others; only their ratio counts.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub oracle_weight: f64,
    /// With `strategy = "oracle"`: weight of the losses of the other masked patches. 0 is a loss on the object alone.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub oracle_background: f64,
    /// With `strategy = "mixture"`: strategies by name with their weights, as in `{ random = 0.5, attention = 0.5 }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = { "type": "number", "minimum": 0.0, "maximum": 1000.0 }))]
    pub mixture: BTreeMap<String, f64>,
}

impl MaskConfig {
    /// Whether the strategy reads a teacher, or one of a mixture does.
    #[must_use]
    pub fn reads_teacher(&self) -> bool {
        let mut mixed = mixture::strategies(&self.mixture).unwrap_or_default().into_iter();
        self.strategy.reads_teacher() || self.is_mixture() && mixed.any(|(kind, _)| kind.reads_teacher())
    }

    /// Whether strategies are mixed.
    #[must_use]
    pub fn is_mixture(&self) -> bool {
        self.strategy.name() == mixture::Kind.name()
    }

    /// Whether the strategy is the one of that name, or a mixture has it.
    #[must_use]
    pub fn uses(&self, name: &str) -> bool {
        let mixed = || self.mixture.get(name).is_some_and(|weight| *weight > 0.0);
        self.strategy.name() == name || self.is_mixture() && mixed()
    }

    /// The mask ratio over a run of `total_steps` level-1 steps.
    #[must_use]
    pub fn ratio_course(&self, total_steps: u64) -> Course {
        let end = self.ratio_end.unwrap_or(self.ratio);
        Course { of: Scheduled::Ratio, schedule: self.ratio_schedule, start: self.ratio, end, total_steps }
    }

    /// Exploration over a run of `total_steps` level-1 steps.
    #[must_use]
    pub fn explore_course(&self, total_steps: u64) -> Course {
        let end = self.explore_end.unwrap_or(self.explore);
        Course { of: Scheduled::Explore, schedule: self.explore_schedule, start: self.explore, end, total_steps }
    }

    /// The key that asks for exploration at some step with its value; none without exploration.
    #[must_use]
    pub fn exploration(&self) -> Option<(&'static str, f64)> {
        let keys = [("mask.explore", self.explore), ("mask.explore_end", self.explore_end.unwrap_or_default())];
        keys.into_iter().find(|(_, explore)| *explore > 0.0)
    }

    /// What the masking `oracle` does.
    #[must_use]
    pub const fn oracle(&self) -> OracleConfig {
        OracleConfig {
            masked: self.oracle_masked,
            object_weight: self.oracle_weight,
            background_weight: self.oracle_background,
        }
    }

    /// Whether masks follow from the objects of the images, which only data that draws them knows.
    #[must_use]
    pub fn needs_objects(&self) -> bool {
        self.strategy.name() == oracle::Kind.name()
    }
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self {
            strategy: MaskingChoice::default(),
            input: MaskInput::Embedding,
            hidden: Preset::default().values().mask_hidden,
            scales: vec![1],
            ratio: 0.75,
            ratio_schedule: MaskSchedule::Constant,
            ratio_end: None,
            ratio_arms: Vec::new(),
            ratio_per_flop: false,
            explore: 0.0,
            explore_schedule: MaskSchedule::Constant,
            explore_end: None,
            explore_arms: Vec::new(),
            weights: MaskWeights::default(),
            select: MaskSelect::default(),
            shuffle_scores: false,
            temperature: 1.0,
            ema: 0.999,
            refresh: 1,
            attention: Attended::default(),
            attention_map: AttentionMap::default(),
            hints: 0.05,
            parts: 7,
            oracle_masked: OracleMasked::default(),
            oracle_weight: 1.0,
            oracle_background: 1.0,
            mixture: BTreeMap::new(),
            noise: MaskNoise::default(),
        }
    }
}
