//! The downstream task: features of whole images, level 2's step, and the vectors v0, w and v1 of level 3.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;

use super::Model;
use super::scoring::patches;
use crate::arena::{Arena, Buffer, Params};
use crate::compute::{Compute, OrderedSum};
use crate::dfdx_cpu::{CpuTensor, DfdxCpu};
use crate::engine::Engine;
use crate::error::ModelError;
use crate::kernels;
use crate::layout::ParamSet;
use crate::nets::head::TaskGradient;

/// Labelled images.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// `[batch, C, H, W]`.
    pub images: &'a [f32],
    /// `[batch]`.
    pub labels: &'a [i32],
}

/// CLS features z `[batch, dim]` of images `[batch, C, H, W]`: a forward pass that keeps nothing.
pub fn features(compute: &Compute, model: &Model, theta: &Params, images: &[f32]) -> Vec<f32> {
    let values = model.config.image_values();
    let pieces = compute.micro_batches(images.len() / values);
    let parts = compute.map(pieces.len(), |i| {
        let part = &images[pieces[i].start * values..pieces[i].end * values];
        let mut e = DfdxCpu::forward_only(&compute.arena);
        let z = forward(&mut e, compute, model, theta, part, false);
        e.values(&z).to_vec()
    });
    parts.concat()
}

fn forward(
    e: &mut DfdxCpu,
    compute: &Compute,
    model: &Model,
    theta: &Params,
    images: &[f32],
    gradient: bool,
) -> CpuTensor {
    let c = &model.config;
    e.bind(ParamSet::Pretrain, theta, gradient);
    let rows = images.len() / c.patch_values();
    let input = e.constant(patches(compute, model, images), rows, c.patch_values());
    model.vit.features(e, &input)
}

/// Forward over several batches, one step in the middle that sees all features and says their cotangents, backward to θ.
///
/// `middle` gets one `[batch, dim]` vector per group and returns its result with one cotangent vector per group; the gradients for θ
/// come back per group.
///
/// # Errors
/// When the engine fails.
pub fn forward_backward<T: Send + Sync>(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    groups: &[&[f32]],
    middle: impl FnOnce(&[Vec<f32>]) -> (T, Vec<Vec<f64>>) + Send,
) -> Result<(T, Vec<Buffer>), ModelError> {
    let (values, dim) = (model.config.image_values(), model.config.dim);
    // Micro-batches never span groups, so that each group has a gradient of its own.
    let pieces: Vec<(usize, usize, Range<usize>)> = groups
        .iter()
        .enumerate()
        .flat_map(|(g, images)| {
            compute
                .micro_batches(images.len() / values)
                .into_iter()
                .enumerate()
                .map(move |(place, range)| (g, place, range))
        })
        .collect();
    let sums: Vec<OrderedSum> = groups.iter().map(|_| OrderedSum::default()).collect();
    let ((result, _), outcomes) = compute.two_phase(
        pieces.len(),
        |i| {
            let (group, _, range) = &pieces[i];
            let images = &groups[*group][range.start * values..range.end * values];
            let mut e = DfdxCpu::recording(&compute.arena);
            let z = forward(&mut e, compute, model, theta, images, true);
            let features = e.values(&z).to_vec();
            ((e, z), features)
        },
        |outputs| {
            let mut features = vec![Vec::new(); groups.len()];
            for ((group, ..), part) in pieces.iter().zip(&outputs) {
                features[*group].extend_from_slice(part);
            }
            middle(&features)
        },
        |i, (mut e, z), (_, cotangents)| {
            let (group, place, range) = &pieces[i];
            let mut cotangent = compute.arena.take(range.len() * dim);
            let source = &cotangents[*group][range.start * dim..range.end * dim];
            cotangent.iter_mut().zip(source).for_each(|(d, &s)| *d = s as f32);
            let mut gradients = e.backward(vec![(z, cotangent)])?;
            if let Some(gradient) = gradients.take(ParamSet::Pretrain) {
                sums[*group].add(*place, gradient);
            }
            Ok::<(), ModelError>(())
        },
    );
    outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
    let gradients = sums
        .into_iter()
        .map(|sum| {
            let mut gradient = sum.finish().unwrap_or_default();
            if !gradient.is_empty() {
                model.vit.layout.zero_frozen(&mut gradient);
            }
            gradient
        })
        .collect();
    Ok((result, gradients))
}

/// c as f64, for the head's arithmetic.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// c + ε·v0.
fn shifted(c: &[f64], epsilon: f64, v0: &[f64]) -> Vec<f64> {
    c.iter().zip(v0).map(|(c, v)| c + epsilon * v).collect()
}

/// ε = α / ‖v‖₂.
pub fn step_size(alpha: f64, norm: f64) -> f64 {
    alpha / (norm + 1e-15)
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// What the downstream evaluation of one outer iteration gives.
#[derive(Debug)]
pub struct Evaluation {
    /// L_f and its gradient for c before the head's step.
    pub finetune_loss: f64,
    /// Share of right answers on the finetune batch, before the step.
    pub finetune_accuracy: f64,
    /// ∂L_f/∂c at the old c.
    pub finetune_gradient: Vec<f64>,
    /// c after the step.
    pub head: Params,
    /// L_v at the new c.
    pub validation_loss: f64,
    /// Share of right answers on the validation batch at the new c.
    pub validation_accuracy: f64,
    /// v0 = ∂L_v/∂c.
    pub v0: Vec<f64>,
    /// v1: the path mask → finetune → pretrain → mask, flat over θ, zero on the decoder.
    pub v1: Buffer,
    /// w = ∂L_v/∂θ: the path mask → pretrain → mask.
    pub w: Buffer,
}

impl Evaluation {
    /// v1 + w.
    pub fn direction(&self, arena: &Arena) -> Buffer {
        let mut v = arena.copy_of(&self.v1);
        kernels::add(&mut v, &self.w);
        v
    }
}

/// Level 2's step and the vectors of level 3 from one encoder pass over both batches (`clean`).
///
/// The head's finite difference only changes the cotangent at z, so one forward over [x_f; x_v] and one backward with the cotangents
/// [(δ₋ − δ₊)/2ε ; ∂L_v/∂z] give v1 and w exactly. `head_step` maps (c, ∂L_f/∂c) to the new c. Dropout acts in the head's own step
/// only, never inside a hypergradient.
///
/// # Errors
/// When the engine fails.
#[allow(clippy::too_many_arguments)]
pub fn evaluate_clean(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    head: &Params,
    finetune: Labelled<'_>,
    validation: Labelled<'_>,
    alpha: f64,
    dropout: Option<(f64, ChaCha8Rng)>,
    head_step: impl FnOnce(&Params, &[f64]) -> Params + Send,
) -> Result<Evaluation, ModelError> {
    let task = &model.head;
    let middle = |z: &[Vec<f32>]| {
        let (z_f, z_v) = (&z[0], &z[1]);
        let factors = dropout.map(|(rate, mut rng)| task.dropout(finetune.labels.len(), rate, &mut rng));
        let step = task.gradient(&widen(head), z_f, finetune.labels, factors.as_ref());
        let new_head = head_step(head, &step.head);
        let c = widen(&new_head);
        let at_v = task.gradient(&c, z_v, validation.labels, None);
        let epsilon = step_size(alpha, norm(&at_v.head));
        let plus = task.gradient(&shifted(&c, epsilon, &at_v.head), z_f, finetune.labels, None);
        let minus = task.gradient(&shifted(&c, -epsilon, &at_v.head), z_f, finetune.labels, None);
        let dz_f = minus.features.iter().zip(&plus.features).map(|(m, p)| (m - p) / (2.0 * epsilon)).collect();
        ((step, new_head, at_v.loss, at_v.accuracy, at_v.head), vec![dz_f, at_v.features])
    };
    let (outcome, mut gradients) =
        forward_backward(compute, model, theta, &[finetune.images, validation.images], middle)?;
    let (step, head, validation_loss, validation_accuracy, v0) = outcome;
    let w = gradients.pop().unwrap_or_default();
    let v1 = gradients.pop().unwrap_or_default();
    Ok(Evaluation {
        finetune_loss: step.loss,
        finetune_accuracy: step.accuracy,
        finetune_gradient: step.head,
        head,
        validation_loss,
        validation_accuracy,
        v0,
        v1,
        w,
    })
}

/// The task's loss and gradients for c and θ on one batch: one forward and one backward (the naive pass).
///
/// # Errors
/// When the engine fails.
pub fn task_gradient(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    head: &[f64],
    batch: Labelled<'_>,
    dropout: Option<(f64, ChaCha8Rng)>,
) -> Result<(TaskGradient, Buffer), ModelError> {
    let middle = |z: &[Vec<f32>]| {
        let factors = dropout.map(|(rate, mut rng)| model.head.dropout(batch.labels.len(), rate, &mut rng));
        let gradient = model.head.gradient(head, &z[0], batch.labels, factors.as_ref());
        let cotangent = gradient.features.clone();
        (gradient, vec![cotangent])
    };
    let (gradient, mut theta_gradients) = forward_backward(compute, model, theta, &[batch.images], middle)?;
    Ok((gradient, theta_gradients.pop().unwrap_or_default()))
}

/// The same as [`evaluate_clean`] by the published passes: every quantity has a pass of its own, and head dropout stays on and is
/// redrawn in each (`dropout` gives the rate and a generator per pass).
///
/// # Errors
/// When the engine fails.
#[allow(clippy::too_many_arguments)]
pub fn evaluate_published(
    compute: &Compute,
    model: &Model,
    theta: &Params,
    head: &Params,
    finetune: Labelled<'_>,
    validation: Labelled<'_>,
    alpha: f64,
    dropout: impl Fn(u64) -> Option<(f64, ChaCha8Rng)>,
    head_step: impl FnOnce(&Params, &[f64]) -> Params,
) -> Result<Evaluation, ModelError> {
    let z_f = features(compute, model, theta, finetune.images);
    let factors = dropout(0).map(|(rate, mut rng)| model.head.dropout(finetune.labels.len(), rate, &mut rng));
    let step = model.head.gradient(&widen(head), &z_f, finetune.labels, factors.as_ref());
    let new_head = head_step(head, &step.head);
    let c = widen(&new_head);
    let (at_v, w) = task_gradient(compute, model, theta, &c, validation, dropout(1))?;
    let epsilon = step_size(alpha, norm(&at_v.head));
    let (_, plus) = task_gradient(compute, model, theta, &shifted(&c, epsilon, &at_v.head), finetune, dropout(2))?;
    let (_, mut v1) = task_gradient(compute, model, theta, &shifted(&c, -epsilon, &at_v.head), finetune, dropout(3))?;
    for (minus, plus) in v1.iter_mut().zip(plus.iter()) {
        *minus = ((f64::from(*minus) - f64::from(*plus)) / (2.0 * epsilon)) as f32;
    }
    Ok(Evaluation {
        finetune_loss: step.loss,
        finetune_accuracy: step.accuracy,
        finetune_gradient: step.head,
        head: new_head,
        validation_loss: at_v.loss,
        validation_accuracy: at_v.accuracy,
        v0: at_v.head,
        v1,
        w,
    })
}
