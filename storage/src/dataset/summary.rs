//! What `data info` shows of a dataset.

use super::error::DataError;
use super::fingerprint::sampled;
use super::sample::Dataset;
use super::target::TargetKind;
use super::target_summary::TargetSummary;

/// Images that are decoded at most of data that have other targets than the class.
const MAX_SAMPLED: usize = 2000;

/// Counts and statistics over the samples of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Number of images.
    pub num_samples: usize,
    /// Of how many of them sizes, pixels and targets are told: all, or some that are spread over the split.
    pub num_sampled: usize,
    /// Name and number of images of each class, in the order of the labels.
    pub classes: Vec<(String, usize)>,
    /// Images without a label.
    pub num_unlabelled: usize,
    /// Smallest width and smallest height in pixels.
    pub min_size: (usize, usize),
    /// Largest width and largest height in pixels.
    pub max_size: (usize, usize),
    /// Channels of every image: 1 or 3.
    pub channels: usize,
    /// Mean of each channel over all pixels, on the scale 0 to 1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel over all pixels, on the scale 0 to 1.
    pub std: Vec<f64>,
    /// What is told of each kind of target that was asked for, but the class.
    pub targets: Vec<TargetSummary>,
}

/// Counts the classes of a split, and decodes every sample, or 2,000 of data of which more than the class is asked for.
/// Sums over pixels are integers, so that no order of summation matters.
///
/// # Errors
/// The error of the first sample that cannot be read or decoded.
pub fn summary(dataset: &dyn Dataset) -> Result<Summary, DataError> {
    let info = dataset.info();
    let mut classes: Vec<(String, usize)> = info.class_names.iter().map(|name| (name.clone(), 0)).collect();
    let (mut num_unlabelled, mut num_values) = (0, 0_u128);
    let (mut min_size, mut max_size) = ((usize::MAX, usize::MAX), (0, 0));
    let mut sums = vec![(0_u128, 0_u128); info.channels];
    for index in 0..dataset.len() {
        match dataset.label(index)?.and_then(|label| classes.get_mut(usize::try_from(label).ok()?)) {
            Some((_, count)) => *count += 1,
            None => num_unlabelled += 1,
        }
    }
    let infos = dataset.targets_info();
    let has_class = infos.iter().any(|info| info.kind == TargetKind::Class);
    let mut targets: Vec<TargetSummary> = infos.into_iter().map(TargetSummary::new).collect();
    let is_class_alone = has_class && targets.len() == 1;
    let indices = sampled(dataset.len(), if is_class_alone { dataset.len() } else { MAX_SAMPLED });
    let num_sampled = indices.len();
    for index in indices {
        let sample = dataset.sample(index)?;
        targets.iter_mut().zip(&sample.targets).for_each(|(summary, target)| summary.add(target));
        let image = &sample.image;
        min_size = (min_size.0.min(image.width), min_size.1.min(image.height));
        max_size = (max_size.0.max(image.width), max_size.1.max(image.height));
        num_values += (image.width * image.height) as u128;
        for (channel, (sum, squares)) in sums.iter_mut().enumerate() {
            let values = image.pixels.iter().skip(channel).step_by(image.channels);
            let (s, q) = values
                .fold((0_u64, 0_u64), |(s, q), &value| (s + u64::from(value), q + u64::from(value) * u64::from(value)));
            *sum += u128::from(s);
            *squares += u128::from(q);
        }
    }
    let count = num_values.max(1) as f64;
    let mean: Vec<f64> = sums.iter().map(|(sum, _)| *sum as f64 / count / 255.0).collect();
    let variance =
        |((_, squares), mean): (&(u128, u128), &f64)| *squares as f64 / count / (255.0 * 255.0) - mean * mean;
    let std = sums.iter().zip(&mean).map(variance).map(|variance| variance.max(0.0).sqrt()).collect();
    Ok(Summary {
        num_samples: dataset.len(),
        num_sampled,
        classes,
        num_unlabelled,
        min_size,
        max_size,
        channels: info.channels,
        mean,
        std,
        targets: targets.into_iter().filter(|summary| summary.info.kind != TargetKind::Class).collect(),
    })
}
