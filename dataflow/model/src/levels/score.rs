//! Patch scores, and the masks by their order.

use std::sync::Arc;

use mlomae_kernels::{self as kernels, Mat};

use super::{Cpu, passes, pretrain};
use crate::engine::TokenOrder;
use crate::error::ModelError;
use crate::masking::arms;
use crate::masking::loss::{covering_orders, mean_losses};
use crate::masking::weights::masked_of;
use crate::masking::{LossWeights, MaskRule, Needs, Scored};
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

/// What the masking reads of the teacher `theta` on images `[batch, C, H, W]`; none if it reads none.
///
/// # Errors
/// When the teacher is not given.
fn read_teacher(
    cpu: &Cpu,
    theta: Option<&Params>,
    images: &[f32],
    rule: &MaskRule,
    num_visible: usize,
) -> Result<Option<Vec<f32>>, ModelError> {
    let (needs, c) = (cpu.model.masking.needs(), &cpu.model.config);
    if !needs.reads_teacher() {
        return Ok(None);
    }
    let missing = || ModelError::Lane { lane: "cpu", problem: "masks need the weights of a teacher".to_owned() };
    let theta = theta.ok_or_else(missing)?;
    Ok(match needs {
        Needs::Attention => Some(passes::attention(cpu, theta, images)),
        Needs::Rollout => Some(passes::attention_rollout(cpu, theta, images)),
        Needs::Tokens => Some(passes::patch_tokens(cpu, theta, images)),
        Needs::Losses => {
            let orders = covering_orders(images.len() / c.image_values(), c.num_patches(), num_visible, rule);
            let pass = |order: Arc<TokenOrder>| {
                let losses = pretrain::patch_losses(cpu, theta, images, &order).to_vec();
                (order, losses)
            };
            Some(mean_losses(&orders.into_iter().map(pass).collect::<Vec<_>>()))
        }
        Needs::Nothing | Needs::Objects | Needs::Pixels | Needs::Embedding => None,
    })
}

/// Scores images `[batch, C, H, W]` at φ (where masks are learned) and masks them by `rule`. θ may be left out unless
/// the masking reads the patch embedding.
///
/// # Errors
/// When a θ or objects that are needed are not given, or another rank is gone.
pub fn score(
    cpu: &Cpu,
    theta: Option<&Params>,
    phi: &Params,
    images: &[f32],
    rule: &MaskRule,
) -> Result<Scored, ModelError> {
    let (masking, c) = (&cpu.model.masking, &cpu.model.config);
    let input = match (masking.needs(), theta) {
        (needs, _) if rule.scores_nothing(needs) => None,
        (Needs::Nothing | Needs::Objects | Needs::Attention | Needs::Rollout | Needs::Tokens | Needs::Losses, _) => {
            None
        }
        (Needs::Pixels, _) => Some(patches(cpu, images)),
        (Needs::Embedding, Some(theta)) => Some(embedding(cpu, theta, images)),
        (Needs::Embedding, None) => {
            return Err(ModelError::Lane { lane: "cpu", problem: "scores of the embedding need θ".to_owned() });
        }
    };
    let trace = input.and_then(|input| masking.forward(&cpu.compute, phi, &input));
    let num_images = images.len() / c.image_values();
    let rule = MaskRule { first_image: (cpu.collective.rank() * num_images) as u64, ..rule.clone() };
    let rule = arms::drawn(&**masking, rule, num_images, |range| Ok::<_, ModelError>(phi[range].to_vec()))?;
    rule.check_objects(masking.needs(), num_images * c.num_patches(), "cpu")?;
    let num_visible = rule.num_visible.unwrap_or(c.num_visible());
    let read = read_teacher(cpu, theta, images, &rule, num_visible)?;
    let rule = MaskRule { read: read.map(Arc::from), ..rule };
    let shape = [c.num_patches(), num_visible];
    let mut scored = Scored::by_keys(&**masking, c.mask_weights, trace, num_images, shape, &rule);
    if let (LossWeights::Given(_), None) = (&scored.loss_weights, &scored.trace)
        && cpu.collective.num_ranks() > 1
        && let Some(weights) = masking.fixed_weights(&scored.order, &rule)
    {
        let all = cpu.collective.gather(Buffer::from_vec(masked_of(&weights, &scored.order)))?;
        scored.loss_weights = LossWeights::mean(&weights, &scored.order, &all);
    }
    Ok(scored)
}
