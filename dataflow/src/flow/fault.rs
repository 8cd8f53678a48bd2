//! Faults injected into a run, to show that it survives them.
//!
//! A plan reaches the stages with the [`WaitContext`](crate::flow::ports::WaitContext) of their workers; without one, a
//! stage checks an empty option and nothing else. The program `mlomae` has no way to give one; the binary of the
//! end-to-end tests has. Serial runs take no faults.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::flow::stage_name::StageName;

/// Where in a worker's loop a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultPhase {
    /// Before the input is waited for: nothing is in hand.
    Receive,
    /// The input has been taken, nothing has been done with it.
    Begin,
    /// The body has done its work and changed its state; the result has gone nowhere.
    Process,
    /// The result is about to be handed on; for the log stage, a record has been written.
    Send,
    /// Before the final state that an orderly end emits.
    Finish,
}

impl FaultPhase {
    /// Every phase, in the order of a worker's life.
    pub const ALL: [Self; 5] = [Self::Receive, Self::Begin, Self::Process, Self::Send, Self::Finish];

    /// The name as written in a plan.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Begin => "begin",
            Self::Process => "process",
            Self::Send => "send",
            Self::Finish => "finish",
        }
    }
}

impl fmt::Display for FaultPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Panics.
    Panic,
    /// Sleeps for so long, whatever the stop flag says.
    Hang(Duration),
}

/// One fault. It strikes once.
#[derive(Debug)]
struct Fault {
    stage: StageName,
    phase: FaultPhase,
    /// The unit of work; none for whichever comes first.
    unit: Option<u64>,
    kind: FaultKind,
    has_struck: AtomicBool,
}

/// Faults by stage, phase and unit. Cloning shares which have struck; the default has none.
///
/// As text: `STAGE:PHASE:UNIT:KIND`, several divided by commas, as in
/// `score:process:3:panic,policy:send:any:hang=2.5`. A unit is what the stage counts: level-1 steps
/// for score and encoder, outer iterations for evaluator and policy, batches for load, records for
/// log. The unit of the phase `finish` is the one that would have come next.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    faults: Option<Arc<[Fault]>>,
}

impl FaultPlan {
    /// Does what the plan has for this place, once.
    ///
    /// # Panics
    /// If that is a panic.
    #[inline]
    pub fn strike(&self, stage: StageName, phase: FaultPhase, unit: u64) {
        if let Some(faults) = &self.faults {
            strike(faults, stage, phase, unit);
        }
    }
}

#[cold]
fn strike(faults: &[Fault], stage: StageName, phase: FaultPhase, unit: u64) {
    let here = |fault: &&Fault| {
        (fault.stage, fault.phase) == (stage, phase)
            && fault.unit.is_none_or(|wanted| wanted == unit)
            && !fault.has_struck.swap(true, Ordering::AcqRel)
    };
    match faults.iter().find(here).map(|fault| fault.kind) {
        Some(FaultKind::Panic) => panic!("injected fault at {stage}:{phase}:{unit}"),
        Some(FaultKind::Hang(time)) => std::thread::sleep(time),
        None => {}
    }
}

/// Why a text is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultPlanError {
    /// A fault without its four parts.
    #[error("a fault is STAGE:PHASE:UNIT:KIND: {0}")]
    Form(String),
    /// No stage of that name.
    #[error("{0}")]
    Stage(String),
    /// No phase of that name.
    #[error("not a phase (receive, begin, process, send, finish): {0}")]
    Phase(String),
    /// No number of a unit.
    #[error("not a unit (a whole number or any): {0}")]
    Unit(String),
    /// No kind of that name.
    #[error("not a kind (panic, hang=SECONDS): {0}")]
    Kind(String),
}

impl FromStr for FaultPlan {
    type Err = FaultPlanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let faults: Vec<Fault> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { faults: Some(faults.into()) })
    }
}

impl FromStr for Fault {
    type Err = FaultPlanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.trim().split(':').collect();
        let [stage, phase, unit, kind] = parts[..] else {
            return Err(FaultPlanError::Form(text.to_owned()));
        };
        Ok(Self {
            stage: stage.parse().map_err(FaultPlanError::Stage)?,
            phase: FaultPhase::ALL
                .into_iter()
                .find(|known| known.as_str() == phase)
                .ok_or_else(|| FaultPlanError::Phase(phase.to_owned()))?,
            unit: match unit {
                "any" => None,
                number => Some(number.parse().map_err(|_| FaultPlanError::Unit(number.to_owned()))?),
            },
            kind: parse_kind(kind).ok_or_else(|| FaultPlanError::Kind(kind.to_owned()))?,
            has_struck: AtomicBool::new(false),
        })
    }
}

fn parse_kind(text: &str) -> Option<FaultKind> {
    if text == "panic" {
        return Some(FaultKind::Panic);
    }
    let seconds: f64 = text.strip_prefix("hang=")?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().map(FaultKind::Hang)
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::time::Instant;

    use super::*;
    use FaultPhase::{Process, Send};
    use StageName::{Policy, Score};

    #[test]
    fn a_fault_strikes_once_at_its_place() {
        let plan: FaultPlan = "score:process:3:panic,policy:send:any:hang=0.02".parse().expect("a plan");
        let strike = |stage, phase, unit| {
            let plan = plan.clone();
            catch_unwind(move || plan.strike(stage, phase, unit)).is_err()
        };
        for (stage, phase, unit) in [(Score, Process, 2), (Score, Send, 3), (Policy, Process, 3)] {
            assert!(!strike(stage, phase, unit));
        }
        assert!(strike(Score, Process, 3));
        assert!(!strike(Score, Process, 3), "once");
        let begin = Instant::now();
        assert!(!strike(Policy, Send, 7));
        assert!(begin.elapsed() >= Duration::from_millis(20));
        assert!(catch_unwind(|| FaultPlan::default().strike(Score, Process, 3)).is_ok());
    }

    #[test]
    fn a_text_that_is_no_plan_is_refused_by_its_part() {
        for (text, culprit) in [
            ("", "STAGE:PHASE:UNIT:KIND"),
            ("score:process:3", "STAGE:PHASE:UNIT:KIND"),
            ("scorer:process:3:panic", "scorer"),
            ("score:work:3:panic", "work"),
            ("score:process:-3:panic", "-3"),
            ("score:process:3:hang", "hang"),
            ("score:process:3:hang=-1", "hang=-1"),
            ("score:process:3:panic,", "STAGE:PHASE:UNIT:KIND"),
        ] {
            let error = text.parse::<FaultPlan>().expect_err(text).to_string();
            assert!(error.contains(culprit), "{text}: {error}");
        }
    }
}
