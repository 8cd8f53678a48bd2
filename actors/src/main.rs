//! The binary `mlomae`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    mlomae_actors::cli::run(std::env::args_os())
}
