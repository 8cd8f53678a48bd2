//! `mlomae compare-cell`: judges a cell of a comparison, in a process of its own; for `mlomae compare` alone.

use std::path::PathBuf;

use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_dataflow::counts::Step;
use mlomae_model::{Level, Vector};
use mlomae_storage::clock::Clock;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::run_dir::RunDir;

use super::config_args::overlay_inputs;
use super::session::Session;
use crate::compare::cell::JudgedOn;
use crate::compare::evaluations::{MetricValue, by_name, last_logged};
use crate::process::error::CliError;
use crate::train::continuity::Purpose;
use crate::train::eval::Judge;
use crate::train::experiment::Experiment;
use crate::train::loaded_checkpoint::{Base, LoadedCheckpoint};
use crate::train::run::{ReadyRun, Run};

/// Judge a cell of a comparison
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cell's run directory
    run: PathBuf,
    /// Its configuration
    #[arg(long)]
    config: PathBuf,
    /// Evaluations
    #[arg(long, value_delimiter = ',')]
    evals: Vec<String>,
    /// Numbers of the logs
    #[arg(long, value_delimiter = ',')]
    logged: Vec<String>,
    /// Images that judge
    #[arg(long, value_enum)]
    on: JudgedOn,
    /// The initial encoder, whose run is made here
    #[arg(long)]
    untrained: bool,
    /// What lies at the run's place is of another configuration
    #[arg(long)]
    restart: bool,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let inputs = overlay_inputs(ConfigInputs::default(), std::slice::from_ref(&self.config), &[])?;
        let (mut run, experiment, theta, checkpoint, step) =
            if self.untrained { self.initial(&inputs)? } else { self.trained(&inputs)? };
        let result = self.judge(&run, &experiment, &theta, &checkpoint, step);
        let (metrics, result) = match result {
            Ok(metrics) => (metrics, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        if self.untrained {
            run.end(result, true, step)?;
        } else {
            result?;
        }
        let line = serde_json::to_string(&metrics)
            .map_err(|error| CliError::new(ExitCode::Internal, format!("results: {error}")))?;
        writeln!(session.out, "{line}")?;
        Ok(())
    }

    fn judge(
        &self,
        run: &Run,
        experiment: &Experiment,
        theta: &Vector,
        checkpoint: &str,
        step: Step,
    ) -> Result<Vec<MetricValue>, CliError> {
        let judge = match self.on {
            JudgedOn::Test => Judge::new(experiment)?,
            JudgedOn::Validation => Judge::on_validation_role(experiment)?,
        };
        let skipped_before = experiment.data.bad_images.skipped();
        let (mut all, mut rows) = (Vec::new(), Vec::new());
        for name in &self.evals {
            let eval = by_name(name).ok_or_else(|| CliError::usage(format!("no evaluation: {name}")))?;
            let (metrics, judgement) = eval.run(&judge, theta, &mut |_, _, _| {})?;
            rows.push((eval.protocol, "accuracy", judgement));
            all.extend(metrics);
        }
        // The table of evaluations is of the split that judges.
        if self.on == JudgedOn::Test {
            let mut skipped = experiment.data.bad_images.skipped();
            skipped.retain(|image| !skipped_before.contains(image));
            run.write_evals(experiment, checkpoint, step, &rows, &skipped)?;
        }
        all.extend(last_logged(run.path(), &self.logged)?);
        Ok(all)
    }

    /// A trained cell, judged as the configuration says now.
    fn trained(&self, inputs: &ConfigInputs) -> Result<(Run, Experiment, Vector, String, Step), CliError> {
        let eval = Config::resolve(inputs)?.eval;
        let eval = toml::to_string(&eval)
            .map_err(|error| CliError::new(ExitCode::Internal, format!("evaluations have no TOML form: {error}")))?;
        let overlay = ConfigInputs::default().layer(&self.config.display().to_string(), &format!("[eval]\n{eval}"));
        let loaded = LoadedCheckpoint::load(&self.run, Base::Own, overlay, Purpose::Judge)?;
        let dir = RunDir::open_locked(&self.run)?;
        let run = Run { record: dir.record()?, dir, clock: Clock::resume(loaded.wall_s) };
        let checkpoint = loaded.name();
        Ok((run, loaded.experiment, loaded.state.theta, checkpoint, loaded.step))
    }

    /// The initial encoder in a run of its own.
    fn initial(&self, inputs: &ConfigInputs) -> Result<(Run, Experiment, Vector, String, Step), CliError> {
        let is_there = !self.restart && RunDir::open(&self.run).is_ok();
        let (run, experiment) = if is_there {
            let dir = RunDir::open_locked(&self.run)?;
            let record = dir.record()?;
            (Run { record, dir, clock: Clock::start() }, Experiment::new(Config::resolve(inputs)?, None)?)
        } else {
            let mut inputs = inputs.clone();
            let text = |path: &std::ffi::OsStr| toml::Value::String(path.to_string_lossy().into_owned());
            let root = self.run.parent().unwrap_or(std::path::Path::new(".")).as_os_str();
            inputs = inputs.set(&format!("run.root={}", text(root)));
            inputs = inputs.set(&format!("run.id={}", text(self.run.file_name().unwrap_or_default())));
            let ReadyRun { run, experiment, .. } = Run::begin(&inputs, "untrained", true, &|| {})?;
            (run, experiment)
        };
        let theta = experiment.method.model.init(Level::Pretrain, experiment.config.seed).into();
        Ok((run, experiment, theta, String::new(), Step(0)))
    }
}
