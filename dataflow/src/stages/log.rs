//! The log stage: writes records, and a checkpoint when all of its parts have arrived.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mlomae_storage::logs::Table;

use crate::counts::{Outer, Step};
use crate::flow::exit::{Exit, StageError, panic_message};
use crate::flow::fault::FaultPhase;
use crate::flow::ports::{FanInReceiver, Halt, WaitContext};
use crate::flow::stage_name::StageName;
use crate::flow::stop::StopLevel;
use crate::record::{CheckpointPart, EventRow, PartOf, Record, RecordBody, Severity, When};

/// How long the stage waits for a record before it flushes its live streams.
const IDLE: Duration = Duration::from_millis(200);
/// How often the live streams are flushed.
const TICK: Duration = Duration::from_secs(1);

/// The parts of one checkpoint, one of each stage.
#[derive(Debug, Clone)]
pub struct AssembledCheckpoint {
    /// Outer iterations done.
    pub outer: Outer,
    /// Level-1 steps done.
    pub step: Step,
    /// The parts in the order of [`PartOf::ALL`].
    pub parts: Vec<Arc<CheckpointPart>>,
}

/// Where rows and checkpoints are written. The run directory implements it; tests keep them in memory.
pub trait RecordSink: Send {
    /// Writes a row. Checkpoint parts never come here.
    ///
    /// # Errors
    /// [`StageError::Io`].
    fn write(&mut self, record: Record) -> Result<(), StageError>;

    /// Writes a checkpoint durably; returns what to call it in the events.
    ///
    /// # Errors
    /// [`StageError::Io`].
    fn checkpoint(&mut self, checkpoint: &AssembledCheckpoint) -> Result<String, StageError>;

    /// Makes everything written visible to readers; called about once a second and after checkpoints.
    ///
    /// # Errors
    /// [`StageError::Io`].
    fn flush(&mut self) -> Result<(), StageError>;

    /// Seals everything. Nothing is written afterwards.
    ///
    /// # Errors
    /// [`StageError::Io`].
    fn close(&mut self) -> Result<(), StageError>;
}

/// The log stage.
#[derive(Debug)]
pub struct LogStage<K> {
    sink: K,
    pending: BTreeMap<Outer, BTreeMap<PartOf, Arc<CheckpointPart>>>,
    /// Outer iteration of the newest checkpoint.
    newest: Option<Outer>,
    last_flush: Instant,
}

impl<K: RecordSink> LogStage<K> {
    /// A log stage that writes to `sink`.
    pub fn new(sink: K) -> Self {
        Self { sink, pending: BTreeMap::new(), newest: None, last_flush: Instant::now() }
    }

    /// The sink.
    pub const fn sink(&self) -> &K {
        &self.sink
    }

    /// Gives the sink back.
    pub fn into_sink(self) -> K {
        self.sink
    }

    /// Writes a row, or keeps a part until its checkpoint is complete.
    ///
    /// # Errors
    /// [`StageError::Io`] if anything cannot be written.
    pub fn handle(&mut self, record: Record) -> Result<(), StageError> {
        match record.body {
            RecordBody::Part(part) => self.add_part(part)?,
            RecordBody::Row(..) => self.sink.write(record)?,
        }
        if self.last_flush.elapsed() >= TICK { self.flush() } else { Ok(()) }
    }

    /// Flushes the live streams.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn flush(&mut self) -> Result<(), StageError> {
        self.last_flush = Instant::now();
        self.sink.flush()
    }

    /// Ends the logs: an incomplete checkpoint is named in the events, then everything is sealed.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn close(&mut self) -> Result<(), StageError> {
        let mut pending = std::mem::take(&mut self.pending);
        // A complete one is here only if an error or panic prevented its write.
        pending.retain(|_, parts| parts.len() < PartOf::ALL.len());
        for (outer, parts) in pending {
            let missing: Vec<&str> =
                PartOf::ALL.into_iter().filter(|part| !parts.contains_key(part)).map(PartOf::as_str).collect();
            self.sink.write(Record::event(EventRow {
                severity: Severity::Warn,
                kind: "incomplete_checkpoint".into(),
                stage: Some(StageName::Log.as_str().into()),
                message: format!("no checkpoint after outer iteration {outer}: missing {}", missing.join(", ")),
                fields: serde_json::json!({ "outer": outer, "missing": missing }).to_string(),
            }))?;
        }
        self.sink.close()
    }

    fn add_part(&mut self, part: Arc<CheckpointPart>) -> Result<(), StageError> {
        let (outer, step) = (part.outer, part.step);
        // A stage's final state may repeat the checkpoint that fell on its last unit.
        if self.newest.is_some_and(|newest| outer <= newest) {
            return Ok(());
        }
        let parts = self.pending.entry(outer).or_default();
        parts.insert(part.part, part);
        if parts.len() < PartOf::ALL.len() {
            return Ok(());
        }
        // They are kept until the checkpoint is written, since it is retried after a panic.
        let parts = parts.clone();
        let begin = Instant::now();
        let checkpoint = AssembledCheckpoint { outer, step, parts: parts.into_values().collect() };
        let name = self.sink.checkpoint(&checkpoint)?;
        self.newest = Some(outer);
        self.pending.remove(&outer);
        let event = EventRow {
            severity: Severity::Info,
            kind: "checkpoint".into(),
            stage: Some(StageName::Log.as_str().into()),
            message: format!("checkpoint {name}"),
            fields: serde_json::json!({
                "checkpoint": name,
                "outer": outer,
                "step": step,
                "seconds": begin.elapsed().as_secs_f64(),
            })
            .to_string(),
        };
        self.sink.write(Record::row(When::Step(step), event))?;
        self.flush()
    }
}

/// The record that is being written, which a panic may lose.
#[derive(Debug)]
enum InHand {
    /// A part of a checkpoint. Handling it twice is harmless, so it is retried.
    Part(SystemTime, Arc<CheckpointPart>),
    /// A row, by its table. It may have been written already, so it is not written again.
    Row(Table),
}

/// The worker of the log stage. It drains until every sender is gone, whatever the stop flag says,
/// so that nothing that was sent is lost. A panic costs at most the row in hand, which the events
/// name, and never a part of a checkpoint.
#[derive(Debug)]
pub struct LogRunner<K> {
    stage: LogStage<K>,
    receiver: Option<FanInReceiver<Record>>,
    context: WaitContext,
    num_handled: u64,
    in_hand: Option<InHand>,
    /// Of the panic that ended the last run.
    panic_message: Option<String>,
}

impl<K: RecordSink> LogRunner<K> {
    /// A worker that drains `receiver`.
    pub const fn new(stage: LogStage<K>, receiver: FanInReceiver<Record>, context: WaitContext) -> Self {
        Self { stage, receiver: Some(receiver), context, num_handled: 0, in_hand: None, panic_message: None }
    }

    /// The worker's waits and counters, shared.
    pub const fn context(&self) -> &WaitContext {
        &self.context
    }

    /// Runs until every sender is gone, an error or a panic; after a panic it may be run again.
    pub fn run(&mut self) -> Exit {
        let _run = self.context.counters.run();
        let Some(receiver) = self.receiver.take() else {
            return Exit::Failed(StageError::Internal {
                stage: StageName::Log,
                message: "run again after its end".into(),
            });
        };
        match catch_unwind(AssertUnwindSafe(|| self.drain(&receiver))) {
            Ok(Ok(())) if self.context.stop.level() == StopLevel::None => Exit::Finished,
            Ok(Ok(())) => Exit::Stopped,
            Ok(Err(error)) => {
                // The rows written before are still sealed; the first error is reported.
                if let Err(second) = self.stage.close() {
                    tracing::debug!(%second, "logs could not be sealed after an error");
                }
                Exit::Failed(error)
            }
            Err(payload) => {
                self.receiver = Some(receiver);
                self.context.counters.add_restart();
                let message = panic_message(payload.as_ref());
                self.panic_message = Some(message.clone());
                Exit::Panicked { message, lost_sample_ids: Vec::new() }
            }
        }
    }

    fn drain(&mut self, receiver: &FanInReceiver<Record>) -> Result<(), StageError> {
        if let Some(message) = self.panic_message.take() {
            self.resume(&message)?;
        }
        loop {
            self.strike(FaultPhase::Receive);
            match receiver.recv_timeout(IDLE, &self.context.counters) {
                Ok(Some(record)) => self.handle(record)?,
                Ok(None) => self.stage.flush()?,
                Err(Halt::Disconnected | Halt::Stopped) => {
                    self.strike(FaultPhase::Finish);
                    return self.stage.close();
                }
            }
        }
    }

    fn handle(&mut self, record: Record) -> Result<(), StageError> {
        self.context.counters.begin_unit();
        let bytes = crate::flow::ports::Payload::size_bytes(&record);
        self.in_hand = Some(match &record.body {
            RecordBody::Part(part) => InHand::Part(record.at, Arc::clone(part)),
            RecordBody::Row(_, row) => InHand::Row(row.table()),
        });
        self.strike(FaultPhase::Begin);
        self.stage.handle(record)?;
        self.strike(FaultPhase::Process);
        self.in_hand = None;
        self.strike(FaultPhase::Send);
        self.num_handled += 1;
        self.context.counters.add_item(bytes);
        Ok(())
    }

    /// After a panic: a part in hand is handled again, the loss of a row goes into the events.
    fn resume(&mut self, message: &str) -> Result<(), StageError> {
        match self.in_hand.take() {
            Some(InHand::Part(at, part)) => self.handle(Record { at, body: RecordBody::Part(part) }),
            Some(InHand::Row(table)) => {
                self.num_handled += 1;
                self.stage.handle(Record::event(EventRow {
                    severity: Severity::Error,
                    kind: "lost_record".into(),
                    stage: Some(StageName::Log.as_str().into()),
                    message: format!("{} panicked, one row of {table} may be lost: {message}", StageName::Log),
                    fields: serde_json::json!({ "table": table.name() }).to_string(),
                }))
            }
            None => Ok(()),
        }
    }

    fn strike(&self, phase: FaultPhase) {
        self.context.faults.strike(StageName::Log, phase, self.num_handled);
    }
}
