//! Statistics of the stages' results for the logs, and checks that results are finite.

mod finite;
mod internal;
mod mask_history;
mod masks;
mod objects;
mod saturation;

pub(crate) use finite::{check_loss, check_vector};
pub(crate) use internal::internal;
pub use mask_history::{MAX_REMEMBERED, MaskHistory};
pub(crate) use masks::MaskStatistics;
pub(crate) use objects::ObjectStatistics;
