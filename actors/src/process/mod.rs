//! The process around everything: errors, log output, signals, panics, the terminal, threads in the background.

pub mod background;
pub mod error;
pub mod logging;
pub mod panic_hook;
pub mod signals;
pub mod terminal;
