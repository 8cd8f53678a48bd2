//! The actors, supervision and command line of mlomae.
//!
//! Tensors travel over the bounded ports of `mlomae-dataflow`; actix carries control alone. Each
//! worker of a stage is a sync actor on a thread of its own; supervisor and telemetry share an
//! arbiter that computes nothing.

#![forbid(unsafe_code)]

pub mod cli;
pub mod compare;
pub mod measure;
pub mod pictures;
pub mod process;
pub mod roles;
pub mod train;
pub mod watch;
