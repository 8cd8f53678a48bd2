//! A Parquet file around its columns: checks of what it announces, made before its decoder believes it, and the
//! metadata that Hugging Face puts into it.

pub(crate) mod chunks;
pub(crate) mod features;
pub(crate) mod footer;
pub(crate) mod image_column;
pub(crate) mod pages;
pub(crate) mod watched;
