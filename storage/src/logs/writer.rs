//! The writer of a run's logs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::abandoned;
use super::batch::{AnyBatchBuilder, batch_bytes};
use super::common::{Common, Place};
use super::error::LogError;
use super::live::LiveStream;
use super::paths;
use super::repair::{self, RepairReport, TruncateReport};
use super::row::{Urgency, WrongList};
use super::schema::{SchemaMeta, schema};
use super::sealed::{KEY_STREAM, write_part};
use super::sums;
use super::tables::rows::EventRow;
use super::tables::{LogRow, Table, TableBuilders};
use super::words::Severity;
use crate::atomic;
use crate::clock::Clock;

/// Rows that may wait for the next flush of a table.
const MAX_WAITING_ROWS: usize = 8192;
/// A dictionary with more values than this is cleared when its stream is sealed.
const MAX_VOCABULARY: usize = 4096;
/// Events that follow each other faster than this share a flush.
const EVENT_FLUSH_GAP: Duration = Duration::from_millis(100);

/// What the logs say about the run they belong to.
#[derive(Debug, Clone)]
pub struct LogContext {
    /// The run's id.
    pub run_id: String,
    /// How many times the run has been resumed.
    pub segment: i32,
    /// Patches (down, across).
    pub patch_grid: (u16, u16),
    /// Version of the program that writes.
    pub program_version: String,
    /// Makes the stamps of the writer's own rows.
    pub clock: Clock,
}

impl LogContext {
    fn schema_meta(&self) -> SchemaMeta {
        SchemaMeta {
            run_id: self.run_id.clone(),
            program_version: self.program_version.clone(),
            patch_grid: self.patch_grid,
        }
    }
}

/// When rows are flushed and sealed.
#[derive(Debug, Clone, PartialEq)]
pub struct LogPolicy {
    /// Rows reach the live stream within this time.
    pub flush_every: Duration,
    /// A table is sealed when this many rows are open.
    pub seal_rows: usize,
    /// A table is sealed when its stream, or its rows in memory, hold this many bytes.
    pub seal_bytes: u64,
    /// A table with open rows is sealed after this time, at the beginning of a run.
    pub seal_age: Duration,
    /// As the run gets older, parts may get older too, up to 5 % of the writer's life and this limit, so that a long
    /// run does not fall into thousands of small files.
    pub seal_age_max: Duration,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self {
            flush_every: Duration::from_secs(1),
            seal_rows: 50_000,
            seal_bytes: 16 << 20,
            seal_age: Duration::from_secs(30),
            seal_age_max: Duration::from_secs(300),
        }
    }
}

/// What happened to the logs when a run was resumed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResumeReport {
    /// Streams that were sealed or dropped.
    pub repair: RepairReport,
    /// Rows after the checkpoint that were removed.
    pub truncated: TruncateReport,
}

/// The writer of one table.
struct TableLog {
    table: Table,
    schema: SchemaRef,
    stream: Option<LiveStream>,
    /// A stream that is sealed already and must be removed before the next one opens.
    sealed_stream: Option<PathBuf>,
    /// The rows of the open stream.
    batches: Vec<RecordBatch>,
    num_rows: usize,
    num_bytes: usize,
    /// When the oldest open row came.
    first_row: Option<Instant>,
    /// Rows accepted since the writer was opened.
    total_rows: u64,
    /// The open stream's name may not be on the disk yet.
    is_unnamed: bool,
}

impl TableLog {
    fn open(run: &Path, table: Table, meta: &SchemaMeta, builder: &mut dyn AnyBatchBuilder) -> Result<Self, LogError> {
        if paths::parts(run, table)?.is_empty() {
            // A part of zero rows, so that a query over this table always finds a file.
            repair::write_empty(run, table, meta)?;
        }
        let mut log = Self {
            table,
            schema: schema(table, meta),
            stream: None,
            sealed_stream: None,
            batches: Vec::new(),
            num_rows: 0,
            num_bytes: 0,
            first_row: None,
            total_rows: 0,
            is_unnamed: false,
        };
        log.ensure_stream(run, builder)?;
        Ok(log)
    }

    /// The open stream; opens the next one after a seal.
    fn ensure_stream(&mut self, run: &Path, builder: &mut dyn AnyBatchBuilder) -> Result<&mut LiveStream, LogError> {
        if let Some(path) = &self.sealed_stream {
            atomic::remove_file(path)?;
            self.sealed_stream = None;
        }
        if self.stream.is_none() {
            let number = sums::next_number(run, self.table)?;
            let path = paths::live_path(run, self.table, number);
            builder.trim_vocabularies(MAX_VOCABULARY);
            self.stream = Some(LiveStream::create(&path, self.table, number, &self.schema)?);
            self.is_unnamed = true;
        }
        Ok(self.stream.as_mut().expect("invariant: opened above"))
    }

    fn open_rows(&self, builder: &dyn AnyBatchBuilder) -> usize {
        self.num_rows + builder.num_rows()
    }

    /// Writes all rows to the live stream.
    fn flush(&mut self, run: &Path, builder: &mut dyn AnyBatchBuilder) -> Result<(), LogError> {
        self.ensure_stream(run, builder)?;
        let stream = self.stream.as_mut().expect("invariant: opened above");
        if builder.num_rows() > 0 {
            let wrap = |source| LogError::Arrow { table: self.table, source };
            let batch = builder.finish(&self.schema).map_err(wrap)?;
            self.num_rows += batch.num_rows();
            self.num_bytes += batch_bytes(&batch);
            self.batches.push(batch.clone());
            stream.encode(&batch)?;
        }
        stream.drain()?;
        stream.check_linked()?;
        Ok(())
    }

    fn is_due(&self, builder: &dyn AnyBatchBuilder, policy: &LogPolicy, age_limit: Duration) -> bool {
        let bytes = self.stream.as_ref().map_or(0, LiveStream::num_bytes).max(self.num_bytes as u64);
        let num_rows = self.open_rows(builder);
        num_rows >= policy.seal_rows
            || (num_rows > 0 && bytes >= policy.seal_bytes)
            || self.first_row.is_some_and(|since| since.elapsed() >= age_limit)
    }

    /// Seals the open rows as a part, then removes their stream.
    fn seal(&mut self, run: &Path, builder: &mut dyn AnyBatchBuilder) -> Result<(), LogError> {
        if self.open_rows(builder) == 0 {
            return Ok(());
        }
        self.flush(run, builder)?;
        let number = self.ensure_stream(run, builder)?.number();
        let path = paths::part_path(run, self.table, number);
        let batches = self.batches.iter().cloned().map(Ok);
        let written = write_part(run, self.table, number, &self.schema, &[(KEY_STREAM, number.to_string())], batches);
        if written.is_err() {
            // It may have failed after the rename. While a part of this number exists the stream must not grow: either
            // the part can be removed, or it counts as written.
            let _ = atomic::remove_file(&path);
            if !path.exists() {
                return written;
            }
        }
        // From here on the stream is a copy of the part: a crash leaves both, and a repair drops the stream.
        self.batches.clear();
        self.num_rows = 0;
        self.num_bytes = 0;
        self.first_row = None;
        if let Some(stream) = self.stream.take() {
            self.sealed_stream = Some(stream.path().to_path_buf());
        }
        written
    }

    /// Seals everything and removes the stream.
    fn close(&mut self, run: &Path, builder: &mut dyn AnyBatchBuilder) -> Result<(), LogError> {
        self.seal(run, builder)?;
        let leftover = self.stream.take().map(|s| s.path().to_path_buf());
        for path in leftover.into_iter().chain(self.sealed_stream.take()) {
            atomic::remove_file(&path)?;
        }
        Ok(())
    }
}

/// Writes the tables of a run: rows go to live streams, and in larger pieces to Parquet.
///
/// It belongs to one thread, and to the process that holds the run's lock ([`crate::run_dir::RunDir`]). Every failure
/// to write is returned; after one, rows that were accepted are still held and the next call tries again. Dropping the
/// writer without [`LogWriter::close`] leaves the streams for a repair.
pub struct LogWriter {
    run: PathBuf,
    run_id: Arc<str>,
    segment: i32,
    num_patches: usize,
    clock: Clock,
    policy: LogPolicy,
    /// In the order of [`Table::ALL`].
    tables: Vec<TableLog>,
    builders: TableBuilders,
    opened: Instant,
    last_flush: Instant,
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("run", &self.run).field("segment", &self.segment).finish_non_exhaustive()
    }
}

impl LogWriter {
    /// Opens the logs of a run, repairing first what an earlier process left open.
    ///
    /// # Errors
    /// If the logs cannot be repaired ([`super::repair`]) or files cannot be made.
    pub fn open(run: &Path, ctx: LogContext, policy: LogPolicy) -> Result<Self, LogError> {
        paths::create_dirs(run)?;
        repair::repair_unlocked(run)?;
        Self::open_clean(run, &ctx, policy)
    }

    /// Opens the logs of a run that continues from a checkpoint at `step`: repairs, and removes the rows of later
    /// steps from the tables that are truncated (`metrics`, `masks`, `evals`), so that the sequence of steps has
    /// neither gap nor repeat.
    ///
    /// The others (`actors`, `events`) keep theirs, since that work was done. If any table had rows of later steps, an
    /// event [`super::EVENT_WENT_BACK`] marks them: a row of an earlier segment than the event's, and of a later step
    /// than the event's, belongs to a history that was abandoned ([`super::Abandoned`]).
    ///
    /// # Errors
    /// As [`LogWriter::open`], or if a part cannot be read or replaced.
    pub fn resume(run: &Path, ctx: LogContext, policy: LogPolicy, step: i64) -> Result<(Self, ResumeReport), LogError> {
        paths::create_dirs(run)?;
        let repair = repair::repair_unlocked(run)?;
        let last_step = abandoned::last_step(run, step)?;
        let truncated = repair::truncate_sealed(run, step)?;
        let mut writer = Self::open_clean(run, &ctx, policy)?;
        let place = Place { stamp: ctx.clock.stamp(), epoch: 0, step, level: None };
        if truncated.num_rows() > 0 {
            let row = EventRow {
                severity: Severity::Info,
                kind: "log_truncate".into(),
                stage: Some("log".into()),
                message: format!("{} rows behind step {step} taken back", truncated.num_rows()),
                fields: truncated.to_json().to_string(),
            };
            writer.push(place, row)?;
        }
        if last_step > step {
            writer.push(place, abandoned::went_back(ctx.segment, last_step, step))?;
        }
        Ok((writer, ResumeReport { repair, truncated }))
    }

    fn open_clean(run: &Path, ctx: &LogContext, policy: LogPolicy) -> Result<Self, LogError> {
        let meta = ctx.schema_meta();
        let mut builders = TableBuilders::new(meta.num_patches());
        let open = |table| TableLog::open(run, table, &meta, builders.of(table));
        let tables = Table::ALL.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let now = Instant::now();
        let mut writer = Self {
            run: run.to_path_buf(),
            run_id: meta.run_id.as_str().into(),
            segment: ctx.segment,
            num_patches: meta.num_patches(),
            clock: ctx.clock,
            policy,
            tables,
            builders,
            opened: now,
            last_flush: now,
        };
        writer.sync_names()?;
        Ok(writer)
    }

    /// The writer's clock, for the producers of its thread.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Takes a row of any table, whose lists must have one value a patch. An event flushes all tables: at once if it is
    /// an error, at most ten times a second if not.
    ///
    /// # Errors
    /// [`LogError::WrongLength`], which leaves no trace of the row, or if rows cannot be written.
    pub fn push(&mut self, place: Place, row: impl Into<LogRow>) -> Result<(), LogError> {
        let row = row.into();
        let (table, row) = (row.table(), row.any());
        if let Some(WrongList { column, len }) = row.wrong_list(self.num_patches) {
            return Err(LogError::WrongLength { table, column, expected: self.num_patches, got: len });
        }
        row.push(&Common::new(&self.run_id, self.segment, &place), &mut self.builders);
        let (log, builder) = (&mut self.tables[table.index()], self.builders.of(table));
        log.total_rows += 1;
        log.first_row.get_or_insert_with(Instant::now);
        if builder.num_rows() >= MAX_WAITING_ROWS {
            log.flush(&self.run, builder)?;
        }
        match row.urgency() {
            Urgency::Now => self.flush(),
            Urgency::Soon if self.last_flush.elapsed() >= EVENT_FLUSH_GAP => self.flush(),
            Urgency::Soon | Urgency::None => Ok(()),
        }
    }

    /// Flushes the live streams if a second has passed, and seals the tables that are due. Call it often: it is cheap
    /// when nothing is to be done.
    ///
    /// # Errors
    /// If rows cannot be written.
    pub fn tick(&mut self) -> Result<(), LogError> {
        if self.last_flush.elapsed() >= self.policy.flush_every {
            self.flush()?;
        }
        self.rotate()
    }

    /// Flushes the live streams now. A killed process loses nothing that was flushed.
    ///
    /// # Errors
    /// If rows cannot be written, or a stream was deleted under the writer.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.last_flush = Instant::now();
        let run = self.run.clone();
        self.each(|log, builder| log.flush(&run, builder))
    }

    /// Flushes, and syncs the live streams to the disk (fsync): then not even a power loss loses a row.
    ///
    /// Call it before a checkpoint is published: a run resumed from that checkpoint then finds the rows of all its
    /// steps.
    ///
    /// # Errors
    /// As [`LogWriter::flush`], or if the disk does not confirm.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.flush()?;
        self.each(|log, _| log.stream.as_ref().map_or(Ok(()), |s| Ok(s.sync()?)))?;
        self.sync_names()
    }

    /// Brings the names of the open streams to the disk.
    fn sync_names(&mut self) -> Result<(), LogError> {
        if self.tables.iter().any(|log| log.is_unnamed) {
            atomic::fsync_dir(&paths::live_dir(&self.run))?;
            self.tables.iter_mut().for_each(|log| log.is_unnamed = false);
        }
        Ok(())
    }

    /// Seals the tables whose open rows are too many, too large or too old.
    ///
    /// # Errors
    /// If a part cannot be written; its rows stay in the live stream.
    pub fn rotate(&mut self) -> Result<(), LogError> {
        let age_limit = (self.opened.elapsed() / 20).min(self.policy.seal_age_max).max(self.policy.seal_age);
        let (run, policy) = (self.run.clone(), self.policy.clone());
        self.each(|log, builder| {
            if log.is_due(builder, &policy, age_limit) {
                log.seal(&run, builder)?;
                log.ensure_stream(&run, builder).map(|_| ())
            } else {
                Ok(())
            }
        })
    }

    /// Seals all tables now.
    ///
    /// # Errors
    /// As [`LogWriter::rotate`].
    pub fn seal(&mut self) -> Result<(), LogError> {
        let run = self.run.clone();
        self.each(|log, builder| {
            log.seal(&run, builder)?;
            log.ensure_stream(&run, builder).map(|_| ())
        })
    }

    /// Seals everything and removes the live streams.
    ///
    /// # Errors
    /// If a table cannot be sealed; its stream is left for a repair.
    pub fn close(mut self) -> Result<(), LogError> {
        let run = self.run.clone();
        self.each(|log, builder| log.close(&run, builder))?;
        Ok(atomic::fsync_dir(&paths::live_dir(&run))?)
    }

    /// Rows of `table` accepted since the writer was opened.
    #[must_use]
    pub fn num_rows(&self, table: Table) -> u64 {
        self.tables[table.index()].total_rows
    }

    /// Calls `action` for all tables, also after one has failed, and returns the first failure.
    fn each(
        &mut self,
        mut action: impl FnMut(&mut TableLog, &mut dyn AnyBatchBuilder) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let mut first = Ok(());
        for log in &mut self.tables {
            let result = action(log, self.builders.of(log.table));
            if first.is_ok() {
                first = result;
            }
        }
        first
    }
}
