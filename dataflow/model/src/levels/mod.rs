//! The three levels of MLO-MAE (arXiv 2402.18128) on the CPU, as plain functions of tensors: they know no channel, no
//! actor and no file.
//!
//! | level | variable | loss |
//! |---|---|---|
//! | 1 [`pretrain`] | θ | L_m = Σ pᵢ mᵢ ℓᵢ / Σ mᵢ |
//! | 2 [`finetune`] | c | L_f, the task loss of the head on E_θ(x), θ frozen |
//! | 3 [`mask`] | φ | L_v, the same task loss on validation data at θ*(φ), c*(θ*) |
//!
//! m is the mask (1 for masked patches), p a patch's score, ℓ its reconstruction loss. [`algorithm`](crate::algorithm)
//! puts the levels together; [`score`] comes before level 1, [`optimizer`] after each.

pub mod finetune;
pub mod mask;
pub mod optimizer;
pub mod passes;
pub mod pretrain;
pub mod score;
pub mod vectors;

use std::sync::Arc;

use crate::engine::dfdx_cpu::DfdxCpu;
use crate::model::Model;
use crate::parallel::arena::Arena;
use crate::parallel::collective::{Collective, Local};
use crate::parallel::compute::Compute;
use crate::precision::Precision;
use crate::tasks::Targets;

/// Threads, memory and networks for the functions of the levels. Cloning shares all of it.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// Threads, grain and micro-batch.
    pub compute: Compute,
    /// The networks.
    pub model: Arc<Model>,
    /// The other ranks of the run.
    pub collective: Arc<dyn Collective>,
    /// Precision of the products of encoder and decoder.
    pub precision: Precision,
}

impl Cpu {
    /// The levels of `model` on the threads of `compute`, in a run of one rank and in `f32`.
    #[must_use]
    pub fn new(model: Arc<Model>, compute: Compute) -> Self {
        Cpu { compute, model, collective: Arc::new(Local), precision: Precision::F32 }
    }

    /// The same in another precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Cpu { precision, ..self }
    }

    /// An engine for a pass without gradients.
    pub(crate) fn forward_only(&self) -> DfdxCpu {
        DfdxCpu::forward_only(self.arena()).with_factors(self.precision.factors())
    }

    /// An engine that records a pass over `num_images` images for the gradients.
    pub(crate) fn recording(&self, num_images: usize) -> DfdxCpu {
        let engine = DfdxCpu::recording(self.arena(), num_images, self.compute.grain());
        engine.with_factors(self.precision.factors())
    }

    /// The memory pool of `compute`.
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
    /// Targets of the images of all ranks, in order of rank.
    pub targets: &'a Targets,
}
