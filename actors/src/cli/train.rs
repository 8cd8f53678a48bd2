//! `mlomae train`: a run from its configuration to its summary.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mlomae_dataflow::config::ConfigInputs;
use mlomae_dataflow::counts::Step;
use mlomae_dataflow::flow::stop::{StopFlag, StopReason};
use mlomae_dataflow::method::checkpoint_request::CheckpointRequest;
use mlomae_dataflow::stages::log::RecordSink;
use mlomae_model::hypergradient::doubt;
use mlomae_storage::escape::os_text;

use super::config_args::ConfigArgs;
use super::final_report::{final_judgement, judge_at_end, print_finished, print_report};
use super::overview::overview;
use super::run_path::find_run;
use super::session::Session;
use crate::process::error::{CliError, check_outcome};
use crate::process::signals::SignalWatcher;
use crate::train::resumption::Resumed;
use crate::train::run::{ReadyRun, Run};
use crate::train::training::{Observer, TrainingOptions, progress_of, train};
use crate::watch::prometheus::{self, ProbeSlot};

/// Pretrain with learned masks, from a configuration or where a run ended
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Signals:
  INT, TERM   finish the outer iteration, write a checkpoint, seal the logs and exit with
              130 or 143; the second of them leaves at once
  USR1        writes a checkpoint at the end of the outer iteration and goes on; several that
              come meanwhile are one, and it counts among checkpoint.keep
              (Slurm: --signal=USR1@120)
  USR2, HUP, XCPU
              end like TERM, with 140, 129 and 152, so that a job script can tell and requeue;
              repeated ones are no haste. HUP is ignored if it was at the start, as under nohup
  XFSZ        (ulimit -f) is an I/O error like a full disk
Before the run directory is made, and during the evaluation at the end, signals leave at once:
the checkpoint is safe, and USR1 is remembered until there is something to checkpoint. Any
interrupted run can be resumed, exactly. If nothing but the evaluation at the end fails, the run
is finished all the same: the exit code is that of the failure (65 a bad image, 74 a disk),
run.json keeps it, and `mlomae eval knn RUN` repeats it.

Examples:
  mlomae train                                       embedded images, about two minutes
  mlomae train configs/cifar10.toml --set data.path=/data/cifar-10 --max-outer 200
  mlomae train --resume runs/my-run
  mlomae train --resume runs/my-run --set train.outer_iterations=1000
  mlomae train --resume runs/my-run --set data.path=/data/moved-here
  mlomae train --serial --quiet                      one thread, no actors, the same weights to the bit")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on where RUN ended: a run directory, the id of a run below ./runs, or `latest` (the default); or go back to
    /// RUN/checkpoints/step-…
    #[arg(long, value_name = "RUN", num_args = 0..=1, default_missing_value = "latest")]
    resume: Option<PathBuf>,
    /// Go on although the data are others than those that the run was trained on
    #[arg(long, requires = "resume")]
    accept_changed_data: bool,
    /// Begin anew although the run directory exists; what is there is moved aside
    #[arg(long, conflicts_with = "resume")]
    restart: bool,
    /// Run all stages on one thread, without actors; the results are the same
    #[arg(long)]
    serial: bool,
    /// Number of outer iterations (sets train.outer_iterations)
    // The alias is the old name of the flag, which sounded like level-1 steps.
    #[arg(long, alias = "max-steps", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(super) max_outer: Option<u64>,
    /// The run's directory (sets run.root and run.id)
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    run_dir: Option<PathBuf>,
    /// Print nothing but warnings and errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let begin = Instant::now();
        let (stop, request) = (StopFlag::new(), CheckpointRequest::default());
        session.signals.ask_for_checkpoints(&request);
        // Signals leave at once until the first change to the disk.
        let begun = self.start(&|| session.signals.end_gracefully(&stop))?;
        let ReadyRun { mut run, mut experiment, state, metrics, judged } = match begun {
            Resumed::Ready(start) => *start,
            Resumed::Finished(finished) => {
                tracing::info!(
                    kind = "nothing_left",
                    "finished, nothing is left to do; more with --set train.outer_iterations=N"
                );
                return if self.quiet { Ok(()) } else { print_finished(session.out, &finished) };
            }
        };
        experiment.method.checkpoint_request = request;
        let first_outer = state.outer;
        let lines = match overview(&experiment) {
            Ok(lines) => lines,
            Err(error) => return run.end(Err(error), false, Step(0)),
        };
        tracing::info!(
            kind = "engine",
            engine = experiment.method.engine.device.name(),
            "{}",
            experiment.method.engine
        );
        for (name, text) in lines {
            tracing::info!(kind = "setup", what = name, "{name}: {text}");
        }
        for warmup in experiment.config.unending_warmups() {
            tracing::warn!(kind = "warmup", "{warmup}");
        }
        if let Some(doubt) = doubt(experiment.method.hypergradient, experiment.method.precision) {
            tracing::warn!(kind = "precision", "{doubt}");
        }
        let latest = experiment.latest(first_outer);
        if first_outer >= experiment.method.total_outer {
            tracing::info!(
                kind = "nothing_left",
                "nothing left to do: {first_outer} of {} outer iterations are done; \
                 more with --set train.outer_iterations=N",
                experiment.method.total_outer
            );
        }
        let probes = ProbeSlot::default();
        let serve = |listener| {
            let progress = progress_of(&experiment, first_outer, latest.clone());
            prometheus::serve(listener, progress, latest.clone(), probes.clone())
        };
        let server = metrics.map(serve).transpose();
        let observer: Option<Observer> = match &server {
            Ok(Some(_)) => Some(Box::new(move |workers| probes.connect(workers))),
            _ => None,
        };
        let options = TrainingOptions {
            serial: self.serial,
            display: (!self.quiet).then(|| session.terminal.clone()),
            events: session.events.clone(),
            stop: stop.clone(),
            latest: latest.clone(),
            observer,
            faults: session.faults.clone(),
        };
        let sink = || {
            let open = || run.sink(&experiment, first_outer, latest.clone());
            let sink = if self.resume.is_some() {
                // Repairing the logs of a long run takes long, and may be interrupted at any point.
                at_once(&session.signals, &stop, run.exit_hook(&latest), open)
            } else {
                open()
            };
            session.signals.end_gracefully_with(&stop, run.exit_hook(&latest));
            let mut sink = sink?;
            // A checkpoint of what the run started from is not worth the time.
            match stop.reason() {
                Some(reason) => sink.close().map_err(CliError::from).and(Err(CliError::silent(reason.exit_code()))),
                None => Ok(sink),
            }
        };
        let (_server, result) = match server {
            Ok(server) => (server, sink().and_then(|sink| train(&experiment, state, sink, options))),
            Err(error) => (None, Err(error)),
        };
        let (report, result) = match result {
            Ok(report) => {
                let result = check_outcome(&report.outcome);
                (Some(report), result)
            }
            Err(error) => (None, Err(error)),
        };
        // How the run ended is noted below; a hook would overwrite it.
        session.signals.end_gracefully(&stop);
        let Some(report) = report else {
            return run.end(result, false, latest.get().step);
        };
        session.signals.end_checkpoints();
        // A run is finished after its evaluation: one that is killed before it is resumed.
        let is_trained = result.is_ok();
        let (judgement, result) = match result {
            Ok(()) if judged.is_some() => (judged, Ok(())),
            Ok(()) if experiment.config.eval.at_end => {
                // The checkpoint is written and the logs are sealed: nothing is lost by leaving at once.
                let exit_hook = run.exit_hook(&latest);
                let judge = || {
                    let judge = || final_judgement(&run, &experiment, &session.terminal);
                    let found = at_once(&session.signals, &stop, exit_hook, judge);
                    session.signals.end_gracefully(&stop);
                    found?.map(|found| found.write(&run, &experiment)).transpose()
                };
                let found = judge_at_end(&run, judge);
                session.signals.end_gracefully(&stop);
                match found {
                    Ok(judgement) => (judgement, Ok(())),
                    Err(error) => (None, Err(error)),
                }
            }
            result => (None, result),
        };
        let result = run.end(result, is_trained, latest.get().step);
        let num_evals = if judged.is_none() && judgement.is_some() { 2 } else { 0 };
        let printed = if self.quiet {
            Ok(())
        } else {
            print_report(
                session.out,
                &run,
                &experiment,
                &report,
                &latest,
                first_outer,
                judgement.as_ref(),
                num_evals,
                begin,
            )
        };
        // The error of the run is reported rather than that of printing its report.
        result.and(printed)
    }

    /// Begins a run or takes one up; calls `before_changes` before the first change to the disk.
    fn start(&self, before_changes: &dyn Fn()) -> Result<Resumed, CliError> {
        let overlay = self.settings()?;
        let Some(resume) = &self.resume else {
            let mut inputs = self.config.inputs()?;
            inputs.sets.extend(overlay);
            let name = self.config.config.as_deref().and_then(Path::file_stem);
            let name = name.map_or_else(|| "quickstart".into(), |name| name.to_string_lossy());
            return Ok(Resumed::Ready(Box::new(Run::begin(&inputs, &name, self.restart, before_changes)?)));
        };
        if resume.extension().is_some_and(|extension| extension == "toml") {
            let line = format!(
                "--resume takes a run directory, not a configuration; write the configuration before it: {}",
                resume.display()
            );
            return Err(CliError::usage(line));
        }
        let base = match &self.config.config {
            Some(_) => {
                Some(ConfigArgs { set: Vec::new(), config_overlay: Vec::new(), ..self.config.clone() }.inputs()?)
            }
            None => None,
        };
        let mut changes =
            super::config_args::overlay_inputs(ConfigInputs::default(), &self.config.config_overlay, &self.config.set)?;
        changes.sets.extend(overlay);
        let path = match (&base, resume == Path::new("latest")) {
            (Some(base), true) => Run::latest_of(base, &changes)?,
            _ => find_run(resume)?,
        };
        Run::resume(&path, base, changes, self.accept_changed_data, before_changes)
    }

    /// The arguments that are settings by another name.
    fn settings(&self) -> Result<Vec<String>, CliError> {
        let mut sets = Vec::new();
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        if let Some(num) = self.max_outer {
            sets.push(format!("train.outer_iterations={num}"));
        }
        if let Some(dir) = &self.run_dir {
            let (root, id) = root_and_id(dir)?;
            sets.push(format!("run.root={}", text(&root)));
            sets.push(format!("run.id={}", text(&id)));
        }
        Ok(sets)
    }
}

/// Does `work` while signals leave at once, after `exit_hook`; not if one has raised `stop` already.
fn at_once<T>(
    signals: &SignalWatcher,
    stop: &StopFlag,
    exit_hook: impl FnOnce(StopReason) + Send + 'static,
    work: impl FnOnce() -> Result<T, CliError>,
) -> Result<T, CliError> {
    signals.leave_at_once(exit_hook);
    match stop.reason() {
        Some(reason) => Err(CliError::silent(reason.exit_code())),
        None => work(),
    }
}

/// The folder that a run directory lies in, and its own name.
fn root_and_id(dir: &Path) -> Result<(String, String), CliError> {
    // `.` and `..` have no name of their own; the folder that they stand for has one.
    let dir = match dir.file_name() {
        Some(_) => Some(dir.to_owned()),
        None => dir.canonicalize().ok().filter(|dir| dir.file_name().is_some()),
    }
    .ok_or_else(|| CliError::usage(format!("--run-dir needs a folder with a name: {}", dir.display())))?;
    let root = dir.parent().filter(|root| !root.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let id = Path::new(dir.file_name().unwrap_or_default());
    match (root.to_str(), id.to_str()) {
        (Some(root), Some(id)) => Ok((root.to_owned(), id.to_owned())),
        // The configuration keeps them, and is UTF-8.
        _ => Err(CliError::usage(format!("--run-dir must be UTF-8 text: {}", os_text(dir.as_os_str())))),
    }
}
