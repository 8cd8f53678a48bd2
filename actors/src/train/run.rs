//! A run's directory over the life of a process that trains: created or resumed, written to, ended.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_dataflow::counts::{Outer, Step};
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::flow::stop::StopReason;
use mlomae_dataflow::input::bad_images::{IMAGE_SKIPPED, SkippedImage};
use mlomae_dataflow::record::Moment;
use mlomae_dataflow::run::sink::{Latest, RunSink};
use mlomae_dataflow::run::state::TrainState;
use mlomae_kernels as kernels;
use mlomae_storage::escape::one_line;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::logs::{
    Clock, EvalRow, EventRow, Level, LogContext, LogPolicy, LogWriter, Place, SCHEMA_VERSION, Severity,
};
use mlomae_storage::run_dir::{RunDir, RunRecord, RunStatus, new_run_id};

use crate::process::error::CliError;
use crate::train::eval::{Judgement, Protocol};
use crate::train::experiment::{Experiment, config_toml};
use crate::train::memory::Needs;
use crate::watch::prometheus;

/// What the names of splits begin with in `evals` where other data judge than those of the run.
pub const OTHER_DATA: &str = "judge/";

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A run directory that this process holds.
#[derive(Debug)]
pub struct Run {
    pub(crate) dir: RunDir,
    pub(crate) record: RunRecord,
    pub(crate) clock: Clock,
}

/// A run that is ready to train.
#[derive(Debug)]
pub struct ReadyRun {
    /// Its directory.
    pub run: Run,
    /// Configuration, data and networks.
    pub experiment: Experiment,
    /// Where training starts.
    pub state: TrainState,
    /// Where its metrics are served, if they are wanted.
    pub metrics: Option<TcpListener>,
    /// The evaluation of a run whose training and evaluation are done already.
    pub judged: Option<(Judgement, Judgement)>,
}

impl Run {
    /// Makes a new run from `inputs`; `name` becomes a part of its id unless `run.id` is given. With
    /// `restart` a directory in the way is moved aside. Nothing is made if the configuration or its data
    /// are wrong or the metrics' address cannot be had. `before_changes` is called before anything is made.
    ///
    /// # Errors
    /// In these cases, or if the directory is in the way or cannot be made.
    pub fn begin(
        inputs: &ConfigInputs,
        name: &str,
        restart: bool,
        before_changes: &dyn Fn(),
    ) -> Result<ReadyRun, CliError> {
        let mut config = Config::resolve(inputs)?;
        let id = config.run.id.get_or_insert_with(|| new_run_id(name)).clone();
        let root = PathBuf::from(&config.run.root);
        let mut experiment = Experiment::new(config, None)?;
        Needs::of_training(&experiment)?.check(experiment.config.run.memory_check)?;
        experiment.anchor()?;
        let metrics = prometheus::bind(&experiment.config.telemetry)?;
        let state = TrainState::fresh(&experiment.method);
        before_changes();
        if restart && let Some(aside) = RunDir::move_aside(&root.join(&id))? {
            tracing::info!(kind = "run_moved", "moved the run in the way to {}", aside.display());
        }
        let dir = RunDir::create(&root, &id)?;
        // The record makes the folder a run, so it comes after what a run needs to be taken up.
        dir.write_configs(&config_toml(&experiment.config)?, &as_given(inputs))?;
        let record = record(&id, &experiment);
        dir.write_record(&record)?;
        tracing::info!(kind = "run_started", "run directory {}", dir.path().display());
        Ok(ReadyRun { run: Self { dir, record, clock: Clock::start() }, experiment, state, metrics, judged: None })
    }

    /// A run directory below `root` for a run that is not kept.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(root: &Path, experiment: &Experiment) -> Result<Self, CliError> {
        let id = new_run_id("scratch");
        let record = record(&id, experiment);
        Ok(Self { dir: RunDir::create(root, &id)?, record, clock: Clock::start() })
    }

    /// The run that a configuration means without naming it: that of its `run.id`, or the newest below
    /// its `run.root`.
    ///
    /// # Errors
    /// If the configuration is wrong or there is no run.
    pub fn latest_of(base: &ConfigInputs, changes: &ConfigInputs) -> Result<PathBuf, CliError> {
        let mut inputs = base.clone();
        inputs.layers.extend(changes.layers.iter().cloned());
        inputs.sets.extend(changes.sets.iter().cloned());
        let config = Config::resolve(&inputs)?;
        let root = Path::new(&config.run.root);
        Ok(match &config.run.id {
            Some(id) => root.join(id),
            None => RunDir::latest(root)?.path().to_owned(),
        })
    }

    /// The run's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Opens the logs, taking back rows after the `outer` outer iterations that are done, and makes
    /// the sink of the log stage.
    ///
    /// # Errors
    /// If the logs cannot be opened.
    pub fn sink(&self, experiment: &Experiment, outer: Outer, latest: Latest) -> Result<RunSink, CliError> {
        let step = outer.first_step(experiment.method.unroll);
        let (context, policy) = (self.log_context(experiment), log_policy(&experiment.config));
        let writer = if self.record.segment == 0 {
            LogWriter::open(self.path(), context, policy)?
        } else {
            let (writer, report) = LogWriter::resume(self.path(), context, policy, step.logged())?;
            for part in report.repair.damaged {
                // The repair has put it into the events itself.
                tracing::warn!(target: "mlomae_progress", kind = "log_damage", "{part}");
            }
            writer
        };
        let keep = experiment.config.checkpoint.keep;
        Ok(RunSink::new(self.path(), writer, keep, experiment.static_state()?, latest))
    }

    /// Writes results on `split` to the `evals` table of the run, whose logs are sealed otherwise, and to `events` the
    /// bad images that were `skipped` on the way.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_evals(
        &self,
        experiment: &Experiment,
        checkpoint: &str,
        step: Step,
        split: &str,
        results: &[(Protocol, &str, Judgement)],
        skipped: &[SkippedImage],
    ) -> Result<(), CliError> {
        let mut writer = LogWriter::open(self.path(), self.log_context(experiment), log_policy(&experiment.config))?;
        let Moment { epoch, step, level } = experiment.method.moment(step, Level::Eval);
        let place = || Place { stamp: self.clock.stamp(), epoch, step: step.logged(), level: Some(level) };
        for SkippedImage { split, sample, message } in skipped {
            let row = EventRow {
                severity: Severity::Warn,
                kind: IMAGE_SKIPPED.into(),
                stage: Some(StageName::Load.as_str().into()),
                message: format!("image skipped: {message}"),
                fields: serde_json::json!({ "split": split, "sample": sample }).to_string(),
            };
            writer.push(place(), row)?;
        }
        for (protocol, metric, judgement) in results {
            let row = EvalRow {
                task: protocol.as_str().into(),
                split: split.to_owned().into(),
                metric: (*metric).to_owned().into(),
                value: judgement.accuracy,
                n: i64::try_from(judgement.num_test).unwrap_or(i64::MAX),
                checkpoint: checkpoint.to_owned(),
                seconds: judgement.seconds,
                ci_low: judgement.interval.map(|[low, _]| low),
                ci_high: judgement.interval.map(|[_, high]| high),
            };
            writer.push(place(), row)?;
        }
        Ok(writer.close()?)
    }

    /// Notes in `run.json` how the process ended, and answers with that end. A run whose training `is_trained` to its
    /// end is finished, although its evaluation failed. If the record cannot be written, that is the error to report
    /// where there was none before, and a warning where there was.
    ///
    /// # Errors
    /// That of `result`, or of writing.
    pub fn end(&mut self, result: Result<(), CliError>, is_trained: bool, step: Step) -> Result<(), CliError> {
        let (status, code, error) = match &result {
            Ok(()) => (RunStatus::Finished, ExitCode::Ok, None),
            Err(error) if error.is_by_signal() => (RunStatus::Interrupted, error.exit_code(), None),
            Err(error) => {
                let status = if is_trained { RunStatus::Finished } else { RunStatus::Failed };
                (status, error.exit_code(), Some(error.to_string()))
            }
        };
        self.record.wall_s = self.clock.wall_s();
        self.record.step = self.record.step.max(step.logged());
        self.record.end(status, code.into(), error);
        match (self.dir.write_record(&self.record), result) {
            (Err(error), Ok(())) => Err(error.into()),
            (Err(error), result) => {
                tracing::warn!(kind = "run_record", "{error}");
                result
            }
            (Ok(()), result) => result,
        }
    }

    /// Notes in `run.json` that a signal ended the process, after as many level-1 steps as `latest` says then: for a
    /// process that leaves at once.
    pub fn exit_hook(&self, latest: &Latest) -> impl FnOnce(StopReason) + Send + 'static {
        let (path, mut record, clock) = (self.path().to_owned(), self.record.clone(), self.clock);
        let latest = latest.clone();
        move |reason| {
            record.wall_s = clock.wall_s();
            record.step = record.step.max(latest.get().step.logged());
            record.end(RunStatus::Interrupted, reason.exit_code().into(), None);
            if let Err(error) = RunDir::open(&path).and_then(|dir| dir.write_record(&record)) {
                tracing::warn!(kind = "run_record", "{error}");
            }
        }
    }

    fn log_context(&self, experiment: &Experiment) -> LogContext {
        let grid = u16::try_from(experiment.method.model.config.grid()).unwrap_or(u16::MAX);
        LogContext {
            run_id: self.record.id.clone(),
            segment: self.record.segment,
            patch_grid: (grid, grid),
            program_version: VERSION.to_owned(),
            clock: self.clock,
        }
    }
}

/// The record of a run that begins now.
fn record(id: &str, experiment: &Experiment) -> RunRecord {
    let mut record = RunRecord::begin(id, VERSION, kernels::isa().name(), experiment.config.seed);
    record.versions.schema = SCHEMA_VERSION.to_owned();
    let engine = &experiment.method.engine;
    record.compute_on(engine.device.name(), &engine.description);
    record.host.arithmetic = experiment.method.arithmetic();
    record
}

fn log_policy(config: &Config) -> LogPolicy {
    LogPolicy {
        seal_rows: config.logs.rotate_rows,
        seal_age: std::time::Duration::from_secs_f64(config.logs.rotate_seconds),
        ..LogPolicy::default()
    }
}

/// The configuration as it was given: all layers, then the settings, as comments say.
fn as_given(inputs: &ConfigInputs) -> String {
    let mut text = String::new();
    for (name, layer) in &inputs.layers {
        text += &format!("# {}\n{}\n", one_line(name), layer.trim_end());
    }
    for setting in &inputs.sets {
        text += &format!("# --set {}\n", one_line(setting));
    }
    text
}
