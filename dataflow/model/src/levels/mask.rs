//! Level 3: the directions v1 and w over θ, and the hypergradient ∂φ = D[v; θ; L_m; φ] along them
//! (see [`hypergradient`](crate::hypergradient)).

use super::finetune::task_gradient;
use super::passes::{Passes, Recorded};
use super::pretrain::{num_masked, patch_loss_tangents, patch_losses, score_cotangent};
use super::score::{embedding, score};
use super::vectors::{norm, norm_wide, shifted, shifted_wide, step_size};
use super::{Cpu, Labelled};
use crate::error::ModelError;
use crate::masking::shuffle::backward;
use crate::masking::{MaskRule, Needs, Scored};
use crate::parallel::arena::{Buffer, Params};
use crate::tasks::{At, Noise, Share, TapCotangents, Tokens, Want};

/// The directions of level 3 at the updated head.
#[derive(Debug)]
pub struct Direction {
    /// L_v.
    pub loss: f64,
    /// The task's figures on the validation batch.
    pub figures: Vec<f64>,
    /// v0 = ∂L_v/∂c, flat over c.
    pub v0: Vec<f64>,
    /// v1 = D[v0; c; L_f; θ]: the path mask → finetune → pretrain → mask, flat over θ, zero on the decoder.
    pub v1: Buffer,
    /// w = ∂L_v/∂θ: the path mask → pretrain → mask, flat over θ, zero on the decoder.
    pub w: Buffer,
}

/// v1 and w from one encoder pass over each batch.
///
/// z_f is what the head reads of the encoder on batch F, δ± = ∂L_f/∂z_f at c ± εv0. The encoder does not depend on c,
/// and a backward pass is linear in its cotangent: so one backward pass from (δ₋ − δ₊)/2ε, over what level 2 has
/// recorded, gives the same difference v1 as one backward pass for each sign. Validation takes one forward and one
/// backward pass. There is no dropout.
///
/// # Errors
/// When the engine fails, targets are not those of the task, `recorded` is of another thread (see
/// [`Recorded::backward`]), or another rank is gone.
pub fn direction(
    cpu: &Cpu,
    theta: &Params,
    c: &[f64],
    recorded: Recorded,
    finetune: Labelled<'_>,
    validation: Labelled<'_>,
    alpha: f64,
) -> Result<Direction, ModelError> {
    let (task, y_v, y_f) = (&cpu.model.task, validation.targets, finetune.targets);
    let total_v = task.total(y_v);
    let v = Passes::new(cpu, theta, validation.images);
    // Each micro-batch runs backward at once, without a barrier: the loss's divisors follow from the targets alone.
    let parts = cpu.compute.map(v.pieces.len(), |i| {
        let (pass, z) = v.forward(theta, validation.images, i);
        let tokens: Vec<Tokens<'_>> = task
            .reads()
            .iter()
            .zip(&z)
            .map(|(tap, values)| Tokens {
                per_image: tap.tokens(cpu.model.config.num_patches()),
                dim: cpu.model.config.dim,
                values,
            })
            .collect();
        let y = &y_v.slice(v.place(i));
        let share =
            task.evaluate(&At { c, z: &tokens, y, total: total_v, noise: None }, Want { dc: false, dz: true })?;
        v.backward(pass, &share.dz.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        Ok::<_, ModelError>(z)
    });
    let z_v = v.joined(parts.into_iter().collect::<Result<_, _>>()?)?;
    let at_v =
        task.evaluate(&At { c, z: &z_v.tokens(), y: y_v, total: total_v, noise: None }, Want { dc: true, dz: false })?;

    let z_f = recorded.z.tokens();
    let dz_f = cotangent_difference(c, &at_v.dc, alpha, |c| {
        let at = At { c, z: &z_f, y: y_f, total: task.total(y_f), noise: None };
        task.evaluate(&at, Want { dc: false, dz: true })
    })?;
    let v1 = recorded.backward(&dz_f)?;
    Ok(Direction { loss: at_v.loss, figures: at_v.figures, v0: at_v.dc, v1, w: v.finish()? })
}

/// (δ₋ − δ₊)/2ε for each tap, where δ± = ∂L_f/∂z_f at c ± εv0 as `evaluate` gives them and ε = α/‖v0‖₂.
///
/// # Errors
/// Those of `evaluate`.
pub fn cotangent_difference(
    c: &[f64],
    v0: &[f64],
    alpha: f64,
    evaluate: impl Fn(&[f64]) -> Result<Share, ModelError>,
) -> Result<Vec<Vec<f64>>, ModelError> {
    let epsilon = step_size(alpha, norm_wide(v0));
    let at = |sign: f64| evaluate(&shifted_wide(c, sign * epsilon, v0));
    let (plus, minus) = (at(1.0)?, at(-1.0)?);
    let taps = minus.dz.iter().zip(&plus.dz);
    Ok(taps.map(|(minus, plus)| minus.iter().zip(plus).map(|(m, p)| (m - p) / (2.0 * epsilon)).collect()).collect())
}

/// v1 and w by the passes of the published program: each quantity takes a pass of its own, with dropout drawn anew:
/// `noise(1)` for validation, `noise(2)` at c + εv0, `noise(3)` at c − εv0.
///
/// # Errors
/// When the engine fails, targets are not those of the task, or another rank is gone.
pub fn direction_published(
    cpu: &Cpu,
    theta: &Params,
    c: &[f64],
    finetune: Labelled<'_>,
    validation: Labelled<'_>,
    alpha: f64,
    noise: &dyn Fn(u64) -> Option<Noise>,
) -> Result<Direction, ModelError> {
    let (at_v, w) = task_gradient(cpu, theta, c, validation, noise(1))?;
    let Share { loss, figures, dc: v0, .. } = at_v;
    let epsilon = step_size(alpha, norm_wide(&v0));
    let (_, plus) = task_gradient(cpu, theta, &shifted_wide(c, epsilon, &v0), finetune, noise(2))?;
    let (_, mut v1) = task_gradient(cpu, theta, &shifted_wide(c, -epsilon, &v0), finetune, noise(3))?;
    for (minus, plus) in v1.iter_mut().zip(plus.iter()) {
        *minus = ((f64::from(*minus) - f64::from(*plus)) / (2.0 * epsilon)) as f32;
    }
    Ok(Direction { loss, figures, v0, v1, w })
}

/// The gradients for θ of what follows from the taps of both labelled batches by `cotangents`: one backward pass over
/// what level 2 has recorded and one over the validation batch, each flat over θ and zero on the decoder.
///
/// # Errors
/// Those of `cotangents`; when the engine fails, `recorded` is of another thread, or another rank is gone.
pub fn pull_back(
    cpu: &Cpu,
    theta: &Params,
    recorded: Recorded,
    validation: Labelled<'_>,
    cotangents: &mut TapCotangents<'_>,
) -> Result<[Buffer; 2], ModelError> {
    let of_validation = Passes::new(cpu, theta, validation.images).record(theta, validation.images)?;
    let [dz_f, dz_v] = cotangents(&recorded.z.tokens(), &of_validation.z.tokens())?;
    Ok([recorded.backward(&dz_f)?, of_validation.backward(&dz_v)?])
}

/// ∂F/∂φ from `dscores` = ∂F/∂p `[images, L]`, summed over ranks, of a function of the scores that were made at `phi`.
///
/// # Errors
/// When another rank is gone.
pub fn score_gradient(cpu: &Cpu, phi: &Params, scored: &Scored, dscores: &[f32]) -> Result<Buffer, ModelError> {
    let mut gradient = cpu.arena().zeros(phi.len());
    if let Some(trace) = &scored.trace {
        backward(&*cpu.model.masking, &cpu.compute, phi, trace, dscores, Some(&mut gradient), false);
    }
    cpu.collective.sum(gradient)
}

/// D[v; θ; L_m; φ] = (∂L_m/∂φ at θ − εv − ∂L_m/∂φ at θ + εv) / 2ε with ε = α/‖v‖₂, on images `[images, C, H, W]`.
///
/// φ enters L_m only through the factor p (the choice of masks has no gradient). So ∂L_m/∂φ takes a forward pass of the
/// autoencoder without a tape, and a backward pass through the masking network alone. θ itself is not changed: both
/// passes use shifted copies. D is linear in v up to O(ε²), so one call with v1 + w serves both paths.
///
/// # Errors
/// When another rank is gone.
pub fn along(
    cpu: &Cpu,
    theta: &Params,
    v: &[f32],
    phi: &Params,
    images: &[f32],
    rule: &MaskRule,
    alpha: f64,
) -> Result<Buffer, ModelError> {
    let Cpu { compute, model, collective, .. } = cpu;
    let mut hypergradient = compute.arena.zeros(phi.len());
    let norm = norm(compute, v);
    if norm == 0.0 {
        return Ok(hypergradient);
    }
    let epsilon = step_size(alpha, norm);
    for sign in [-1.0, 1.0] {
        let shifted = shifted(compute, theta, v, sign * epsilon, model.vit.encoder_len);
        let scored = score(cpu, Some(&shifted), phi, images, rule)?;
        let losses = patch_losses(cpu, &shifted, images, &scored.order);
        let num_masked = num_masked(cpu, &scored.order);
        let dscores = score_cotangent(cpu, &losses, &scored, num_masked, -sign / (2.0 * epsilon));
        if let Some(trace) = &scored.trace {
            backward(&*model.masking, compute, phi, trace, &dscores, Some(&mut hypergradient), false);
        }
    }
    collective.sum(hypergradient)
}

/// D[v; θ; L_m; φ] as ε → 0: −d(∂L_m/∂φ)/dv itself, by forward-mode differentiation with the masks of θ. No ε
/// enters, so that it is safe in low precision, and no mask flips between the two ends of a difference.
///
/// # Errors
/// When another rank is gone, or the masking has no derivative along its input.
pub fn tangent(
    cpu: &Cpu,
    theta: &Params,
    v: &Params,
    phi: &Params,
    images: &[f32],
    rule: &MaskRule,
) -> Result<Buffer, ModelError> {
    let Cpu { compute, model, collective, .. } = cpu;
    let mut hypergradient = compute.arena.zeros(phi.len());
    let scored = score(cpu, Some(theta), phi, images, rule)?;
    let Some(trace) = &scored.trace else { return Ok(hypergradient) };
    let (losses, tangents) = patch_loss_tangents(cpu, theta, v, images, &scored.order);
    let num_masked = num_masked(cpu, &scored.order);
    let ddscores = score_cotangent(cpu, &tangents, &scored, num_masked, -1.0);
    if model.masking.needs() == Needs::Embedding {
        // The embedding is linear in the parameters: its derivative is the embedding with v.
        let (dinput, dscores) = (embedding(cpu, v, images), score_cotangent(cpu, &losses, &scored, num_masked, -1.0));
        // Where each score goes stands still: both derivatives go the same way.
        let own = [trace.back(&dscores), trace.back(&ddscores)];
        let [dscores, ddscores] = [own[0].as_deref().unwrap_or(&dscores), own[1].as_deref().unwrap_or(&ddscores)];
        if !model.masking.backward_tangent(compute, phi, trace, &dinput, dscores, ddscores, &mut hypergradient) {
            let problem = "this masking has no derivative along its input; read the pixels, or take another form";
            return Err(ModelError::Lane { lane: "cpu", problem: problem.to_owned() });
        }
    } else {
        backward(&*model.masking, compute, phi, trace, &ddscores, Some(&mut hypergradient), false);
    }
    collective.sum(hypergradient)
}
