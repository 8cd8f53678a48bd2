//! Masks by how hard a patch is to reconstruct: a rising share of the masked patches is that of highest loss (Hard
//! Patches Mining, HPM, arXiv 2304.05919).
//!
//! HPM trains a second decoder that predicts which patches are hard; with [`Difficulty::Predicted`] that is what
//! [`difficulty`](super::difficulty) has. By default their losses are measured instead, with the teacher's weights: each
//! patch's mean loss over passes in which random masks hide it, as many as it takes for each patch to be masked at least
//! once (two at the usual ratios). That needs no decoder, no loss of its own and no weight between the two, and is what
//! the decoder of HPM approximates; its price is a forward pass more, without backward passes.

use std::sync::Arc;

use super::difficulty::Difficulty;
use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use super::order::{order_by_keys, uniform_keys};
use crate::choice::Named;
use crate::engine::TokenOrder;
use crate::rng::{Purpose, keyed, shuffle};

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "loss"
    }
    fn summary(&self) -> &'static str {
        "Ever more of the patches of highest loss under a teacher, measured or predicted, the others at random (HPM): \
         levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn reads_teacher(&self) -> bool {
        true
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        let (num_patches, num_visible) = (facts.num_patches(), facts.num_visible);
        Arc::new(Losses { num_patches, num_visible, difficulty: facts.difficulty })
    }
}

/// The share of the masked patches that is chosen by loss at the end of a run (HPM's α_T).
const MOST_CHOSEN: f64 = 0.5;

/// Masks by loss.
#[derive(Clone, Debug)]
pub struct Losses {
    num_patches: usize,
    num_visible: usize,
    difficulty: Difficulty,
}

impl Masking for Losses {
    fn needs(&self) -> Needs {
        match self.difficulty {
            Difficulty::Measured => Needs::Losses,
            Difficulty::Predicted => Needs::Difficulty,
        }
    }

    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        const MASKED: f32 = 2.0;
        let num_masked = self.num_patches - rule.num_visible.unwrap_or(self.num_visible);
        let num_chosen = (MOST_CHOSEN * rule.progress * num_masked as f64).round() as usize;
        let mut keys = uniform_keys(num_images, self.num_patches, rule);
        let losses = rule.read.as_deref().unwrap_or_default().chunks_exact(self.num_patches);
        for (keys, losses) in keys.chunks_exact_mut(self.num_patches).zip(losses) {
            let mut patches: Vec<usize> = (0..self.num_patches).collect();
            patches.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]));
            patches[..num_chosen].iter().for_each(|&patch| keys[patch] += MASKED);
        }
        keys
    }

    /// The losses, measured or predicted, which are kept for the logs.
    fn trace_values(&self) -> usize {
        self.num_patches
    }
}

/// Random masks of the rule's ratio under which each patch is masked at least once: those of an image are windows of
/// one permutation of its patches, one after the other, around its end.
#[must_use]
pub fn covering_orders(
    num_images: usize,
    num_patches: usize,
    num_visible: usize,
    rule: &MaskRule,
) -> Vec<Arc<TokenOrder>> {
    let num_masked = num_patches - num_visible;
    let permutations: Vec<Vec<usize>> = (0..num_images)
        .map(|image| {
            let mut patches: Vec<usize> = (0..num_patches).collect();
            shuffle(
                &mut patches,
                &mut keyed(rule.seed, Purpose::MaskProbe, rule.step, rule.first_image + image as u64),
            );
            patches
        })
        .collect();
    let order = |pass: usize| {
        let mut keys = vec![0.0; num_images * num_patches];
        for (keys, patches) in keys.chunks_exact_mut(num_patches).zip(&permutations) {
            (0..num_masked).for_each(|place| keys[patches[(pass * num_masked + place) % num_patches]] = 1.0);
        }
        order_by_keys(&keys, num_patches, num_visible)
    };
    (0..num_patches.div_ceil(num_masked.max(1))).map(order).collect()
}

/// The mean loss of each patch `[images, L]` over the passes in which it was masked, from each pass's order and losses.
#[must_use]
pub fn mean_losses(passes: &[(Arc<TokenOrder>, Vec<f32>)]) -> Vec<f32> {
    let len = passes.first().map_or(0, |(_, losses)| losses.len());
    let mean = |i: usize| {
        let masked = passes.iter().filter(|(order, _)| order.is_masked(i));
        let num = masked.clone().count().max(1);
        (masked.map(|(_, losses)| f64::from(losses[i])).sum::<f64>() / num as f64) as f32
    };
    (0..len).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: usize = 16;

    #[test]
    fn a_rising_share_of_the_masked_patches_is_that_of_highest_loss() {
        let losses: Vec<f32> = (0..3 * L).map(|i| ((i * 11) % 16) as f32).collect();
        let masking = Losses { num_patches: L, num_visible: 4, difficulty: Difficulty::Measured };
        for (progress, num_chosen) in [(0.0, 0), (0.5, 3), (1.0, 6)] {
            let mut others = 0;
            for step in 0..200 {
                let read: Arc<[f32]> = losses.clone().into();
                let rule = MaskRule { seed: 1, step, progress, read: Some(read), ..MaskRule::BY_SCORE };
                let order = order_by_keys(&masking.keys(3, None, &rule), L, 4);
                let is_chosen = |i: usize| losses[i] >= (L - num_chosen) as f32;
                assert!((0..3 * L).all(|i| !is_chosen(i) || order.is_masked(i)));
                others += (0..3 * L).filter(|&i| !is_chosen(i) && order.is_masked(i) && losses[i] < 5.0).count();
            }
            // The rest is random: of the patches that are not chosen those of low loss have their share.
            let expected = 600.0 * 5.0 * (12 - num_chosen) as f64 / (L - num_chosen) as f64;
            assert!((others as f64 - expected).abs() < 0.1 * expected, "{progress}: {others} {expected}");
        }
    }

    #[test]
    fn passes_mask_each_patch_and_losses_are_means_of_those_that_do() {
        for num_visible in 1..L {
            let orders = covering_orders(3, L, num_visible, &MaskRule::BY_SCORE);
            assert_eq!(orders.len(), L.div_ceil(L - num_visible));
            assert!((0..3 * L).all(|i| orders.iter().any(|order| order.is_masked(i))), "{num_visible}");
            // A patch's loss is the number of its pass where it is masked, and nonsense where it is visible.
            let losses = |(pass, order): (usize, Arc<TokenOrder>)| {
                let of = |i| if order.is_masked(i) { pass as f32 } else { f32::NAN };
                let losses = (0..3 * L).map(of).collect();
                (order, losses)
            };
            let passes: Vec<_> = orders.into_iter().enumerate().map(losses).collect();
            for (i, mean) in mean_losses(&passes).into_iter().enumerate() {
                let masked: Vec<usize> = (0..passes.len()).filter(|&pass| passes[pass].0.is_masked(i)).collect();
                assert_eq!(mean, masked.iter().sum::<usize>() as f32 / masked.len() as f32);
            }
        }
        let second = covering_orders(1, L, 4, &MaskRule { first_image: 2, ..MaskRule::BY_SCORE });
        assert_eq!(second[1].rank, covering_orders(3, L, 4, &MaskRule::BY_SCORE)[1].rank[2 * L..]);
    }
}
