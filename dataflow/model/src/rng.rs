//! Keyed random numbers: a draw depends on what it is for, never on the thread that makes it or on the order of draws.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What random numbers are for. The numbers are part of the key: changing one changes results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// Which samples have which role.
    Roles = 1,
    /// Order of the pretrain role in an epoch.
    PretrainOrder = 2,
    /// Order of the finetune role in an epoch.
    FinetuneOrder = 3,
    /// Order of the validation role in an epoch.
    ValidationOrder = 4,
    /// Augmentation of a pretrain sample.
    PretrainAugment = 5,
    /// Augmentation of a finetune sample.
    FinetuneAugment = 6,
    /// Random masks and exploration, by level-1 step and place in the batch.
    Mask = 7,
    /// Dropout before the head, by outer iteration and pass.
    Dropout = 8,
    /// Initial weights.
    Init = 9,
    /// Choice of the panel: the fixed images whose masks are logged.
    Panel = 10,
    /// Evaluations.
    Eval = 11,
    /// The image that replaces an unreadable one, by epoch and sample.
    Replacement = 12,
    /// A further draw of masks for a batch that has been masked, by level-1 step and place in the batch.
    MaskAgain = 13,
    /// Which sample's label another one gets where labels are shuffled, as a control.
    Labels = 14,
    /// Mask ratio and exploration where they are drawn anew for each batch, by level-1 step and which of the two.
    MaskSchedule = 15,
    /// Which strategy of a mixture masks an image, by level-1 step and place in the batch.
    MaskMixture = 16,
    /// Random masks under which a teacher's losses are measured, by level-1 step and place in the batch.
    MaskProbe = 17,
    /// The arm of a learned exploration, by level-1 step and place in the batch.
    MaskExplore = 18,
    /// The arm of a learned mask ratio, by level-1 step.
    MaskRatio = 19,
    /// Which images are in a resample of a bootstrap, by resample.
    Bootstrap = 32,
}

/// The generator of `purpose` for (`major`, `minor`), for example (epoch, sample id).
#[must_use]
pub fn keyed(seed: u64, purpose: Purpose, major: u64, minor: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, major, minor]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A uniform integer in `0..bound`, the same on every platform.
///
/// # Panics
/// If `bound` is 0.
pub fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    assert!(bound > 0, "invariant: there is something to draw from");
    // Lemire's method: the high word of a product. The low words below `threshold` are rejected, which would bias it.
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= threshold {
            return (product >> 64) as u64;
        }
    }
}

/// A uniform number in [0, 1) with 53 random bits.
pub fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Shuffles in place (Fisher-Yates).
pub fn shuffle<T>(values: &mut [T], rng: &mut ChaCha8Rng) {
    for last in (1..values.len()).rev() {
        let other = below(rng, last as u64 + 1) as usize;
        values.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |seed, purpose, major, minor| keyed(seed, purpose, major, minor).next_u64();
        let base = first(1, Purpose::Mask, 2, 3);
        assert_eq!(base, first(1, Purpose::Mask, 2, 3));
        assert_ne!(base, first(2, Purpose::Mask, 2, 3));
        assert_ne!(base, first(1, Purpose::Dropout, 2, 3));
        assert_ne!(base, first(1, Purpose::Mask, 3, 2));
        assert_ne!(base, first(1, Purpose::Mask, 2, 4));
    }

    #[test]
    fn draws_below_a_bound_are_uniform() {
        let mut rng = keyed(7, Purpose::Eval, 0, 0);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[below(&mut rng, 7) as usize] += 1;
        }
        // Five standard deviations of a binomial count are 463.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 463), "{counts:?}");
        let mean = (0..10_000).map(|_| uniform(&mut rng)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut values: Vec<u32> = (0..1000).collect();
        shuffle(&mut values, &mut keyed(1, Purpose::Roles, 0, 0));
        assert_ne!(values[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        values.sort_unstable();
        assert!(values.iter().copied().eq(0..1000));
    }
}
