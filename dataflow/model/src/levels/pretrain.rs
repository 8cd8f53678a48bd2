//! Level 1: the masked autoencoder's loss L_m, weighted by scores, and its gradient for θ.

use std::sync::Arc;

use mlomae_kernels::{self as kernels, Mat};

use super::Cpu;
use super::score::patches;
use crate::engine::tangent::Tangent;
use crate::engine::{Engine, HostIo, Tape, TokenOrder};
use crate::error::ModelError;
use crate::level::Level;
use crate::masking::shuffle::backward;
use crate::masking::{Needs, Scored};
use crate::parallel::arena::{Buffer, Params};
use crate::parallel::sum::OrderedSum;

/// Result of level 1 on a batch.
#[derive(Debug)]
pub struct Gradient {
    /// L_m of the whole batch over all ranks.
    pub loss: f64,
    /// ∂L_m/∂θ, flat.
    pub gradient: Buffer,
    /// ℓ `[images, L]` of this rank's images, of visible patches too.
    pub patch_loss: Buffer,
}

/// mᵢ·pᵢ `[images, L]`: the weight of each patch's loss, 0 for visible patches; p is 1 where nothing weighs.
#[must_use]
pub fn loss_weights(cpu: &Cpu, scored: &Scored) -> Buffer {
    let order = &scored.order;
    let (all, mut weights) = (scored.weights(), cpu.arena().take(order.rank.len()));
    for (i, weight) in weights.iter_mut().enumerate() {
        *weight = if order.is_masked(i) { all.map_or(1.0, |p| p[i]) } else { 0.0 };
    }
    weights
}

/// L_m = Σ pᵢ mᵢ ℓᵢ / Σ mᵢ, summed in f64, from ℓ and [`loss_weights`] of a batch with `num_masked` masked patches.
#[must_use]
pub fn masked_loss(patch_loss: &[f32], weights: &[f32], num_masked: usize) -> f64 {
    let weighted = patch_loss.iter().zip(weights).filter(|(_, weight)| **weight != 0.0);
    weighted.map(|(&loss, &weight)| f64::from(loss) * f64::from(weight)).sum::<f64>() / num_masked as f64
}

/// `scale`·∂L_m/∂p `[images, L]` of a learned masking, where the batch has `num_masked` masked patches, see
/// [`MaskWeights::cotangent`](crate::masking::MaskWeights::cotangent).
#[must_use]
pub fn score_cotangent(cpu: &Cpu, patch_loss: &[f32], scored: &Scored, num_masked: usize, scale: f64) -> Vec<f32> {
    let weights = cpu.model.config.mask_weights;
    weights.cotangent(patch_loss, scored.scores().unwrap_or_default(), &scored.order, num_masked, scale)
}

/// Σ m: masked patches of the images of all ranks. `order` is of this rank's images; all ranks have equally many.
#[must_use]
pub fn num_masked(cpu: &Cpu, order: &TokenOrder) -> usize {
    order.batch() * cpu.collective.num_ranks() * order.num_masked()
}

/// L_m and its gradient for θ on images `[images, C, H, W]` with their scores and masks at `phi`.
///
/// Where the masking network reads the patch embedding, the gradient has a second part, through p.
///
/// # Errors
/// When the engine fails, the batch has no image, or another rank is gone.
pub fn gradient(
    cpu: &Cpu,
    theta: &Params,
    phi: &Params,
    images: &[f32],
    scored: &Scored,
) -> Result<Gradient, ModelError> {
    let Cpu { compute, model, collective, .. } = cpu;
    let (c, order) = (&model.config, &scored.order);
    let (num_patches, num_masked) = (c.num_patches(), num_masked(cpu, order));
    let inverse = 1.0 / num_masked as f32;
    let weights = loss_weights(cpu, scored);
    let pieces = compute.micro_batches(order.batch());
    let sum = Arc::new(OrderedSum::new(&compute.arena, pieces.len(), theta.len()));
    let losses = compute.map(pieces.len(), |i| {
        let piece = pieces[i].clone();
        let images = &images[piece.start * c.image_values()..piece.end * c.image_values()];
        let mut e = cpu.recording(piece.len());
        e.sum_into(Level::Pretrain, &sum, i);
        let loss = patch_loss(cpu, &mut e, theta, images, &order.slice(piece.clone()), true);
        let weights = &weights[piece.start * num_patches..piece.end * num_patches];
        let mut cotangent = compute.arena.take(weights.len());
        cotangent.iter_mut().zip(weights).for_each(|(d, weight)| *d = weight * inverse);
        let losses = loss.shared();
        e.backward(vec![(loss, cotangent)])?;
        Ok::<_, ModelError>(losses)
    });
    let mut patch_loss = compute.arena.take(order.batch() * num_patches);
    for (piece, losses) in pieces.iter().zip(losses) {
        patch_loss[piece.start * num_patches..piece.end * num_patches].copy_from_slice(&losses?);
    }
    let gradient =
        sum.finish().ok_or_else(|| ModelError::Config("a level-1 batch must hold at least one image".into()))?;
    let mut gradient = collective.sum(gradient)?;
    if let (Some(trace), Needs::Embedding) = (&scored.trace, model.masking.needs()) {
        let dscores = score_cotangent(cpu, &patch_loss, scored, num_masked, 1.0);
        if let Some(dembedding) = backward(&*model.masking, compute, phi, trace, &dscores, None, true) {
            let patches = Arc::unwrap_or_clone(patches(cpu, images));
            let (dembedding, patches) = (collective.gather(dembedding)?, collective.gather(patches)?);
            add_embedding_gradient(cpu, &mut gradient, &patches, &dembedding);
        }
    }
    model.vit.layout.zero_frozen(&mut gradient);
    let (all_losses, all_weights) =
        (collective.gather(compute.arena.copy_of(&patch_loss))?, collective.gather(weights)?);
    Ok(Gradient { loss: masked_loss(&all_losses, &all_weights, num_masked), gradient, patch_loss })
}

/// ℓ `[images·L, 1]` of images `[images, C, H, W]`: the mean squared error of the decoder's prediction against the
/// normalised target (each patch less its mean, divided by its standard deviation), whose values have the order (row,
/// column, channel).
fn patch_loss<E: HostIo<Vector = Params, Order = Arc<TokenOrder>>>(
    cpu: &Cpu,
    e: &mut E,
    theta: &Params,
    images: &[f32],
    order: &Arc<TokenOrder>,
    want_gradient: bool,
) -> E::Tensor {
    let (c, vit) = (&cpu.model.config, &cpu.model.vit);
    e.bind(Level::Pretrain, theta, want_gradient);
    let rows = images.len() / c.patch_values();
    let input = e.constant(patches(cpu, images), rows, c.patch_values());
    let pred = vit.reconstruct(e, &input, order);
    let mut target = cpu.arena().take(images.len());
    kernels::patch_targets(&mut target, images, c.channels, c.image, c.patch);
    let target = e.constant(Arc::new(target), rows, c.patch_values());
    e.patch_loss(&pred, &target)
}

/// Adds to `gradient` (flat over θ) the gradients of patch embedding and positions, from the cotangent `dembedding`
/// `[batch·L, dim]` of the embedded `patches` `[batch·L, values]`.
fn add_embedding_gradient(cpu: &Cpu, gradient: &mut [f32], patches: &[f32], dembedding: &[f32]) {
    let dim = cpu.model.config.dim;
    let w = cpu.model.vit.token_weights();
    let (rows, inputs) = (dembedding.len() / dim, w.proj.inputs);
    let a = Mat { data: dembedding, ld: dim, trans: true };
    let b = Mat { data: patches, ld: inputs, trans: false };
    kernels::matmul(&mut gradient[w.proj.weight.range()], inputs, a, b, dim, inputs, rows, true);
    kernels::bias_grad(&mut gradient[w.proj.bias.range()], dembedding, true);
    let dpos = &mut gradient[w.pos.range()][dim..];
    dembedding.chunks_exact(dpos.len()).for_each(|image| kernels::add(dpos, image));
}

/// Quantities `[images, L]` of images `[images, C, H, W]`, from a `pass` over each micro-batch and its order of tokens.
fn patch_values<const N: usize>(
    cpu: &Cpu,
    images: &[f32],
    order: &TokenOrder,
    pass: impl Fn(&[f32], &Arc<TokenOrder>) -> [Arc<Buffer>; N] + Sync,
) -> [Buffer; N] {
    let (compute, c) = (&cpu.compute, &cpu.model.config);
    let pieces = compute.micro_batches(order.batch());
    let parts = compute.map(pieces.len(), |i| {
        let piece = pieces[i].clone();
        let images = &images[piece.start * c.image_values()..piece.end * c.image_values()];
        pass(images, &order.slice(piece))
    });
    let mut all = std::array::from_fn(|_| compute.arena.take(order.batch() * c.num_patches()));
    for (piece, parts) in pieces.iter().zip(parts) {
        let place = piece.start * c.num_patches()..piece.end * c.num_patches();
        all.iter_mut().zip(parts).for_each(|(all, part)| all[place.clone()].copy_from_slice(&part));
    }
    all
}

/// Patch losses ℓ `[images, L]` of images `[images, C, H, W]`, by a forward pass without a tape.
#[must_use]
pub fn patch_losses(cpu: &Cpu, theta: &Params, images: &[f32], order: &TokenOrder) -> Buffer {
    let [losses] = patch_values(cpu, images, order, |images, order| {
        let mut e = cpu.forward_only();
        [patch_loss(cpu, &mut e, theta, images, order, false).shared()]
    });
    losses
}

/// Patch losses ℓ `[images, L]` and their derivatives along v, which is zero on the decoder: a forward pass of pairs
/// that keeps nothing. The masks stand still.
#[must_use]
pub fn patch_loss_tangents(
    cpu: &Cpu,
    theta: &Params,
    v: &Params,
    images: &[f32],
    order: &TokenOrder,
) -> (Buffer, Buffer) {
    let [losses, tangents] = patch_values(cpu, images, order, |images, order| {
        let mut moving = cpu.forward_only();
        moving.bind(Level::Pretrain, v, false);
        let mut e = Tangent::new(cpu.forward_only(), moving, cpu.model.vit.encoder_len);
        let pair = patch_loss(cpu, &mut e, theta, images, order, false);
        [pair.value.shared(), pair.tangent.map(|tangent| tangent.shared()).unwrap_or_default()]
    });
    (losses, tangents)
}

/// Reconstructed patches `[images·L, P·P·C]` in units of the normalised target, value order (row, column, channel), for
/// pictures.
#[must_use]
pub fn reconstruct(cpu: &Cpu, theta: &Params, images: &[f32], order: &Arc<TokenOrder>) -> Vec<f32> {
    let c = &cpu.model.config;
    let mut e = cpu.forward_only();
    e.bind(Level::Pretrain, theta, false);
    let rows = order.batch() * c.num_patches();
    let input = e.constant(patches(cpu, images), rows, c.patch_values());
    let pred = cpu.model.vit.reconstruct(&mut e, &input, order);
    e.values(&pred).to_vec()
}
