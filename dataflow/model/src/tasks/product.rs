//! Products of matrices in f64 for heads that read every patch. They run on the calling thread.

use nalgebra::{DMatrixViewMut, Dyn, MatrixView};

/// A factor of a product: row-major values `[rows, columns]`, or what they are transposed.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    values: &'a [f64],
    rows: usize,
    columns: usize,
    is_transposed: bool,
}

impl<'a> Factor<'a> {
    /// The matrix of these rows, each of `columns` values.
    #[must_use]
    pub fn rows(values: &'a [f64], columns: usize) -> Self {
        Factor { values, rows: values.len() / columns.max(1), columns, is_transposed: false }
    }

    /// Its transpose.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Factor { is_transposed: !self.is_transposed, ..self }
    }

    /// Its transpose as nalgebra has matrices, column after column.
    fn view(&self) -> MatrixView<'a, f64, Dyn, Dyn, Dyn, Dyn> {
        let (row, column) = (Dyn(1), Dyn(self.columns));
        if self.is_transposed {
            MatrixView::from_slice_with_strides_generic(self.values, Dyn(self.rows), Dyn(self.columns), column, row)
        } else {
            MatrixView::from_slice_with_strides_generic(self.values, Dyn(self.columns), Dyn(self.rows), row, column)
        }
    }
}

/// out `[m, n]` += a·b, for a `[m, k]` and b `[k, n]`.
///
/// # Panics
/// If shapes do not fit.
pub fn add_product(out: &mut [f64], a: Factor<'_>, b: Factor<'_>) {
    let (a, b) = (a.view(), b.view());
    let mut out = DMatrixViewMut::from_slice(out, b.nrows(), a.ncols());
    out.gemm(1.0, &b, &a, 1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{normal, tensor_rng};

    #[test]
    fn products_are_sums_of_products() {
        for [m, k, n] in [[1, 1, 1], [2, 3, 4], [9, 17, 6], [33, 8, 40]] {
            let mut rng = tensor_rng(1, "product");
            let mut draw = |len: usize| (0..len).map(|_| normal(&mut rng)).collect::<Vec<f64>>();
            let (a, b, out) = (draw(m * k), draw(k * n), draw(m * n));
            let transposed = |x: &[f64], columns: usize| -> Vec<f64> {
                (0..x.len()).map(|i| x[i % (x.len() / columns) * columns + i / (x.len() / columns)]).collect()
            };
            let (a_t, b_t) = (transposed(&a, k), transposed(&b, n));
            let want: Vec<f64> =
                (0..m * n).map(|i| out[i] + (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum::<f64>()).collect();
            let a = [Factor::rows(&a, k), Factor::rows(&a_t, m).transposed()];
            let b = [Factor::rows(&b, n), Factor::rows(&b_t, k).transposed()];
            for (a, b) in a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b))) {
                let mut got = out.clone();
                add_product(&mut got, a, b);
                assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-12), "{m} {k} {n}");
            }
        }
    }
}
