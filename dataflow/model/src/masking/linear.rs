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
