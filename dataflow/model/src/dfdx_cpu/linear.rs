//! Linear layers with what follows them fused in.

use std::sync::Arc;

use dfdx::tensor::CpuError;

use super::tape::{Grads, SharedSink, Slot};
use super::{CpuTensor, DfdxCpu, Grains};
use crate::arena::{Arena, Buffer, Params};
use crate::kernels::{self, Epilogue, Mat};
use crate::layout::LinearWeights;

/// What the gradient of a linear layer needs, whatever is fused behind it.
pub(super) struct LinearGradient {
    w: LinearWeights,
    params: Params,
    sink: Option<SharedSink>,
    x: Arc<Buffer>,
    x_slot: Option<Slot>,
    rows: usize,
    arena: Arena,
    grains: Grains,
}

impl LinearGradient {
    /// Given the cotangent of `x·Wᵀ + b`: gradients of weight, bias and x.
    fn run(&self, grads: &mut Grads, dy: &[f32]) -> Result<(), CpuError> {
        self.weights(dy, &self.x);
        self.input(grads, dy)
    }

    /// Gradients of weight and bias, with x given.
    fn weights(&self, dy: &[f32], x: &[f32]) {
        let w = &self.w;
        if let Some(sink) = &self.sink {
            let mut sink = sink.borrow_mut();
            let grains = self.grains;
            sink.sum(&self.arena, &w.weight, grains.num(), |grain, dw| {
                let rows = grains.rows(grain, self.rows);
                let a = Mat { data: &dy[rows.start * w.outputs..rows.end * w.outputs], ld: w.outputs, trans: true };
                let b = Mat { data: &x[rows.start * w.inputs..rows.end * w.inputs], ld: w.inputs, trans: false };
                kernels::matmul(dw, w.inputs, a, b, w.outputs, w.inputs, rows.len(), false);
            });
            sink.sum(&self.arena, &w.bias, grains.num(), |grain, db| {
                kernels::bias_grad(db, &dy[grains.values(grain, self.rows, w.outputs)], false);
            });
        }
    }

    /// The gradient of x.
    fn input(&self, grads: &mut Grads, dy: &[f32]) -> Result<(), CpuError> {
        let w = &self.w;
        if let Some(slot) = &self.x_slot {
            slot.accumulate(grads, &self.arena, |dx, accumulate| {
                let a = Mat { data: dy, ld: w.outputs, trans: false };
                let b = Mat { data: &self.params[w.weight.range()], ld: w.inputs, trans: false };
                kernels::matmul(dx, w.inputs, a, b, self.rows, w.inputs, w.outputs, accumulate);
            })?;
        }
        Ok(())
    }
}

impl DfdxCpu {
    /// `x·Wᵀ` into `y`, with `epilogue` while the result is in the cache.
    fn product(&self, y: &mut Buffer, x: &CpuTensor, w: &LinearWeights, epilogue: Epilogue<'_>) {
        let a = Mat { data: &x.values, ld: w.inputs, trans: false };
        let b = Mat { data: &self.set(w.weight.set)[w.weight.range()], ld: w.inputs, trans: true };
        kernels::matmul_with(y, w.outputs, a, b, x.rows, w.outputs, w.inputs, epilogue);
    }

    fn linear_gradient(&self, x: &CpuTensor, w: &LinearWeights) -> LinearGradient {
        LinearGradient {
            w: *w,
            params: self.set(w.weight.set).clone(),
            sink: self.sink(w.weight.set),
            x: x.values.clone(),
            x_slot: x.slot.clone(),
            rows: x.rows,
            arena: self.arena.clone(),
            grains: self.grains,
        }
    }

    fn wants_gradient(&self, x: &CpuTensor, w: &LinearWeights) -> bool {
        self.record.is_some() && (x.slot.is_some() || self.sinks[w.weight.set.index()].is_some())
    }

    pub(super) fn linear_plain(&mut self, x: &CpuTensor, w: &LinearWeights) -> CpuTensor {
        let mut y = self.arena.take(x.rows * w.outputs);
        self.product(&mut y, x, w, Epilogue::Bias(&self.set(w.bias.set)[w.bias.range()]));
        let wanted = self.wants_gradient(x, w);
        let out = self.output(y, x.rows, w.outputs, wanted);
        if wanted {
            let gradient = self.linear_gradient(x, w);
            self.push(&out, move |grads, dy| gradient.run(grads, &dy));
        }
        out
    }

    pub(super) fn linear_then_gelu(&mut self, x: &CpuTensor, w: &LinearWeights) -> CpuTensor {
        let bias = &self.set(w.bias.set)[w.bias.range()];
        let mut y = self.arena.take(x.rows * w.outputs);
        let wanted = self.wants_gradient(x, w);
        if !wanted {
            self.product(&mut y, x, w, Epilogue::BiasGelu(bias));
            return self.output(y, x.rows, w.outputs, false);
        }
        let mut pre = self.arena.take(x.rows * w.outputs);
        self.product(&mut pre, x, w, Epilogue::BiasGeluKeep { bias, out: &mut y });
        let out = self.output(y, x.rows, w.outputs, true);
        let gradient = self.linear_gradient(x, w);
        self.push(&out, move |grads, mut dy| {
            kernels::gelu_grad(&mut dy, &pre);
            gradient.run(grads, &dy)
        });
        out
    }

    /// The MLP, which keeps the hidden layer before gelu alone: behind it, it is computed again in the sweep that computes its slope.
    pub(super) fn fused_mlp(
        &mut self,
        x: &CpuTensor,
        fc1: &LinearWeights,
        fc2: &LinearWeights,
        residual: &CpuTensor,
    ) -> CpuTensor {
        let wanted = self.wants_gradient(x, fc1)
            || self.sinks[fc2.weight.set.index()].is_some()
            || (self.record.is_some() && residual.slot.is_some());
        if !wanted || self.record.is_none() {
            let hidden = self.linear_then_gelu(x, fc1);
            return self.linear_then_add(&hidden, fc2, residual);
        }
        let mut pre = self.arena.take(x.rows * fc1.outputs);
        let mut hidden = self.arena.take(x.rows * fc1.outputs);
        let bias = &self.set(fc1.bias.set)[fc1.bias.range()];
        self.product(&mut pre, x, fc1, Epilogue::BiasGeluKeep { bias, out: &mut hidden });
        let hidden = self.output(hidden, x.rows, fc1.outputs, false);
        let mut y = self.arena.take(x.rows * fc2.outputs);
        let bias = &self.set(fc2.bias.set)[fc2.bias.range()];
        self.product(&mut y, &hidden, fc2, Epilogue::BiasResidual { bias, residual: &residual.values });
        drop(hidden);
        let out = self.output(y, x.rows, fc2.outputs, true);
        let (first, residual) = (self.linear_gradient(x, fc1), residual.slot.clone());
        let (fc2, params, sink) = (*fc2, self.set(fc2.weight.set).clone(), self.sink(fc2.weight.set));
        self.push(&out, move |grads, dy| {
            let (arena, rows) = (first.arena.clone(), first.rows);
            let mut hidden = arena.take(pre.len());
            let mut slope = pre;
            kernels::gelu_with_slope(&mut slope, &mut hidden);
            let second = LinearGradient {
                w: fc2,
                params,
                sink,
                x: Arc::new(hidden),
                x_slot: None,
                rows,
                arena: arena.clone(),
                grains: first.grains,
            };
            second.run(grads, &dy)?;
            let weight = &second.params[fc2.weight.range()];
            // The hidden layer has served; its memory takes its cotangent.
            let mut dhidden = match Arc::try_unwrap(second.x) {
                Ok(hidden) => hidden,
                Err(shared) => arena.take(shared.len()),
            };
            let a = Mat { data: &dy, ld: fc2.outputs, trans: false };
            let b = Mat { data: weight, ld: fc2.inputs, trans: false };
            let epilogue = Epilogue::Times(&slope);
            kernels::matmul_with(&mut dhidden, fc2.inputs, a, b, rows, fc2.inputs, fc2.outputs, epilogue);
            drop(slope);
            first.run(grads, &dhidden)?;
            match residual {
                Some(residual) => residual.give(grads, &arena, dy),
                None => Ok(()),
            }
        });
        out
    }

    pub(super) fn linear_then_add(&mut self, x: &CpuTensor, w: &LinearWeights, residual: &CpuTensor) -> CpuTensor {
        let mut y = self.arena.take(x.rows * w.outputs);
        let bias = &self.set(w.bias.set)[w.bias.range()];
        self.product(&mut y, x, w, Epilogue::BiasResidual { bias, residual: &residual.values });
        let wanted = self.wants_gradient(x, w) || (self.record.is_some() && residual.slot.is_some());
        let out = self.output(y, x.rows, w.outputs, wanted);
        if wanted {
            let gradient = self.linear_gradient(x, w);
            let residual = residual.slot.clone();
            self.push(&out, move |grads, dy| {
                gradient.run(grads, &dy)?;
                // The residual's cotangent is the output's, so its memory moves on.
                match residual {
                    Some(residual) => residual.give(grads, &gradient.arena, dy),
                    None => Ok(()),
                }
            });
        }
        out
    }
}
