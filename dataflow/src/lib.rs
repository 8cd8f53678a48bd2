//! What flows between the stages of mlomae, and the stages' bodies.
//!
//! The crate knows no actor: the same stages run under threads (one worker a thread, over the
//! ports of [`flow::ports`]) and in the serial executor, with the same results to the bit.

#![forbid(unsafe_code)]

pub mod config;
pub mod counts;
pub mod flow;
pub mod input;
pub mod method;
pub mod record;
pub mod run;
pub mod stages;
