//! Linear layers, alone or fused with GELU, a residual or both (the MLP).

use std::sync::Arc;

use dfdx::tensor::CpuError;

use super::tape::{Grads, SharedSink, Slot};
use super::{CpuTensor, DfdxCpu, Grains};
use crate::layout::LinearWeights;
use crate::parallel::arena::{Arena, Buffer, Params};
use mlomae_kernels::{self as kernels, Epilogue, Factors, Mat};

/// What the backward pass of a linear layer needs for the gradients of weight and bias, apart from its input.
pub(super) struct WeightGradient {
    w: LinearWeights,
    params: Params,
    sink: Option<SharedSink>,
    rows: usize,
    arena: Arena,
    grains: Grains,
    factors: Factors,
}

impl WeightGradient {
    /// Adds the gradients of weight and bias to the sink, from x and `dy`, the cotangent of `x·Wᵀ + b`. Each is summed
    /// over grains.
    pub(super) fn run(&self, dy: &[f32], x: &[f32]) {
        let (w, grains) = (&self.w, self.grains);
        let Some(sink) = &self.sink else { return };
        let mut sink = sink.borrow_mut();
        sink.sum(&w.weight, grains.num(), |grain, dw| {
            let a = Mat { data: &dy[grains.values(grain, self.rows, w.outputs)], ld: w.outputs, trans: true };
            let b = Mat { data: &x[grains.values(grain, self.rows, w.inputs)], ld: w.inputs, trans: false };
            let num_rows = grains.rows(grain, self.rows).len();
            kernels::matmul_in(self.factors, dw, w.inputs, a, b, w.outputs, w.inputs, num_rows, false);
        });
        sink.sum(&w.bias, grains.num(), |grain, db| {
            kernels::bias_grad(db, &dy[grains.values(grain, self.rows, w.outputs)], false);
        });
    }

    /// The two factors of the gradient of x, `dy·W`.
    fn input_factors<'a>(&'a self, dy: &'a [f32]) -> (Mat<'a>, Mat<'a>) {
        let w = &self.w;
        let a = Mat { data: dy, ld: w.outputs, trans: false };
        (a, Mat { data: &self.params[w.weight.range()], ld: w.inputs, trans: false })
    }
}

/// What the backward pass of a linear layer needs, whatever is fused after the layer.
struct LinearGradient {
    layer: WeightGradient,
    x: Arc<Buffer>,
    x_slot: Option<Slot>,
}

impl LinearGradient {
    /// Adds the gradients of weight, bias and x, from the cotangent of `x·Wᵀ + b`.
    fn run(&self, grads: &mut Grads, dy: &[f32]) -> Result<(), CpuError> {
        let layer = &self.layer;
        layer.run(dy, &self.x);
        if let Some(slot) = &self.x_slot {
            slot.accumulate(grads, &layer.arena, |dx, accumulate| {
                let (a, b) = layer.input_factors(dy);
                let (inputs, outputs) = (layer.w.inputs, layer.w.outputs);
                kernels::matmul_in(layer.factors, dx, inputs, a, b, layer.rows, inputs, outputs, accumulate);
            })?;
        }
        Ok(())
    }
}

impl DfdxCpu {
    /// Writes `x·Wᵀ` to `y`, with `epilogue` applied to each tile while it is in the cache.
    fn product(&self, y: &mut Buffer, x: &CpuTensor, w: &LinearWeights, epilogue: Epilogue<'_>) {
        let a = Mat { data: &x.values, ld: w.inputs, trans: false };
        let b = Mat { data: &self.params_of(w.weight.level)[w.weight.range()], ld: w.inputs, trans: true };
        kernels::matmul_with(self.factors, y, w.outputs, a, b, x.rows, w.outputs, w.inputs, epilogue);
    }

    pub(super) fn weight_gradient(&self, w: &LinearWeights, rows: usize) -> WeightGradient {
        WeightGradient {
            w: *w,
            params: self.params_of(w.weight.level).clone(),
            sink: self.sink(&[&w.weight, &w.bias]),
            rows,
            arena: self.arena.clone(),
            grains: self.grains,
            factors: self.factors,
        }
    }

    fn linear_gradient(&self, x: &CpuTensor, w: &LinearWeights) -> LinearGradient {
        let layer = self.weight_gradient(w, x.rows);
        LinearGradient { layer, x: x.values.clone(), x_slot: x.slot.clone() }
    }

    fn wants_gradient(&self, x: &CpuTensor, w: &LinearWeights) -> bool {
        self.record.is_some() && (x.slot.is_some() || self.sinks[w.weight.level].is_some())
    }

    pub(super) fn linear_plain(&mut self, x: &CpuTensor, w: &LinearWeights) -> CpuTensor {
        let mut y = self.arena.take(x.rows * w.outputs);
        self.product(&mut y, x, w, Epilogue::Bias(&self.params_of(w.bias.level)[w.bias.range()]));
        let wanted = self.wants_gradient(x, w);
        let out = self.output(y, x.rows, w.outputs, wanted);
        if wanted {
            let gradient = self.linear_gradient(x, w);
            self.push(&out, move |grads, dy| gradient.run(grads, &dy));
        }
        out
    }

    pub(super) fn linear_then_gelu(&mut self, x: &CpuTensor, w: &LinearWeights) -> CpuTensor {
        let bias = &self.params_of(w.bias.level)[w.bias.range()];
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

    /// The MLP with recomputation: of the hidden layer only the values before GELU are stored. The backward pass
    /// computes GELU again together with its derivative, in the epilogue of the product that gives the hidden layer's
    /// cotangent.
    pub(super) fn fused_mlp(
        &mut self,
        x: &CpuTensor,
        fc1: &LinearWeights,
        fc2: &LinearWeights,
        residual: &CpuTensor,
    ) -> CpuTensor {
        let wanted = self.wants_gradient(x, fc1)
            || self.sinks[fc2.weight.level].is_some()
            || (self.record.is_some() && residual.slot.is_some());
        if !wanted || self.record.is_none() {
            let hidden = self.linear_then_gelu(x, fc1);
            return self.linear_then_add(&hidden, fc2, residual);
        }
        let mut pre = self.arena.take(x.rows * fc1.outputs);
        let mut hidden = self.arena.take(x.rows * fc1.outputs);
        let bias = &self.params_of(fc1.bias.level)[fc1.bias.range()];
        self.product(&mut pre, x, fc1, Epilogue::BiasGeluKeep { bias, out: &mut hidden });
        let hidden = self.output(hidden, x.rows, fc1.outputs, false);
        let mut y = self.arena.take(x.rows * fc2.outputs);
        let bias = &self.params_of(fc2.bias.level)[fc2.bias.range()];
        self.product(&mut y, &hidden, fc2, Epilogue::BiasResidual { bias, residual: &residual.values });
        drop(hidden);
        let out = self.output(y, x.rows, fc2.outputs, true);
        let (first, second) = (self.linear_gradient(x, fc1), self.weight_gradient(fc2, x.rows));
        let residual = residual.slot.clone();
        self.push(&out, move |grads, dy| {
            let arena = &second.arena;
            // `hidden` is the pre-activation until the epilogue has turned it into GELU's output.
            let (mut dhidden, mut hidden) = (arena.take(pre.len()), pre);
            let (a, b) = second.input_factors(&dy);
            let (inputs, outputs) = (second.w.inputs, second.w.outputs);
            let epilogue = Epilogue::GeluGrad(&mut hidden);
            kernels::matmul_with(second.factors, &mut dhidden, inputs, a, b, second.rows, inputs, outputs, epilogue);
            second.run(&dy, &hidden);
            drop(hidden);
            first.run(grads, &dhidden)?;
            match residual {
                Some(residual) => residual.give(grads, arena, dy),
                None => Ok(()),
            }
        });
        out
    }

    pub(super) fn linear_then_add(&mut self, x: &CpuTensor, w: &LinearWeights, residual: &CpuTensor) -> CpuTensor {
        let mut y = self.arena.take(x.rows * w.outputs);
        let bias = &self.params_of(w.bias.level)[w.bias.range()];
        self.product(&mut y, x, w, Epilogue::BiasResidual { bias, residual: &residual.values });
        let wanted = self.wants_gradient(x, w) || (self.record.is_some() && residual.slot.is_some());
        let out = self.output(y, x.rows, w.outputs, wanted);
        if wanted {
            let gradient = self.linear_gradient(x, w);
            let residual = residual.slot.clone();
            self.push(&out, move |grads, dy| {
                gradient.run(grads, &dy)?;
                // The residual's cotangent equals the output's, so the buffer is handed over without a copy.
                match residual {
                    Some(residual) => residual.give(grads, &gradient.layer.arena, dy),
                    None => Ok(()),
                }
            });
        }
        out
    }
}
