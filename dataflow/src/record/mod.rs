//! What travels to the log stage: rows of the tables, and parts of checkpoints.

mod checkpoint_part;
pub mod memory;
pub mod metric;
pub mod statistics;

use std::sync::Arc;
use std::time::SystemTime;

use mlomae_storage::logs::{LogRow, Row, Text};

use crate::counts::Step;
use crate::flow::ports::Payload;
use crate::flow::stage::{Log, Lost};
use crate::flow::stage_name::WorkerId;

pub use checkpoint_part::{CheckpointFile, CheckpointPart, FlatTensors, PartOf, optimizer_prefix};
pub use metric::Metric;
pub use mlomae_storage::logs::{ActorRow, EvalRow, EventRow, Level, MaskRow, MetricRow, Severity};

/// Where in training a row belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Epoch of the pretrain role.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: Step,
    /// Level.
    pub level: Level,
}

/// What is known of a row's place in training when it is made. The sink derives the rest from the progress at that
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All of it.
    At(Moment),
    /// The level-1 steps done at the reported event.
    Step(Step),
    /// Only the time.
    Made,
}

/// The content of a record.
#[derive(Debug, Clone)]
pub enum RecordBody {
    /// A row of a table.
    Row(When, LogRow),
    /// A part of a checkpoint.
    Part(Arc<CheckpointPart>),
}

/// What travels to the log stage.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it was made.
    pub at: SystemTime,
    /// Its content.
    pub body: RecordBody,
}

impl Record {
    /// A record made now.
    #[must_use]
    pub fn now(body: RecordBody) -> Self {
        Self { at: SystemTime::now(), body }
    }

    /// A row made now.
    #[must_use]
    pub fn row(when: When, row: impl Into<LogRow>) -> Self {
        Self::now(RecordBody::Row(when, row.into()))
    }

    /// An event that happened now.
    #[must_use]
    pub fn event(event: EventRow) -> Self {
        Self::row(When::Made, event)
    }

    /// The row, if it is one of the table of `R`.
    #[must_use]
    pub fn get<R: Row>(&self) -> Option<&R> {
        match &self.body {
            RecordBody::Row(_, row) => row.get(),
            RecordBody::Part(_) => None,
        }
    }
}

impl Payload for Record {
    fn size_bytes(&self) -> usize {
        let inner = match &self.body {
            RecordBody::Row(_, row) => row.heap_bytes(),
            // Weights are shared, but the part may outlive the stage's own use of them.
            RecordBody::Part(part) => part.tensors.iter().map(|tensors| 4 * tensors.values.len()).sum(),
        };
        size_of::<Self>() + inner
    }
}

/// Collects the records of one unit of work, until the loop sends them or the serial executor
/// writes them.
#[derive(Debug, Default)]
pub struct Recorder {
    records: Vec<Record>,
}

impl Recorder {
    /// Adds a row of a table.
    pub fn row(&mut self, moment: Moment, row: impl Into<LogRow>) {
        self.records.push(Record::row(When::At(moment), row));
    }

    /// Adds a number of the list, at the level that it belongs to.
    pub fn metric(&mut self, moment: Moment, metric: Metric, value: f64) {
        self.figure(moment, metric, metric.name(), value, metric.unit());
    }

    /// Adds a number of the kind of `metric` whose name or unit the list does not know: a figure of a downstream task,
    /// or a number of one place in the image.
    pub fn figure(&mut self, moment: Moment, metric: Metric, name: impl Into<Text>, value: f64, unit: &'static str) {
        let moment = Moment { level: metric.level(), ..moment };
        self.row(moment, MetricRow { name: name.into(), value, split: metric.split().into(), unit: unit.into() });
    }

    /// Adds an event.
    pub fn event(&mut self, event: EventRow) {
        self.records.push(Record::event(event));
    }

    /// Adds a part of a checkpoint.
    pub fn part(&mut self, part: CheckpointPart) {
        self.records.push(Record::now(RecordBody::Part(Arc::new(part))));
    }

    /// Takes everything collected, in order.
    pub fn take(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }
}

impl Log for Recorder {
    type Record = Record;

    fn lose(&mut self, worker: WorkerId, unit: u64, lost: &Lost) {
        self.event(EventRow {
            severity: Severity::Error,
            kind: "lost_batch".into(),
            stage: Some(worker.stage.as_str().into()),
            message: format!("{worker} panicked, its batch is lost: {}", lost.message),
            fields: serde_json::json!({
                "instance": worker.instance,
                "unit": unit,
                "sample_ids": lost.sample_ids,
            })
            .to_string(),
        });
    }

    fn take(&mut self) -> Vec<Record> {
        Self::take(self)
    }
}
