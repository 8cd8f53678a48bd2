//! The stage trait, and the loop that runs a stage's body between its ports.
//!
//! A stage is plain state with one function for one unit of work. The loop here and the serial
//! executor call the same function in the same order, which is why they agree to the bit.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::flow::exit::{Exit, StageError, panic_message};
use crate::flow::fault::FaultPhase;
use crate::flow::ports::{FanInSender, Halt, Payload, WaitContext};
use crate::flow::stage_name::{StageName, WorkerId};
use crate::flow::stop::StopLevel;

/// An item that a panic took: it travels on in the item's place, so that order and counts hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The stage that panicked.
    pub stage: StageName,
    /// The samples of the item.
    pub sample_ids: Vec<i64>,
    /// The panic's message.
    pub message: String,
}

/// What travels in the place of one item.
#[derive(Debug, Clone)]
pub enum Flow<T> {
    /// The item.
    Item(T),
    /// It was lost upstream.
    Lost(Lost),
}

impl<T> Flow<T> {
    /// Applies `f` to an item.
    #[must_use]
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Flow<U> {
        match self {
            Self::Item(item) => Flow::Item(f(item)),
            Self::Lost(lost) => Flow::Lost(lost),
        }
    }

    /// Both items, or the first loss.
    #[must_use]
    pub fn zip<U>(self, other: Flow<U>) -> Flow<(T, U)> {
        match (self, other) {
            (Self::Item(first), Flow::Item(second)) => Flow::Item((first, second)),
            (Self::Lost(lost), _) | (_, Flow::Lost(lost)) => Flow::Lost(lost),
        }
    }
}

impl<T: Payload> Payload for Flow<T> {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Item(item) => item.size_bytes(),
            Self::Lost(lost) => 8 * lost.sample_ids.len(),
        }
    }
}

/// What a stage reports of a unit of work, collected until the loop sends it to the log stage.
pub trait Log: Default + Send {
    /// What travels to the log stage.
    type Record: Payload;

    /// Adds that `worker` panicked and `lost` a unit.
    fn lose(&mut self, worker: WorkerId, unit: u64, lost: &Lost);

    /// Takes everything collected, in order.
    fn take(&mut self) -> Vec<Self::Record>;
}

/// The body of a stage: its state, and what it does with one unit of work.
///
/// Units are numbered over the whole run. What a unit is, is the stage's affair: a level-1 step for
/// `score` and `encoder`, an outer iteration for `evaluator` and `policy`.
pub trait Stage: Send {
    /// Input of one unit.
    type In: Send;
    /// Output of one unit.
    type Out: Send;
    /// Where it reports.
    type Log: Log;
    /// The stage's name.
    const NAME: StageName;

    /// Does one unit of work.
    ///
    /// # Errors
    /// [`StageError`] takes the pipeline down.
    fn process(&mut self, unit: u64, input: Self::In, log: &mut Self::Log) -> Result<Self::Out, StageError>;

    /// Does what remains to do when the unit's input was lost; by default the loss is passed on.
    ///
    /// # Errors
    /// [`StageError`] takes the pipeline down.
    fn skip(&mut self, unit: u64, lost: Lost, log: &mut Self::Log) -> Result<Flow<Self::Out>, StageError> {
        let _ = (unit, log);
        Ok(Flow::Lost(lost))
    }

    /// The samples of a unit's input, reported if a panic takes them.
    fn sample_ids(&mut self, unit: u64, input: &Self::In) -> Vec<i64>;

    /// Whether a graceful stop may come before this unit: true at the place where the pipeline is cut.
    fn may_stop_before(&self, unit: u64) -> bool {
        let _ = unit;
        false
    }

    /// Emits the final state after an orderly end, when `next_unit` would have come next: its parts of the final
    /// checkpoint.
    ///
    /// # Errors
    /// [`StageError`] takes the pipeline down.
    fn finish(&mut self, next_unit: u64, log: &mut Self::Log) -> Result<(), StageError> {
        let _ = (next_unit, log);
        Ok(())
    }

    /// Nanoseconds for which a device has worked for the stage since the last call, by the device's own clock; none
    /// where the host computes. Asked after each unit.
    fn device_ns(&mut self) -> Option<u64> {
        None
    }

    /// Discards what a panic may have left half-done. Called before the next run.
    fn recover(&mut self) {}
}

/// Why a worker could not get or give an item.
#[derive(Debug, Clone)]
pub enum Interrupt {
    /// A wait ended.
    Halt(Halt),
    /// A broken invariant of the wiring.
    Error(StageError),
}

impl From<Halt> for Interrupt {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl From<StageError> for Interrupt {
    fn from(error: StageError) -> Self {
        Self::Error(error)
    }
}

/// The ports of one worker of stage `S`: where the input of a unit comes from and its output goes.
pub trait Wiring<S: Stage>: Send {
    /// Whether the unit is this worker's.
    fn owns(&self, unit: u64) -> bool {
        let _ = unit;
        true
    }

    /// Waits for the unit's input, for a stop of level `heed`, or for the end of its producer.
    ///
    /// # Errors
    /// [`Interrupt`].
    fn receive(&mut self, unit: u64, heed: StopLevel, context: &WaitContext) -> Result<Flow<S::In>, Interrupt>;

    /// Hands the unit's output on; returns its bytes.
    ///
    /// # Errors
    /// [`Interrupt`].
    fn send(&mut self, unit: u64, output: Flow<S::Out>, context: &WaitContext) -> Result<usize, Interrupt>;
}

/// What the log of stage `S` sends.
type RecordOf<S> = <<S as Stage>::Log as Log>::Record;

/// One worker: a stage with its ports, which runs over its units.
///
/// [`run`](Self::run) returns at the end, at a stop, at an error and at a panic. After a panic it may
/// be called again: it hands on the loss of the unit in hand and continues with the next. After any
/// other end the ports are dropped, which is how neighbours learn of it.
pub struct StageRunner<S: Stage, W: Wiring<S>> {
    stage: S,
    id: WorkerId,
    units: Range<u64>,
    context: WaitContext,
    log: S::Log,
    ports: Option<(W, FanInSender<RecordOf<S>>)>,
    /// The samples of the unit that is being worked on, from when its input has been taken until its output has been
    /// handed on.
    in_hand: Option<Vec<i64>>,
    /// Of the panic that ended the last run.
    panic_message: Option<String>,
}

impl<S: Stage, W: Wiring<S>> StageRunner<S, W> {
    /// A worker over `units`, of which it does those that `wiring` owns.
    #[must_use]
    pub fn new(
        stage: S,
        instance: usize,
        units: Range<u64>,
        wiring: W,
        log: FanInSender<RecordOf<S>>,
        context: WaitContext,
    ) -> Self {
        Self {
            stage,
            id: WorkerId { stage: S::NAME, instance },
            units,
            context,
            log: S::Log::default(),
            ports: Some((wiring, log)),
            in_hand: None,
            panic_message: None,
        }
    }

    /// The worker's waits and counters, shared.
    #[must_use]
    pub const fn context(&self) -> &WaitContext {
        &self.context
    }

    /// Which worker it is.
    #[must_use]
    pub const fn id(&self) -> WorkerId {
        self.id
    }

    /// Runs until the end, a stop, an error or a panic.
    pub fn run(&mut self) -> Exit {
        let _run = self.context.counters.run();
        let Some(mut ports) = self.ports.take() else {
            return Exit::Failed(self.internal("run again after its end"));
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run_units(&mut ports)));
        match outcome {
            Ok(exit) => exit,
            Err(payload) => {
                self.ports = Some(ports);
                let message = panic_message(payload.as_ref());
                self.panic_message = Some(message.clone());
                let lost_sample_ids = self.in_hand.clone().unwrap_or_default();
                Exit::Panicked { message, lost_sample_ids }
            }
        }
    }

    fn run_units(&mut self, ports: &mut (W, FanInSender<RecordOf<S>>)) -> Exit {
        match self.try_run_units(ports) {
            Ok(exit) => exit,
            Err(Interrupt::Error(error)) => Exit::Failed(error),
            Err(Interrupt::Halt(Halt::Stopped)) => Exit::Stopped,
            Err(Interrupt::Halt(Halt::Disconnected)) => match self.context.stop.level() {
                StopLevel::None => Exit::Disconnected,
                StopLevel::Graceful | StopLevel::Now => Exit::Stopped,
            },
        }
    }

    fn try_run_units(&mut self, ports: &mut (W, FanInSender<RecordOf<S>>)) -> Result<Exit, Interrupt> {
        if let Some(message) = self.panic_message.take() {
            self.resume(message, ports)?;
        }
        loop {
            while self.units.start < self.units.end && !ports.0.owns(self.units.start) {
                self.units.start += 1;
            }
            let unit = self.units.start;
            if unit >= self.units.end {
                self.finish(unit, &ports.1)?;
                return Ok(Exit::Finished);
            }
            let heed = if self.stage.may_stop_before(unit) { StopLevel::Graceful } else { StopLevel::Now };
            self.context.counters.begin_unit();
            let received = if self.context.stop.concerns(heed) {
                Err(Interrupt::Halt(Halt::Stopped))
            } else {
                self.strike(FaultPhase::Receive, unit);
                ports.0.receive(unit, heed, &self.context)
            };
            let input = match received {
                Ok(input) => input,
                // Both a stop heeded here and a neighbour that ended by a graceful stop are an orderly end.
                Err(Interrupt::Halt(_)) if self.context.stop.level() == StopLevel::Graceful => {
                    self.finish(unit, &ports.1)?;
                    return Ok(Exit::Stopped);
                }
                Err(interrupt) => return Err(interrupt),
            };
            let output = match input {
                Flow::Item(item) => {
                    // A panic while the samples are noted still loses the item, whose place must be filled.
                    self.in_hand = Some(Vec::new());
                    self.in_hand = Some(self.stage.sample_ids(unit, &item));
                    self.strike(FaultPhase::Begin, unit);
                    let output = self.stage.process(unit, item, &mut self.log)?;
                    if let Some(ns) = self.stage.device_ns() {
                        self.context.counters.add_device(ns);
                    }
                    self.strike(FaultPhase::Process, unit);
                    Flow::Item(output)
                }
                Flow::Lost(lost) => {
                    self.in_hand = Some(lost.sample_ids.clone());
                    self.stage.skip(unit, lost, &mut self.log)?
                }
            };
            self.strike(FaultPhase::Send, unit);
            let bytes = ports.0.send(unit, output, &self.context)?;
            self.in_hand = None;
            self.units.start += 1;
            self.context.counters.add_item(bytes);
            self.flush(&ports.1)?;
        }
    }

    /// After a panic: the loss of what was in hand goes on in the unit's place, and into the events.
    fn resume(&mut self, message: String, ports: &mut (W, FanInSender<RecordOf<S>>)) -> Result<(), Interrupt> {
        self.stage.recover();
        self.context.counters.add_restart();
        // What the unit recorded before its panic belongs to a result that does not exist.
        self.log.take();
        let Some(sample_ids) = self.in_hand.take() else {
            return Ok(());
        };
        let lost = Lost { stage: S::NAME, sample_ids, message };
        let unit = self.units.start;
        self.log.lose(self.id, unit, &lost);
        ports.0.send(unit, Flow::Lost(lost), &self.context)?;
        self.units.start += 1;
        self.flush(&ports.1)
    }

    fn finish(&mut self, next_unit: u64, to_log: &FanInSender<RecordOf<S>>) -> Result<(), Interrupt> {
        self.strike(FaultPhase::Finish, next_unit);
        self.stage.finish(next_unit, &mut self.log)?;
        self.flush(to_log)
    }

    fn flush(&mut self, to_log: &FanInSender<RecordOf<S>>) -> Result<(), Interrupt> {
        for record in self.log.take() {
            to_log.send(record, &self.context)?;
        }
        Ok(())
    }

    fn strike(&self, phase: FaultPhase, unit: u64) {
        self.context.faults.strike(S::NAME, phase, unit);
    }

    fn internal(&self, message: &str) -> StageError {
        StageError::Internal { stage: S::NAME, message: message.to_owned() }
    }
}

impl<S: Stage, W: Wiring<S>> std::fmt::Debug for StageRunner<S, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StageRunner({}, units {:?})", self.id, self.units)
    }
}
