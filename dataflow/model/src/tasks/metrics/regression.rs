//! Errors of predicted numbers.

use super::{Measured, Metrics, PerImage, all_finite, refused, same_images, wrong_kinds};
use crate::error::ModelError;
use crate::tasks::{Predictions, Targets};

/// `r2`, `mae` and `rmse` in the units of the data: coefficient of determination 1 − Σ(y − p)²/Σ(y − ȳ)², mean absolute
/// error and root of the mean squared error of each number, and their means over the numbers (scikit-learn's `r2_score`,
/// `mean_absolute_error` and `root_mean_squared_error`). Unknown numbers do not count, nor for `r2` those that are the
/// same in all images.
#[derive(Clone, Debug)]
pub struct RegressionErrors {
    num: usize,
    predictions: Vec<f32>,
    targets: Vec<f32>,
}

impl RegressionErrors {
    /// For `num` numbers an image, over no images yet.
    #[must_use]
    pub const fn new(num: usize) -> Self {
        RegressionErrors { num, predictions: Vec::new(), targets: Vec::new() }
    }

    /// Prediction, target and weight of the known values of one number.
    fn known(&self, number: usize, times: &[u32]) -> Vec<[f64; 3]> {
        let values = (0..self.num_images()).map(|image| {
            let at = image * self.num + number;
            [f64::from(self.predictions[at]), f64::from(self.targets[at]), f64::from(times[image])]
        });
        values.filter(|[_, target, times]| !target.is_nan() && *times > 0.0).collect()
    }

    /// The mean of `error` over the known numbers of each image.
    fn of_images(&self, error: impl Fn(f64) -> f64) -> Vec<f64> {
        let rows = self.predictions.chunks_exact(self.num).zip(self.targets.chunks_exact(self.num));
        rows.map(|(predictions, targets)| {
            let pairs = predictions.iter().zip(targets).filter(|(_, target)| !target.is_nan());
            let errors = pairs.map(|(p, target)| error(f64::from(*target) - f64::from(*p)));
            let (sum, count) = errors.fold((0.0, 0usize), |(sum, count), error| (sum + error, count + 1));
            sum / count as f64
        })
        .collect()
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl Metrics for RegressionErrors {
    fn add(&mut self, predictions: &Predictions, targets: &Targets) -> Result<(), ModelError> {
        let (Predictions::Values { num, values }, Targets::Values { num: num_targets, values: numbers }) =
            (predictions, targets)
        else {
            return Err(wrong_kinds("values with values", predictions, targets));
        };
        same_images(predictions, targets)?;
        all_finite(values)?;
        if let Some(num) = [num, num_targets].into_iter().find(|num| **num != self.num) {
            return Err(refused(format!("errors of {} numbers are measured, got {num}", self.num)));
        }
        if let Some(number) = numbers.iter().find(|number| number.is_infinite()) {
            return Err(refused(format!("a value must be finite or NaN (unknown), got {number}")));
        }
        self.predictions.extend_from_slice(values);
        self.targets.extend_from_slice(numbers);
        Ok(())
    }

    fn num_images(&self) -> usize {
        self.targets.len() / self.num.max(1)
    }

    fn resampled(&self, times: &[u32]) -> Vec<Measured> {
        let (mut r2, mut mae, mut rmse) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..self.num {
            let known = self.known(number, times);
            let count: f64 = known.iter().map(|[_, _, times]| times).sum();
            if count == 0.0 {
                continue;
            }
            let target_mean = known.iter().map(|[_, y, times]| times * y).sum::<f64>() / count;
            let squared: f64 = known.iter().map(|[p, y, times]| times * (y - p).powi(2)).sum();
            let spread: f64 = known.iter().map(|[_, y, times]| times * (y - target_mean).powi(2)).sum();
            mae.push(known.iter().map(|[p, y, times]| times * (y - p).abs()).sum::<f64>() / count);
            rmse.push((squared / count).sqrt());
            if known.iter().any(|[_, y, _]| *y != known[0][1]) {
                r2.push(1.0 - squared / spread);
            }
        }
        let all = [("r2", "share", r2), ("mae", "value", mae), ("rmse", "value", rmse)];
        let measured = |(name, unit, values): (&'static str, _, Vec<f64>)| {
            Some(Measured { name: name.into(), unit, value: mean(&values)? })
        };
        all.into_iter().filter_map(measured).collect()
    }

    /// Mean absolute and mean squared error of each image's numbers.
    fn per_image(&self) -> Vec<PerImage> {
        vec![
            PerImage { name: "mae".into(), unit: "value", values: self.of_images(f64::abs) },
            PerImage { name: "mse".into(), unit: "value²", values: self.of_images(|error| error * error) },
        ]
    }
}
