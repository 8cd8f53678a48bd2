//! What a dataset gives: samples, and what is known of them without decoding.

use std::path::Path;

use super::error::DataError;
use super::pixels::Image;
use super::target::{Target, TargetInfo, TargetKind};

/// One image with its label and targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Row number over the split's files in their order: stable while the files are.
    pub id: i64,
    /// The image, with as many channels as [`DatasetInfo::channels`].
    pub image: Image,
    /// Index into [`DatasetInfo::class_names`]; none where the dataset marks a sample as unlabelled.
    pub label: Option<i32>,
    /// One for each kind of [`DatasetSpec::targets`](super::DatasetSpec::targets), in that order. Places in them are
    /// places in `image`.
    pub targets: Vec<Target>,
}

impl Sample {
    /// A sample of a dataset of which the class alone is asked.
    pub(crate) fn of_class(id: i64, image: Image, label: Option<i32>) -> Self {
        Self { id, image, label, targets: vec![Target::of_class(label)] }
    }
}

/// What is known of a dataset without decoding it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetInfo {
    /// Name of its folder or file, or `synthetic`, `fashion-mnist-6k`.
    pub name: String,
    /// Name of the [`Format`](super::Format) that reads it, never `auto`.
    pub format: String,
    /// Name of the split as stored: `train`, `test`, or `validation` where that stands in for the test split.
    pub split: String,
    /// Number of images.
    pub num_samples: usize,
    /// Names of the classes in the order of their labels; numbers where the format stores none, and nothing where images
    /// have no class of their own.
    pub class_names: Vec<String>,
    /// Column or field that the labels come from, where the format has such names.
    pub label_column: Option<String>,
    /// (width, height) of all images, after they are turned; none when they differ, or when nobody looked at all of
    /// them (an image folder of more files than [`MAX_SURVEYED`](super::MAX_SURVEYED)).
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
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] beyond the end; an error of its file if labels are read late.
    fn label(&self, index: usize) -> Result<Option<i32>, DataError>;

    /// Decodes sample `index`.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] beyond the end, [`DataError::Decode`] for a bad image, [`DataError::Io`] if its file
    /// cannot be read.
    fn sample(&self, index: usize) -> Result<Sample, DataError>;

    /// Where its labels and the names of its classes come from.
    fn label_origin(&self) -> LabelOrigin {
        LabelOrigin::default()
    }

    /// What is known of each kind of target that was asked for, in the order of [`Sample::targets`].
    fn targets_info(&self) -> Vec<TargetInfo> {
        let info = self.info();
        vec![TargetInfo {
            kind: TargetKind::Class,
            names: info.class_names.clone(),
            source: self.label_origin().names,
            column: info.label_column.clone(),
        }]
    }

    /// What its owner should know of the files, one line each: what was left out.
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

    /// The object of sample `index` alone, a grey image of the sample's size: 0 where it is not, 255 where it covers the
    /// whole pixel. What cuts and mirrors the sample can do the same with it. Known only of synthetic images.
    fn known_object(&self, _index: usize) -> Option<Image> {
        None
    }

    /// Which patches of sample `index` hold its object, row by row over the grid of `patch` by `patch` pixels: known
    /// only of synthetic images.
    fn known_object_patches(&self, _index: usize, _patch: usize) -> Option<Vec<bool>> {
        None
    }
}

/// Where the names of a split's classes come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameSource {
    /// The dataset lists them: a `ClassLabel`, class folders, a file of names.
    #[default]
    Declared,
    /// There are none: labels are numbers, and the names are these numbers.
    Numbers,
    /// They are the values of a column of strings, sorted: by number if all are whole numbers, else by their bytes.
    Values,
}

/// What is known of the place that labels come from, beyond [`DatasetInfo::label_column`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelOrigin {
    /// Where the names of the classes come from.
    pub names: NameSource,
    /// Type of the label column, as `int64` or `dictionary<int32, string>`, where there is one.
    pub column_type: Option<String>,
    /// Columns that were looked at and not taken, each with its type, where there is no label column.
    pub not_taken: Vec<String>,
}

/// The bounds check that every reader makes first.
pub(crate) fn check_index(info: &DatasetInfo, index: usize) -> Result<(), DataError> {
    if index < info.num_samples {
        Ok(())
    } else {
        Err(DataError::OutOfRange { name: info.name.clone(), len: info.num_samples, index })
    }
}
