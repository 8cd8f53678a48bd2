//! Products of rows, and linear layers.

use nalgebra::{DMatrixView, DMatrixViewMut, Dyn};

use crate::layout::LinearWeights;

/// A matrix in a slice.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f64],
    /// Rows and columns.
    shape: [usize; 2],
    /// Values from one row to the next, and from one column to the next.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` values, row-major.
    #[must_use]
    pub fn rows(values: &'a [f64], columns: usize) -> Self {
        Matrix { values, shape: [values.len() / columns, columns], strides: [columns, 1] }
    }

    /// The transposed matrix, in the same memory.
    #[must_use]
    pub const fn transposed(self) -> Self {
        let Matrix { values, shape: [rows, columns], strides: [down, right] } = self;
        Matrix { values, shape: [columns, rows], strides: [right, down] }
    }

    fn view(self) -> DMatrixView<'a, f64, Dyn, Dyn> {
        let Matrix { values, shape: [rows, columns], strides: [down, right] } = self;
        DMatrixView::from_slice_with_strides(values, rows, columns, down, right)
    }
}

/// out = keep·out + a·b, row-major. `keep` 0 reads nothing of out.
pub fn product(out: &mut [f64], a: Matrix<'_>, b: Matrix<'_>, keep: f64) {
    let [rows, columns] = [a.shape[0], b.shape[1]];
    let mut out = DMatrixViewMut::<f64, Dyn, Dyn>::from_slice_with_strides_mut(out, rows, columns, columns, 1);
    out.gemm(1.0, &a.view(), &b.view(), keep);
}

/// x·Wᵀ + b for rows x `[rows, inputs]`, at c: `[rows, outputs]`.
#[must_use]
pub fn forward(layer: &LinearWeights, c: &[f64], x: &[f64]) -> Vec<f64> {
    let mut out: Vec<f64> = c[layer.bias.range()].repeat(x.len() / layer.inputs);
    let weight = Matrix::rows(&c[layer.weight.range()], layer.inputs);
    product(&mut out, Matrix::rows(x, layer.inputs), weight.transposed(), 1.0);
    out
}

/// Adds to the gradient of c what follows from the gradient `dy` `[rows, outputs]` of [`forward`]'s rows.
pub fn add_weight_gradient(layer: &LinearWeights, x: &[f64], dy: &[f64], dc: &mut [f64]) {
    let dy_rows = Matrix::rows(dy, layer.outputs);
    product(&mut dc[layer.weight.range()], dy_rows.transposed(), Matrix::rows(x, layer.inputs), 1.0);
    add_rows(&mut dc[layer.bias.range()], dy);
}

/// The gradient of [`forward`]'s x `[rows, inputs]`.
#[must_use]
pub fn input_gradient(layer: &LinearWeights, c: &[f64], dy: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; dy.len() / layer.outputs * layer.inputs];
    product(&mut dx, Matrix::rows(dy, layer.outputs), Matrix::rows(&c[layer.weight.range()], layer.inputs), 0.0);
    dx
}

/// Adds every row of `rows` to `sum`.
pub fn add_rows(sum: &mut [f64], rows: &[f64]) {
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
    }
}
