//! The metrics of several tasks on the same images.

use super::{Measured, Metrics, PerImage, same_images, wrong_kinds};
use crate::error::ModelError;
use crate::tasks::{Predictions, Targets};

/// The metrics of each task, whose names begin with the task's: `NAME.accuracy`.
pub struct Several {
    parts: Vec<(String, Box<dyn Metrics>)>,
}

impl Several {
    /// For tasks of these names, at least one, whose metrics have no images yet.
    #[must_use]
    pub const fn new(parts: Vec<(String, Box<dyn Metrics>)>) -> Self {
        Several { parts }
    }
}

impl Metrics for Several {
    /// As for one task. A task whose predictions are refused leaves those before it with images that the others have
    /// not: these metrics are of no use then.
    fn add(&mut self, predictions: &Predictions, targets: &Targets) -> Result<(), ModelError> {
        let (Predictions::Several(predictions_of), Targets::Several(targets_of)) = (predictions, targets) else {
            return Err(wrong_kinds("predictions and targets of several tasks", predictions, targets));
        };
        if [predictions_of.len(), targets_of.len()] != [self.parts.len(); 2] {
            return Err(super::refused(format!(
                "metrics of {} tasks need predictions and targets of each, got {} and {}",
                self.parts.len(),
                predictions_of.len(),
                targets_of.len()
            )));
        }
        same_images(predictions, targets)?;
        for (((_, metrics), predictions), targets) in self.parts.iter_mut().zip(predictions_of).zip(&**targets_of) {
            metrics.add(predictions, targets)?;
        }
        Ok(())
    }

    fn num_images(&self) -> usize {
        self.parts.first().map_or(0, |(_, metrics)| metrics.num_images())
    }

    fn resampled(&self, times: &[u32]) -> Vec<Measured> {
        let of = |(task, metrics): &(String, Box<dyn Metrics>)| {
            let named = |measured: Measured| Measured { name: format!("{task}.{}", measured.name).into(), ..measured };
            metrics.resampled(times).into_iter().map(named).collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of).collect()
    }

    fn per_image(&self) -> Vec<PerImage> {
        let of = |(task, metrics): &(String, Box<dyn Metrics>)| {
            let named = |row: PerImage| PerImage { name: format!("{task}.{}", row.name).into(), ..row };
            metrics.per_image().into_iter().map(named).collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of).collect()
    }
}
