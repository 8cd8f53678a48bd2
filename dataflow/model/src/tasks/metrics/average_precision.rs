//! Average precision of properties that an image has or has not.

use std::sync::OnceLock;

use super::{Measured, Metrics, all_finite, refused, same_images, wrong_kinds};
use crate::error::ModelError;
use crate::tasks::{Predictions, Targets};

/// `mean_average_precision`: the mean over properties of Σ (Rₙ − Rₙ₋₁)·Pₙ, where R and P are recall and precision of
/// the images whose score is at least the n-th largest (scikit-learn's `average_precision_score`, macro). Images of which
/// a property is not known do not count for it; properties that no image has do not count.
#[derive(Clone, Debug)]
pub struct MeanAveragePrecision {
    num: usize,
    scores: Vec<f32>,
    labels: Vec<i8>,
    /// For each property the images in which it is known, largest score first.
    order: OnceLock<Vec<Vec<usize>>>,
}

impl MeanAveragePrecision {
    /// For `num` properties, over no images yet.
    #[must_use]
    pub const fn new(num: usize) -> Self {
        MeanAveragePrecision { num, scores: Vec::new(), labels: Vec::new(), order: OnceLock::new() }
    }

    fn order(&self) -> &[Vec<usize>] {
        self.order.get_or_init(|| {
            let of = |property: usize| {
                let score = |image: &usize| self.scores[image * self.num + property];
                let is_known = |image: &usize| self.labels[image * self.num + property] >= 0;
                let mut images: Vec<usize> = (0..self.num_images()).filter(is_known).collect();
                images.sort_by(|a, b| score(b).total_cmp(&score(a)));
                images
            };
            (0..self.num).map(of).collect()
        })
    }

    /// The average precision of one property; none if no image has it.
    fn of(&self, property: usize, order: &[usize], times: &[u32]) -> Option<f64> {
        let at = |image: usize| image * self.num + property;
        let weight = |image: usize| f64::from(times[image]);
        let num_positive: f64 = order.iter().filter(|i| self.labels[at(**i)] == 1).map(|i| weight(*i)).sum();
        if num_positive == 0.0 {
            return None;
        }
        let (mut found, mut right, mut sum) = (0.0, 0.0, 0.0);
        // Images of one score are found together. -0 and 0 are one score.
        for equals in order.chunk_by(|a, b| self.scores[at(*a)] == self.scores[at(*b)]) {
            let before = right;
            for &image in equals {
                found += weight(image);
                right += weight(image) * f64::from(self.labels[at(image)]);
            }
            if right > before {
                sum += (right - before) / num_positive * (right / found);
            }
        }
        Some(sum)
    }
}

impl Metrics for MeanAveragePrecision {
    fn add(&mut self, predictions: &Predictions, targets: &Targets) -> Result<(), ModelError> {
        let (Predictions::Scores { num, values }, Targets::Labels { num: num_labels, values: labels }) =
            (predictions, targets)
        else {
            return Err(wrong_kinds("scores with labels", predictions, targets));
        };
        same_images(predictions, targets)?;
        all_finite(values)?;
        if let Some(num) = [num, num_labels].into_iter().find(|num| **num != self.num) {
            return Err(refused(format!("average precision needs {} properties, got {num}", self.num)));
        }
        if let Some(label) = labels.iter().find(|label| !(-1..=1).contains(*label)) {
            return Err(refused(format!("a label must be 0, 1 or -1 (unknown), got {label}")));
        }
        self.order = OnceLock::new();
        self.scores.extend_from_slice(values);
        self.labels.extend_from_slice(labels);
        Ok(())
    }

    fn num_images(&self) -> usize {
        self.labels.len() / self.num.max(1)
    }

    fn resampled(&self, times: &[u32]) -> Vec<Measured> {
        let each = self.order().iter().enumerate();
        let values: Vec<f64> = each.filter_map(|(property, order)| self.of(property, order, times)).collect();
        if values.is_empty() {
            return Vec::new();
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        vec![Measured::share("mean_average_precision", mean)]
    }
}
