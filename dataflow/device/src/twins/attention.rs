//! Attention, its gradient and its derivative.

use crate::ops::AttentionShape;

/// Results of one head shape in f64.
pub(crate) struct Twin {
    pub(crate) y: Vec<f64>,
    pub(crate) lse: Vec<f64>,
    pub(crate) dqkv: Vec<f64>,
    pub(crate) tangent: Vec<f64>,
}

/// The formulas, with dy as the gradient of y and `along` as the direction of the tangent.
pub(crate) fn twin(shape: &AttentionShape, qkv: &[f64], dy: &[f64], along: &[f64]) -> Twin {
    let AttentionShape { batch, tokens, heads, head_dim, queries } = *shape;
    let (width, scale) = (heads * head_dim, 1.0 / (head_dim as f64).sqrt());
    let mut twin = Twin {
        y: vec![0.0; batch * queries * width],
        lse: vec![0.0; batch * heads * queries],
        dqkv: vec![0.0; qkv.len()],
        tangent: vec![0.0; batch * queries * width],
    };
    for (image, head) in (0..batch).flat_map(|image| (0..heads).map(move |head| (image, head))) {
        let row = |token: usize, part: usize| {
            let start = ((image * tokens + token) * 3 + part) * width + head * head_dim;
            start..start + head_dim
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for query in 0..queries {
            let (q, dq) = (&qkv[row(query, 0)], &along[row(query, 0)]);
            let scores: Vec<f64> = (0..tokens).map(|key| scale * dot(q, &qkv[row(key, 1)])).collect();
            let slope = |key: usize| scale * (dot(dq, &qkv[row(key, 1)]) + dot(q, &along[row(key, 1)]));
            let slopes: Vec<f64> = (0..tokens).map(slope).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - top).exp()).sum();
            let probs: Vec<f64> = scores.iter().map(|score| (score - top).exp() / sum).collect();
            let mean = dot(&probs, &slopes);
            twin.lse[(image * heads + head) * queries + query] = top + sum.ln();
            let start = (image * queries + query) * width + head * head_dim;
            let out = start..start + head_dim;
            for (key, p) in probs.iter().enumerate() {
                for (d, place) in out.clone().enumerate() {
                    let value = qkv[row(key, 2)][d];
                    twin.y[place] += p * value;
                    twin.tangent[place] += p * (slopes[key] - mean) * value + p * along[row(key, 2)][d];
                }
            }
            let dy = &dy[out.clone()];
            let delta = dot(dy, &twin.y[out]);
            for (key, p) in probs.iter().enumerate() {
                let dscore = scale * p * (dot(dy, &qkv[row(key, 2)]) - delta);
                for d in 0..head_dim {
                    twin.dqkv[row(query, 0)][d] += dscore * qkv[row(key, 1)][d];
                    twin.dqkv[row(key, 1)][d] += dscore * qkv[row(query, 0)][d];
                    twin.dqkv[row(key, 2)][d] += p * dy[d];
                }
            }
        }
    }
    twin
}

/// The error's root mean square over that of what is wanted.
pub(crate) fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |sum: f64, v: f64| sum + v * v;
    let distance = got.iter().zip(want).map(|(got, want)| f64::from(*got) - want).fold(0.0, square);
    (distance / want.iter().copied().fold(1e-30, square)).sqrt()
}
