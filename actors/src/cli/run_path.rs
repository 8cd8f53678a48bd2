//! The path of a run, as commands name it.

use std::path::{Path, PathBuf};

use mlomae_storage::run_dir::RunDir;

use crate::process::error::CliError;

/// Where runs are kept unless the configuration says otherwise.
pub(crate) const DEFAULT_ROOT: &str = "runs";

/// The run directory that `text` names: a path, the id of a run below `runs`, or `latest`.
///
/// # Errors
/// If `latest` is named and there is no run.
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
