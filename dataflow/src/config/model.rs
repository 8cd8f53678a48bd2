//! `[model]` and `[mask]`: the shapes of the networks.

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
    /// Share of the patches whose place in the order is drawn at random, so that the patches of
    /// low score are explored too. 0 as published.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub explore: f64,
    /// Shares of patches placed at random, rising, of which each image's is drawn by probabilities that are learned, in
    /// place of `explore`, for learned strategies on pixels. Empty: off.
    #[schemars(inner(range(min = 0.0, max = 1.0)))]
    pub explore_arms: Vec<f64>,
    /// How a network's scores weigh the losses of masked patches.
    pub weights: MaskWeights,
    /// How a network's scores choose the masked patches.
    pub select: MaskSelect,
    /// With `select = "sample"`: draws follow the scores the more closely the lower it is.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub temperature: f64,
    /// With `strategy = "noise"`: the colour of the noise.
    pub noise: MaskNoise,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self {
            strategy: MaskingChoice::default(),
            input: MaskInput::Embedding,
            hidden: Preset::default().values().mask_hidden,
            scales: vec![1],
            ratio: 0.75,
            explore: 0.0,
            explore_arms: Vec::new(),
            weights: MaskWeights::default(),
            select: MaskSelect::default(),
            temperature: 1.0,
            noise: MaskNoise::default(),
        }
    }
}
