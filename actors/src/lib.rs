//! The actors, supervision and command line of mlomae.
//!
//! Tensors travel over the bounded ports of `mlomae-dataflow`; actix carries control alone. Each
//! worker of a stage is a sync actor on a thread of its own; supervisor and telemetry share an
//! arbiter that computes nothing.

pub mod benchmark;
pub mod cli;
pub mod continuity;
pub mod data_place;
pub mod error;
pub mod eval;
pub mod logging;
pub mod measurement;
pub mod memory;
pub mod outcome;
pub mod panel;
pub mod panic_hook;
pub mod pictures;
pub mod progress;
pub mod prometheus;
pub mod resumption;
pub mod run;
pub mod run_log;
pub mod setup;
pub mod signals;
pub mod supervisor;
pub mod telemetry;
pub mod terminal;
pub mod timeline;
pub mod timing;
pub mod top;
pub mod trained;
pub mod training;
pub mod tuning;
pub mod worker;
