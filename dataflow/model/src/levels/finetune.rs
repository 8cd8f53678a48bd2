//! Level 2: the downstream task's loss and its gradient for the head c, θ frozen.

use super::passes::{Passes, Recorded, features};
use super::vectors::narrow;
use super::{Cpu, Labelled};
use crate::error::ModelError;
use crate::parallel::arena::{Buffer, Params};
use crate::tasks::{At, Noise, Share, Want};

/// What level 2 gives on a batch.
#[derive(Debug)]
pub struct Gradient {
    /// L_f.
    pub loss: f64,
    /// The task's figures.
    pub figures: Vec<f64>,
    /// ∂L_f/∂c.
    pub gradient: Buffer,
    /// The encoder's passes, if they were to be kept for level 3.
    pub recorded: Option<Recorded>,
}

/// L_f and its gradient for c. With `keep` the encoder's passes over the batch wait for the cotangents that
/// [`mask::direction`](super::mask::direction) finds for them, so that level 3 costs no second forward pass.
///
/// # Errors
/// When the targets are not the task's.
pub fn gradient(
    cpu: &Cpu,
    theta: &Params,
    c: &[f64],
    batch: Labelled<'_>,
    noise: Option<Noise>,
    keep: bool,
) -> Result<Gradient, ModelError> {
    let task = &cpu.model.task;
    let total = task.total(batch.targets);
    let at = |z| task.evaluate(&At { c, z, y: batch.targets, total, noise }, Want { dc: true, dz: false });
    let (share, recorded) = if keep {
        let recorded = Passes::new(cpu, theta, batch.images).record(theta, batch.images)?;
        (at(&recorded.z.tokens())?, Some(recorded))
    } else {
        (at(&features(cpu, theta, batch.images)?.tokens())?, None)
    };
    Ok(Gradient { loss: share.loss, figures: share.figures, gradient: narrow(&share.dc), recorded })
}

/// The task's loss with its gradients for c (in the share) and θ, on one batch: one forward and one backward pass of its own.
///
/// # Errors
/// When the engine fails, or the targets are not the task's.
pub fn task_gradient(
    cpu: &Cpu,
    theta: &Params,
    c: &[f64],
    batch: Labelled<'_>,
    noise: Option<Noise>,
) -> Result<(Share, Buffer), ModelError> {
    let task = &cpu.model.task;
    let recorded = Passes::new(cpu, theta, batch.images).record(theta, batch.images)?;
    let total = task.total(batch.targets);
    let at = At { c, z: &recorded.z.tokens(), y: batch.targets, total, noise };
    let share = task.evaluate(&at, Want::BOTH)?;
    let gradient = recorded.backward(&share.dz)?;
    Ok((share, gradient))
}
