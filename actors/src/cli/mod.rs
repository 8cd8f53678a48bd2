//! The command line: one file a command.

mod bar;
mod bench;
mod check;
mod compare;
mod compare_cell;
mod config;
mod config_args;
mod data;
mod eval;
mod final_report;
mod gpu;
mod gpu_products;
mod inspect;
mod logs;
mod overview;
mod run_path;
mod session;
mod simulate;
mod target_counts;
mod timeline;
mod top;
mod train;
mod tune;
mod verify;
mod visualize;

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Parser, Subcommand};
use mlomae_dataflow::flow::exit::panic_message;
use mlomae_dataflow::flow::fault::FaultPlan;
use mlomae_kernels::{self as kernels, Isa};
use mlomae_storage::escape::{lines, one_line, shortened};
use mlomae_storage::exit_code::ExitCode;

use self::session::Session;
use crate::process::error::CliError;
use crate::process::logging::{self, LogFormat};
use crate::process::panic_hook;
use crate::process::signals::SignalWatcher;
use crate::process::terminal::Terminal;

/// Characters of an error that are printed: a file may have a hundred thousand columns to choose from.
const MAX_LINE: usize = 1500;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  mlomae train                                   two minutes on embedded images, from any folder
  mlomae train configs/cifar10.toml --set data.path=/data/cifar-10
  mlomae train --resume runs/20261123-2132-ab3f  go on exactly where a run ended
  mlomae check configs/cifar10.toml              everything that is wrong, before a long run
  mlomae eval knn runs/20261123-2132-ab3f        quality of the features on the test split
  mlomae visualize runs/20261123-2132-ab3f       images, scores, masks and reconstructions as PNG
  duckdb -c \"SELECT * FROM 'runs/*/logs/metrics/*.parquet'\"

Exit codes: 0 ok, 1 a verification or `gpu selftest` failed or `gpu info` found no GPU to use, 2 usage, 65 bad data,
66 no input, 70 internal error or NaN, 74 I/O, 78 bad config, an engine that this machine lacks or
too little memory, 129, 130, 140, 143 and 152 stopped by SIGHUP, SIGINT, SIGUSR2, SIGTERM and SIGXCPU. What each signal does to a run: mlomae train --help; other
commands leave at once, without unfinished files, and go on after SIGUSR1.";

/// Pretrains vision transformers with learned masking (MLO-MAE): a masked autoencoder whose masks
/// are learned from a downstream task's validation loss.
#[derive(Debug, Parser)]
#[command(name = "mlomae", version, styles = STYLES, after_help = EXAMPLES, max_term_width = 100)]
#[command(arg_required_else_help = true, infer_long_args = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Form of the log lines on stderr; RUST_LOG filters them, as in RUST_LOG=debug.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
    /// Instruction set to compute with: portable, avx2, avx512 or amx; without it the best one of this machine. Results
    /// have the same bits wherever it is the same. It names instructions alone: `--set compute.precision=bf16` rounds
    /// what products are made of.
    #[arg(long, global = true, env = "MLOMAE_ISA", value_name = "SET", value_parser = parse_isa)]
    isa: Option<Isa>,
    /// End in good order when the process that started this one ends.
    #[arg(long, global = true, hide = true)]
    ends_with_parent: bool,
}

/// Former names that chose a precision too.
const FORMER_ISAS: [&str; 2] = ["amx-bf16x2", "amx-bf16"];

fn parse_isa(name: &str) -> Result<Isa, String> {
    let names = || Isa::ALL.into_iter().filter(|isa| isa.is_here()).map(Isa::name).collect::<Vec<_>>().join(", ");
    if FORMER_ISAS.contains(&name) {
        return Err("names instructions alone now: write --isa amx --set compute.precision=bf16".to_owned());
    }
    match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
        Some(isa) if isa.is_here() => Ok(isa),
        Some(_) => Err(format!("this machine lacks it; it has {}", names())),
        None => Err(format!("must be one of {}", names())),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::Args>),
    Check(check::Args),
    Eval(eval::Args),
    Compare(compare::Args),
    #[command(hide = true)]
    CompareCell(compare_cell::Args),
    Visualize(visualize::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Data(data::Args),
    Logs(logs::Args),
    Top(top::Args),
    Timeline(timeline::Args),
    Simulate(simulate::Args),
    Config(config::Args),
    Bench(bench::Args),
    Tune(tune::Args),
    Gpu(gpu::Args),
}

/// Runs the command of `args`, of which the first is the program's name, and answers with the
/// process's exit code. Messages go to stderr, results to stdout; nothing panics out of here.
pub fn run(args: impl IntoIterator<Item = OsString>) -> process::ExitCode {
    run_with_faults(args, FaultPlan::default())
}

/// As [`run`], with faults put into a training run on purpose: for tests of the whole program.
pub fn run_with_faults(args: impl IntoIterator<Item = OsString>, faults: FaultPlan) -> process::ExitCode {
    panic_hook::install();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that go to stdout; a closed stdout is no trouble.
            let text = error.render().to_string();
            let _ = match lines(&text) {
                // It quotes an argument with control characters.
                Cow::Owned(plain) => write!(io::stderr(), "{plain}"),
                Cow::Borrowed(_) => error.print(),
            };
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Ok }.into();
        }
    };
    let result = catch_unwind(AssertUnwindSafe(|| execute(cli, faults))).unwrap_or_else(|payload| {
        let message = panic_message(payload.as_ref());
        Err(CliError::new(ExitCode::Internal, format!("internal error: {message}")))
    });
    let Err(error) = result else {
        return process::ExitCode::SUCCESS;
    };
    if let CliError::Failed { lines, .. } = &error {
        for line in lines {
            // Ignored: stderr may be closed.
            let _ = writeln!(io::stderr(), "error: {}", one_line(&shortened(line, MAX_LINE)));
        }
    }
    error.exit_code().into()
}

fn execute(cli: Cli, faults: FaultPlan) -> Result<(), CliError> {
    if let Some(isa) = cli.isa {
        // False only where kernels have run before, which is in tests of several commands in one process.
        kernels::choose_isa(isa);
    }
    if cli.ends_with_parent {
        end_with_parent()?;
    }
    let terminal = Terminal::stderr();
    let is_quiet = matches!(&cli.command, Command::Train(args) if args.quiet);
    let events = logging::init(cli.log_format, is_quiet, &terminal).map_err(CliError::usage)?;
    let mut out = BufWriter::new(io::stdout());
    let on_screen = terminal.clone();
    let signals = SignalWatcher::start(move || on_screen.clear())?;
    let mut session = Session { out: &mut out, terminal, events, signals, faults };
    let result = match cli.command {
        Command::Train(args) => args.run(&mut session),
        Command::Check(args) => args.run(&mut session),
        Command::Eval(args) => args.run(&mut session),
        Command::Compare(args) => args.run(&mut session),
        Command::CompareCell(args) => args.run(&mut session),
        Command::Visualize(args) => args.run(&mut session),
        Command::Inspect(args) => args.run(&mut session),
        Command::Verify(args) => args.run(&mut session),
        Command::Data(args) => args.run(&mut session),
        Command::Logs(args) => args.run(&mut session),
        Command::Top(args) => args.run(&mut session),
        Command::Timeline(args) => args.run(&mut session),
        Command::Simulate(args) => args.run(&mut session),
        Command::Config(args) => args.run(&mut session),
        Command::Bench(args) => args.run(&mut session),
        Command::Tune(args) => args.run(&mut session),
        Command::Gpu(args) => args.run(&mut session),
    };
    // What was printed before an error is part of the answer.
    let flushed = out.flush().map_err(CliError::from);
    result.and(flushed)
}

/// Lets the system send SIGTERM to this process when its parent dies: the children of a comparison that is killed end in
/// good order, and can be resumed.
fn end_with_parent() -> Result<(), CliError> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .map_err(|error| CliError::new(ExitCode::Io, format!("cannot follow the parent process: {error}")))?;
    Ok(())
}

#[cfg(test)]
mod tests;
