//! Labelled image datasets behind one trait: opened by [`open`], decoded on demand, u8 throughout.

pub mod convert;
pub mod decode;
mod detect;
mod error;
pub mod fingerprint;
mod formats;
mod labels;
mod layout;
mod parquet_file;
pub mod summary;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::machine_memory::{self, Available, Limit};

pub use convert::{ConvertReport, convert, write_synthetic};
pub use decode::{DecodeError, DecodeLimits, Decoder};
pub use error::DataError;
pub use formats::image_folder::MAX_SURVEYED;
pub use formats::synthetic::{SyntheticDataset, SyntheticSpec};
pub use labels::classes::{self, HeldOut, LabelOrigin, NameSource, align};
pub use layout::listing::check_exclude;
pub use summary::{Summary, summary};

pub(crate) use parquet_file::{footer, pages};

use formats::{cifar, embedded, hf_parquet, idx, image_folder};
use layout::listing::{Kind, Scope};
use layout::splits;

/// A decoded image: u8, rows from the top, `pixels` in (row, column, channel) order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// `height * width * channels` values.
    pub pixels: Vec<u8>,
}

/// One image with its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Row number over the split's files in their order: stable while the files are.
    pub id: i64,
    /// The image, with as many channels as [`DatasetInfo::channels`].
    pub image: Image,
    /// Index into [`DatasetInfo::class_names`]; none where the dataset marks a sample as unlabelled.
    pub label: Option<i32>,
}

/// What is known of a dataset without decoding it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetInfo {
    /// Name of its folder or file, or `synthetic`, `fashion-mnist-6k`.
    pub name: String,
    /// Name of the [`Format`] that reads it, never `auto`.
    pub format: String,
    /// Name of the split as stored: `train`, `test`, or `validation` where that stands in for the test split.
    pub split: String,
    /// Number of images.
    pub num_samples: usize,
    /// Names of the classes in the order of their labels; numbers where the format stores none.
    pub class_names: Vec<String>,
    /// Column or field that the labels come from, where the format has such names.
    pub label_column: Option<String>,
    /// (width, height) of all images, after they are turned; none when they differ, or when nobody looked at all of
    /// them (an image folder of more files than [`MAX_SURVEYED`]).
    pub image_size: Option<(usize, usize)>,
    /// Channels of every sample: 1 when all images are known to be grey, else 3.
    pub channels: usize,
}

/// A split of a labelled image dataset. Reading is thread safe and gives the same sample every time.
pub trait Dataset: Send + Sync {
    /// What is known without decoding.
    fn info(&self) -> &DatasetInfo;

    /// Number of samples.
    fn len(&self) -> usize {
        self.info().num_samples
    }

    /// True when there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label of sample `index`, without decoding its image.
    fn label(&self, index: usize) -> Result<Option<i32>, DataError>;

    /// Decodes sample `index`.
    fn sample(&self, index: usize) -> Result<Sample, DataError>;

    /// Where its labels and the names of its classes come from.
    fn label_origin(&self) -> LabelOrigin {
        LabelOrigin::default()
    }

    /// What its owner should know of the files, one line each: what was passed over.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The files that the split is read from, in their order; none of data that is generated or inside the program.
    fn files(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// Bytes of memory that it holds as long as it is open, about: images, labels, names of files.
    fn resident_bytes(&self) -> u64 {
        0
    }

    /// Which patches of sample `index` hold its object, row by row over the grid of `patch` by `patch` pixels: known only of
    /// synthetic images.
    fn known_object_patches(&self, _index: usize, _patch: usize) -> Option<Vec<bool>> {
        None
    }
}

/// A named set of choices with a parser that lists them when it refuses.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident, $key:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every choice, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in configurations and messages.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The choice of this name; the error lists all of them.
            pub fn parse(text: &str) -> Result<Self, DataError> {
                Self::ALL.iter().copied().find(|choice| choice.as_str() == text).ok_or_else(|| DataError::Setting {
                    key: $key,
                    allowed: format!("one of {}", [$($text),+].join(", ")),
                    value: format!("{text:?}"),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = DataError;
            fn from_str(text: &str) -> Result<Self, DataError> {
                Self::parse(text)
            }
        }
    };
}

choices! {
    /// How a dataset is stored.
    Format, "data.format", {
        /// Whatever the files at the path look like.
        Auto = "auto",
        /// Hugging Face Parquet: a struct<bytes, path> image column, and labels that are numbers or strings.
        HfParquet = "hf-parquet",
        /// CIFAR-10 or CIFAR-100, binary version.
        CifarBin = "cifar-bin",
        /// CIFAR-10 or CIFAR-100, python version, as torchvision downloads it.
        CifarPickle = "cifar-pickle",
        /// The MNIST family's IDX files, gzipped or not.
        Idx = "idx",
        /// One folder of image files a class.
        ImageFolder = "image-folder",
        /// Generated: textured backgrounds with one shaped object.
        Synthetic = "synthetic",
        /// The 5,000 + 1,000 images of Fashion-MNIST inside the program.
        Embedded = "embedded",
    }
}

choices! {
    /// Which part of a dataset.
    Split, "split", {
        /// The part meant for learning.
        Train = "train",
        /// The part held out; the validation part where there is no test part.
        Test = "test",
        /// The part held out for decisions, and nothing else.
        Validation = "validation",
    }
}

/// Everything that decides what [`open`] gives.
#[derive(Clone, Debug)]
pub struct DatasetSpec {
    /// How the dataset is stored.
    pub format: Format,
    /// Folder or file; not needed for `synthetic` and `embedded`.
    pub path: Option<PathBuf>,
    /// Which part of it.
    pub split: Split,
    /// The label column among several; by default it is found by its declared meaning, its name and its type.
    pub label_column: Option<String>,
    /// A Parquet file without the `label_column` is one without labels: a test split may lack it.
    pub label_column_optional: bool,
    /// The image column of a Parquet file; default `image`, `img`, or the only one there is.
    pub image_column: Option<String>,
    /// Splits, folders and files that are left out: names, or patterns with `*`, `?` and `[…]`. One with a `/` is held against the path
    /// relative to the dataset's folder, one without against every name on it; a Parquet file also has the name of its split.
    pub exclude: Vec<String>,
    /// Bounds on what a decoder may allocate.
    pub limits: DecodeLimits,
    /// Turns images as their EXIF orientation says; false leaves them as stored.
    pub exif_orientation: bool,
    /// 3 makes every sample of encoded images (Parquet, folders) RGB, whatever they are. Otherwise they decide, also
    /// with 1: who wants grey of colour has to make it of [`Sample::image`].
    pub channels: Option<usize>,
    /// Bytes of memory that the split may take; without it what the machine has free (see [`crate::machine_memory`]).
    pub max_resident_bytes: Option<u64>,
    /// What `synthetic` generates.
    pub synthetic: SyntheticSpec,
}

impl DatasetSpec {
    /// A spec with default columns, limits and synthetic parameters.
    pub fn new(format: Format, path: Option<PathBuf>, split: Split) -> Self {
        Self { format, path, split, ..Self::default() }
    }

    /// What decodes its images.
    fn decoder(&self) -> Decoder {
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
            format: Format::Embedded,
            path: None,
            split: Split::Train,
            label_column: None,
            label_column_optional: false,
            image_column: None,
            exclude: Vec::new(),
            limits: DecodeLimits::default(),
            exif_orientation: true,
            channels: None,
            max_resident_bytes: None,
            synthetic: SyntheticSpec::default(),
        }
    }
}

/// Opens a split of a dataset. Labels and structure are checked here; images when they are decoded.
pub fn open(spec: &DatasetSpec) -> Result<Arc<dyn Dataset>, DataError> {
    let path = match (spec.format, &spec.path) {
        (format @ (Format::Synthetic | Format::Embedded), _) if spec.split == Split::Validation => {
            let hint = "it has the splits train and test".to_owned();
            return Err(DataError::NoSplit { path: format.as_str().into(), split: spec.split.to_string(), hint });
        }
        (Format::Synthetic, _) => {
            return Ok(Arc::new(SyntheticDataset::new(&spec.synthetic, spec.split)?));
        }
        (Format::Embedded, _) => return embedded::open(spec),
        (_, Some(path)) => path.as_path(),
        (format, None) => {
            return Err(DataError::Setting {
                key: "data.path",
                allowed: format!("a folder or file for format {format}"),
                value: "absent".to_owned(),
            });
        }
    };
    if !path.try_exists().map_err(|e| DataError::read(path, e))? {
        return Err(DataError::NotFound { path: path.to_owned() });
    }
    if let Kind::Special(kind) = Kind::at(path)? {
        return Err(DataError::malformed(path, format!("a dataset is a folder or a file, not a {kind}")));
    }
    let (format, place) = detect::locate(path, spec.format, &spec.exclude)?;
    // Notes and exclusions are about what the user named, even where the data lies deeper.
    let scope = Scope::new(path, &spec.exclude)?;
    match format {
        Format::CifarBin => cifar::open_bin(&place, spec, &scope),
        Format::CifarPickle => cifar::open_pickle(&place, spec, &scope),
        Format::Idx => idx::open(&place, spec, &scope),
        Format::ImageFolder => image_folder::open(&place, spec, &scope),
        _ => hf_parquet::open(&place, spec, &scope),
    }
}

/// Whether a split's stored name is that of a validation split.
pub fn is_validation(split: &str) -> bool {
    splits::Part::Validation.words().iter().any(|name| name.eq_ignore_ascii_case(split))
}

/// Last component of a path, for messages and names.
fn file_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
}

/// Class names of a format that stores none: the numbers up to the largest label.
fn numbered_classes(labels: impl Iterator<Item = i32>) -> Vec<String> {
    labels.max().map_or_else(Vec::new, |max| (0..=max).map(|class| class.to_string()).collect())
}

/// The bounds check that every reader makes first.
fn check_index(info: &DatasetInfo, index: usize) -> Result<(), DataError> {
    if index < info.num_samples {
        Ok(())
    } else {
        Err(DataError::OutOfRange { name: info.name.clone(), len: info.num_samples, index })
    }
}
