//! The traits of a masking: its keys, and where it is learned its scores and their gradient.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use serde::{Deserialize, Serialize};

use crate::choice::Named;
use crate::engine::TokenOrder;
use crate::error::ModelError;
use crate::init;
use crate::layout::{Layout, LinearWeights, SharedLayout};
use crate::masking::arms::{ExploreArms, RatioArms};
use crate::masking::attention::AttentionConfig;
use crate::masking::list::MaskingChoice;
use crate::masking::oracle::OracleConfig;
use crate::masking::order::{order_by_keys, uniform_keys};
use crate::masking::scales::Scales;
use crate::masking::weights::{LossWeights, MaskWeights, masked_of};
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::rng::{Purpose, keyed};

/// What the masking network reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MaskInput {
    /// The autoencoder's own patch embedding, as published: scores depend on both networks.
    Embedding,
    /// The image's patches: scores depend on the masking network alone.
    Pixels,
}

/// What a masking reads of the images before it can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: its keys are random.
    Nothing,
    /// Which patches hold the labelled object, [`MaskRule::objects`]: only data that draws its own images knows.
    Objects,
    /// The attention of CLS to each patch in the teacher's last block, `[batch, L]` as
    /// [`cls_attention`](super::attention::cls_attention) has it, in [`MaskRule::read`].
    Attention,
    /// The attention of CLS to each patch through all blocks of the teacher, `[batch, L]` as
    /// [`rollout`](super::attention::rollout) has it, in [`MaskRule::read`].
    Rollout,
    /// The teacher's patch tokens after the encoder's final norm, `[batch, L, dim]`, in [`MaskRule::read`].
    Tokens,
    /// The teacher's patch losses under random masks, `[batch, L]` as [`mean_losses`](super::loss::mean_losses) has
    /// them, in [`MaskRule::read`].
    Losses,
    /// The patches' pixels, `[batch, L, C·P·P]`.
    Pixels,
    /// The autoencoder's patch embedding with positions, `[batch, L, dim]`: scoring needs the newest θ, and ∂L_m/∂θ has
    /// a part through p.
    Embedding,
}

impl Needs {
    /// Whether a teacher is read: θ as it was, or an average over its past. Its values come in the place of θ's.
    #[must_use]
    pub const fn reads_teacher(self) -> bool {
        matches!(self, Needs::Attention | Needs::Rollout | Needs::Tokens | Needs::Losses)
    }
}

/// What the strategy [`noise`](super::noise) filters out of white noise: its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MaskNoise {
    /// Low frequencies: large pieces.
    Red,
    /// High frequencies: visible patches keep apart.
    Blue,
    /// A band between them: pieces of a middle size. The best one of the paper.
    #[default]
    Green,
    /// All but that band.
    Purple,
}

/// How the scores of a learned masking choose patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MaskSelect {
    /// The patches of highest score are masked, as published.
    #[default]
    Score,
    /// Uniformly at random, as by the strategy `random` and with its draws: scores only weigh the loss.
    Random,
    /// Drawn without replacement, a patch with a chance that rises with its score (Plackett-Luce: keys are
    /// logit(p)/temperature + Gumbel noise).
    Sample,
}

/// How a batch is masked, as data: the same rule on the same scores gives the same masks in every stage and run.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskRule {
    /// Seed of the run.
    pub seed: u64,
    /// Level-1 step, part of the key of random draws; for batches outside training, a number that no step has.
    pub step: u64,
    /// Visible patches of each image; none for those of
    /// [`ModelConfig::num_visible`](crate::ModelConfig::num_visible). [`Masking`]s are given it.
    pub num_visible: Option<usize>,
    /// Exploration: the share of each image's patches that get random keys, in [0, 1].
    pub explore: f64,
    /// Whether the lane draws each image's share from the policy's arms instead, where the policy has them
    /// ([`Masking::explore_arms`]).
    pub explore_arms: bool,
    /// The share of each image of this rank, in place of `explore`: what the lane has drawn.
    pub explored: Option<Arc<[f64]>>,
    /// Whether the lane draws [`num_visible`](Self::num_visible) from the policy's arms, where the policy has them
    /// ([`Masking::ratio_arms`]).
    pub ratio_arms: bool,
    /// How scores choose.
    pub select: MaskSelect,
    /// Of [`MaskSelect::Sample`], above 0: draws follow the scores the more closely the lower it is.
    pub temperature: f64,
    /// Number of the draw: the same images may be masked more than once.
    pub draw: u64,
    /// Place of the first image within the batch of all ranks; [`score`](crate::levels::score::score) knows it.
    pub first_image: u64,
    /// What is known of the images beside their pixels: whether each patch holds a part of the labelled object
    /// `[batch, L]`, of this rank's images. Only for maskings that need [`Needs::Objects`].
    pub objects: Option<Arc<[bool]>>,
    /// Share of the run that is done after this level-1 step, in (0, 1], for maskings that change over it.
    pub progress: f64,
    /// What the lane has computed of the teacher for this batch, as [`Masking::needs`] says; of this rank's images.
    /// [`score`](crate::levels::score::score) gives it to [`Masking::keys`].
    pub read: Option<Arc<[f32]>>,
    /// Masks at random and a loss without weights, with the draws of the strategy `random`, in the place of what is
    /// learned: nothing is scored, and φ is not read. Without a meaning where nothing is learned.
    pub is_random: bool,
}

impl MaskRule {
    /// Masks by score alone, without exploration.
    pub const BY_SCORE: MaskRule = MaskRule {
        seed: 0,
        step: 0,
        num_visible: None,
        explore: 0.0,
        explore_arms: false,
        explored: None,
        ratio_arms: false,
        select: MaskSelect::Score,
        temperature: 1.0,
        draw: 0,
        first_image: 0,
        objects: None,
        progress: 1.0,
        read: None,
        is_random: false,
    };

    /// Keys of `num_images` images of `num_patches` patches as [`Masking::keys`] has them, or at random.
    pub(crate) fn keys(
        &self,
        masking: &dyn Masking,
        num_images: usize,
        num_patches: usize,
        scores: Option<&[f32]>,
    ) -> Vec<f32> {
        match self.scores_nothing(masking.needs()) {
            true => uniform_keys(num_images, num_patches, self),
            false => masking.keys(num_images, scores, self),
        }
    }

    /// Whether random masks take the place of learned ones, by what the masking needs.
    pub(crate) fn scores_nothing(&self, needs: Needs) -> bool {
        self.is_random && matches!(needs, Needs::Pixels | Needs::Embedding)
    }

    /// The share of an image's patches that get random keys, by its index in the batch of this rank.
    #[must_use]
    pub fn explore_of(&self, image: usize) -> f64 {
        self.explored.as_ref().map_or(self.explore, |shares| shares[image])
    }

    /// That [`objects`](Self::objects) are there, of `num` patches, where the masking needs them.
    ///
    /// # Errors
    /// [`ModelError::Lane`] of `lane` if they are not.
    pub(crate) fn check_objects(&self, needs: Needs, num: usize, lane: &'static str) -> Result<(), ModelError> {
        let len = self.objects.as_ref().map(|objects| objects.len());
        if needs == Needs::Objects && len != Some(num) {
            let problem = format!("masks need the objects of {num} patches, got {}", len.unwrap_or(0));
            return Err(ModelError::Lane { lane, problem });
        }
        Ok(())
    }

    /// The random generator of an image, by its index in the batch of this rank.
    #[must_use]
    pub fn rng(&self, image: usize) -> ChaCha8Rng {
        let purpose = if self.draw == 0 { Purpose::Mask } else { Purpose::MaskAgain };
        let step = self.step.wrapping_add(self.draw.saturating_sub(1) << 48);
        keyed(self.seed, purpose, step, self.first_image + image as u64)
    }
}

/// The scores of a batch, and the activations that their backward pass needs. In host memory, and cheap to clone.
#[derive(Clone, Debug)]
pub struct Trace {
    /// p `[batch, L]`.
    pub scores: Arc<Buffer>,
    /// The input of [`Masking::forward`], `[batch, L, features]`.
    pub input: Arc<Buffer>,
    /// Activations of the hidden layers, in an order of the masking's own. They may be cut by grain, but never by
    /// micro-batch: the stage that runs the backward pass may have other micro-batches than the one that made the
    /// trace.
    pub hidden: Vec<Arc<Buffer>>,
    /// Number of images.
    pub batch: usize,
    /// What the lane of another device keeps for its own backward pass, instead of `input` and `hidden`, which are
    /// empty then.
    pub kept: Option<Arc<dyn Kept>>,
}

/// Activations in the memory of a device, of a type that its lanes know.
pub trait Kept: Any + Send + Sync + fmt::Debug {
    /// `self`, for the downcast.
    fn as_any(&self) -> &dyn Any;
}

/// A masking network as data, for lanes that compute it themselves: features, then linear layers with ReLU between them
/// and a sigmoid at the end. `layers` are of the layout of φ.
#[derive(Clone, Debug)]
pub struct MaskNetwork {
    /// What a row of the first layer's input is.
    pub rows: NetworkRows,
    /// The layers in order.
    pub layers: Vec<LinearWeights>,
}

/// Rows of the input of a [`MaskNetwork`].
#[derive(Clone, Debug)]
pub enum NetworkRows {
    /// An image: the features of all its patches side by side.
    Images,
    /// A patch: its features, the mean features of the image, and these positions `[L, width]`.
    Patches(Arc<Vec<f32>>),
}

/// A way to mask patches, without mutable state: one instance serves all stages and threads at once.
///
/// A masking that learns nothing implements [`needs`](Masking::needs) and [`keys`](Masking::keys) alone. One that
/// learns implements all methods. Its methods compute on whole batches in host memory, may use the threads of
/// `compute`, and must give the same bits for any number of threads and any micro-batch: cut work by
/// [`Compute::grains`] or by something that does not depend on `compute`, and sum with
/// [`Tree`](crate::parallel::sum::Tree) or [`OrderedSum`](crate::parallel::sum::OrderedSum).
pub trait Masking: Send + Sync + fmt::Debug {
    /// What it reads, the same in every call; [`Needs::Pixels`] or [`Needs::Embedding`] if and only if something is
    /// learned.
    fn needs(&self) -> Needs;

    /// Keys `[num_images, L]` for [`order_by_keys`](super::order::order_by_keys): of each image the patches with the
    /// lowest keys stay visible. `scores` `[num_images, L]` are those of [`Masking::forward`], none where nothing is
    /// learned. Random draws must come from [`MaskRule::rng`]: the same batch is masked again in other stages.
    fn keys(&self, num_images: usize, scores: Option<&[f32]>, rule: &MaskRule) -> Vec<f32>;

    /// Weights a `[num_images, L]` of the patch losses ℓ of a masking that learns nothing, for images with this order;
    /// none where all are equal. L_m is the weighted mean over the masked patches of the batch of all ranks,
    /// Σ aᵢ mᵢ ℓᵢ / Σ aᵢ mᵢ, and 0 where no masked patch has a weight.
    fn fixed_weights(&self, _order: &TokenOrder, _rule: &MaskRule) -> Option<Vec<f32>> {
        None
    }

    /// Names and shapes of φ, a layout of [`Level::Mask`](crate::Level::Mask); none where nothing is learned.
    fn layout(&self) -> Option<&SharedLayout> {
        None
    }

    /// The scales over which logits are mixed; none for single patches alone.
    fn scales(&self) -> Option<&Scales> {
        None
    }

    /// The arms of learned exploration; none where it is not learned.
    fn explore_arms(&self) -> Option<&ExploreArms> {
        None
    }

    /// The arms of a learned mask ratio; none where it is not learned.
    fn ratio_arms(&self) -> Option<&RatioArms> {
        None
    }

    /// The network as data; none where nothing is learned, and for a network of another form, which other devices than
    /// the CPU then compute on the host.
    fn network(&self) -> Option<MaskNetwork> {
        None
    }

    /// Initial φ, as long as the layout; keyed by `seed` and tensor name (see [`init`](crate::init)).
    fn init(&self, _seed: u64) -> Buffer {
        Buffer::default()
    }

    /// Values that a [`Trace`] holds for each image (scores, input and hidden layers), for the memory bound of queues.
    fn trace_values(&self) -> usize {
        0
    }

    /// Scores p `[batch, L]` in [0, 1] of `input` `[batch, L, features]` at `phi`; none where nothing is learned.
    fn forward(&self, _compute: &Compute, _phi: &[f32], _input: &Arc<Buffer>) -> Option<Trace> {
        None
    }

    /// The backward pass from `dscores` = ∂F/∂p `[batch, L]` of a scalar F. Adds ∂F/∂φ to `dphi` if it is given, and
    /// returns ∂F/∂input `[batch, L, features]` with `want_input`. `phi` is that of the forward pass which made
    /// `trace`; it may have been run by another stage, with other threads and micro-batches.
    fn backward(
        &self,
        _compute: &Compute,
        _phi: &[f32],
        _trace: &Trace,
        _dscores: &[f32],
        _dphi: Option<&mut [f32]>,
        _want_input: bool,
    ) -> Option<Buffer> {
        None
    }

    /// The derivative of [`backward`](Masking::backward)'s `dphi` where the input moves along `dinput`
    /// `[batch, L, features]` and `dscores` along `ddscores`, both `[batch, L]`: added to `ddphi`. Only for a masking
    /// that needs [`Needs::Embedding`]; where the input stands still it is `backward` with `ddscores`. False if the
    /// masking has no such derivative.
    #[allow(clippy::too_many_arguments)]
    fn backward_tangent(
        &self,
        _compute: &Compute,
        _phi: &[f32],
        _trace: &Trace,
        _dinput: &[f32],
        _dscores: &[f32],
        _ddscores: &[f32],
        _ddphi: &mut [f32],
    ) -> bool {
        false
    }
}

/// The shapes that a masking is built for.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskingFacts {
    /// Patches along one side.
    pub grid: usize,
    /// Values of a patch, C·P·P.
    pub patch_values: usize,
    /// C: colour channels.
    pub channels: usize,
    /// Visible patches of an image, where no schedule changes it; [`MaskRule::num_visible`] is a batch's.
    pub num_visible: usize,
    /// Width of the encoder.
    pub dim: usize,
    /// What a masking network reads.
    pub input: MaskInput,
    /// Hidden width of a masking network.
    pub hidden: usize,
    /// Sides of the blocks over whose mean logits scores are mixed, in patches; see [`scales`](super::scales).
    pub scales: Arc<[usize]>,
    /// What an oracle does.
    pub oracle: OracleConfig,
    /// How attention chooses.
    pub attention: AttentionConfig,
    /// Clusters of an image's patches, of the masking by parts.
    pub num_parts: usize,
    /// The strategies of a mixture with their weights.
    pub mixture: Arc<[(MaskingChoice, f64)]>,
    /// What the strategy `noise` filters.
    pub noise: MaskNoise,
}

impl MaskingFacts {
    /// Facts for tests: patches of three values, and defaults.
    #[cfg(test)]
    pub(super) fn of_grid(grid: usize, num_visible: usize) -> Self {
        MaskingFacts {
            grid,
            patch_values: 3,
            channels: 3,
            num_visible,
            dim: 4,
            input: MaskInput::Pixels,
            hidden: 1,
            scales: Arc::default(),
            oracle: OracleConfig::default(),
            attention: AttentionConfig::default(),
            num_parts: 7,
            mixture: Arc::default(),
            noise: MaskNoise::default(),
        }
    }

    /// L: patches of an image.
    #[must_use]
    pub const fn num_patches(&self) -> usize {
        self.grid * self.grid
    }

    /// Features of a patch that a masking network reads.
    #[must_use]
    pub const fn features(&self) -> usize {
        match self.input {
            MaskInput::Embedding => self.dim,
            MaskInput::Pixels => self.patch_values,
        }
    }

    /// What a masking network needs, by its input.
    #[must_use]
    pub const fn needs(&self) -> Needs {
        match self.input {
            MaskInput::Embedding => Needs::Embedding,
            MaskInput::Pixels => Needs::Pixels,
        }
    }
}

/// A masking as an entry of [`MASKINGS`](super::MASKINGS).
pub trait MaskingKind: Named {
    /// Whether its maskings have a φ, that is a [`Masking::layout`].
    fn is_learned(&self) -> bool;

    /// Whether its maskings can mix logits over several [`scales`](super::scales).
    fn mixes_scales(&self) -> bool {
        false
    }

    /// Whether its maskings need a teacher, see [`Needs::reads_teacher`]; a mixture if one of its strategies does.
    fn reads_teacher(&self) -> bool {
        false
    }

    /// Whether it may be one of the strategies of a mixture: it must learn nothing and choose keys alone.
    fn may_be_mixed(&self) -> bool {
        !self.is_learned()
    }

    /// The masking for these shapes, which have been checked ([`ModelConfig::problems`](crate::ModelConfig::problems)).
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking>;
}

/// Scores and masks of a batch, in host memory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Scores and the activations for their backward pass; none where nothing is learned.
    pub trace: Option<Trace>,
    /// Which patches are visible.
    pub order: Arc<TokenOrder>,
    /// What weighs the patch losses.
    pub loss_weights: LossWeights,
    /// What an unlearned masking has read of each patch, `[batch, L]`, for the logs.
    pub guide: Option<Arc<[f32]>>,
}

impl Scored {
    /// The batch as `masking` masks it by `rule`, from its scores where there are any. `num_images` are this rank's.
    #[must_use]
    pub fn by_keys(
        masking: &dyn Masking,
        weights: MaskWeights,
        trace: Option<Trace>,
        num_images: usize,
        [num_patches, num_visible]: [usize; 2],
        rule: &MaskRule,
    ) -> Self {
        let rule = &MaskRule { num_visible: Some(num_visible), ..rule.clone() };
        let keys = rule.keys(masking, num_images, num_patches, trace.as_ref().map(|trace| &trace.scores[..]));
        Self::ordered(masking, weights, trace, order_by_keys(&keys, num_patches, num_visible), rule)
    }

    /// The batch with an order that is known.
    #[must_use]
    pub fn ordered(
        masking: &dyn Masking,
        weights: MaskWeights,
        trace: Option<Trace>,
        order: Arc<TokenOrder>,
        rule: &MaskRule,
    ) -> Self {
        let loss_weights = match &trace {
            Some(trace) => weights.of_scores(&trace.scores, &order),
            None => masking
                .fixed_weights(&order, rule)
                .map_or(LossWeights::One, |weights| LossWeights::mean(&weights, &order, &masked_of(&weights, &order))),
        };
        let guide = rule.read.clone().filter(|read| read.len() == order.rank.len());
        Scored { trace, order, loss_weights, guide }
    }

    /// The scores p `[batch, L]`; none where nothing is learned.
    #[must_use]
    pub fn scores(&self) -> Option<&[f32]> {
        self.trace.as_ref().map(|trace| &trace.scores[..])
    }

    /// The weight of each patch's loss beside its mask, `[batch, L]`; none where every weight is 1.
    #[must_use]
    pub fn weights(&self) -> Option<&[f32]> {
        match &self.loss_weights {
            LossWeights::One => None,
            LossWeights::Scores => self.scores(),
            LossWeights::Given(weights) => Some(weights),
        }
    }
}

/// U(±1/√inputs) for weight and bias of every linear layer (the default of PyTorch). A bias must follow its weight.
pub(super) fn init_linear_layers(layout: &Layout, seed: u64) -> Buffer {
    let mut values = vec![0.0; layout.len];
    let mut bound = 0.0;
    for entry in &layout.entries {
        if entry.shape.len() == 2 {
            bound = 1.0 / (entry.shape[1] as f64).sqrt();
        }
        init::symmetric(&mut values[entry.range()], bound, &mut init::tensor_rng(seed, &entry.name));
    }
    Buffer::from_vec(values)
}
