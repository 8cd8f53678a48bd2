//! A checkpoint with the run that it came from: what resume, evaluations and pictures start from.

use std::path::{Path, PathBuf};

use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_dataflow::counts::{Outer, Step};
use mlomae_dataflow::input::augment::Normalisation;
use mlomae_dataflow::run::sink::CheckpointTensors;
use mlomae_dataflow::run::state::TrainState;
use mlomae_storage::checkpoint::{self, Checkpoint, CheckpointError};
use mlomae_storage::exit_code::ExitCode;
use serde::Deserialize;
use serde_json::Value;

use crate::process::error::CliError;
use crate::train::continuity::{DataContent, Effective, Purpose, compare_data, compare_keys};
use crate::train::data_place;
use crate::train::experiment::Experiment;

/// A checkpoint that was read and whose data is open.
#[derive(Debug)]
pub struct LoadedCheckpoint {
    /// The checkpoint's folder.
    pub folder: PathBuf,
    /// Configuration, data and networks.
    pub experiment: Experiment,
    /// The weights and all else that training changes.
    pub state: TrainState,
    /// Level-1 steps done.
    pub step: Step,
    /// Seconds of running time up to the checkpoint.
    pub wall_s: f64,
    /// Whether the data are others than those of the checkpoint, which was logged or accepted.
    pub data_changed: bool,
}

/// The configuration under the settings that a command gives.
#[derive(Debug, Clone)]
pub enum Base {
    /// The checkpoint's own.
    Own,
    /// That of the run, which a process since may have changed.
    Run(ConfigInputs),
    /// Another one, given in this process.
    Given(ConfigInputs),
}

/// The run directory that a checkpoint's folder lies in.
fn run_of(folder: &Path) -> Option<&Path> {
    let checkpoints = folder.parent()?;
    (checkpoints.file_name()? == "checkpoints").then(|| checkpoints.parent())?
}

impl LoadedCheckpoint {
    /// Reads the checkpoint at `path` (see [`checkpoint::resolve`]) for `purpose`. The configuration is `base` with
    /// `overlay` over it: further layers and settings.
    ///
    /// # Errors
    /// If the checkpoint is damaged, of another version or another shape, a key is given that cannot take effect, or
    /// the data cannot be opened or are no longer the same.
    pub fn load(path: &Path, base: Base, overlay: ConfigInputs, purpose: Purpose) -> Result<Self, CliError> {
        let (folder, checkpoint) = load_newest(path)?;
        if let Some(named) = checkpoint::step_of(&folder).filter(|named| *named != checkpoint.step) {
            let line = format!("checkpoint is of step {}, not of step {named}: {}", checkpoint.step, folder.display());
            return Err(CliError::new(ExitCode::BadData, line));
        }
        let own = text(&checkpoint, &folder, "config")?;
        let own = ConfigInputs::default().layer(&folder.join("state.json").display().to_string(), own);
        let recorded = Config::resolve(&own)?;
        let is_given = matches!(base, Base::Given(_)) || overlay.gives("data.path");
        let mut inputs = match base {
            Base::Own => own,
            Base::Run(inputs) | Base::Given(inputs) => inputs,
        };
        inputs.layers.extend(overlay.layers);
        inputs.sets.extend(overlay.sets);
        let mut config = Config::resolve(&inputs)?;
        let effective = effective(&checkpoint, &folder)?;
        let outer = Outer(checkpoint.state.get("outer_iteration").and_then(Value::as_u64).unwrap_or(0));
        let keys = compare_keys(&recorded, &config, &effective, outer, purpose)?;
        if !is_given {
            // The run's path as it was recorded says where its data were relative to it.
            data_place::find(&mut config, run_of(&folder))?;
        }
        let before = content(&checkpoint, &folder)?;
        let place = folder.display().to_string();
        let compare = |now: &DataContent| match &before {
            Some(before) => compare_data(before, now, &keys, purpose, &place),
            None => Ok(false),
        };
        let mut experiment = match Experiment::new(config.clone(), Some(effective.normalisation)) {
            Ok(experiment) => experiment,
            Err(error) => {
                // If the data are others, that is the reason, and not what follows from it.
                let train = |before: &DataContent| DataContent::open(&config, before.test.clone()).ok();
                if let Some(now) = before.as_ref().and_then(train) {
                    compare(&now)?;
                }
                return Err(error);
            }
        };
        let mut data_changed = compare(experiment.content()?)?;
        experiment.anchor()?;
        let fingerprint = text(&checkpoint, &folder, "data_fingerprint")?;
        if before.is_none() {
            data_changed |= compare_roles(fingerprint, &experiment, purpose, &place)?;
        } else if fingerprint != experiment.fingerprint() && !data_changed {
            return Err(other_roles(fingerprint, &experiment, &place));
        }
        let bad = |error| CliError::new(ExitCode::BadData, format!("{error}: {}", folder.display()));
        let state =
            TrainState::restore(&experiment.method, &CheckpointTensors(&checkpoint), &checkpoint.state).map_err(bad)?;
        let (outer, step) = (state.outer, Step(checkpoint.step));
        if outer.first_step(experiment.method.unroll) != step {
            return Err(corrupt(&folder, &format!("{outer} outer iterations do not make {step} level-1 steps")));
        }
        let wall_s = wall_s(&checkpoint, &folder)?;
        Ok(Self { folder, experiment, state, step, wall_s, data_changed })
    }

    /// The folder's name, as `step-00000200`.
    #[must_use]
    pub fn name(&self) -> String {
        self.folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The run directory, if the checkpoint lies in one.
    #[must_use]
    pub fn run(&self) -> Option<&Path> {
        run_of(&self.folder)
    }
}

/// Reads the checkpoint that `path` means. A run at work may have removed it in between: then it means another one.
fn load_newest(path: &Path) -> Result<(PathBuf, Checkpoint), CliError> {
    let mut folder = checkpoint::resolve(path)?;
    loop {
        match checkpoint::load(&folder) {
            Ok(checkpoint) => return Ok((folder, checkpoint)),
            Err(error) => match checkpoint::resolve(path) {
                Ok(newer) if newer != folder => folder = newer,
                _ => return Err(with_way_out(&error, &folder)),
            },
        }
    }
}

/// A damaged checkpoint need not be the end: names an older one that is whole.
fn with_way_out(error: &CheckpointError, folder: &Path) -> CliError {
    let whole = checkpoint::step_of(folder).and_then(|step| checkpoint::older_whole(folder, step));
    let line = match whole {
        Some(whole) => format!("{error}; one before it is whole, name it instead: {}", whole.display()),
        None => error.to_string(),
    };
    CliError::new(error.exit_code(), line)
}

fn lacks(folder: &Path, key: &str) -> CliError {
    let line = format!("checkpoint's state lacks {key}: {}", folder.join("state.json").display());
    CliError::new(ExitCode::BadData, line)
}

fn text<'a>(checkpoint: &'a Checkpoint, folder: &Path, key: &str) -> Result<&'a str, CliError> {
    checkpoint.state.get(key).and_then(Value::as_str).ok_or_else(|| lacks(folder, key))
}

fn corrupt(folder: &Path, problem: &str) -> CliError {
    CliError::new(ExitCode::BadData, format!("checkpoint's state: {problem}: {}", folder.join("state.json").display()))
}

/// What the networks were given, as the state has it; older versions had less.
fn effective(checkpoint: &Checkpoint, folder: &Path) -> Result<Effective, CliError> {
    let model = |key: &str| {
        let number = checkpoint.state.get("model").and_then(|model| model.get(key)).and_then(Value::as_u64);
        number.and_then(|number| usize::try_from(number).ok())
    };
    let channels = model("channels");
    let normalisation = normalisation(checkpoint, folder, channels)?;
    Ok(Effective { image: model("image"), channels, normalisation })
}

fn normalisation(checkpoint: &Checkpoint, folder: &Path, channels: Option<usize>) -> Result<Normalisation, CliError> {
    let values = |key: &str| {
        let list = checkpoint.state.get("normalisation").and_then(|object| object.get(key));
        let values = list
            .and_then(Value::as_array)
            .map(|list| list.iter().map(|value| value.as_f64().map(|value| value as f32)).collect::<Option<Vec<_>>>());
        values.flatten().ok_or_else(|| lacks(folder, &format!("normalisation.{key}")))
    };
    let (mean, std) = (values("mean")?, values("std")?);
    let is_len = |len: usize| channels.map_or(matches!(len, 1 | 3), |channels| len == channels);
    let are_numbers = mean.iter().chain(&std).all(|value| value.is_finite()) && std.iter().all(|value| *value > 0.0);
    if !is_len(mean.len()) || mean.len() != std.len() || !are_numbers {
        let problem =
            format!("normalisation must have finite values of each channel, std above 0, got {mean:?}, {std:?}");
        return Err(corrupt(folder, &problem));
    }
    Ok(Normalisation { mean, std })
}

/// Seconds of running time, 0 in a state that does not say.
fn wall_s(checkpoint: &Checkpoint, folder: &Path) -> Result<f64, CliError> {
    match checkpoint.state.get("wall_s") {
        None => Ok(0.0),
        Some(value) => value
            .as_f64()
            .filter(|seconds| (0.0..=1e12).contains(seconds))
            .ok_or_else(|| corrupt(folder, &format!("wall_s must be seconds from 0 to 1e12, got {value}"))),
    }
}

/// What the data held; none in the state of a version that did not note it.
fn content(checkpoint: &Checkpoint, folder: &Path) -> Result<Option<DataContent>, CliError> {
    let Some(value) = checkpoint.state.get("data_content") else {
        return Ok(None);
    };
    let content =
        DataContent::deserialize(value).map_err(|error| corrupt(folder, &format!("data_content: {error}")))?;
    Ok(Some(content))
}

fn other_roles(expected: &str, experiment: &Experiment, place: &str) -> CliError {
    let line = format!(
        "data is not what the checkpoint was trained on: the roles' fingerprint must be {expected}, got {}: {place}",
        experiment.fingerprint()
    );
    CliError::new(ExitCode::Config, line)
}

/// All that can be compared with a checkpoint of a version that noted no more. Answers whether the roles are others.
fn compare_roles(expected: &str, experiment: &Experiment, purpose: Purpose, place: &str) -> Result<bool, CliError> {
    let is_same = expected == experiment.fingerprint();
    match purpose {
        Purpose::Resume { accept_changed_data: false } if !is_same => Err(other_roles(expected, experiment, place)),
        _ if !is_same => {
            tracing::warn!(
                kind = "data_changed",
                "data is not what the checkpoint was trained on, its roles are others"
            );
            Ok(true)
        }
        _ => {
            tracing::info!(
                kind = "data_not_compared",
                "the checkpoint is of an older version, which noted nothing of the images: they are not compared"
            );
            Ok(false)
        }
    }
}
