//! Shapes of the networks.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::choice::{Choice, Named};
use crate::error::ModelError;
use crate::masking::attention::AttentionConfig;
use crate::masking::difficulty::Difficulty;
use crate::masking::linear::PatchFeature;
use crate::masking::oracle::OracleConfig;
use crate::masking::{MaskInput, MaskNoise, MaskWeights, MaskingKind, loss, mixture};
use crate::tasks::{Balance, Targets, Task, TaskFacts, TaskKind, TaskSpec};

/// Whether the position embeddings of encoder and decoder are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PosEmbed {
    /// Sine and cosine at the start, then trained, as published.
    Trained,
    /// Sine and cosine throughout.
    Frozen,
}

/// Shapes of encoder, decoder, masking network and head. The default is the preset `tiny` on 32 × 32 colour images of
/// 10 classes. [`ModelConfig::problems`] says what cannot be built.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Side of the square image in pixels.
    pub image: usize,
    /// Side of a patch in pixels; divides `image`.
    pub patch: usize,
    /// Colour channels, 1 or 3.
    pub channels: usize,
    /// Encoder width, a multiple of 4.
    pub dim: usize,
    /// Encoder blocks.
    pub depth: usize,
    /// Encoder attention heads; divides `dim`.
    pub heads: usize,
    /// Decoder width, a multiple of 4.
    pub dec_dim: usize,
    /// Decoder blocks.
    pub dec_depth: usize,
    /// Decoder attention heads; divides `dec_dim`.
    pub dec_heads: usize,
    /// Trained or frozen position embeddings.
    pub pos_embed: PosEmbed,
    /// Share of the patches that is masked, in (0, 1).
    pub mask_ratio: f64,
    /// Share of the patches that is masked at the other end of a schedule, where the ratio has one.
    #[serde(default)]
    pub mask_ratio_end: Option<f64>,
    /// Mask ratios of which each batch's is drawn by learned probabilities; none for [`ModelConfig::mask_ratio`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask_ratio_arms: Vec<f64>,
    /// How patches are chosen: a masking network, or a strategy without one.
    pub masking: Choice<dyn MaskingKind>,
    /// Input of the masking network.
    pub mask_input: MaskInput,
    /// Hidden width of the masking network.
    pub mask_hidden: usize,
    /// Sides of the blocks over whose mean logits the scores of `token-mlp` and `linear` are mixed, rising, in patches;
    /// none or 1 alone for single patches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask_scales: Vec<usize>,
    /// What the masking `linear` reads of a patch; at least one, each once. The order does not matter.
    #[serde(default = "default_features")]
    pub mask_features: Vec<PatchFeature>,
    /// Shares of patches placed at random, of which each image's is drawn by learned probabilities; none for one share
    /// for all, which [`MaskRule::explore`](crate::masking::MaskRule::explore) says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask_explore_arms: Vec<f64>,
    /// How scores weigh the patch losses.
    #[serde(default)]
    pub mask_weights: MaskWeights,
    /// What the masking `oracle` does.
    #[serde(default)]
    pub mask_oracle: OracleConfig,
    /// How the masking `attention` chooses.
    #[serde(default)]
    pub mask_attention: AttentionConfig,
    /// Clusters of the masking `parts`, at least 1.
    #[serde(default = "default_num_parts")]
    pub mask_parts: usize,
    /// Strategies of the masking `mixture` with their weights.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mask_mixture: BTreeMap<String, f64>,
    /// Noise of the strategy `noise`.
    #[serde(default)]
    pub mask_noise: MaskNoise,
    /// Where the masking `loss` has the difficulty of patches from. If it is predicted, θ has a second decoder.
    #[serde(default)]
    pub mask_difficulty: Difficulty,
    /// The downstream task with its defaults, where [`ModelConfig::tasks`] names none.
    pub task: Choice<dyn TaskKind>,
    /// The downstream tasks; none for [`ModelConfig::task`] alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskSpec>,
    /// How the directions of several tasks are put together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub task_balance: Balance,
    /// Classes of the data; where it has no class of an image, labels or values of an image, or classes of pixels or
    /// objects.
    pub num_classes: usize,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            image: 32,
            patch: 4,
            channels: 3,
            dim: 96,
            depth: 4,
            heads: 3,
            dec_dim: 64,
            dec_depth: 2,
            dec_heads: 2,
            pos_embed: PosEmbed::Trained,
            mask_ratio: 0.75,
            mask_ratio_end: None,
            mask_ratio_arms: Vec::new(),
            masking: Choice::default(),
            mask_input: MaskInput::Embedding,
            mask_hidden: 128,
            mask_scales: Vec::new(),
            mask_features: default_features(),
            mask_explore_arms: Vec::new(),
            mask_weights: MaskWeights::default(),
            mask_oracle: OracleConfig::default(),
            mask_attention: AttentionConfig::default(),
            mask_parts: default_num_parts(),
            mask_mixture: BTreeMap::new(),
            mask_noise: MaskNoise::default(),
            mask_difficulty: Difficulty::default(),
            task: Choice::default(),
            tasks: Vec::new(),
            task_balance: Balance::default(),
            num_classes: 10,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_features() -> Vec<PatchFeature> {
    PatchFeature::OF_PIXELS.to_vec()
}

/// Parts of an image as in SemMAE (arXiv 2206.10207).
const fn default_num_parts() -> usize {
    7
}

/// Visible patches of an image of L = `num_patches` patches: floor(L·(1 − mask ratio)).
#[must_use]
pub fn num_visible(num_patches: usize, mask_ratio: f64) -> usize {
    // Rounding may leave the product just below an integer: 0.7 of 10 patches masked must leave 3 visible, not 2.
    (num_patches as f64 * (1.0 - mask_ratio) + 1e-9).floor() as usize
}

impl ModelConfig {
    /// Patches along one side.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.image / self.patch
    }

    /// L: patches of an image.
    #[must_use]
    pub fn num_patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Values of a patch, P·P·C.
    #[must_use]
    pub fn patch_values(&self) -> usize {
        self.patch * self.patch * self.channels
    }

    /// Values of an image, C·H·W.
    #[must_use]
    pub fn image_values(&self) -> usize {
        self.image * self.image * self.channels
    }

    /// Visible patches of an image: floor(L·(1 − mask ratio)); with a schedule, at its start.
    #[must_use]
    pub fn num_visible(&self) -> usize {
        num_visible(self.num_patches(), self.mask_ratio)
    }

    /// The mask ratios that a batch may have: the ends of a schedule, and arms.
    fn mask_ratios(&self) -> impl Iterator<Item = f64> {
        std::iter::once(self.mask_ratio).chain(self.mask_ratio_end).chain(self.mask_ratio_arms.iter().copied())
    }

    /// The most visible patches of an image that a batch has, over all its mask ratios.
    #[must_use]
    pub fn max_visible(&self) -> usize {
        self.mask_ratios().map(|ratio| num_visible(self.num_patches(), ratio)).max().unwrap_or_default()
    }

    /// The fewest visible patches of an image that a batch has, over all its mask ratios.
    #[must_use]
    pub fn min_visible(&self) -> usize {
        self.mask_ratios().map(|ratio| num_visible(self.num_patches(), ratio)).min().unwrap_or_default()
    }

    /// Whether θ has a second decoder that predicts the difficulty of patches: where the masking `loss`, or a mixture
    /// with it, reads that.
    #[must_use]
    pub fn has_predictor(&self) -> bool {
        let name = loss::Kind.name();
        let is_mixed = || {
            self.masking.name() == mixture::Kind.name()
                && self.mask_mixture.get(name).is_some_and(|weight| *weight > 0.0)
        };
        self.mask_difficulty == Difficulty::Predicted && (self.masking.name() == name || is_mixed())
    }

    /// Operations (2mnk) of the products of a pass of level 1, of encoder and decoder and of the predictor where there is
    /// one, over an image with `num_visible` visible patches. A backward pass has twice as many.
    #[must_use]
    pub fn pass_flops(&self, num_visible: usize) -> u64 {
        let wide = |value: usize| value as u64;
        let (patches, visible) = (wide(self.num_patches()), wide(num_visible));
        let (dim, dec_dim, values) = (wide(self.dim), wide(self.dec_dim), wide(self.patch_values()));
        // Queries, keys, values, their projection and an MLP of four times the width; scores and what they weigh.
        let block = |tokens: u64, dim: u64| 24 * tokens * dim * dim + 4 * tokens * tokens * dim;
        let encoder = 2 * visible * values * dim + wide(self.depth) * block(1 + visible, dim);
        let between = 2 * (1 + visible) * dim * dec_dim;
        let decoder = |values: u64| wide(self.dec_depth) * block(1 + patches, dec_dim) + 2 * patches * dec_dim * values;
        encoder + between + decoder(values) + if self.has_predictor() { decoder(1) } else { 0 }
    }

    /// What the heads of tasks are built for.
    #[must_use]
    pub fn task_facts(&self) -> TaskFacts {
        TaskFacts {
            dim: self.dim,
            depth: self.depth,
            grid: self.grid(),
            patch: self.patch,
            num_classes: self.num_classes,
        }
    }

    /// The downstream task, or several as one.
    ///
    /// # Errors
    /// [`ModelError::Config`] with one line when a task cannot be built; shapes must be right.
    pub fn build_task(&self) -> Result<Arc<dyn Task>, ModelError> {
        match &self.tasks[..] {
            [] => TaskSpec::of(self.task).build(&self.task_facts()),
            tasks => crate::tasks::build(tasks, &self.task_facts()),
        }
    }

    /// Targets of `num_images` images for the downstream task, drawn by `seed`: for tests and measurements.
    #[must_use]
    pub fn example_targets(&self, num_images: usize, seed: u64) -> Targets {
        let facts = self.task_facts();
        let of_spec = |(i, spec): (usize, &TaskSpec)| {
            spec.kind.get().example(&spec.facts(&facts), num_images, seed.wrapping_add(i as u64))
        };
        match &self.tasks[..] {
            [] => of_spec((0, &TaskSpec::of(self.task))),
            [spec] => of_spec((0, spec)),
            tasks => Targets::Several(tasks.iter().enumerate().map(of_spec).collect()),
        }
    }

    /// Everything that is wrong with the shapes, one line each; empty when the configuration can be built.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, message: String| {
            if !ok {
                problems.push(message);
            }
        };
        check(
            self.patch > 0 && self.image > 0 && self.image.is_multiple_of(self.patch.max(1)),
            format!("patch must divide image {}, got {}", self.image, self.patch),
        );
        check(matches!(self.channels, 1 | 3), format!("channels must be 1 or 3, got {}", self.channels));
        check(self.patch_values() >= 2, format!("a patch must hold at least 2 values, got {}", self.patch_values()));
        for (name, dim, heads) in [("dim", self.dim, self.heads), ("dec_dim", self.dec_dim, self.dec_heads)] {
            check(dim > 0 && dim.is_multiple_of(4), format!("{name} must be a positive multiple of 4, got {dim}"));
            check(
                heads > 0 && dim.is_multiple_of(heads.max(1)),
                format!("the heads of {name} {dim} must divide it, got {heads}"),
            );
        }
        check(self.depth > 0, format!("depth must be at least 1, got {}", self.depth));
        check(self.dec_depth > 0, format!("dec_depth must be at least 1, got {}", self.dec_depth));
        check(self.mask_hidden > 0, format!("mask hidden width must be at least 1, got {}", self.mask_hidden));
        check(
            self.mask_scales.windows(2).all(|pair| pair[0] < pair[1])
                && self.mask_scales.iter().all(|scale| (1..=self.image / self.patch.max(1)).contains(scale)),
            format!("mask scales must rise from at least 1 to at most the grid, got {:?}", self.mask_scales),
        );
        if let Some(problem) = PatchFeature::problem(&self.mask_features) {
            check(false, format!("the list of mask features {problem}, got {:?}", self.mask_features));
        }
        let has_scales = !matches!(self.mask_scales[..], [] | [1]);
        check(
            !has_scales || (self.masking.mixes_scales() && self.mask_input == MaskInput::Pixels),
            format!(
                "several mask scales are for the maskings token-mlp and linear on pixels, got {} on {:?}",
                self.masking, self.mask_input
            ),
        );
        check(
            self.mask_explore_arms.is_empty() || (self.masking.is_learned() && self.mask_input == MaskInput::Pixels),
            format!("explore arms are for learned maskings on pixels, got {} on {:?}", self.masking, self.mask_input),
        );
        check(
            self.mask_explore_arms.iter().all(|share| (0.0..=1.0).contains(share)),
            format!("explore arms must lie in [0, 1], got {:?}", self.mask_explore_arms),
        );
        check(self.mask_parts > 0, format!("mask parts must be at least 1, got {}", self.mask_parts));
        if self.masking.name() == mixture::Kind.name()
            && let Err((problem, allowed)) = mixture::strategies(&self.mask_mixture)
        {
            check(false, format!("the mixture {problem} (allowed: {allowed})"));
        }
        // A task that is named says itself what it needs.
        let least = if self.tasks.is_empty() { 2 } else { 1 };
        check(self.num_classes >= least, format!("num_classes must be at least {least}, got {}", self.num_classes));
        check(
            self.mask_ratio_arms.is_empty() || self.masking.is_learned(),
            format!("mask ratio arms are for learned maskings, got {}", self.masking),
        );
        let ends = [("mask_ratio", Some(self.mask_ratio)), ("mask_ratio_end", self.mask_ratio_end)];
        let arms = self.mask_ratio_arms.iter().map(|ratio| ("mask_ratio_arms", Some(*ratio)));
        for (name, ratio) in ends.into_iter().chain(arms) {
            let Some(ratio) = ratio else { continue };
            let is_share = ratio > 0.0 && ratio < 1.0;
            check(is_share, format!("{name} must lie in (0, 1), got {ratio}"));
            if self.patch > 0 && is_share {
                let patches = self.num_patches();
                let visible = num_visible(patches, ratio);
                check(
                    visible >= 1 && visible < patches,
                    format!(
                        "{name} must leave between 1 and {} of {patches} patches visible, got {visible}",
                        patches.saturating_sub(1)
                    ),
                );
            }
        }
        if problems.is_empty()
            && let Err(error) = self.build_task()
        {
            problems.push(error.reason());
        }
        problems
    }
}
