//! Products of matrices in `f64`, for heads that read every patch.
//!
//! It is blocked as [`gemm`](mod@super::gemm) is, in safe Rust that the compiler turns into vectors of each instruction
//! set. Every element is a chain of additions in the order of k, in blocks that depend on k alone: its bits depend neither
//! on m and n nor on its place.

use super::dispatch::dispatch;
use super::simd::Simd;

/// The longest block of k: with it, a panel of B is 32 KiB.
const KC: usize = 256;
/// Rows of A that are multiplied by all panels before the next rows.
const MC: usize = 240;

/// A matrix in `f64`: rows of `columns` values, or what they are transposed.
#[derive(Clone, Copy, Debug)]
pub struct WideMat<'a> {
    /// The values, row-major.
    pub data: &'a [f64],
    /// Values of a row of `data`.
    pub columns: usize,
    /// Whether the matrix is the transpose of `data`.
    pub trans: bool,
}

impl WideMat<'_> {
    #[inline(always)]
    fn at(&self, row: usize, column: usize) -> f64 {
        if self.trans { self.data[column * self.columns + row] } else { self.data[row * self.columns + column] }
    }

    fn shape(&self) -> [usize; 2] {
        let rows = super::lengths::num_rows(self.data.len(), self.columns, "add_product_wide");
        if self.trans { [self.columns, rows] } else { [rows, self.columns] }
    }
}

/// out `[m, n]` += a·b for a `[m, k]` and b `[k, n]`.
///
/// # Panics
/// If shapes do not fit.
pub fn add_product_wide(out: &mut [f64], a: WideMat<'_>, b: WideMat<'_>) {
    let ([m, k], [other_k, n]) = (a.shape(), b.shape());
    assert!(k == other_k && out.len() == m * n, "add_product_wide: [{m}, {k}]·[{other_k}, {n}] is not {}", out.len());
    let shape = [m, n, k];
    dispatch!(blocks(out: &mut [f64], a: WideMat<'_>, b: WideMat<'_>, shape: [usize; 3]));
}

#[inline(always)]
fn blocks<S: Simd>(s: S, out: &mut [f64], a: WideMat<'_>, b: WideMat<'_>, shape: [usize; 3]) {
    if S::WIDE {
        tiled::<S, 8, 16>(s, out, a, b, shape);
    } else {
        tiled::<S, 4, 8>(s, out, a, b, shape);
    }
}

/// The loops over blocks, with register tiles of MR rows and NR columns.
#[inline(always)]
fn tiled<S: Simd, const MR: usize, const NR: usize>(
    s: S,
    out: &mut [f64],
    a: WideMat<'_>,
    b: WideMat<'_>,
    [m, n, k]: [usize; 3],
) {
    let mut rows = vec![[0f64; MR]; KC.min(k) * MC.min(m).div_ceil(MR)];
    let mut panel = vec![[0f64; NR]; KC.min(k)];
    for pc in (0..k).step_by(KC) {
        let kc = KC.min(k - pc);
        for ic in (0..m).step_by(MC) {
            let mc = MC.min(m - ic);
            for (strip, packed) in rows.chunks_exact_mut(kc).take(mc.div_ceil(MR)).enumerate() {
                for (p, values) in packed.iter_mut().enumerate() {
                    for (i, value) in values.iter_mut().enumerate() {
                        let row = strip * MR + i;
                        *value = if row < mc { a.at(ic + row, pc + p) } else { 0.0 };
                    }
                }
            }
            for jc in (0..n).step_by(NR) {
                let nc = NR.min(n - jc);
                for (p, values) in panel[..kc].iter_mut().enumerate() {
                    for (j, value) in values.iter_mut().enumerate() {
                        *value = if j < nc { b.at(pc + p, jc + j) } else { 0.0 };
                    }
                }
                for (strip, packed) in rows.chunks_exact(kc).take(mc.div_ceil(MR)).enumerate() {
                    let tile = tile::<S, MR, NR>(s, packed, &panel[..kc]);
                    for (i, sums) in tile.iter().enumerate().take(mc - strip * MR) {
                        let at = (ic + strip * MR + i) * n + jc;
                        for (out, sum) in out[at..at + nc].iter_mut().zip(sums) {
                            *out += sum;
                        }
                    }
                }
            }
        }
    }
}

/// The products of MR rows with NR columns.
#[inline(always)]
fn tile<S: Simd, const MR: usize, const NR: usize>(_: S, rows: &[[f64; MR]], panel: &[[f64; NR]]) -> [[f64; NR]; MR] {
    let mut sums = [[0f64; NR]; MR];
    for (a, b) in rows.iter().zip(panel) {
        for i in 0..MR {
            for j in 0..NR {
                sums[i][j] = if S::FUSED { a[i].mul_add(b[j], sums[i][j]) } else { sums[i][j] + a[i] * b[j] };
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{each_isa, values, wide};

    const SHAPES: [[usize; 3]; 7] =
        [[1, 1, 1], [2, 3, 4], [8, 16, 256], [9, 17, 257], [33, 40, 7], [250, 5, 3], [3, 130, 600]];

    fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
        let rows = x.len() / columns;
        (0..columns).flat_map(|column| (0..rows).map(move |row| x[row * columns + column])).collect()
    }

    #[test]
    fn products_are_sums_of_products() {
        for [m, n, k] in SHAPES {
            let (a, b, out) = (wide(&values(m * k, 1)), wide(&values(k * n, 2)), wide(&values(m * n, 3)));
            let sum = |i: usize| (0..k).map(|p| a[i / n * k + p] * b[p * n + i % n]).sum::<f64>();
            let want: Vec<f64> = (0..m * n).map(|i| out[i] + sum(i)).collect();
            let (a_t, b_t) = (transposed(&a, k), transposed(&b, n));
            each_isa(|isa| {
                let mut first: Option<Vec<f64>> = None;
                for (a_trans, b_trans) in [(false, false), (false, true), (true, false), (true, true)] {
                    let mat = |data, columns, trans| WideMat { data, columns, trans };
                    let a = if a_trans { mat(&a_t[..], m, true) } else { mat(&a[..], k, false) };
                    let b = if b_trans { mat(&b_t[..], k, true) } else { mat(&b[..], n, false) };
                    let mut got = out.clone();
                    add_product_wide(&mut got, a, b);
                    let close = |(got, want): (&f64, &f64)| (got - want).abs() < 1e-12 * (1.0 + want.abs());
                    assert!(got.iter().zip(&want).all(close), "{isa:?} {m} {n} {k} {a_trans} {b_trans}");
                    assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{isa:?}: the same bits");
                }
            });
        }
    }

    #[test]
    fn an_element_does_not_depend_on_its_neighbours() {
        let [m, n, k] = [21, 37, 300];
        let (a, b) = (wide(&values(m * k, 1)), wide(&values(k * n, 2)));
        each_isa(|isa| {
            let (mut all, b) = (vec![0.0; m * n], WideMat { data: &b, columns: n, trans: false });
            add_product_wide(&mut all, WideMat { data: &a, columns: k, trans: false }, b);
            for row in 0..m {
                let mut one = vec![0.0; n];
                add_product_wide(&mut one, WideMat { data: &a[row * k..(row + 1) * k], columns: k, trans: false }, b);
                assert_eq!(one, all[row * n..(row + 1) * n], "{isa:?} {row}");
            }
        });
    }

    #[test]
    #[should_panic(expected = "add_product_wide: [2, 3]·[2, 4] is not 8")]
    fn shapes_must_fit() {
        let (a, b) = ([0.0; 6], [0.0; 8]);
        let (a, b) = (WideMat { data: &a, columns: 3, trans: false }, WideMat { data: &b, columns: 4, trans: false });
        add_product_wide(&mut [0.0; 8], a, b);
    }
}
