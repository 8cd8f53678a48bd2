//! Which format the files at a path have.

use std::path::{Path, PathBuf};

use super::{DataError, Format, cifar, hf_parquet, idx, image_folder};

/// What is looked for, in this order, for the message when nothing is found.
const LOOKED_FOR: &str = "*.parquet, data_batch_1.bin or train.bin of cifar, data_batch_1 or train and meta of cifar, \
    *-images-idx3-ubyte, class folders of png or jpeg files";

/// The format of a file or folder.
pub(crate) fn detect(path: &Path) -> Result<Format, DataError> {
    let found = if path.is_file() {
        let is_parquet = path.extension().is_some_and(|ext| ext == "parquet");
        is_parquet.then_some(Format::HfParquet)
    } else if !hf_parquet::parquet_files(path)?.is_empty() {
        Some(Format::HfParquet)
    } else if cifar::find_bin(path).is_some() {
        Some(Format::CifarBin)
    } else if cifar::find_pickle(path).is_some() {
        Some(Format::CifarPickle)
    } else if !idx::image_files(path)?.is_empty() {
        Some(Format::Idx)
    } else if image_folder::has_class_folders(path) {
        Some(Format::ImageFolder)
    } else {
        None
    };
    let looked_for = if path.is_file() { "a folder, or a *.parquet file" } else { LOOKED_FOR };
    found.ok_or_else(|| DataError::Unrecognised { path: path.to_owned(), looked_for: looked_for.to_owned() })
}

/// The first of `folder` and its named subfolders which satisfies a test.
pub(crate) fn folder_with(folder: &Path, subfolders: &[&str], test: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    std::iter::once(folder.to_owned()).chain(subfolders.iter().map(|name| folder.join(name))).find(|place| test(place))
}
