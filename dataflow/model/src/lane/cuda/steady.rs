//! Work of a lane that repeats with the same shapes, launched as CUDA graphs.

use std::cell::RefCell;

use mlomae_device::{Graph, Held, Mem, Run, Stream};

use super::lane::CudaLane;
use crate::error::ModelError;

/// The graphs of a lane. A lane uses some of them: a stage calls few of its methods.
#[derive(Debug)]
pub(super) struct Graphs {
    /// L_m with its gradient.
    pub(super) pretrain: Graph,
    /// Patch losses with their derivatives.
    pub(super) tangent: Graph,
    /// Passes over a finetune batch.
    pub(super) finetune: Pass,
    /// Passes over a validation batch, which come between the two of a finetune batch.
    pub(super) validation: Pass,
}

/// A recorded encoder pass and its backward pass. They share memory, and are captured together.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) forward: Graph,
    pub(super) backward: Graph,
    /// Counts forward passes: a later one overwrites the activations of the one before.
    pub(super) generation: u64,
}

/// Which pass a recorded one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batch {
    Finetune,
    Validation,
}

impl Pass {
    fn new(stream: &Stream) -> Self {
        let pool = stream.graph_pool();
        Pass { forward: Graph::new(pool.clone()), backward: Graph::new(pool), generation: 0 }
    }
}

impl Graphs {
    /// Whether graphs pay for networks of `num_weights`: above this size a launch takes less time than its work. They
    /// take memory for copies of inputs and outputs. `MLOMAE_CUDA_GRAPHS=0` and `=1` decide otherwise.
    ///
    /// # Errors
    /// When the variable has another value.
    pub(super) fn of(stream: &Stream, num_weights: usize) -> Result<Option<RefCell<Graphs>>, ModelError> {
        const MOST_WEIGHTS: usize = 32 << 20;
        let variable = std::env::var_os("MLOMAE_CUDA_GRAPHS").filter(|value| !value.is_empty());
        let wanted = match variable.as_deref().map(|value| value.to_string_lossy()).as_deref() {
            None => num_weights <= MOST_WEIGHTS,
            Some("0") => false,
            Some("1") => true,
            Some(other) => {
                let line = format!("MLOMAE_CUDA_GRAPHS must be 0 (no graphs) or 1 (graphs at any size), got {other}");
                return Err(ModelError::Config(line));
            }
        };
        Ok(wanted.then(|| {
            let graph = || Graph::new(stream.graph_pool());
            RefCell::new(Graphs {
                pretrain: graph(),
                tangent: graph(),
                finetune: Pass::new(stream),
                validation: Pass::new(stream),
            })
        }))
    }

    pub(super) fn pass(&mut self, batch: Batch) -> &mut Pass {
        match batch {
            Batch::Finetune => &mut self.finetune,
            Batch::Validation => &mut self.validation,
        }
    }
}

impl CudaLane {
    /// Enqueues `work`, by a graph once it repeats; see [`Stream::steady`].
    pub(super) fn steady(
        &self,
        graph: impl FnOnce(&mut Graphs) -> &mut Graph,
        inputs: &[Held],
        work: impl FnOnce(&[Held]) -> Vec<Mem<f32>>,
    ) -> Vec<Mem<f32>> {
        let Some(graphs) = &self.graphs else { return work(inputs) };
        self.stream.steady(graph(&mut graphs.borrow_mut()), inputs, work).0
    }

    /// Enqueues the forward pass over a batch that will run backward: its outputs, how it was run, and its generation.
    pub(super) fn steady_forward(
        &self,
        batch: Batch,
        inputs: &[Held],
        work: impl FnOnce(&[Held]) -> Vec<Mem<f32>>,
    ) -> (Vec<Mem<f32>>, Run, u64) {
        let Some(graphs) = &self.graphs else { return (work(inputs), Run::Eager, 0) };
        let (mut graphs, stream) = (graphs.borrow_mut(), &self.stream);
        let pass = graphs.pass(batch);
        if pass.forward.is_ready() && !pass.backward.is_ready() {
            // The pass that was captured never ran backward: a replay could not.
            pass.forward.reset();
        }
        pass.generation += 1;
        let (outputs, run) = stream.steady(&mut pass.forward, inputs, work);
        (outputs, run, pass.generation)
    }

    /// Enqueues the backward pass of a forward pass that was run so; none if a later one has overwritten it.
    pub(super) fn steady_backward(
        &self,
        (batch, run, generation): (Batch, Run, u64),
        inputs: &[Held],
        work: impl FnOnce(&[Held]) -> Vec<Mem<f32>>,
    ) -> Option<Vec<Mem<f32>>> {
        let Some(graphs) = &self.graphs else { return Some(work(inputs)) };
        let mut graphs = graphs.borrow_mut();
        let pass = graphs.pass(batch);
        let is_overtaken = run != Run::Eager && generation != pass.generation;
        let is_lost = is_overtaken || (run == Run::Replayed && !pass.backward.is_ready());
        (!is_lost).then(|| self.stream.steady_as(run, &mut pass.backward, inputs, work))
    }
}
