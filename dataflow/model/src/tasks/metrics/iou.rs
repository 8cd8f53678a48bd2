//! Intersection over union of class maps.

use super::{Measured, Metrics, PerImage, refused, same_images, wrong_kinds};
use crate::error::ModelError;
use crate::tasks::{Predictions, Targets, UNKNOWN_CLASS};

/// Pixels of one class in one image.
#[derive(Clone, Copy, Debug, Default)]
struct Pixels {
    class: u16,
    both: u32,
    either: u32,
}

/// What is kept of an image.
#[derive(Clone, Debug, Default)]
struct Counts {
    /// The classes that target or prediction has.
    classes: Vec<Pixels>,
    right: u32,
    known: u32,
}

/// Metrics of segmentation, each over pixels with a target alone:
///
/// - `mean_iou`: intersection over union of the pixels of all images for each class, and the mean over the classes that
///   a target or a prediction has (as segmentation is reported; torchmetrics' `JaccardIndex`, macro).
/// - `image_mean_iou`: the mean over images and the classes that they have, each with its intersection over union in
///   that image (torchmetrics' `segmentation.MeanIoU`).
/// - `pixel_accuracy`: the share of pixels whose class is right.
#[derive(Clone, Debug)]
pub struct MeanIou {
    num_classes: usize,
    images: Vec<Counts>,
}

impl MeanIou {
    /// Over no images yet.
    #[must_use]
    pub const fn new(num_classes: usize) -> Self {
        MeanIou { num_classes, images: Vec::new() }
    }

    fn count(&self, predicted: &[u16], targets: &[u16]) -> Counts {
        let mut all = vec![Pixels::default(); self.num_classes];
        let mut counts = Counts::default();
        for (&found, &target) in predicted.iter().zip(targets).filter(|(_, target)| **target != UNKNOWN_CLASS) {
            counts.known += 1;
            all[usize::from(target)].either += 1;
            if found == target {
                counts.right += 1;
                all[usize::from(target)].both += 1;
            } else {
                all[usize::from(found)].either += 1;
            }
        }
        let present = all.into_iter().enumerate().filter(|(_, pixels)| pixels.either > 0);
        counts.classes = present.map(|(class, pixels)| Pixels { class: class as u16, ..pixels }).collect();
        counts
    }
}

impl Metrics for MeanIou {
    fn add(&mut self, predictions: &Predictions, targets: &Targets) -> Result<(), ModelError> {
        let (Predictions::Maps { side, classes: found }, Targets::Maps { side: needed, classes }) =
            (predictions, targets)
        else {
            return Err(wrong_kinds("class maps with class maps", predictions, targets));
        };
        same_images(predictions, targets)?;
        if side != needed {
            return Err(refused(format!("class maps must have a side of {needed} pixels, got {side}")));
        }
        let num_classes = self.num_classes;
        let is_outside = |class: &&u16| usize::from(**class) >= num_classes;
        let is_wrong = |class: &&u16| is_outside(class) && **class != UNKNOWN_CLASS;
        if let Some(class) = found.iter().find(is_outside).or_else(|| classes.iter().find(is_wrong)) {
            return Err(refused(format!("a class must be in 0..{num_classes}, got {class}")));
        }
        let pixels = (side * side).max(1);
        let images = found.chunks_exact(pixels).zip(classes.chunks_exact(pixels));
        let counted: Vec<Counts> = images.map(|(found, targets)| self.count(found, targets)).collect();
        self.images.extend(counted);
        Ok(())
    }

    fn num_images(&self) -> usize {
        self.images.len()
    }

    fn resampled(&self, times: &[u32]) -> Vec<Measured> {
        let mut both = vec![0u64; self.num_classes];
        let mut either = vec![0u64; self.num_classes];
        let (mut right, mut known) = (0u64, 0u64);
        let (mut image_sum, mut image_count) = (0.0, 0u64);
        for (image, &times) in self.images.iter().zip(times) {
            let times = u64::from(times);
            right += times * u64::from(image.right);
            known += times * u64::from(image.known);
            for pixels in &image.classes {
                both[usize::from(pixels.class)] += times * u64::from(pixels.both);
                either[usize::from(pixels.class)] += times * u64::from(pixels.either);
                image_sum += times as f64 * f64::from(pixels.both) / f64::from(pixels.either);
                image_count += times;
            }
        }
        if known == 0 {
            return Vec::new();
        }
        let present = both.iter().zip(&either).filter(|(_, either)| **either > 0);
        let ious: Vec<f64> = present.map(|(both, either)| *both as f64 / *either as f64).collect();
        vec![
            Measured::share("mean_iou", ious.iter().sum::<f64>() / ious.len() as f64),
            Measured::share("image_mean_iou", image_sum / image_count as f64),
            Measured::share("pixel_accuracy", right as f64 / known as f64),
        ]
    }

    fn per_image(&self) -> Vec<PerImage> {
        let iou = |image: &Counts| {
            let ious = image.classes.iter().map(|pixels| f64::from(pixels.both) / f64::from(pixels.either));
            ious.sum::<f64>() / image.classes.len() as f64
        };
        let accuracy = |image: &Counts| f64::from(image.right) / f64::from(image.known);
        vec![
            PerImage { name: "image_mean_iou".into(), unit: "share", values: self.images.iter().map(iou).collect() },
            PerImage {
                name: "pixel_accuracy".into(),
                unit: "share",
                values: self.images.iter().map(accuracy).collect(),
            },
        ]
    }
}
