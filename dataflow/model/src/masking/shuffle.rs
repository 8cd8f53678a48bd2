//! Control: the scores of an image permuted over its patches, before they mask and weigh.
//!
//! Patch i of an image gets the score p_σ(i) of another of its patches, with σ uniform over all permutations. How many
//! patches are masked and how the weights are distributed stays as it is, and so does what the policy has learned to
//! tell apart; which patches of the image that hits does not. What is left of a gain under this control is none of the
//! place.
//!
//! σ is constant in φ and θ. With q_i = p_σ(i) a function F(q) has ∂F/∂p_σ(i) = ∂F/∂q_i: the gradient of the score that a
//! patch was masked and weighed by goes to the patch that it was computed of.

use std::sync::Arc;

use super::kind::{MaskRule, Masking, Trace};
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::rng::{Purpose, keyed, shuffle};

/// Scores at other patches than those that they were computed of.
#[derive(Clone, Debug)]
pub struct Shuffle {
    /// q `[batch, L]`.
    scores: Arc<Buffer>,
    /// σ `[batch, L]`: the patch of the same image whose score each patch has.
    from: Arc<[u32]>,
    num_patches: usize,
}

impl Shuffle {
    /// The scores `[batch, L]` of a batch by the permutations of `rule`: keyed by seed, level-1 step and place of the
    /// image, and the same for every [`MaskRule::draw`], so that a batch that is masked again has the same scores.
    #[must_use]
    pub fn drawn(scores: &[f32], num_patches: usize, rule: &MaskRule) -> Self {
        let mut from = Vec::with_capacity(scores.len());
        for image in 0..scores.len() / num_patches {
            let mut patches: Vec<u32> = (0..num_patches as u32).collect();
            let place = rule.first_image + image as u64;
            shuffle(&mut patches, &mut keyed(rule.seed, Purpose::MaskShuffle, rule.step, place));
            from.extend(patches);
        }
        let of_image = |(scores, from): (&[f32], &[u32])| -> Vec<f32> {
            from.iter().map(|&patch| scores[patch as usize]).collect()
        };
        let images = scores.chunks_exact(num_patches).zip(from.chunks_exact(num_patches));
        let shuffled: Vec<f32> = images.flat_map(of_image).collect();
        Self { scores: Arc::new(Buffer::from_vec(shuffled)), from: from.into(), num_patches }
    }

    /// ∂F/∂p `[batch, L]` from `dscores` = ∂F/∂q.
    #[must_use]
    pub fn back(&self, dscores: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; dscores.len()];
        let images = out.chunks_exact_mut(self.num_patches);
        let parts = dscores.chunks_exact(self.num_patches).zip(self.from.chunks_exact(self.num_patches));
        for (out, (dscores, from)) in images.zip(parts) {
            from.iter().zip(dscores).for_each(|(&patch, &d)| out[patch as usize] = d);
        }
        out
    }

    /// Bytes that it adds to a batch.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.from.len() * Self::BYTES_OF_PATCH
    }

    /// The same of one patch.
    pub const BYTES_OF_PATCH: usize = size_of::<f32>() + size_of::<u32>();
}

impl Trace {
    /// The scores `[batch, L]` that mask and weigh: its own, or those shuffled.
    #[must_use]
    pub fn effective(&self) -> &[f32] {
        self.shuffle.as_ref().map_or(&self.scores[..], |shuffle| &shuffle.scores[..])
    }

    /// The trace with its scores shuffled if `rule` asks for it and they are not.
    #[must_use]
    pub fn shuffled(mut self, num_patches: usize, rule: &MaskRule) -> Self {
        if rule.shuffle_scores && self.shuffle.is_none() {
            self.shuffle = Some(Shuffle::drawn(&self.scores, num_patches, rule));
        }
        self
    }

    /// ∂F/∂p `[batch, L]` for [`Masking::backward`] from `dscores`, those of
    /// [`effective`](Self::effective) scores; none if they are the same.
    #[must_use]
    pub fn back(&self, dscores: &[f32]) -> Option<Vec<f32>> {
        self.shuffle.as_ref().map(|shuffle| shuffle.back(dscores))
    }
}

/// [`Masking::backward`] of `masking` from the derivatives `dscores` `[batch, L]` of the scores that mask and weigh, which
/// may be those of other patches.
pub fn backward(
    masking: &dyn Masking,
    compute: &Compute,
    phi: &[f32],
    trace: &Trace,
    dscores: &[f32],
    dphi: Option<&mut [f32]>,
    want_input: bool,
) -> Option<Buffer> {
    let own = trace.back(dscores);
    masking.backward(compute, phi, trace, own.as_deref().unwrap_or(dscores), dphi, want_input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_their_image_and_their_number_and_gradients_find_back() {
        const L: usize = 9;
        let scores: Vec<f32> = (0..4 * L).map(|i| i as f32).collect();
        let rule = MaskRule { seed: 5, step: 3, shuffle_scores: true, ..MaskRule::BY_SCORE };
        let shuffle = Shuffle::drawn(&scores, L, &rule);
        for (shuffled, own) in shuffle.scores.chunks_exact(L).zip(scores.chunks_exact(L)) {
            let mut sorted = shuffled.to_vec();
            sorted.sort_unstable_by(f32::total_cmp);
            assert_eq!(sorted, own, "every score of the image once");
            assert_ne!(shuffled, own);
        }
        // F(q) = Σ aᵢqᵢ has ∂F/∂pⱼ = aᵢ where σ(i) = j.
        let weights: Vec<f32> = (0..4 * L).map(|i| (i * 7 % 11) as f32).collect();
        let back = shuffle.back(&weights);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        assert_eq!(dot(&weights, &shuffle.scores), dot(&back, &scores));
        assert_eq!(shuffle.back(&shuffle.scores), scores, "the permutation's inverse");
        // Of each image on its own, whatever rank has it, and of each step anew.
        let second = MaskRule { first_image: 1, draw: 1, ..rule.clone() };
        assert_eq!(Shuffle::drawn(&scores[L..], L, &second).scores[..], shuffle.scores[L..]);
        assert_ne!(Shuffle::drawn(&scores, L, &MaskRule { step: 4, ..rule }).scores[..], shuffle.scores[..]);
    }

    #[test]
    fn every_patch_gets_every_score_as_often() {
        const L: usize = 5;
        let scores: Vec<f32> = (0..2000 * L).map(|i| (i % L) as f32).collect();
        let shuffle = Shuffle::drawn(&scores, L, &MaskRule { shuffle_scores: true, ..MaskRule::BY_SCORE });
        let mut counts = [[0usize; L]; L];
        for image in shuffle.scores.chunks_exact(L) {
            image.iter().enumerate().for_each(|(patch, score)| counts[patch][*score as usize] += 1);
        }
        // 400 each, with a standard deviation of 18.
        assert!(counts.iter().flatten().all(|count| (320..480).contains(count)), "{counts:?}");
    }
}
