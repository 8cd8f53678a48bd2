//! Linear algebra on flat vectors. Vectors over θ and φ are `f32` and swept by several threads; those over c are small,
//! and `f64` (`_wide`).

use std::sync::Arc;

use mlomae_kernels as kernels;

use crate::levels::optimizer::AdamWConfig;
use crate::parallel::arena::{Buffer, Params};
use crate::parallel::compute::Compute;

/// ε = α / ‖v‖₂, the step of a finite difference along v; finite for v = 0.
#[must_use]
pub fn step_size(alpha: f64, norm: f64) -> f64 {
    alpha / (norm + 1e-15)
}

/// x in f64.
#[must_use]
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// x in f32.
#[must_use]
pub fn narrow(x: &[f64]) -> Buffer {
    Buffer::from_vec(x.iter().map(|&v| v as f32).collect())
}

/// ‖x‖₂ of a vector over c.
#[must_use]
pub fn norm_wide(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// x + ε·v of vectors over c.
#[must_use]
pub fn shifted_wide(x: &[f64], epsilon: f64, v: &[f64]) -> Vec<f64> {
    x.iter().zip(v).map(|(x, v)| x + epsilon * v).collect()
}

/// x + ε·v in a new buffer; `v` must be zero from index `num_moving` on, where x is copied.
#[must_use]
pub fn shifted(compute: &Compute, x: &[f32], v: &[f32], epsilon: f64, num_moving: usize) -> Params {
    let mut out = compute.arena.take(x.len());
    add_scaled(compute, &mut out[..num_moving], &x[..num_moving], epsilon as f32, &v[..num_moving]);
    out[num_moving..].copy_from_slice(&x[num_moving..]);
    Arc::new(out)
}

/// a + b in a new buffer.
#[must_use]
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

/// x / (√(v/(1 − β₂ᵗ)) + eps), see [`Lane::preconditioned`](crate::lane::Lane::preconditioned). It is zero where x is.
#[must_use]
pub fn preconditioned(compute: &Compute, x: &[f32], v: &[f32], step: u64, adamw: &AdamWConfig) -> Buffer {
    let correction = bias_correction(step, adamw);
    let mut out = compute.arena.take(x.len());
    let spans = compute.spans(out.len());
    compute.map_slices(&mut out, &spans, |i, out| {
        let places = x[spans[i].clone()].iter().zip(&v[spans[i].clone()]);
        for (out, (x, v)) in out.iter_mut().zip(places) {
            *out = x / ((v * correction).sqrt() + adamw.eps as f32);
        }
    });
    out
}

/// 1/(1 − β₂ᵗ), which makes the second moment after t = `step` steps unbiased; 1 before the first.
#[must_use]
pub fn bias_correction(step: u64, adamw: &AdamWConfig) -> f32 {
    let decayed = adamw.beta2.powi(i32::try_from(step).unwrap_or(i32::MAX));
    if step == 0 { 1.0 } else { (1.0 / (1.0 - decayed)) as f32 }
}

/// ‖x‖₂, summed in f64 over pieces that do not depend on the number of threads.
#[must_use]
pub fn norm(compute: &Compute, x: &[f32]) -> f64 {
    let spans = compute.spans(x.len());
    compute.map(spans.len(), |i| kernels::sum_sq(&x[spans[i].clone()])).iter().sum::<f64>().sqrt()
}

/// Cosine between two vectors; 0 where one of them is zero.
#[must_use]
pub fn cosine(compute: &Compute, a: &[f32], b: &[f32]) -> f64 {
    let spans = compute.spans(a.len());
    let dot: f64 = compute.map(spans.len(), |i| kernels::dot(&a[spans[i].clone()], &b[spans[i].clone()])).iter().sum();
    let norms = norm(compute, a) * norm(compute, b);
    if norms == 0.0 { 0.0 } else { dot / norms }
}
