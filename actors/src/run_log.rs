//! The sink of a run's log stage: records go to the run directory, and with them what the program
//! itself has to say: its logged events and the telemetry's samples.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mlomae_dataflow::exit::StageError;
use mlomae_dataflow::records::{ActorRecord, EventRecord, Level, Moment, Record, RecordBody, Severity};
use mlomae_dataflow::stages::log::{AssembledCheckpoint, RecordSink};

use crate::logging::{EventQueue, LoggedEvent};
use crate::telemetry::ActorSample;

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

/// Rounds of samples that wait for the log stage at most: 25 seconds of the shortest period.
const MAX_ROUNDS: usize = 256;

/// One sample of every worker, and when they were taken.
type Round = (SystemTime, Vec<ActorSample>);

#[derive(Debug, Default)]
struct Rounds {
    waiting: VecDeque<Round>,
    num_dropped: u64,
}

/// Telemetry's samples on their way to the `actors` table. It is bounded: if the log stage does not come
/// for them, the oldest are dropped and counted. Cloning shares the queue.
#[derive(Debug, Clone, Default)]
pub struct SampleQueue {
    rounds: Arc<Mutex<Rounds>>,
}

impl SampleQueue {
    /// Adds a round that was taken now; never waits for the log stage.
    pub fn push(&self, samples: &[ActorSample]) {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if rounds.waiting.len() == MAX_ROUNDS {
            rounds.waiting.pop_front();
            rounds.num_dropped += 1;
        }
        rounds.waiting.push_back((SystemTime::now(), samples.to_vec()));
    }

    /// Takes everything that waits, and the number of rounds that were dropped since the last call.
    fn drain(&self) -> (VecDeque<Round>, u64) {
        let rounds = std::mem::take(&mut *self.rounds.lock().unwrap_or_else(PoisonError::into_inner));
        (rounds.waiting, rounds.num_dropped)
    }
}

/// Adds the program's own events and samples to the records on their way into `inner`.
///
/// They are taken when the log stage flushes, about once a second, and once more at its end: nothing
/// waits for them and none is lost.
#[derive(Debug)]
pub struct RunLog<K: RecordSink> {
    inner: K,
    events: EventQueue,
    samples: SampleQueue,
    counts: RowCounts,
    is_closed: bool,
}

impl<K: RecordSink> Drop for RunLog<K> {
    /// Seals the logs of a run that never came to its end: one that could not be begun, or whose log stage gave up.
    fn drop(&mut self) {
        if !self.is_closed {
            // What led here is the error to report; what is left unsealed is for a repair.
            let _ = catch_unwind(AssertUnwindSafe(|| self.close()));
        }
    }
}

impl<K: RecordSink> RunLog<K> {
    /// A sink before `inner` that takes `events` along.
    pub fn new(inner: K, events: EventQueue) -> Self {
        Self { inner, events, samples: SampleQueue::default(), counts: RowCounts::default(), is_closed: false }
    }

    /// Where the samples are given.
    #[must_use]
    pub fn samples(&self) -> SampleQueue {
        self.samples.clone()
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
        let (rounds, num_dropped) = self.samples.drain();
        if num_dropped > 0 {
            self.write(Record::event(samples_dropped(num_dropped)))?;
        }
        for (at, samples) in rounds {
            for sample in &samples {
                self.write(Record { at, body: actor_record(sample) })?;
            }
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
        self.is_closed = true;
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
        step: None,
        message: event.message,
        fields: event.fields.into(),
    });
    Record { at: event.time, body }
}

fn samples_dropped(num_dropped: u64) -> EventRecord {
    EventRecord {
        severity: Severity::Warning,
        kind: "samples_dropped".into(),
        stage: None,
        step: None,
        message: format!("{num_dropped} rounds of samples were dropped, the log stage did not come for them"),
        fields: serde_json::Map::from_iter([("num_dropped".to_owned(), num_dropped.into())]).into(),
    }
}

fn actor_record(sample: &ActorSample) -> RecordBody {
    let whole = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    RecordBody::Actor(Box::new(ActorRecord {
        // The sink knows the step better than a sampler does.
        moment: Moment { epoch: 0, step: 0, level: Level::Pretrain },
        stage: sample.worker.stage,
        instance: i16::try_from(sample.worker.instance).unwrap_or(i16::MAX),
        counters: sample.counters,
        queue_len: whole(sample.queue_len),
        queue_cap: whole(sample.queue_cap),
        queue_bytes: i64::try_from(sample.queue_bytes).unwrap_or(i64::MAX),
        utilization: sample.utilization as f32,
        lag: sample.lag,
    }))
}
