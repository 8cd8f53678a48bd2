//! Where labels and classes of maps are found, and where lists of classes meet.

pub mod classes;
pub(crate) mod label_column;
pub(crate) mod map_classes;
pub(crate) mod names_file;
pub(crate) mod target_columns;
pub(crate) mod target_rows;
