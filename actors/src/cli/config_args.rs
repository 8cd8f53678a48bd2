//! The arguments that choose a configuration, common to several commands.

use std::path::{Path, PathBuf};

use mlomae_dataflow::config::{Config, ConfigInputs};

use crate::error::CliError;

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
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
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

fn read(path: &Path) -> Result<String, CliError> {
    let bytes = std::fs::read(path).map_err(|error| CliError::file("read", path, &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let line = format!("{}: not UTF-8 text, first at byte {place}", path.display());
        CliError::new(crate::error::exit_code::CONFIG, line)
    })
}
