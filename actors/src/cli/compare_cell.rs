//! `mlomae compare-cell`: judges a cell of a comparison, in a process of its own; for `mlomae compare` alone.

use std::path::{Path, PathBuf};

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
use crate::compare::items::write_cell;
use crate::process::error::CliError;
use crate::train::continuity::Purpose;
use crate::train::eval::Judge;
use crate::train::experiment::Experiment;
use crate::train::loaded_checkpoint::{Base, LoadedCheckpoint};
use crate::train::run::{OTHER_DATA, ReadyRun, Run};

/// Judge a cell of a comparison
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cell's run directory
    run: PathBuf,
    /// Its configuration
    #[arg(long)]
    config: PathBuf,
    /// The configuration that judges, if other data judge than train
    #[arg(long)]
    judge: Option<PathBuf>,
    /// Evaluations
    #[arg(long, value_delimiter = ',')]
    evals: Vec<String>,
    /// Where what is said of each image is written
    #[arg(long)]
    items: PathBuf,
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
        let other = self.judge.as_ref().map(|path| other_data(path, experiment)).transpose()?;
        let judging = other.as_ref().unwrap_or(experiment);
        let judge = match self.on {
            JudgedOn::Test => Judge::new(judging)?,
            JudgedOn::Validation => Judge::on_validation_role(judging)?,
        };
        let skipped_before = judging.data.bad_images.skipped();
        let (mut all, mut rows, mut items) = (Vec::new(), Vec::new(), Vec::new());
        for name in &self.evals {
            let eval = by_name(name).ok_or_else(|| CliError::usage(format!("no evaluation: {name}")))?;
            let (metrics, judgement, images) = eval.run(&judge, theta, &mut |_, _, _| {})?;
            rows.push((eval.protocol, "accuracy", judgement));
            items.push((eval.name, images));
            all.extend(metrics);
        }
        write_cell(&self.items, &items)?;
        // The table of evaluations is of the split that judges.
        if self.on == JudgedOn::Test {
            let mut skipped = judging.data.bad_images.skipped();
            skipped.retain(|image| !skipped_before.contains(image));
            let split = judging.judging_split();
            let split = if other.is_some() { format!("{OTHER_DATA}{split}") } else { split };
            run.write_evals(experiment, checkpoint, step, &split, &rows, &skipped)?;
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

/// The data of the configuration at `path`, with the images normalised as `trained` has them.
fn other_data(path: &Path, trained: &Experiment) -> Result<Experiment, CliError> {
    let inputs = overlay_inputs(ConfigInputs::default(), &[path.to_owned()], &[])?;
    Experiment::new(Config::resolve(&inputs)?, Some(trained.data.normalisation.clone()))
}
