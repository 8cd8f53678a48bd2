//! Linear layers on rows.

use crate::layout::LinearWeights;
use crate::tasks::product::{Factor, add_product};

/// x·Wᵀ + b for rows x `[rows, inputs]`, at c: `[rows, outputs]`.
#[must_use]
pub fn forward(layer: &LinearWeights, c: &[f64], x: &[f64]) -> Vec<f64> {
    let mut out: Vec<f64> = c[layer.bias.range()].repeat(x.len() / layer.inputs);
    let weight = Factor::rows(&c[layer.weight.range()], layer.inputs);
    add_product(&mut out, Factor::rows(x, layer.inputs), weight.transposed());
    out
}

/// Adds to the gradient of c what follows from the gradient `dy` `[rows, outputs]` of [`forward`]'s rows.
pub fn add_weight_gradient(layer: &LinearWeights, x: &[f64], dy: &[f64], dc: &mut [f64]) {
    let of_rows = Factor::rows(dy, layer.outputs).transposed();
    add_product(&mut dc[layer.weight.range()], of_rows, Factor::rows(x, layer.inputs));
    let bias = &mut dc[layer.bias.range()];
    for row in dy.chunks_exact(layer.outputs) {
        bias.iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
    }
}

/// The gradient of [`forward`]'s x `[rows, inputs]`.
#[must_use]
pub fn input_gradient(layer: &LinearWeights, c: &[f64], dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; dy.len() / layer.outputs * layer.inputs];
    let weight = Factor::rows(&c[layer.weight.range()], layer.inputs);
    add_product(&mut dx, Factor::rows(dy, layer.outputs), weight);
    dx
}
