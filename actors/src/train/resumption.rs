//! A run that is taken up again: where it goes on, or that there is nothing left to do.

use std::path::Path;

use mlomae_dataflow::config::{Config, ConfigError, ConfigInputs, EvalConfig};
use mlomae_dataflow::counts::{Outer, Step};
use mlomae_dataflow::run::state::TrainState;
use mlomae_kernels as kernels;
use mlomae_storage::checkpoint::{self, CheckpointError};
use mlomae_storage::logs::{Clock, EvalRow, Logged, SCHEMA_VERSION, TableReader};
use mlomae_storage::run_dir::{Host, RunDir, RunStatus};

use crate::process::error::CliError;
use crate::train::continuity::Purpose;
use crate::train::data_place;
use crate::train::eval::{Judgement, Protocol};
use crate::train::experiment::{Experiment, config_toml};
use crate::train::loaded_checkpoint::{Base, LoadedCheckpoint};
use crate::train::memory::Needs;
use crate::train::run::{OTHER_DATA, ReadyRun, Run, VERSION};
use crate::watch::prometheus;

/// What became of a run that is taken up.
#[derive(Debug)]
pub enum Resumed {
    /// It goes on.
    Ready(Box<ReadyRun>),
    /// It is finished, and nothing of it was touched.
    Finished(Box<Finished>),
}

/// A run that has come to its end.
#[derive(Debug)]
pub struct Finished {
    /// Configuration, data and networks.
    pub experiment: Experiment,
    /// The run.
    pub dir: RunDir,
    /// Outer iterations done.
    pub outer: Outer,
    /// Level-1 steps done.
    pub step: Step,
    /// Its recorded evaluation, of the encoder and of an untrained one.
    pub judged: Option<(Judgement, Judgement)>,
}

/// Where a run starts again.
struct StartingPoint {
    experiment: Experiment,
    state: TrainState,
    step: Step,
    wall_s: f64,
    data_changed: bool,
}

impl Run {
    /// Takes up the run at `path` at its latest checkpoint, or at its beginning if it has none. If `path` is the folder
    /// of one of a run's checkpoints, the run goes back to that one. The configuration is `base` if given, else the
    /// run's own as its last process had it, also one that was killed before it wrote a checkpoint, or, going back,
    /// that of the checkpoint; with `changes` over it. A finished run is left as it is.
    ///
    /// # Errors
    /// If there is no such run, another process holds it, its files are damaged, a key is given that cannot take
    /// effect, the data are others (unless `accept_changed_data`), memory is too small, or the metrics' address cannot
    /// be had. Nothing is changed then: `before_changes` is called before anything is, but for what an interrupted save
    /// left.
    pub fn resume(
        path: &Path,
        base: Option<ConfigInputs>,
        changes: ConfigInputs,
        accept_changed_data: bool,
        before_changes: &dyn Fn(),
    ) -> Result<Resumed, CliError> {
        let (path, from) = run_and_checkpoint(path);
        let dir = RunDir::open_locked(path)?;
        let mut record = dir.record()?;
        checkpoint::clean(path)?;
        let (gives_root, gives_id) = (changes.gives("run.root"), changes.gives("run.id"));
        let latest = checkpoint::list(path)?.last().map(|(step, _)| Step(*step));
        let own = || -> Result<ConfigInputs, CliError> {
            Ok(ConfigInputs::default().layer(&dir.config().display().to_string(), &dir.read_config()?))
        };
        // A checkpoint has a configuration too, so that a damaged file of the run's is no obstacle.
        let before = own().ok().and_then(|own| Some((Config::resolve(&own).ok()?, own)));
        let is_begun = from.is_some() || latest.is_some();
        if !is_begun && record.status == RunStatus::Finished {
            // Beginning anew would take back the rows of a run that came to its end.
            return Err(CheckpointError::NotFound(path.to_path_buf()).into());
        }
        if !is_begun && record.step > 0 {
            tracing::warn!(
                kind = "checkpoints_gone",
                "no checkpoint is left of the {} level-1 steps that {} counts, the run begins anew",
                record.step,
                path.join("run.json").display()
            );
        }
        let StartingPoint { mut experiment, state, step, wall_s, data_changed } = if is_begun {
            let purpose = Purpose::Resume { accept_changed_data };
            let base = match (base, &before) {
                (Some(base), _) => Base::Given(base),
                (None, Some((_, own))) if from.is_none() => Base::Run(own.clone()),
                (None, _) => Base::Own,
            };
            let LoadedCheckpoint { experiment, state, step, wall_s, data_changed, .. } =
                LoadedCheckpoint::load(from.unwrap_or(path), base, changes, purpose)?;
            StartingPoint { experiment, state, step, wall_s, data_changed }
        } else {
            let is_given = base.is_some() || changes.gives("data.path");
            let mut inputs = base.map_or_else(own, Ok)?;
            inputs.layers.extend(changes.layers);
            inputs.sets.extend(changes.sets);
            let mut config = Config::resolve(&inputs)?;
            if !is_given {
                data_place::find(&mut config, Some(path))?;
            }
            let mut experiment = Experiment::new(config, None)?;
            experiment.anchor()?;
            // Nothing is trained yet, so that every key takes effect.
            record.seed = experiment.config.seed;
            let state = TrainState::fresh(&experiment.method);
            StartingPoint { experiment, state, step: Step(0), wall_s: 0.0, data_changed: false }
        };
        let root = path.parent().filter(|root| !root.as_os_str().is_empty()).unwrap_or(Path::new("."));
        stay_in_place(&mut experiment.config, root, &record.id, [gives_root, gives_id])?;

        let is_done = is_begun && state.outer == experiment.method.total_outer;
        let is_same_judge = before.is_some_and(|(before, _)| is_same(&before.eval, &experiment.config.eval));
        let judged = if is_done && !data_changed && is_same_judge { recorded_judgement(path, step)? } else { None };
        let wants_judgement = experiment.config.eval.at_end && experiment.data.test.is_some();
        let has_judgement = judged.is_some() || !wants_judgement;
        if is_done && latest == Some(step) && record.status == RunStatus::Finished && has_judgement {
            let outer = state.outer;
            return Ok(Resumed::Finished(Box::new(Finished { experiment, dir, outer, step, judged })));
        }

        Needs::of_training(&experiment)?.check(experiment.config.run.memory_check)?;
        let metrics = prometheus::bind(&experiment.config.telemetry)?;
        before_changes();
        if from.is_some() {
            for aside in checkpoint::go_back(path, step.0)? {
                tracing::warn!(kind = "checkpoint_aside", "a later checkpoint is set aside: {}", aside.display());
            }
        }
        // What a process that died, or went further than this checkpoint, had noted is no longer so.
        record.step = step.logged();
        let input = dir.read_config_input()?;
        dir.write_configs(&config_toml(&experiment.config)?, &input)?;
        let isa = kernels::isa().name();
        let host_before = std::mem::take(&mut record.host);
        record.resume(VERSION, isa);
        let engine = &experiment.method.engine;
        record.compute_on(engine.device.name(), &engine.description);
        record.host.arithmetic = experiment.method.arithmetic();
        record.versions.schema = SCHEMA_VERSION.to_owned();
        dir.write_record(&record)?;
        tracing::info!(
            kind = "run_resumed",
            outer = state.outer.0,
            segment = record.segment,
            "run directory {}, going on after outer iteration {}",
            path.display(),
            state.outer
        );
        tell_changes(&host_before, &record.host);
        let run = Self { dir, record, clock: Clock::resume(wall_s) };
        Ok(Resumed::Ready(Box::new(ReadyRun { run, experiment, state, metrics, judged })))
    }
}

/// Tells that a run goes on on another engine, device or arithmetic than those of its last process, and so rounds
/// otherwise. (That a key has changed is told where keys are.)
fn tell_changes(before: &Host, now: &Host) {
    let (engine_before, engine) = (before.engine_text(), now.engine_text());
    if engine_before != engine {
        tracing::warn!(
            kind = "engine_changed",
            "the run computed on {engine_before} and goes on on {engine}, which rounds otherwise"
        );
    } else if engine == "cpu" && !before.isa.is_empty() && before.isa != now.isa {
        tracing::warn!(
            kind = "isa_changed",
            "the run computed with {0} and goes on with {1}, which rounds otherwise; `--isa {0}` keeps its bits",
            before.isa,
            now.isa
        );
    } else if !before.arithmetic.is_empty() && before.arithmetic != now.arithmetic {
        tracing::warn!(
            kind = "arithmetic_changed",
            "the run computed in {} and goes on in {}, which rounds otherwise",
            before.arithmetic,
            now.arithmetic
        );
    }
}

/// The run that `path` is or is a checkpoint of, and that checkpoint.
fn run_and_checkpoint(path: &Path) -> (&Path, Option<&Path>) {
    let checkpoints = path.parent().filter(|parent| parent.ends_with("checkpoints"));
    match checkpoints.and_then(Path::parent) {
        Some(run) if checkpoint::step_of(path).is_some() => {
            (if run.as_os_str().is_empty() { Path::new(".") } else { run }, Some(path))
        }
        _ => (path, None),
    }
}

/// The directory of a run may have been moved, and stays where it is: refuses keys, where they are `given`, that name
/// another place for it, and notes its own.
fn stay_in_place(config: &mut Config, root: &Path, id: &str, given: [bool; 2]) -> Result<(), CliError> {
    let is_there =
        |other: &Path| other.canonicalize().is_ok_and(|other| root.canonicalize().is_ok_and(|root| root == other));
    let problem = "cannot take effect, the run stays where it is";
    let refuse = |key: &str, value: &str, allowed: &str| {
        let quoted = |text: &str| format!("\"{text}\"");
        let (key, value, allowed, problem) = (key.to_owned(), quoted(value), quoted(allowed), problem.to_owned());
        CliError::from(vec![ConfigError { key, value, problem, allowed, suggestion: None }])
    };
    let [gives_root, gives_id] = given;
    if gives_root && !is_there(Path::new(&config.run.root)) {
        return Err(refuse("run.root", &config.run.root, &root.to_string_lossy()));
    }
    if let Some(other) = config.run.id.as_deref().filter(|other| gives_id && *other != id) {
        return Err(refuse("run.id", other, id));
    }
    // A configuration is UTF-8 text. Another name cannot be in it; the one that is there is of no use to a resume.
    if let Some(place) = data_place::absolute(root).as_deref().and_then(Path::to_str) {
        config.run.root = place.to_owned();
    }
    config.run.id = Some(id.to_owned());
    Ok(())
}

/// Whether an evaluation by `a` is one by `b`.
fn is_same(a: &EvalConfig, b: &EvalConfig) -> bool {
    EvalConfig { at_end: b.at_end, ..a.clone() } == *b
}

/// The newest evaluation at the end of training after `step` level-1 steps, of the encoder and of an untrained one.
fn recorded_judgement(run: &Path, step: Step) -> Result<Option<(Judgement, Judgement)>, CliError> {
    let rows = TableReader::<EvalRow>::new(run).poll()?;
    let newest = |metric: &str| {
        let is_it = |logged: &Logged<EvalRow>| {
            let row = &logged.row;
            let is_own = !row.split.starts_with(OTHER_DATA);
            logged.place.step == step.logged() && row.task == Protocol::Knn.as_str() && row.metric == metric && is_own
        };
        rows.iter().rfind(|logged| is_it(logged)).map(|Logged { row, .. }| Judgement {
            accuracy: row.value,
            interval: row.ci_low.zip(row.ci_high).map(|(low, high)| [low, high]),
            num_train: 0,
            num_test: usize::try_from(row.n).unwrap_or(0),
            seconds: row.seconds,
        })
    };
    Ok(newest("accuracy").zip(newest("accuracy_untrained")))
}
