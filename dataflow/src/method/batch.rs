//! The batches that flow between the stages.

use std::sync::Arc;

use mlomae_model::lane::{LabelledImages, Lane};
use mlomae_model::levels::optimizer::AdamWConfig;
use mlomae_model::masking::{MaskRule, Scored};
use mlomae_model::tasks::Targets;
use mlomae_model::{Images, ModelError, RawImages, Vector};

use crate::counts::{Outer, Version};
use crate::flow::ports::Payload;

/// Images with their identities: as they were loaded, or as values in a device's memory. Cloning shares the images.
#[derive(Debug, Clone)]
pub struct ImageBatch<I = Images> {
    /// Number of the batch in its role, over all epochs.
    pub seq: u64,
    /// The outer iteration that it is for.
    pub outer: Outer,
    /// How often its role has been gone through before.
    pub epoch: u64,
    /// Stable ids of the samples, \[batch].
    pub ids: Arc<[i64]>,
    /// What the head should find in them, \[batch].
    pub targets: Targets,
    /// Images [batch, C, H, W].
    pub images: I,
    /// Whether each patch holds a part of the sample's object, [batch, L]; only of pretrain batches whose masking needs
    /// it.
    pub objects: Option<Arc<[bool]>>,
}

impl<I> ImageBatch<I> {
    /// Images in the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Bytes of what comes with the images.
    fn labels_bytes(&self) -> usize {
        8 * self.ids.len() + self.targets.size_bytes() + self.objects.as_ref().map_or(0, |objects| objects.len())
    }

    /// Whether the batch holds no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The batch with other images.
    fn with_images<J>(self, images: J) -> ImageBatch<J> {
        let Self { seq, outer, epoch, ids, targets, images: _, objects } = self;
        ImageBatch { seq, outer, epoch, ids, targets, images, objects }
    }
}

impl ImageBatch {
    /// The batch with its values in memory of the lane's device.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    pub fn ingested(self, lane: &dyn Lane) -> Result<ImageBatch<Vector>, ModelError> {
        let images = lane.ingest(&self.images)?;
        Ok(self.with_images(images))
    }
}

impl ImageBatch<Vector> {
    /// The images with their targets.
    #[must_use]
    pub const fn labelled(&self) -> LabelledImages<'_> {
        LabelledImages { images: &self.images, targets: &self.targets }
    }
}

/// Bytes of a batch of `num` images of `image_values` values, or of their pixels if they are `raw`, with the flags of
/// `num_objects` patches of each.
#[must_use]
pub const fn batch_bytes(num: usize, image_values: usize, raw: bool, num_objects: usize) -> usize {
    let of_image = if raw { RawImages::bytes_of_image(image_values) } else { 4 * image_values };
    num * (of_image + 8 + 4 + num_objects)
}

impl Payload for ImageBatch {
    fn size_bytes(&self) -> usize {
        self.images.size_bytes() + self.labels_bytes()
    }
}

impl Payload for ImageBatch<Vector> {
    fn size_bytes(&self) -> usize {
        4 * self.images.len() + self.labels_bytes()
    }
}

/// The fixed samples whose masks are logged over a run.
#[derive(Debug, Clone)]
pub struct Panel {
    /// The samples, not augmented.
    pub batch: ImageBatch,
    /// Whether each patch holds a part of the sample's object, [samples, L]; none where the data does not know.
    pub objects: Option<Vec<bool>>,
}

/// The labelled batches of one outer iteration.
#[derive(Debug, Clone)]
pub struct LabelledPair {
    /// The outer iteration.
    pub outer: Outer,
    /// Batch F of level 2.
    pub finetune: ImageBatch,
    /// Batch V of level 3.
    pub validation: ImageBatch,
}

impl Payload for LabelledPair {
    fn size_bytes(&self) -> usize {
        self.finetune.size_bytes() + self.validation.size_bytes()
    }
}

/// A pretrain batch with its masks.
#[derive(Debug, Clone)]
pub struct ScoredBatch {
    /// The images.
    pub batch: ImageBatch<Vector>,
    /// Scores and masks.
    pub scored: Scored,
    /// How scores became masks, to be done again at shifted weights.
    pub rule: MaskRule,
    /// The policy that scored.
    pub phi: Vector,
    /// Its version.
    pub policy_version: Version,
}

impl Payload for ScoredBatch {
    fn size_bytes(&self) -> usize {
        let order = &self.scored.order;
        // φ is shared with the policy stage and is not counted.
        self.batch.size_bytes()
            + 4 * (order.kept.len() + order.rank.len())
            + 4 * self.scored.weights().map_or(0, <[f32]>::len)
            + 4 * self.scored.guide.as_ref().map_or(0, |guide| guide.len())
    }
}

/// What levels 2 and 3 need of level 1 after an outer iteration's last step.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The outer iteration.
    pub outer: Outer,
    /// θ after the iteration's level-1 steps.
    pub theta: Vector,
    /// The last batch x_p with its masks; shared, never copied.
    pub last: Arc<ScoredBatch>,
    /// The metric of level 1's steps, where directions are taken in it or branches begin with it.
    pub metric: Option<StepMetric>,
}

/// Level 1's second moments: what AdamW divides a gradient by the root of; and the first, for who continues its steps.
#[derive(Debug, Clone)]
pub struct StepMetric {
    /// First moments, flat over θ; only where branches of the encoder are trained.
    pub first_moment: Option<Vector>,
    /// Second moments, flat over θ.
    pub second_moment: Vector,
    /// Steps done.
    pub step: u64,
    /// Constants of the optimizer.
    pub adamw: AdamWConfig,
}

impl Payload for Snapshot {
    fn size_bytes(&self) -> usize {
        let metric = self
            .metric
            .as_ref()
            .map_or(0, |metric| 4 * (metric.second_moment.len() + metric.first_moment.as_ref().map_or(0, Vector::len)));
        4 * self.theta.len() + metric + self.last.size_bytes()
    }
}

/// The direction of the hypergradient's finite difference.
#[derive(Debug, Clone)]
pub struct Direction {
    /// The snapshot that it belongs to.
    pub snapshot: Snapshot,
    /// v1 = D[v0; c; L_f; θ], flat over θ, zero on the decoder.
    pub v1: Vector,
    /// w = ∂L_v/∂θ, flat over θ, zero on the decoder.
    pub w: Vector,
    /// The labelled batches of the outer iteration, finetune and validation; only where branches of the encoder are
    /// judged by them.
    pub pair: Option<[LabelledBatch; 2]>,
}

/// Images in a device's memory with their targets.
#[derive(Debug, Clone)]
pub struct LabelledBatch {
    /// Images `[batch, C, H, W]`.
    pub images: Vector,
    /// What the head should find in them, `[batch]`.
    pub targets: Targets,
}

impl LabelledBatch {
    /// The images with their targets.
    #[must_use]
    pub const fn labelled(&self) -> LabelledImages<'_> {
        LabelledImages { images: &self.images, targets: &self.targets }
    }
}

impl Payload for LabelledBatch {
    fn size_bytes(&self) -> usize {
        4 * self.images.len() + self.targets.size_bytes()
    }
}

impl Payload for Direction {
    fn size_bytes(&self) -> usize {
        let pair = self.pair.as_ref().map_or(0, |pair| pair.iter().map(Payload::size_bytes).sum());
        self.snapshot.size_bytes() + 4 * (self.v1.len() + self.w.len()) + pair
    }
}
