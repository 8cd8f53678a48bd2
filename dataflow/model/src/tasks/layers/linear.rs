//! Products of rows, and linear layers.

use nalgebra::{DMatrixView, DMatrixViewMut};

use crate::layout::LinearWeights;

/// A factor of a product: row-major values, or what they are transposed.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f64],
    /// Columns of the values.
    width: usize,
    is_transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` values, row-major.
    #[must_use]
    pub const fn rows(values: &'a [f64], width: usize) -> Self {
        Matrix { values, width, is_transposed: false }
    }

    /// The transposed matrix, in the same memory.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Matrix { is_transposed: !self.is_transposed, ..self }
    }

    /// The transpose of the stored rows, as nalgebra has matrices: column after column.
    fn columns(self) -> DMatrixView<'a, f64> {
        DMatrixView::from_slice(self.values, self.width, self.values.len() / self.width)
    }
}

/// out = keep·out + a·b, row-major. `keep` 0 reads nothing of out.
pub fn product(out: &mut [f64], a: Matrix<'_>, b: Matrix<'_>, keep: f64) {
    let (a_columns, b_columns) = (a.columns(), b.columns());
    // For nalgebra it is outᵀ = bᵀ·aᵀ. Its product of small matrices writes beyond its result where values of a column of
    // the left factor are not next to each other (0.34.2), so that one is laid out anew instead of being a view.
    let rows = if a.is_transposed { a_columns.nrows() } else { a_columns.ncols() };
    let mut out = DMatrixViewMut::from_slice(out, out.len() / rows, rows);
    match (a.is_transposed, b.is_transposed) {
        (false, false) => out.gemm(1.0, &b_columns, &a_columns, keep),
        (false, true) => out.gemm(1.0, &b_columns.transpose(), &a_columns, keep),
        (true, false) => out.gemm(1.0, &b_columns, &a_columns.transpose(), keep),
        (true, true) => out.gemm(1.0, &b_columns.transpose(), &a_columns.transpose(), keep),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, keyed, uniform};

    #[test]
    fn products_are_sums_of_products() {
        let mut rng = keyed(1, Purpose::Eval, 0, 0);
        for [rows, inner, columns] in [[1, 1, 1], [1, 7, 2], [9, 1, 9], [2, 3, 4], [6, 6, 6], [9, 17, 5], [40, 33, 20]]
        {
            let mut draw = |len: usize| (0..len).map(|_| uniform(&mut rng) - 0.5).collect::<Vec<f64>>();
            let (a, b, start) = (draw(rows * inner), draw(inner * columns), draw(rows * columns));
            let transposed = |values: &[f64], width: usize| -> Vec<f64> {
                let height = values.len() / width;
                (0..values.len()).map(|i| values[i % height * width + i / height]).collect()
            };
            let (a_turned, b_turned) = (transposed(&a, inner), transposed(&b, columns));
            for (a_is, b_is, keep) in [(false, false, 1.0), (false, true, 0.0), (true, false, 0.5), (true, true, 1.0)] {
                let left = if a_is { Matrix::rows(&a_turned, rows).transposed() } else { Matrix::rows(&a, inner) };
                let right = if b_is { Matrix::rows(&b_turned, inner).transposed() } else { Matrix::rows(&b, columns) };
                let mut out = start.clone();
                product(&mut out, left, right, keep);
                for (place, found) in out.iter().enumerate() {
                    let terms = (0..inner).map(|k| a[place / columns * inner + k] * b[k * columns + place % columns]);
                    let expected = keep * start[place] + terms.sum::<f64>();
                    assert!((found - expected).abs() < 1e-13, "{rows} {inner} {columns} {a_is} {b_is}");
                }
            }
        }
    }
}
