//! `mlomae top`: the stages of a run as they work.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use console::Term;

use super::run_path::find_run;
use super::session::Session;
use crate::process::error::CliError;
use crate::process::signals::SignalWatcher;
use crate::watch::top::Frame;
use crate::watch::top::history::History;
use crate::watch::top::render::render;

/// How often the display is renewed.
const REFRESH: Duration = Duration::from_secs(1);

/// Show the stages of a run, running or finished, from its logs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
RUN is a run directory, the id of a run below ./runs, or `latest`. Only files are read: it may lie on
another machine's disk, and its process may have died. On a terminal the display is renewed each second
until the run ends or Ctrl-C; elsewhere one frame is printed.

Examples:
  mlomae top latest
  mlomae top runs/my-run --once
  mlomae top latest --json | jq '.stages[] | {stage, utilization}'")]
pub(crate) struct Args {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Print one frame as plain text
    #[arg(long)]
    once: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let mut history = History::open(&find_run(&self.run)?)?;
        let frame = Frame::of(&history);
        if self.json {
            writeln!(session.out, "{}", serde_json::json!(frame))?;
            return Ok(());
        }
        if self.once || !std::io::stdout().is_terminal() || !history.is_running {
            writeln!(session.out, "{}", render(&frame))?;
            return Ok(());
        }
        session.out.flush()?;
        watch(&mut history, &session.signals)
    }
}

/// Redraws in place. The last frame stays, with the cursor below it.
fn watch(history: &mut History, signals: &SignalWatcher) -> Result<(), CliError> {
    signals.leave_at_once(|_| {
        // Nothing can be done for a terminal that takes no more output.
        let _ = Term::stdout().show_cursor();
    });
    let term = Term::buffered_stdout();
    term.hide_cursor()?;
    let watched = redraw(history, &term);
    let shown = term.show_cursor().and_then(|()| term.flush());
    watched?;
    Ok(shown?)
}

fn redraw(history: &mut History, term: &Term) -> Result<(), CliError> {
    let mut num_lines = 0;
    loop {
        let (height, width) = term.size();
        let text = render(&Frame::of(history));
        // Lines that wrapped or scrolled could not be drawn over.
        let (height, width) = (usize::from(height).max(2) - 1, usize::from(width).max(1));
        term.clear_last_lines(num_lines)?;
        num_lines = 0;
        for line in text.lines().take(height) {
            term.write_line(&console::truncate_str(line, width, "…"))?;
            num_lines += 1;
        }
        term.flush()?;
        if !history.is_running {
            return Ok(());
        }
        std::thread::sleep(REFRESH);
        history.poll()?;
    }
}
