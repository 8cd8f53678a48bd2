//! `[data]`: which images, in which roles, and how they are augmented.

use std::path::PathBuf;

use mlomae_storage::dataset::{BoxFormat, DatasetSpec, FormatName, Split, SyntheticSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which split judges the encoder. Training never sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TestSplit {
    /// The test split if it has labels, else the validation split, else none; a warning says what is used instead of
    /// the test split.
    #[default]
    Auto,
    /// The test split, which must have labels.
    Test,
    /// The validation split, which must have labels.
    Validation,
    /// None: training ends without an evaluation.
    None,
}

impl TestSplit {
    /// The name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Test => "test",
            Self::Validation => "validation",
            Self::None => "none",
        }
    }
}

/// What is done about an image that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadImage {
    /// The run ends with its file and sample (exit code 65).
    #[default]
    Refuse,
    /// It is left out: another image of its role takes its place, the same one whenever the run is repeated or
    /// resumed; of evaluations it is left out. Named in the events, counted at the end.
    Skip,
}

/// The data set and how it is divided and changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Form of the files.
    pub format: FormatName,
    /// File or folder of the data set; not for `embedded` and `synthetic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Label column of Parquet files, or CIFAR-100's `fine_label` or `coarse_label`. Without it: `label`, the one
    /// `ClassLabel`, one of the usual names, or the only column of numbers or categories that is no index and no size.
    /// Strings are classes in the order of their numbers if all are whole numbers, else of their bytes; -1, null, NaN
    /// and the empty string mean no label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// Image column of Parquet files. Without it: `image`, `img`, or the only one there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// Column of class maps of Parquet files, a second image column. Without it: one of the usual names (`mask`,
    /// `annotation`, ...), or the only one beside the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_column: Option<String>,
    /// Columns of Parquet files that are an image's values, each of numbers or of lists of numbers of one length. Without
    /// them: every column of floating-point numbers.
    pub value_columns: Vec<String>,
    /// How boxes of Parquet files are written: `xywh` (left, top, width, height) or `xyxy` (left, top, right, bottom).
    pub bbox_format: BoxFormat,
    /// Index 0 of class maps is no class, and every other one the class before it. Without it: so in ADE20K's layout
    /// (`annotations/training`), and not elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduce_zero_label: Option<bool>,
    /// Splits, folders and files that are left out: names, or patterns with `*` and `?`. One with a `/` is matched
    /// against the path relative to `data.path`, one without against every name; a Parquet file also has the name of
    /// its split.
    pub exclude: Vec<String>,
    /// Split that judges the encoder, mapped to the train split's classes by name. `auto`: the test split if it has
    /// labels, else the validation split, else none.
    pub test_split: TestSplit,
    /// Side in pixels of the square images that the networks see; other sizes are resized.
    /// Without it: the side of the data's own images.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8, max = 1024))]
    pub image: Option<usize>,
    /// Colour channels that the networks see: 1 or 3. Without it: those of the data's own images.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3))]
    pub channels: Option<usize>,
    /// Turns images as the EXIF orientation of JPEG, PNG and WebP, or the orientation tag of TIFF, says; false takes
    /// the pixels as they are stored.
    pub exif_orientation: bool,
    /// What is done about an image that cannot be decoded: `refuse` or `skip`.
    pub on_bad_image: OnBadImage,
    /// Uses only this many images of the training split, drawn by the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_samples: Option<usize>,
    /// Share of the training split that pretrains (level 1, no labels used). The roles are
    /// disjoint and stratified by label; the test role is the data's own test split.
    #[schemars(range(min = 0.01, max = 0.98))]
    pub pretrain_fraction: f64,
    /// Share of the training split that trains the head (level 2).
    #[schemars(range(min = 0.01, max = 0.98))]
    pub finetune_fraction: f64,
    /// Share of the training split that judges the masks (level 3).
    #[schemars(range(min = 0.01, max = 0.98))]
    pub validation_fraction: f64,
    /// Means of the channels, of values in 0..1. Without it: computed over the pretrain role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Standard deviations of the channels. Without it: computed over the pretrain role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Changes of the training images.
    pub augment: AugmentConfig,
    /// The generated data set.
    pub synthetic: SyntheticSpec,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            format: FormatName::default(),
            path: None,
            label_column: None,
            image_column: None,
            mask_column: None,
            value_columns: Vec::new(),
            bbox_format: BoxFormat::default(),
            reduce_zero_label: None,
            exclude: Vec::new(),
            test_split: TestSplit::default(),
            image: None,
            channels: None,
            exif_orientation: true,
            on_bad_image: OnBadImage::default(),
            max_samples: None,
            pretrain_fraction: 0.6,
            finetune_fraction: 0.2,
            validation_fraction: 0.2,
            mean: None,
            std: None,
            augment: AugmentConfig::default(),
            synthetic: SyntheticSpec::default(),
        }
    }
}

/// Random changes of the images of the three training roles, drawn from the seed, the epoch and
/// the sample. Validation batches of level 3 are not changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// How a window is cut out.
    pub crop: Crop,
    /// `crop = "padded"`: black pixels added at each side before the cut.
    #[schemars(range(min = 0, max = 128))]
    pub crop_padding: usize,
    /// `crop = "resized"`: smallest area of the window as a share of the image.
    #[schemars(range(min = 0.05, max = 1.0))]
    pub min_area: f64,
    /// Mirrors every second image on average.
    pub flip: bool,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self { crop: Crop::Padded, crop_padding: 2, min_area: 0.2, flip: true }
    }
}

/// How a training image is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// The whole image.
    None,
    /// A window of the image's own size out of the padded image.
    Padded,
    /// A window of random area (at least `min_area`) and shape (3:4 to 4:3), resized.
    Resized,
}

impl DataConfig {
    /// What opens a split of the configured data set.
    #[must_use]
    pub fn dataset_spec(&self, split: Split) -> DatasetSpec {
        DatasetSpec {
            format: self.format,
            path: self.path.clone(),
            split,
            label_column: self.label_column.clone(),
            image_column: self.image_column.clone(),
            mask_column: self.mask_column.clone(),
            value_columns: self.value_columns.clone(),
            bbox_format: self.bbox_format,
            reduce_zero_label: self.reduce_zero_label,
            exclude: self.exclude.clone(),
            exif_orientation: self.exif_orientation,
            channels: self.channels,
            synthetic: self.synthetic.clone(),
            ..DatasetSpec::default()
        }
    }
}
