//! How a pipeline ended and what happened on the way.

use std::fmt;
use std::time::Duration;

use mlomae_dataflow::flow::counters::Activity;
use mlomae_dataflow::flow::exit::Exit;
use mlomae_dataflow::flow::stage_name::WorkerId;
use mlomae_dataflow::flow::stop::StopReason;
use mlomae_storage::exit_code::ExitCode;

/// The end of one worker.
#[derive(Debug, Clone)]
pub struct WorkerExit {
    /// The worker.
    pub worker: WorkerId,
    /// How it ended.
    pub exit: Exit,
}

/// A worker that has not acknowledged its end, and what it is doing.
#[derive(Debug, Clone)]
pub struct StillRunning {
    /// The worker.
    pub worker: WorkerId,
    /// What it is doing.
    pub activity: Activity,
    /// For how long it has been doing so.
    pub activity_time: Duration,
}

impl fmt::Display for StillRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.activity_time.as_secs_f64();
        write!(f, "{} ({} for {seconds:.1} s)", self.worker, self.activity.as_str())
    }
}

/// Something that the supervisor did or saw. Each is logged once and becomes a row of the `events` table.
#[derive(Debug, Clone)]
pub enum PipelineEvent {
    /// A worker panicked and is run again; its item in hand is lost.
    Restarted {
        /// The worker.
        worker: WorkerId,
        /// The panic's message.
        message: String,
        /// The samples of the lost item.
        lost_sample_ids: Vec<i64>,
        /// How often it may be run again after this.
        restarts_left: u32,
    },
    /// A worker's exit takes the pipeline down.
    Fatal {
        /// The worker.
        worker: WorkerId,
        /// How it ended.
        exit: Exit,
    },
    /// A stop was requested; the pipeline is going down.
    Stopping {
        /// By what.
        reason: StopReason,
    },
    /// A shutdown is waiting for these workers.
    StillRunning {
        /// The workers.
        workers: Vec<StillRunning>,
    },
    /// The graceful stop took too long because of these workers; it becomes a stop at once.
    DeadlinePassed {
        /// The workers.
        workers: Vec<StillRunning>,
    },
    /// These workers did not leave and are given up; their threads end with the process.
    Abandoned {
        /// The workers.
        workers: Vec<StillRunning>,
    },
}

impl PipelineEvent {
    /// The event's `kind` in the `events` table.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Restarted { .. } => "stage_restarted",
            Self::Fatal { .. } => "stage_failed",
            Self::Stopping { .. } => "stopping",
            Self::StillRunning { .. } => "still_running",
            Self::DeadlinePassed { .. } => "stop_deadline_passed",
            Self::Abandoned { .. } => "stage_abandoned",
        }
    }

    pub(crate) fn log(&self) {
        let kind = self.kind();
        match self {
            Self::Restarted { worker, message, lost_sample_ids, restarts_left } => tracing::error!(
                kind,
                stage = %worker.stage,
                instance = worker.instance,
                ?lost_sample_ids,
                restarts_left,
                "{worker} panicked and is run again, {} samples lost: {message}",
                lost_sample_ids.len()
            ),
            Self::Fatal { worker, exit: exit @ Exit::Disconnected } => tracing::debug!(
                kind,
                stage = %worker.stage,
                instance = worker.instance,
                "{worker} {exit}"
            ),
            // The program ends with the same message as its one error line.
            Self::Fatal { worker, exit: Exit::Panicked { message, lost_sample_ids } } => {
                tracing::error!(
                    kind,
                    stage = %worker.stage,
                    instance = worker.instance,
                    ?lost_sample_ids,
                    "{worker} panicked, the run ends: {message}"
                );
            }
            Self::Fatal { worker, exit } => tracing::error!(
                kind,
                stage = %worker.stage,
                instance = worker.instance,
                "{worker} {exit}"
            ),
            Self::Stopping { reason: StopReason::Error } => {
                tracing::info!(kind, "stopping after an error");
            }
            Self::Stopping { reason: StopReason::Enough } => {
                tracing::debug!(kind, "stopping, as the measurement has seen enough");
            }
            Self::Stopping { reason } => {
                tracing::info!(
                    kind,
                    "{reason}: finishing the iteration, then a checkpoint; a second SIGINT or SIGTERM leaves at once"
                )
            }
            Self::StillRunning { workers } => {
                tracing::warn!(kind, "still running: {}", join(workers));
            }
            Self::DeadlinePassed { workers } => {
                tracing::error!(kind, "the stop took too long, leaving: {}", join(workers));
            }
            Self::Abandoned { workers } => {
                tracing::error!(kind, "given up: {}", join(workers));
            }
        }
    }
}

fn join(workers: &[StillRunning]) -> String {
    workers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// How a pipeline ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The workers' ends, in the order in which they were acknowledged.
    pub exits: Vec<WorkerExit>,
    /// Workers that never acknowledged.
    pub abandoned: Vec<StillRunning>,
    /// What happened, in order.
    pub events: Vec<PipelineEvent>,
    /// What requested a stop first, if anything did.
    pub stop_reason: Option<StopReason>,
    /// Set if the supervisor itself failed: nothing is known of the workers then.
    pub supervision_error: Option<String>,
}

impl Outcome {
    /// The outcome of a pipeline whose supervisor failed.
    pub(crate) const fn unsupervised(stop_reason: Option<StopReason>, message: String) -> Self {
        Self {
            exits: Vec::new(),
            abandoned: Vec::new(),
            events: Vec::new(),
            stop_reason,
            supervision_error: Some(message),
        }
    }

    /// The exit that explains a bad end: the most severe, the first of its kind.
    #[must_use]
    pub fn cause(&self) -> Option<&WorkerExit> {
        let mut cause: Option<&WorkerExit> = None;
        for exit in self.exits.iter().filter(|exit| !exit.exit.is_clean()) {
            if cause.is_none_or(|cause| exit.exit.severity() > cause.exit.severity()) {
                cause = Some(exit);
            }
        }
        cause
    }

    /// The process's exit code: the cause's, else 70 if a worker was abandoned, else the signal's,
    /// else 0.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match (self.cause(), self.stop_reason) {
            (Some(cause), _) => cause.exit.exit_code(),
            (None, _) if self.supervision_error.is_some() || !self.abandoned.is_empty() => ExitCode::Internal,
            (None, Some(reason)) => reason.exit_code(),
            (None, None) => ExitCode::Ok,
        }
    }

    /// One line that explains a bad end; none if the end was good or a signal requested it.
    #[must_use]
    pub fn error_message(&self) -> Option<String> {
        if let Some(WorkerExit { worker, exit }) = self.cause() {
            return Some(match exit {
                Exit::Failed(error) => error.to_string(),
                Exit::Panicked { message, .. } => {
                    format!("{worker}: internal error: {message}")
                }
                other => format!("{worker}: {other}"),
            });
        }
        if let Some(message) = &self.supervision_error {
            return Some(format!("internal error: {message}"));
        }
        (!self.abandoned.is_empty()).then(|| format!("did not stop in time: {}", join(&self.abandoned)))
    }

    /// How often workers were run again after a panic.
    #[must_use]
    pub fn num_restarts(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, PipelineEvent::Restarted { .. })).count()
    }
}
