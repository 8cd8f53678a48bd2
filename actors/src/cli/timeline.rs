//! `mlomae timeline`: utilization and overlap of the stages over a run.

use std::io::IsTerminal;
use std::path::PathBuf;

use console::Term;

use super::run_path::find_run;
use super::session::Session;
use mlomae_storage::exit_code::ExitCode;

use crate::process::error::CliError;
use crate::watch::timeline::Timeline;
use crate::watch::top::history::History;

/// Width where there is no terminal.
const WIDTH: usize = 80;
/// Width of the stages' names.
const NAME_WIDTH: usize = 11;

/// Show when each stage worked and waited over a run, and how much the levels overlapped
#[derive(Debug, clap::Args)]
#[command(after_help = "\
RUN is a run directory, the id of a run below ./runs, or `latest`. The stages' counters are sampled every
logs.actors_every_seconds; between two samples they are taken to grow evenly. The overlap is a lower bound:
the share of the wall time in which level 1 and levels 2/3 must have computed at the same time.

Examples:
  mlomae timeline latest
  mlomae timeline runs/lag-1 --json | jq .overlap")]
pub(crate) struct Args {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let history = History::open(&find_run(&self.run)?)?;
        let width = if std::io::stdout().is_terminal() { usize::from(Term::stdout().size().1) } else { WIDTH };
        let timeline = Timeline::of(&history, width.saturating_sub(NAME_WIDTH)).ok_or_else(|| {
            let run = self.run.display();
            CliError::new(ExitCode::NoInput, format!("no samples of the stages in the logs yet: {run}"))
        })?;
        if self.json {
            writeln!(session.out, "{}", serde_json::json!(timeline))?;
        } else {
            writeln!(session.out, "{}", timeline.render())?;
        }
        Ok(())
    }
}
