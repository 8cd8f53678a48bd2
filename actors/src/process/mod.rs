//! The process around everything: exit codes, log output, signals, panics, the terminal.

pub mod error;
pub mod logging;
pub mod panic_hook;
pub mod signals;
pub mod terminal;
