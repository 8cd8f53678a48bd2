//! Bootstrap intervals over the images that judge: how far a figure would move if other images of the same kind judged.
//!
//! The images are drawn with replacement, as many as there are, and the ends are percentiles of the means (B. Efron, Ann.
//! Statist. 7, 1979). It says nothing of other seeds of the training, which move a figure too; over the few seeds of a
//! comparison a bootstrap would cover far too little, see the t-intervals of `mlomae compare`.

use mlomae_model::tasks::metrics::{quantile, resample};

/// Draws of all images.
pub const NUM_RESAMPLES: usize = 1000;
/// The confidence of the intervals.
pub const LEVEL: f64 = 0.95;

/// The 95 % interval of the mean of `values`, one an image: percentiles of [`NUM_RESAMPLES`] resampled means, between
/// which values are interpolated linearly. None without values.
///
/// Draws are keyed by `seed` and the number of the resample, so that whatever is judged on as many images under one seed
/// is judged on the same resamples.
#[must_use]
pub fn interval(values: &[f64], seed: u64) -> Option<[f64; 2]> {
    if values.is_empty() {
        return None;
    }
    let mean = |number: usize| {
        let times = resample(seed, number as u64, values.len());
        times.iter().zip(values).map(|(times, value)| f64::from(*times) * value).sum::<f64>() / values.len() as f64
    };
    let mut means: Vec<f64> = (0..NUM_RESAMPLES).map(mean).collect();
    means.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    Some([quantile(&means, tail)?, quantile(&means, 1.0 - tail)?])
}

#[cfg(test)]
mod tests {
    use mlomae_model::rng::{Purpose, keyed, uniform};

    use super::*;

    #[test]
    fn the_interval_is_that_of_the_binomial_and_the_same_every_time() {
        // The sum of resampled zeros and ones is binomial: scipy.stats.binom.ppf([0.025, 0.975], 400, p) / 400.
        for (num_right, low, high) in [(120, 0.255, 0.345), (200, 0.45, 0.55), (380, 0.9275, 0.97)] {
            let values: Vec<f64> = (0..400).map(|image| f64::from(u8::from(image < num_right))).collect();
            let mut sums = [0.0; 2];
            for seed in 0..40 {
                let found = interval(&values, seed).unwrap();
                assert_eq!(interval(&values, seed), Some(found));
                sums = [0, 1].map(|end| sums[end] + found[end] / 40.0);
            }
            // One image is 0.0025.
            assert!((sums[0] - low).abs() < 0.002 && (sums[1] - high).abs() < 0.002, "{num_right}: {sums:?}");
        }
        let values: Vec<f64> = (0..40).map(f64::from).collect();
        assert_ne!(interval(&values, 1), interval(&values, 2));
        assert_eq!((interval(&[], 1), interval(&[0.25; 9], 1)), (None, Some([0.25, 0.25])));
    }

    #[test]
    fn it_covers_the_truth_about_as_often_as_it_says() {
        let covers = |round: u64| {
            let mut rng = keyed(7, Purpose::Eval, round, 1);
            let values: Vec<f64> = (0..200).map(|_| f64::from(u8::from(uniform(&mut rng) < 0.3))).collect();
            interval(&values, round).is_some_and(|[low, high]| low <= 0.3 && 0.3 <= high)
        };
        let share = (0..400).filter(|round| covers(*round)).count() as f64 / 400.0;
        assert!((0.91..0.98).contains(&share), "{share}");
    }
}
