//! Why a run cannot be set up.

use mlomae_model::ModelError;
use mlomae_storage::dataset::{DataError, TargetKind};
use mlomae_storage::exit_code::ExitCode;

use crate::config::ConfigError;
use crate::flow::exit::StageError;
use crate::input::plan::PlanError;

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data has no labels to learn a task from.
    #[error(
        "data: the downstream task needs labels of at least 2 classes, {name} has images of {num_classes}: {labels}"
    )]
    Classes {
        /// The data's name.
        name: String,
        /// Classes with at least one image of the train split.
        num_classes: usize,
        /// Which labels were looked at.
        labels: String,
    },
    /// The data has nothing that a task could learn from.
    #[error("data: a task needs targets of the kind {kind}, {name} has none")]
    NoTargets {
        /// The data's name.
        name: String,
        /// The kind of targets.
        kind: TargetKind,
    },
    /// What is taken for labels tells images apart, not classes.
    #[error("data: the labels of {name} cannot be classes, {problem}: {labels}")]
    NoClasses {
        /// The data's name.
        name: String,
        /// What speaks against it.
        problem: String,
        /// Which labels were looked at.
        labels: String,
    },
    /// The split that shall judge cannot.
    #[error("data.test_split = {wanted}: {problem} in {name} (allowed: auto, test, validation, none)")]
    TestSplit {
        /// The value of `data.test_split`.
        wanted: &'static str,
        /// What is wrong with that split.
        problem: String,
        /// The data's name.
        name: String,
        /// No input if it is not there, bad data if it has no labels.
        exit_code: ExitCode,
    },
    /// The classes of the test role are not those of the train split.
    #[error("{0}; data.test_split = \"none\" trains without it")]
    TestClasses(DataError),
    /// The configuration does not fit the data.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<ConfigError>),
    /// The roles cannot be made.
    #[error("data: {0}")]
    Plan(#[from] PlanError),
    /// The networks cannot be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A sample cannot be read.
    #[error(transparent)]
    Sample(#[from] StageError),
}

impl SetupError {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Data(error) => error.exit_code(),
            Self::TestClasses(error) => error.exit_code(),
            Self::TestSplit { exit_code, .. } => *exit_code,
            Self::Classes { .. } | Self::NoClasses { .. } | Self::NoTargets { .. } | Self::Plan(_) => ExitCode::BadData,
            Self::Model(ModelError::Threads { .. }) => ExitCode::Io,
            Self::Config(_) | Self::Model(_) => ExitCode::Config,
            Self::Sample(error) => error.exit_code(),
        }
    }
}
