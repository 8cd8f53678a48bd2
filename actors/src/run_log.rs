//! The sink of a run's log stage: records go to the run directory, and with them what the program
//! itself has to say: its logged events and the telemetry's samples.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mlomae_dataflow::exit::StageError;
use mlomae_dataflow::records::{ActorRecord, EventRecord, Level, Moment, Record, RecordBody, Severity};
use mlomae_dataflow::stages::log::{AssembledCheckpoint, RecordSink};

use crate::logging::{EventQueue, LoggedEvent};
use crate::telemetry::{ActorSample, NewestSamples};

/// Rows of each table that were written, in the order metrics, masks, actors, events, evals.
/// Cloning shares the counts.
#[derive(Debug, Clone, Default)]
pub struct RowCounts {
    counts: Arc<[AtomicU64; 5]>,
}

impl RowCounts {
    /// The names of the tables.
    pub const TABLES: [&'static str; 5] = ["metrics", "masks", "actors", "events", "evals"];

    /// The counts now, in the order of [`TABLES`](Self::TABLES).
    #[must_use]
    pub fn get(&self) -> [u64; 5] {
        std::array::from_fn(|table| self.counts[table].load(Ordering::Relaxed))
    }

    fn add(&self, body: &RecordBody) {
        let table = match body {
            RecordBody::Metric(_) => 0,
            RecordBody::Mask(_) => 1,
            RecordBody::Actor(_) => 2,
            RecordBody::Event(_) => 3,
            RecordBody::Eval(_) => 4,
            RecordBody::Part(_) => return,
        };
        self.counts[table].fetch_add(1, Ordering::Relaxed);
    }
}

/// Telemetry's newest samples with a mark of which were written.
#[derive(Debug, Clone, Default)]
struct SampleSource {
    newest: Arc<Mutex<Option<NewestSamples>>>,
    written: Option<Arc<[ActorSample]>>,
}

/// A way to give the sink its samples after it has gone into the pipeline, whose counters make them.
#[derive(Debug, Clone)]
pub struct SampleSlot {
    newest: Arc<Mutex<Option<NewestSamples>>>,
}

impl SampleSlot {
    /// Lets the sink write `samples` from now on.
    pub fn connect(&self, samples: NewestSamples) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(samples);
    }
}

/// Adds the program's own events and samples to the records on their way into `inner`.
///
/// They are taken when the log stage flushes, about once a second, and once more at its end: nothing
/// waits for them and none is lost.
#[derive(Debug)]
pub struct RunLog<K> {
    inner: K,
    events: EventQueue,
    samples: SampleSource,
    counts: RowCounts,
}

impl<K: RecordSink> RunLog<K> {
    /// A sink before `inner` that takes `events` along.
    pub fn new(inner: K, events: EventQueue) -> Self {
        Self { inner, events, samples: SampleSource::default(), counts: RowCounts::default() }
    }

    /// Where the samples are given.
    #[must_use]
    pub fn sample_slot(&self) -> SampleSlot {
        SampleSlot { newest: Arc::clone(&self.samples.newest) }
    }

    /// Rows written so far.
    #[must_use]
    pub fn row_counts(&self) -> RowCounts {
        self.counts.clone()
    }

    fn write_own(&mut self) -> Result<(), StageError> {
        for event in self.events.drain() {
            self.write(event_record(event))?;
        }
        let newest = self.samples.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(newest) = newest.map(|newest| newest.get()) else {
            return Ok(());
        };
        let is_new = self.samples.written.as_ref().is_none_or(|written| !Arc::ptr_eq(written, &newest));
        if is_new {
            for sample in newest.iter() {
                self.write(actor_record(sample))?;
            }
            self.samples.written = Some(newest);
        }
        Ok(())
    }
}

impl<K: RecordSink> RecordSink for RunLog<K> {
    fn write(&mut self, record: Record) -> Result<(), StageError> {
        self.counts.add(&record.body);
        self.inner.write(record)
    }

    fn checkpoint(&mut self, checkpoint: &AssembledCheckpoint) -> Result<String, StageError> {
        self.inner.checkpoint(checkpoint)
    }

    fn flush(&mut self) -> Result<(), StageError> {
        self.write_own()?;
        self.inner.flush()
    }

    fn close(&mut self) -> Result<(), StageError> {
        // The logs are sealed even if the last rows cannot be written; the first error counts.
        let written = self.write_own();
        let closed = self.inner.close();
        written.and(closed)
    }
}

fn event_record(event: LoggedEvent) -> Record {
    let severity = match event.severity {
        "error" => Severity::Error,
        "warn" => Severity::Warning,
        _ => Severity::Info,
    };
    let body = RecordBody::Event(EventRecord {
        severity,
        kind: event.kind.into(),
        stage: event.stage.parse().ok(),
        message: event.message,
        fields: event.fields.into(),
    });
    Record { at: event.time, body }
}

fn actor_record(sample: &ActorSample) -> Record {
    let whole = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    Record::now(RecordBody::Actor(Box::new(ActorRecord {
        // The sink knows the step better than a sampler does.
        moment: Moment { epoch: 0, step: 0, level: Level::Pretrain },
        stage: sample.worker.stage,
        instance: i16::try_from(sample.worker.instance).unwrap_or(i16::MAX),
        counters: sample.counters,
        queue_len: whole(sample.queue_len),
        queue_cap: whole(sample.queue_cap),
        queue_bytes: i64::try_from(sample.queue_bytes).unwrap_or(i64::MAX),
        lag: sample.lag,
    })))
}
