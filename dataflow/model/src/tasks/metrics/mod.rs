//! How good predictions are: metrics of a task over any number of images.
//!
//! Metrics keep what they need of each image, so that they also say what they would be on a resampled data set: that
//! is what the interval of [`intervals`] rests on. None of them depends on how images are cut into calls of
//! [`Metrics::add`].

mod accuracy;
mod average_precision;
mod bootstrap;
mod detection;
mod iou;
mod regression;
mod several;
#[cfg(test)]
mod tests;

pub use accuracy::Accuracy;
pub use average_precision::MeanAveragePrecision;
pub use bootstrap::{Interval, intervals, resample};
pub use detection::CocoAveragePrecision;
pub use iou::MeanIou;
pub use regression::RegressionErrors;
pub use several::Several;

use std::borrow::Cow;

use super::predictions::Predictions;
use super::targets::Targets;
use crate::error::ModelError;

/// A metric's value on some images.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Name of the metric in logs, for example `accuracy`.
    pub name: Cow<'static, str>,
    /// Its unit in logs, for example `share`.
    pub unit: &'static str,
    /// The value, finite.
    pub value: f64,
}

impl Measured {
    /// A metric that is a share, in [0, 1] for most.
    const fn share(name: &'static str, value: f64) -> Self {
        Measured { name: Cow::Borrowed(name), unit: "share", value }
    }
}

/// A number for each image, of a metric that has one.
#[derive(Clone, Debug, PartialEq)]
pub struct PerImage {
    /// Its name in logs.
    pub name: Cow<'static, str>,
    /// Its unit in logs.
    pub unit: &'static str,
    /// The values in the order of [`Metrics::add`], `[images]`; NaN where an image has no known target.
    pub values: Vec<f64>,
}

/// The metrics of a task.
pub trait Metrics: Send + Sync {
    /// Takes the predictions for some images, and their targets.
    ///
    /// # Errors
    /// [`ModelError::Targets`] when predictions or targets are not of the metric's kind, do not belong together, or are
    /// not finite; nothing is taken then.
    fn add(&mut self, predictions: &Predictions, targets: &Targets) -> Result<(), ModelError>;

    /// Number of images taken.
    fn num_images(&self) -> usize;

    /// The metrics if image i had been taken `times[i]` times; `times` is `[images]`. A metric is left out where nothing
    /// is known that it judges, for example the average precision of large objects where there are none.
    fn resampled(&self, times: &[u32]) -> Vec<Measured>;

    /// The metrics over all images.
    fn finish(&self) -> Vec<Measured> {
        self.resampled(&vec![1; self.num_images()])
    }

    /// Numbers for each image, for metrics that have such.
    fn per_image(&self) -> Vec<PerImage> {
        Vec::new()
    }
}

/// The error of predictions or targets that a metric cannot judge.
fn refused(problem: String) -> ModelError {
    ModelError::Targets { problem }
}

/// Refuses predictions and targets that are not for the same number of images.
fn same_images(predictions: &Predictions, targets: &Targets) -> Result<(), ModelError> {
    match (predictions.len(), targets.len()) {
        (found, needed) if found == needed => Ok(()),
        (found, needed) => Err(refused(format!("a metric needs predictions for its {needed} images, got {found}"))),
    }
}

/// The error of kinds that do not belong together.
fn wrong_kinds(needed: &str, predictions: &Predictions, targets: &Targets) -> ModelError {
    refused(format!("a metric compares {needed}, got {} and {}", predictions.kind(), targets.kind()))
}

/// Refuses predictions that no order or mean can be made of.
fn all_finite(values: &[f32]) -> Result<(), ModelError> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(refused(format!("predictions must be finite, got {value}"))),
        None => Ok(()),
    }
}
