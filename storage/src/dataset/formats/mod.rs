//! The forms in which datasets are stored, one module a format.

pub mod synthetic;

pub(crate) mod cifar;
pub(crate) mod embedded;
pub(crate) mod hf_parquet;
pub(crate) mod idx;
pub(crate) mod image_folder;
pub(crate) mod raw;
