//! Repairs the logs of a run directory and exports them: `repair_run RUN_DIR [OUT_DIR]`.

use std::path::Path;
use std::process::ExitCode;

use mlomae_storage::logs::{ExportFormat, LogError, export_all, repair};

fn run(dir: &Path, out: Option<&Path>) -> Result<(), LogError> {
    let report = repair(dir)?;
    for stream in &report.streams {
        println!("{} {}: {} rows, {} bytes lost", stream.table, stream.number, stream.num_rows, stream.lost_bytes);
    }
    for part in &report.damaged {
        println!("{part}");
    }
    if let Some(out) = out {
        for format in [ExportFormat::Parquet, ExportFormat::Csv, ExportFormat::ArrowIpc] {
            for exported in export_all(dir, format, out)? {
                println!("{}: {} rows", exported.path.display(), exported.num_rows);
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(dir) = args.first() else {
        eprintln!("usage: repair_run RUN_DIR [OUT_DIR]");
        return ExitCode::from(2);
    };
    match run(Path::new(dir), args.get(1).map(Path::new)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
