//! Vectorised exp, erf, GELU and sigmoid.
//!
//! The coefficients are minimax polynomials, fitted by weighted least squares with Lawson's iteration in 40
//! digits.

use super::simd::Simd;

/// exp(x) for x <= 0, relative error below 2e-7; 0 below -87.3; NaN stays.
#[inline(always)]
pub(super) fn exp_neg<S: Simd>(s: S, x: S::V) -> S::V {
    const LOWEST: f32 = -87.3;
    let clamped = s.max(s.splat(LOWEST), x);
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first exact in products with |n| < 2^8.
    let r = s.fma(n, s.splat(-355.0 / 512.0), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    // (e^r - 1 - r) / r² on |r| <= ln 2 / 2.
    let p = s.fma(s.splat(1.390_137_4e-3), r, s.splat(8.363_314e-3));
    let p = s.fma(p, r, s.splat(4.166_685_5e-2));
    let p = s.fma(p, r, s.splat(1.666_657_6e-1));
    let p = s.fma(p, r, s.splat(0.5));
    let p = s.fma(s.mul(r, r), p, s.add(r, s.splat(1.0)));
    let y = s.mul(p, s.pow2(n));
    s.select_lt(x, s.splat(LOWEST), s.splat(0.0), y)
}

/// Φ(x) is 0 or 1, to half an ulp of 1, for |x| beyond this.
const LIMIT: f32 = 5.42;

/// Φ(x) - ½ = erf(x/√2) / 2, relative error about 1e-7.
#[inline(always)]
pub(super) fn half_erf<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.min(s.splat(LIMIT), s.max(s.splat(-LIMIT), x));
    let u = s.mul(x, x);
    let p = s.fma(s.splat(2.345_754_3e-8), u, s.splat(6.318_503_6e-6));
    let p = s.fma(p, u, s.splat(1.614_297e-4));
    let p = s.fma(p, u, s.splat(4.633_182_7e-3));
    let p = s.fma(p, u, s.splat(3.311_168e-2));
    let p = s.fma(p, u, s.splat(0.398_942_3));
    let q = s.fma(s.splat(1.215_571_4e-6), u, s.splat(7.135_646e-5));
    let q = s.fma(q, u, s.splat(1.842_807_9e-3));
    let q = s.fma(q, u, s.splat(2.822_508_5e-2));
    let q = s.fma(q, u, s.splat(0.249_665_12));
    let q = s.fma(q, u, s.splat(1.0));
    s.div(s.mul(x, p), q)
}

/// GELU: x·Φ(x). For x far below 0 it is within 2e-7 of 0.
#[inline(always)]
pub(super) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-LIMIT), x);
    s.mul(x, s.add(half_erf(s, x), s.splat(0.5)))
}

/// The derivative of GELU: Φ(x) + x·φ(x).
#[inline(always)]
pub(super) fn gelu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    gelu_with_slope(s, x).1
}

/// [`gelu`] and [`gelu_slope`].
#[inline(always)]
pub(super) fn gelu_with_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let share = s.add(half_erf(s, x), s.splat(0.5));
    let density = s.mul(exp_neg(s, s.mul(s.mul(x, x), s.splat(-0.5))), s.splat(INV_SQRT_2PI));
    (s.mul(s.max(s.splat(-LIMIT), x), share), s.fma(x, density, share))
}

/// The logistic function: 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let e = exp_neg(s, s.min(s.sub(zero, x), x)); // e^-|x|
    let one = s.splat(1.0);
    s.div(s.select_lt(x, zero, e, one), s.add(one, e))
}
