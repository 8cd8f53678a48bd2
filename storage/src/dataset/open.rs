//! Opens datasets.

use std::path::Path;
use std::sync::Arc;

use super::detect;
use super::error::DataError;
use super::layout::listing::{Kind, Scope};
use super::sample::Dataset;
use super::spec::DatasetSpec;

/// Opens a split of a dataset. Labels and structure are checked here; images when they are decoded.
///
/// # Errors
/// [`DataError::NotFound`], [`DataError::Unrecognised`] or [`DataError::NoSplit`] if there is no such dataset or split,
/// [`DataError::Ambiguous`] if there are several, [`DataError::Setting`] for a spec that makes no sense, and what the
/// format's reader has to say of its files.
pub fn open(spec: &DatasetSpec) -> Result<Arc<dyn Dataset>, DataError> {
    if let Some(format) = spec.format.format().filter(|_| !spec.format.reads_files()) {
        let nowhere = Path::new("");
        return format.open(nowhere, spec, &Scope::new(nowhere, &[])?);
    }
    let Some(path) = spec.path.as_deref() else {
        return Err(DataError::Setting {
            key: "data.path",
            allowed: format!("a folder or file for format {}", spec.format),
            value: "absent".to_owned(),
        });
    };
    if !path.try_exists().map_err(|e| DataError::read(path, e))? {
        return Err(DataError::NotFound { path: path.to_owned() });
    }
    if let Kind::Special(kind) = Kind::at(path)? {
        return Err(DataError::malformed(path, format!("a dataset is a folder or a file, not a {kind}")));
    }
    let (format, place) = detect::locate(path, spec.format, &spec.exclude)?;
    // Notes and exclusions are about what the user named, even where the data lies deeper.
    format.open(&place, spec, &Scope::new(path, &spec.exclude)?)
}
