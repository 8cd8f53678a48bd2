//! From keys to masks: a stable ascending sort of each image's patches, of which the lowest stay visible.
//!
//! ```
//! use mlomae_model::masking::order::order_by_keys;
//!
//! // Two images of four patches; the two patches with the lowest keys stay visible.
//! let order = order_by_keys(&[0.5, 0.1, 0.8, 0.3, 0.0, 0.9, 0.0, 0.0], 4, 2);
//! assert_eq!(order.kept, [1, 3, 0, 2]); // ties go to the lower patch
//! assert!(order.is_masked(0) && !order.is_masked(1));
//! assert_eq!(order.num_masked(), 2);
//! ```

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use crate::engine::TokenOrder;
use crate::masking::kind::{MaskRule, MaskSelect};
use crate::rng::uniform;

/// Orders each image's patches by rising key, and by index where keys are equal, so that masks are reproducible.
///
/// `keys` is `[batch, num_patches]`; the `num_visible` lowest of each image stay visible. The sort has no gradient.
#[must_use]
pub fn order_by_keys(keys: &[f32], num_patches: usize, num_visible: usize) -> Arc<TokenOrder> {
    let batch = keys.len() / num_patches;
    let mut kept = Vec::with_capacity(batch * num_visible);
    let mut rank = vec![0u32; batch * num_patches];
    let mut order: Vec<u32> = Vec::with_capacity(num_patches);
    for (image, ranks) in keys.chunks_exact(num_patches).zip(rank.chunks_exact_mut(num_patches)) {
        order.clear();
        order.extend(0..num_patches as u32);
        order.sort_by(|&a, &b| image[a as usize].total_cmp(&image[b as usize]));
        for (place, &patch) in order.iter().enumerate() {
            ranks[patch as usize] = place as u32;
        }
        kept.extend_from_slice(&order[..num_visible]);
    }
    Arc::new(TokenOrder { num_patches, num_visible, kept, rank })
}

/// Keys `[images, L]` from scores `[images, L]`, as [`MaskRule::select`] says, with exploration: a patch's key is then
/// the rank of its key without, scaled to [0, 1), but a share [`MaskRule::explore_of`] of each image's patches, drawn at random,
/// gets uniform random keys in [0, 1) instead.
#[must_use]
pub fn explored_keys(scores: &[f32], num_patches: usize, rule: &MaskRule) -> Vec<f32> {
    let num_images = scores.len() / num_patches;
    let explores = (0..num_images).any(|image| rule.explore_of(image) > 0.0);
    let mut generators: Vec<_> = match rule.select {
        MaskSelect::Score if !explores => return scores.to_vec(),
        MaskSelect::Score | MaskSelect::Sample => (0..num_images).map(|image| rule.rng(image)).collect(),
        MaskSelect::Random => return uniform_keys(num_images, num_patches, rule),
    };
    let keys = match rule.select {
        MaskSelect::Sample => sampled_keys(scores, num_patches, rule.temperature, &mut generators),
        MaskSelect::Score | MaskSelect::Random => scores.to_vec(),
    };
    if !explores {
        return keys;
    }
    let by_key = order_by_keys(&keys, num_patches, num_patches);
    let mut keys: Vec<f32> = by_key.rank.iter().map(|&r| r as f32 / num_patches as f32).collect();
    for (image, (mut rng, keys)) in generators.into_iter().zip(keys.chunks_exact_mut(num_patches)).enumerate() {
        let num_explored = (rule.explore_of(image) * num_patches as f64).round() as usize;
        // A partial Fisher-Yates shuffle draws the explored patches without replacement.
        let mut patches: Vec<usize> = (0..num_patches).collect();
        for place in 0..num_explored.min(num_patches) {
            let other = place + (uniform(&mut rng) * (num_patches - place) as f64) as usize;
            patches.swap(place, other);
            keys[patches[place]] = uniform(&mut rng) as f32;
        }
    }
    keys
}

/// Uniform random keys `[num_images, L]` in [0, 1).
#[must_use]
pub fn uniform_keys(num_images: usize, num_patches: usize, rule: &MaskRule) -> Vec<f32> {
    let mut keys = Vec::with_capacity(num_images * num_patches);
    for image in 0..num_images {
        let mut rng = rule.rng(image);
        keys.extend((0..num_patches).map(|_| uniform(&mut rng) as f32));
    }
    keys
}

/// logit(p)/temperature + Gumbel noise: the patches in falling order of these keys are a draw without replacement with
/// weights exp(logit(p)/temperature), see [`log_probability_gradient`].
fn sampled_keys(scores: &[f32], num_patches: usize, temperature: f64, generators: &mut [ChaCha8Rng]) -> Vec<f32> {
    let mut keys = Vec::with_capacity(scores.len());
    for (scores, rng) in scores.chunks_exact(num_patches).zip(generators) {
        keys.extend(scores.iter().map(|&p| (logit(p) / temperature + gumbel(rng)) as f32));
    }
    keys
}

/// A draw from the standard Gumbel distribution.
pub(super) fn gumbel(rng: &mut ChaCha8Rng) -> f64 {
    -(-(1.0 - uniform(rng)).ln()).ln()
}

/// The logit of p, finite also where p has been rounded to 0 or 1.
fn logit(p: f32) -> f64 {
    let p = f64::from(p).clamp(1e-12, 1.0 - 1e-7);
    (p / (1.0 - p)).ln()
}

/// ∂ log π/∂(logit of p) `[images, L]` of masks that were drawn by [`MaskSelect::Sample`] without exploration, where π
/// is the probability of the masked patches in the order in which they were drawn (falling keys):
/// Σ_t (1{i drawn at t} − softmax over what was left at t), divided by the temperature.
#[must_use]
pub fn log_probability_gradient(scores: &[f32], order: &TokenOrder, temperature: f64) -> Vec<f64> {
    let (n, num_visible) = (order.num_patches, order.num_visible);
    let mut out = vec![0.0; scores.len()];
    let images = scores.chunks_exact(n).zip(order.rank.chunks_exact(n)).zip(out.chunks_exact_mut(n));
    for ((scores, rank), out) in images {
        let mut patches: Vec<usize> = (0..n).collect();
        patches.sort_unstable_by_key(|&patch| std::cmp::Reverse(rank[patch]));
        let logits: Vec<f64> = scores.iter().map(|&p| logit(p) / temperature).collect();
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|l| (l - top).exp()).collect();
        // What is left at each draw, summed from the last on so that nothing cancels.
        let mut left = vec![0.0; n];
        let mut sum = 0.0;
        for place in (0..n).rev() {
            sum += weights[patches[place]];
            left[place] = sum;
        }
        // Σ over the draws so far of 1/left.
        let mut inverse = 0.0;
        for (place, &patch) in patches.iter().enumerate() {
            let is_drawn = place < n - num_visible;
            if is_drawn {
                inverse += 1.0 / left[place];
            }
            out[patch] = (f64::from(u8::from(is_drawn)) - weights[patch] * inverse) / temperature;
        }
    }
    out
}

impl TokenOrder {
    /// The order of images of which every patch is visible.
    #[must_use]
    pub fn all_visible(num_images: usize, num_patches: usize) -> Self {
        let kept: Vec<u32> = (0..num_images).flat_map(|_| 0..num_patches as u32).collect();
        TokenOrder { num_patches, num_visible: num_patches, rank: kept.clone(), kept }
    }

    /// Number of images.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.rank.len() / self.num_patches
    }

    /// Masked patches of each image.
    #[must_use]
    pub fn num_masked(&self) -> usize {
        self.num_patches - self.num_visible
    }

    /// Whether the patch at `index` of `[batch, L]` is masked.
    #[must_use]
    pub fn is_masked(&self, index: usize) -> bool {
        self.rank[index] as usize >= self.num_visible
    }

    /// The order of the images `range` alone.
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Arc<TokenOrder> {
        Arc::new(TokenOrder {
            num_patches: self.num_patches,
            num_visible: self.num_visible,
            kept: self.kept[range.start * self.num_visible..range.end * self.num_visible].to_vec(),
            rank: self.rank[range.start * self.num_patches..range.end * self.num_patches].to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_scores_stay_visible_and_ties_go_to_the_lower_patch() {
        let order = order_by_keys(&[0.5, 0.1, 0.5, 0.1, 0.9, 0.0, 0.0, 0.0], 4, 2);
        assert_eq!(order.kept, [1, 3, 1, 2]);
        assert_eq!(order.rank, [2, 0, 3, 1, 3, 0, 1, 2]);
        assert!(order.is_masked(0) && !order.is_masked(1));
        assert_eq!(order.slice(1..2).kept, [1, 2]);
    }

    #[test]
    fn exploration_changes_the_asked_share_only() {
        let scores: Vec<f32> = (0..64).map(|i| ((i * 37) % 64) as f32).collect();
        let keys = |explore| explored_keys(&scores, 64, &MaskRule { seed: 5, explore, ..MaskRule::BY_SCORE });
        assert_eq!(keys(0.0), scores);
        let (hardly, explored) = (keys(1e-9), keys(0.25));
        assert_eq!(order_by_keys(&hardly, 64, 16).kept, order_by_keys(&scores, 64, 16).kept);
        let changed = hardly.iter().zip(&explored).filter(|(a, b)| a != b).count();
        assert_eq!(changed, 16);
    }

    #[test]
    fn samples_follow_the_scores_and_random_masks_are_those_of_the_strategy() {
        // Odds 1:1:2:4 of being drawn first, and a quarter of an image is masked: one patch.
        let odds = [1.0f32, 1.0, 2.0, 4.0];
        let num = 40_000;
        let scores: Vec<f32> = (0..num).flat_map(|_| odds.map(|odds| odds / (1.0 + odds))).collect();
        let rule = MaskRule { seed: 5, select: MaskSelect::Sample, ..MaskRule::BY_SCORE };
        let order = order_by_keys(&explored_keys(&scores, 4, &rule), 4, 3);
        let shares = [0, 1, 2, 3]
            .map(|patch| (0..num).filter(|image| order.is_masked(image * 4 + patch)).count() as f64 / num as f64);
        for (share, odds) in shares.into_iter().zip(odds) {
            assert!((share - f64::from(odds) / 8.0).abs() < 0.01, "{shares:?}");
        }
        let again = MaskRule { draw: 1, ..rule.clone() };
        assert_ne!(explored_keys(&scores, 4, &again), explored_keys(&scores, 4, &rule));
        let random = MaskRule { select: MaskSelect::Random, explore: 0.5, ..rule };
        assert_eq!(explored_keys(&scores, 4, &random), uniform_keys(num, 4, &random));
    }

    #[test]
    fn the_gradient_of_a_draws_probability_is_that_of_the_formula() {
        let logits = [0.3, -1.2, 0.8, 0.1, -0.4];
        let (rank, num_visible, temperature) = ([3, 0, 4, 1, 2], 2, 0.7);
        let order = TokenOrder { num_patches: 5, num_visible, kept: vec![1, 3], rank: rank.to_vec() };
        let scores: Vec<f32> = logits.iter().map(|l: &f64| (1.0 / (1.0 + (-l).exp())) as f32).collect();
        // Drawn in falling order of rank: patches 2, 0, 4.
        let log_probability = |logits: &[f64]| {
            let mut left: Vec<usize> = (0..5).collect();
            let mut sum = 0.0;
            for patch in [2, 0, 4] {
                let total: f64 = left.iter().map(|&i| (logits[i] / temperature).exp()).sum();
                sum += logits[patch] / temperature - total.ln();
                left.retain(|&i| i != patch);
            }
            sum
        };
        let gradient = log_probability_gradient(&scores, &order, temperature);
        for i in 0..5 {
            let at = |step: f64| {
                let mut moved = logits;
                moved[i] += step;
                log_probability(&moved)
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((gradient[i] - expected).abs() < 1e-6, "{i}: {} {expected}", gradient[i]);
        }
        assert!(gradient.iter().sum::<f64>().abs() < 1e-12);
    }
}
