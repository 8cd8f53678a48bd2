//! The policy's gradient from the utilities of patches.
//!
//! The utility of a masked patch is uᵢ = dℓᵢ/dv, the derivative of its reconstruction loss along the direction
//! v = v1 + w: by how much a small step of level 1 on that patch's loss changes the downstream loss L_v, with the
//! opposite sign. To first order a step of level 1 on L_m = Σ aᵢℓᵢ changes L_v by −η Σ aᵢuᵢ, so whatever shapes the
//! weights a, or which patches are masked, can be learned from u, without another pass.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::hypergradient::Along;
use crate::lane::{Lane, Upstream};
use crate::levels::vectors::step_size;
use crate::masking::arms::ExploreArms;
use crate::masking::order::log_probability_gradient;
use crate::masking::weights::of_logit;
use crate::masking::{MaskRule, MaskWeights, Scored};
use crate::vector::Vector;

/// What the policy's gradient goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// The scores as weights of the loss, as published: visible patches have no gradient.
    #[default]
    Weights,
    /// The choice of masks (score function, REINFORCE): each batch is masked twice, and the masks under which level 1
    /// helps more become more likely. Needs `mask.select = "sample"`.
    Score,
    /// The sum of both.
    Both,
}

/// How the derivative of patch losses along v is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Derivative {
    /// By forward-mode differentiation.
    Tangent,
    /// By a central difference with the step α/‖v‖₂.
    Difference(f64),
}

/// What the utilities say of a hypergradient, for the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signal {
    /// Cosine of the hypergradients of the batch's two halves: signal to noise.
    pub halves_cosine: f64,
    /// Share of the masked patches whose utility is positive: 0.5 where they compete, 0 or 1 where all scores are driven
    /// one way.
    pub positive_share: f64,
    /// Mean utility of masked patches over their standard deviation.
    pub mean_to_deviation: f64,
}

/// Utilities `[batch, L]` of images at their masks; those of visible patches mean nothing.
fn utilities(
    lane: &mut dyn Lane,
    at: &Upstream<'_>,
    scored: &Scored,
    v: &Vector,
    how: Derivative,
) -> Result<Vec<f32>, ModelError> {
    let alpha = match how {
        Derivative::Tangent => return lane.patch_loss_tangents(at.theta, v, at.images, scored),
        Derivative::Difference(alpha) => alpha,
    };
    let norm = lane.norm(v)?;
    if norm == 0.0 {
        return Ok(vec![0.0; scored.order.rank.len()]);
    }
    let epsilon = step_size(alpha, norm);
    let mut losses = |sign: f64| {
        let moved = lane.shifted(at.theta, v, sign * epsilon)?;
        lane.patch_losses(&moved, at.images, scored)?.to_host()
    };
    let (minus, plus) = (losses(-1.0)?, losses(1.0)?);
    let difference = |(plus, minus): (&f32, &f32)| ((f64::from(*plus) - f64::from(*minus)) / (2.0 * epsilon)) as f32;
    Ok(plus.iter().zip(minus.iter()).map(difference).collect())
}

/// Rewards R `[batch]`: Σ aᵢuᵢ of each image, where the weights a sum to 1.
fn rewards(weights: MaskWeights, scored: &Scored, utilities: &[f32]) -> Vec<f64> {
    let (order, all) = (&scored.order, scored.weights());
    let n = order.num_patches;
    let reward = |image: usize| {
        let masked = (image * n..(image + 1) * n).filter(|&i| order.is_masked(i));
        let weight = |i: usize| if weights == MaskWeights::None { 1.0 } else { all.map_or(1.0, |p| f64::from(p[i])) };
        masked.map(|i| weight(i) * f64::from(utilities[i])).sum::<f64>() / order.num_masked() as f64
    };
    (0..order.batch()).map(reward).collect()
}

/// ∂φ along v at `at` from the utilities, for maskings that do not read the embedding: −Σ ∂aᵢ/∂φ·uᵢ by
/// [`MaskWeights::cotangent`], and for [`Estimator::Score`] −½(R₁ − R₂)·∂(log π₁ − log π₂)/∂φ for two independent masks
/// of each image, mean of the batch, which is the gradient of E\[−R\] without bias.
///
/// # Errors
/// When the lane fails.
pub fn hypergradient(lane: &mut dyn Lane, at: &Upstream<'_>, v: &Vector, how: Derivative) -> Result<Along, ModelError> {
    let model = lane.model().clone();
    let (weights, num_ranks) = (model.config.mask_weights, lane.num_ranks());
    let scored = lane.score(Some(at.theta), at.phi, at.images, at.rule)?;
    let of = utilities(lane, at, &scored, v, how)?;
    let (order, scores) = (&scored.order, scored.scores().unwrap_or_default());
    let mut dscores = match at.estimator {
        Estimator::Weights | Estimator::Both => {
            let num_masked = order.batch() * num_ranks * order.num_masked();
            weights.cotangent(&of, scores, order, num_masked, -1.0)
        }
        Estimator::Score => vec![0.0; of.len()],
    };
    if at.estimator != Estimator::Weights {
        let rule = MaskRule { draw: at.rule.draw + 1, ..at.rule.clone() };
        let first_image = lane.rank() * order.batch();
        let rule = MaskRule { first_image: first_image as u64, ..rule };
        let again = Scored::by_keys(
            &*model.masking,
            weights,
            scored.trace.clone(),
            order.batch(),
            [order.num_patches, order.num_visible],
            &rule,
        );
        let of_again = utilities(lane, at, &again, v, how)?;
        let (first, second) = (rewards(weights, &scored, &of), rewards(weights, &again, &of_again));
        let log_gradient = |scored: &Scored| log_probability_gradient(scores, &scored.order, rule.temperature);
        let dlogits = score_function([&first, &second], [&log_gradient(&scored), &log_gradient(&again)]);
        let factor = -1.0 / (order.batch() * num_ranks) as f64;
        for ((dscore, d), &p) in dscores.iter_mut().zip(dlogits).zip(scores) {
            *dscore += of_logit((factor * d) as f32, p);
        }
    }
    let mut gradient = lane.mask_gradient(at.phi, &scored, &dscores)?;
    if let Some(arms) = model.masking.explore_arms().filter(|_| at.rule.explore_arms) {
        let of_arms = explore_gradient(lane, at, arms, &rewards(weights, &scored, &of))?;
        gradient = lane.sum(&gradient, &of_arms)?;
    }
    let signal = if at.want_signal { Some(signal(lane, at, &scored, &of, &dscores)?) } else { None };
    Ok(Along { gradient, path_norms: None, signal, ratio_reward: None })
}

/// ∂E\[−R\]/∂ψ in its place in φ, from the rewards `[batch]` of this rank's images, see [`arms`](crate::masking::arms).
fn explore_gradient(
    lane: &mut dyn Lane,
    at: &Upstream<'_>,
    arms: &ExploreArms,
    rewards: &[f64],
) -> Result<Vector, ModelError> {
    let place = arms.logits().range();
    let psi = lane.values(at.phi, place.clone())?;
    let rewards = lane.gather(rewards.iter().map(|&reward| reward as f32).collect())?;
    // The images of all ranks, of which the first has number 0.
    let drawn = arms.draw(&psi, &MaskRule { first_image: 0, ..at.rule.clone() }, rewards.len());
    placed(lane, at.phi.len(), place, &ExploreArms::gradient(&psi, &drawn, &rewards))
}

/// `values` at their place in a vector of length `len` that is 0 elsewhere.
pub(crate) fn placed(
    lane: &mut dyn Lane,
    len: usize,
    place: Range<usize>,
    values: &[f64],
) -> Result<Vector, ModelError> {
    let mut all = vec![0.0; len];
    all[place].iter_mut().zip(values).for_each(|(to, value)| *to = *value as f32);
    lane.upload(&all.into())
}

/// ½(R₁ − R₂)·(∂ log π₁ − ∂ log π₂) for each patch `[batch, L]`, from the rewards `[batch]` of two independent draws and
/// the gradients of their log probabilities `[batch, L]`: each draw is the other's baseline, so that the mean is
/// ∂E\[R\] without bias.
fn score_function(rewards: [&[f64]; 2], log_gradients: [&[f64]; 2]) -> Vec<f64> {
    let num_patches = log_gradients[0].len() / rewards[0].len().max(1);
    let of = |(i, (first, second)): (usize, (&f64, &f64))| {
        let image = i / num_patches;
        0.5 * (rewards[0][image] - rewards[1][image]) * (first - second)
    };
    log_gradients[0].iter().zip(log_gradients[1]).enumerate().map(of).collect()
}

fn signal(
    lane: &mut dyn Lane,
    at: &Upstream<'_>,
    scored: &Scored,
    utilities: &[f32],
    dscores: &[f32],
) -> Result<Signal, ModelError> {
    let order = &scored.order;
    let half = order.batch() / 2 * order.num_patches;
    let mut of_half = |is_first: bool| {
        let halved: Vec<f32> =
            dscores.iter().enumerate().map(|(i, &d)| if (i < half) == is_first { d } else { 0.0 }).collect();
        lane.mask_gradient(at.phi, scored, &halved)
    };
    let halves = [of_half(true)?, of_half(false)?];
    let masked: Vec<f64> =
        (0..utilities.len()).filter(|&i| order.is_masked(i)).map(|i| f64::from(utilities[i])).collect();
    let num = masked.len().max(1) as f64;
    let mean = masked.iter().sum::<f64>() / num;
    let deviation = (masked.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / num).sqrt();
    Ok(Signal {
        halves_cosine: lane.cosine(&halves[0], &halves[1])?,
        positive_share: masked.iter().filter(|u| **u > 0.0).count() as f64 / num,
        mean_to_deviation: if deviation > 0.0 { mean / deviation } else { 0.0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::MaskSelect;
    use crate::masking::order::{explored_keys, order_by_keys};

    #[test]
    fn the_score_function_is_the_gradient_of_the_expected_reward() {
        // One of four patches is masked: E[R] = Σ softmax(s)ᵢ uᵢ, whose gradient is softmaxᵢ (uᵢ − E[R]).
        let (logits, utilities) = ([0.2f64, -0.7, 0.9, 0.0], [1.0f64, -2.0, 0.5, 3.0]);
        let num = 100_000;
        let p = logits.map(|l| (1.0 / (1.0 + (-l).exp())) as f32);
        let scores: Vec<f32> = (0..num).flat_map(|_| p).collect();
        let draw = |draw| {
            let rule = MaskRule { seed: 3, select: MaskSelect::Sample, draw, ..MaskRule::BY_SCORE };
            let order = order_by_keys(&explored_keys(&scores, 4, &rule), 4, 3);
            let reward = |image: usize| (0..4).filter(|i| order.is_masked(4 * image + i)).map(|i| utilities[i]).sum();
            let rewards: Vec<f64> = (0..num).map(reward).collect();
            (rewards, log_probability_gradient(&scores, &order, 1.0))
        };
        let ((first, of_first), (second, of_second)) = (draw(0), draw(1));
        let of_patches = score_function([&first, &second], [&of_first, &of_second]);
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        let softmax = logits.map(|l| l.exp() / sum);
        let mean: f64 = softmax.iter().zip(utilities).map(|(p, u)| p * u).sum();
        for i in 0..4 {
            let got = of_patches.iter().skip(i).step_by(4).sum::<f64>() / num as f64;
            let expected = softmax[i] * (utilities[i] - mean);
            assert!((got - expected).abs() < 0.02, "{i}: {got} {expected}");
        }
    }
}
