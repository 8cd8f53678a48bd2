//! `mlomae train`: a run from its configuration to its summary.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mlomae_dataflow::config::ConfigInputs;
use mlomae_dataflow::stop::StopFlag;
use mlomae_storage::escape::os_text;

use super::Session;
use super::config_args::ConfigArgs;
use super::facts::facts;
use super::run_arg::find_run;
use super::train_end::{judge_at_end, print_summary};
use crate::error::{CliError, check_outcome};
use crate::prometheus::{self, ProbeSlot};
use crate::run::{Run, Start};
use crate::signals::SignalWatcher;
use crate::training::{Observer, TrainingOptions, train};

/// Pretrain with learned masks, from a configuration or where a run ended
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGINT or SIGTERM finishes the outer iteration, writes a checkpoint, seals the logs and exits with
130 or 143; a second one leaves at once. Any interrupted run can be resumed, exactly. If nothing but
the evaluation at the end fails, the run is finished all the same: the exit code is that of the
failure (65 a bad image, 74 a disk), run.json keeps it, and `mlomae eval knn RUN` repeats it.

Examples:
  mlomae train                                       embedded images, about two minutes
  mlomae train configs/cifar10.toml --set data.path=/data/cifar-10 --max-steps 200
  mlomae train --resume runs/my-run
  mlomae train --resume runs/my-run --set train.outer_iterations=1000
  mlomae train --serial --quiet                      one thread, no actors, the same weights to the bit")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on where RUN ended: a run directory, the id of a run below ./runs, or `latest` (the default); or go back to
    /// RUN/checkpoints/step-…
    #[arg(long, value_name = "RUN", num_args = 0..=1, default_missing_value = "latest")]
    resume: Option<PathBuf>,
    /// Begin anew although the run directory exists; what is there is moved aside
    #[arg(long, conflicts_with = "resume")]
    restart: bool,
    /// Run all stages on one thread, without actors; the results are the same
    #[arg(long)]
    serial: bool,
    /// Number of outer iterations (sets train.outer_iterations)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    max_steps: Option<u64>,
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
        let stop = StopFlag::new();
        let terminal = session.terminal.clone();
        let _signals = SignalWatcher::start(stop.clone(), move || terminal.clear())?;
        let Start { mut run, prepared, state, metrics } = self.start()?;
        for (name, text) in facts(&prepared)? {
            tracing::info!(kind = "setup", what = name, "{name}: {text}");
        }
        let first_outer = state.outer;
        let latest = prepared.latest(first_outer);
        if first_outer >= prepared.method.total_outer {
            tracing::info!(
                kind = "nothing_left",
                "nothing left to do: {first_outer} of {} outer iterations are done; more with --set train.outer_iterations=N",
                prepared.method.total_outer
            );
        }
        let probes = ProbeSlot::default();
        let serve = |listener| prometheus::serve(listener, &prepared, first_outer, latest.clone(), probes.clone());
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
        let sink = || run.sink(&prepared, first_outer, latest.clone());
        let (_server, result) = match server {
            Ok(server) => (server, sink().and_then(|sink| train(&prepared, state, sink, options))),
            Err(error) => (None, Err(error)),
        };
        let (report, result) = match result {
            Ok(report) => {
                let result = check_outcome(&report.outcome);
                (Some(report), result)
            }
            Err(error) => (None, Err(error)),
        };
        let Some(report) = report else {
            run.end(&result, false, latest.get().step);
            return result;
        };
        // The run ends with its evaluation: what is killed before it is not finished.
        let is_trained = result.is_ok();
        let (judgement, result) = match result {
            Ok(()) if prepared.config.eval.at_end => match judge_at_end(&run, &prepared, &stop, &session.terminal) {
                Ok(judgement) => (judgement, Ok(())),
                Err(error) => (None, Err(error)),
            },
            result => (None, result),
        };
        run.end(&result, is_trained, latest.get().step);
        if !self.quiet {
            print_summary(session.out, &run, &prepared, &report, &latest, first_outer, judgement.as_ref(), begin)?;
        }
        result
    }

    /// Begins a run or takes one up.
    fn start(&self) -> Result<Start, CliError> {
        let overlay = self.settings()?;
        let Some(resume) = &self.resume else {
            let mut inputs = self.config.inputs()?;
            inputs.sets.extend(overlay);
            let name = self.config.config.as_deref().and_then(Path::file_stem);
            let name = name.map_or_else(|| "quickstart".into(), |name| name.to_string_lossy());
            return Run::begin(&inputs, &name, self.restart);
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
        Run::resume(&path, base, changes)
    }

    /// The arguments that are settings by another name.
    fn settings(&self) -> Result<Vec<String>, CliError> {
        let mut sets = Vec::new();
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        if let Some(num) = self.max_steps {
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
