//! Opens datasets.

use std::path::PathBuf;
use std::sync::Arc;

use super::detect;
use super::error::DataError;
use super::format::Format;
use super::layout::listing::{Kind, Scope};
use super::sample::Dataset;
use super::spec::DatasetSpec;
use super::target::{TargetKind, listed};

/// A format, the place of its files, and what of them is looked at.
type Found = (&'static dyn Format, PathBuf, Scope);

/// Opens a split of a dataset. Labels and structure are checked here; images when they are decoded.
///
/// # Errors
/// [`DataError::NotFound`], [`DataError::Unrecognised`] or [`DataError::NoSplit`] if there is no such dataset or split,
/// [`DataError::Ambiguous`] if there are several, [`DataError::Setting`] for a spec that makes no sense,
/// [`DataError::NoTargets`] for targets that the data lack, and what the format's reader has to say of its files.
pub fn open(spec: &DatasetSpec) -> Result<Arc<dyn Dataset>, DataError> {
    let asked = &spec.targets;
    let is_twice = asked.iter().enumerate().any(|(at, kind)| asked[..at].contains(kind));
    if asked.is_empty() || is_twice {
        let allowed = format!("different ones of {}, at least one", listed(&TargetKind::ALL));
        return Err(DataError::Setting { key: "targets", allowed, value: listed(asked) });
    }
    let (format, place, scope) = find(spec)?;
    if let Some(&kind) = asked.iter().find(|kind| !format.targets().contains(kind)) {
        let path = spec.path.clone().unwrap_or_else(|| format.name().as_str().into());
        return Err(DataError::NoTargets { path, kind, has: format.targets().to_vec() });
    }
    format.open(&place, spec, &scope)
}

/// The kinds of targets that [`open`] can give of a dataset, whatever `spec.targets` asks for.
///
/// # Errors
/// As [`open`], as far as the files have to be looked at.
pub fn kinds(spec: &DatasetSpec) -> Result<Vec<TargetKind>, DataError> {
    let (format, place, scope) = find(spec)?;
    format.kinds(&place, spec, &scope)
}

fn find(spec: &DatasetSpec) -> Result<Found, DataError> {
    if let Some(format) = spec.format.format().filter(|_| !spec.format.reads_files()) {
        let nowhere = PathBuf::new();
        let scope = Scope::new(&nowhere, &[])?;
        return Ok((format, nowhere, scope));
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
    Ok((format, place, Scope::new(path, &spec.exclude)?))
}
