//! Linear layers of the masking networks, with gradients by hand. The wide layer of the flat network is cut by hidden
//! units or by inputs, not by images: so threads need no copy of its gradient each, which is as large as its weights.

use mlomae_kernels::{self as kernels, Mat};

use crate::layout::LinearWeights;
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;

/// Hidden units that one piece of the wide layer covers.
const UNITS_PER_PIECE: usize = 64;

/// `x·Wᵀ` without bias: `[rows, inputs]` → `[rows, outputs]`.
pub(super) fn linear(compute: &Compute, params: &[f32], w: &LinearWeights, x: &[f32], rows: usize) -> Buffer {
    let mut y = compute.arena.take(rows * w.outputs);
    let a = Mat { data: x, ld: w.inputs, trans: false };
    let b = Mat { data: &params[w.weight.range()], ld: w.inputs, trans: true };
    kernels::matmul(&mut y, w.outputs, a, b, rows, w.outputs, w.inputs, false);
    y
}

/// The gradient of x, `dy·W`: `[rows, outputs]` → `[rows, inputs]`.
pub(super) fn linear_input_gradient(
    compute: &Compute,
    params: &[f32],
    w: &LinearWeights,
    dy: &[f32],
    rows: usize,
) -> Buffer {
    let mut dx = compute.arena.take(rows * w.inputs);
    let a = Mat { data: dy, ld: w.outputs, trans: false };
    let b = Mat { data: &params[w.weight.range()], ld: w.inputs, trans: false };
    kernels::matmul(&mut dx, w.inputs, a, b, rows, w.inputs, w.outputs, false);
    dx
}

/// Adds the gradients of weight, `dyᵀ·x`, and bias, the column sums of `dy`, to a flat gradient.
pub(super) fn linear_weight_gradient(dparams: &mut [f32], w: &LinearWeights, dy: &[f32], x: &[f32], rows: usize) {
    let a = Mat { data: dy, ld: w.outputs, trans: true };
    let b = Mat { data: x, ld: w.inputs, trans: false };
    kernels::matmul(&mut dparams[w.weight.range()], w.inputs, a, b, w.outputs, w.inputs, rows, true);
    kernels::bias_grad(&mut dparams[w.bias.range()], dy, true);
}

/// `relu(x·Wᵀ + b)`, where each piece computes some of the hidden units.
pub(super) fn wide_linear_relu(compute: &Compute, params: &[f32], w: &LinearWeights, x: &[f32], rows: usize) -> Buffer {
    let pieces = w.outputs.div_ceil(UNITS_PER_PIECE);
    let units = |i: usize| i * UNITS_PER_PIECE..((i + 1) * UNITS_PER_PIECE).min(w.outputs);
    let parts = compute.map(pieces, |i| {
        let units = units(i);
        let mut part = compute.arena.take(rows * units.len());
        let weight = &params[w.weight.range()][units.start * w.inputs..units.end * w.inputs];
        let a = Mat { data: x, ld: w.inputs, trans: false };
        let b = Mat { data: weight, ld: w.inputs, trans: true };
        kernels::matmul(&mut part, units.len(), a, b, rows, units.len(), w.inputs, false);
        kernels::bias_relu(&mut part, &params[w.bias.range()][units]);
        part
    });
    let mut y = compute.arena.take(rows * w.outputs);
    for (i, part) in parts.iter().enumerate() {
        let units = units(i);
        for (row, values) in y.chunks_exact_mut(w.outputs).zip(part.chunks_exact(units.len())) {
            row[units.clone()].copy_from_slice(values);
        }
    }
    y
}

/// As [`linear_weight_gradient`], where each piece computes some of the hidden units, which are rows of the weight.
pub(super) fn wide_weight_gradient(
    compute: &Compute,
    dparams: &mut [f32],
    w: &LinearWeights,
    dy: &[f32],
    x: &[f32],
    rows: usize,
) {
    kernels::bias_grad(&mut dparams[w.bias.range()], dy, true);
    let spans: Vec<_> = (0..w.outputs)
        .step_by(UNITS_PER_PIECE)
        .map(|unit| unit * w.inputs..(unit + UNITS_PER_PIECE).min(w.outputs) * w.inputs)
        .collect();
    compute.map_slices(&mut dparams[w.weight.range()], &spans, |i, piece| {
        let first_unit = i * UNITS_PER_PIECE;
        let a = Mat { data: &dy[first_unit..], ld: w.outputs, trans: true };
        let b = Mat { data: x, ld: w.inputs, trans: false };
        kernels::matmul(piece, w.inputs, a, b, piece.len() / w.inputs, w.inputs, rows, true);
    });
}

/// As [`linear_input_gradient`], where each piece computes some of the inputs.
pub(super) fn wide_input_gradient(
    compute: &Compute,
    params: &[f32],
    w: &LinearWeights,
    dy: &[f32],
    rows: usize,
) -> Buffer {
    let piece = w.inputs.div_ceil(8).next_multiple_of(16);
    let spans: Vec<_> = (0..w.inputs).step_by(piece).map(|start| start..(start + piece).min(w.inputs)).collect();
    let weight = &params[w.weight.range()];
    let parts = compute.map(spans.len(), |i| {
        let mut part = compute.arena.take(rows * spans[i].len());
        let a = Mat { data: dy, ld: w.outputs, trans: false };
        let b = Mat { data: &weight[spans[i].start..], ld: w.inputs, trans: false };
        kernels::matmul(&mut part, spans[i].len(), a, b, rows, spans[i].len(), w.outputs, false);
        part
    });
    let mut dx = compute.arena.take(rows * w.inputs);
    for (span, part) in spans.iter().zip(&parts) {
        for (row, values) in dx.chunks_exact_mut(w.inputs).zip(part.chunks_exact(span.len())) {
            row[span.clone()].copy_from_slice(values);
        }
    }
    dx
}

/// A trunk of linear layers with ReLU between them and a sigmoid at the end, as the masking networks have it, for one
/// batch or grain: the derivative of its weight gradient along a direction of its input (forward over reverse).
///
/// `activations` are the input of each layer, `[rows, inputs]`, `scores` the output p. `dinput` is the derivative of
/// the input, `dscores` = ∂F/∂p and `ddscores` its derivative. Adds the derivative of ∂F/∂φ to `ddphi`.
pub(super) struct Trunk<'a> {
    pub(super) phi: &'a [f32],
    pub(super) layers: &'a [LinearWeights],
    pub(super) activations: &'a [&'a [f32]],
    pub(super) scores: &'a [f32],
}

impl Trunk<'_> {
    pub(super) fn weight_gradient_tangent(
        &self,
        compute: &Compute,
        dinput: &[f32],
        dscores: &[f32],
        ddscores: &[f32],
        ddphi: &mut [f32],
    ) {
        let rows = dinput.len() / self.layers[0].inputs;
        // Derivatives of the activations, forward.
        let mut tangents = vec![compute.arena.copy_of(dinput)];
        for (i, layer) in self.layers.iter().enumerate() {
            let mut next = linear(compute, self.phi, layer, &tangents[i], rows);
            match self.activations.get(i + 1) {
                Some(activation) => kernels::relu_grad(&mut next, activation),
                None => kernels::sigmoid_grad(&mut next, self.scores),
            }
            tangents.push(next);
        }
        let dp = tangents.pop().unwrap_or_default();
        // Cotangent of the last layer's output and its derivative: σ' = p(1 − p), dσ' = (1 − 2p)·dp.
        let mut dz = compute.arena.copy_of(dscores);
        kernels::sigmoid_grad(&mut dz, self.scores);
        let mut ddz = compute.arena.copy_of(ddscores);
        kernels::sigmoid_grad(&mut ddz, self.scores);
        for (ddz, ((ds, p), dp)) in ddz.iter_mut().zip(dscores.iter().zip(self.scores).zip(dp.iter())) {
            *ddz += ds * dp * (1.0 - 2.0 * p);
        }
        for (i, layer) in self.layers.iter().enumerate().rev() {
            linear_weight_gradient(ddphi, layer, &ddz, self.activations[i], rows);
            let a = Mat { data: &dz, ld: layer.outputs, trans: true };
            let b = Mat { data: &tangents[i], ld: layer.inputs, trans: false };
            let weight = &mut ddphi[layer.weight.range()];
            kernels::matmul(weight, layer.inputs, a, b, layer.outputs, layer.inputs, rows, true);
            if i > 0 {
                dz = linear_input_gradient(compute, self.phi, layer, &dz, rows);
                ddz = linear_input_gradient(compute, self.phi, layer, &ddz, rows);
                kernels::relu_grad(&mut dz, self.activations[i]);
                kernels::relu_grad(&mut ddz, self.activations[i]);
            }
        }
    }
}
