//! Functions of single values, with their derivatives.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// The standard normal distribution function Φ.
fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}

/// x·Φ(x), the exact form of GELU (arXiv 1606.08415).
#[must_use]
pub fn gelu(x: f64) -> f64 {
    x * normal_cdf(x)
}

/// The derivative of [`gelu`].
#[must_use]
pub fn gelu_derivative(x: f64) -> f64 {
    normal_cdf(x) + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// 1/(1 + e⁻ˣ).
#[must_use]
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// ln(1 + eˣ), whose derivative is [`sigmoid`]; also −ln(1 − sigmoid(x)).
#[must_use]
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_of_differences() {
        for i in -80..=80 {
            let x = f64::from(i) * 0.1 + 0.013;
            // Fourth order in the step.
            let slope = |f: fn(f64) -> f64| {
                let (h, d) = (1e-3, |h: f64| (f(x + h) - f(x - h)) / (2.0 * h));
                (4.0 * d(h) - d(2.0 * h)) / 3.0
            };
            assert!((slope(gelu) - gelu_derivative(x)).abs() < 1e-11, "gelu at {x}");
            assert!((slope(softplus) - sigmoid(x)).abs() < 1e-11, "softplus at {x}");
        }
    }

    #[test]
    fn far_values_are_finite_and_exact() {
        assert_eq!((gelu(40.0), gelu_derivative(40.0)), (40.0, 1.0));
        assert_eq!((softplus(800.0), softplus(-800.0)), (800.0, 0.0));
        assert_eq!((sigmoid(800.0), sigmoid(-800.0)), (1.0, 0.0));
        // −6·Φ(−6) by Python's math.erfc; as 1 + erf, Φ would have half its digits.
        assert!((gelu(-6.0) / -5.919_525_870_226_207e-9 - 1.0).abs() < 1e-13);
    }
}
