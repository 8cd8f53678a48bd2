//! Where labels are found, and where lists of classes meet.

pub mod classes;
pub(crate) mod label_column;
