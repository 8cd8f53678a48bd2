//! The stop flag that every wait of the pipeline polls.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use mlomae_storage::exit_code::ExitCode;

/// How urgently the pipeline shall stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopLevel {
    /// Go on.
    None = 0,
    /// Finish the outer iteration, write a checkpoint, drain and seal the logs.
    Graceful = 1,
    /// Leave every wait at once; nothing more is computed and no checkpoint is written.
    Now = 2,
}

/// What requested the stop first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// SIGINT, Ctrl-C.
    Interrupt = 1,
    /// SIGTERM.
    Terminate = 2,
    /// A stage failed or panicked; the supervisor takes the pipeline down.
    Error = 3,
    /// A measurement has seen enough.
    Enough = 4,
    /// SIGHUP: the terminal is gone.
    HangUp = 5,
    /// SIGUSR2: a scheduler is about to take the machine away.
    Preempt = 6,
    /// SIGXCPU: the processor time that is allowed is used up.
    CpuTime = 7,
}

impl StopReason {
    /// All reasons, in the order of their bits.
    pub const ALL: [Self; 7] =
        [Self::Interrupt, Self::Terminate, Self::Error, Self::Enough, Self::HangUp, Self::Preempt, Self::CpuTime];

    /// The exit code of a process that stopped for this reason.
    #[must_use]
    pub const fn exit_code(self) -> ExitCode {
        match self {
            Self::Interrupt => ExitCode::Interrupt,
            Self::Terminate => ExitCode::Terminate,
            Self::Error => ExitCode::Internal,
            Self::Enough => ExitCode::Ok,
            Self::HangUp => ExitCode::HangUp,
            Self::Preempt => ExitCode::Preempt,
            Self::CpuTime => ExitCode::CpuTime,
        }
    }

    fn from_bits(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == bits)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Error => "error",
            Self::Enough => "end of a measurement",
            Self::HangUp => "SIGHUP",
            Self::Preempt => "SIGUSR2",
            Self::CpuTime => "SIGXCPU",
        })
    }
}

/// A shared flag: its level only rises and its first reason stays.
///
/// Cloning shares the flag.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    /// Bits 0-1: the level; bits 2-4: the first reason.
    bits: Arc<AtomicU8>,
}

impl StopFlag {
    /// A flag that nobody has raised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a stop as a signal does: the first request is graceful, a second one means now.
    pub fn request(&self, reason: StopReason) {
        self.raise(reason, |level| match level {
            StopLevel::None => StopLevel::Graceful,
            StopLevel::Graceful | StopLevel::Now => StopLevel::Now,
        })
    }

    /// Requests that every stage leaves its wait at once.
    pub fn stop_now(&self, reason: StopReason) {
        self.raise(reason, |_| StopLevel::Now);
    }

    /// Requests a graceful stop, however often: a repetition does not make it urgent.
    pub fn stop_gracefully(&self, reason: StopReason) {
        self.raise(reason, |level| level.max(StopLevel::Graceful));
    }

    /// The level that holds now.
    #[must_use]
    pub fn level(&self) -> StopLevel {
        Self::level_of(self.bits.load(Ordering::Acquire))
    }

    /// What requested the stop first; none while nothing did.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        StopReason::from_bits(self.bits.load(Ordering::Acquire) >> 2)
    }

    /// Whether a wait that heeds `heed` must be left.
    #[must_use]
    pub fn concerns(&self, heed: StopLevel) -> bool {
        let level = self.level();
        level != StopLevel::None && level >= heed
    }

    fn raise(&self, reason: StopReason, next: impl Fn(StopLevel) -> StopLevel) {
        let update = |bits: u8| {
            let level = next(Self::level_of(bits)) as u8;
            let reason = if bits >> 2 == 0 { reason as u8 } else { bits >> 2 };
            Some(level | (reason << 2))
        };
        // The update never declines.
        let _ = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    fn level_of(bits: u8) -> StopLevel {
        match bits & 0b11 {
            0 => StopLevel::None,
            1 => StopLevel::Graceful,
            _ => StopLevel::Now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_request_means_now_and_the_first_reason_stays() {
        let flag = StopFlag::new();
        assert_eq!(flag.level(), StopLevel::None);
        assert_eq!(flag.reason(), None);
        assert!(!flag.concerns(StopLevel::Graceful));
        let seen_by_a_stage = flag.clone();
        flag.request(StopReason::Terminate);
        assert_eq!(flag.level(), StopLevel::Graceful);
        assert!(seen_by_a_stage.concerns(StopLevel::Graceful));
        assert!(!seen_by_a_stage.concerns(StopLevel::Now));
        flag.request(StopReason::Interrupt);
        assert_eq!(flag.level(), StopLevel::Now);
        assert!(seen_by_a_stage.concerns(StopLevel::Now));
        assert_eq!(flag.reason(), Some(StopReason::Terminate));
        assert_eq!(flag.reason().map(StopReason::exit_code), Some(ExitCode::Terminate));
    }

    #[test]
    fn every_reason_is_kept_and_repetitions_do_not_hurry() {
        for reason in StopReason::ALL {
            let flag = StopFlag::new();
            flag.stop_gracefully(reason);
            flag.stop_gracefully(StopReason::HangUp);
            assert_eq!((flag.level(), flag.reason()), (StopLevel::Graceful, Some(reason)));
            assert_eq!(reason.exit_code().is_by_signal(), reason.to_string().starts_with("SIG"), "{reason}");
            flag.stop_now(StopReason::Error);
            flag.stop_gracefully(reason);
            assert_eq!((flag.level(), flag.reason()), (StopLevel::Now, Some(reason)), "the level never falls");
        }
    }

    #[test]
    fn the_level_never_falls() {
        let flag = StopFlag::new();
        flag.stop_now(StopReason::Error);
        flag.request(StopReason::Interrupt);
        assert_eq!(flag.level(), StopLevel::Now);
        assert_eq!(flag.reason(), Some(StopReason::Error));
    }
}
