//! Learned exploration: the share of an image's patches that take random places in the order is one of several arms,
//! drawn for each image with probabilities π = softmax(ψ), and ψ is a part of φ.
//!
//! ψ is trained by the score function (REINFORCE, Williams, 1992) on the images' rewards R, by how much a step of level
//! 1 on an image's masks lowers L_v to first order (see [`policy`](crate::policy)): with a the arm of an image and R̄
//! the mean reward of the others, ∂ψ = −mean (R − R̄)·∂log π(a)/∂ψ, which is the gradient of E\[−R\] without bias.

use std::sync::Arc;

use super::kind::{MaskNetwork, MaskRule, Masking, Needs, Trace};
use super::scales::{Scales, softmax};
use crate::layout::{Layout, SharedLayout, Weight};
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::rng::{Purpose, keyed, uniform};

/// Name of ψ in φ.
pub const LOGITS: &str = "explore.logits";

/// The arms of a learned exploration.
#[derive(Clone, Debug)]
pub struct ExploreArms {
    shares: Arc<[f64]>,
    logits: Weight,
}

impl ExploreArms {
    /// The share of patches that each arm places at random, `[A]`.
    #[must_use]
    pub fn shares(&self) -> &[f64] {
        &self.shares
    }

    /// Where ψ `[A]` lies in φ. It is 0 at the beginning: all arms have the same chance.
    #[must_use]
    pub const fn logits(&self) -> Weight {
        self.logits
    }

    /// The arm of each of `num_images` images from [`MaskRule::first_image`] on, at ψ. Draws are keyed by step and
    /// place in the batch, and have a stream of their own.
    #[must_use]
    pub fn draw(&self, psi: &[f32], rule: &MaskRule, num_images: usize) -> Vec<usize> {
        let probabilities = softmax(psi);
        let arm = |image: usize| {
            let mut left =
                uniform(&mut keyed(rule.seed, Purpose::MaskExplore, rule.step, rule.first_image + image as u64));
            for (arm, probability) in probabilities.iter().enumerate() {
                left -= probability;
                if left < 0.0 {
                    return arm;
                }
            }
            probabilities.len() - 1
        };
        (0..num_images).map(arm).collect()
    }

    /// The rule with the share of each of `num_images` images, drawn at ψ.
    #[must_use]
    pub fn drawn(&self, psi: &[f32], rule: MaskRule, num_images: usize) -> MaskRule {
        let shares = self.draw(psi, &rule, num_images).into_iter().map(|arm| self.shares[arm]).collect();
        MaskRule { explored: Some(shares), ..rule }
    }

    /// ∂E\[−R\]/∂ψ `[A]` at ψ as estimated from the arms and the rewards of a batch, both `[batch]`.
    #[must_use]
    pub fn gradient(psi: &[f32], arms: &[usize], rewards: &[f32]) -> Vec<f64> {
        let probabilities = softmax(psi);
        let (batch, sum) = (rewards.len() as f64, rewards.iter().map(|&r| f64::from(r)).sum::<f64>());
        let mut gradient = vec![0.0; psi.len()];
        for (&arm, &reward) in arms.iter().zip(rewards) {
            let reward = f64::from(reward);
            let others = (sum - reward) / (batch - 1.0).max(1.0);
            for (other, (d, probability)) in gradient.iter_mut().zip(&probabilities).enumerate() {
                *d -= (reward - others) * (f64::from(u8::from(other == arm)) - probability) / batch;
            }
        }
        gradient
    }
}

/// A masking with learned exploration: φ is that of the masking inside, followed by ψ.
#[derive(Clone, Debug)]
pub struct Armed {
    inner: Arc<dyn Masking>,
    layout: SharedLayout,
    inner_len: usize,
    arms: ExploreArms,
}

impl Armed {
    /// `inner`, which must be learned, with these arms; itself where there are none.
    #[must_use]
    pub fn wrap(inner: Arc<dyn Masking>, shares: &[f64]) -> Arc<dyn Masking> {
        match inner.layout() {
            Some(layout) if !shares.is_empty() => {
                let mut layout = Layout::clone(layout);
                let inner_len = layout.len;
                let arms = ExploreArms { shares: shares.into(), logits: layout.add(LOGITS, &[shares.len()]) };
                Arc::new(Armed { inner, layout: Arc::new(layout), inner_len, arms })
            }
            _ => inner,
        }
    }
}

impl Masking for Armed {
    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn keys(&self, num_images: usize, scores: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        self.inner.keys(num_images, scores, rule)
    }

    fn layout(&self) -> Option<&SharedLayout> {
        Some(&self.layout)
    }

    fn scales(&self) -> Option<&Scales> {
        self.inner.scales()
    }

    fn explore_arms(&self) -> Option<&ExploreArms> {
        Some(&self.arms)
    }

    fn network(&self) -> Option<MaskNetwork> {
        self.inner.network()
    }

    fn init(&self, seed: u64) -> Buffer {
        let mut values = self.inner.init(seed).to_vec();
        values.resize(self.layout.len, 0.0);
        Buffer::from_vec(values)
    }

    fn trace_values(&self) -> usize {
        self.inner.trace_values()
    }

    fn forward(&self, compute: &Compute, phi: &[f32], input: &Arc<Buffer>) -> Option<Trace> {
        self.inner.forward(compute, &phi[..self.inner_len], input)
    }

    fn backward(
        &self,
        compute: &Compute,
        phi: &[f32],
        trace: &Trace,
        dscores: &[f32],
        dphi: Option<&mut [f32]>,
        want_input: bool,
    ) -> Option<Buffer> {
        let dphi = dphi.map(|dphi| &mut dphi[..self.inner_len]);
        self.inner.backward(compute, &phi[..self.inner_len], trace, dscores, dphi, want_input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::order::{explored_keys, order_by_keys};

    const SHARES: [f64; 3] = [0.0, 0.5, 1.0];
    const PSI: [f32; 3] = [0.3, -0.6, 0.1];

    fn arms() -> ExploreArms {
        let mut layout = Layout::new(crate::Level::Mask);
        ExploreArms { shares: SHARES.into(), logits: layout.add(LOGITS, &[3]) }
    }

    #[test]
    fn the_gradient_is_the_expectation_over_all_draws_of_a_batch() {
        // Rewards of an image by its arm. E[R] has ∂E[R]/∂ψ_a = π_a (R_a − E[R]).
        let rewards = [[1.0f32, -2.0, 0.5], [0.25, 3.0, -1.0], [2.0, 0.0, 4.0]];
        let pi = softmax(&PSI);
        let mut expected = [0.0; 3];
        for of_image in rewards {
            let mean: f64 = pi.iter().zip(of_image).map(|(p, r)| p * f64::from(r)).sum();
            (0..3).for_each(|arm| expected[arm] -= pi[arm] * (f64::from(of_image[arm]) - mean) / 3.0);
        }
        let mut got = [0.0; 3];
        for draws in (0..27).map(|i| [i / 9, i / 3 % 3, i % 3]) {
            let chance: f64 = draws.iter().map(|&arm| pi[arm]).product();
            let of_draws = [0, 1, 2].map(|image| rewards[image][draws[image]]);
            let gradient = ExploreArms::gradient(&PSI, &draws, &of_draws);
            (0..3).for_each(|arm| got[arm] += chance * gradient[arm]);
        }
        for arm in 0..3 {
            assert!((got[arm] - expected[arm]).abs() < 1e-12, "{got:?} {expected:?}");
        }
        // A reward that is the same for all says nothing.
        let same = ExploreArms::gradient(&PSI, &[0, 2, 1], &[7.0; 3]);
        assert!(same.iter().all(|d| d.abs() < 1e-12), "{same:?}");
        assert!(ExploreArms::gradient(&PSI, &[1], &[2.0]).iter().all(|d| d.is_finite()));
    }

    #[test]
    fn arms_are_drawn_by_their_chance_for_each_image_by_its_place() {
        let (num, rule) = (30_000, MaskRule { seed: 3, step: 8, ..MaskRule::BY_SCORE });
        let drawn = arms().draw(&PSI, &rule, num);
        for (arm, probability) in softmax(&PSI).into_iter().enumerate() {
            let share = drawn.iter().filter(|drawn| **drawn == arm).count() as f64 / num as f64;
            assert!((share - probability).abs() < 0.01, "{arm}: {share} {probability}");
        }
        // Images 100 to 119 alone, as another rank has them.
        let later = arms().draw(&PSI, &MaskRule { first_image: 100, ..rule.clone() }, 20);
        assert_eq!(later, drawn[100..120]);
        assert_ne!(arms().draw(&PSI, &MaskRule { step: 9, ..rule.clone() }, 100), drawn[..100]);
        assert_eq!(arms().draw(&[-90.0, 90.0, 0.0], &rule, 50), [1; 50]);
    }

    #[test]
    fn each_image_has_the_share_of_its_arm_and_the_draws_that_it_always_had() {
        let scores: Vec<f32> = (0..3 * 64).map(|i| ((i * 37) % 191) as f32 / 200.0).collect();
        let rule = MaskRule { seed: 5, step: 2, ..MaskRule::BY_SCORE };
        let of = |rule: &MaskRule| order_by_keys(&explored_keys(&scores, 64, rule), 64, 16);
        let mixed = of(&MaskRule { explored: Some([0.0, 0.5, 1.0].into()), ..rule.clone() });
        for (image, explore) in [0.0, 0.5, 1.0].into_iter().enumerate() {
            let alone = of(&MaskRule { explore, ..rule.clone() });
            assert_eq!(mixed.slice(image..image + 1).rank, alone.slice(image..image + 1).rank, "{explore}");
        }
    }
}
