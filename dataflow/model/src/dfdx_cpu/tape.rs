//! Slots and sinks: how our operations keep gradients on dfdx's tape.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use dfdx::prelude::{Backward, OwnedTape, PutTape, Rank0, Tape, Tensor, ZerosTensor};
use dfdx::tensor::{Cpu, CpuError, TensorFromVec};

use super::{CpuTensor, DfdxCpu};
use crate::arena::{Arena, Buffer};
use crate::compute::Tree;
use crate::engine::Gradients;
use crate::error::ModelError;
use crate::kernels;
use crate::layout::Weight;

/// dfdx's gradients by tensor id.
pub(super) type Grads = dfdx::tensor::Gradients<f32, Cpu>;

/// What has been recorded, and the gradients of inputs once it has run.
#[derive(Default)]
pub(super) struct Record {
    pub(super) tape: OwnedTape<f32, Cpu>,
    pub(super) finished: Option<Grads>,
}

/// A place on dfdx's tape for the gradient of one of our tensors.
///
/// The tensor behind the id has no elements, so dfdx allocates an empty vector for it; our storage is swapped in.
#[derive(Clone)]
pub(super) struct Slot {
    key: Tensor<(usize,), f32, Cpu>,
    len: usize,
}

impl Slot {
    pub(super) fn new(device: &Cpu, len: usize) -> Self {
        Slot { key: device.tensor_from_vec(Vec::new(), (0,)), len }
    }

    /// Takes the gradient out; none when nothing has arrived.
    pub(super) fn take(&self, grads: &mut Grads, arena: &Arena) -> Result<Option<Buffer>, CpuError> {
        let storage = std::mem::take(&mut **grads.get_or_alloc_mut(&self.key)?);
        Ok((!storage.is_empty()).then(|| arena.adopt(storage, self.len)))
    }

    /// Adds a contribution whose memory is not needed any more.
    pub(super) fn give(&self, grads: &mut Grads, arena: &Arena, contribution: Buffer) -> Result<(), CpuError> {
        debug_assert_eq!(contribution.len(), self.len);
        let total = match self.take(grads, arena)? {
            Some(mut total) => {
                kernels::add(&mut total, &contribution);
                total
            }
            None => contribution,
        };
        **grads.get_or_alloc_mut(&self.key)? = total.into_storage();
        Ok(())
    }

    /// Lets `add` write (`accumulate` false: contents are stale) or add to the gradient in place.
    pub(super) fn accumulate(
        &self,
        grads: &mut Grads,
        arena: &Arena,
        add: impl FnOnce(&mut [f32], bool),
    ) -> Result<(), CpuError> {
        let (mut total, accumulate) = match self.take(grads, arena)? {
            Some(total) => (total, true),
            None => (arena.take(self.len), false),
        };
        add(&mut total, accumulate);
        **grads.get_or_alloc_mut(&self.key)? = total.into_storage();
        Ok(())
    }
}

/// The flat gradient of one parameter set, of which each weight is written before it is added to.
pub(super) struct Sink {
    values: Buffer,
    written: Vec<Range<usize>>,
}

/// Operations on one tape share their sinks.
pub(super) type SharedSink = Rc<RefCell<Sink>>;

impl Sink {
    pub(super) fn shared(values: Buffer) -> SharedSink {
        Rc::new(RefCell::new(Sink { values, written: Vec::new() }))
    }

    /// The weight's gradient, and whether it holds something already.
    pub(super) fn slot(&mut self, weight: &Weight) -> (&mut [f32], bool) {
        let range = weight.range();
        let accumulate = self.written.contains(&range);
        if !accumulate {
            self.written.push(range.clone());
        }
        (&mut self.values[range], accumulate)
    }

    /// Adds `gradient` to the weight's.
    pub(super) fn add(&mut self, weight: &Weight, gradient: &[f32]) {
        match self.slot(weight) {
            (slot, true) => kernels::add(slot, gradient),
            (slot, false) => slot.copy_from_slice(gradient),
        }
    }

    /// Adds the [`Tree`] sum of `num` parts to the weight's gradient; `part` overwrites its target.
    pub(super) fn sum(&mut self, arena: &Arena, weight: &Weight, num: usize, part: impl FnMut(usize, &mut [f32])) {
        match self.slot(weight) {
            (slot, false) => Tree::sum(arena, slot, num, part),
            (slot, true) => {
                let mut sum = arena.take(slot.len());
                Tree::sum(arena, &mut sum, num, part);
                kernels::add(slot, &sum);
            }
        }
    }

    /// The whole gradient: zero where nothing was written.
    fn finish(&mut self) -> Buffer {
        self.written.sort_by_key(|r| r.start);
        let mut end = 0;
        for range in &self.written {
            self.values[end..range.start].fill(0.0);
            end = range.end;
        }
        self.values[end..].fill(0.0);
        self.written.clear();
        std::mem::take(&mut self.values)
    }
}

impl DfdxCpu {
    /// Registers `operation` to run when the gradient of `out` is complete; it is skipped when none has arrived.
    pub(super) fn push(
        &mut self,
        out: &CpuTensor,
        operation: impl FnOnce(&mut Grads, Buffer) -> Result<(), CpuError> + 'static,
    ) {
        let (Some(record), Some(slot)) = (&mut self.record, out.slot.clone()) else { return };
        let arena = self.arena.clone();
        record.tape.add_backward_op(move |grads| match slot.take(grads, &arena)? {
            Some(cotangent) => operation(grads, cotangent),
            None => Ok(()),
        });
    }

    pub(super) fn run_backward(&mut self, cotangents: Vec<(CpuTensor, Buffer)>) -> Result<Gradients, ModelError> {
        let Some(record) = self.record.take() else { return Ok(Gradients::default()) };
        let (mut tape, arena) = (record.tape, self.arena.clone());
        // The last operation recorded is the first to run: it puts the cotangents in place.
        tape.add_backward_op(move |grads| {
            for (tensor, cotangent) in cotangents {
                if let Some(slot) = &tensor.slot {
                    slot.give(grads, &arena, cotangent)?;
                }
            }
            Ok(())
        });
        let anchor: Tensor<Rank0, f32, Cpu> = self.device.zeros();
        let finished = anchor.put_tape(tape).try_backward()?;
        let mut gradients = Gradients::default();
        for (slot, sink) in gradients.params.iter_mut().zip(&mut self.sinks) {
            *slot = sink.take().map(|sink| sink.borrow_mut().finish());
        }
        self.record = Some(Record { tape: OwnedTape::default(), finished: Some(finished) });
        Ok(gradients)
    }
}
