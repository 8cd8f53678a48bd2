//! What can go wrong with the logs.

use std::path::PathBuf;

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

use super::tables::{Table, UnknownTable};
use crate::atomic::FileError;
use crate::exit_code::ExitCode;

/// A log could not be written, read or repaired.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file operation failed.
    #[error("logs: {0}")]
    File(#[from] FileError),
    /// The run's folder of logs is not there.
    #[error("logs: no folder `logs` in run directory `{}`", path.display())]
    NoLogs {
        /// The run directory.
        path: PathBuf,
    },
    /// The contents of a file are damaged, or of another kind than its name says.
    #[error("logs: cannot read `{}`: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An undamaged part whose schema is of another version of this program.
    #[error("logs: cannot read `{}`, which is whole: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What this program does not understand.
        reason: String,
    },
    /// The parts of a table changed during every attempt to read them.
    #[error("logs: its parts keep changing, try again when the run is resumed or repaired: `{}`", path.display())]
    Changing {
        /// The table's folder.
        path: PathBuf,
    },
    /// A row does not fit its table.
    #[error("logs: table `{table}`, column `{column}`: expected {expected} values, got {got}")]
    WrongLength {
        /// The table.
        table: Table,
        /// The column.
        column: &'static str,
        /// Values demanded by the patch grid.
        expected: usize,
        /// Values in the row.
        got: usize,
    },
    /// A table name that does not exist.
    #[error(transparent)]
    UnknownTable(#[from] UnknownTable),
    /// An export format that does not exist.
    #[error("logs: unknown format, expected one of parquet, csv, arrow: `{0}`")]
    UnknownFormat(String),
    /// Another process is writing this run.
    #[error("logs: run directory is in use by process {pid}: `{}`", path.display())]
    InUse {
        /// The run directory.
        path: PathBuf,
        /// The process that holds its lock (0 if unknown).
        pid: u32,
    },
    /// Rows could not be encoded as Arrow.
    #[error("logs: cannot encode table `{table}`: {source}")]
    Arrow {
        /// The table.
        table: Table,
        /// The cause.
        source: ArrowError,
    },
    /// A Parquet file could not be written.
    #[error("logs: cannot write `{}`: {source}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ParquetError,
    },
}

impl LogError {
    /// The exit code of the command line: 65 bad data, 66 no input, 70 internal, 74 I/O, 2 usage.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::File(error) => error.exit_code(),
            Self::NoLogs { .. } => ExitCode::NoInput,
            Self::Corrupt { .. } | Self::Foreign { .. } => ExitCode::BadData,
            Self::WrongLength { .. } | Self::Arrow { .. } => ExitCode::Internal,
            Self::UnknownTable(_) | Self::UnknownFormat(_) => ExitCode::Usage,
            Self::InUse { .. } | Self::Changing { .. } | Self::Parquet { .. } => ExitCode::Io,
        }
    }
}
