//! The default dataset, which is part of the program: 5,000 + 1,000 images of Fashion-MNIST.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::hf_parquet;
use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::layout::listing::Scope;
use crate::dataset::sample::Dataset;
use crate::dataset::spec::{DatasetSpec, FormatName, Split};

static TRAIN: &[u8] = include_bytes!("../../../../configs/data/fashion-mnist-6k/train.parquet");
static TEST: &[u8] = include_bytes!("../../../../configs/data/fashion-mnist-6k/test.parquet");

/// The format of the dataset inside the program.
pub(crate) struct Embedded;

impl Format for Embedded {
    fn name(&self) -> FormatName {
        FormatName::EMBEDDED
    }

    fn about(&self) -> &'static str {
        "The subset of Fashion-MNIST inside the program."
    }

    fn looked_for(&self) -> Option<String> {
        None
    }

    fn recognises(&self, _folder: &Path, _scope: &Scope) -> Result<Likeness, DataError> {
        Ok(Likeness::None)
    }

    fn image_side(&self, _spec: &DatasetSpec) -> Option<usize> {
        Some(28)
    }

    fn open(&self, _place: &Path, spec: &DatasetSpec, _scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        let (bytes, path) = match spec.split {
            Split::Train => (TRAIN, "embedded fashion-mnist-6k/train.parquet"),
            Split::Test => (TEST, "embedded fashion-mnist-6k/test.parquet"),
            Split::Validation => return Err(DataError::only_train_and_test(self.name().as_str(), spec.split.as_str())),
        };
        hf_parquet::open_bytes(Bytes::from_static(bytes), Path::new(path), "fashion-mnist-6k", self.name(), spec)
    }
}
