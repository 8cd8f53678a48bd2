//! What a head says of images, in the terms of their targets.

/// An object that a head has found in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Left, top, right and bottom edge, as in [`BoxTarget::edges`](super::BoxTarget::edges).
    pub edges: [f32; 4],
    /// Its class, from 0.
    pub class: u32,
    /// How sure the head is, in [0, 1].
    pub score: f32,
}

/// What a head says of some images.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// A number for each class or property, `[images, num]`: the larger, the surer. Logits, for a loss that has them.
    Scores {
        /// Classes or properties.
        num: usize,
        /// The values, row-major.
        values: Vec<f32>,
    },
    /// Numbers in the units of the targets, `[images, num]`.
    Values {
        /// Numbers of an image.
        num: usize,
        /// The values, row-major.
        values: Vec<f32>,
    },
    /// The class of each pixel, `[images, side, side]`.
    Maps {
        /// Side of the square images.
        side: usize,
        /// The classes, row-major.
        classes: Vec<u16>,
    },
    /// The objects found in each image, surest first.
    Boxes(Vec<Vec<Detection>>),
    /// What each of several tasks says of all images.
    Several(Vec<Predictions>),
}

impl Predictions {
    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Predictions::Scores { num, values } | Predictions::Values { num, values } => values.len() / (*num).max(1),
            Predictions::Maps { side, classes } => classes.len() / (side * side).max(1),
            Predictions::Boxes(images) => images.len(),
            Predictions::Several(tasks) => tasks.first().map_or(0, Predictions::len),
        }
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kind of predictions in a word, for messages.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Predictions::Scores { .. } => "scores",
            Predictions::Values { .. } => "values",
            Predictions::Maps { .. } => "class maps",
            Predictions::Boxes(_) => "boxes",
            Predictions::Several(_) => "predictions of several tasks",
        }
    }
}

/// The place of the highest value, the lowest of equal ones.
pub(super) fn best(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}
