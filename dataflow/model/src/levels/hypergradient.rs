//! Level 3: the hypergradient ∂φ = D[v; θ; L_m; φ], a central finite difference over θ along v.

use super::Model;
use super::downstream::step_size;
use super::pretrain::{patch_losses, score_cotangent};
use super::scoring::{Masker, Scored, score};
use crate::parallel::arena::{Buffer, Params};
use crate::parallel::compute::Compute;
use mlomae_kernels as kernels;

/// D[v; θ; L_m; φ] = (∂L_m/∂φ at θ − εv − ∂L_m/∂φ at θ + εv) / 2ε with ε = α/‖v‖₂, on images `[batch, C, H, W]`.
///
/// φ reaches L_m only through the factor p, so ∂L_m/∂φ needs the patch losses of a forward pass that keeps nothing, and one backward
/// through the masking network alone. The live θ is never touched: both passes run on scratch copies. D is linear in v up to O(ε²), so
/// one call with v1 + w serves both paths (`clean`).
#[allow(clippy::too_many_arguments)]
pub fn along(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    v: &[f32],
    phi: &Params,
    images: &[f32],
    masker: &Masker,
    alpha: f64,
) -> Buffer {
    let mut hypergradient = compute.arena.zeros(model.mask_net.layout.len);
    let norm = norm(compute, v);
    if norm == 0.0 {
        return hypergradient;
    }
    let epsilon = step_size(alpha, norm);
    for sign in [-1.0, 1.0] {
        let shifted = Params::new(shifted(compute, model, theta, v, sign * epsilon));
        let Scored { trace, order } = score(compute, model, &shifted, phi, images, masker);
        let losses = patch_losses(compute, model, &shifted, images, &order);
        let dscores = score_cotangent(compute, &losses, &order, -sign / (2.0 * epsilon));
        if let Some(trace) = trace {
            model.mask_net.backward(compute, phi, &trace, &dscores, Some(&mut hypergradient), false);
        }
    }
    hypergradient
}

/// θ + ε·v in fresh memory; v is zero on the decoder, which is copied.
pub fn shifted(compute: &Compute, model: &Model, theta: &[f32], v: &[f32], epsilon: f64) -> Buffer {
    let mut out = compute.arena.take(theta.len());
    let encoder = model.vit.encoder_len;
    add_scaled(compute, &mut out[..encoder], &theta[..encoder], epsilon as f32, &v[..encoder]);
    out[encoder..].copy_from_slice(&theta[encoder..]);
    out
}

/// a + b in fresh memory.
pub fn sum(compute: &Compute, a: &[f32], b: &[f32]) -> Buffer {
    let mut out = compute.arena.take(a.len());
    add_scaled(compute, &mut out, a, 1.0, b);
    out
}

/// out = x + alpha·v.
fn add_scaled(compute: &Compute, out: &mut [f32], x: &[f32], alpha: f32, v: &[f32]) {
    let spans = compute.spans(out.len());
    compute.map_slices(out, &spans, |i, out| {
        kernels::scale_add(out, &x[spans[i].clone()], alpha, &v[spans[i].clone()]);
    });
}

/// ‖x‖₂, summed in f64 over fixed pieces.
pub fn norm(compute: &Compute, x: &[f32]) -> f64 {
    let spans = compute.spans(x.len());
    compute.map(spans.len(), |i| kernels::sum_sq(&x[spans[i].clone()])).iter().sum::<f64>().sqrt()
}

/// Cosine between two vectors; 0 where one of them is zero.
pub fn cosine(compute: &Compute, a: &[f32], b: &[f32]) -> f64 {
    let spans = compute.spans(a.len());
    let dot: f64 = compute.map(spans.len(), |i| kernels::dot(&a[spans[i].clone()], &b[spans[i].clone()])).iter().sum();
    let norms = norm(compute, a) * norm(compute, b);
    if norms == 0.0 { 0.0 } else { dot / norms }
}
