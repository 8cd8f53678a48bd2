//! Downstream tasks: the heads c and their losses.

pub mod class;

pub use class::Head;
