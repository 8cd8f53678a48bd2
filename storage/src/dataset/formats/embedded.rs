//! The default dataset, which is part of the program: 5,000 + 1,000 images of Fashion-MNIST.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::hf_parquet;
use crate::dataset::{DataError, Dataset, DatasetSpec, Split};

static TRAIN: &[u8] = include_bytes!("../../../../configs/data/fashion-mnist-6k/train.parquet");
static TEST: &[u8] = include_bytes!("../../../../configs/data/fashion-mnist-6k/test.parquet");

pub(crate) fn open(spec: &DatasetSpec) -> Result<Arc<dyn Dataset>, DataError> {
    let (bytes, path) = match spec.split {
        Split::Train => (TRAIN, "embedded fashion-mnist-6k/train.parquet"),
        // There is no validation split; whoever opens a dataset has said so before.
        Split::Test | Split::Validation => (TEST, "embedded fashion-mnist-6k/test.parquet"),
    };
    hf_parquet::open_bytes(Bytes::from_static(bytes), Path::new(path), "fashion-mnist-6k", spec)
}
