//! A training run from its configuration to its end: new, resumed or restarted, and evaluated.

pub mod continuity;
pub mod data_place;
pub mod eval;
pub mod memory;
pub mod resumption;
pub mod run;
pub mod run_log;
pub mod setup;
pub mod trained;
pub mod training;
