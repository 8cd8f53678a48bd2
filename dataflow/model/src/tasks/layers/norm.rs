//! Group norm of an image.

use crate::layout::NormWeights;

/// The epsilon of [`group_norm`], PyTorch's default.
const GROUP_EPS: f64 = 1e-5;

/// Values less their mean and divided by their standard deviation, and what the backward pass needs.
#[derive(Clone, Debug)]
pub struct Normed {
    /// x̂ `[pixels, channels]`.
    pub values: Vec<f64>,
    /// 1/σ of each group.
    rstd: Vec<f64>,
}

/// x̂·γ + β for rows x̂ `[rows, dim]`.
#[must_use]
pub fn scale(norm: &NormWeights, c: &[f64], normed: &[f64]) -> Vec<f64> {
    let (gamma, beta) = (&c[norm.gamma.range()], &c[norm.beta.range()]);
    let scaled = |row: &[f64]| -> Vec<f64> {
        row.iter().zip(gamma).zip(beta).map(|((v, gamma), beta)| v * gamma + beta).collect()
    };
    normed.chunks_exact(norm.dim).flat_map(scaled).collect()
}

/// Adds to the gradient of c what follows from the gradient `dy` `[rows, dim]` of [`scale`]'s rows.
pub fn add_scale_gradient(norm: &NormWeights, normed: &[f64], dy: &[f64], dc: &mut [f64]) {
    for (normed, dy) in normed.chunks_exact(norm.dim).zip(dy.chunks_exact(norm.dim)) {
        let products = normed.iter().zip(dy);
        dc[norm.gamma.range()].iter_mut().zip(products).for_each(|(d, (normed, dy))| *d += normed * dy);
        dc[norm.beta.range()].iter_mut().zip(dy).for_each(|(d, dy)| *d += dy);
    }
}

/// Normalises the channels of an image `[pixels, channels]` in `num_groups` groups of neighbours, each over all pixels
/// (arXiv 1803.08494), without gain and bias. Images do not touch each other, as they would in a batch norm.
#[must_use]
pub fn group_norm(x: Vec<f64>, channels: usize, num_groups: usize) -> Normed {
    let (mut values, width) = (x, channels / num_groups);
    let count = (values.len() / num_groups) as f64;
    let mut rstd = Vec::with_capacity(num_groups);
    for group in 0..num_groups {
        let of_group = group * width..(group + 1) * width;
        let mean = values.chunks_exact(channels).flat_map(|row| &row[of_group.clone()]).sum::<f64>() / count;
        let rows = values.chunks_exact(channels);
        let var = rows.flat_map(|row| &row[of_group.clone()]).map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (var + GROUP_EPS).sqrt();
        for row in values.chunks_exact_mut(channels) {
            row[of_group.clone()].iter_mut().for_each(|v| *v = (*v - mean) * scale);
        }
        rstd.push(scale);
    }
    Normed { values, rstd }
}

/// The gradient of [`group_norm`]'s x from that of [`scale`]'s rows, which it takes the place of.
pub fn group_norm_gradient(norm: &NormWeights, c: &[f64], normed: &Normed, dy: &mut [f64]) {
    let (channels, gamma) = (norm.dim, &c[norm.gamma.range()]);
    let width = channels / normed.rstd.len();
    let count = (dy.len() / normed.rstd.len()) as f64;
    for (group, rstd) in normed.rstd.iter().enumerate() {
        let of_group = group * width..(group + 1) * width;
        let (mut sum, mut sum_product) = (0.0, 0.0);
        for (dy, x) in dy.chunks_exact_mut(channels).zip(normed.values.chunks_exact(channels)) {
            for channel in of_group.clone() {
                dy[channel] *= gamma[channel];
                sum += dy[channel];
                sum_product += dy[channel] * x[channel];
            }
        }
        let (mean, mean_product) = (sum / count, sum_product / count);
        for (dy, x) in dy.chunks_exact_mut(channels).zip(normed.values.chunks_exact(channels)) {
            for channel in of_group.clone() {
                dy[channel] = (dy[channel] - mean - x[channel] * mean_product) * rstd;
            }
        }
    }
}
