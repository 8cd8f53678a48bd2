//! Slots and sinks: where our operations on dfdx's tape put gradients of tensors (slots) and of parameters (sinks).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use dfdx::prelude::{Backward, OwnedTape, PutTape, Rank0, Tape, Tensor, ZerosTensor};
use dfdx::tensor::{Cpu, CpuError, TensorFromVec};

use super::{CpuTensor, DfdxCpu};
use crate::engine::ops::Gradients;
use crate::error::ModelError;
use crate::layout::Weight;
use crate::parallel::arena::{Arena, Buffer};
use crate::parallel::sum::{OrderedSum, Tree};
use mlomae_kernels as kernels;

/// dfdx's gradients by tensor id.
pub(super) type Grads = dfdx::tensor::Gradients<f32, Cpu>;

/// The operations recorded so far.
#[derive(Default)]
pub(super) struct Record {
    pub(super) tape: OwnedTape<f32, Cpu>,
}

/// The gradient of one of our tensors among dfdx's gradients.
///
/// Its key is a dfdx tensor without elements: dfdx allocates an empty vector for it, and our storage is swapped in.
#[derive(Clone)]
pub(super) struct Slot {
    key: Tensor<(usize,), f32, Cpu>,
    len: usize,
}

impl Slot {
    pub(super) fn new(device: &Cpu, len: usize) -> Self {
        Slot { key: device.tensor_from_vec(Vec::new(), (0,)), len }
    }

    /// Takes the gradient out; none if no operation has added to it.
    pub(super) fn take(&self, grads: &mut Grads, arena: &Arena) -> Result<Option<Buffer>, CpuError> {
        let storage = std::mem::take(&mut **grads.get_or_alloc_mut(&self.key)?);
        Ok((!storage.is_empty()).then(|| arena.adopt(storage, self.len)))
    }

    /// Adds a contribution whose buffer the caller does not need afterwards: the first one becomes the gradient itself.
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

    /// Calls `add` with the gradient's storage: if the flag is true it must add to the values, if false it must
    /// overwrite them (they are stale).
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

/// Collects the gradient of one parameter set from one tape, weight by weight.
///
/// Every operation announces in the forward pass which weights it will add to ([`Sink::expect`]). So the backward pass
/// knows when a weight's gradient is complete, and can send it to the sum and free its memory at once.
pub(super) struct Sink {
    arena: Arena,
    /// The sum that complete gradients are added to, and this tape's index in it.
    sum: Arc<OrderedSum>,
    index: usize,
    /// Whether the sum is of this tape alone, so that [`Tape::backward`](crate::engine::ops::Tape::backward) returns
    /// it.
    is_own: bool,
    /// Incomplete gradients, by the offset of the weight.
    gradients: BTreeMap<usize, Partial>,
}

/// A weight's incomplete gradient.
#[derive(Default)]
struct Partial {
    /// Recorded operations that have yet to add to it.
    num_expected: usize,
    values: Option<Buffer>,
}

/// A sink that the operations of one tape share.
pub(super) type SharedSink = Rc<RefCell<Sink>>;

impl Sink {
    /// A sink for a parameter set of `len` values, which adds to vector `sum.1` of `sum.0` if there is one.
    pub(super) fn shared(arena: &Arena, len: usize, sum: Option<(Arc<OrderedSum>, usize)>) -> SharedSink {
        let is_own = sum.is_none();
        let (sum, index) = sum.unwrap_or_else(|| (Arc::new(OrderedSum::new(arena, 1, len)), 0));
        Rc::new(RefCell::new(Sink { arena: arena.clone(), sum, index, is_own, gradients: BTreeMap::new() }))
    }

    /// Announces that one more operation will add to the weight's gradient.
    pub(super) fn expect(&mut self, weight: &Weight) {
        self.gradients.entry(weight.range().start).or_default().num_expected += 1;
    }

    /// Adds to the weight's gradient; it goes to the sum when no further operation was announced.
    pub(super) fn add(&mut self, weight: &Weight, gradient: Buffer) {
        let range = weight.range();
        let partial = self.gradients.entry(range.start).or_default();
        let total = match partial.values.take() {
            Some(mut total) => {
                kernels::add(&mut total, &gradient);
                total
            }
            None => gradient,
        };
        if partial.num_expected == 1 {
            self.gradients.remove(&range.start);
            self.sum.add(self.index, range, total);
        } else {
            partial.num_expected = partial.num_expected.saturating_sub(1);
            partial.values = Some(total);
        }
    }

    /// Adds the [`Tree`] sum of `num` parts to the weight's gradient; `part(i, out)` overwrites `out` with part `i`.
    pub(super) fn sum(&mut self, weight: &Weight, num: usize, part: impl FnMut(usize, &mut [f32])) {
        let mut sum = self.arena.take(weight.range().len());
        Tree::sum(&self.arena, &mut sum, num, part);
        self.add(weight, sum);
    }

    /// Sends incomplete gradients to the sum (an operation without a cotangent was skipped). Returns the whole
    /// gradient, zero where nothing was added, unless it is part of a sum over several tapes.
    fn finish(&mut self) -> Option<Buffer> {
        for (start, partial) in std::mem::take(&mut self.gradients) {
            if let Some(values) = partial.values {
                self.sum.add(self.index, start..start + values.len(), values);
            }
        }
        self.is_own.then(|| self.sum.finish().unwrap_or_else(|| self.arena.zeros(self.sum.num_values())))
    }
}

impl DfdxCpu {
    /// Records `operation`. The backward pass calls it with the cotangent of `out` once that is complete, or skips it
    /// if `out` has none.
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
        anchor.put_tape(tape).try_backward()?;
        let sinks = std::mem::take(&mut self.sinks);
        self.record = Some(Record::default());
        Ok(Gradients::from_fn(|level| sinks[level].as_ref().and_then(|sink| sink.borrow_mut().finish())))
    }
}
