//! Intervals of metrics by the bootstrap over images: what would the metric be on another draw of images?
//!
//! It says how far a metric moves with the images that judge it, given the model. It says nothing of how it moves with
//! the seed of training.

use std::borrow::Cow;

use super::{Measured, Metrics};
use crate::rng::{Purpose, below, keyed};

/// The percentile interval of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Interval {
    /// Name of the metric.
    pub name: Cow<'static, str>,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How often each of `num_images` images is in resample number `resample`: as many draws with replacement as there are
/// images, keyed by seed and resample.
#[must_use]
pub fn resample(seed: u64, resample: u64, num_images: usize) -> Vec<u32> {
    let mut rng = keyed(seed, Purpose::Bootstrap, resample, 0);
    let mut times = vec![0; num_images];
    for _ in 0..num_images {
        times[below(&mut rng, num_images as u64) as usize] += 1;
    }
    times
}

/// The percentile interval of each of the metrics that covers the share `level` (for example 0.95) of its values on
/// `num_resamples` resamples of the images. Percentiles are interpolated between neighbours (numpy's default). A metric
/// that a resample leaves out is judged by the others.
#[must_use]
pub fn intervals(metrics: &dyn Metrics, seed: u64, num_resamples: u64, level: f64) -> Vec<Interval> {
    let num_images = metrics.num_images();
    let resamples: Vec<Vec<Measured>> =
        (0..num_resamples).map(|number| metrics.resampled(&resample(seed, number, num_images))).collect();
    let interval = |measured: Measured| {
        let of_name = |all: &Vec<Measured>| all.iter().find(|other| other.name == measured.name).map(|m| m.value);
        let mut values: Vec<f64> = resamples.iter().filter_map(of_name).collect();
        values.sort_by(f64::total_cmp);
        let tail = (1.0 - level) / 2.0;
        Some(Interval { name: measured.name, low: quantile(&values, tail)?, high: quantile(&values, 1.0 - tail)? })
    };
    metrics.finish().into_iter().filter_map(interval).collect()
}

/// The quantile `share` of sorted values, linear between neighbours; none of no values.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let below = sorted[place as usize];
    let above = sorted[(place as usize + 1).min(sorted.len() - 1)];
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        // np.percentile(values, [0, 2.5, 30, 50, 97.5, 100])
        for (share, expected) in [(0.0, 1.0), (0.025, 1.1), (0.3, 2.4), (0.5, 4.0), (0.975, 15.2), (1.0, 16.0)] {
            assert!((quantile(&values, share).unwrap() - expected).abs() < 1e-12, "{share}");
        }
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.975), Some(3.0));
    }

    #[test]
    fn a_resample_has_as_many_images_and_its_own_draws() {
        let one = resample(1, 0, 100);
        assert_eq!(one.iter().sum::<u32>(), 100);
        assert!(one.iter().any(|times| *times > 1) && one.contains(&0));
        assert_eq!(one, resample(1, 0, 100));
        assert_ne!(one, resample(1, 1, 100));
        assert_ne!(one, resample(2, 0, 100));
        assert!(resample(1, 0, 0).is_empty());
    }
}
