//! What is opened: the format, the split, and the settings of the readers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::decode::{DecodeLimits, Decoder};
use super::error::DataError;
use super::synthetic_spec::SyntheticSpec;
use super::target::TargetKind;
use crate::machine_memory::{self, Available, Limit};

/// The name of a format, or `auto`. Only names of the list of formats can be had, by [`FormatName::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FormatName(&'static str);

impl FormatName {
    /// Whichever format the files are recognised as.
    pub const AUTO: Self = Self("auto");
    /// The dataset inside the program, the default.
    pub const EMBEDDED: Self = Self("embedded");

    /// The name of a format of the list.
    pub(super) const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The name as configurations and messages have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl Default for FormatName {
    fn default() -> Self {
        Self::EMBEDDED
    }
}

impl fmt::Display for FormatName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

/// Which part of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// The part meant for learning.
    Train,
    /// The part held out; the validation part where there is no test part.
    Test,
    /// The part held out for decisions, and nothing else.
    Validation,
}

impl Split {
    /// Every split, the train split first.
    pub const ALL: [Self; 3] = [Self::Train, Self::Test, Self::Validation];

    /// The name used on the command line and in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }

    /// The split of this name.
    ///
    /// # Errors
    /// [`DataError::Setting`] with all names if it is none of them.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        Self::ALL.into_iter().find(|split| split.as_str() == text).ok_or_else(|| DataError::Setting {
            key: "split",
            allowed: format!("one of {}", Self::ALL.map(Self::as_str).join(", ")),
            value: format!("{text:?}"),
        })
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Split {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        Self::parse(text)
    }
}

/// How the four numbers of a box in a Parquet file are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BoxFormat {
    /// Left and top edge, width and height, as COCO has it.
    #[default]
    Xywh,
    /// Left, top, right and bottom edge.
    Xyxy,
}

impl BoxFormat {
    /// Every format, the default first.
    pub const ALL: [Self; 2] = [Self::Xywh, Self::Xyxy];

    /// The name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xywh => "xywh",
            Self::Xyxy => "xyxy",
        }
    }

    /// Left, top, right and bottom edge.
    pub(crate) fn edges(self, [a, b, c, d]: [f32; 4]) -> [f32; 4] {
        match self {
            Self::Xywh => [a, b, a + c, b + d],
            Self::Xyxy => [a, b, c, d],
        }
    }
}

/// Everything that decides what [`open`](super::open) gives.
#[derive(Clone, Debug)]
pub struct DatasetSpec {
    /// How the dataset is stored.
    pub format: FormatName,
    /// Folder or file; not needed for `synthetic` and `embedded`.
    pub path: Option<PathBuf>,
    /// Which part of it.
    pub split: Split,
    /// What is to be told of each image, different kinds, at least one; the class by default. Data that lack one are
    /// refused.
    pub targets: Vec<TargetKind>,
    /// The label column among several; by default it is found by its declared meaning, its name and its type.
    pub label_column: Option<String>,
    /// A Parquet file without the `label_column` is one without labels: a test split may lack it.
    pub label_column_optional: bool,
    /// The image column of a Parquet file; default `image`, `img`, or the only one there is.
    pub image_column: Option<String>,
    /// The column of class maps of a Parquet file, a second image column; default the one of a usual name, or the only
    /// one beside the images.
    pub mask_column: Option<String>,
    /// The columns of numbers of a Parquet file that are an image's values, each of floats or of lists of floats of one
    /// length; default every column of floats.
    pub value_columns: Vec<String>,
    /// How the boxes of a Parquet file are written.
    pub bbox_format: BoxFormat,
    /// Whether index 0 of class maps stands for no class, and every other for the class before it; default in ADE20K's
    /// layout, and not elsewhere.
    pub reduce_zero_label: Option<bool>,
    /// Splits, folders and files that are left out: names, or patterns with `*`, `?` and `[…]`. One with a `/` is
    /// matched against the path relative to the dataset's folder, one without against every name on it; a Parquet file
    /// also has the name of its split.
    pub exclude: Vec<String>,
    /// Bounds on what a decoder may allocate.
    pub limits: DecodeLimits,
    /// Turns images as their EXIF orientation says; false leaves them as stored.
    pub exif_orientation: bool,
    /// 3 makes every sample of encoded images (Parquet, folders) RGB, whatever they are. Otherwise they decide, also
    /// with 1: who wants grey of colour has to make it of [`Sample::image`](super::Sample::image).
    pub channels: Option<usize>,
    /// Bytes of memory that the split may take; without it what the machine has free (see [`crate::machine_memory`]).
    pub max_resident_bytes: Option<u64>,
    /// What `synthetic` generates.
    pub synthetic: SyntheticSpec,
}

impl DatasetSpec {
    /// A spec with default columns, limits and synthetic parameters.
    #[must_use]
    pub fn new(format: FormatName, path: Option<PathBuf>, split: Split) -> Self {
        Self { format, path, split, ..Self::default() }
    }

    /// What decodes its images.
    pub(crate) fn decoder(&self) -> Decoder {
        Decoder { limits: self.limits, exif_orientation: self.exif_orientation }
    }

    /// The memory that the split may take from now on.
    pub(crate) fn budget(&self) -> Budget {
        match self.max_resident_bytes {
            Some(max_bytes) => Budget { num_bytes: max_bytes, limit: None },
            None => {
                let Available { num_bytes, limit } = machine_memory::available();
                Budget { num_bytes, limit: Some(limit) }
            }
        }
    }
}

/// Memory that may be taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    num_bytes: u64,
    /// What leaves no more; none for a bound that was asked for.
    limit: Option<Limit>,
}

impl Budget {
    /// Refuses to take `needed` bytes in all for the file or folder at `path` if there are not so many.
    pub(crate) fn check(&self, path: &Path, needed: u64) -> Result<(), DataError> {
        if needed <= self.num_bytes {
            return Ok(());
        }
        let limit = self.limit.map_or_else(|| "its bound".to_owned(), |limit| limit.to_string());
        Err(DataError::Memory { path: path.to_owned(), needed, available: self.num_bytes, limit })
    }
}

impl Default for DatasetSpec {
    /// The training split of the embedded dataset.
    fn default() -> Self {
        Self {
            format: FormatName::EMBEDDED,
            path: None,
            split: Split::Train,
            targets: vec![TargetKind::Class],
            label_column: None,
            label_column_optional: false,
            image_column: None,
            mask_column: None,
            value_columns: Vec::new(),
            bbox_format: BoxFormat::default(),
            reduce_zero_label: None,
            exclude: Vec::new(),
            limits: DecodeLimits::default(),
            exif_orientation: true,
            channels: None,
            max_resident_bytes: None,
            synthetic: SyntheticSpec::default(),
        }
    }
}
