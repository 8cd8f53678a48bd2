//! How much of the GPU's memory a run takes, from above.

use super::device::of_device;
use crate::config::ModelConfig;
use crate::lane::MemorySpec;
use crate::level::Level;

/// Lanes of a run with a workspace each, and what context and kernels take.
const FIXED_BYTES: u64 = 6 * (32 << 20) + (512 << 20);

/// Bytes of an activation's value.
const fn act_bytes(precision: crate::Precision) -> u64 {
    match of_device(precision) {
        mlomae_device::Precision::Bf16 => 2,
        _ => 4,
    }
}

/// What a transformer of `depth` blocks over `rows` tokens keeps for its backward pass. For each token of each block:
/// two residuals in f32 of `dim` values; inputs of qkv and fc1, q, k and v, the attention's output, and the hidden
/// layer before its GELU, ten times `dim` activations; and what one block's backward pass takes besides, twice the
/// hidden layer and the residual's gradients.
fn recorded(rows: u64, dim: u64, depth: u64, act: u64) -> u64 {
    let kept = rows * dim * (2 * 4 + 10 * act);
    let transient = rows * dim * (3 * 4 + 12 * act);
    depth * kept + transient
}

/// What a pass of pairs takes at a time: it keeps nothing.
fn pairs(rows: u64, dim: u64, act: u64) -> u64 {
    2 * rows * dim * (3 * 4 + 12 * act)
}

/// Bytes that a run takes at most, about. Pools keep blocks by size, and sizes differ between a batch's parts, so the
/// parts add up.
pub(super) fn needed_bytes(spec: &MemorySpec<'_>) -> u64 {
    let c: &ModelConfig = &spec.model.config;
    let act = act_bytes(spec.precision);
    let len = |level| spec.model.layout(level).len as u64;
    let wide = |value: usize| value as u64;
    let (patches, visible) = (wide(c.num_patches()), wide(c.max_visible()));
    let (dim, dec_dim) = (wide(c.dim), wide(c.dec_dim));
    let batch = &spec.batch;

    // Versions of the weights that lagging levels still read, moments before and after a step, the gradient, and the
    // copies for products of every lane.
    let theta = len(Level::Pretrain) * (4 * (spec.lag + 3) + 4 * 4 + 4 * 2 + 4 * act);
    let small = (len(Level::Finetune) + len(Level::Mask)) * 4 * (spec.lag + 10);

    // Heads are f64: points of the finite difference and gradients of both lanes, and for each image its logits and six
    // vectors as wide as a token.
    let heads = len(Level::Finetune) * 8 * 8
        + wide(batch[Level::Finetune] + batch[Level::Mask]) * (6 * dim + wide(c.num_classes)) * 8;

    let images = |level: Level| wide(batch[level]) * wide(c.image_values()) * 4;
    let rows = |level: Level, tokens: u64| wide(batch[level]) * (1 + tokens);
    let pretrain = recorded(rows(Level::Pretrain, visible), dim, wide(c.depth), act)
        + recorded(rows(Level::Pretrain, patches), dec_dim, wide(c.dec_depth), act)
        + 3 * images(Level::Pretrain);
    let encode = |level| recorded(rows(level, patches), dim, wide(c.depth), act) + images(level);
    let downstream = if spec.model.is_learned() { encode(Level::Finetune) + encode(Level::Mask) } else { 0 };
    let passes = if spec.is_tangent { 2 } else { 1 };
    let hypergradient = if spec.model.is_learned() {
        let (seen, all) = (rows(Level::Pretrain, visible), rows(Level::Pretrain, patches));
        passes * (pairs(seen, dim, act) + pairs(all, dec_dim, act)) / 2
    } else {
        0
    };
    // The scores' trace, for each batch between scorer and encoder, and images waiting in queues.
    let trace = wide(batch[Level::Pretrain]) * (patches * dim + 4 * wide(c.mask_hidden) * patches) * 4;
    let queued = 4 * (trace + images(Level::Pretrain));
    // The bytes of a batch of which values are made: of the scorer, and of level 2.
    let raw = (images(Level::Pretrain) + images(Level::Finetune) + images(Level::Mask)) / 4;
    // The teacher of three moments, its copy for products, and a pass of the scorer over all patches.
    let teacher = if spec.model.masking.needs().reads_teacher() {
        let rows = rows(Level::Pretrain, patches);
        len(Level::Pretrain) * (4 * 3 + act) + pairs(rows, dim, act).max(pairs(rows, dec_dim, act)) / 2
    } else {
        0
    };
    // The reward of a learned mask ratio and the branches of a search take level 1's gradient once more, in level 3.
    let again = spec.model.masking.ratio_arms().is_some() || spec.has_branches;
    let again = if again { pretrain + len(Level::Pretrain) * 4 * 3 } else { 0 };
    // Weights and moments of three branches, with those that a step makes; both moments in each snapshot; the labelled
    // batches in the queue of level 3, and a pass that keeps nothing over one of them.
    let branches = if spec.has_branches {
        let rows = rows(Level::Finetune, patches).max(rows(Level::Mask, patches));
        len(Level::Pretrain) * 4 * (3 * 3 + 3 + 2 * (spec.lag + 3))
            + (spec.lag + 3) * (images(Level::Finetune) + images(Level::Mask))
            + pairs(rows, dim, act) / 2
    } else {
        0
    };
    FIXED_BYTES
        + theta
        + small
        + heads
        + pretrain
        + downstream
        + hypergradient
        + queued
        + raw
        + teacher
        + again
        + branches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::PerLevel;
    use crate::model::Model;
    use crate::precision::Precision;

    fn gib(config: &ModelConfig, batch: usize, precision: Precision) -> f64 {
        gib_of(config, batch, precision, false)
    }

    fn gib_of(config: &ModelConfig, batch: usize, precision: Precision, has_branches: bool) -> f64 {
        let model = Model::new(config).unwrap();
        let batch = PerLevel { pretrain: batch, finetune: batch, mask: batch };
        let spec = MemorySpec { model: &model, batch, lag: 1, has_branches, is_tangent: true, precision };
        needed_bytes(&spec) as f64 / f64::from(1 << 30)
    }

    #[test]
    fn the_bound_grows_with_the_batch_and_fits_a_gpu_at_the_published_size() {
        let base = ModelConfig {
            patch: 2,
            dim: 768,
            depth: 12,
            heads: 12,
            dec_dim: 512,
            dec_depth: 8,
            dec_heads: 16,
            mask_hidden: 512,
            ..ModelConfig::default()
        };
        let (half, whole) = (gib(&base, 64, Precision::Bf16), gib(&base, 128, Precision::Bf16));
        assert!(half < whole && (20.0..60.0).contains(&whole), "{half} {whole} GiB");
        assert!(gib(&base, 128, Precision::F32) > whole);
        // 112 million weights, of three branches three times in f32.
        let branches = gib_of(&base, 64, Precision::Bf16, true) - half;
        assert!(branches > 9.0 * 0.112 * 4.0 * 0.93, "{branches} GiB");
    }
}
