//! What can go wrong with a dataset. Every message names the file, the sample where there is one, and what is allowed.

use std::path::{Path, PathBuf};

use super::decode::DecodeError;
use super::target::{TargetKind, listed};
use crate::exit_code::ExitCode;
use crate::input::refusal_code;
use crate::machine_memory::bytes_text;

/// A dataset that cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The path of the dataset does not exist.
    #[error("dataset not found: {}", path.display())]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// The path exists, but holds nothing that any format knows.
    #[error("no dataset recognised (looked for {looked_for}) in {}", path.display())]
    Unrecognised {
        /// What was examined.
        path: PathBuf,
        /// The file names or signatures that would have been recognised.
        looked_for: String,
    },
    /// The dataset has no files for the wanted split.
    #[error("no {split} split in {}: {hint}", path.display())]
    NoSplit {
        /// The dataset.
        path: PathBuf,
        /// `train` or `test`.
        split: String,
        /// What there is instead, and which names are looked for.
        hint: String,
    },
    /// The images have no targets of a kind that is asked for.
    #[error("{} has no {kind} of its images, it has: {}", path.display(), listed(has))]
    NoTargets {
        /// The dataset, or the format of one without a path.
        path: PathBuf,
        /// What is asked for.
        kind: TargetKind,
        /// What there is.
        has: Vec<TargetKind>,
    },
    /// Several things could be meant.
    #[error("{what} in {}; {remedy}: {candidates}", path.display())]
    Ambiguous {
        /// The dataset.
        path: PathBuf,
        /// What there are several of.
        what: String,
        /// What decides, with its key.
        remedy: String,
        /// Those that could be meant.
        candidates: String,
    },
    /// The operating system refused an operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `read`, `write`, ...
        action: &'static str,
        /// Its reason.
        source: std::io::Error,
    },
    /// A file is truncated, has a wrong shape, or holds something that its format does not allow.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One sample is unusable.
    #[error("{}: sample {sample}: {reason}", path.display())]
    Sample {
        /// The file.
        path: PathBuf,
        /// Index of the sample within the split, from 0.
        sample: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The encoded image of one sample is unusable.
    #[error("{}: sample {sample}: {source}", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// Index of the sample within the split, from 0.
        sample: usize,
        /// What is wrong with the image.
        source: DecodeError,
    },
    /// A column is absent or the choice between several is open.
    #[error("{}: {problem}; choose {key} from: {allowed}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// The setting that decides: `data.label_column` or `data.image_column`.
        key: &'static str,
        /// The columns that would do.
        allowed: String,
    },
    /// The classes of a file or split cannot be mapped by name to those of another.
    #[error("{what}: classes cannot be mapped by name to those of {of}: {problem}; here: {has}; there: {wanted}")]
    Classes {
        /// The file or split.
        what: String,
        /// The file or split that it must agree with.
        of: String,
        /// What cannot be mapped.
        problem: String,
        /// The names of `what`.
        has: String,
        /// The names of `of`.
        wanted: String,
    },
    /// A path inside the dataset leads out of its folder.
    #[error("{} leads out of the dataset's folder, to {}", path.display(), target.display())]
    Escape {
        /// The entry, usually a symbolic link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Unpacked, the images of a file take more memory than there is.
    #[error(
        "{}: its images take {} of memory, {limit} leaves {}; read it in parts, or on a larger machine",
        path.display(), bytes_text(*needed), bytes_text(*available)
    )]
    Memory {
        /// The file or folder.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that there are.
        available: u64,
        /// What leaves no more.
        limit: String,
    },
    /// A sample number beyond the end.
    #[error("dataset {name} has {len} samples, no sample {index}")]
    OutOfRange {
        /// The dataset's name.
        name: String,
        /// Its number of samples.
        len: usize,
        /// What was asked for.
        index: usize,
    },
    /// A setting that makes no sense.
    #[error("{key} must be {allowed}, not {value}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// The values that it may have.
        allowed: String,
        /// The value that it had.
        value: String,
    },
    /// A conversion would overwrite something.
    #[error("will not overwrite {}", path.display())]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
}

impl DataError {
    /// Process exit code of this error: 65 bad data, 66 no input, 74 input or output failed, 78 too little memory.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Io { source, .. } if refusal_code(source).is_some() => refusal_code(source).unwrap_or(ExitCode::Io),
            Self::NotFound { .. } | Self::Unrecognised { .. } | Self::NoSplit { .. } => ExitCode::NoInput,
            Self::Io { .. } | Self::Exists { .. } => ExitCode::Io,
            Self::Memory { .. } => ExitCode::Config,
            _ => ExitCode::BadData,
        }
    }

    /// Whether the encoded image of one sample is to blame, so that the other samples are as good as ever. A file that
    /// cannot be read at all is not a bad image.
    #[must_use]
    pub fn is_bad_image(&self) -> bool {
        matches!(self, Self::Decode { .. })
    }

    pub(crate) fn malformed(path: &Path, reason: impl ToString) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn sample(path: &Path, sample: usize, reason: impl ToString) -> Self {
        Self::Sample { path: path.to_owned(), sample, reason: reason.to_string() }
    }

    /// The refusal of a third split by data that is no files.
    pub(crate) fn only_train_and_test(format: &str, split: &str) -> Self {
        let hint = "it has the splits train and test".to_owned();
        Self::NoSplit { path: format.into(), split: split.to_owned(), hint }
    }

    /// A failed read: an absent file is `NotFound`, everything else `Io`.
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::NotFound {
            Self::NotFound { path: path.to_owned() }
        } else {
            Self::Io { path: path.to_owned(), action: "read", source }
        }
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action: "write", source }
    }
}
