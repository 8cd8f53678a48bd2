//! Downstream tasks: the heads c of level 2, their losses, and the list of them.
//!
//! Level 3 needs of a task only ∂ℓ/∂Z, where Z is all that its head reads of the encoder: the Jacobian of Z for θ does not depend on c, so
//! that a finite difference over c changes nothing but the cotangent at Z. That is exact under the conditions that a [`Task`] keeps: Z
//! does not depend on c; the loss is the same function at c + εv and c − εv (dropout off); there is no state besides c; and the loss is a
//! sum over images divided by totals that follow from the targets alone, so that micro-batches never change a result.
//!
//! A task is a file here with its `mod` line, and an entry of [`TASKS`].

pub mod class;
mod list;
mod task;

pub use list::{TASKS, TaskChoice};
pub use task::{At, Figure, Noise, Share, Targets, Task, TaskFacts, TaskKind, Tokens, Total, Want};
