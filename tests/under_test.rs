//! The program under test: `mlomae` with fault injection, by the environment variable MLOMAE_FAULT.

use std::process::ExitCode;

use mlomae_dataflow::flow::fault::FaultPlan;

fn main() -> ExitCode {
    let faults = match std::env::var("MLOMAE_FAULT") {
        Ok(text) => match text.parse() {
            Ok(faults) => faults,
            Err(error) => {
                eprintln!("error: MLOMAE_FAULT: {error}");
                return ExitCode::from(2);
            }
        },
        Err(_) => FaultPlan::default(),
    };
    mlomae_actors::cli::run_with_faults(std::env::args_os(), faults)
}
