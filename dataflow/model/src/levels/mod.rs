//! The three levels of MLO-MAE on the CPU, as plain functions of tensors: they know no channel, no actor and no file.
//!
//! | level | variable | loss |
//! |---|---|---|
//! | 1 [`pretrain`] | θ | L_m = Σ pᵢ mᵢ ℓᵢ / Σ mᵢ |
//! | 2 [`finetune`] | c | L_f, the task loss of the head on E_θ(x), θ frozen |
//! | 3 [`mask`] | φ | L_v, the same task loss on validation data at θ*(φ), c*(θ*) |
//!
//! [`algorithm`](crate::algorithm) puts them together; [`score`] comes before level 1, [`optimizer`] after each.

pub mod finetune;
pub mod mask;
pub mod optimizer;
pub mod passes;
pub mod pretrain;
pub mod score;
pub mod vectors;

use std::sync::Arc;

use crate::model::Model;
use crate::parallel::arena::Arena;
use crate::parallel::collective::{Collective, Local};
use crate::parallel::compute::Compute;
use crate::tasks::Targets;

/// What the levels compute with on the CPU. Cloning shares all of it.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// Threads, grain and micro-batch.
    pub compute: Compute,
    /// The networks.
    pub model: Arc<Model>,
    /// The other ranks of the run.
    pub collective: Arc<dyn Collective>,
}

impl Cpu {
    /// Levels of `model` on the threads of `compute`, of a run with one rank.
    #[must_use]
    pub fn new(model: Arc<Model>, compute: Compute) -> Self {
        Cpu { compute, model, collective: Arc::new(Local) }
    }

    /// Recycled memory.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.compute.arena
    }
}

/// Images of this rank with the targets of the whole batch.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// `[images, C, H, W]`.
    pub images: &'a [f32],
    /// Of the images of all ranks.
    pub targets: &'a Targets,
}
