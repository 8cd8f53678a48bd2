//! Level 2: the downstream task's loss and its gradient for the head c, θ frozen.

use super::passes::{Passes, Recorded, Taps, features};
use super::vectors::narrow;
use super::{Cpu, Labelled};
use crate::error::ModelError;
use crate::parallel::arena::{Buffer, Params};
use crate::tasks::batch::Batch;
use crate::tasks::{Noise, Share, Targets, Want};

/// Result of level 2 on a batch.
#[derive(Debug)]
pub struct Gradient {
    /// L_f.
    pub loss: f64,
    /// The task's figures, see [`Task::figures`](crate::tasks::Task::figures).
    pub figures: Vec<f64>,
    /// ∂L_f/∂c, flat.
    pub gradient: Buffer,
    /// The recorded encoder passes for level 3, with `keep`.
    pub recorded: Option<Recorded>,
}

/// L_f and its gradient for c. With `keep` the encoder's passes over the batch are recorded, and
/// [`mask::direction`](super::mask::direction) runs them backward, so that level 3 needs no second forward pass.
///
/// # Errors
/// When the targets are not those of the task, or another rank is gone.
pub fn gradient(
    cpu: &Cpu,
    theta: &Params,
    c: &[f64],
    batch: Labelled<'_>,
    noise: Option<Noise>,
    keep: bool,
) -> Result<Gradient, ModelError> {
    let at = |z: &Taps| evaluate(cpu, c, z, batch.targets, noise, Want { dc: true, dz: false });
    let (share, recorded) = if keep {
        let recorded = Passes::new(cpu, theta, batch.images).record(theta, batch.images)?;
        (at(&recorded.z)?, Some(recorded))
    } else {
        (at(&features(cpu, theta, batch.images)?)?, None)
    };
    Ok(Gradient { loss: share.loss, figures: share.figures, gradient: narrow(&share.dc), recorded })
}

/// The task's loss on one batch with its gradients for c (in the share) and for θ (flat, zero on the decoder), by one
/// forward and one backward pass.
///
/// # Errors
/// When the engine fails, the targets are not those of the task, or another rank is gone.
pub fn task_gradient(
    cpu: &Cpu,
    theta: &Params,
    c: &[f64],
    batch: Labelled<'_>,
    noise: Option<Noise>,
) -> Result<(Share, Buffer), ModelError> {
    let recorded = Passes::new(cpu, theta, batch.images).record(theta, batch.images)?;
    let share = evaluate(cpu, c, &recorded.z, batch.targets, noise, Want::BOTH)?;
    let gradient = recorded.backward(&share.dz)?;
    Ok((share, gradient))
}

/// The task on the taps of a whole batch.
///
/// # Errors
/// When the targets are not those of the task.
pub fn evaluate(
    cpu: &Cpu,
    c: &[f64],
    z: &Taps,
    y: &Targets,
    noise: Option<Noise>,
    want: Want,
) -> Result<Share, ModelError> {
    let (task, grain) = (&*cpu.model.task, cpu.compute.grain());
    Batch { task, y, totals: &task.totals(y), noise, grain }.evaluate(&cpu.compute, c, &z.tokens(), want)
}
