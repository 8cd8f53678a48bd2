//! The GELU, x·Φ(x), and its slope.

/// 1 − Φ(a) for a ≥ 0, by the series of erf or the continued fraction of Mills' ratio.
pub(crate) fn tail(a: f64) -> f64 {
    if a < 2.0 {
        let (x, mut n) = (a * std::f64::consts::FRAC_1_SQRT_2, 0.0);
        let (mut term, mut total) = (x, x);
        while term > 1e-18 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            total += term;
        }
        return 0.5 - 0.5 * total * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI;
    }
    density(a) / (1..200).rev().fold(a, |rest, k| a + f64::from(k) / rest)
}

/// The density of the normal distribution.
pub(crate) fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// Φ(x).
pub(crate) fn share(x: f64) -> f64 {
    if x < 0.0 { tail(-x) } else { 1.0 - tail(x) }
}

/// The derivative of the GELU, x·Φ(x).
pub(crate) fn slope(x: f64) -> f64 {
    share(x) + x * density(x)
}

/// Values over all of −11..11 in an order of their own.
pub(crate) fn spread(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 617 % 2203) as f32 / 100.15 - 11.0).collect()
}
