//! What flows between the stages of mlomae, and the stages' bodies.
//!
//! The crate knows no actor: the same stages run under threads (one worker a thread, over the
//! ports of [`ports`]) and in the serial executor, with the same results to the bit.

pub mod augment;
pub mod bad_images;
pub mod batch;
pub mod checkpoint_request;
pub mod config;
pub mod counters;
pub mod data;
#[cfg(test)]
mod deadlock_tests;
pub mod evaluation;
pub mod exit;
pub mod fault;
pub mod held_out;
pub mod memory;
pub mod method;
pub mod pipeline;
#[cfg(test)]
mod pipeline_tests;
pub mod plan;
pub mod ports;
#[cfg(test)]
mod ports_tests;
pub mod records;
pub mod rng;
pub mod run_sink;
pub mod serial;
pub mod simulation;
pub mod slot;
pub mod stage;
pub mod stage_name;
#[cfg(test)]
mod stage_tests;
pub mod stages;
pub mod state;
pub mod stop;
pub mod topology;
#[cfg(test)]
mod training_tests;
pub mod workload;
