//! The arguments that choose a configuration, common to several commands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};
use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_model::lane::Engine;
use mlomae_storage::escape::os_text;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::input::{Refusal, read_at_most, read_to_end, refusal};
use mlomae_storage::run_dir::MAX_CONFIG_BYTES;

use crate::process::error::CliError;

/// A configuration file, overlays over it and single settings.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file; without it the embedded quickstart.
    #[arg(value_name = "CONFIG")]
    pub config: Option<PathBuf>,
    /// Further configuration file whose keys win over CONFIG's; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub config_overlay: Vec<PathBuf>,
    /// Single setting, stronger than every file, as in --set pretrain.lr=1e-4; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = Setting)]
    pub set: Vec<String>,
}

/// Parses a setting, which is text: what is not UTF-8 has no place in a configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting;

impl TypedValueParser for Setting {
    type Value = String;

    fn parse_ref(&self, command: &Command, _: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        value.to_str().map(str::to_owned).ok_or_else(|| {
            let line = format!("--set needs UTF-8 text; name a file by a link that is: {}\n", os_text(value));
            clap::Error::raw(ErrorKind::InvalidUtf8, line).with_cmd(command)
        })
    }
}

impl ConfigArgs {
    /// Reads the files, without interpreting them.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn inputs(&self) -> Result<ConfigInputs, CliError> {
        let inputs = match &self.config {
            Some(path) => ConfigInputs::default().layer(&path.display().to_string(), &read(path)?),
            None => ConfigInputs::quickstart(),
        };
        overlay_inputs(inputs, &self.config_overlay, &self.set)
    }

    /// The resolved and checked configuration.
    ///
    /// # Errors
    /// If a file cannot be read, or with every error of the configuration.
    pub(crate) fn resolve(&self) -> Result<(Config, ConfigInputs), CliError> {
        let inputs = self.inputs()?;
        Ok((Config::resolve(&inputs)?, inputs))
    }
}

/// The device to compute on, for commands that have it as an argument of their own.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct EngineArg {
    /// Device to compute on: auto (a GPU where one can be used, else the processor), or one by name
    #[arg(long, value_name = "ENGINE", value_parser = parse_engine)]
    engine: Option<Engine>,
}

fn parse_engine(name: &str) -> Result<Engine, String> {
    Engine::by_name(name).ok_or_else(|| format!("allowed: {}", Engine::names().collect::<Vec<_>>().join(", ")))
}

impl EngineArg {
    /// The setting that it stands for, if it is given.
    pub(crate) fn setting(self) -> Option<String> {
        self.engine.map(|engine| format!("engine={engine}"))
    }

    /// The engine, `auto` if none is given.
    pub(crate) fn get(self) -> Engine {
        self.engine.unwrap_or_default()
    }
}

/// Overlays and settings over a checkpoint's own configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct OverlayArgs {
    /// Configuration file whose keys win over the checkpoint's; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub config_overlay: Vec<PathBuf>,
    /// Single setting over the checkpoint's, as in --set data.path=/elsewhere; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = Setting)]
    pub set: Vec<String>,
}

impl OverlayArgs {
    /// The overlays' layers and settings.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn inputs(&self) -> Result<ConfigInputs, CliError> {
        overlay_inputs(ConfigInputs::default(), &self.config_overlay, &self.set)
    }
}

/// Adds overlays and settings to `inputs`.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn overlay_inputs(
    mut inputs: ConfigInputs,
    overlays: &[PathBuf],
    settings: &[String],
) -> Result<ConfigInputs, CliError> {
    for path in overlays {
        inputs = inputs.layer(&path.display().to_string(), &read(path)?);
    }
    Ok(settings.iter().fold(inputs, |inputs, setting| inputs.set(setting)))
}

/// Reads a configuration: a regular file, or what a shell gives as one (`/dev/stdin`, `<(...)`).
///
/// # Errors
/// If it cannot be read, is too large or no UTF-8.
pub(crate) fn read(path: &Path) -> Result<String, CliError> {
    let is_given = path == Path::new("/dev/stdin") || path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd");
    let bytes = if is_given && !path.is_file() {
        std::fs::File::open(path).and_then(|file| read_to_end(file, 0, MAX_CONFIG_BYTES))
    } else {
        read_at_most(path, MAX_CONFIG_BYTES)
    };
    let bytes = bytes.map_err(|error| match refusal(&error) {
        Some(size @ Refusal::Size { .. }) => {
            CliError::new(ExitCode::Config, format!("{}: a configuration {size}", path.display()))
        }
        _ => CliError::file("read", path, &error),
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let line = format!("{}: not UTF-8 text, first at byte {place}", path.display());
        CliError::new(ExitCode::Config, line)
    })
}
