//! What can go wrong with checkpoints.

use std::path::{Path, PathBuf};

use crate::atomic::FileError;
use crate::exit_code::ExitCode;

/// A checkpoint could not be written, found or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file operation failed.
    #[error("checkpoint: {0}")]
    File(#[from] FileError),
    /// There is no checkpoint here.
    #[error(
        "checkpoint: none found (expected a run directory, its `checkpoints`, a `step-…` folder or `latest`) at `{}`",
        .0.display()
    )]
    NotFound(PathBuf),
    /// A checkpoint lacks one of its files.
    #[error("checkpoint: missing file `{}`", .0.display())]
    MissingFile(PathBuf),
    /// A file is truncated, altered or of another kind.
    #[error("checkpoint: cannot read `{}`: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint of another format.
    #[error("checkpoint: `{}`: expected format version {expected}, got {got}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version of this program.
        expected: u64,
        /// The version found.
        got: String,
    },
    /// A checkpoint that must not be written.
    #[error("checkpoint: cannot save: {0}")]
    Invalid(String),
}

impl CheckpointError {
    pub(crate) fn corrupt(path: &Path, reason: impl ToString) -> Self {
        Self::Corrupt { path: path.to_path_buf(), reason: reason.to_string() }
    }

    /// The exit code of the command line: 65 bad data, 66 missing, 70 internal, 74 I/O.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::File(error) => error.exit_code(),
            Self::NotFound(_) | Self::MissingFile(_) => ExitCode::NoInput,
            Self::Corrupt { .. } | Self::Version { .. } => ExitCode::BadData,
            Self::Invalid(_) => ExitCode::Internal,
        }
    }
}
