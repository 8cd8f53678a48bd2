//! What a learned masking's scores weigh: the loss of each masked patch, and the derivative for the scores.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::engine::TokenOrder;
use crate::parallel::arena::Buffer;

/// How scores p weigh the losses ℓ of masked patches (m = 1) in L_m.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MaskWeights {
    /// L_m = Σ pᵢ mᵢ ℓᵢ / Σ mᵢ over the batch, as published: all scores may fall together, and then the loss with them.
    #[default]
    Published,
    /// L_m = mean over images of Σ aᵢ ℓᵢ with aᵢ = pᵢ mᵢ / Σⱼ pⱼ mⱼ: only differences within an image count, and the
    /// gradient for p sees a patch's loss less the image's weighted mean.
    Normalised,
    /// L_m = Σ mᵢ ℓᵢ / Σ mᵢ: scores choose patches and weigh nothing. They still have a gradient: that of the logit,
    /// as if a score were the share of draws in which its patch is masked (straight-through).
    None,
}

/// The weight of each patch's loss beside its mask, of a batch.
#[derive(Clone, Debug, Default)]
pub enum LossWeights {
    /// 1 for all.
    #[default]
    One,
    /// The scores.
    Scores,
    /// These, `[batch, L]`; 1 in the mean of an image's masked patches, or of the batch's.
    Given(Arc<Buffer>),
}

/// The weights `[batch, L]` with 0 for visible patches.
#[must_use]
pub fn masked_of(weights: &[f32], order: &TokenOrder) -> Vec<f32> {
    let of = |(i, &weight): (usize, &f32)| if order.is_masked(i) { weight } else { 0.0 };
    weights.iter().enumerate().map(of).collect()
}

impl LossWeights {
    /// `weights` `[batch, L]` scaled so that those of masked patches are 1 in the mean, 0 if they all are. `all` are the
    /// [`masked_of`] of the images of all ranks, of which each has as many.
    #[must_use]
    pub fn mean(weights: &[f32], order: &TokenOrder, all: &[f32]) -> LossWeights {
        let sum: f64 = all.iter().map(|&weight| f64::from(weight)).sum();
        let num_masked = all.len() / order.num_patches * order.num_masked();
        let factor = if sum > 0.0 { num_masked as f64 / sum } else { 0.0 };
        let scaled = masked_of(weights, order).into_iter().map(|weight| (f64::from(weight) * factor) as f32);
        LossWeights::Given(Arc::new(Buffer::from_vec(scaled.collect())))
    }
}

/// A floor for p(1 − p), by which a gradient of the logit is divided to become one of p.
const MIN_SLOPE: f32 = 1e-6;

impl MaskWeights {
    /// The weights of patches with these scores `[batch, L]`.
    #[must_use]
    pub fn of_scores(self, scores: &[f32], order: &TokenOrder) -> LossWeights {
        match self {
            MaskWeights::Published => LossWeights::Scores,
            MaskWeights::None => LossWeights::One,
            MaskWeights::Normalised => {
                let (num_patches, num_masked) = (order.num_patches, order.num_masked() as f64);
                let mut weights = vec![0.0; scores.len()];
                for (image, weights) in weights.chunks_exact_mut(num_patches).enumerate() {
                    let first = image * num_patches;
                    let masked = (first..first + num_patches).filter(|&i| order.is_masked(i));
                    let sum: f64 = masked.clone().map(|i| f64::from(scores[i])).sum();
                    for i in masked {
                        // Where all scores have underflowed they are equal, and so are the weights.
                        let weight = if sum > 0.0 { f64::from(scores[i]) * num_masked / sum } else { 1.0 };
                        weights[i - first] = weight as f32;
                    }
                }
                LossWeights::Given(Arc::new(Buffer::from_vec(weights)))
            }
        }
    }

    /// `scale`·∂L_m/∂p `[batch, L]` at scores p, where the patch losses are `values` (or, as L_m is linear in them,
    /// their derivatives along a direction). `num_masked` is Σ m over the images of all ranks.
    #[must_use]
    pub fn cotangent(
        self,
        values: &[f32],
        scores: &[f32],
        order: &TokenOrder,
        num_masked: usize,
        scale: f64,
    ) -> Vec<f32> {
        let (num_patches, factor) = (order.num_patches, scale / num_masked as f64);
        let mut out = vec![0.0; values.len()];
        for (image, out) in out.chunks_exact_mut(num_patches).enumerate() {
            let first = image * num_patches;
            let masked = (first..first + num_patches).filter(|&i| order.is_masked(i));
            let value = |i: usize| f64::from(values[i]);
            let p = |i: usize| f64::from(scores[i]);
            match self {
                MaskWeights::Published => masked.for_each(|i| out[i - first] = (value(i) * factor) as f32),
                MaskWeights::Normalised => {
                    let sum: f64 = masked.clone().map(p).sum();
                    if sum > 0.0 {
                        let mean = masked.clone().map(|i| p(i) * value(i)).sum::<f64>() / sum;
                        let factor = factor * order.num_masked() as f64 / sum;
                        masked.for_each(|i| out[i - first] = ((value(i) - mean) * factor) as f32);
                    }
                }
                MaskWeights::None => {
                    let mean = masked.clone().map(value).sum::<f64>() / order.num_masked() as f64;
                    masked.for_each(|i| {
                        out[i - first] = of_logit(((value(i) - mean) * factor) as f32, scores[i]);
                    });
                }
            }
        }
        out
    }
}

/// A gradient of the logit as one of the score p = σ(logit).
#[must_use]
pub fn of_logit(gradient: f32, p: f32) -> f32 {
    gradient / (p * (1.0 - p)).max(MIN_SLOPE)
}

/// (Σ p m)² / (n Σ p² m) over an image's n masked patches, mean of the images: 1 if all weigh the same, 1/n if one
/// has all of the weight.
#[must_use]
pub fn effective_share(weights: &[f32], order: &TokenOrder) -> f64 {
    let num_images = order.batch();
    let of_image = |image: usize| {
        let first = image * order.num_patches;
        let masked = (first..first + order.num_patches).filter(|&i| order.is_masked(i)).map(|i| f64::from(weights[i]));
        let (sum, squares) = masked.fold((0.0, 0.0), |(sum, squares), w| (sum + w, squares + w * w));
        if squares > 0.0 { sum * sum / (squares * order.num_masked() as f64) } else { 1.0 }
    };
    (0..num_images).map(of_image).sum::<f64>() / num_images.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{symmetric, tensor_rng};
    use crate::masking::order::order_by_keys;

    /// L_m in f64 as its formula has it, at logits s.
    fn loss(weights: MaskWeights, s: &[f64], losses: &[f64], order: &TokenOrder) -> f64 {
        let p = |i: usize| 1.0 / (1.0 + (-s[i]).exp());
        let m = |i: usize| f64::from(u8::from(order.is_masked(i)));
        let n = order.num_patches;
        match weights {
            MaskWeights::Published => {
                let sum: f64 = (0..s.len()).map(|i| p(i) * m(i) * losses[i]).sum();
                sum / (0..s.len()).map(m).sum::<f64>()
            }
            MaskWeights::Normalised => {
                let of_image = |image: usize| {
                    let all = image * n..(image + 1) * n;
                    let sum: f64 = all.clone().map(|i| p(i) * m(i)).sum();
                    all.map(|i| p(i) * m(i) / sum * losses[i]).sum::<f64>()
                };
                (0..s.len() / n).map(of_image).sum::<f64>() / (s.len() / n) as f64
            }
            MaskWeights::None => unreachable!("has no derivative of its own"),
        }
    }

    #[test]
    fn weights_and_their_derivative_are_those_of_the_formula() {
        let (n, batch) = (7, 3);
        let draw = |name: &str, bound| {
            let mut values = vec![0.0; n * batch];
            symmetric(&mut values, bound, &mut tensor_rng(3, name));
            values
        };
        let (s, losses, keys) = (draw("s", 2.0), draw("losses", 1.0), draw("keys", 1.0));
        let order = order_by_keys(&keys, n, 2);
        let scores: Vec<f32> = s.iter().map(|&s| 1.0 / (1.0 + (-s).exp())).collect();
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let num_masked = batch * order.num_masked();
        for weights in [MaskWeights::Published, MaskWeights::Normalised] {
            let cotangent = weights.cotangent(&losses, &scores, &order, num_masked, -2.0);
            for i in 0..s.len() {
                let at = |step: f64| {
                    let mut s = wide(&s);
                    s[i] += step;
                    loss(weights, &s, &wide(&losses), &order)
                };
                let expected = -2.0 * (at(1e-4) - at(-1e-4)) / 2e-4;
                let got = f64::from(cotangent[i] * scores[i] * (1.0 - scores[i]));
                assert!((got - expected).abs() < 1e-7, "{weights:?} {i}: {got} {expected}");
            }
            let given = match weights.of_scores(&scores, &order) {
                LossWeights::One => vec![1.0; scores.len()],
                LossWeights::Scores => scores.clone(),
                LossWeights::Given(given) => given.to_vec(),
            };
            let masked = (0..s.len()).filter(|&i| order.is_masked(i));
            let sum: f64 = masked.map(|i| f64::from(given[i]) * f64::from(losses[i])).sum();
            let expected = loss(weights, &wide(&s), &wide(&losses), &order);
            assert!((sum / num_masked as f64 - expected).abs() < 1e-6, "{weights:?}");
        }
    }

    #[test]
    fn without_weights_the_logit_has_a_centred_gradient() {
        let order = order_by_keys(&[0.0, 1.0, 2.0, 3.0], 4, 2);
        let scores = [0.5, 0.5, 0.9, 0.2];
        let got = MaskWeights::None.cotangent(&[9.0, 9.0, 3.0, 1.0], &scores, &order, 2, 1.0);
        assert_eq!((got[0], got[1]), (0.0, 0.0));
        let of_logits = [got[2] * 0.9 * (1.0 - 0.9), got[3] * 0.2 * (1.0 - 0.2)];
        assert!((of_logits[0] - 0.5).abs() < 1e-6 && (of_logits[1] + 0.5).abs() < 1e-6, "{of_logits:?}");
        let saturated = MaskWeights::None.cotangent(&[0.0, 0.0, 3.0, 1.0], &[0.5, 0.5, 1.0, 0.0], &order, 2, 1.0);
        assert!(saturated.iter().all(|value| value.is_finite()), "{saturated:?}");
    }

    #[test]
    fn the_effective_share_is_one_for_equal_weights_and_small_for_one_patch() {
        let order = order_by_keys(&[0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0, 3.0, 4.0], 5, 1);
        assert_eq!(effective_share(&[0.3; 10], &order), 1.0);
        let one = [9.0, 0.0, 0.0, 1.0, 0.0];
        let equal = [0.0, 0.5, 0.5, 0.5, 0.5];
        assert_eq!(effective_share(&[one, equal].concat(), &order), (0.25 + 1.0) / 2.0);
    }
}
