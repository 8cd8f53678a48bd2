//! Level 1: the masked autoencoder's loss and its gradient for θ.

use std::sync::Arc;

use super::Model;
use super::scoring::{Scored, patches};
use crate::config::MaskInput;
use crate::engine::dfdx_cpu::DfdxCpu;
use crate::engine::{Engine, TokenOrder};
use crate::error::ModelError;
use crate::layout::ParamSet;
use crate::parallel::arena::{Buffer, Params};
use crate::parallel::compute::Compute;
use crate::parallel::sum::OrderedSum;
use mlomae_kernels::{self as kernels, Mat};

/// Result of a level-1 pass.
#[derive(Debug)]
pub struct PretrainGradient {
    /// L_m.
    pub loss: f64,
    /// ∂L_m/∂θ, flat.
    pub gradient: Buffer,
    /// ℓ `[batch, L]`, of visible patches too.
    pub patch_loss: Buffer,
}

/// Normalised targets of images `[batch, C, H, W]` as `[batch·L, P·P·C]`, value order (row, column, channel).
fn targets(compute: &Compute, model: &Model, images: &[f32]) -> Arc<Buffer> {
    let c = &model.config;
    let mut out = compute.arena.take(images.len());
    kernels::patch_targets(&mut out, images, c.channels, c.image, c.patch);
    Arc::new(out)
}

/// L_m from patch losses: Σ pᵢ mᵢ ℓᵢ / Σ mᵢ, in f64.
pub fn masked_loss(patch_loss: &[f32], weights: Option<&[f32]>, order: &TokenOrder) -> f64 {
    let num_masked = (order.batch() * order.num_masked()) as f64;
    let masked = (0..patch_loss.len()).filter(|&i| order.is_masked(i));
    masked.map(|i| f64::from(patch_loss[i]) * weights.map_or(1.0, |w| f64::from(w[i]))).sum::<f64>() / num_masked
}

/// ∂L_m/∂p `[batch, L]` times `scale`: mᵢ ℓᵢ / Σ m.
pub fn score_cotangent(compute: &Compute, patch_loss: &[f32], order: &TokenOrder, scale: f64) -> Buffer {
    let factor = scale / (order.batch() * order.num_masked()) as f64;
    let mut out = compute.arena.take(patch_loss.len());
    for (i, d) in out.iter_mut().enumerate() {
        *d = if order.is_masked(i) { (f64::from(patch_loss[i]) * factor) as f32 } else { 0.0 };
    }
    out
}

/// Loss of level 1 and its gradient for θ on images `[batch, C, H, W]` with their masks.
///
/// Where the masking network reads the patch embedding, θ also receives the gradient through p.
///
/// # Errors
/// When the engine fails.
pub fn gradient(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    phi: &Params,
    images: &[f32],
    scored: &Scored,
) -> Result<PretrainGradient, ModelError> {
    let c = &model.config;
    let (order, num_patches) = (&scored.order, c.num_patches());
    let batch = order.batch();
    let inverse = 1.0 / (batch * order.num_masked()) as f32;
    let pieces = compute.micro_batches(batch);
    let sum = Arc::new(OrderedSum::new(&compute.arena, pieces.len(), theta.len()));
    let losses = compute.map(pieces.len(), |i| {
        let piece = pieces[i].clone();
        let images = &images[piece.start * c.image_values()..piece.end * c.image_values()];
        let rows = piece.start * num_patches..piece.end * num_patches;
        let mut e = DfdxCpu::recording(&compute.arena, piece.len(), compute.grain());
        e.sum_into(ParamSet::Pretrain, &sum, i);
        e.bind(ParamSet::Pretrain, theta, true);
        let input = e.constant(patches(compute, model, images), rows.len(), c.patch_values());
        let pred = model.vit.reconstruct(&mut e, &input, &order.slice(piece));
        let loss = e.patch_loss(&pred, &targets(compute, model, images));
        let mut cotangent = compute.arena.take(rows.len());
        for (d, row) in cotangent.iter_mut().zip(rows) {
            let weight = scored.weights().map_or(1.0, |w| w[row]);
            *d = if order.is_masked(row) { weight * inverse } else { 0.0 };
        }
        let losses = loss.shared();
        e.backward(vec![(loss, cotangent)])?;
        Ok::<_, ModelError>(losses)
    });
    let mut patch_loss = compute.arena.take(batch * num_patches);
    for (piece, losses) in pieces.iter().zip(losses) {
        patch_loss[piece.start * num_patches..piece.end * num_patches].copy_from_slice(&losses?);
    }
    let mut gradient =
        sum.finish().ok_or_else(|| ModelError::Config("a level-1 batch must hold at least one image".into()))?;
    if let (Some(trace), MaskInput::Embedding) = (&scored.trace, c.mask_input) {
        let dscores = score_cotangent(compute, &patch_loss, order, 1.0);
        if let Some(dembedding) = model.mask_net.backward(compute, phi, trace, &dscores, None, true) {
            add_embedding_gradient(compute, model, &mut gradient, images, &dembedding);
        }
    }
    model.vit.layout.zero_frozen(&mut gradient);
    Ok(PretrainGradient { loss: masked_loss(&patch_loss, scored.weights(), order), gradient, patch_loss })
}

/// Adds the gradient that reaches patch embedding and positions through `dembedding` `[batch·L, dim]`.
fn add_embedding_gradient(compute: &Compute, model: &Model, gradient: &mut [f32], images: &[f32], dembedding: &[f32]) {
    let dim = model.config.dim;
    let w = model.vit.token_weights();
    let patches = patches(compute, model, images);
    let a = Mat { data: dembedding, ld: dim, trans: true };
    let b = Mat { data: &patches, ld: w.proj.inputs, trans: false };
    kernels::matmul(
        &mut gradient[w.proj.weight.range()],
        w.proj.inputs,
        a,
        b,
        dim,
        w.proj.inputs,
        dembedding.len() / dim,
        true,
    );
    kernels::bias_grad(&mut gradient[w.proj.bias.range()], dembedding, true);
    let dpos = &mut gradient[w.pos.range()][dim..];
    dembedding.chunks_exact(dpos.len()).for_each(|image| kernels::add(dpos, image));
}

/// Patch losses ℓ `[batch, L]` alone: a forward pass that keeps nothing.
pub fn patch_losses(compute: &Compute, model: &Model, theta: &Params, images: &[f32], order: &TokenOrder) -> Buffer {
    let (c, num_patches) = (&model.config, model.config.num_patches());
    let pieces = compute.micro_batches(order.batch());
    let losses = compute.map(pieces.len(), |i| {
        let piece = pieces[i].clone();
        let images = &images[piece.start * c.image_values()..piece.end * c.image_values()];
        let mut e = DfdxCpu::forward_only(&compute.arena);
        e.bind(ParamSet::Pretrain, theta, false);
        let input = e.constant(patches(compute, model, images), piece.len() * num_patches, c.patch_values());
        let pred = model.vit.reconstruct(&mut e, &input, &order.slice(piece));
        e.patch_loss(&pred, &targets(compute, model, images)).shared()
    });
    let mut out = compute.arena.take(order.batch() * num_patches);
    for (piece, losses) in pieces.iter().zip(losses) {
        out[piece.start * num_patches..piece.end * num_patches].copy_from_slice(&losses);
    }
    out
}

/// Reconstructed patches `[batch·L, P·P·C]` in units of the normalised target, for pictures.
pub fn reconstruct(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    images: &[f32],
    order: &Arc<TokenOrder>,
) -> Vec<f32> {
    let mut e = DfdxCpu::forward_only(&compute.arena);
    e.bind(ParamSet::Pretrain, theta, false);
    let rows = order.batch() * model.config.num_patches();
    let input = e.constant(patches(compute, model, images), rows, model.config.patch_values());
    let pred = model.vit.reconstruct(&mut e, &input, order);
    e.values(&pred).to_vec()
}
