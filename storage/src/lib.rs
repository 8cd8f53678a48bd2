//! Dataset readers, Arrow logs, checkpoints and the run directory of mlomae.

#![forbid(unsafe_code)]

pub mod atomic;
pub mod checkpoint;
pub mod clock;
pub mod columns_file;
pub mod dataset;
pub mod escape;
pub mod exit_code;
pub mod guard;
pub mod input;
pub mod logs;
pub mod machine_memory;
pub mod out_file;
pub mod run_dir;
pub mod unfinished;
