//! Elementwise sweeps: biases, activation functions and their gradients, scaled sums.

use super::dispatch::dispatch;
use super::lengths::{num_rows, same_len};
use super::math;
use super::simd::{Simd, sweep};

/// By element, in place: `$out[i] = $body`, where `$old` is the old `$out[i]` and each `$v` is `$src[i]`.
macro_rules! map {
    ($s:ident, $out:expr, $old:ident, [$($v:ident = $src:expr),*], $body:expr) => {{
        let out: &mut [f32] = $out;
        $(assert!($src.len() == out.len());)*
        sweep!(S, out.len(), |i, w| {
            // SAFETY: i + w <= out.len() by sweep!, the length of every source.
            unsafe {
                let at = out.as_mut_ptr().add(i);
                let $old = $s.load_n(at, w);
                $(let $v = $s.load_n($src.as_ptr().add(i), w);)*
                $s.store_n(at, w, $body);
            }
        });
    }};
}

/// y += bias on every row; y [rows, n], bias \[n].
///
/// # Panics
/// If y is not whole rows.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    num_rows(y.len(), bias.len(), "add_bias");
    dispatch!(add_bias_on(y: &mut [f32], bias: &[f32]))
}
#[inline(always)]
fn add_bias_on<S: Simd>(s: S, y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        map!(s, row, y, [b = bias], s.add(y, b));
    }
}

/// y += bias + residual; y and residual [rows, n], bias \[n].
///
/// # Panics
/// If y is not whole rows, or residual not as long.
pub fn add_bias_residual(y: &mut [f32], bias: &[f32], residual: &[f32]) {
    num_rows(y.len(), bias.len(), "add_bias_residual");
    same_len(y.len(), residual.len(), "add_bias_residual");
    dispatch!(add_bias_residual_on(y: &mut [f32], bias: &[f32], residual: &[f32]))
}
#[inline(always)]
fn add_bias_residual_on<S: Simd>(s: S, y: &mut [f32], bias: &[f32], residual: &[f32]) {
    for (row, residual) in y.chunks_exact_mut(bias.len()).zip(residual.chunks_exact(bias.len())) {
        map!(s, row, y, [b = bias, r = residual], s.add(s.add(y, b), r));
    }
}

/// pre += bias; out = gelu(pre), the exact form with erf; pre and out [rows, n], bias \[n].
///
/// # Panics
/// If pre is not whole rows, or out not as long.
pub fn bias_gelu(pre: &mut [f32], out: &mut [f32], bias: &[f32]) {
    num_rows(pre.len(), bias.len(), "bias_gelu");
    same_len(pre.len(), out.len(), "bias_gelu");
    dispatch!(bias_gelu_on(pre: &mut [f32], out: &mut [f32], bias: &[f32]))
}
#[inline(always)]
fn bias_gelu_on<S: Simd>(s: S, pre: &mut [f32], out: &mut [f32], bias: &[f32]) {
    let n = bias.len();
    for (pre, out) in pre.chunks_exact_mut(n).zip(out.chunks_exact_mut(n)) {
        sweep!(S, n, |i, w| {
            // SAFETY: i + w <= n by sweep!, the length of both rows and of bias.
            unsafe {
                let x = s.add(s.load_n(pre.as_ptr().add(i), w), s.load_n(bias.as_ptr().add(i), w));
                s.store_n(pre.as_mut_ptr().add(i), w, x);
                s.store_n(out.as_mut_ptr().add(i), w, math::gelu(s, x));
            }
        });
    }
}

/// dy *= gelu'(pre), by element.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_grad(dy: &mut [f32], pre: &[f32]) {
    same_len(dy.len(), pre.len(), "gelu_grad");
    dispatch!(gelu_grad_on(dy: &mut [f32], pre: &[f32]))
}
#[inline(always)]
fn gelu_grad_on<S: Simd>(s: S, dy: &mut [f32], pre: &[f32]) {
    map!(s, dy, d, [x = pre], s.mul(d, math::gelu_slope(s, x)));
}

/// y = max(y + bias, 0) on every row; y [rows, n], bias \[n].
///
/// # Panics
/// If y is not whole rows.
pub fn bias_relu(y: &mut [f32], bias: &[f32]) {
    num_rows(y.len(), bias.len(), "bias_relu");
    dispatch!(bias_relu_on(y: &mut [f32], bias: &[f32]))
}
#[inline(always)]
fn bias_relu_on<S: Simd>(s: S, y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        map!(s, row, y, [b = bias], s.max(s.splat(0.0), s.add(y, b)));
    }
}

/// dy = 0 where y, the output of [`bias_relu`], is not positive.
///
/// # Panics
/// If the lengths differ.
pub fn relu_grad(dy: &mut [f32], y: &[f32]) {
    same_len(dy.len(), y.len(), "relu_grad");
    dispatch!(relu_grad_on(dy: &mut [f32], y: &[f32]))
}
#[inline(always)]
fn relu_grad_on<S: Simd>(s: S, dy: &mut [f32], y: &[f32]) {
    let zero = s.splat(0.0);
    map!(s, dy, d, [y = y], s.select_lt(zero, y, d, zero));
}

/// y = sigmoid(y + bias) on every row; y [rows, n], bias \[n].
///
/// # Panics
/// If y is not whole rows.
pub fn bias_sigmoid(y: &mut [f32], bias: &[f32]) {
    num_rows(y.len(), bias.len(), "bias_sigmoid");
    dispatch!(bias_sigmoid_on(y: &mut [f32], bias: &[f32]))
}
#[inline(always)]
fn bias_sigmoid_on<S: Simd>(s: S, y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        map!(s, row, y, [b = bias], math::sigmoid(s, s.add(y, b)));
    }
}

/// dy *= y (1 - y), where y is the output of [`bias_sigmoid`].
///
/// # Panics
/// If the lengths differ.
pub fn sigmoid_grad(dy: &mut [f32], y: &[f32]) {
    same_len(dy.len(), y.len(), "sigmoid_grad");
    dispatch!(sigmoid_grad_on(dy: &mut [f32], y: &[f32]))
}
#[inline(always)]
fn sigmoid_grad_on<S: Simd>(s: S, dy: &mut [f32], y: &[f32]) {
    map!(s, dy, d, [y = y], s.mul(d, s.mul(y, s.sub(s.splat(1.0), y))));
}

/// y += alpha x.
///
/// # Panics
/// If the lengths differ.
pub fn axpy(y: &mut [f32], alpha: f32, x: &[f32]) {
    same_len(y.len(), x.len(), "axpy");
    dispatch!(axpy_on(y: &mut [f32], alpha: f32, x: &[f32]))
}
#[inline(always)]
fn axpy_on<S: Simd>(s: S, y: &mut [f32], alpha: f32, x: &[f32]) {
    map!(s, y, y, [x = x], s.fma(s.splat(alpha), x, y));
}

/// y += x.
///
/// # Panics
/// If the lengths differ.
pub fn add(y: &mut [f32], x: &[f32]) {
    same_len(y.len(), x.len(), "add");
    dispatch!(add_on(y: &mut [f32], x: &[f32]))
}
#[inline(always)]
fn add_on<S: Simd>(s: S, y: &mut [f32], x: &[f32]) {
    map!(s, y, y, [x = x], s.add(y, x));
}

/// out = x + alpha v.
///
/// # Panics
/// If the lengths differ.
pub fn scale_add(out: &mut [f32], x: &[f32], alpha: f32, v: &[f32]) {
    same_len(out.len(), x.len(), "scale_add");
    same_len(out.len(), v.len(), "scale_add");
    dispatch!(scale_add_on(out: &mut [f32], x: &[f32], alpha: f32, v: &[f32]))
}
#[inline(always)]
fn scale_add_on<S: Simd>(s: S, out: &mut [f32], x: &[f32], alpha: f32, v: &[f32]) {
    map!(s, out, _old, [x = x, v = v], s.fma(s.splat(alpha), v, x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, each_isa, erf, values, wide};

    const SIZES: [(usize, usize); 7] = [(1, 1), (3, 3), (5, 17), (2, 27), (7, 65), (3, 48), (1, 192)];

    fn phi(x: f64) -> f64 {
        0.5 * (1.0 + erf(x / 2f64.sqrt()))
    }

    /// Compares a kernel on y [rows, n], bias [n] and x [rows, n] with its twin by element, for all sizes
    /// and instruction sets.
    fn check(
        kernel: impl Fn(&mut [f32], &[f32], &[f32]),
        twin: impl Fn(f64, f64, f64) -> f64,
        tolerance: f64,
        what: &str,
    ) {
        for (rows, n) in SIZES {
            let (y, bias, x) = (values(rows * n, 1), values(n, 2), values(rows * n, 3));
            let want: Vec<f64> = (0..rows * n).map(|i| twin(y[i].into(), bias[i % n].into(), x[i].into())).collect();
            each_isa(|isa| {
                let mut got = y.clone();
                kernel(&mut got, &bias, &x);
                assert_close(&got, &want, tolerance, &format!("{what} {rows}x{n} {isa:?}"));
                let mut again = y.clone();
                kernel(&mut again, &bias, &x);
                assert_eq!(got, again, "{what}: bits differ between two runs");
                if n > 1 {
                    let mut one_row = y[..n].to_vec();
                    kernel(&mut one_row, &bias, &x[..n]);
                    assert_eq!(one_row, got[..n], "{what}: a row depends on the number of rows");
                }
            });
        }
    }

    #[test]
    fn sweeps_match_their_twins() {
        check(|y, b, _| add_bias(y, b), |y, b, _| y + b, 1e-7, "add_bias");
        check(add_bias_residual, |y, b, x| y + b + x, 2e-7, "add_bias_residual");
        check(|y, b, _| bias_relu(y, b), |y, b, _| (y + b).max(0.0), 1e-7, "bias_relu");
        check(|y, _, x| relu_grad(y, x), |y, _, x| if x > 0.0 { y } else { 0.0 }, 0.0, "relu_grad");
        check(|y, b, _| bias_sigmoid(y, b), |y, b, _| 1.0 / (1.0 + (-y - b).exp()), 3e-7, "bias_sigmoid");
        check(|y, _, x| sigmoid_grad(y, x), |y, _, x| y * x * (1.0 - x), 3e-7, "sigmoid_grad");
        check(|y, _, x| axpy(y, -0.3, x), |y, _, x| y - f64::from(0.3f32) * x, 2e-7, "axpy");
        check(|y, _, x| add(y, x), |y, _, x| y + x, 1e-7, "add");
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        check(|y, _, x| gelu_grad(y, x), |y, _, x| y * (phi(x) + x * density(x)), 4e-7, "gelu_grad");
        let gelu = |pre: &mut [f32], bias: &[f32], _: &[f32]| {
            let mut out = vec![f32::NAN; pre.len()];
            bias_gelu(pre, &mut out, bias);
            pre.copy_from_slice(&out);
        };
        check(gelu, |y, b, _| (y + b) * phi(y + b), 3e-7, "bias_gelu");
        let scaled = |y: &mut [f32], _: &[f32], x: &[f32]| {
            let old = y.to_vec();
            y.fill(f32::NAN);
            scale_add(y, &old, 0.7, x);
        };
        check(scaled, |y, _, x| y + f64::from(0.7f32) * x, 2e-7, "scale_add");
    }

    #[test]
    fn activations_are_accurate_over_the_whole_range() {
        let x: Vec<f32> = (-200_000..=200_000).map(|i| i as f32 * 5e-4).collect();
        each_isa(|isa| {
            let (mut pre, mut out) = (x.clone(), vec![0.0; x.len()]);
            let zero = vec![0.0; x.len()];
            bias_gelu(&mut pre, &mut out, &zero);
            let (mut slope, mut sigmoid) = (vec![1.0; x.len()], x.clone());
            gelu_grad(&mut slope, &x);
            bias_sigmoid(&mut sigmoid, &zero);
            for (i, &x) in wide(&x).iter().enumerate() {
                let gelu_error = (f64::from(out[i]) - x * phi(x)).abs() / x.abs().clamp(1e-3, 5.0).max(x);
                assert!(gelu_error < 2.5e-7, "{isa:?}: gelu({x}) error {gelu_error:e}");
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                let slope_error = (f64::from(slope[i]) - phi(x) - x * density).abs();
                assert!(slope_error < 3e-7, "{isa:?}: gelu'({x}) error {slope_error:e}");
                let want = 1.0 / (1.0 + (-x).exp());
                let error = (f64::from(sigmoid[i]) - want).abs() / want;
                assert!(error < 4e-7 || want < 1e-37, "{isa:?}: sigmoid({x}) error {error:e}");
            }
        });
    }

    #[test]
    fn not_a_number_passes_through() {
        each_isa(|isa| {
            for n in [1, 16, 19] {
                let (mut pre, mut out) = (vec![f32::NAN; n], vec![0.0; n]);
                bias_gelu(&mut pre, &mut out, &vec![0.0; n]);
                assert!(out.iter().all(|v| v.is_nan()), "gelu {isa:?}");
                bias_sigmoid(&mut pre, &vec![0.0; n]);
                assert!(pre.iter().all(|v| v.is_nan()), "sigmoid {isa:?}");
                bias_relu(&mut pre, &vec![0.0; n]);
                assert!(pre.iter().all(|v| v.is_nan()), "relu {isa:?}");
            }
        });
    }

    #[test]
    #[should_panic(expected = "are no rows of")]
    fn a_bias_that_does_not_fit_panics() {
        add_bias(&mut [0.0; 7], &[0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "lengths differ")]
    fn unequal_lengths_panic() {
        axpy(&mut [0.0; 7], 1.0, &[0.0; 8]);
    }
}
