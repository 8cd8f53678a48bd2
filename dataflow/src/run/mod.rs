//! A run as a whole: its data, its state between outer iterations, the wired pipeline, the serial executor, and where
//! records go.

#[cfg(test)]
mod algorithm_tests;
pub mod data;
#[cfg(test)]
mod deadlock_tests;
pub mod edges;
pub mod evaluation;
pub mod held_out;
#[cfg(test)]
mod mirror;
pub mod pipeline;
#[cfg(test)]
mod pipeline_tests;
mod search_state;
pub mod serial;
pub mod setup_error;
pub mod sink;
pub mod state;
#[cfg(test)]
mod training_tests;
