//! CIFAR-10 and CIFAR-100, in the binary version and in the python version that torchvision downloads.

pub(crate) mod pickle;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::input::{open_regular, read_to_end};

use self::pickle::{Pickle, Value};
use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::formats::raw::{Layout, RawDataset};
use crate::dataset::labels::classes::{name_of_bytes, numbered_classes};
use crate::dataset::labels::label_column;
use crate::dataset::layout::listing::{Scope, file_name, folder_with};
use crate::dataset::sample::{Dataset, DatasetInfo, NameSource};
use crate::dataset::spec::{DatasetSpec, FormatName, Split};

const SIDE: usize = 32;
const IMAGE_LEN: usize = SIDE * SIDE * 3;
/// The largest of the published files has 185 MB.
const MAX_FILE_BYTES: u64 = 16 << 30;

/// CIFAR-10 or CIFAR-100, binary version.
pub(crate) struct CifarBin;
/// CIFAR-10 or CIFAR-100, python version.
pub(crate) struct CifarPickle;

impl CifarBin {
    pub(crate) const NAME: FormatName = FormatName::new("cifar-bin");
}

impl CifarPickle {
    pub(crate) const NAME: FormatName = FormatName::new("cifar-pickle");
}

impl Format for CifarBin {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "CIFAR-10 or CIFAR-100, binary version."
    }

    fn looked_for(&self) -> Option<String> {
        Some("data_batch_1.bin or train.bin of cifar".to_owned())
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        Ok(find_bin(folder, scope).map_or(Likeness::None, |_| Likeness::Certain))
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open_bin(place, spec, scope)
    }
}

impl Format for CifarPickle {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "CIFAR-10 or CIFAR-100, python version, as torchvision downloads it."
    }

    fn looked_for(&self) -> Option<String> {
        Some("data_batch_1 or train and meta of cifar".to_owned())
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        Ok(find_pickle(folder, scope).map_or(Likeness::None, |_| Likeness::Certain))
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open_pickle(place, spec, scope)
    }
}

/// Which of the two datasets, known by the names of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cifar10,
    Cifar100,
}

/// Images and labels read so far, and where each file's begin.
#[derive(Default)]
struct Gathered {
    pixels: Vec<u8>,
    labels: Vec<i32>,
    files: Vec<(PathBuf, usize)>,
}

fn has(folder: &Path, name: &str, scope: &Scope) -> bool {
    let file = folder.join(name);
    file.is_file() && !scope.excludes(&file)
}

/// The folder with the files of the binary version.
fn find_bin(path: &Path, scope: &Scope) -> Option<(PathBuf, Kind)> {
    let folder = folder_with(path, &["cifar-10-batches-bin", "cifar-100-binary"], |folder| {
        has(folder, "data_batch_1.bin", scope)
            || has(folder, "test_batch.bin", scope)
            || has(folder, "train.bin", scope)
            || has(folder, "test.bin", scope)
    })?;
    let kind = if has(&folder, "data_batch_1.bin", scope) || has(&folder, "test_batch.bin", scope) {
        Kind::Cifar10
    } else {
        Kind::Cifar100
    };
    Some((folder, kind))
}

/// The folder with the files of the python version.
fn find_pickle(path: &Path, scope: &Scope) -> Option<(PathBuf, Kind)> {
    let folder = folder_with(path, &["cifar-10-batches-py", "cifar-100-python"], |folder| {
        has(folder, "data_batch_1", scope)
            || has(folder, "test_batch", scope)
            || (has(folder, "meta", scope) && (has(folder, "train", scope) || has(folder, "test", scope)))
    })?;
    let kind = if has(&folder, "meta", scope) { Kind::Cifar100 } else { Kind::Cifar10 };
    Some((folder, kind))
}

impl Kind {
    /// Files of a split. All of them must be there.
    fn files(self, split: Split, extension: &str) -> Vec<String> {
        match (self, split) {
            (Self::Cifar10, Split::Train) => (1..=5).map(|batch| format!("data_batch_{batch}{extension}")).collect(),
            (Self::Cifar10, Split::Test) => vec![format!("test_batch{extension}")],
            (Self::Cifar100, Split::Train) => vec![format!("train{extension}")],
            (Self::Cifar100, Split::Test) => vec![format!("test{extension}")],
            (_, Split::Validation) => Vec::new(),
        }
    }

    /// The label field: `label`, or CIFAR-100's fine or coarse one.
    fn label_column(self, spec: &DatasetSpec, path: &Path) -> Result<&'static str, DataError> {
        let allowed: &[&'static str] = if self == Self::Cifar10 { &["label"] } else { &["fine_label", "coarse_label"] };
        let wanted = spec.label_column.as_deref().unwrap_or(allowed[0]);
        allowed.iter().find(|name| **name == wanted).copied().ok_or_else(|| DataError::Column {
            path: path.to_owned(),
            problem: format!("no label field {wanted:?}"),
            key: label_column::KEY,
            allowed: allowed.join(", "),
        })
    }
}

/// The paths of a split's files, with one error for what is absent.
fn files_of(
    folder: &Path,
    kind: Kind,
    split: Split,
    extension: &str,
    scope: &Scope,
) -> Result<Vec<PathBuf>, DataError> {
    let names = kind.files(split, extension);
    if names.is_empty() {
        let hint = "cifar has the splits train and test".to_owned();
        return Err(DataError::NoSplit { path: folder.to_owned(), split: split.to_string(), hint });
    }
    let absent: Vec<_> = names.iter().filter(|name| !has(folder, name, scope)).cloned().collect();
    if absent.is_empty() {
        return Ok(names.iter().map(|name| folder.join(name)).collect());
    }
    if absent.len() < names.len() {
        let reason = format!("the {split} split is incomplete, absent: {}", absent.join(", "));
        return Err(DataError::malformed(folder, reason));
    }
    let hint = format!("absent: {}", absent.join(", "));
    Err(DataError::NoSplit { path: folder.to_owned(), split: split.to_string(), hint })
}

fn absent(path: &Path, spec: &DatasetSpec, wanted: &str) -> DataError {
    let hint = format!("looked for {wanted} here and in the folder that the archive unpacks to");
    DataError::NoSplit { path: path.to_owned(), split: spec.split.to_string(), hint }
}

/// The whole file, which takes its size in memory and as much again for what is made of it.
fn read(path: &Path, spec: &DatasetSpec) -> Result<Vec<u8>, DataError> {
    let file = open_regular(path).map_err(|e| DataError::read(path, e))?;
    let num_bytes = file.metadata().map_err(|e| DataError::read(path, e))?.len();
    spec.budget().check(path, num_bytes.saturating_mul(2))?;
    read_to_end(file, num_bytes, MAX_FILE_BYTES).map_err(|e| DataError::read(path, e))
}

fn open_bin(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let found = find_bin(path, scope)
        .ok_or_else(|| absent(path, spec, "data_batch_1.bin, test_batch.bin, train.bin or test.bin"))?;
    let (folder, kind) = found;
    let column = kind.label_column(spec, path)?;
    // CIFAR-100 has the coarse label before the fine one.
    let num_labels = if kind == Kind::Cifar10 { 1 } else { 2 };
    let label_at = usize::from(column == "fine_label");
    let record_len = num_labels + IMAGE_LEN;
    let mut gathered = Gathered::default();
    for file in files_of(&folder, kind, spec.split, ".bin", scope)? {
        let bytes = read(&file, spec)?;
        let records = bytes.chunks_exact(record_len);
        let rest = records.remainder().len();
        if rest > 0 || bytes.is_empty() {
            let sample = gathered.labels.len() + bytes.len() / record_len;
            return Err(DataError::sample(
                &file,
                sample,
                format!("truncated: a record has {record_len} bytes, the last one {rest}"),
            ));
        }
        gathered.files.push((file, gathered.labels.len()));
        for record in records {
            gathered.labels.push(record[label_at].into());
            gathered.pixels.extend_from_slice(&record[num_labels..]);
        }
    }
    let names_file = folder.join(match column {
        "fine_label" => "fine_label_names.txt",
        "coarse_label" => "coarse_label_names.txt",
        _ => "batches.meta.txt",
    });
    let class_names = if names_file.is_file() {
        let text = String::from_utf8(read(&names_file, spec)?).map_err(|e| DataError::malformed(&names_file, e))?;
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    } else {
        default_names(column)
    };
    gathered.finish(path, CifarBin::NAME, spec.split, class_names, column, scope)
}

/// As many numbers as the published dataset has classes.
fn default_names(column: &str) -> Vec<String> {
    numbered_classes(std::iter::once(match column {
        "fine_label" => 99,
        "coarse_label" => 19,
        _ => 9,
    }))
}

fn open_pickle(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let (folder, kind) = find_pickle(path, scope)
        .ok_or_else(|| absent(path, spec, "data_batch_1, test_batch, or meta with train or test"))?;
    let column = kind.label_column(spec, path)?;
    let (labels_key, names_key) = match column {
        "fine_label" => ("fine_labels", "fine_label_names"),
        "coarse_label" => ("coarse_labels", "coarse_label_names"),
        _ => ("labels", "label_names"),
    };
    let mut gathered = Gathered::default();
    for file in files_of(&folder, kind, spec.split, "", scope)? {
        gathered.read_pickle(file, labels_key, spec)?;
    }
    let meta = folder.join(if kind == Kind::Cifar10 { "batches.meta" } else { "meta" });
    let class_names = if meta.is_file() { read_names(&meta, names_key, spec)? } else { default_names(column) };
    gathered.finish(path, CifarPickle::NAME, spec.split, class_names, column, scope)
}

/// The value of a key of the pickled dict.
fn field<'a>(pickle: &'a Pickle<'_>, key: &str, path: &Path) -> Result<&'a Value, DataError> {
    pickle.item(pickle.root(), key).ok_or_else(|| {
        let keys = pickle.keys(pickle.root()).join(", ");
        DataError::malformed(path, format!("must be a pickled dict with key {key:?}, its keys are: {keys}"))
    })
}

fn read_names(path: &Path, key: &str, spec: &DatasetSpec) -> Result<Vec<String>, DataError> {
    let bytes = read(path, spec)?;
    let pickle = Pickle::load(&bytes).map_err(|reason| DataError::malformed(path, reason))?;
    let wrong = || DataError::malformed(path, format!("{key} must be a list of strings"));
    let names = pickle.list(field(&pickle, key, path)?).ok_or_else(wrong)?;
    let names = names.map(|name| pickle.bytes(name).map(name_of_bytes));
    names.collect::<Option<Vec<_>>>().ok_or_else(wrong)
}

impl Gathered {
    fn read_pickle(&mut self, path: PathBuf, labels_key: &str, spec: &DatasetSpec) -> Result<(), DataError> {
        let bytes = read(&path, spec)?;
        let pickle = Pickle::load(&bytes).map_err(|reason| DataError::malformed(&path, reason))?;
        let data = field(&pickle, "data", &path)?;
        let (shape, pixels) =
            pickle.array(data).ok_or_else(|| DataError::malformed(&path, "data must be a numpy array of u8"))?;
        let &[rows, IMAGE_LEN] = shape else {
            return Err(DataError::malformed(&path, format!("data must have shape [n, {IMAGE_LEN}], not {shape:?}")));
        };
        let labels = pickle.list(field(&pickle, labels_key, &path)?);
        let labels =
            labels.ok_or_else(|| DataError::malformed(&path, format!("{labels_key} must be a list of integers")))?;
        if labels.len() != rows {
            return Err(DataError::malformed(&path, format!("{rows} images, but {} {labels_key}", labels.len())));
        }
        self.files.push((path.clone(), self.labels.len()));
        for label in labels {
            let Value::Int(value) = *label else {
                return Err(DataError::sample(
                    &path,
                    self.labels.len(),
                    format!("{labels_key} must hold integers, not {label:?}"),
                ));
            };
            self.labels.push(i32::try_from(value).unwrap_or(-1));
        }
        self.pixels.extend_from_slice(pixels);
        Ok(())
    }

    fn finish(
        self,
        path: &Path,
        format: FormatName,
        split: Split,
        class_names: Vec<String>,
        column: &str,
        scope: &Scope,
    ) -> Result<Arc<dyn Dataset>, DataError> {
        let info = DatasetInfo {
            name: file_name(path),
            format: format.to_string(),
            split: split.to_string(),
            num_samples: self.labels.len(),
            class_names,
            label_column: Some(column.to_owned()),
            image_size: Some((SIDE, SIDE)),
            channels: 3,
        };
        let dataset =
            RawDataset::new(info, NameSource::Declared, Layout::Planes, self.pixels, self.labels, &self.files)?;
        Ok(Arc::new(dataset.with_notes(scope.lines())))
    }
}
