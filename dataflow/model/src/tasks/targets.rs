//! The targets (labels) of a batch, by which a head's loss and its metrics judge it.

use std::ops::Range;
use std::sync::Arc;

/// A class index of [`Targets::Maps`] that belongs to no class: the pixel has no target, and no loss takes it.
pub const UNKNOWN_CLASS: u16 = u16::MAX;

/// An object in an image, as a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxTarget {
    /// Left, top, right and bottom edge in pixels of the image that the network sees; a pixel is one unit wide, and the
    /// image begins at 0.
    pub edges: [f32; 4],
    /// Its class, from 0.
    pub class: u32,
    /// Whether it is neither to be found nor a mistake to find: a crowd, or an object that is marked as difficult.
    pub ignored: bool,
    /// Its area in pixels, by which metrics tell small from large: that of its outline where the data knows it, else of the
    /// box.
    pub area: f32,
}

/// The targets (labels) of a batch, in host memory. Cloning shares the values.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// The class of each image, `[batch]`, from 0; -1 where it is unknown, which no loss takes.
    Classes(Arc<[i32]>),
    /// Whether each image has each of some properties, `[batch, num]`: 1 or 0, -1 where it is unknown.
    Labels {
        /// Properties of an image.
        num: usize,
        /// The values, row-major.
        values: Arc<[i8]>,
    },
    /// Numbers that describe each image, `[batch, num]`; NaN where one is unknown.
    Values {
        /// Numbers of an image.
        num: usize,
        /// The values, row-major.
        values: Arc<[f32]>,
    },
    /// The class of each pixel, `[batch, side, side]`, [`UNKNOWN_CLASS`] where there is none.
    Maps {
        /// Side of the square images.
        side: usize,
        /// The classes, row-major.
        classes: Arc<[u16]>,
    },
    /// The objects of each image.
    Boxes {
        /// Where the objects of each image begin, and at last their number, `[batch + 1]`.
        starts: Arc<[usize]>,
        /// The objects of all images.
        boxes: Arc<[BoxTarget]>,
    },
    /// Targets for several tasks at once, each of the whole batch; at least one.
    Several(Arc<[Targets]>),
}

impl Targets {
    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Targets::Classes(classes) => classes.len(),
            Targets::Labels { num, values } => values.len() / (*num).max(1),
            Targets::Values { num, values } => values.len() / (*num).max(1),
            Targets::Maps { side, classes } => classes.len() / (side * side).max(1),
            Targets::Boxes { starts, .. } => starts.len().saturating_sub(1),
            Targets::Several(tasks) => tasks.first().map_or(0, Targets::len),
        }
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kind of targets in a word, for messages.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Targets::Classes(_) => "classes",
            Targets::Labels { .. } => "labels",
            Targets::Values { .. } => "values",
            Targets::Maps { .. } => "class maps",
            Targets::Boxes { .. } => "boxes",
            Targets::Several(_) => "targets of several tasks",
        }
    }

    /// The class of image `image`; none if it is unknown, out of range, or targets are not classes. Of several tasks, the
    /// first that has one.
    #[must_use]
    pub fn class(&self, image: usize) -> Option<i32> {
        match self {
            Targets::Classes(classes) => classes.get(image).copied().filter(|class| *class >= 0),
            Targets::Several(tasks) => tasks.iter().find_map(|targets| targets.class(image)),
            _ => None,
        }
    }

    /// The objects of image `image`; none if it is out of range, or targets are not boxes.
    #[must_use]
    pub fn boxes(&self, image: usize) -> Option<&[BoxTarget]> {
        match self {
            Targets::Boxes { starts, boxes } => Some(&boxes[*starts.get(image)?..*starts.get(image + 1)?]),
            _ => None,
        }
    }

    /// Pixels whose class is known; 0 where targets are not maps.
    #[must_use]
    pub fn num_known_pixels(&self) -> usize {
        match self {
            Targets::Maps { classes, .. } => classes.iter().filter(|class| **class != UNKNOWN_CLASS).count(),
            _ => 0,
        }
    }

    /// Size of the values in bytes, for the memory bound of queues.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Targets::Classes(classes) => 4 * classes.len(),
            Targets::Labels { values, .. } => values.len(),
            Targets::Values { values, .. } => 4 * values.len(),
            Targets::Maps { classes, .. } => 2 * classes.len(),
            Targets::Boxes { starts, boxes } => size_of_val(&**starts) + size_of_val(&**boxes),
            Targets::Several(tasks) => tasks.iter().map(Targets::size_bytes).sum(),
        }
    }

    /// The targets of the images `range`.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Targets {
        let rows = |width: usize| range.start * width..range.end * width;
        match self {
            Targets::Classes(classes) => Targets::Classes(classes[range].into()),
            Targets::Labels { num, values } => Targets::Labels { num: *num, values: values[rows(*num)].into() },
            Targets::Values { num, values } => Targets::Values { num: *num, values: values[rows(*num)].into() },
            Targets::Maps { side, classes } => {
                Targets::Maps { side: *side, classes: classes[rows(side * side)].into() }
            }
            Targets::Boxes { starts, boxes } => {
                let first = starts[range.start];
                let boxes = boxes[first..starts[range.end]].into();
                let starts = starts[range.start..=range.end].iter().map(|start| start - first).collect();
                Targets::Boxes { starts, boxes }
            }
            Targets::Several(tasks) => {
                Targets::Several(tasks.iter().map(|targets| targets.slice(range.clone())).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Targets> {
        let at = |left: f32| BoxTarget { edges: [left, 0.0, left + 1.0, 2.0], class: 1, ignored: false, area: 2.0 };
        let all = vec![
            Targets::Classes([4, -1, 2].into()),
            Targets::Labels { num: 2, values: [0, 1, -1, 0, 1, 1].into() },
            Targets::Values { num: 2, values: [0.5, 1.0, 2.0, 3.0, 4.0, 5.0].into() },
            Targets::Maps { side: 2, classes: (0..12).collect() },
            Targets::Boxes { starts: [0, 2, 2, 3].into(), boxes: [at(0.0), at(1.0), at(2.0)].into() },
        ];
        let several = Targets::Several(all.clone().into());
        all.into_iter().chain([several]).collect()
    }

    #[test]
    fn parts_joined_are_the_whole() {
        for targets in one_of_each() {
            assert_eq!((targets.len(), targets.is_empty()), (3, false), "{}", targets.kind());
            assert_eq!(targets.slice(0..3), targets);
            let [first, rest] = [targets.slice(0..1), targets.slice(1..3)];
            assert_eq!([first.len(), rest.len()], [1, 2]);
            assert_eq!(rest.slice(1..2), targets.slice(2..3), "a part of a part");
            assert!(targets.slice(1..1).is_empty());
            // The offsets of boxes count one more for each part.
            assert!(first.size_bytes() + rest.size_bytes() >= targets.size_bytes());
        }
    }

    #[test]
    fn an_image_has_its_own_boxes() {
        let all = one_of_each();
        let boxes = &all[4];
        assert_eq!([0, 1, 2].map(|image| boxes.boxes(image).unwrap().len()), [2, 0, 1]);
        assert_eq!(boxes.boxes(3), None);
        assert_eq!(boxes.slice(2..3).boxes(0), boxes.boxes(2));
        assert_eq!(all[0].boxes(0), None);
    }

    #[test]
    fn only_known_classes_are_classes() {
        let all = one_of_each();
        assert_eq!([0, 1, 2, 3].map(|image| all[0].class(image)), [Some(4), None, Some(2), None]);
        assert_eq!(all[5].class(0), Some(4));
        assert_eq!(all[3].class(0), None);
    }
}
