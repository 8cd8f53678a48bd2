//! What a policy chooses beside patches, as arms that are drawn with probabilities π = softmax(ψ), where ψ is a part of
//! φ and is trained by the score function (REINFORCE, Williams, 1992).
//!
//! Learned exploration ([`ExploreArms`]): an arm is the share of an image's patches that take random places in the
//! order, and is drawn for each image. The reward R of an image is by how much a step of level 1 on its masks lowers L_v
//! to first order (see [`policy`](crate::policy)). With a the arm of an image and R̄ the mean reward of the others,
//! ∂ψ = −mean (R − R̄)·∂log π(a)/∂ψ is the gradient of E\[−R\] without bias.
//!
//! Learned mask ratio ([`RatioArms`]): an arm is the mask ratio of a batch, and is drawn for each batch. Its reward is
//! the cosine of v and ∂L_m/∂θ, as the size of a gradient makes no difference to AdamW; with b a running mean of earlier
//! rewards, ∂ψ = −(R − b)·∂log π(a)/∂ψ.

use std::ops::Range;
use std::sync::Arc;

use super::kind::{MaskNetwork, MaskRule, Masking, Needs, Trace};
use super::scales::{Scales, softmax};
use crate::config::num_visible;
use crate::layout::{Layout, SharedLayout, Weight};
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::rng::{Purpose, keyed, uniform};

/// Name of the logits of [`ExploreArms`] in φ.
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
            let place = rule.first_image + image as u64;
            arm_at(&probabilities, uniform(&mut keyed(rule.seed, Purpose::MaskExplore, rule.step, place)))
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

/// The arm in whose part of [0, 1) `point` lies, where the parts are as long as the probabilities.
fn arm_at(probabilities: &[f64], point: f64) -> usize {
    let mut left = point;
    let is_in = |probability: &f64| {
        left -= probability;
        left < 0.0
    };
    probabilities.iter().position(is_in).unwrap_or(probabilities.len() - 1)
}

/// Name of the logits of [`RatioArms`] in φ.
pub const RATIO_LOGITS: &str = "ratio.logits";

/// What is left of the running mean of [`RatioArms`]' rewards with each outer iteration.
const BASELINE_DECAY: f32 = 0.9;

/// The arms of a learned mask ratio.
#[derive(Clone, Debug)]
pub struct RatioArms {
    ratios: Arc<[f64]>,
    num_patches: usize,
    logits: Weight,
}

impl RatioArms {
    /// The mask ratio of each arm, `[A]`.
    #[must_use]
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// Where the logits `[A]` lie in φ. They are 0 at the beginning.
    #[must_use]
    pub const fn logits(&self) -> Weight {
        self.logits
    }

    /// The arm of a batch at the logits `rho`. The draw is keyed by step, the same for all ranks.
    #[must_use]
    pub fn draw(&self, rho: &[f32], rule: &MaskRule) -> usize {
        arm_at(&softmax(rho), uniform(&mut keyed(rule.seed, Purpose::MaskRatio, rule.step, 0)))
    }

    /// The rule with the visible patches of the arm that is drawn at the logits `rho`.
    #[must_use]
    pub fn drawn(&self, rho: &[f32], rule: MaskRule) -> MaskRule {
        let ratio = self.ratios[self.draw(rho, &rule)];
        MaskRule { num_visible: Some(num_visible(self.num_patches, ratio)), ..rule }
    }

    /// ∂E\[−R\]/∂logits `[A]` at `rho`, as estimated from one arm, its reward and a baseline that does not depend on
    /// it.
    #[must_use]
    pub fn gradient(rho: &[f32], arm: usize, reward: f32, baseline: f32) -> Vec<f64> {
        let advantage = f64::from(reward) - f64::from(baseline);
        let of_arm = |(other, probability)| -advantage * (f64::from(u8::from(other == arm)) - probability);
        softmax(rho).into_iter().enumerate().map(of_arm).collect()
    }

    /// The running mean of rewards after `reward`; without one before it is the reward itself, of which nothing is
    /// learned then.
    #[must_use]
    pub fn next_baseline(before: Option<f32>, reward: f32) -> f32 {
        before.map_or(reward, |before| BASELINE_DECAY * before + (1.0 - BASELINE_DECAY) * reward)
    }
}

/// The rule with what the policy's arms say of this rank's images, where `rule` asks for it. `values` gives a part of φ.
///
/// # Errors
/// Those of `values`.
pub fn drawn<E>(
    masking: &dyn Masking,
    mut rule: MaskRule,
    num_images: usize,
    mut values: impl FnMut(Range<usize>) -> Result<Vec<f32>, E>,
) -> Result<MaskRule, E> {
    if rule.scores_nothing(masking.needs()) {
        return Ok(rule);
    }
    if let Some(arms) = masking.explore_arms().filter(|_| rule.explore_arms) {
        rule = arms.drawn(&values(arms.logits().range())?, rule, num_images);
    }
    if let Some(arms) = masking.ratio_arms().filter(|_| rule.ratio_arms) {
        rule = arms.drawn(&values(arms.logits().range())?, rule);
    }
    Ok(rule)
}

/// A learned masking with arms: φ is that of the masking inside, followed by the arms' logits.
#[derive(Clone, Debug)]
pub struct Armed {
    inner: Arc<dyn Masking>,
    layout: SharedLayout,
    inner_len: usize,
    explore: Option<ExploreArms>,
    ratio: Option<RatioArms>,
}

impl Armed {
    /// `inner`, which must be learned, with exploration by one of these shares and a mask ratio of these, of
    /// `num_patches` patches; itself where there are none.
    #[must_use]
    pub fn wrap(inner: Arc<dyn Masking>, shares: &[f64], (ratios, num_patches): (&[f64], usize)) -> Arc<dyn Masking> {
        let Some(of_inner) = inner.layout().filter(|_| !(shares.is_empty() && ratios.is_empty())) else { return inner };
        let mut layout = Layout::clone(of_inner);
        let inner_len = layout.len;
        let explore = (!shares.is_empty())
            .then(|| ExploreArms { shares: shares.into(), logits: layout.add(LOGITS, &[shares.len()]) });
        let ratio = (!ratios.is_empty()).then(|| {
            let logits = layout.add(RATIO_LOGITS, &[ratios.len()]);
            RatioArms { ratios: ratios.into(), num_patches, logits }
        });
        Arc::new(Armed { inner, layout: Arc::new(layout), inner_len, explore, ratio })
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
        self.explore.as_ref()
    }

    fn ratio_arms(&self) -> Option<&RatioArms> {
        self.ratio.as_ref()
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

    fn backward_tangent(
        &self,
        compute: &Compute,
        phi: &[f32],
        trace: &Trace,
        dinput: &[f32],
        dscores: &[f32],
        ddscores: &[f32],
        ddphi: &mut [f32],
    ) -> bool {
        let (phi, ddphi) = (&phi[..self.inner_len], &mut ddphi[..self.inner_len]);
        self.inner.backward_tangent(compute, phi, trace, dinput, dscores, ddscores, ddphi)
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

    #[test]
    fn the_ratios_gradient_is_the_expectation_over_its_arms_whatever_the_baseline() {
        let (rewards, pi) = ([0.25f32, -0.5, 1.0], softmax(&PSI));
        let mean: f64 = pi.iter().zip(rewards).map(|(p, r)| p * f64::from(r)).sum();
        for baseline in [0.0, 0.75] {
            let mut got = [0.0; 3];
            for arm in 0..3 {
                let gradient = RatioArms::gradient(&PSI, arm, rewards[arm], baseline);
                (0..3).for_each(|other| got[other] += pi[arm] * gradient[other]);
            }
            for arm in 0..3 {
                let expected = -pi[arm] * (f64::from(rewards[arm]) - mean);
                assert!((got[arm] - expected).abs() < 1e-12, "{baseline}: {got:?} {expected}");
            }
        }
        assert_eq!(RatioArms::next_baseline(None, 0.5), 0.5);
        assert!((RatioArms::next_baseline(Some(0.5), 1.5) - 0.6).abs() < 1e-6);
    }

    #[test]
    fn a_batch_has_the_visible_patches_of_its_arm() {
        let mut layout = Layout::new(crate::Level::Mask);
        let (ratios, num_patches) = ([0.5, 0.6, 0.85].into(), 36);
        let arms = RatioArms { ratios, num_patches, logits: layout.add(RATIO_LOGITS, &[3]) };
        let mut num = [0; 3];
        for step in 0..20_000 {
            let rule = MaskRule { seed: 2, step, ..MaskRule::BY_SCORE };
            let arm = arms.draw(&PSI, &rule);
            num[arm] += 1;
            // A second draw of masks and another rank have the same number of patches.
            let again = arms.drawn(&PSI, MaskRule { draw: 1, first_image: 7, ..rule });
            assert_eq!(again.num_visible, Some([18, 14, 5][arm]));
        }
        for (num, probability) in num.into_iter().zip(softmax(&PSI)) {
            assert!((f64::from(num) / 20_000.0 - probability).abs() < 0.015, "{num} {probability}");
        }
    }
}
