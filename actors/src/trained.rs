//! A checkpoint with the run that it came from: what resume, evaluations and pictures start from.

use std::path::{Path, PathBuf};

use mlomae_dataflow::augment::Normalisation;
use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_dataflow::run_sink::CheckpointTensors;
use mlomae_dataflow::state::TrainState;
use mlomae_storage::checkpoint::{self, Checkpoint, CheckpointError};
use serde_json::Value;

use crate::error::{CliError, exit_code};
use crate::setup::Prepared;

/// A checkpoint that was read and whose data is open.
#[derive(Debug)]
pub struct Trained {
    /// The checkpoint's folder.
    pub folder: PathBuf,
    /// Configuration, data and networks.
    pub prepared: Prepared,
    /// The weights and all else that training changes.
    pub state: TrainState,
    /// Level-1 steps done.
    pub step: u64,
    /// Seconds of running time up to the checkpoint.
    pub wall_s: f64,
}

impl Trained {
    /// Reads the checkpoint at `path` (see [`checkpoint::resolve`]). The configuration is the
    /// checkpoint's own, or `base` if given, with `overlay` over it: further layers and settings.
    ///
    /// # Errors
    /// If the checkpoint is damaged, of another version or another shape, or if its data cannot be
    /// opened or is no longer the same.
    pub fn load(path: &Path, base: Option<ConfigInputs>, overlay: ConfigInputs) -> Result<Self, CliError> {
        let (folder, checkpoint) = load_newest(path)?;
        let mut inputs = match base {
            Some(base) => base,
            None => {
                let text = text(&checkpoint, &folder, "config")?;
                ConfigInputs::default().layer(&folder.join("state.json").display().to_string(), text)
            }
        };
        inputs.layers.extend(overlay.layers);
        inputs.sets.extend(overlay.sets);
        let config = Config::resolve(&inputs)?;
        let prepared = Prepared::new(config, Some(normalisation(&checkpoint, &folder)?))?;
        let fingerprint = text(&checkpoint, &folder, "data_fingerprint")?;
        if fingerprint != prepared.fingerprint() {
            let line = format!(
                "data is not what the checkpoint was trained on: the roles' fingerprint must be {fingerprint}, got {}: {}",
                prepared.fingerprint(),
                folder.display()
            );
            return Err(CliError::new(exit_code::CONFIG, line));
        }
        let state = TrainState::restore(&prepared.method, &CheckpointTensors(&checkpoint), &checkpoint.state)
            .map_err(|error| CliError::new(exit_code::BAD_DATA, format!("{error}: {}", folder.display())))?;
        let wall_s = checkpoint.state.get("wall_s").and_then(Value::as_f64).unwrap_or(0.0);
        Ok(Self { folder, prepared, state, step: checkpoint.step, wall_s })
    }

    /// The folder's name, as `step-00000200`.
    #[must_use]
    pub fn name(&self) -> String {
        self.folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The run directory, if the checkpoint lies in one.
    #[must_use]
    pub fn run(&self) -> Option<&Path> {
        let checkpoints = self.folder.parent()?;
        (checkpoints.file_name()? == "checkpoints").then(|| checkpoints.parent())?
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
    CliError::new(exit_code::BAD_DATA, line)
}

fn text<'a>(checkpoint: &'a Checkpoint, folder: &Path, key: &str) -> Result<&'a str, CliError> {
    checkpoint.state.get(key).and_then(Value::as_str).ok_or_else(|| lacks(folder, key))
}

fn normalisation(checkpoint: &Checkpoint, folder: &Path) -> Result<Normalisation, CliError> {
    let values = |key: &str| {
        let list = checkpoint.state.get("normalisation").and_then(|object| object.get(key));
        let values = list
            .and_then(Value::as_array)
            .map(|list| list.iter().map(|value| value.as_f64().map(|value| value as f32)).collect::<Option<Vec<_>>>());
        values.flatten().ok_or_else(|| lacks(folder, &format!("normalisation.{key}")))
    };
    Ok(Normalisation { mean: values("mean")?, std: values("std")? })
}
