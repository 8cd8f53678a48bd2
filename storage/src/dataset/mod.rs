//! Labelled image datasets behind one trait: opened by [`open`], decoded on demand, u8 throughout.
//!
//! A format is one module in `formats`, which implements [`Format`] and has a line in [`FORMATS`]. Detection, opening,
//! the schema of the configuration, the help of the command line and messages all read that list.
//!
//! ```
//! use mlomae_storage::dataset::{DatasetSpec, FormatName, Split, open};
//!
//! // The images inside the program; `FormatName::AUTO` and a path open those of a file or folder.
//! let train = open(&DatasetSpec::new(FormatName::EMBEDDED, None, Split::Train))?;
//! assert_eq!((train.len(), train.info().class_names.len()), (5000, 10));
//!
//! let sample = train.sample(0)?;
//! let image = &sample.image;
//! assert_eq!((image.width, image.height, image.channels), (28, 28, 1));
//! assert_eq!(image.pixels.len(), 28 * 28);
//! assert_eq!(sample.label, train.label(0)?);
//! # Ok::<(), mlomae_storage::dataset::DataError>(())
//! ```

pub mod convert;
pub mod decode;
mod detect;
mod error;
pub mod fingerprint;
mod format;
mod formats;
mod labels;
mod layout;
mod open;
mod parquet_file;
mod pixels;
mod sample;
mod spec;
pub mod summary;
mod synthetic_spec;
#[cfg(test)]
mod tests;

pub use convert::{ConvertReport, convert, write_synthetic};
pub use decode::{DecodeError, DecodeLimits, Decoder};
pub use error::DataError;
pub use format::{Format, Likeness};
pub use formats::image_folder::MAX_SURVEYED;
pub use formats::synthetic::SyntheticDataset;
pub use formats::{FORMATS, reading_no_files};
pub use labels::classes::{self, HeldOut, align};
pub use layout::listing::{Scope, check_exclude};
pub use layout::splits::is_validation;
pub use open::open;
pub use pixels::Image;
pub use sample::{Dataset, DatasetInfo, LabelOrigin, NameSource, Sample};
pub use spec::{DatasetSpec, FormatName, Split};
pub use summary::{Summary, summary};
pub use synthetic_spec::{ObjectAreas, SyntheticLabel, SyntheticScene, SyntheticSpec};

pub(crate) use parquet_file::{footer, pages};
