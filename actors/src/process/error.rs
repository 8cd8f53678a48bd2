//! Errors of the command line: what the user reads and what the process answers.

use std::fmt;
use std::io;
use std::path::Path;

use mlomae_dataflow::config::ConfigError;
use mlomae_dataflow::flow::exit::StageError;
use mlomae_dataflow::input::plan::PlanError;
use mlomae_dataflow::run::setup_error::SetupError;
use mlomae_model::ModelError;
use mlomae_storage::atomic::FileError;
use mlomae_storage::checkpoint::CheckpointError;
use mlomae_storage::dataset::DataError;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::input::refusal_code;
use mlomae_storage::logs::LogError;
use mlomae_storage::run_dir::RunDirError;

use crate::roles::outcome::Outcome;

/// Why a command ended early.
#[derive(Debug)]
pub enum CliError {
    /// Each line is printed after `error: `.
    Failed {
        /// What went wrong, one line each. Empty if everything has been said.
        lines: Vec<String>,
        /// The process's exit code.
        exit_code: ExitCode,
    },
    /// The reader of stdout has gone; nothing is wrong.
    BrokenPipe,
}

impl CliError {
    /// An error of one line.
    #[must_use]
    pub fn new(exit_code: ExitCode, line: impl Into<String>) -> Self {
        Self::Failed { lines: vec![line.into()], exit_code }
    }

    /// An exit code without a message, after the output has said it all.
    #[must_use]
    pub const fn silent(exit_code: ExitCode) -> Self {
        Self::Failed { lines: Vec::new(), exit_code }
    }

    /// A wrong use of the command line.
    #[must_use]
    pub fn usage(line: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, line)
    }

    /// A thread that the system does not start.
    #[must_use]
    pub fn no_thread(error: &io::Error) -> Self {
        Self::new(ExitCode::Io, format!("cannot start a thread: {error}"))
    }

    /// A file operation that failed: `cannot read configs/x.toml: reason`.
    #[must_use]
    pub fn file(action: &str, path: &Path, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound && action == "read" {
            return Self::new(ExitCode::NoInput, format!("no such file: {}", path.display()));
        }
        let exit_code = refusal_code(error).unwrap_or(ExitCode::Io);
        Self::new(exit_code, format!("cannot {action} {}: {error}", path.display()))
    }

    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Failed { exit_code, .. } => *exit_code,
            Self::BrokenPipe => ExitCode::Ok,
        }
    }
}

impl CliError {
    /// Whether a signal requested the end, which is no error.
    #[must_use]
    pub const fn is_by_signal(&self) -> bool {
        matches!(self, Self::Failed { exit_code, .. } if exit_code.is_by_signal())
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { lines, .. } => f.write_str(&lines.join("\n")),
            Self::BrokenPipe => f.write_str("broken pipe"),
        }
    }
}

impl std::error::Error for CliError {}

/// An error of writing to stdout; every other file names its path with [`CliError::file`].
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::new(ExitCode::Io, format!("cannot write to stdout: {error}"))
        }
    }
}

impl From<Vec<ConfigError>> for CliError {
    fn from(errors: Vec<ConfigError>) -> Self {
        Self::Failed { lines: errors.iter().map(ConfigError::to_string).collect(), exit_code: ExitCode::Config }
    }
}

impl From<SetupError> for CliError {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Config(errors) => errors.into(),
            error => Self::new(error.exit_code(), error.to_string()),
        }
    }
}

impl From<PlanError> for CliError {
    fn from(error: PlanError) -> Self {
        SetupError::from(error).into()
    }
}

/// Other errors know their own exit codes.
macro_rules! from_errors_with_code {
    ($($error:ty),+) => {$(
        impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::new(error.exit_code(), error.to_string())
            }
        }
    )+};
}

from_errors_with_code!(DataError, CheckpointError, RunDirError, StageError);

/// Errors of what writes outputs, whose reader may go.
macro_rules! from_errors_of_outputs {
    ($($error:ty),+) => {$(
        impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                if is_broken_pipe(&error) {
                    return Self::BrokenPipe;
                }
                Self::new(error.exit_code(), error.to_string())
            }
        }
    )+};
}

from_errors_of_outputs!(FileError, LogError);

/// Whether a pipe without a reader is at the bottom of an error.
fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        let exit_code = match &error {
            ModelError::Config(_) | ModelError::Engine { .. } => ExitCode::Config,
            ModelError::Tensor { .. } | ModelError::Checkpoint { .. } => ExitCode::BadData,
            ModelError::Threads { .. } => ExitCode::Io,
            ModelError::Targets { .. } | ModelError::Lane { .. } | ModelError::Dfdx(_) => ExitCode::Internal,
        };
        Self::new(exit_code, error.to_string())
    }
}

/// Turns the outcome of a pipeline into the command's answer.
///
/// # Errors
/// If the pipeline ended by anything but its work being done: with the cause's line, or without a
/// line if a signal requested it.
pub fn check_outcome(outcome: &Outcome) -> Result<(), CliError> {
    match outcome.exit_code() {
        ExitCode::Ok => Ok(()),
        exit_code => Err(CliError::Failed { lines: outcome.error_message().into_iter().collect(), exit_code }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_no_input_and_a_refused_one_an_io_error() {
        let path = Path::new("a/b.toml");
        let missing = CliError::file("read", path, &io::ErrorKind::NotFound.into());
        assert_eq!((missing.exit_code(), &*missing.to_string()), (ExitCode::NoInput, "no such file: a/b.toml"));
        let refused = CliError::file("read", path, &io::ErrorKind::PermissionDenied.into());
        assert_eq!(refused.exit_code(), 74);
        assert_eq!(CliError::file("write", path, &io::ErrorKind::NotFound.into()).exit_code(), 74);
    }

    #[test]
    fn a_broken_pipe_is_no_error() {
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit_code(), 0);
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::StorageFull)).exit_code(), 74);
    }

    #[test]
    fn a_reader_that_is_gone_is_found_below_the_libraries_errors() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        let file = FileError::new("write", Path::new("out"), pipe());
        assert_eq!(CliError::from(file).exit_code(), 0);
        let full = FileError::new("write", Path::new("out"), io::ErrorKind::StorageFull.into());
        assert_eq!(CliError::from(full).exit_code(), 74);
        let log = LogError::File(FileError::new("write", Path::new("out"), pipe()));
        assert_eq!(CliError::from(log).exit_code(), 0);
    }
}
