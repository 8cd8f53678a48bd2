//! Products of row-major matrices: checks, the count of operations, and the choice between AMX, dot products and
//! vector registers.

use super::bf16::{Bf16Unit, Factors};
use super::gemm::gemm;
use super::product::{Act, Finish, Operand, Product};
#[cfg(target_arch = "x86_64")]
use super::{
    amx, dots,
    isa::{Isa, isa},
};
use std::sync::atomic::{AtomicU64, Ordering};

/// op(X): a row-major matrix, or its transpose.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    /// Values, row-major.
    pub data: &'a [f32],
    /// Leading dimension: distance in values from one stored row to the next.
    pub ld: usize,
    /// Whether op(X) is the transpose of the stored matrix.
    pub trans: bool,
}

impl Mat<'_> {
    fn check(&self, rows: usize, cols: usize, what: &str) {
        let (rows, cols) = if self.trans { (cols, rows) } else { (rows, cols) };
        check_stored(self.data.len(), self.ld, rows, cols, what);
    }

    fn operand(&self) -> Operand {
        let (row, col) = if self.trans { (1, self.ld) } else { (self.ld, 1) };
        Operand { ptr: self.data.as_ptr(), row, col }
    }
}

fn check_stored(len: usize, ld: usize, rows: usize, cols: usize, what: &str) {
    assert!(ld >= cols, "matmul {what}: leading dimension {ld} is under the {cols} columns");
    let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * ld + cols };
    assert!(
        len >= needed,
        "matmul {what}: {rows} rows of {cols} with leading dimension {ld} need {needed} values, not {len}"
    );
}

static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Σ 2mnk of all products since the program started, over all threads.
#[must_use]
pub fn flops() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// Counts the operations of a product m × n × k.
pub(super) fn count_flops(m: usize, n: usize, k: usize) {
    FLOPS.fetch_add(2 * (m as u64) * (n as u64) * (k as u64), Ordering::Relaxed);
}

/// c = op(a)·op(b), or c += op(a)·op(b) with `accumulate`: op(a) [m, k], op(b) [k, n], c [m, n] row-major
/// with leading dimension `ldc`. If k is 0, the product is zero.
///
/// # Panics
/// If a leading dimension is shorter than a row, or a slice too short for its matrix.
#[allow(clippy::too_many_arguments)]
pub fn matmul(c: &mut [f32], ldc: usize, a: Mat<'_>, b: Mat<'_>, m: usize, n: usize, k: usize, accumulate: bool) {
    matmul_in(Factors::F32, c, ldc, a, b, m, n, k, accumulate);
}

/// [`matmul`] with factors rounded to `factors` first.
///
/// # Panics
/// As [`matmul`].
#[allow(clippy::too_many_arguments)]
pub fn matmul_in(
    factors: Factors,
    c: &mut [f32],
    ldc: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    m: usize,
    n: usize,
    k: usize,
    accumulate: bool,
) {
    run(factors, c, ldc, a, b, m, n, k, accumulate, Finish::Plain);
}

/// What a product does to its result while that is still in registers or the cache. All matrices [m, n]
/// have the layout of c.
#[derive(Debug)]
pub enum Epilogue<'a> {
    /// c += bias \[n].
    Bias(&'a [f32]),
    /// c = gelu(c + bias).
    BiasGelu(&'a [f32]),
    /// c += bias, kept for the backward pass, and out = gelu(c).
    BiasGeluKeep {
        /// \[n].
        bias: &'a [f32],
        /// [m, n], overwritten.
        out: &'a mut [f32],
    },
    /// c += bias + residual.
    BiasResidual {
        /// \[n].
        bias: &'a [f32],
        /// [m, n].
        residual: &'a [f32],
    },
    /// c *= gelu'(pre), and pre becomes gelu(pre), by element: the backward pass of
    /// [`Epilogue::BiasGeluKeep`] where pre was kept and gelu(pre) was not.
    GeluGrad(&'a mut [f32]),
}

/// c = op(a)·op(b) as [`matmul_in`], then `epilogue`, without another sweep over c.
///
/// # Panics
/// As [`matmul`], and if a bias has not n values or a matrix of the epilogue is too short.
#[allow(clippy::too_many_arguments)]
pub fn matmul_with(
    factors: Factors,
    c: &mut [f32],
    ldc: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    m: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue<'_>,
) {
    let check = |bias: &[f32]| assert!(bias.len() == n, "matmul bias: {} values for {n} columns", bias.len());
    let finish = match epilogue {
        Epilogue::Bias(bias) => {
            check(bias);
            Finish::Bias { bias: bias.as_ptr(), act: Act::None }
        }
        Epilogue::BiasGelu(bias) => {
            check(bias);
            Finish::Bias { bias: bias.as_ptr(), act: Act::Gelu }
        }
        Epilogue::BiasGeluKeep { bias, out } => {
            check(bias);
            check_stored(out.len(), ldc, m, n, "out");
            Finish::Bias { bias: bias.as_ptr(), act: Act::GeluInto(out.as_mut_ptr()) }
        }
        Epilogue::BiasResidual { bias, residual } => {
            check(bias);
            check_stored(residual.len(), ldc, m, n, "residual");
            Finish::Residual { bias: bias.as_ptr(), residual: residual.as_ptr() }
        }
        Epilogue::GeluGrad(pre) => {
            check_stored(pre.len(), ldc, m, n, "pre");
            Finish::GeluGrad { pre: pre.as_mut_ptr() }
        }
    };
    run(factors, c, ldc, a, b, m, n, k, false, finish);
}

#[allow(clippy::too_many_arguments)]
fn run(
    factors: Factors,
    c: &mut [f32],
    ldc: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    m: usize,
    n: usize,
    k: usize,
    accumulate: bool,
    finish: Finish,
) {
    a.check(m, k, "a");
    b.check(k, n, "b");
    check_stored(c.len(), ldc, m, n, "c");
    count_flops(m, n, k);
    let product = Product { c: c.as_mut_ptr(), ldc, a: a.operand(), b: b.operand(), m, n, k, accumulate, finish };
    // SAFETY: the checks above and in matmul_with() made every element lie in its slice; c and the
    // epilogue's output are borrowed mutably.
    unsafe { multiply(factors, &product) }
}

/// Computes `p` on the unit for `factors` of the instruction set [`isa()`](crate::isa()): AMX tiles if it has them and
/// `p` suits them, else vector registers.
///
/// # Safety
/// As [`gemm`].
unsafe fn multiply(factors: Factors, p: &Product) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Amx && amx::suits(p) {
        // SAFETY: isa() returns only instruction sets of this machine; run() checked the matrices.
        return unsafe { amx::gemm(p, factors) };
    }
    match factors {
        // SAFETY: run() checked the matrices.
        Factors::F32 => unsafe { gemm::<false>(p) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: run() checked the matrices, and the instructions are here.
        Factors::Bf16 if Bf16Unit::has_vectors() => unsafe { dots::gemm(p) },
        // SAFETY: run() checked the matrices.
        Factors::Bf16 => unsafe { gemm::<true>(p) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::round as bf16;
    use crate::isa::Isa;
    use crate::testing::{assert_close, each_isa, values};

    /// Each size with each kind of factors.
    fn both<T>(sizes: impl IntoIterator<Item = T> + Clone) -> impl Iterator<Item = (Factors, T)> {
        let each = move |factors| sizes.clone().into_iter().map(move |size| (factors, size));
        [Factors::F32, Factors::Bf16].into_iter().flat_map(each)
    }

    fn rounded(factors: Factors, x: f32) -> f32 {
        if factors == Factors::Bf16 { bf16(x) } else { x }
    }

    #[test]
    fn products_match_their_twin_in_every_form() {
        let sizes = [
            (1, 1, 1),
            (3, 17, 27),
            (65, 65, 65),
            (14, 33, 1),
            (1, 10, 192),
            (130, 100, 70),
            (5, 3, 900),
            (37, 530, 33),
            (200, 64, 400),
            (13, 48, 1100),
        ];
        for (factors, (m, n, k)) in both(sizes) {
            for form in 0..8 {
                let (a_trans, b_trans, accumulate) = (form & 1 > 0, form & 2 > 0, form & 4 > 0);
                let (lda, ldb, ldc) =
                    (if a_trans { m } else { k } + form, if b_trans { k } else { n } + 1, n + form % 3);
                let a = values(if a_trans { k } else { m } * lda, 1);
                let b = values(if b_trans { n } else { k } * ldb, 2);
                let start = values(m * ldc, 3);
                let mut want: Vec<f64> = start.iter().map(|v| f64::from(*v)).collect();
                for i in 0..m {
                    for j in 0..n {
                        let at = |p: usize| {
                            let x = if a_trans { a[p * lda + i] } else { a[i * lda + p] };
                            let y = if b_trans { b[j * ldb + p] } else { b[p * ldb + j] };
                            f64::from(rounded(factors, x)) * f64::from(rounded(factors, y))
                        };
                        let old = if accumulate { want[i * ldc + j] } else { 0.0 };
                        want[i * ldc + j] = old + (0..k).map(at).sum::<f64>();
                    }
                }
                each_isa(|isa| {
                    let mut c = start.clone();
                    let (a, b) = (Mat { data: &a, ld: lda, trans: a_trans }, Mat { data: &b, ld: ldb, trans: b_trans });
                    matmul_in(factors, &mut c, ldc, a, b, m, n, k, accumulate);
                    assert_close(&c, &want, 2e-6, &format!("{factors:?} {m}x{n}x{k} form {form} {isa:?}"));
                    let mut again = start.clone();
                    matmul_in(factors, &mut again, ldc, a, b, m, n, k, accumulate);
                    assert_eq!(c, again, "bits differ between two runs");
                });
            }
        }
    }

    /// Errors of c [m, n] = a [m, k] · b [k, n], each as a share of Σ |a·b|.
    fn errors<'a>(c: &'a [f32], a: &'a [f32], b: &'a [f32], n: usize, k: usize) -> impl Iterator<Item = f64> + 'a {
        c.iter().enumerate().map(move |(at, c)| {
            let terms = (0..k).map(|p| f64::from(a[at / n * k + p]) * f64::from(b[p * n + at % n]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            (f64::from(*c) - sum).abs() / size
        })
    }

    /// Errors relative to Σ |a·b|, which bounds those of `f32` after k roundings whatever the magnitudes.
    #[test]
    fn products_are_as_accurate_as_f32_over_many_orders_of_magnitude() {
        let (m, n, k) = (33, 40, 333);
        let spread = |len: usize, seed: u64| -> Vec<f32> {
            let (fractions, exponents) = (values(len, seed), values(len, seed + 100));
            fractions.iter().zip(exponents).map(|(f, e)| f * (12.0 * e).exp2()).collect()
        };
        let (a, b) = (spread(m * k, 5), spread(k * n, 6));
        each_isa(|isa| {
            let mut c = vec![0.0; m * n];
            let (x, y) = (Mat { data: &a, ld: k, trans: false }, Mat { data: &b, ld: n, trans: false });
            matmul(&mut c, n, x, y, m, n, k, false);
            let mut squares = 0.0;
            for (at, error) in errors(&c, &a, &b, n, k).enumerate() {
                assert!(error < 6e-7, "{isa:?}: element {at} is off by {error:.1e} of the sum's size");
                squares += error * error;
            }
            let error = (squares / (m * n) as f64).sqrt();
            println!("{isa:?}: root mean square of the errors {error:.1e}");
            assert!(error < 1e-7, "{isa:?}: root mean square of the errors {error:.1e}");
        });
    }

    /// The largest error is close to but not above that of two roundings.
    #[test]
    fn rounded_products_are_as_accurate_as_bf16() {
        let (m, n, k) = (61, 70, 333);
        let (a, b) = (values(m * k, 5), values(k * n, 6));
        each_isa(|isa| {
            let mut c = vec![0.0; m * n];
            let (x, y) = (Mat { data: &a, ld: k, trans: false }, Mat { data: &b, ld: n, trans: false });
            matmul_in(Factors::Bf16, &mut c, n, x, y, m, n, k, false);
            let (largest, bound) = (errors(&c, &a, &b, n, k).fold(0.0, f64::max), 1.0 / 128.0);
            assert!(largest < bound && largest > bound / 100.0, "{isa:?}: error {largest:.1e} of {bound:.1e}");
        });
    }

    #[test]
    fn what_is_not_finite_shows_in_its_row_alone() {
        let (m, n, k) = (40, 33, 50);
        let (mut a, b) = (values(m * k, 1), values(k * n, 2));
        (a[7 * k + 3], a[20 * k + 49]) = (f32::NAN, f32::INFINITY);
        for factors in [Factors::F32, Factors::Bf16] {
            each_isa(|isa| {
                let mut c = vec![0.0; m * n];
                let (x, y) = (Mat { data: &a, ld: k, trans: false }, Mat { data: &b, ld: n, trans: false });
                matmul_in(factors, &mut c, n, x, y, m, n, k, false);
                for (i, row) in c.chunks_exact(n).enumerate() {
                    let is_bad = i == 7 || i == 20;
                    assert!(row.iter().all(|v| v.is_finite() != is_bad), "{factors:?} {isa:?}: row {i}");
                }
            });
        }
    }

    #[test]
    fn epilogues_equal_their_sweeps() {
        use crate::elementwise::{add_bias, add_bias_residual, bias_gelu, gelu_grad};
        let sizes = [(1, 1, 1), (13, 33, 5), (25, 65, 17), (30, 100, 1100), (24, 32, 600)];
        for (factors, (m, n, k)) in both(sizes) {
            let (a, w, bias, residual) = (values(m * k, 1), values(n * k, 2), values(n, 3), values(m * n, 4));
            let (a, w) = (Mat { data: &a, ld: k, trans: false }, Mat { data: &w, ld: k, trans: true });
            each_isa(|isa| {
                let mut plain = vec![f32::NAN; m * n];
                matmul_in(factors, &mut plain, n, a, w, m, n, k, false);
                let fused = |epilogue: Epilogue<'_>| {
                    let mut c = vec![f32::NAN; m * n];
                    matmul_with(factors, &mut c, n, a, w, m, n, k, epilogue);
                    c
                };
                let (mut biased, mut summed) = (plain.clone(), plain.clone());
                add_bias(&mut biased, &bias);
                assert_eq!(fused(Epilogue::Bias(&bias)), biased, "{isa:?}");
                add_bias_residual(&mut summed, &bias, &residual);
                assert_eq!(fused(Epilogue::BiasResidual { bias: &bias, residual: &residual }), summed, "{isa:?}");
                let (mut scaled, mut pre, mut gelu) = (plain.clone(), residual.clone(), vec![0.0; m * n]);
                gelu_grad(&mut scaled, &pre);
                bias_gelu(&mut residual.clone(), &mut gelu, &vec![0.0; n]);
                assert_eq!(fused(Epilogue::GeluGrad(&mut pre)), scaled, "{isa:?}");
                assert_eq!(pre, gelu, "{isa:?}");
                let (mut out, mut kept) = (vec![0.0; m * n], vec![f32::NAN; m * n]);
                bias_gelu(&mut plain, &mut out, &bias);
                assert_eq!(fused(Epilogue::BiasGelu(&bias)), out, "{isa:?}");
                assert_eq!(fused(Epilogue::BiasGeluKeep { bias: &bias, out: &mut kept }), biased, "{isa:?}");
                assert_eq!(kept, out, "{isa:?}");
            });
        }
    }

    #[test]
    fn bits_of_a_row_do_not_depend_on_the_others() {
        let (m, n, k) = (61, 70, 700);
        let (x, w) = (values(m * k, 1), values(n * k, 2));
        let check = |factors, isa: Isa| {
            let product = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
                let mut c = vec![0.0; rows.len() * cols.len()];
                let a = Mat { data: &x[rows.start * k..], ld: k, trans: false };
                let b = Mat { data: &w[cols.start * k..], ld: k, trans: true };
                matmul_in(factors, &mut c, cols.len(), a, b, rows.len(), cols.len(), k, false);
                c
            };
            let all = product(0..m, 0..n);
            for (i, j) in [(0, 0), (17, 3), (60, 69), (31, 32)] {
                assert_eq!(product(i..i + 1, j..j + 1)[0], all[i * n + j], "{factors:?} {isa:?}");
            }
        };
        each_isa(|isa| [Factors::F32, Factors::Bf16].into_iter().for_each(|factors| check(factors, isa)));
    }

    #[test]
    fn an_empty_sum_is_zero() {
        let none = Mat { data: &[], ld: 3, trans: false };
        let mut c = [7.0f32; 6];
        matmul(&mut c, 3, Mat { ld: 0, ..none }, none, 2, 3, 0, true);
        assert_eq!(c, [7.0; 6]);
        matmul(&mut c, 3, Mat { ld: 0, ..none }, none, 2, 3, 0, false);
        assert_eq!(c, [0.0; 6]);
    }

    #[test]
    fn work_is_counted() {
        let (before, x) = (flops(), [1.0f32; 6]);
        let (a, b) = (Mat { data: &x, ld: 3, trans: false }, Mat { data: &x, ld: 2, trans: false });
        matmul(&mut [0.0; 4], 2, a, b, 2, 2, 3, false);
        assert!(flops() >= before + 24);
    }

    #[test]
    #[should_panic(expected = "matmul b: 3 rows of 2")]
    fn a_short_operand_panics() {
        let x = [1.0f32; 6];
        let (a, b) = (Mat { data: &x, ld: 3, trans: false }, Mat { data: &x[..5], ld: 2, trans: false });
        matmul(&mut [0.0; 4], 2, a, b, 2, 2, 3, false);
    }
}
