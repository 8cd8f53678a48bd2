//! Patch scores and the masks that follow from them.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::Model;
use crate::config::MaskInput;
use crate::engine::TokenOrder;
use crate::masking::mask_net::MaskTrace;
use crate::masking::order::{explored_keys, order_by_keys};
use crate::nets::init::uniform;
use crate::parallel::arena::{Buffer, Params};
use crate::parallel::compute::Compute;
use mlomae_kernels::{self as kernels, Mat};

/// Turns scores into masks. Cheap to clone, deterministic: the same scores always give the same masks.
#[derive(Clone)]
pub struct Masker {
    /// Share of the patches of an image that are placed at random, in [0, 1].
    pub explore: f64,
    /// Generator for one image of the batch, by its place in it; used for exploration and for random masks.
    pub image_rng: Arc<dyn Fn(usize) -> ChaCha8Rng + Send + Sync>,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").field("explore", &self.explore).finish_non_exhaustive()
    }
}

impl Masker {
    /// Masks by score alone.
    pub fn by_score() -> Self {
        use rand_chacha::rand_core::SeedableRng;
        Masker { explore: 0.0, image_rng: Arc::new(|image| ChaCha8Rng::seed_from_u64(image as u64)) }
    }

    /// The order that follows from scores `[batch, L]`.
    pub fn order(&self, model: &Model, scores: &[f32]) -> Arc<TokenOrder> {
        let (num_patches, num_visible) = (model.config.num_patches(), model.config.num_visible());
        if self.explore > 0.0 {
            let keys = explored_keys(scores, num_patches, self.explore, |image| (self.image_rng)(image));
            order_by_keys(&keys, num_patches, num_visible)
        } else {
            order_by_keys(scores, num_patches, num_visible)
        }
    }

    /// Uniformly random masks for the baseline.
    pub fn random_order(&self, model: &Model, batch: usize) -> Arc<TokenOrder> {
        let num_patches = model.config.num_patches();
        let mut keys = Vec::with_capacity(batch * num_patches);
        for image in 0..batch {
            let mut rng = (self.image_rng)(image);
            keys.extend((0..num_patches).map(|_| uniform(&mut rng) as f32));
        }
        order_by_keys(&keys, num_patches, model.config.num_visible())
    }
}

/// A batch with its masks.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Scores and what their gradient needs; none for random masks.
    pub trace: Option<MaskTrace>,
    /// Visible patches.
    pub order: Arc<TokenOrder>,
}

impl Scored {
    /// Weight p of each patch's loss, `[batch, L]`; none for random masks, where it is 1.
    pub fn weights(&self) -> Option<&[f32]> {
        self.trace.as_ref().map(|t| &t.scores[..])
    }
}

/// Patches of images `[batch, C, H, W]` as `[batch·L, C·P·P]`, value order (channel, row, column).
pub fn patches(compute: &Compute, model: &Model, images: &[f32]) -> Arc<Buffer> {
    let c = &model.config;
    let mut out = compute.arena.take(images.len());
    kernels::patchify(&mut out, images, c.channels, c.image, c.patch);
    Arc::new(out)
}

/// What the masking network reads of images `[batch, C, H, W]`: `[batch, L, features]`.
pub fn mask_input(compute: &Compute, model: &Model, theta: &[f32], images: &[f32]) -> Arc<Buffer> {
    let c = &model.config;
    match c.mask_input {
        MaskInput::Pixels => patches(compute, model, images),
        MaskInput::Embedding => {
            let batch = images.len() / c.image_values();
            let pieces = compute.micro_batches(batch);
            let per_image = c.num_patches() * c.dim;
            let spans: Vec<_> = pieces.iter().map(|p| p.start * per_image..p.end * per_image).collect();
            let mut embedding = compute.arena.take(batch * per_image);
            let w = model.vit.token_weights();
            let pos = &theta[w.pos.range()][c.dim..];
            compute.map_slices(&mut embedding, &spans, |i, out| {
                let part = &images[pieces[i].start * c.image_values()..pieces[i].end * c.image_values()];
                let patches = patches(compute, model, part);
                let rows = pieces[i].len() * c.num_patches();
                let a = Mat { data: &patches, ld: w.proj.inputs, trans: false };
                let b = Mat { data: &theta[w.proj.weight.range()], ld: w.proj.inputs, trans: true };
                kernels::matmul(out, c.dim, a, b, rows, c.dim, w.proj.inputs, false);
                kernels::add_bias(out, &theta[w.proj.bias.range()]);
                out.chunks_exact_mut(per_image).for_each(|image| kernels::add(image, pos));
            });
            Arc::new(embedding)
        }
    }
}

/// Scores images `[batch, C, H, W]` at θ and φ, and masks them.
pub fn score(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    phi: &Params,
    images: &[f32],
    masker: &Masker,
) -> Scored {
    let input = mask_input(compute, model, theta, images);
    let trace = model.mask_net.forward(compute, phi, &input);
    let order = masker.order(model, &trace.scores);
    Scored { trace: Some(trace), order }
}

/// Uniformly random masks: the baseline.
pub fn random(model: &Model, batch: usize, masker: &Masker) -> Scored {
    Scored { trace: None, order: masker.random_order(model, batch) }
}
