//! Which format the files at a path have, and where below it they are.

use std::path::{Path, PathBuf};

use super::formats::{cifar, idx};
use super::layout::folders::{Likeness, likeness};
use super::layout::listing::{Scope, name_of};
use super::layout::shards::{self, Shards};
use super::layout::splits::{named, strip_extension};
use super::{DataError, Format};

/// What is looked for, in this order, for the message when nothing is found.
const LOOKED_FOR: &str = "*.parquet, data_batch_1.bin or train.bin of cifar, data_batch_1 or train and meta of cifar, \
    *-images-idx3-ubyte, class folders of images (png, jpg, jpeg, jpe, jfif, webp, bmp, tif, tiff, gif)";
/// Folders around a dataset, as archives unpack to them (`NAME/NAME/train`), that are entered at most.
const MAX_WRAPPERS: usize = 4;
/// How deep datasets beside each other are looked for (`data/CONFIG/train-…`).
const MAX_DEPTH: usize = 1;

/// The format of a file or folder, which is `wanted` unless that is `auto`, and where below `path` its files are.
pub(crate) fn locate(path: &Path, wanted: Format, exclude: &[String]) -> Result<(Format, PathBuf), DataError> {
    if path.is_file() {
        let is_parquet = strip_extension(&name_of(path)).is_some();
        return match (wanted, is_parquet) {
            (Format::Auto, true) => Ok((Format::HfParquet, path.to_owned())),
            (Format::Auto, false) => Err(unrecognised(path, "a folder, or a *.parquet file")),
            (wanted, _) => Ok((wanted, path.to_owned())),
        };
    }
    let scope = Scope::new(path, exclude)?;
    let search = Search { wanted, exclude, scope: &scope };
    let mut place = path.to_owned();
    for _ in 0..=MAX_WRAPPERS {
        if let Some((format, found)) = search.dataset(&place)? {
            return Ok((format, found));
        }
        match scope.folders(&place).as_slice() {
            [one] if !one.is_link => place.clone_from(&one.path),
            _ => break,
        }
    }
    match wanted {
        Format::Auto => Err(unrecognised(path, LOOKED_FOR)),
        // The reader says what it misses.
        wanted => Ok((wanted, path.to_owned())),
    }
}

fn unrecognised(path: &Path, looked_for: &str) -> DataError {
    DataError::Unrecognised { path: path.to_owned(), looked_for: looked_for.to_owned() }
}

struct Search<'a> {
    wanted: Format,
    exclude: &'a [String],
    scope: &'a Scope,
}

impl Search<'_> {
    fn wants(&self, format: Format) -> bool {
        matches!(self.wanted, Format::Auto) || self.wanted == format
    }

    /// The dataset that is in `place` itself, or in the one of its folders that has one.
    fn dataset(&self, place: &Path) -> Result<Option<(Format, PathBuf)>, DataError> {
        let here = |format| Ok(Some((format, place.to_owned())));
        let wants_parquet = self.wants(Format::HfParquet);
        let shards = if wants_parquet { shards::find(place, self.scope)? } else { Shards::default() };
        if shards.has_direct() {
            return here(Format::HfParquet);
        }
        if self.wants(Format::CifarBin) && cifar::find_bin(place, self.scope).is_some() {
            return here(Format::CifarBin);
        }
        if self.wants(Format::CifarPickle) && cifar::find_pickle(place, self.scope).is_some() {
            return here(Format::CifarPickle);
        }
        if self.wants(Format::Idx) && !idx::image_files(place, self.scope)?.is_empty() {
            return here(Format::Idx);
        }
        let likeness = if self.wants(Format::ImageFolder) {
            likeness(place, self.scope.root(), self.exclude)?
        } else {
            Likeness::None
        };
        // A folder of images may have Parquet files with facts about them beside them.
        if likeness == Likeness::Splits {
            return here(Format::ImageFolder);
        }
        if shards.has_splits() {
            return here(Format::HfParquet);
        }
        if likeness == Likeness::Classes {
            return here(Format::ImageFolder);
        }
        let mut below = Vec::new();
        self.below(place, 0, &mut below)?;
        match below.as_slice() {
            [] if likeness == Likeness::OneClass => here(Format::ImageFolder),
            // Their names say no split; the reader says so.
            [] if !shards.is_empty() => here(Format::HfParquet),
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            _ => Err(DataError::Ambiguous {
                path: place.to_owned(),
                what: "several datasets".to_owned(),
                remedy: "choose data.path from them".to_owned(),
                candidates: self.scope.all_shown(below.iter().map(|(_, place)| place)),
            }),
        }
    }

    /// Datasets with splits in the folders of `place`: a configuration each, as the Hub has them.
    fn below(&self, place: &Path, depth: usize, found: &mut Vec<(Format, PathBuf)>) -> Result<(), DataError> {
        for folder in self.scope.folders(place).into_iter().filter(|folder| !folder.is_link) {
            let path = folder.path;
            // An empty split is no dataset of its own.
            if named(&name_of(&path)).is_some_and(|named| named.group.is_empty()) {
                continue;
            }
            if self.wants(Format::HfParquet) && shards::find(&path, self.scope).is_ok_and(|shards| shards.has_splits())
            {
                found.push((Format::HfParquet, path));
            } else if self.wants(Format::ImageFolder)
                && likeness(&path, self.scope.root(), self.exclude)? == Likeness::Splits
            {
                found.push((Format::ImageFolder, path));
            } else if depth < MAX_DEPTH {
                self.below(&path, depth + 1, found)?;
            }
        }
        Ok(())
    }
}

/// The first of `folder` and its named subfolders which satisfies a test.
pub(crate) fn folder_with(folder: &Path, subfolders: &[&str], test: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    std::iter::once(folder.to_owned()).chain(subfolders.iter().map(|name| folder.join(name))).find(|place| test(place))
}
