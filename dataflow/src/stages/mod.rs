//! The stages' bodies.

pub mod encoder;
pub mod evaluator;
pub mod load;
#[cfg(test)]
pub(crate) mod load_tests;
pub mod log;
#[cfg(test)]
mod log_tests;
pub mod policy;
pub mod score;
pub(crate) mod search;
