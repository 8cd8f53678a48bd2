//! Rows of a table as typed values, from sealed parts and open streams.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::datatypes::{ArrowPrimitiveType, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type};

use super::error::LogError;
use super::paths;
use super::rows::{ActorRow, EvalRow, EventRow, Level, MetricRow, Severity, Text};
use super::schema::Table;
use super::sealed::{DamagedPart, row_text_bytes};
use super::tail::Follow;
use crate::clock::Stamp;
use crate::machine_memory::{self, bytes_text};

/// A row with the segment of the run that wrote it: cumulative counters begin anew with each.
#[derive(Debug, Clone, PartialEq)]
pub struct Segmented<R> {
    /// How often the run had been resumed.
    pub segment: i32,
    /// The row.
    pub row: R,
}

/// A row that can be read back from its table.
pub trait ReadRow: Sized {
    /// Its table.
    const TABLE: Table;

    /// The row at `row` of a batch; none if a column that it needs holds no value it understands.
    fn read(batch: &RecordBatch, row: usize) -> Option<Self>;
}

/// Reads a table from its first row on, and then what comes.
#[derive(Debug)]
pub struct TableReader<R> {
    follow: Follow,
    row: PhantomData<R>,
}

impl<R: ReadRow> TableReader<R> {
    /// A reader that has read nothing yet.
    #[must_use]
    pub fn new(run: &Path) -> Self {
        Self { follow: Follow::from_start(run, R::TABLE), row: PhantomData }
    }

    /// The damaged parts that were met since the last call: their rows are passed over.
    pub fn take_damaged(&mut self) -> Vec<DamagedPart> {
        self.follow.take_damaged()
    }

    /// The rows since the last call, at first all. Returns at once; wait between calls.
    ///
    /// # Errors
    /// If a file cannot be read or is none of this program's, or if the rows take more than half of the memory that is
    /// left.
    pub fn poll(&mut self) -> Result<Vec<Segmented<R>>, LogError> {
        let mut rows = Vec::new();
        let bound = machine_memory::available().num_bytes / 2;
        let mut num_bytes = 0_u64;
        self.follow.poll_rows(|batch, row| {
            num_bytes = num_bytes.saturating_add(size_of::<Segmented<R>>() as u64 + row_text_bytes(batch, row));
            if num_bytes > bound {
                // The rest is only counted.
                rows = Vec::new();
                return;
            }
            if let (Some(segment), Some(value)) = (number::<Int32Type>(batch, "segment", row), R::read(batch, row)) {
                rows.push(Segmented { segment, row: value });
            }
        })?;
        if num_bytes > bound {
            let (needed, bound) = (bytes_text(num_bytes), bytes_text(bound));
            return Err(LogError::Corrupt {
                path: paths::table_dir(self.follow.run(), R::TABLE),
                reason: format!("its rows take {needed} of memory, at most {bound} are taken for them"),
            });
        }
        Ok(rows)
    }
}

fn number<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str, row: usize) -> Option<T::Native> {
    let column = batch.column_by_name(name)?.as_primitive_opt::<T>()?;
    column.is_valid(row).then(|| column.value(row))
}

fn text(batch: &RecordBatch, name: &str, row: usize) -> Option<Text> {
    let column = batch.column_by_name(name)?;
    if column.is_null(row) {
        return None;
    }
    if let Some(plain) = column.as_string_opt::<i32>() {
        return Some(Cow::Owned(plain.value(row).to_owned()));
    }
    let dictionary = column.as_dictionary_opt::<Int32Type>()?;
    let key = usize::try_from(dictionary.keys().value(row)).ok()?;
    let values = dictionary.values().as_string_opt::<i32>()?;
    (key < values.len()).then(|| Cow::Owned(values.value(key).to_owned()))
}

fn stamp(batch: &RecordBatch, row: usize) -> Option<Stamp> {
    Some(Stamp {
        ts_us: number::<TimestampMicrosecondType>(batch, "ts", row)?,
        wall_s: number::<Float64Type>(batch, "wall_s", row)?,
    })
}

fn level(batch: &RecordBatch, row: usize) -> Option<Level> {
    let name = text(batch, "level", row)?;
    [Level::Pretrain, Level::Finetune, Level::Mask, Level::Eval].into_iter().find(|level| level.name() == name)
}

impl ReadRow for MetricRow {
    const TABLE: Table = Table::Metrics;

    fn read(batch: &RecordBatch, row: usize) -> Option<Self> {
        Some(Self {
            stamp: stamp(batch, row)?,
            epoch: number::<Int32Type>(batch, "epoch", row)?,
            step: number::<Int64Type>(batch, "step", row)?,
            level: level(batch, row)?,
            name: text(batch, "name", row)?,
            value: number::<Float64Type>(batch, "value", row)?,
            split: text(batch, "split", row)?,
            unit: text(batch, "unit", row)?,
        })
    }
}

impl ReadRow for ActorRow {
    const TABLE: Table = Table::Actors;

    fn read(batch: &RecordBatch, row: usize) -> Option<Self> {
        Some(Self {
            stamp: stamp(batch, row)?,
            epoch: number::<Int32Type>(batch, "epoch", row)?,
            step: number::<Int64Type>(batch, "step", row)?,
            level: level(batch, row),
            stage: text(batch, "stage", row)?,
            instance: number::<Int16Type>(batch, "instance", row)?,
            items: number::<Int64Type>(batch, "items", row)?,
            bytes: number::<Int64Type>(batch, "bytes", row)?,
            busy_s: number::<Float64Type>(batch, "busy_s", row)?,
            wait_in_s: number::<Float64Type>(batch, "wait_in_s", row)?,
            wait_out_s: number::<Float64Type>(batch, "wait_out_s", row)?,
            queue_len: number::<Int32Type>(batch, "queue_len", row)?,
            queue_cap: number::<Int32Type>(batch, "queue_cap", row)?,
            queue_bytes: number::<Int64Type>(batch, "queue_bytes", row)?,
            utilization: number::<Float32Type>(batch, "utilization", row)?,
            restarts: number::<Int32Type>(batch, "restarts", row)?,
            lag: number::<Int32Type>(batch, "lag", row)?,
        })
    }
}

impl ReadRow for EventRow {
    const TABLE: Table = Table::Events;

    fn read(batch: &RecordBatch, row: usize) -> Option<Self> {
        let severity = text(batch, "severity", row)?;
        let all = [Severity::Debug, Severity::Info, Severity::Warn, Severity::Error];
        Some(Self {
            stamp: stamp(batch, row)?,
            epoch: number::<Int32Type>(batch, "epoch", row)?,
            step: number::<Int64Type>(batch, "step", row)?,
            level: level(batch, row),
            severity: all.into_iter().find(|known| known.name() == severity)?,
            kind: text(batch, "kind", row)?,
            stage: text(batch, "stage", row),
            message: text(batch, "message", row)?.into_owned(),
            fields: text(batch, "fields", row)?.into_owned(),
        })
    }
}

impl ReadRow for EvalRow {
    const TABLE: Table = Table::Evals;

    fn read(batch: &RecordBatch, row: usize) -> Option<Self> {
        Some(Self {
            stamp: stamp(batch, row)?,
            epoch: number::<Int32Type>(batch, "epoch", row)?,
            step: number::<Int64Type>(batch, "step", row)?,
            level: level(batch, row)?,
            task: text(batch, "task", row)?,
            split: text(batch, "split", row)?,
            metric: text(batch, "metric", row)?,
            value: number::<Float64Type>(batch, "value", row)?,
            n: number::<Int64Type>(batch, "n", row)?,
            checkpoint: text(batch, "checkpoint", row)?.into_owned(),
            seconds: number::<Float64Type>(batch, "seconds", row)?,
        })
    }
}
