//! How hard patches are to reconstruct, as a decoder of its own learns to rank it (Hard Patches Mining, HPM, arXiv
//! 2304.05919, §3.2).
//!
//! A second decoder beside that of reconstruction, the predictor, reads the same tokens and gives each patch a number
//! d. Its loss L_pred is the binary cross entropy of pairs of masked patches of an image: σ(dᵢ − dⱼ) says how likely
//! ℓᵢ > ℓⱼ is. Level 1 descends L_m + L_pred. The patch losses ℓ are constants of L_pred, whose gradient reaches the
//! predictor and, through the tokens, decoder embedding and encoder, as in HPM. Only differences of predictions count: the
//! last layer's bias has no gradient but rounding.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::engine::TokenOrder;

/// Where the strategy `loss` has the difficulty of patches from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Difficulty {
    /// The teacher's patch losses under random masks, measured by forward passes.
    #[default]
    Measured,
    /// Predicted by a second decoder of the teacher, which sees the whole image, as in HPM.
    Predicted,
}

/// L_pred of each image and its derivative for the predictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// Mean over the pairs of masked patches, `[images]`; 0 for an image with a single masked patch.
    pub of_images: Vec<f32>,
    /// ∂L_pred/∂d `[images, L]`, 0 for visible patches.
    pub cotangent: Vec<f32>,
}

/// The ranking loss of images with predictions d and patch losses ℓ, both `[images, L]`, where L_pred is the mean over
/// `num_images` images, these and others.
///
/// The mean is over all pairs of an image's masked patches, whose number follows from the masks alone; a pair of equal
/// losses says nothing and counts 0. (HPM divides by the pairs of unequal losses, and adds 1e-6 to the chances before
/// it takes their logarithm; here the logarithm of σ itself is taken, which cannot overflow.)
#[must_use]
pub fn ranking(predicted: &[f32], losses: &[f32], order: &TokenOrder, num_images: usize) -> Ranking {
    let (num_patches, num_masked) = (order.num_patches, order.num_masked());
    let num_pairs = (num_masked * num_masked.saturating_sub(1) / 2).max(1) as f64;
    let factor = 1.0 / (num_pairs * num_images as f64);
    let (mut of_images, mut cotangent) = (Vec::with_capacity(order.batch()), vec![0.0; predicted.len()]);
    for (image, out) in cotangent.chunks_exact_mut(num_patches).enumerate() {
        let place = image * num_patches..(image + 1) * num_patches;
        let masked: Vec<usize> = (0..num_patches).filter(|&i| order.is_masked(place.start + i)).collect();
        let (sum, derivative) = of_pairs(&predicted[place.clone()], &losses[place], &masked);
        of_images.push((sum / num_pairs) as f32);
        out.iter_mut().zip(derivative).for_each(|(out, d)| *out = (factor * d) as f32);
    }
    Ranking { of_images, cotangent }
}

/// Σ −ln σ(±(dᵢ − dⱼ)) over the pairs of an image's masked patches, the sign that of ℓᵢ − ℓⱼ, and its derivative for
/// all patches.
fn of_pairs(predicted: &[f32], losses: &[f32], masked: &[usize]) -> (f64, Vec<f64>) {
    let (mut sum, mut derivative) = (0.0, vec![0.0; predicted.len()]);
    for (place, &i) in masked.iter().enumerate() {
        for &j in &masked[place + 1..] {
            let sign = match losses[i].partial_cmp(&losses[j]) {
                Some(Ordering::Greater) => 1.0,
                Some(Ordering::Less) => -1.0,
                Some(Ordering::Equal) | None => continue,
            };
            // −ln σ(x) = ln(1 + e^−x), with −σ(−x) as its derivative.
            let x = sign * (f64::from(predicted[i]) - f64::from(predicted[j]));
            let tail = (-x.abs()).exp();
            sum += tail.ln_1p() + (-x).max(0.0);
            let chance = if x > 0.0 { tail / (1.0 + tail) } else { 1.0 / (1.0 + tail) };
            derivative[i] -= sign * chance;
            derivative[j] += sign * chance;
        }
    }
    (sum, derivative)
}

/// L_pred of a batch from [`Ranking::of_images`] of all its images.
#[must_use]
pub fn ranking_loss(of_images: &[f32]) -> f64 {
    of_images.iter().map(|&value| f64::from(value)).sum::<f64>() / of_images.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{normals, tensor_rng};
    use crate::masking::order::order_by_keys;

    const L: usize = 7;

    fn draw(name: &str) -> Vec<f32> {
        let mut values = vec![0.0; 2 * L];
        normals(&mut values, 2.0, &mut tensor_rng(6, name));
        values
    }

    /// L_pred as it is written: the mean over ordered pairs of the binary cross entropy of σ(dᵢ − dⱼ).
    fn by_formula(predicted: &[f64], losses: &[f32], order: &TokenOrder) -> f64 {
        let (mut sum, mut num) = (0.0, 0);
        for image in 0..2 {
            for i in (image * L..(image + 1) * L).filter(|&i| order.is_masked(i)) {
                for j in (image * L..(image + 1) * L).filter(|&j| j != i && order.is_masked(j)) {
                    let chance = 1.0 / (1.0 + (predicted[j] - predicted[i]).exp());
                    sum -= if losses[i] > losses[j] { chance.ln() } else { 0.0 };
                    sum -= if losses[i] < losses[j] { (1.0 - chance).ln() } else { 0.0 };
                    num += 1;
                }
            }
        }
        sum / f64::from(num)
    }

    #[test]
    fn the_ranking_loss_is_the_cross_entropy_of_pairs_and_has_its_derivative() {
        let order = order_by_keys(&draw("keys"), L, 2);
        let (predicted, mut losses) = (draw("predicted"), draw("losses"));
        let masked: Vec<usize> = (0..L).filter(|&i| order.is_masked(i)).collect();
        losses[masked[0]] = losses[masked[1]]; // a pair that says nothing
        let found = ranking(&predicted, &losses, &order, 2);
        let wide: Vec<f64> = predicted.iter().map(|&d| f64::from(d)).collect();
        assert!((ranking_loss(&found.of_images) - by_formula(&wide, &losses, &order)).abs() < 1e-6);
        for i in 0..2 * L {
            let at = |step: f64| {
                let mut moved = wide.clone();
                moved[i] += step;
                by_formula(&moved, &losses, &order)
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((f64::from(found.cotangent[i]) - expected).abs() < 1e-7, "{i}: {} {expected}", found.cotangent[i]);
            assert!(order.is_masked(i) || found.cotangent[i] == 0.0);
        }
        // An image is on its own, and weighs as a part of the whole batch.
        let first = ranking(&predicted[..L], &losses[..L], &order_by_keys(&draw("keys")[..L], L, 2), 2);
        assert_eq!((&first.of_images[..], &first.cotangent[..]), (&found.of_images[..1], &found.cotangent[..L]));
    }

    #[test]
    fn confident_predictions_neither_overflow_nor_vanish() {
        let order = order_by_keys(&[0.0, 1.0, 2.0], 3, 1);
        for (predicted, loss, derivative) in
            [([0.0, 1e30, -1e30], 0.0, 0.0), ([0.0, -1e5, 1e5], 2e5, -1.0), ([0.0, 3e38, -3e38], 0.0, 0.0)]
        {
            let found = ranking(&predicted, &[0.0, 2.0, 1.0], &order, 1);
            assert!((f64::from(found.of_images[0]) - loss).abs() <= 1e-6 * loss, "{found:?}");
            assert_eq!(found.cotangent, [0.0, derivative, -derivative]);
        }
        // A single masked patch has no pair.
        let alone = ranking(&[5.0, 1.0, 2.0], &[0.0, 2.0, 1.0], &order_by_keys(&[0.0, 1.0, 2.0], 3, 2), 1);
        assert_eq!(alone, Ranking { of_images: vec![0.0], cotangent: vec![0.0; 3] });
    }
}
