//! How commands name a run.

use std::path::{Path, PathBuf};

use mlomae_dataflow::config::ConfigInputs;
use mlomae_storage::run_dir::RunDir;

use super::config_args::{Setting, overlay_inputs};
use crate::process::error::CliError;

/// Where runs are kept unless the configuration says otherwise.
pub(crate) const DEFAULT_ROOT: &str = "runs";

/// The run directory that `text` names: a path, the id of a run below `runs`, or `latest`.
///
/// # Errors
/// If `latest` is asked for and there is no run.
pub(crate) fn find_run(text: &Path) -> Result<PathBuf, CliError> {
    if text.exists() {
        return Ok(text.to_owned());
    }
    let root = Path::new(DEFAULT_ROOT);
    if text == Path::new("latest") {
        return Ok(RunDir::latest(root)?.path().to_owned());
    }
    let below = root.join(text);
    Ok(if text.is_relative() && below.exists() { below } else { text.to_owned() })
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
