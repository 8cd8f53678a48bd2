//! Which format the files at a path have, and where below it they are.

use std::path::{Path, PathBuf};

use super::error::DataError;
use super::format::{Format, Likeness};
use super::formats::FORMATS;
use super::layout::listing::{Scope, name_of};
use super::layout::splits::named;
use super::spec::FormatName;

/// Folders around a dataset, as archives unpack to them (`NAME/NAME/train`), that are entered at most.
const MAX_WRAPPERS: usize = 4;
/// How deep datasets beside each other are looked for (`data/CONFIG/train-…`).
const MAX_DEPTH: usize = 1;

/// A format, and where its files are.
type Located = (&'static dyn Format, PathBuf);

/// The format of a file or folder, which is `wanted` unless that is `auto`, and where below `path` its files are.
pub(crate) fn locate(path: &Path, wanted: FormatName, exclude: &[String]) -> Result<Located, DataError> {
    let wanted = wanted.format();
    if path.is_file() {
        let format = wanted.or_else(|| of_file(path));
        return format.map(|format| (format, path.to_owned())).ok_or_else(|| {
            let patterns: Vec<_> = FORMATS.iter().filter_map(|format| format.file_extension()).collect();
            let patterns: Vec<_> = patterns.into_iter().map(|extension| format!("a *.{extension} file")).collect();
            unrecognised(path, format!("a folder, or {}", patterns.join(", ")))
        });
    }
    // The notes of the search are dropped: the reader makes them again.
    let scope = Scope::new(path, exclude)?;
    let search = Search { formats: wanted.map_or_else(|| FORMATS.to_vec(), |one| vec![one]), scope: &scope };
    let mut place = path.to_owned();
    for _ in 0..=MAX_WRAPPERS {
        if let Some(found) = search.dataset(&place)? {
            return Ok(found);
        }
        match scope.folders(&place).as_slice() {
            [one] if !one.is_link => place.clone_from(&one.path),
            _ => break,
        }
    }
    // The reader of a format that was named says what it misses.
    wanted.map(|format| (format, path.to_owned())).ok_or_else(|| {
        let all: Vec<_> = FORMATS.iter().filter_map(|format| format.looked_for()).collect();
        unrecognised(path, all.join(", "))
    })
}

/// The format of a file that is a dataset by itself, by its extension in any case.
fn of_file(path: &Path) -> Option<&'static dyn Format> {
    let name = name_of(path);
    let (_, extension) = name.rsplit_once('.')?;
    let has = |format: &&dyn Format| format.file_extension().is_some_and(|own| own.eq_ignore_ascii_case(extension));
    FORMATS.iter().copied().find(has)
}

fn unrecognised(path: &Path, looked_for: String) -> DataError {
    DataError::Unrecognised { path: path.to_owned(), looked_for }
}

struct Search<'a> {
    /// The formats that are looked for.
    formats: Vec<&'static dyn Format>,
    scope: &'a Scope,
}

impl Search<'_> {
    /// The dataset that is in `place` itself, or in the one of its folders that has one.
    fn dataset(&self, place: &Path) -> Result<Option<Located>, DataError> {
        let mut best: Option<(Likeness, &'static dyn Format)> = None;
        for &format in &self.formats {
            let likeness = format.recognises(place, self.scope)?;
            if likeness > best.map_or(Likeness::None, |(likeness, _)| likeness) {
                best = Some((likeness, format));
            }
            if likeness == Likeness::Certain {
                break;
            }
        }
        if let Some((_, format)) = best.filter(|(likeness, _)| *likeness >= Likeness::OneSplit) {
            return Ok(Some((format, place.to_owned())));
        }
        let mut below = Vec::new();
        self.below(place, 0, &mut below);
        match below.len() {
            0 => Ok(best.map(|(_, format)| (format, place.to_owned()))),
            1 => Ok(below.pop()),
            _ => Err(DataError::Ambiguous {
                path: place.to_owned(),
                what: "several datasets".to_owned(),
                remedy: "choose data.path from them".to_owned(),
                candidates: self.scope.all_shown(below.iter().map(|(_, place)| place)),
            }),
        }
    }

    /// Datasets with splits in the folders of `place`: a configuration each, as the Hub has them.
    fn below(&self, place: &Path, depth: usize, found: &mut Vec<Located>) {
        // A folder that cannot be read, or whose files contradict each other, is left to whoever names it.
        let has_splits = |format: &&dyn Format, folder: &Path| {
            format.has_configurations()
                && format.recognises(folder, self.scope).is_ok_and(|likeness| likeness >= Likeness::SplitFiles)
        };
        for folder in self.scope.folders(place).into_iter().filter(|folder| !folder.is_link) {
            let path = folder.path;
            // An empty split is no dataset of its own.
            if named(&name_of(&path)).is_some_and(|named| named.group.is_empty()) {
                continue;
            }
            match self.formats.iter().copied().find(|format| has_splits(format, &path)) {
                Some(format) => found.push((format, path)),
                None if depth < MAX_DEPTH => self.below(&path, depth + 1, found),
                None => {}
            }
        }
    }
}
