//! What the tests of all kernels share.

use super::isa::{Isa, with_isa};

/// Deterministic values around ±1 (xorshift, sum of four uniforms).
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| 2.0 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// `x` in `f64`.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Runs `f` once for each instruction set of this machine, on this thread.
pub(crate) fn each_isa(mut f: impl FnMut(Isa)) {
    for isa in Isa::ALL {
        with_isa(isa, || f(isa));
    }
}

/// Asserts |got - want| <= tolerance · max(1, largest |want|) for every element.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs() / size;
        assert!(error <= tolerance, "{what}: element {i} is {g}, not {w} (error {error:.2e})");
    }
}

/// erf by its all-positive series: 2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut total, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * total.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        total += term;
    }
    total * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

/// Central differences of `loss` at `x` in every coordinate.
pub(crate) fn central_differences(x: &[f64], mut loss: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let (mut x, h) = (x.to_vec(), 1e-5);
    (0..x.len())
        .map(|i| {
            let kept = x[i];
            x[i] = kept + h;
            let up = loss(&x);
            x[i] = kept - h;
            let down = loss(&x);
            x[i] = kept;
            (up - down) / (2.0 * h)
        })
        .collect()
}

/// Σ a·b.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
