//! How a stage's run ended, and what that means for the pipeline and for the process.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mlomae_storage::exit_code::ExitCode;

pub use mlomae_storage::guard::panic_message;

use crate::flow::stage_name::StageName;

/// An error that a stage's body returns. It always takes the pipeline down.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StageError {
    /// Data that cannot be read or has a wrong form.
    #[error("{stage}: {message}")]
    Data {
        /// The stage that met it.
        stage: StageName,
        /// One line: what, where, allowed values.
        message: String,
        /// Bad data, no input, or a read error.
        exit_code: ExitCode,
    },
    /// A number that is not finite, named by where it was met first.
    #[error("{level}: {quantity} is not finite at step {step}: {value}")]
    NonFinite {
        /// The level of the method: pretrain, finetune or mask.
        level: String,
        /// The loss or the tensor.
        quantity: String,
        /// Level-1 steps done before.
        step: u64,
        /// The value: NaN or an infinity.
        value: f64,
    },
    /// A log or checkpoint that could not be written.
    #[error("{stage}: {message}")]
    Io {
        /// The stage that met it.
        stage: StageName,
        /// One line with the path.
        message: String,
    },
    /// A broken invariant of the program.
    #[error("{stage}: internal error: {message}")]
    Internal {
        /// The stage that met it.
        stage: StageName,
        /// What does not hold.
        message: String,
    },
}

impl StageError {
    /// The exit code of a process that ends by this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Data { exit_code, .. } => *exit_code,
            Self::Io { .. } => ExitCode::Io,
            Self::NonFinite { .. } | Self::Internal { .. } => ExitCode::Internal,
        }
    }
}

/// How one run of one worker of a stage ended.
#[derive(Debug, Clone)]
pub enum Exit {
    /// All units of work are done.
    /// Takes the pipeline down: no; the others finish theirs.
    Finished,
    /// The stop flag was heeded.
    /// Takes the pipeline down: it is going down already.
    Stopped,
    /// A neighbour is gone, and no stop was requested.
    /// Takes the pipeline down: yes, but the neighbour's exit is the cause to be reported.
    Disconnected,
    /// The body panicked.
    /// Takes the pipeline down: yes for encoder, evaluator and policy; load, score and log are run
    /// again, up to the allowed number of restarts, and the item in hand is lost.
    Panicked {
        /// The panic's message.
        message: String,
        /// The samples of the lost item; empty if nothing was in hand.
        lost_sample_ids: Vec<i64>,
    },
    /// The body returned an error.
    /// Takes the pipeline down: yes.
    Failed(StageError),
}

impl Exit {
    /// Whether the worker ended as it should: nothing to report.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        matches!(self, Self::Finished | Self::Stopped)
    }

    /// Whether this exit of a worker of `stage` takes the pipeline down when `restarts_left`
    /// further runs are allowed.
    #[must_use]
    pub const fn takes_pipeline_down(&self, stage: StageName, restarts_left: u32) -> bool {
        match self {
            Self::Finished | Self::Stopped => false,
            Self::Disconnected | Self::Failed(_) => true,
            Self::Panicked { .. } => !stage.is_restartable() || restarts_left == 0,
        }
    }

    /// The process's exit code if this exit is its cause. A stop has the code of its reason,
    /// which the stop flag knows; it is [`ExitCode::Ok`] here.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Finished | Self::Stopped => ExitCode::Ok,
            Self::Disconnected | Self::Panicked { .. } => ExitCode::Internal,
            Self::Failed(error) => error.exit_code(),
        }
    }

    /// How much this exit explains when several workers ended badly: the greatest is the cause.
    #[must_use]
    pub const fn severity(&self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Stopped => 1,
            Self::Disconnected => 2,
            Self::Panicked { .. } => 3,
            Self::Failed(_) => 4,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("finished"),
            Self::Stopped => f.write_str("stopped"),
            Self::Disconnected => f.write_str("disconnected"),
            Self::Panicked { message, lost_sample_ids } => {
                write!(f, "panicked, {} samples lost: {message}", lost_sample_ids.len())
            }
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

/// Runs `body` and turns a panic into [`Exit::Panicked`] with no lost samples; the caller, who
/// knows what was in hand, fills them in.
#[must_use]
pub fn catch_panic(body: impl FnOnce() -> Exit) -> Exit {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(exit) => exit,
        Err(payload) => Exit::Panicked { message: panic_message(payload.as_ref()), lost_sample_ids: Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_exit_with_its_message() {
        let exit = catch_panic(|| panic!("batch {}", 7));
        assert!(matches!(&exit, Exit::Panicked { message, .. } if message == "batch 7"));
        assert_eq!(exit.exit_code(), 70);
    }

    #[test]
    fn only_stateless_stages_survive_a_panic_and_only_while_restarts_are_left() {
        let exit = catch_panic(|| panic!("x"));
        for stage in StageName::ALL {
            let stateless = matches!(stage, StageName::Load | StageName::Score | StageName::Log);
            assert_eq!(exit.takes_pipeline_down(stage, 1), !stateless, "{stage}");
            assert!(exit.takes_pipeline_down(stage, 0), "{stage}");
        }
    }

    #[test]
    fn the_exit_code_is_the_errors() {
        let data =
            StageError::Data { stage: StageName::Load, message: "sample 3".into(), exit_code: ExitCode::BadData };
        assert_eq!(Exit::Failed(data).exit_code(), 65);
    }
}
