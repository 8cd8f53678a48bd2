//! What of a folder is looked at, and which of its files and folders are which split.

pub(crate) mod folders;
pub(crate) mod listing;
pub(crate) mod notes;
pub(crate) mod shards;
pub(crate) mod splits;
