//! Targets: what is to be told of an image, beside its pixels. A dataset gives those kinds that it is asked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::sample::NameSource;

/// The class index of a pixel that has none: void, unlabelled, between two objects.
pub const NO_CLASS: u16 = u16::MAX;

/// A kind of target that may be asked of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// One class of the image.
    Class,
    /// Which of several properties the image has (multi-label).
    Labels,
    /// Numbers that describe the image (regression).
    Values,
    /// A class of each pixel (semantic segmentation).
    Map,
    /// Objects with their boxes and classes (detection).
    Boxes,
}

impl TargetKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Class, Self::Labels, Self::Values, Self::Map, Self::Boxes];

    /// The name used on the command line and in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Labels => "labels",
            Self::Values => "values",
            Self::Map => "map",
            Self::Boxes => "boxes",
        }
    }

    /// The kind of this name.
    ///
    /// # Errors
    /// [`DataError::Setting`] with all names if it is none of them.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| DataError::Setting {
            key: "targets",
            allowed: format!("one of {}", listed(&Self::ALL)),
            value: format!("{text:?}"),
        })
    }
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TargetKind {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        Self::parse(text)
    }
}

/// Kinds for a message.
pub(crate) fn listed(kinds: &[TargetKind]) -> String {
    if kinds.is_empty() {
        return "(none)".to_owned();
    }
    kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
}

/// A target of one image.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The dataset does not say it of this image.
    Unknown,
    /// The image's class, from 0.
    Class(i32),
    /// Whether the image has each property: 1 or 0, -1 where that is unknown.
    Labels(Box<[i8]>),
    /// Numbers that describe the image; NaN where one is unknown.
    Values(Box<[f32]>),
    /// The class of each pixel.
    Map(ClassMap),
    /// The image's objects, of which there may be none.
    Boxes(Box<[ObjectBox]>),
}

impl Target {
    /// The class, unknown if there is none.
    pub(crate) fn of_class(label: Option<i32>) -> Self {
        label.map_or(Self::Unknown, Self::Class)
    }

    /// Memory of its values in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Unknown | Self::Class(_) => 0,
            Self::Labels(labels) => labels.len(),
            Self::Values(values) => size_of_val(&**values),
            Self::Map(map) => size_of_val(&*map.classes),
            Self::Boxes(boxes) => size_of_val(&**boxes),
        }
    }
}

/// The class of each pixel of an image of `width` by `height` pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassMap {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The classes from 0, row by row from the top, [`NO_CLASS`] where there is none: `[height * width]`.
    pub classes: Vec<u16>,
}

/// An object in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectBox {
    /// Left, top, right and bottom edge in pixels of [`Sample::image`](super::Sample::image): a pixel is one unit wide,
    /// the image begins at 0 and ends at its width and height.
    pub edges: [f32; 4],
    /// Its class, from 0.
    pub class: u32,
    /// Whether it is neither to be found nor a mistake to find: a crowd, or an object marked as difficult.
    pub ignored: bool,
    /// Its area in pixels: that of its outline where the data know it, else of the box.
    pub area: f32,
}

impl ObjectBox {
    /// A box whose area is that of its edges.
    pub(crate) fn new(edges: [f32; 4], class: u32, ignored: bool) -> Self {
        let [left, top, right, bottom] = edges;
        Self { edges, class, ignored, area: (right - left) * (bottom - top) }
    }
}

/// What a dataset says of one kind of target that it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetInfo {
    /// The kind.
    pub kind: TargetKind,
    /// Names, in the order of the indices: of the classes of images, of pixels or of boxes, of the labels, or of the
    /// values.
    pub names: Vec<String>,
    /// Where these names come from.
    pub source: NameSource,
    /// The column, folder or file that has the targets, where the format has such names.
    pub column: Option<String>,
}

impl TargetInfo {
    /// Of names that the dataset lists.
    pub(crate) fn declared(kind: TargetKind, names: Vec<String>, column: Option<String>) -> Self {
        Self { kind, names, source: NameSource::Declared, column }
    }
}

/// Whether each of `num` classes is among the objects: 1 if an object that counts is of it, -1 if only ignored ones are,
/// else 0. These are the image labels of Pascal VOC's classification task.
pub(crate) fn labels_of_boxes(boxes: &[ObjectBox], num: usize) -> Box<[i8]> {
    let mut labels = vec![0_i8; num];
    for object in boxes {
        if let Some(label) = labels.get_mut(object.class as usize) {
            *label = match (object.ignored, *label) {
                (false, _) => 1,
                (true, 0) => -1,
                (true, known) => known,
            };
        }
    }
    labels.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_names_of_their_serde_form() {
        for kind in TargetKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(TargetKind::parse(kind.as_str()).unwrap(), kind);
        }
        let error = TargetKind::parse("mask").unwrap_err().to_string();
        assert_eq!(error, "targets must be one of class, labels, values, map, boxes, not \"mask\"");
    }

    #[test]
    fn ignored_objects_leave_a_label_unknown() {
        let of = |class, ignored| ObjectBox::new([0.0, 0.0, 2.0, 3.0], class, ignored);
        let boxes = [of(1, true), of(2, true), of(2, false), of(3, false), of(3, true)];
        assert_eq!(*labels_of_boxes(&boxes, 5), [0, -1, 1, 1, 0]);
        assert_eq!(of(0, false).area, 6.0);
    }
}
