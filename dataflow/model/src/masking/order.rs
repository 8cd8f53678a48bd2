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

use crate::engine::TokenOrder;
use crate::masking::kind::MaskRule;
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

/// Keys `[images, L]` from scores `[images, L]` with exploration: a patch's key is its rank by score, scaled to [0, 1),
/// but a share `rule.explore` of each image's patches, drawn at random, gets uniform random keys in [0, 1) instead.
/// Without exploration the keys are the scores.
#[must_use]
pub fn explored_keys(scores: &[f32], num_patches: usize, rule: &MaskRule) -> Vec<f32> {
    if rule.explore <= 0.0 {
        return scores.to_vec();
    }
    let by_score = order_by_keys(scores, num_patches, num_patches);
    let mut keys: Vec<f32> = by_score.rank.iter().map(|&r| r as f32 / num_patches as f32).collect();
    let num_explored = (rule.explore * num_patches as f64).round() as usize;
    for (image, keys) in keys.chunks_exact_mut(num_patches).enumerate() {
        let mut rng = rule.rng(image);
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

impl TokenOrder {
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
        let keys = |explore| explored_keys(&scores, 64, &MaskRule { seed: 5, step: 0, explore, first_image: 0 });
        assert_eq!(keys(0.0), scores);
        let (hardly, explored) = (keys(1e-9), keys(0.25));
        assert_eq!(order_by_keys(&hardly, 64, 16).kept, order_by_keys(&scores, 64, 16).kept);
        let changed = hardly.iter().zip(&explored).filter(|(a, b)| a != b).count();
        assert_eq!(changed, 16);
    }
}
