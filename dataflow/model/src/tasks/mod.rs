//! Downstream tasks: the heads c of level 2, their losses, and the list of them.
//!
//! For level 3 a task has to give only ∂ℓ/∂Z, where Z is all that its head reads of the encoder: the Jacobian ∂Z/∂θ
//! does not depend on c, so a finite difference over c changes the cotangent at Z alone. That is exact under the
//! conditions that a [`Task`] must keep:
//!
//! - Z does not depend on c.
//! - The loss is the same function at c + εv and c − εv: no dropout there, and no state besides c (no batch norm).
//! - What is decided by the head's own outputs (a matching of predictions to objects) stays as it is between c + εv and
//!   c − εv.
//! - The loss is a sum over images, divided by totals that follow from the targets alone, so that the loss of a batch
//!   is the sum over its micro-batches.
//!
//! To add a task, implement [`Task`] and [`TaskKind`] in a file here, add it to [`TASKS`], and give [`Targets`] a
//! variant if its targets are of a new kind. A program of its own adds its tasks by [`TaskRegistry`].

pub mod batch;
pub mod class;
pub mod conditions;
pub mod detection;
#[cfg(test)]
mod head_tests;
pub mod layers;
mod list;
pub mod metrics;
pub mod multi_label;
mod options;
pub mod plain;
mod pooled;
mod predictions;
mod product;
pub mod regression;
pub mod ridge;
pub mod segmentation;
mod spec;
mod targets;
mod task;
mod weighted;

pub use list::{TASKS, TaskChoice, TaskRegistry};
pub use options::{OptionValues, TAP, TaskOption, TaskOptions};
pub use pooled::{PooledGradients, PooledHead};
pub use predictions::{Detection, Predictions};
pub use spec::{Balance, TaskSpec, build};
pub use targets::{BoxTarget, Targets, UNKNOWN_CLASS};
pub use task::{
    At, Figure, LinearHead, Noise, Part, Share, TapCotangents, Task, TaskFacts, TaskKind, Tokens, Total, Want,
};
pub use weighted::Weighted;

#[cfg(test)]
mod tests;
