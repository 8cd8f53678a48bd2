//! The readers against files of real writers (`tests/fixtures/readers/make.py`), against damage, and against each
//! other.

mod annotated;
mod bombs;
mod conversion;
mod damage;
mod fingerprints;
mod formats;
mod generated;
mod labels;
mod layouts;
mod pixels;
mod shards;
mod targets;
mod voronoi;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::formats::cifar::{CifarBin, CifarPickle};
use super::formats::hf_parquet::HfParquet;
use super::formats::idx::Idx;
use super::formats::image_folder::ImageFolder;
use super::formats::synthetic::Synthetic;
use super::*;

/// Name of a fixture, format, its training samples, the golden image's label.
const FIXTURES: [(&str, FormatName, usize, Option<i32>); 12] = [
    ("cifar10-py2", CifarPickle::NAME, 6, Some(7)),
    ("cifar10-py3", CifarPickle::NAME, 6, Some(7)),
    ("cifar100-protocol0", CifarPickle::NAME, 2, Some(42)),
    ("cifar100-protocol4", CifarPickle::NAME, 2, Some(42)),
    ("cifar10-bin", CifarBin::NAME, 6, Some(7)),
    ("cifar100-bin", CifarBin::NAME, 2, Some(42)),
    ("hf-snappy", HfParquet::NAME, 4, Some(7)),
    ("hf-zstd", HfParquet::NAME, 2, Some(42)),
    ("hf-grey", HfParquet::NAME, 2, Some(1)),
    ("idx-plain", Idx::NAME, 3, Some(4)),
    ("idx-gz", Idx::NAME, 3, Some(4)),
    ("image-folder", ImageFolder::NAME, 4, Some(0)),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/readers").join(name)
}

fn spec(path: &Path, format: FormatName, split: Split) -> DatasetSpec {
    let mut spec = DatasetSpec::new(format, Some(path.to_owned()), split);
    if path.ends_with("hf-zstd") {
        spec.label_column = Some("fine_label".to_owned());
    }
    spec
}

fn open_fixture(name: &str, split: Split) -> Arc<dyn Dataset> {
    open(&spec(&fixture(name), FormatName::AUTO, split)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn golden() -> Vec<u8> {
    std::fs::read(fixture("golden.rgb")).unwrap()
}

/// The error of opening a dataset or of reading any of its samples.
fn first_error(spec: &DatasetSpec) -> Option<DataError> {
    let dataset = match open(spec) {
        Ok(dataset) => dataset,
        Err(error) => return Some(error),
    };
    (0..dataset.len()).find_map(|index| dataset.sample(index).err())
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_folder(&path, &target) } else { std::fs::copy(&path, &target).map(drop).unwrap() }
    }
}

/// All files below a folder, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
