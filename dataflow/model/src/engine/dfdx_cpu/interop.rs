//! The way into plain dfdx code and back: how tasks and masking networks that users write join the same tape.

use dfdx::prelude::{Cpu, HasShape, OwnedTape, PutTape, Shape, SplitTape, Tensor};
use dfdx::tensor::TensorFromVec;

use super::tape::Slot;
use super::{CpuTensor, DfdxCpu};
use crate::parallel::arena::Buffer;

/// A dfdx tensor that carries the engine's tape.
pub type TapedTensor<S> = Tensor<S, f32, Cpu, OwnedTape<f32, Cpu>>;

impl DfdxCpu {
    /// Hands `x` and the tape to plain dfdx code; [`DfdxCpu::import`] brings both back. Without recording the tape is empty.
    pub fn export(&mut self, x: &CpuTensor) -> TapedTensor<(usize, usize)> {
        let plain = self.device.tensor_from_vec(x.values.to_vec(), (x.rows, x.columns));
        let mut tape = self.record.as_mut().map(|record| std::mem::take(&mut record.tape)).unwrap_or_default();
        if let Some(slot) = x.slot.clone() {
            let (ghost, arena) = (plain.ghost(), self.arena.clone());
            dfdx::prelude::Tape::add_backward_op(&mut tape, move |grads| {
                let cotangent = arena.copy_of(grads.get_or_alloc_mut(&ghost)?);
                slot.give(grads, &arena, cotangent)
            });
        }
        plain.put_tape(tape)
    }

    /// Takes the result of plain dfdx code, and the tape with it, back into the engine as `[rows, columns]`.
    pub fn import<S: Shape>(&mut self, y: TapedTensor<S>, rows: usize, columns: usize) -> CpuTensor {
        let (plain, tape) = y.split_tape();
        debug_assert_eq!(plain.shape().num_elements(), rows * columns);
        let values = Buffer::from_vec(plain.as_vec());
        let Some(record) = &mut self.record else {
            return CpuTensor { values: std::sync::Arc::new(values), rows, columns, slot: None };
        };
        record.tape = tape;
        let slot = Slot::new(&self.device, rows * columns);
        let out = CpuTensor { values: std::sync::Arc::new(values), rows, columns, slot: Some(slot) };
        let ghost = plain.ghost();
        self.push(&out, move |grads, cotangent| {
            mlomae_kernels::add(grads.get_or_alloc_mut(&ghost)?, &cotangent);
            Ok(())
        });
        out
    }
}
