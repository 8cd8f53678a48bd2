//! A training run from its configuration to its end: new, resumed or restarted, and evaluated.

pub mod continuity;
pub mod data_place;
pub mod eval;
pub mod experiment;
pub mod loaded_checkpoint;
pub mod memory;
pub mod resumption;
pub mod run;
pub mod run_log;
pub mod training;
