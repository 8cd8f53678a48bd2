//! The direction of level 3 with several tasks: that of their summed loss, or of their own directions at one length.

use crate::error::ModelError;
use crate::hypergradient::{Hypergradient, Settings};
use crate::lane::{Direction, Downstream, FinetuneGradient, Lane};
use crate::levels::vectors::shifted_wide;
use crate::tasks::{Balance, Noise};
use crate::vector::Vector;

/// [`Hypergradient::direction`] with the balance of [`ModelConfig::task_balance`](crate::ModelConfig::task_balance).
///
/// With [`Balance::Sum`] it is that of L = Σ λₜ·Lₜ. With [`Balance::Normalised`] and several tasks, each has its own
/// v1ₜ and wₜ by passes of its own, and v1 = Σ λₜ·v1ₜ/‖v1ₜ + wₜ‖, and so is w; a task without a gradient adds nothing.
/// [`Direction::cosines`] then says how far the tasks agree. Losses, figures and v0 are those of the sum either way.
///
/// # Errors
/// As [`Hypergradient::direction`], and [`ModelError::Config`] when the form [refuses](Hypergradient::refuses) the task.
pub fn direction(
    form: &dyn Hypergradient,
    lane: &mut dyn Lane,
    at: &Downstream<'_>,
    finetune: FinetuneGradient,
    settings: &Settings,
    noise: &dyn Fn(u64) -> Option<Noise>,
) -> Result<Direction, ModelError> {
    let model = lane.model().clone();
    if let Some(problem) = form.refuses(&*model.task) {
        return Err(ModelError::Config(problem));
    }
    let parts = model.task.parts();
    if model.config.task_balance == Balance::Sum || parts.len() < 2 {
        return form.direction(lane, at, finetune, settings, noise);
    }
    let mut first = Some(finetune);
    let mut of_part = |part: usize| {
        let only = model.task.only(part);
        lane.set_task(&only.ok_or_else(|| ModelError::Config(format!("there is no task {part}")))?);
        // Every part but the first takes passes of its own over the finetune batch.
        let finetune = match first.take() {
            Some(finetune) => finetune,
            None => form.finetune(lane, at, &|_| None)?,
        };
        form.direction(lane, at, finetune, settings, noise)
    };
    let directions: Result<Vec<Direction>, ModelError> = (0..parts.len()).map(&mut of_part).collect();
    lane.set_task(&model.task);
    joined(lane, parts.iter().map(|part| part.weight), directions?)
}

/// The directions of all tasks as one.
fn joined(
    lane: &mut dyn Lane,
    weights: impl Iterator<Item = f64>,
    directions: Vec<Direction>,
) -> Result<Direction, ModelError> {
    let v: Vec<Vector> = directions.iter().map(|of| lane.sum(&of.v1, &of.w)).collect::<Result<_, _>>()?;
    let mut cosines = Vec::new();
    for (i, a) in v.iter().enumerate() {
        for b in &v[i + 1..] {
            cosines.push(lane.cosine(a, b)?);
        }
    }
    let mut all: Option<Direction> = None;
    for ((of, v), weight) in directions.into_iter().zip(&v).zip(weights) {
        let norm = lane.norm(v)?;
        let factor = if norm > 0.0 || norm.is_nan() { weight / norm } else { 0.0 };
        let next = match all.take() {
            None => Direction {
                loss: weight * of.loss,
                v0: of.v0.iter().map(|v| weight * v).collect(),
                v1: lane.combined(factor, &of.v1, 0.0, &of.v1)?,
                w: lane.combined(factor, &of.w, 0.0, &of.w)?,
                ..of
            },
            Some(all) => Direction {
                loss: all.loss + weight * of.loss,
                figures: all.figures.iter().zip(&of.figures).map(|(a, b)| a + b).collect(),
                v0: shifted_wide(&all.v0, weight, &of.v0),
                v1: lane.combined(1.0, &all.v1, factor, &of.v1)?,
                w: lane.combined(1.0, &all.w, factor, &of.w)?,
                ..all
            },
        };
        all = Some(next);
    }
    let none = || ModelError::Config("there must be at least one task, got none".to_owned());
    Ok(Direction { cosines, ..all.ok_or_else(none)? })
}
