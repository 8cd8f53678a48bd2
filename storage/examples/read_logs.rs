//! Reads the logs of a run as typed rows: `cargo run --release -p mlomae-storage --example read_logs -- RUN_DIR`
//!
//! Works on finished, killed and running runs. Prints the loss of each level and the results of the evaluations.

use std::path::PathBuf;
use std::process::ExitCode;

use mlomae_storage::logs::{EvalRow, Level, LogError, MetricRow, TableReader};

fn print(run: &std::path::Path) -> Result<(), LogError> {
    let metrics = TableReader::<MetricRow>::new(run).poll()?;
    for level in [Level::Pretrain, Level::Finetune, Level::Mask] {
        let losses = || metrics.iter().filter(move |m| m.place.level == Some(level) && m.row.name == "loss");
        if let Some((first, last)) = losses().next().zip(losses().next_back()) {
            let (from, to) = (first.row.value, last.row.value);
            println!("loss {level:<9} {from:.4} -> {to:.4} after {} steps", last.place.step);
        }
    }
    for eval in TableReader::<EvalRow>::new(run).poll()? {
        let EvalRow { task, metric, split, value, n, .. } = eval.row;
        println!("{task} {metric} {value:.4} on {n} samples of {split}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(run) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: read_logs RUN_DIR");
        return ExitCode::from(2);
    };
    print(&run).map_or_else(
        |error| {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        },
        |()| ExitCode::SUCCESS,
    )
}
