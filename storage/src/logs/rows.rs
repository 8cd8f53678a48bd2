//! One row of each log table, as its producer makes it.

use std::borrow::Cow;

use super::error::LogError;
use super::schema::{SchemaMeta, Table};
use crate::clock::Stamp;

/// Short text of low cardinality, usually a literal.
pub type Text = Cow<'static, str>;

/// The level of the optimisation problem that a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// Level 1: masked reconstruction.
    Pretrain,
    /// Level 2: the downstream head.
    Finetune,
    /// Level 3: the masking network.
    Mask,
    /// Evaluation.
    Eval,
}

impl Level {
    /// The name in the logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Finetune => "finetune",
            Self::Mask => "mask",
            Self::Eval => "eval",
        }
    }
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// For developers.
    Debug,
    /// The normal course of a run.
    Info,
    /// Something was lost, repeated or late; the run goes on.
    Warn,
    /// The run ends, or a part of it failed.
    Error,
}

impl Severity {
    /// The name in the logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A value of `metrics`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRow {
    /// When it was measured.
    pub stamp: Stamp,
    /// Epoch over the pretrain role, from 0.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: i64,
    /// Level.
    pub level: Level,
    /// What was measured: `loss`, `lr`, `grad_norm`, ...
    pub name: Text,
    /// The value; NaN and infinities are kept.
    pub value: f64,
    /// Data role: `pretrain`, `train`, `validation`, `test`, or empty.
    pub split: Text,
    /// Unit: `1`, `s`, `images/s`, `bytes`, ...
    pub unit: Text,
}

/// A mask of one panel sample.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskRow {
    /// When it was drawn.
    pub stamp: Stamp,
    /// Epoch over the pretrain role, from 0.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: i64,
    /// Level.
    pub level: Level,
    /// The sample's id within its dataset.
    pub sample_id: i64,
    /// Its label, if known.
    pub label: Option<i32>,
    /// Version of the masking network, 0 before its first update.
    pub policy_version: i64,
    /// Share of patches masked.
    pub mask_ratio: f32,
    /// True where the patch is masked \[num_patches], row by row.
    pub mask: Vec<bool>,
    /// Mask probabilities \[num_patches]; none for random masks.
    pub score: Option<Vec<f32>>,
    /// Reconstruction loss \[num_patches], if it was computed.
    pub patch_loss: Option<Vec<f32>>,
}

/// Counters of one stage instance; all but the queue's and `utilization` are cumulative.
#[derive(Debug, Clone, PartialEq)]
pub struct ActorRow {
    /// When they were sampled.
    pub stamp: Stamp,
    /// Epoch over the pretrain role, from 0.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: i64,
    /// Level, where the stage has one.
    pub level: Option<Level>,
    /// Stage: `load`, `score`, `encoder`, `evaluator`, `policy`, `log`.
    pub stage: Text,
    /// Worker within the stage, from 0.
    pub instance: i16,
    /// Items done.
    pub items: i64,
    /// Bytes of the items done.
    pub bytes: i64,
    /// Seconds of work.
    pub busy_s: f64,
    /// Seconds waiting for input.
    pub wait_in_s: f64,
    /// Seconds waiting for room in an output.
    pub wait_out_s: f64,
    /// Items in the input queues now.
    pub queue_len: i32,
    /// Capacity of the input queues.
    pub queue_cap: i32,
    /// Bytes in the input queues now.
    pub queue_bytes: i64,
    /// Share of the time since the last sample spent busy, 0..1.
    pub utilization: f32,
    /// Restarts after a panic.
    pub restarts: i32,
    /// Outer iterations between a policy update and its first use.
    pub lag: i32,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// When.
    pub stamp: Stamp,
    /// Epoch over the pretrain role, from 0.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: i64,
    /// Level, where it concerns one.
    pub level: Option<Level>,
    /// How much it matters.
    pub severity: Severity,
    /// What kind: `checkpoint`, `log_repair`, `panic`, ...
    pub kind: Text,
    /// The stage it concerns.
    pub stage: Option<Text>,
    /// One line for people.
    pub message: String,
    /// A JSON object for programs, `{}` if there is nothing to add.
    pub fields: String,
}

/// A result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalRow {
    /// When it was finished.
    pub stamp: Stamp,
    /// Epoch over the pretrain role, from 0.
    pub epoch: i32,
    /// Level-1 steps done.
    pub step: i64,
    /// Level.
    pub level: Level,
    /// `linear_probe`, `knn` or `finetune`.
    pub task: Text,
    /// Data role.
    pub split: Text,
    /// `accuracy`, `loss`, ...
    pub metric: Text,
    /// The value.
    pub value: f64,
    /// Samples evaluated.
    pub n: i64,
    /// The checkpoint's folder name.
    pub checkpoint: String,
    /// Seconds it took.
    pub seconds: f64,
}

/// A row of any table, for channels.
#[derive(Debug, Clone, PartialEq)]
pub enum LogRow {
    /// A row of `metrics`.
    Metric(MetricRow),
    /// A row of `masks`.
    Mask(MaskRow),
    /// A row of `actors`.
    Actor(ActorRow),
    /// A row of `events`.
    Event(EventRow),
    /// A row of `evals`.
    Eval(EvalRow),
}

impl LogRow {
    /// The table it belongs to.
    pub fn table(&self) -> Table {
        match self {
            Self::Metric(_) => Table::Metrics,
            Self::Mask(_) => Table::Masks,
            Self::Actor(_) => Table::Actors,
            Self::Event(_) => Table::Events,
            Self::Eval(_) => Table::Evals,
        }
    }
}

/// One value on its way into a column.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cell<'a> {
    /// Dictionary or plain text.
    Text(Option<&'a str>),
    I64(i64),
    I32(Option<i32>),
    I16(i16),
    F64(f64),
    F32(f32),
    Bools(&'a [bool]),
    Floats(Option<&'a [f32]>),
}

/// What the writer adds to every row.
#[derive(Debug, Clone)]
pub(crate) struct RowContext {
    pub(crate) meta: SchemaMeta,
    pub(crate) segment: i32,
}

fn common<'a>(ctx: &'a RowContext, stamp: Stamp, epoch: i32, step: i64, level: Option<Level>) -> [Cell<'a>; 7] {
    [
        Cell::Text(Some(&ctx.meta.run_id)),
        Cell::I64(stamp.ts_us),
        Cell::F64(stamp.wall_s),
        Cell::I32(Some(ctx.segment)),
        Cell::I32(Some(epoch)),
        Cell::I64(step),
        Cell::Text(level.map(Level::name)),
    ]
}

/// A row that knows its cells, in the order of its table's columns.
pub(crate) trait Row {
    const TABLE: Table;

    /// Refuses a row that would not fit.
    fn check(&self, _ctx: &RowContext) -> Result<(), LogError> {
        Ok(())
    }

    fn cells<'a>(&'a self, ctx: &'a RowContext, out: &mut Vec<Cell<'a>>);
}

impl Row for MetricRow {
    const TABLE: Table = Table::Metrics;

    fn cells<'a>(&'a self, ctx: &'a RowContext, out: &mut Vec<Cell<'a>>) {
        out.extend(common(ctx, self.stamp, self.epoch, self.step, Some(self.level)));
        out.extend([
            Cell::Text(Some(&self.name)),
            Cell::F64(self.value),
            Cell::Text(Some(&self.split)),
            Cell::Text(Some(&self.unit)),
        ]);
    }
}

impl Row for MaskRow {
    const TABLE: Table = Table::Masks;

    fn check(&self, ctx: &RowContext) -> Result<(), LogError> {
        let expected = ctx.meta.num_patches();
        let lengths = [
            ("mask", Some(self.mask.len())),
            ("score", self.score.as_ref().map(Vec::len)),
            ("patch_loss", self.patch_loss.as_ref().map(Vec::len)),
        ];
        for (column, len) in lengths {
            if let Some(got) = len.filter(|len| *len != expected) {
                return Err(LogError::WrongLength { table: Self::TABLE, column, expected, got });
            }
        }
        Ok(())
    }

    fn cells<'a>(&'a self, ctx: &'a RowContext, out: &mut Vec<Cell<'a>>) {
        let side = |n: u16| Cell::I16(i16::try_from(n).unwrap_or(i16::MAX));
        out.extend(common(ctx, self.stamp, self.epoch, self.step, Some(self.level)));
        out.extend([
            Cell::I64(self.sample_id),
            Cell::I32(self.label),
            Cell::I64(self.policy_version),
            Cell::F32(self.mask_ratio),
            Cell::Bools(&self.mask),
            Cell::Floats(self.score.as_deref()),
            Cell::Floats(self.patch_loss.as_deref()),
            side(ctx.meta.patch_grid.0),
            side(ctx.meta.patch_grid.1),
        ]);
    }
}

impl Row for ActorRow {
    const TABLE: Table = Table::Actors;

    fn cells<'a>(&'a self, ctx: &'a RowContext, out: &mut Vec<Cell<'a>>) {
        out.extend(common(ctx, self.stamp, self.epoch, self.step, self.level));
        out.extend([
            Cell::Text(Some(&self.stage)),
            Cell::I16(self.instance),
            Cell::I64(self.items),
            Cell::I64(self.bytes),
            Cell::F64(self.busy_s),
            Cell::F64(self.wait_in_s),
            Cell::F64(self.wait_out_s),
            Cell::I32(Some(self.queue_len)),
            Cell::I32(Some(self.queue_cap)),
            Cell::I64(self.queue_bytes),
            Cell::F32(self.utilization),
            Cell::I32(Some(self.restarts)),
            Cell::I32(Some(self.lag)),
        ]);
    }
}

impl Row for EventRow {
    const TABLE: Table = Table::Events;

    fn cells<'a>(&'a self, ctx: &'a RowContext, out: &mut Vec<Cell<'a>>) {
        out.extend(common(ctx, self.stamp, self.epoch, self.step, self.level));
        out.extend([
            Cell::Text(Some(self.severity.name())),
            Cell::Text(Some(&self.kind)),
            Cell::Text(self.stage.as_deref()),
            Cell::Text(Some(&self.message)),
            Cell::Text(Some(&self.fields)),
        ]);
    }
}

impl Row for EvalRow {
    const TABLE: Table = Table::Evals;

    fn cells<'a>(&'a self, ctx: &'a RowContext, out: &mut Vec<Cell<'a>>) {
        out.extend(common(ctx, self.stamp, self.epoch, self.step, Some(self.level)));
        out.extend([
            Cell::Text(Some(&self.task)),
            Cell::Text(Some(&self.split)),
            Cell::Text(Some(&self.metric)),
            Cell::F64(self.value),
            Cell::I64(self.n),
            Cell::Text(Some(&self.checkpoint)),
            Cell::F64(self.seconds),
        ]);
    }
}
