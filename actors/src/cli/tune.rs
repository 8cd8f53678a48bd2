//! `mlomae tune`: the fastest workers, micro-batches and queues for a configuration on this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mlomae_dataflow::config::Config;
use mlomae_dataflow::counts::Step;
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_storage::out_file::{is_stdout, write_out};

use super::config_args::{ConfigArgs, EngineArg};
use super::session::Session;
use crate::measure::measurement::Measurement;
use crate::measure::tune::{Tuning, overlay, tune};
use crate::process::error::CliError;
use crate::train::experiment::Experiment;
use crate::train::memory::Needs;

/// Find the fastest workers, micro-batches and queues for a configuration on this machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Short stretches of real runs are measured, of which nothing is kept; the winner is written as an overlay. What is varied
never changes a result: with and without the overlay, training ends in the same bits.

Examples:
  mlomae tune configs/quickstart.toml
  mlomae tune configs/cifar10.toml --set data.path=/data/cifar-10 --budget 600 --out fast.toml
  mlomae train configs/quickstart.toml --config-overlay tuned.toml")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    engine: EngineArg,
    /// Seconds to spend, about
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    budget: u32,
    /// Where the overlay is written, `-` for stdout, which then has nothing else
    #[arg(long, value_name = "FILE", default_value = "tuned.toml")]
    out: PathBuf,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let mut inputs = self.config.inputs()?;
        inputs.sets.extend(self.engine.setting());
        let mut config = Config::resolve(&inputs)?;
        // Checkpoints are no part of the throughput, and the measured stretch decides where a run ends.
        config.train.outer_iterations = Step(1_000_000_000).outer(config.method.unroll).0;
        config.checkpoint.every_steps = 1_000_000_000;
        config.eval.at_end = false;
        let name = self.config.config.as_deref().unwrap_or(Path::new("quickstart")).display().to_string();
        let lag = config.pipeline.lag;
        let experiment = Experiment::new(config, None)?;
        experiment.tell_engine();
        Needs::of_training(&experiment)?.check(experiment.config.run.memory_check)?;
        let budget = Duration::from_secs(u64::from(self.budget));
        let bar = bar(budget).map(|bar| session.terminal.bars().add(bar));
        let tuning = tune(experiment, budget, &session.events, |progress| {
            if let Some(bar) = &bar {
                bar.set_position(progress.spent.as_secs().min(u64::from(self.budget)));
                bar.set_message(progress.what.clone());
            }
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let tuning = tuning?;
        let is_stdout = is_stdout(&self.out);
        if !is_stdout {
            writeln!(session.out, "{}", table(&tuning))?;
        }
        let header = [
            format!("Workers, micro-batches and queues for {name} with pipeline.lag = {lag}, found by mlomae tune."),
            format!(
                "{} cores: {}. Results do not depend on them.",
                std::thread::available_parallelism().map_or(1, usize::from),
                verdict(&tuning)
            ),
        ];
        write_out(&self.out, overlay(&tuning.actors, &header).as_bytes())?;
        if !is_stdout {
            writeln!(session.out, "written to {0}: mlomae train {name} --config-overlay {0}", self.out.display())?;
        }
        Ok(())
    }
}

fn verdict(tuning: &Tuning) -> String {
    if tuning.is_better {
        let (best, configured) = &tuning.end;
        let [best, configured] = [best, configured].map(Measurement::outer_per_second);
        format!("{best:.3} outer iterations a second beside {configured:.3} as configured")
    } else {
        "nothing beats the configured values, which these are".to_owned()
    }
}

fn bar(budget: Duration) -> Option<ProgressBar> {
    let style = ProgressStyle::with_template("tune {wide_bar:.cyan/dim} {pos}/{len} s  {msg}").ok()?;
    Some(ProgressBar::new(budget.as_secs()).with_style(style.progress_chars("━╸─")))
}

/// Throughput of each choice with the utilization and the waits of each stage, and the bottleneck.
fn table(tuning: &Tuning) -> String {
    let width = tuning.trials.iter().map(|trial| trial.what.len()).max().unwrap_or(0).max(24);
    let mut text = format!("{:<width$} {:>9} {:>7}  {:<10}", "choice", "outer/s", "gain", "bottleneck");
    for stage in StageName::ALL {
        text += &format!(" {:>15}", stage.as_str());
    }
    text += &format!("\n{:<width$} {:>9} {:>7}  {:<10}", "", "", "", "");
    for _ in StageName::ALL {
        text += &format!(" {:>15}", "busy in out %");
    }
    let mut line = |what: &str, measurement: &Measurement, gain: Option<f64>, note: &str| {
        let gain = gain.map_or_else(String::new, |gain| format!("{:+.1} %", 100.0 * (gain - 1.0)));
        let bottleneck = measurement.bottleneck().map_or("", |stage| stage.stage.as_str());
        text += &format!("\n{what:<width$} {:>9.3} {gain:>7}  {bottleneck:<10}", measurement.outer_per_second());
        for stage in &measurement.stages {
            let shares = [stage.utilization, stage.wait_in, stage.wait_out].map(|share| 100.0 * share);
            text += &format!("    {:>4.0}{:>4.0}{:>4.0}", shares[0], shares[1], shares[2]);
        }
        text += note;
    };
    line("as configured", &tuning.start, None, "");
    for trial in &tuning.trials {
        line(&trial.what, &trial.measurement, Some(trial.gain), if trial.taken { "  taken" } else { "" });
    }
    line("the best, at the end", &tuning.end.0, Some(tuning.gain), "");
    line("as configured, at the end", &tuning.end.1, None, "");
    if let Some(stage) = tuning.end.0.bottleneck() {
        let shares = [stage.utilization, stage.wait_in, stage.wait_out].map(|share| 100.0 * share);
        text += &format!(
            "\n\nbottleneck: {}, at work {:.0} % of the time, \
             waiting {:.0} % for input and {:.0} % for room in its output",
            stage.stage, shares[0], shares[1], shares[2]
        );
    }
    text += &format!("\nresult: {}", verdict(tuning));
    if !tuning.left_out.is_empty() {
        text += &format!("\nnot tried for lack of time: {}", tuning.left_out.join("; "));
    }
    text
}
