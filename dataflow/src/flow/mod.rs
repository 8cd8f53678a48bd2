//! The runtime of the pipeline: stages, the bounded ports between them, versioned slots, counters, stops and exits.
//!
//! It knows no method: what a stage computes is its own business.

pub mod counters;
pub mod exit;
pub mod fault;
pub mod ports;
#[cfg(test)]
mod ports_tests;
pub mod slot;
pub mod stage;
pub mod stage_name;
#[cfg(test)]
mod stage_tests;
pub mod stop;
pub mod topology;
