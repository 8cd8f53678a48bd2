//! `mlomae logs`: the Arrow logs of a run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::logs::{self, DamagedPart, ExportFormat, Follow, TABLES, Table};
use mlomae_storage::out_file::is_stdout;
use mlomae_storage::run_dir::RunLock;

use super::run_path::find_run;
use super::session::Session;
use crate::process::error::CliError;

/// How often a followed table is looked at.
const POLL: Duration = Duration::from_millis(500);

/// Export, repair or follow the Arrow logs of a run
#[derive(Debug, clap::Args)]
#[command(after_help = after_help())]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

fn after_help() -> String {
    let tables: Vec<_> = TABLES.iter().map(|table| format!("  {:<9} {}", table.name, table.about)).collect();
    format!(
        "\
RUN is a run directory, the id of a run below ./runs, or `latest`. No command here disturbs a run
that is still training. Parts that are damaged are named and passed over; an export that lacks rows
for it ends with 65.

Tables:
{}

Examples:
  mlomae logs tail latest --follow                   the events of the newest run as they come
  mlomae logs tail runs/my-run --table metrics -n 50
  mlomae logs export latest --table metrics --format csv --out metrics.csv
  mlomae logs export latest --table evals --format csv --out - | column -ts,
  mlomae logs repair runs/killed                     seal what a killed run left open",
        tables.join("\n")
    )
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write tables, sealed and open rows alike, as Parquet, CSV or Arrow IPC files
    Export(ExportArgs),
    /// Seal the streams that a killed process left open, up to their damage, and set damaged parts aside
    Repair {
        /// Run directory
        #[arg(value_name = "RUN")]
        run: PathBuf,
    },
    /// Print the last rows of a table, and with --follow those that come
    Tail(TailArgs),
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Only this table; without it all
    #[arg(long, value_parser = parse_table)]
    table: Option<Table>,
    /// parquet, csv or arrow
    #[arg(long, default_value = "parquet", value_parser = parse_format)]
    format: ExportFormat,
    /// The file, `-` for stdout, or without --table the folder; default: named after the table or run, in this folder
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct TailArgs {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The table
    #[arg(long, default_value = "events", value_parser = parse_table)]
    table: Table,
    /// How many rows
    #[arg(short = 'n', long = "lines", default_value_t = 20)]
    num_lines: usize,
    /// Go on with the rows that come, until the run ends
    #[arg(short, long)]
    follow: bool,
}

fn parse_table(text: &str) -> Result<Table, String> {
    text.parse().map_err(|error: logs::UnknownTable| error.to_string())
}

fn parse_format(text: &str) -> Result<ExportFormat, String> {
    text.parse().map_err(|error: logs::LogError| error.to_string())
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        match self.command {
            Command::Export(args) => export(&args, session),
            Command::Repair { run } => repair(&find_run(&run)?, session),
            Command::Tail(args) => tail(&args, session),
        }
    }
}

fn export(args: &ExportArgs, session: &mut Session<'_>) -> Result<(), CliError> {
    let run = find_run(&args.run)?;
    let exported = match args.table {
        Some(table) => {
            let default = || PathBuf::from(format!("{table}.{}", args.format.extension()));
            let out = args.out.clone().unwrap_or_else(default);
            vec![logs::export(&run, table, args.format, &out)?]
        }
        None => {
            let default = || {
                let mut name = run.file_name().unwrap_or("run".as_ref()).to_owned();
                name.push("-logs");
                PathBuf::from(name)
            };
            let out = args.out.clone().unwrap_or_else(default);
            if is_stdout(&out) {
                return Err(CliError::usage("stdout takes one table, choose it with --table"));
            }
            logs::export_all(&run, args.format, &out)?
        }
    };
    for export in exported.iter().filter(|export| !is_stdout(&export.path)) {
        writeln!(session.out, "{}  {} rows", export.path.display(), export.num_rows)?;
    }
    let lines: Vec<_> = exported.iter().flat_map(|export| &export.damaged).map(DamagedPart::to_string).collect();
    if lines.is_empty() { Ok(()) } else { Err(CliError::Failed { lines, exit_code: ExitCode::BadData }) }
}

fn repair(run: &Path, session: &mut Session<'_>) -> Result<(), CliError> {
    let report = logs::repair(run)?;
    if report.is_empty() {
        writeln!(session.out, "nothing to repair")?;
        return Ok(());
    }
    for part in &report.damaged {
        writeln!(session.out, "{part}")?;
    }
    for stream in &report.streams {
        let what = if stream.was_sealed { "was sealed already, removed" } else { "sealed" };
        write!(session.out, "{} {:06}  {} rows, {what}", stream.table, stream.number, stream.num_rows)?;
        if let Some(damage) = &stream.damage {
            write!(session.out, "; {} bytes lost: {damage}", stream.lost_bytes)?;
        }
        writeln!(session.out)?;
    }
    writeln!(session.out, "{} rows recovered, {} bytes lost", report.num_rows(), report.lost_bytes())?;
    Ok(())
}

fn tail(args: &TailArgs, session: &mut Session<'_>) -> Result<(), CliError> {
    let run = find_run(&args.run)?;
    let (mut follow, lines) = Follow::last(&run, args.table, args.num_lines)?;
    print(&lines, session)?;
    warn_of(follow.take_damaged());
    if !args.follow {
        return Ok(());
    }
    loop {
        // Looked at before the rows: what is written before the end is seen after it.
        let is_running = RunLock::is_held(&run);
        print(&follow.poll()?, session)?;
        warn_of(follow.take_damaged());
        if !is_running {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// Names parts whose rows a reader passes over.
fn warn_of(damaged: Vec<DamagedPart>) {
    for part in damaged {
        tracing::warn!(kind = "log_damage", "{part}");
    }
}

fn print(lines: &[String], session: &mut Session<'_>) -> Result<(), CliError> {
    for line in lines {
        writeln!(session.out, "{line}")?;
    }
    session.out.flush()?;
    Ok(())
}
