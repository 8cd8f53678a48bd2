//! Accuracy of classification: is the class among the surest predictions?

use super::{Measured, Metrics, PerImage, all_finite, refused, same_images, wrong_kinds};
use crate::error::ModelError;
use crate::tasks::{Predictions, Targets};

/// How many of the surest classes `top5_accuracy` looks at.
const TOP: usize = 5;

/// `accuracy`, and with more than five classes `top5_accuracy`: the share of images whose class is the surest
/// prediction, or one of the surest five. Of equally sure classes the first counts as surer. Images of unknown class do
/// not count.
#[derive(Clone, Debug)]
pub struct Accuracy {
    num_classes: usize,
    /// How many classes are surer than the image's own.
    ranks: Vec<Option<usize>>,
}

impl Accuracy {
    /// Over no images yet.
    #[must_use]
    pub const fn new(num_classes: usize) -> Self {
        Accuracy { num_classes, ranks: Vec::new() }
    }
}

impl Metrics for Accuracy {
    fn add(&mut self, predictions: &Predictions, targets: &Targets) -> Result<(), ModelError> {
        let (Predictions::Scores { num, values }, Targets::Classes(classes)) = (predictions, targets) else {
            return Err(wrong_kinds("scores with classes", predictions, targets));
        };
        same_images(predictions, targets)?;
        all_finite(values)?;
        let num_classes = self.num_classes;
        if *num != num_classes {
            return Err(refused(format!("accuracy needs scores of {num_classes} classes, got {num}")));
        }
        if let Some(class) = classes.iter().find(|class| **class >= num_classes as i32) {
            return Err(refused(format!("a class must be in 0..{num_classes}, got {class}")));
        }
        self.ranks.extend(values.chunks_exact(num_classes).zip(classes.iter()).map(|(scores, class)| {
            let class = usize::try_from(*class).ok()?;
            let is_surer =
                |other: usize| scores[other] > scores[class] || (other < class && scores[other] == scores[class]);
            Some((0..num_classes).filter(|other| is_surer(*other)).count())
        }));
        Ok(())
    }

    fn num_images(&self) -> usize {
        self.ranks.len()
    }

    fn resampled(&self, times: &[u32]) -> Vec<Measured> {
        let (mut known, mut right, mut near) = (0u64, 0u64, 0u64);
        for (rank, times) in self.ranks.iter().zip(times) {
            let Some(rank) = rank else { continue };
            known += u64::from(*times);
            right += u64::from(*times) * u64::from(*rank == 0);
            near += u64::from(*times) * u64::from(*rank < TOP);
        }
        if known == 0 {
            return Vec::new();
        }
        let share = |name, count: u64| Measured::share(name, count as f64 / known as f64);
        let mut measured = vec![share("accuracy", right)];
        if self.num_classes > TOP {
            measured.push(share("top5_accuracy", near));
        }
        measured
    }

    fn per_image(&self) -> Vec<PerImage> {
        let is_right = |rank: &Option<usize>| rank.map_or(f64::NAN, |rank| f64::from(u8::from(rank == 0)));
        vec![PerImage { name: "accuracy".into(), unit: "share", values: self.ranks.iter().map(is_right).collect() }]
    }
}
