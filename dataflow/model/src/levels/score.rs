//! Patch scores, and the masks by their order.

use std::sync::Arc;

use mlomae_kernels::{self as kernels, Mat};

use super::Cpu;
use crate::error::ModelError;
use crate::masking::{MaskRule, Needs, Scored};
use crate::parallel::arena::{Buffer, Params};

/// Patches of images `[batch, C, H, W]` as `[batch·L, C·P·P]`, value order (channel, row, column).
#[must_use]
pub fn patches(cpu: &Cpu, images: &[f32]) -> Arc<Buffer> {
    let c = &cpu.model.config;
    let mut out = cpu.arena().take(images.len());
    kernels::patchify(&mut out, images, c.channels, c.image, c.patch);
    Arc::new(out)
}

/// The encoder's patch embedding with positions, `[batch, L, dim]`, of images `[batch, C, H, W]`.
#[must_use]
pub fn embedding(cpu: &Cpu, theta: &[f32], images: &[f32]) -> Arc<Buffer> {
    let (compute, c) = (&cpu.compute, &cpu.model.config);
    let batch = images.len() / c.image_values();
    let pieces = compute.micro_batches(batch);
    let per_image = c.num_patches() * c.dim;
    let spans: Vec<_> = pieces.iter().map(|p| p.start * per_image..p.end * per_image).collect();
    let mut embedding = compute.arena.take(batch * per_image);
    let w = cpu.model.vit.token_weights();
    let pos = &theta[w.pos.range()][c.dim..];
    compute.map_slices(&mut embedding, &spans, |i, out| {
        let part = &images[pieces[i].start * c.image_values()..pieces[i].end * c.image_values()];
        let patches = patches(cpu, part);
        let rows = pieces[i].len() * c.num_patches();
        let a = Mat { data: &patches, ld: w.proj.inputs, trans: false };
        let b = Mat { data: &theta[w.proj.weight.range()], ld: w.proj.inputs, trans: true };
        kernels::matmul(out, c.dim, a, b, rows, c.dim, w.proj.inputs, false);
        kernels::add_bias(out, &theta[w.proj.bias.range()]);
        out.chunks_exact_mut(per_image).for_each(|image| kernels::add(image, pos));
    });
    Arc::new(embedding)
}

/// Scores images `[batch, C, H, W]` at φ (where masks are learned) and masks them by `rule`. θ may be left out unless
/// the masking reads the patch embedding.
///
/// # Errors
/// When a θ that is needed is not given.
pub fn score(
    cpu: &Cpu,
    theta: Option<&Params>,
    phi: &Params,
    images: &[f32],
    rule: &MaskRule,
) -> Result<Scored, ModelError> {
    let (masking, c) = (&cpu.model.masking, &cpu.model.config);
    let input = match (masking.needs(), theta) {
        (Needs::Nothing | Needs::Objects, _) => None,
        (Needs::Pixels, _) => Some(patches(cpu, images)),
        (Needs::Embedding, Some(theta)) => Some(embedding(cpu, theta, images)),
        (Needs::Embedding, None) => {
            return Err(ModelError::Lane { lane: "cpu", problem: "scores of the embedding need θ".to_owned() });
        }
    };
    let trace = input.and_then(|input| masking.forward(&cpu.compute, phi, &input));
    let num_images = images.len() / c.image_values();
    let rule = MaskRule { first_image: (cpu.collective.rank() * num_images) as u64, ..rule.clone() };
    let rule = match masking.explore_arms() {
        Some(arms) if rule.explore_arms => arms.drawn(&phi[arms.logits().range()], rule, num_images),
        _ => rule,
    };
    Ok(Scored::by_keys(&**masking, c.mask_weights, trace, num_images, [c.num_patches(), c.num_visible()], &rule))
}
