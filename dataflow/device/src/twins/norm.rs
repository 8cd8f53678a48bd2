//! Layer norm, its derivative and its gradient.

/// Added to the variance.
const EPS: f32 = 1e-6;

/// norm(x)·gamma + beta of every row.
pub(crate) fn norm(x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let width = gamma.len();
    let row = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / width as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
        x.iter().zip(gamma.iter().zip(beta)).map(|(v, (g, b))| (v - mean) * scale * g + b).collect::<Vec<_>>()
    };
    x.chunks_exact(width).flat_map(row).collect()
}

/// The derivative of `norm` along `d` = (dx, dgamma, dbeta), by central differences.
pub(crate) fn tangent(x: &[f64], gamma: &[f64], beta: &[f64], d: [&[f64]; 3]) -> Vec<f64> {
    let h = 1e-5;
    let at = |step: f64| {
        let moved = |v: &[f64], d: &[f64]| v.iter().zip(d).map(|(v, d)| v + step * d).collect::<Vec<_>>();
        norm(&moved(x, d[0]), &moved(gamma, d[1]), &moved(beta, d[2]))
    };
    at(h).iter().zip(at(-h)).map(|(up, down)| (up - down) / (2.0 * h)).collect()
}

/// dx, dgamma and dbeta.
pub(crate) fn grad(x: &[f64], gamma: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
    let width = gamma.len();
    let n = norm(x, &vec![1.0; width], &vec![0.0; width]);
    let (mut dx, mut dgamma, mut dbeta) = (Vec::new(), vec![0.0; width], vec![0.0; width]);
    for ((x, n), dy) in x.chunks_exact(width).zip(n.chunks_exact(width)).zip(dy.chunks_exact(width)) {
        let mean = |v: &dyn Fn(usize) -> f64| (0..width).map(v).sum::<f64>() / width as f64;
        let centre = mean(&|c| x[c]);
        let scale = 1.0 / (mean(&|c| (x[c] - centre).powi(2)) + f64::from(EPS)).sqrt();
        let (mean_g, mean_gn) = (mean(&|c| dy[c] * gamma[c]), mean(&|c| dy[c] * gamma[c] * n[c]));
        dx.extend((0..width).map(|c| scale * (dy[c] * gamma[c] - mean_g - n[c] * mean_gn)));
        for c in 0..width {
            dgamma[c] += dy[c] * n[c];
            dbeta[c] += dy[c];
        }
    }
    [dx, dgamma, dbeta]
}
