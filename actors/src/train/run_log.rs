//! The sink of a run's log stage: records go to the run directory, and with them what the program
//! itself has to say: its logged events and the telemetry's samples.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mlomae_dataflow::flow::exit::StageError;
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::record::{ActorRow, EventRow, MetricRow, Record, RecordBody, Severity, When};
use mlomae_dataflow::stages::log::{AssembledCheckpoint, RecordSink};
use mlomae_storage::logs::Table;

use crate::process::logging::{EventQueue, LoggedEvent};
use crate::roles::telemetry::ActorSample;

/// Rows of each table that were written. Cloning shares the counts.
#[derive(Debug, Clone, Default)]
pub struct RowCounts {
    counts: Arc<[AtomicU64; Table::ALL.len()]>,
}

impl RowCounts {
    /// The count of a table now.
    #[must_use]
    pub fn get(&self, table: Table) -> u64 {
        self.counts[table.index()].load(Ordering::Relaxed)
    }

    fn add(&self, body: &RecordBody) {
        if let RecordBody::Row(_, row) = body {
            self.counts[row.table().index()].fetch_add(1, Ordering::Relaxed);
        }
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
/// waits for them and none is lost. A sample's row gets the step that training had reached, so it is held back until
/// the stages' records of that time have come too: after a checkpoint has been written there is a queue of them.
#[derive(Debug)]
pub struct RunLog<K: RecordSink> {
    inner: K,
    events: EventQueue,
    samples: SampleQueue,
    /// Samples that were taken from the queue and not written yet.
    held: VecDeque<Round>,
    /// Time of the youngest metric that came.
    youngest: SystemTime,
    /// The next flush follows a checkpoint, during which records may have queued up.
    is_behind: bool,
    counts: RowCounts,
    is_closed: bool,
}

impl<K: RecordSink> Drop for RunLog<K> {
    /// Seals the logs of a run that never came to its end: one that could not be started, or whose log stage gave up.
    fn drop(&mut self) {
        if !self.is_closed {
            // What led here is the error to report; what is left unsealed is for a repair.
            let _ = catch_unwind(AssertUnwindSafe(|| self.close()));
        }
    }
}

/// How long a sample waits for a younger record of a stage at most: where none comes, the stages are at rest.
const MAX_HELD: Duration = Duration::from_secs(1);

impl<K: RecordSink> RunLog<K> {
    /// A sink before `inner` that takes `events` along.
    #[must_use]
    pub fn new(inner: K, events: EventQueue) -> Self {
        Self {
            inner,
            events,
            samples: SampleQueue::default(),
            held: VecDeque::new(),
            youngest: SystemTime::UNIX_EPOCH,
            is_behind: false,
            counts: RowCounts::default(),
            is_closed: false,
        }
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

    fn put(&mut self, record: Record) -> Result<(), StageError> {
        self.counts.add(&record.body);
        self.inner.write(record)
    }

    /// Writes the events that wait, and the samples whose step is known or, at the end, all of them.
    fn write_own(&mut self, is_end: bool) -> Result<(), StageError> {
        for event in self.events.drain() {
            self.put(event_record(event))?;
        }
        let (rounds, num_dropped) = self.samples.drain();
        if num_dropped > 0 {
            self.put(Record::event(samples_dropped(num_dropped)))?;
        }
        self.held.extend(rounds);
        let is_behind = std::mem::take(&mut self.is_behind);
        while let Some((at, samples)) = self.held.pop_front() {
            let is_old = !is_behind && at.elapsed().is_ok_and(|age| age > MAX_HELD);
            if !(is_end || at <= self.youngest || is_old) {
                self.held.push_front((at, samples));
                break;
            }
            for sample in &samples {
                self.put(Record { at, ..Record::row(When::Made, actor_row(sample)) })?;
            }
        }
        Ok(())
    }
}

impl<K: RecordSink> RecordSink for RunLog<K> {
    fn write(&mut self, record: Record) -> Result<(), StageError> {
        // Only the stages' metrics show how far training was: the log stage's own records overtake theirs.
        if record.get::<MetricRow>().is_some() {
            self.youngest = self.youngest.max(record.at);
        }
        self.put(record)
    }

    fn checkpoint(&mut self, checkpoint: &AssembledCheckpoint) -> Result<String, StageError> {
        self.is_behind = true;
        self.inner.checkpoint(checkpoint)
    }

    fn flush(&mut self) -> Result<(), StageError> {
        self.write_own(false)?;
        self.inner.flush()
    }

    fn close(&mut self) -> Result<(), StageError> {
        self.is_closed = true;
        // The logs are sealed even if the last rows cannot be written; the first error counts.
        let written = self.write_own(true);
        let closed = self.inner.close();
        written.and(closed)
    }
}

fn event_record(event: LoggedEvent) -> Record {
    let row = EventRow {
        severity: event.severity,
        kind: event.kind.into(),
        stage: event.stage.parse::<StageName>().ok().map(|stage| stage.as_str().into()),
        message: event.message,
        fields: serde_json::Value::Object(event.fields).to_string(),
    };
    Record { at: event.time, ..Record::event(row) }
}

fn samples_dropped(num_dropped: u64) -> EventRow {
    EventRow {
        severity: Severity::Warn,
        kind: "samples_dropped".into(),
        stage: None,
        message: format!("{num_dropped} rounds of samples were dropped, the log stage did not come for them"),
        fields: serde_json::json!({ "num_dropped": num_dropped }).to_string(),
    }
}

fn actor_row(sample: &ActorSample) -> ActorRow {
    let whole = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let seconds = |ns: u64| ns as f64 * 1e-9;
    let counters = &sample.counters;
    ActorRow {
        stage: sample.worker.stage.as_str().into(),
        instance: i16::try_from(sample.worker.instance).unwrap_or(i16::MAX),
        items: counters.items.cast_signed(),
        bytes: counters.bytes.cast_signed(),
        busy_s: seconds(counters.busy_ns),
        wait_in_s: seconds(counters.wait_in_ns),
        wait_out_s: seconds(counters.wait_out_ns),
        queue_len: whole(sample.queue_len),
        queue_cap: whole(sample.queue_cap),
        queue_bytes: i64::try_from(sample.queue_bytes).unwrap_or(i64::MAX),
        utilization: sample.utilization as f32,
        restarts: i32::try_from(counters.restarts).unwrap_or(i32::MAX),
        // The sink knows what was measured at the sample's time.
        lag: 0,
        device_s: counters.device_ns.map(seconds),
    }
}

#[cfg(test)]
mod tests {
    use mlomae_dataflow::counts::{Outer, Step};
    use mlomae_dataflow::flow::counters::StageCounters;
    use mlomae_dataflow::flow::stage_name::{StageName, WorkerId};
    use mlomae_dataflow::record::{Level, Moment};

    use super::*;
    use crate::process::terminal::Terminal;

    /// Says of every row whether it is a sample.
    #[derive(Debug, Default)]
    struct Rows(Vec<bool>);

    impl RecordSink for Rows {
        fn write(&mut self, record: Record) -> Result<(), StageError> {
            self.0.push(record.get::<ActorRow>().is_some());
            Ok(())
        }

        fn checkpoint(&mut self, _: &AssembledCheckpoint) -> Result<String, StageError> {
            Ok(String::new())
        }

        fn flush(&mut self) -> Result<(), StageError> {
            Ok(())
        }

        fn close(&mut self) -> Result<(), StageError> {
            Ok(())
        }
    }

    fn metric(at: SystemTime) -> Record {
        let moment = Moment { epoch: 0, step: Step(1), level: Level::Pretrain };
        let row = MetricRow { name: "loss".into(), value: 1.0, split: "pretrain".into(), unit: "1".into() };
        Record { at, ..Record::row(When::At(moment), row) }
    }

    #[test]
    fn a_sample_waits_for_the_records_of_its_time() {
        let events =
            crate::process::logging::init(crate::process::logging::LogFormat::Human, true, &Terminal::stderr())
                .expect("a filter");
        let mut log = RunLog::new(Rows::default(), events);
        let sample = ActorSample {
            worker: WorkerId { stage: StageName::Encoder, instance: 0 },
            counters: StageCounters::default().snapshot(),
            queue_len: 0,
            queue_cap: 0,
            queue_bytes: 0,
            utilization: 0.0,
        };
        let num = |log: &RunLog<Rows>| log.inner.0.iter().filter(|is_sample| **is_sample).count();
        let before = SystemTime::now();
        log.samples().push(std::slice::from_ref(&sample));
        let checkpoint = AssembledCheckpoint { outer: Outer(1), step: Step(2), parts: Vec::new() };
        log.checkpoint(&checkpoint).expect("noted");
        log.write(metric(before)).expect("written");
        log.flush().expect("flushed");
        assert_eq!(num(&log), 0, "the records of its time are still on their way");
        log.write(metric(SystemTime::now() + Duration::from_millis(1))).expect("written");
        log.flush().expect("flushed");
        assert_eq!(num(&log), 1);
        // At rest it is written all the same, and at the end at once.
        log.samples().push(std::slice::from_ref(&sample));
        let long_ago = SystemTime::now() - 2 * MAX_HELD;
        log.samples.rounds.lock().expect("unpoisoned").waiting[0].0 = long_ago;
        log.youngest = SystemTime::UNIX_EPOCH;
        log.flush().expect("flushed");
        assert_eq!(num(&log), 2);
        log.samples().push(std::slice::from_ref(&sample));
        log.close().expect("closed");
        assert_eq!(num(&log), 3);
    }
}
