//! What travels to the log stage: rows of the tables, and parts of checkpoints.

pub mod memory;
pub mod statistics;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use mlomae_model::Params;
use mlomae_model::layout::SharedLayout;
use mlomae_model::levels::optimizer::AdamW;

use crate::flow::ports::Payload;
use crate::flow::stage::{Log, Lost};
use crate::flow::stage_name::{StageName, WorkerId};

pub use mlomae_storage::logs::Level;

/// Where in training a row belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Epoch of the pretrain role.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: i64,
    /// Level.
    pub level: Level,
}

/// One number of the `metrics` table.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRecord {
    /// Where in training.
    pub moment: Moment,
    /// Name, as `loss` or `hypergradient_norm`.
    pub name: Cow<'static, str>,
    /// Value.
    pub value: f64,
    /// The role that it was measured on.
    pub split: &'static str,
    /// Unit, as `1`, `images/s` or `bytes`.
    pub unit: &'static str,
}

/// One row of the `masks` table.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskRecord {
    /// Where in training.
    pub moment: Moment,
    /// The sample.
    pub sample_id: i64,
    /// Its label.
    pub label: Option<i32>,
    /// Policy updates before the scoring.
    pub policy_version: i64,
    /// Share of masked patches.
    pub mask_ratio: f32,
    /// Whether each patch is masked, \[L].
    pub mask: Vec<bool>,
    /// Score of each patch, \[L].
    pub score: Vec<f32>,
    /// Reconstruction loss of each patch, \[L].
    pub patch_loss: Vec<f32>,
    /// Rows and columns of patches.
    pub grid: (i16, i16),
}

/// One row of the `actors` table: a worker's counters, which are cumulative, and its input queue.
#[derive(Debug, Clone, PartialEq)]
pub struct ActorRecord {
    /// Where in training.
    pub moment: Moment,
    /// The stage.
    pub stage: StageName,
    /// The worker's number.
    pub instance: i16,
    /// The worker's counters.
    pub counters: crate::flow::counters::CountersSnapshot,
    /// Items in the input queue.
    pub queue_len: i32,
    /// Items that the input queue can hold.
    pub queue_cap: i32,
    /// Payload bytes in the input queue.
    pub queue_bytes: i64,
    /// Share of the time since the sample before in which the worker worked, in 0..=1.
    pub utilization: f32,
    /// Outer iterations between the policy in use and the newest.
    pub lag: i32,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// For the record.
    Info,
    /// Something is not as it should be; the run goes on.
    Warning,
    /// Something was lost, or the run ends.
    Error,
}

impl Severity {
    /// The name as written in the logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One row of the `events` table.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// How much it matters.
    pub severity: Severity,
    /// Kind, as `checkpoint` or `lost_batch`.
    pub kind: Cow<'static, str>,
    /// The stage that it is about.
    pub stage: Option<StageName>,
    /// Level-1 steps done at what it tells of, where that is not simply the time at which it was made.
    pub step: Option<i64>,
    /// One line.
    pub message: String,
    /// Further fields, a JSON object.
    pub fields: serde_json::Value,
}

/// One row of the `evals` table.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalRecord {
    /// Where in training.
    pub moment: Moment,
    /// `knn` or `linear_probe`.
    pub task: Cow<'static, str>,
    /// Role that it was measured on.
    pub split: &'static str,
    /// Name of the number, as `accuracy`.
    pub metric: Cow<'static, str>,
    /// Value.
    pub value: f64,
    /// Images.
    pub num_samples: i64,
    /// The checkpoint that was evaluated; empty for live weights.
    pub checkpoint: String,
    /// Time taken.
    pub seconds: f64,
}

/// The stages whose states make a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartOf {
    /// θ and its optimizer.
    Encoder,
    /// The head c and its optimizer.
    Evaluator,
    /// φ, its versions in flight and its optimizer.
    Policy,
}

impl PartOf {
    /// Every part of a checkpoint.
    pub const ALL: [Self; 3] = [Self::Encoder, Self::Evaluator, Self::Policy];
}

/// The file of a checkpoint that tensors go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckpointFile {
    /// `model.safetensors`.
    Model,
    /// `head.safetensors`.
    Head,
    /// `mask.safetensors`.
    Mask,
    /// `optimizer.safetensors`.
    Optimizer,
}

/// The tensors of one flat vector, shared with the stage: making a part copies no weights.
#[derive(Debug, Clone)]
pub struct FlatTensors {
    /// The file.
    pub file: CheckpointFile,
    /// Put before each tensor's name.
    pub prefix: String,
    /// Names, shapes and places.
    pub layout: SharedLayout,
    /// The values.
    pub values: Params,
}

impl FlatTensors {
    /// `values` laid out as `layout`, for `file`.
    #[must_use]
    pub fn new(file: CheckpointFile, prefix: impl Into<String>, layout: &SharedLayout, values: Params) -> Self {
        Self { file, prefix: prefix.into(), layout: layout.clone(), values }
    }

    /// Both moments of an optimizer, as `NAME.m.` and `NAME.v.`. They are copied: the optimizer goes on with its own.
    #[must_use]
    pub fn moments(name: &str, layout: &SharedLayout, optimizer: &AdamW) -> [Self; 2] {
        [("m", &optimizer.m), ("v", &optimizer.v)].map(|(moment, values)| {
            Self::new(CheckpointFile::Optimizer, format!("{name}.{moment}."), layout, Arc::new(values.clone()))
        })
    }
}

/// One stage's part of the checkpoint after `outer` outer iterations.
#[derive(Debug, Clone)]
pub struct CheckpointPart {
    /// Outer iterations done.
    pub outer: u64,
    /// Level-1 steps done.
    pub step: u64,
    /// Whose state it is.
    pub part: PartOf,
    /// Tensors.
    pub tensors: Vec<FlatTensors>,
    /// What else the stage needs to go on: an object.
    pub state: serde_json::Value,
}

/// The content of a record.
#[derive(Debug, Clone)]
pub enum RecordBody {
    /// A row of `metrics`.
    Metric(MetricRecord),
    /// A row of `masks`.
    Mask(Box<MaskRecord>),
    /// A row of `actors`.
    Actor(Box<ActorRecord>),
    /// A row of `events`.
    Event(EventRecord),
    /// A row of `evals`.
    Eval(Box<EvalRecord>),
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

    /// An event made now.
    #[must_use]
    pub fn event(event: EventRecord) -> Self {
        Self::now(RecordBody::Event(event))
    }
}

impl Payload for Record {
    fn size_bytes(&self) -> usize {
        let inner = match &self.body {
            RecordBody::Mask(mask) => mask.mask.len() + 4 * (mask.score.len() + mask.patch_loss.len()),
            RecordBody::Event(event) => event.message.len(),
            // Weights are shared, but the part may outlive the stage's own use of them.
            RecordBody::Part(part) => part.tensors.iter().map(|tensors| 4 * tensors.values.len()).sum(),
            RecordBody::Metric(_) | RecordBody::Actor(_) | RecordBody::Eval(_) => 0,
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
    /// Adds a record.
    pub fn push(&mut self, body: RecordBody) {
        self.records.push(Record::now(body));
    }

    /// Adds a number measured on `split`.
    pub fn metric(
        &mut self,
        moment: Moment,
        name: impl Into<Cow<'static, str>>,
        value: f64,
        split: &'static str,
        unit: &'static str,
    ) {
        self.push(RecordBody::Metric(MetricRecord { moment, name: name.into(), value, split, unit }));
    }

    /// Adds an event.
    pub fn event(&mut self, event: EventRecord) {
        self.push(RecordBody::Event(event));
    }

    /// Adds a part of a checkpoint.
    pub fn part(&mut self, part: CheckpointPart) {
        self.push(RecordBody::Part(Arc::new(part)));
    }

    /// Takes everything collected, in order.
    pub fn take(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }
}

impl Log for Recorder {
    type Record = Record;

    fn lose(&mut self, worker: WorkerId, unit: u64, lost: &Lost) {
        self.event(EventRecord {
            severity: Severity::Error,
            kind: "lost_batch".into(),
            stage: Some(worker.stage),
            step: None,
            message: format!("{worker} panicked, its batch is lost: {}", lost.message),
            fields: serde_json::json!({
                "instance": worker.instance,
                "unit": unit,
                "sample_ids": lost.sample_ids,
            }),
        });
    }

    fn take(&mut self) -> Vec<Record> {
        Self::take(self)
    }
}
