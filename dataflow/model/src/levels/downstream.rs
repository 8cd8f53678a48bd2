//! The downstream task: features of whole images, level 2's step, and the vectors v0, w and v1 of level 3.

use std::ops::Range;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::Model;
use super::hypergradient::sum;
use super::scoring::patches;
use crate::engine::Engine;
use crate::engine::dfdx_cpu::{CpuTensor, DfdxCpu};
use crate::error::ModelError;
use crate::layout::ParamSet;
use crate::parallel::arena::{Buffer, Params};
use crate::parallel::compute::Compute;
use crate::parallel::sum::OrderedSum;
use crate::tasks::class::TaskGradient;

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

/// A recorded pass over a micro-batch, on its way from forward to backward.
struct Pass {
    engine: DfdxCpu,
    z: CpuTensor,
}

/// Encoder passes over one batch, whose micro-batches add their gradients for θ.
struct Passes<'a> {
    compute: &'a Compute,
    model: &'a Model,
    theta: &'a Params,
    images: &'a [f32],
    pieces: Vec<Range<usize>>,
    sum: Arc<OrderedSum>,
}

impl<'a> Passes<'a> {
    fn new(compute: &'a Compute, model: &'a Model, theta: &'a Params, images: &'a [f32]) -> Self {
        let pieces = compute.micro_batches(images.len() / model.config.image_values());
        let sum = Arc::new(OrderedSum::new(&compute.arena, pieces.len(), theta.len()));
        Passes { compute, model, theta, images, pieces, sum }
    }

    /// Features z `[images, dim]` of micro-batch `i`.
    fn forward(&self, i: usize) -> (Pass, Vec<f32>) {
        let (values, piece) = (self.model.config.image_values(), &self.pieces[i]);
        let images = &self.images[piece.start * values..piece.end * values];
        let mut engine = DfdxCpu::recording(&self.compute.arena, piece.len(), self.compute.grain());
        engine.sum_into(ParamSet::Pretrain, &self.sum, i);
        let z = forward(&mut engine, self.compute, self.model, self.theta, images, true);
        let features = engine.values(&z).to_vec();
        (Pass { engine, z }, features)
    }

    /// Carries a cotangent of z `[images, dim]` back to θ.
    fn backward(&self, mut pass: Pass, dz: &[f64]) -> Result<(), ModelError> {
        let mut cotangent = self.compute.arena.take(dz.len());
        cotangent.iter_mut().zip(dz).for_each(|(d, &s)| *d = s as f32);
        pass.engine.backward(vec![(pass.z, cotangent)]).map(drop)
    }

    /// The gradient of the whole batch, zero on the decoder and on frozen weights; empty for a batch without images.
    fn finish(self) -> Buffer {
        let mut gradient = self.sum.finish().unwrap_or_default();
        if !gradient.is_empty() {
            self.model.vit.layout.zero_frozen(&mut gradient);
        }
        gradient
    }
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
    pub fn direction(&self, compute: &Compute) -> Buffer {
        sum(compute, &self.v1, &self.w)
    }
}

/// Level 2's step, which the validation batch waits for.
struct HeadStep {
    /// `[batch, dim]` of the finetune batch.
    z_f: Vec<f32>,
    step: TaskGradient,
    head: Params,
    /// The new head in f64.
    c: Vec<f64>,
}

/// Level 2's step and the vectors of level 3 from one encoder pass over each batch (`clean`).
///
/// The head's finite difference only changes the cotangent at z, so one forward and one backward over each batch, with the cotangents
/// (δ₋ − δ₊)/2ε at z_f and ∂L_v/∂z at z_v, give v1 and w exactly. Only the finetune batch waits for its cotangent, which needs the whole
/// validation batch; the latter's micro-batches go forward and backward in one go and keep nothing. `head_step` maps (c, ∂L_f/∂c) to
/// the new c. Dropout acts in the head's own step only, never inside a hypergradient.
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
    let (task, dim) = (&model.head, model.config.dim);
    let f = Passes::new(compute, model, theta, finetune.images);
    let v = Passes::new(compute, model, theta, validation.images);
    let step = |z_f: Vec<Vec<f32>>| {
        let z_f = z_f.concat();
        let factors = dropout.map(|(rate, mut rng)| task.dropout(finetune.labels.len(), rate, &mut rng));
        let step = task.gradient(&widen(head), &z_f, finetune.labels, factors.as_ref());
        let new_head = head_step(head, &step.head);
        let c = widen(&new_head);
        HeadStep { z_f, step, head: new_head, c }
    };
    let validate = |i: usize, HeadStep { c, .. }: &HeadStep| {
        let (pass, z_v) = v.forward(i);
        let share = task.share(c, &z_v, &validation.labels[v.pieces[i].clone()], None, validation.labels.len());
        v.backward(pass, &share.features).map(|()| z_v)
    };
    let differ = |HeadStep { z_f, c, .. }: &HeadStep, z_v: Vec<Result<Vec<f32>, ModelError>>| {
        let z_v = z_v.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        let at_v = task.gradient(c, &z_v, validation.labels, None);
        let epsilon = step_size(alpha, norm(&at_v.head));
        let plus = task.gradient(&shifted(c, epsilon, &at_v.head), z_f, finetune.labels, None);
        let minus = task.gradient(&shifted(c, -epsilon, &at_v.head), z_f, finetune.labels, None);
        let differences = minus.features.iter().zip(&plus.features).map(|(m, p)| (m - p) / (2.0 * epsilon));
        Ok((differences.collect::<Vec<f64>>(), at_v))
    };
    let backward = |i: usize, pass: Pass, difference: &Result<(Vec<f64>, TaskGradient), ModelError>| match difference {
        Ok((dz_f, _)) => f.backward(pass, &dz_f[f.pieces[i].start * dim..f.pieces[i].end * dim]),
        // The error itself is in the second step's result.
        Err(_) => Ok(()),
    };
    let num = [f.pieces.len(), v.pieces.len()];
    let (HeadStep { step, head, .. }, difference, outcomes) =
        compute.phases(num, |i| f.forward(i), step, validate, differ, backward);
    let (_, at_v) = difference?;
    outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
    let (v1, w) = (f.finish(), v.finish());
    Ok(Evaluation {
        finetune_loss: step.loss,
        finetune_accuracy: step.accuracy,
        finetune_gradient: step.head,
        head,
        validation_loss: at_v.loss,
        validation_accuracy: at_v.accuracy,
        v0: at_v.head,
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
    let (passes, dim) = (Passes::new(compute, model, theta, batch.images), model.config.dim);
    let step = |z: Vec<Vec<f32>>| {
        let factors = dropout.map(|(rate, mut rng)| model.head.dropout(batch.labels.len(), rate, &mut rng));
        model.head.gradient(head, &z.concat(), batch.labels, factors.as_ref())
    };
    let cotangent = |gradient: &TaskGradient, _: Vec<()>| gradient.features.clone();
    let backward = |i: usize, pass: Pass, dz: &Vec<f64>| {
        passes.backward(pass, &dz[passes.pieces[i].start * dim..passes.pieces[i].end * dim])
    };
    let num = [passes.pieces.len(), 0];
    let (gradient, _, outcomes) = compute.phases(num, |i| passes.forward(i), step, |_, _| (), cotangent, backward);
    outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok((gradient, passes.finish()))
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
