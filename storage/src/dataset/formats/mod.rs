//! The forms in which datasets are stored, one module a format, and the list of them.

pub(crate) mod annotated;
pub(crate) mod cifar;
pub(crate) mod coco;
pub(crate) mod embedded;
pub(crate) mod hf_parquet;
pub(crate) mod idx;
pub(crate) mod image_files;
pub(crate) mod image_folder;
pub(crate) mod mask_folder;
pub(crate) mod raw;
pub(crate) mod synthetic;
pub(crate) mod voc;

use std::borrow::Cow;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::DataError;
use super::format::Format;
use super::spec::FormatName;

/// Every format that can be read, in the order of the documentation. Of formats that are equally sure of a folder's
/// files the first one is taken.
pub static FORMATS: &[&dyn Format] = &[
    &hf_parquet::HfParquet,
    &cifar::CifarBin,
    &cifar::CifarPickle,
    &idx::Idx,
    &voc::Voc,
    &coco::Coco,
    &mask_folder::MaskFolder,
    &image_folder::ImageFolder,
    &synthetic::Synthetic,
    &embedded::Embedded,
];

/// Names of the formats that read no files, for messages.
#[must_use]
pub fn reading_no_files() -> Vec<FormatName> {
    FormatName::all().filter(|name| !name.reads_files()).collect()
}

impl FormatName {
    /// `auto`, and the name of every format in the order of [`FORMATS`].
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::AUTO).chain(FORMATS.iter().map(|format| format.name()))
    }

    /// The format or `auto` of this name.
    ///
    /// # Errors
    /// [`DataError::Setting`] with all names if it is none of them.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        Self::all().find(|name| name.as_str() == text).ok_or_else(|| DataError::Setting {
            key: "data.format",
            allowed: format!("one of {}", Self::all().map(Self::as_str).collect::<Vec<_>>().join(", ")),
            value: format!("{text:?}"),
        })
    }

    /// The format of this name; none for `auto`.
    #[must_use]
    pub fn format(self) -> Option<&'static dyn Format> {
        FORMATS.iter().copied().find(|format| format.name() == self)
    }

    /// What it reads, one line.
    #[must_use]
    pub fn about(self) -> &'static str {
        self.format().map_or("Recognised from the files.", Format::about)
    }

    /// Whether it needs a path; a dataset that is generated or inside the program does not.
    #[must_use]
    pub fn reads_files(self) -> bool {
        self.format().is_none_or(|format| format.looked_for().is_some())
    }
}

impl FromStr for FormatName {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        Self::parse(text)
    }
}

impl Serialize for FormatName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for FormatName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&Cow::<str>::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The same schema as that of an enum with the formats as its variants.
#[cfg(feature = "schema")]
impl schemars::JsonSchema for FormatName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "FormatName".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let variants: Vec<_> = Self::all()
            .map(|name| serde_json::json!({"description": name.about(), "type": "string", "const": name.as_str()}))
            .collect();
        schemars::json_schema!({ "oneOf": variants })
    }
}
