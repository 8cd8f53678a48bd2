//! Which Parquet files of a folder hold which split.

use std::path::{Path, PathBuf};

use super::listing::{Entry, Kind, Scope, name_of};
use super::splits::{Named, Part, Rank, Shard, named, names_of, parts_of, strip_extension};
use crate::dataset::error::DataError;
use crate::dataset::spec::Split;

/// Endings of downloads that were not finished.
const UNFINISHED: [&str; 7] = ["incomplete", "part", "partial", "crdownload", "download", "tmp", "aria2"];
/// Absent numbers that are named.
const MAX_ABSENT: usize = 8;

/// The Parquet files of a dataset.
#[derive(Debug, Default)]
pub(crate) struct Shards {
    files: Vec<File>,
    /// Those whose names say no split.
    undecided: Vec<PathBuf>,
}

/// A file of a split.
#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    named: Named,
    shard: Shard,
    /// Whether the split is that of the file's folder, not said by its own name.
    by_folder: bool,
    in_split_folder: bool,
}

/// The Parquet files in a folder, in its folders that are named as splits, and in the same places of its folder `data`.
pub(crate) fn find(folder: &Path, scope: &Scope) -> Result<Shards, DataError> {
    let mut found = Shards::default();
    found.add(folder, scope)?;
    let data = folder.join("data");
    if data.is_dir() && !scope.excludes(&data) {
        found.add(&data, scope)?;
    }
    // The folder of one split alone: `NAME/train`, or the `train.parquet/` that Spark writes.
    if found.files.is_empty()
        && let Some(own) = named(&stem(&name_of(&canonical(folder)))).filter(|own| own.rank < Rank::Other)
    {
        for path in std::mem::take(&mut found.undecided) {
            found.push(path, Some(&own))?;
        }
    }
    Ok(found)
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn stem(name: &str) -> String {
    strip_extension(name).unwrap_or(name).to_owned()
}

fn is_parquet(entry: &Entry) -> bool {
    strip_extension(&entry.name()).is_some()
}

impl Shards {
    /// Whether there is no Parquet file at all.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.undecided.is_empty()
    }

    /// Whether some file outside of split folders is of a split by its name.
    pub fn has_direct(&self) -> bool {
        self.files.iter().any(|file| !file.in_split_folder)
    }

    /// Whether some file is of a split by its name or its folder's.
    pub fn has_splits(&self) -> bool {
        !self.files.is_empty()
    }

    fn add(&mut self, folder: &Path, scope: &Scope) -> Result<(), DataError> {
        for entry in scope.visible(folder)? {
            if !entry.is_folder() {
                self.add_file(entry, None, scope)?;
            } else if let Some(part) = named(&stem(&entry.name())).filter(|named| named.rank < Rank::Other) {
                if entry.name().to_lowercase().contains("partial") {
                    scope.note("holds a part of the split only, by its name", &entry.path);
                }
                for file in scope.visible(&entry.path)? {
                    if !file.is_folder() {
                        self.add_file(file, Some(&part), scope)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn add_file(&mut self, entry: Entry, folder: Option<&Named>, scope: &Scope) -> Result<(), DataError> {
        let name = entry.name();
        if is_parquet(&entry) {
            match entry.kind {
                Kind::Special(_) => scope.note("neither files nor folders, skipped", &entry.path),
                _ => self.push(entry.path, folder)?,
            }
        } else if let Some((whole, ending)) = name.rsplit_once('.')
            && UNFINISHED.contains(&ending.to_ascii_lowercase().as_str())
            && whole.to_ascii_lowercase().contains(".parquet")
        {
            scope.note("unfinished downloads left out", &entry.path);
        }
        Ok(())
    }

    fn push(&mut self, path: PathBuf, folder: Option<&Named>) -> Result<(), DataError> {
        let Some(shard) = Shard::read(&name_of(&path)) else {
            return Ok(());
        };
        let named = match (&shard.named, folder) {
            (Some(own), Some(folder)) if own.part != folder.part && own.rank < Rank::Other => {
                let reason =
                    format!("lies in a folder {}, but its name says {}", folder.part.as_str(), own.part.as_str());
                return Err(DataError::malformed(&path, reason));
            }
            (Some(own), Some(folder)) if own.part == folder.part => own.clone(),
            (_, Some(folder)) => folder.clone(),
            (Some(own), None) => own.clone(),
            (None, None) => {
                self.undecided.push(path);
                return Ok(());
            }
        };
        let by_folder = shard.named.as_ref().is_none_or(|own| own.part != named.part);
        self.files.push(File { path, named, shard, by_folder, in_split_folder: folder.is_some() });
        Ok(())
    }

    /// The files of a split, sorted by their paths, and its stored name.
    pub fn choose(mut self, folder: &Path, wanted: Split, scope: &Scope) -> Result<(String, Vec<PathBuf>), DataError> {
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        let trains: Vec<&File> = self.files.iter().filter(|file| file.named.part == Part::Train).collect();
        for &part in parts_of(wanted) {
            let of_part: Vec<&File> = self.files.iter().filter(|file| file.named.part == part).collect();
            let fits = |file: &&File| {
                let is_of_train = |train: &&File| train.named.group == file.named.group;
                file.named.rank < Rank::Other || file.named.leads || trains.is_empty() || trains.iter().any(is_of_train)
            };
            // `model_eval.parquet` beside `train.parquet` is no split of it.
            let fitting: Vec<&File> = of_part.iter().copied().filter(fits).collect();
            if fitting.is_empty() {
                for left in of_part {
                    scope.note("parquet files of other splits left out", &left.path);
                }
                continue;
            }
            let files = of_one_set(&fitting, folder, part, scope)?;
            check_numbers(&files, folder, part, scope)?;
            for left in of_part.iter().filter(|file| !files.iter().any(|chosen| chosen.path == file.path)) {
                scope.note("parquet files of other splits left out", &left.path);
            }
            for left in &self.undecided {
                scope.note("parquet files whose names say no split left out", left);
            }
            return Ok((part.as_str().to_owned(), files.iter().map(|file| file.path.clone()).collect()));
        }
        let mut all: Vec<&PathBuf> = self.files.iter().map(|file| &file.path).chain(&self.undecided).collect();
        all.sort();
        let present = if all.is_empty() { "no parquet files".to_owned() } else { scope.all_shown(all) };
        let places = "as NAME.parquet, NAME-00000-of-00001.parquet and NAME/*.parquet here and in data/";
        let hint = format!("looked for NAME of {} {places}, found {present}", names_of(wanted));
        Err(DataError::NoSplit { path: folder.to_owned(), split: wanted.to_string(), hint })
    }
}

fn several(folder: &Path, part: Part, scope: &Scope, files: &[&File]) -> DataError {
    DataError::Ambiguous {
        path: folder.to_owned(),
        what: format!("several files or folders for the {} split", part.as_str()),
        remedy:
            "leave all but one out by data.exclude, or put files that belong together into a folder of the split's name"
                .to_owned(),
        candidates: scope.all_shown(files.iter().map(|file| &file.path)),
    }
}

/// The files of one set: beside `train`, `train_noisy` is another split. A name with other words is only taken if there
/// is no other.
fn of_one_set<'f>(files: &[&'f File], folder: &Path, part: Part, scope: &Scope) -> Result<Vec<&'f File>, DataError> {
    let best = files.iter().map(|file| file.named.rank).min().unwrap_or(Rank::Exact);
    let chosen: Vec<&File> = files.iter().copied().filter(|file| file.named.rank == best).collect();
    // Names that differ but in their numbers, or places that differ, are different sets.
    let set = |file: &File| {
        let place = file.path.parent().map(Path::to_owned);
        (place, (!file.by_folder).then(|| file.shard.stem.clone()))
    };
    if chosen.iter().any(|file| set(file) != set(chosen[0])) {
        return Err(several(folder, part, scope, &chosen));
    }
    if best == Rank::Other {
        scope.note(&format!("taken for the {} split, for which nothing else is named", part.as_str()), &chosen[0].path);
    }
    Ok(chosen)
}

/// Files named `x-00000-of-00003` must be all there: a missing one would shift the ids and shrink the data unnoticed.
fn check_numbers(files: &[&File], folder: &Path, part: Part, scope: &Scope) -> Result<(), DataError> {
    let Some(first) = files.first() else {
        return Ok(());
    };
    let mut numbers: Vec<usize> = files.iter().filter_map(|file| file.shard.index).collect();
    let num_files = files.len();
    numbers.sort_unstable();
    let total = files.iter().find_map(|file| file.shard.total);
    let is_own_set = !first.by_folder && num_files > 1;
    let has_twice = numbers.windows(2).any(|two| two[0] == two[1]);
    let differs = files.iter().any(|file| file.shard.total != total);
    if differs || (total.is_some() || is_own_set) && (has_twice || numbers.len() != num_files) {
        return Err(several(folder, part, scope, files));
    }
    let Some((low, high)) = numbers.first().copied().zip(numbers.last().copied()) else {
        return Ok(());
    };
    let absent = |low: usize, high: usize| {
        let absent = (low..=high).filter(|number| numbers.binary_search(number).is_err());
        absent.take(MAX_ABSENT).map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
    };
    match total {
        Some(total) => {
            // Some writers count from 1.
            let base = usize::from(low == 1 && high == total);
            let is_whole = num_files == total && low == base && high + 1 == base + total;
            if !is_whole {
                let absent = absent(base, (base + total).saturating_sub(1));
                let reason =
                    format!("is one of {total} files by its name, but there are {num_files}; absent: {absent}");
                return Err(DataError::malformed(&first.path, reason));
            }
        }
        None if num_files > 1
            && numbers.len() == num_files
            && (high - low >= num_files || (2..1000).contains(&low)) =>
        {
            // Numbers may also be rows or years, which have gaps by right.
            let from = low.min(1);
            let gaps = absent(from, high);
            scope.say(format!("numbers absent among the files of the {} split: {gaps}", part.as_str()));
        }
        None => {}
    }
    Ok(())
}
