//! Builds the libraries of the emulated GPU in a folder, for a program that runs with `LD_LIBRARY_PATH` set to it:
//!
//! `cargo run --release -p mlomae-device --example emulated_gpu -- FOLDER`

use std::process::ExitCode;

#[cfg(feature = "testing")]
fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: emulated_gpu FOLDER");
        return ExitCode::from(2);
    };
    match mlomae_device::testing::build(folder.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(feature = "testing"))]
fn main() -> ExitCode {
    eprintln!("error: it needs `--features testing`");
    ExitCode::FAILURE
}
