//! Products of matrices in f64 for heads that read every patch. They run on the calling thread.

use mlomae_kernels::{WideMat, add_product_wide};

/// A factor of a product: row-major values `[rows, columns]`, or what they are transposed.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a>(WideMat<'a>);

impl<'a> Factor<'a> {
    /// The matrix of these rows, each of `columns` values.
    #[must_use]
    pub const fn rows(data: &'a [f64], columns: usize) -> Self {
        Factor(WideMat { data, columns, trans: false })
    }

    /// Its transpose.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Factor(WideMat { trans: !self.0.trans, ..self.0 })
    }
}

/// out `[m, n]` += a·b, for a `[m, k]` and b `[k, n]`.
///
/// # Panics
/// If shapes do not fit.
pub fn add_product(out: &mut [f64], a: Factor<'_>, b: Factor<'_>) {
    add_product_wide(out, a.0, b.0);
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
