//! Crash recovery: repairs a run's logs after its process died.
//!
//! Each step is idempotent: (1) every damaged part is renamed; (2) every stream that is not sealed yet is sealed under
//! its own number; (3) one events part reports all of them, and names them in its key-values; (4) parts that are lost
//! are listed as gone, and the streams are removed. If a repair crashes at any moment, the next one finds which steps
//! are done, and no row or report is written twice.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use serde_json::json;

use super::batch::{AnyBatchBuilder as _, BatchBuilder};
use super::common::{Common, Place};
use super::error::LogError;
use super::paths;
use super::row::Columns as _;
use super::schema::{SchemaMeta, schema};
use super::sealed::{DamagedPart, KEY_LOST_BYTES, KEY_REPAIRED, KEY_STREAM, Part, write_part};
use super::stream::{StreamContents, read_stream};
use super::sums::{self, Sums};
use super::tables::Table;
use super::tables::rows::EventRow;
use super::words::Severity;
use crate::atomic;
use crate::clock::{Clock, Stamp};
use crate::run_dir::{RunDirError, RunLock};

/// The result of the repair of one live stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairedStream {
    /// Its table.
    pub table: Table,
    /// Its number.
    pub number: u64,
    /// Rows recovered from it.
    pub num_rows: u64,
    /// Bytes after its last whole batch.
    pub lost_bytes: u64,
    /// Whether it had been sealed before its process died, so that it was only removed.
    pub was_sealed: bool,
    /// Why not all of it could be read.
    pub damage: Option<String>,
    /// The new name of the file, if it was no log of this program.
    pub set_aside: Option<PathBuf>,
}

/// The result of a repair; empty if there was nothing to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairReport {
    /// The streams that were found.
    pub streams: Vec<RepairedStream>,
    /// The parts that were set aside, or are missing.
    pub damaged: Vec<DamagedPart>,
}

impl RepairReport {
    /// Rows recovered from all streams.
    #[must_use]
    pub fn num_rows(&self) -> u64 {
        self.streams.iter().filter(|s| !s.was_sealed).map(|s| s.num_rows).sum()
    }

    /// Whether there was nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.damaged.is_empty()
    }

    /// Bytes lost in all streams.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.streams.iter().map(|s| s.lost_bytes).sum()
    }
}

/// Rows removed on resume, by table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TruncateReport {
    /// Tables with the rows removed from each.
    pub tables: Vec<(Table, u64)>,
}

impl TruncateReport {
    /// Rows removed from all tables.
    #[must_use]
    pub fn num_rows(&self) -> u64 {
        self.tables.iter().map(|(_, rows)| rows).sum()
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        self.tables.iter().map(|(table, rows)| (table.name().to_string(), json!(rows))).collect()
    }
}

fn lock(run: &Path) -> Result<RunLock, LogError> {
    RunLock::acquire(run).map_err(|error| match error {
        RunDirError::InUse { path, pid } => LogError::InUse { path, pid },
        RunDirError::File(error) => LogError::File(error),
        _ => LogError::NoLogs { path: run.to_path_buf() },
    })
}

/// Seals what a dead process left open in `run`, and removes temporary files. A second repair does nothing.
///
/// # Errors
/// [`LogError::InUse`] while another process holds the run, [`LogError::NoLogs`] if it has none, or if files cannot be
/// read, written or renamed. A repair that failed is continued by the next one.
pub fn repair(run: &Path) -> Result<RepairReport, LogError> {
    paths::require_logs(run)?;
    let _lock = lock(run)?;
    repair_unlocked(run)
}

/// Repairs, then removes the rows of steps greater than `step` from the tables that are truncated (`metrics`, `masks`,
/// `evals`). [`super::LogWriter::resume`] does the same for a caller that holds the run.
///
/// # Errors
/// As [`repair`].
pub fn truncate_after(run: &Path, step: i64) -> Result<TruncateReport, LogError> {
    paths::require_logs(run)?;
    let _lock = lock(run)?;
    repair_unlocked(run)?;
    truncate_sealed(run, step)
}

/// A live stream with what could be read from it.
struct Found {
    table: Table,
    number: u64,
    path: PathBuf,
    contents: StreamContents,
    was_sealed: bool,
    /// Whether its part was sealed by a repair, which may have died before its report.
    by_repair: bool,
}

impl Found {
    fn name(&self) -> String {
        format!("{}-{:06}", self.table, self.number)
    }

    /// Whether there is something to report: rows or bytes.
    fn is_news(&self) -> bool {
        let something =
            self.contents.foreign.is_some() || self.contents.lost_bytes() > 0 || self.contents.num_rows() > 0;
        something && (!self.was_sealed || self.by_repair)
    }
}

pub(crate) fn repair_unlocked(run: &Path) -> Result<RepairReport, LogError> {
    remove_temporaries(run)?;
    let (damaged, mut meta) = set_damaged_aside(run)?;
    let mut found = Vec::new();
    for table in Table::ALL {
        let sealed: HashSet<u64> = paths::parts(run, table)?.into_iter().collect();
        let sums = Sums::read(run)?;
        for number in paths::streams(run, table)? {
            let path = paths::live_path(run, table, number);
            let contents = read_stream(&path, table)?;
            let was_sealed = sealed.contains(&number);
            let by_repair = was_sealed && Part::open(run, table, number, &sums)?.pairs.contains_key(KEY_LOST_BYTES);
            found.push(Found { table, number, path, contents, was_sealed, by_repair });
        }
    }
    if found.is_empty() && damaged.is_empty() {
        return Ok(RepairReport::default());
    }
    meta = found.iter().find_map(|s| s.contents.schema.as_ref().map(|(_, meta)| meta.clone())).or(meta);
    let meta = meta.unwrap_or_else(|| SchemaMeta {
        run_id: run.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        program_version: env!("CARGO_PKG_VERSION").to_string(),
        patch_grid: (0, 0),
    });
    for stream in found.iter().filter(|s| !s.was_sealed) {
        seal_stream(run, stream)?;
    }
    for table in damaged.iter().map(|part| part.table).collect::<HashSet<_>>() {
        if paths::parts(run, table)?.is_empty() {
            // So that a query over this table always finds a file.
            write_empty(run, table, &meta)?;
        }
    }
    report(run, &found, &damaged, &meta)?;
    let lost: Vec<_> = damaged.iter().filter(|part| !part.path.exists()).map(|d| (d.table, d.number, None)).collect();
    sums::append(run, &lost)?;
    let mut report = RepairReport { streams: Vec::new(), damaged };
    for stream in found {
        let set_aside = retire(&stream)?;
        report.streams.push(RepairedStream {
            table: stream.table,
            number: stream.number,
            num_rows: stream.contents.num_rows() as u64,
            lost_bytes: stream.contents.lost_bytes(),
            was_sealed: stream.was_sealed,
            damage: stream.contents.damage,
            set_aside,
        });
    }
    atomic::fsync_dir(&paths::live_dir(run))?;
    Ok(report)
}

/// A part without rows.
pub(crate) fn write_empty(run: &Path, table: Table, meta: &SchemaMeta) -> Result<(), LogError> {
    let pairs = [(KEY_STREAM, "0".to_owned())];
    write_part(run, table, 0, &schema(table, meta), &pairs, std::iter::empty())
}

/// Step 1: checks all parts against their sums. What is damaged gets another name, what is missing is noted, and whole
/// parts that the list lacks are listed. Returns what a whole part says of the run as well.
fn set_damaged_aside(run: &Path) -> Result<(Vec<DamagedPart>, Option<SchemaMeta>), LogError> {
    let sums = Sums::read(run)?;
    let (mut damaged, mut unlisted, mut meta) = (Vec::new(), Vec::new(), None);
    for table in Table::ALL {
        let numbers = paths::parts(run, table)?;
        let streams = paths::streams(run, table)?;
        for &number in &numbers {
            let path = paths::part_path(run, table, number);
            let checked = Part::open(run, table, number, &sums).and_then(|part| {
                meta.get_or_insert_with(|| part.meta().clone());
                let sum = part.sum();
                if !part.is_listed {
                    // A good checksum does not mean that the decoder accepts the file.
                    part.read(&path)?;
                    unlisted.push((table, number, Some(sum)));
                }
                Ok(())
            });
            let reason = match checked {
                Ok(()) => continue,
                Err(LogError::Corrupt { reason, .. }) => reason,
                Err(error) => return Err(error),
            };
            let mut aside = paths::damaged_path(run, table, number);
            for again in 2.. {
                if !aside.exists() {
                    break;
                }
                aside = paths::damaged_path(run, table, number).with_extension(format!("damaged-{again}"));
            }
            atomic::rename(&path, &aside)?;
            // The stream with its number holds the same rows.
            let num_rows = if streams.contains(&number) { Some(0) } else { sums.newest(table, number).map(|s| s.rows) };
            damaged.push(DamagedPart { table, number, path, reason, num_rows, set_aside: Some(aside) });
        }
        if damaged.iter().any(|part| part.table == table) {
            atomic::fsync_dir(&paths::table_dir(run, table))?;
        }
        for number in sums.expected(table).filter(|number| !numbers.contains(number) && !streams.contains(number)) {
            damaged.push(missing(run, table, number, &sums));
        }
    }
    sums::append(run, &unlisted)?;
    Ok((damaged, meta))
}

/// A part that is listed but missing: it was deleted, or a repair was interrupted after its first step.
pub(crate) fn missing(run: &Path, table: Table, number: u64, sums: &Sums) -> DamagedPart {
    let aside = Some(paths::damaged_path(run, table, number)).filter(|aside| aside.exists());
    DamagedPart {
        table,
        number,
        path: paths::part_path(run, table, number),
        reason: if aside.is_some() { "it was damaged" } else { "it is missing" }.to_owned(),
        num_rows: sums.newest(table, number).map(|sum| sum.rows),
        set_aside: aside,
    }
}

/// Removes the temporary files of interrupted writes.
fn remove_temporaries(run: &Path) -> Result<(), LogError> {
    let folders = Table::ALL.into_iter().map(|table| paths::table_dir(run, table));
    for dir in folders.chain([paths::live_dir(run)]) {
        for name in atomic::names(&dir)?.iter().filter(|name| name.ends_with(".tmp")) {
            atomic::remove_file(&dir.join(name))?;
        }
    }
    Ok(())
}

/// Step 2: the whole batches of a stream become the part of its number.
fn seal_stream(run: &Path, stream: &Found) -> Result<(), LogError> {
    let Some((schema, _)) = stream.contents.schema.as_ref().filter(|_| stream.contents.num_rows() > 0) else {
        return Ok(());
    };
    atomic::create_plain_dir(&paths::table_dir(run, stream.table))?;
    let pairs = [(KEY_STREAM, stream.number.to_string()), (KEY_LOST_BYTES, stream.contents.lost_bytes().to_string())];
    let batches = stream.contents.batches.iter().cloned().map(Ok);
    write_part(run, stream.table, stream.number, schema, &pairs, batches)
}

fn part_id(part: &DamagedPart) -> String {
    format!("{}/{}", part.table, paths::part_name(part.number))
}

/// Step 3: one events part for all streams and parts that have something to report and were not reported yet.
fn report(run: &Path, found: &[Found], damaged: &[DamagedPart], meta: &SchemaMeta) -> Result<(), LogError> {
    // Only a repair could have come before this one, so its report can only be the newest part.
    let sums = Sums::read(run)?;
    let told: HashSet<String> = match paths::parts(run, Table::Events)?.last() {
        Some(last) => {
            let part = Part::open(run, Table::Events, *last, &sums)?;
            let names = part.pairs.get(KEY_REPAIRED).map(String::as_str).unwrap_or_default();
            names.split(',').map(str::to_string).collect()
        }
        None => HashSet::new(),
    };
    let news: Vec<&Found> = found.iter().filter(|s| s.is_news() && !told.contains(&s.name())).collect();
    let lost: Vec<&DamagedPart> = damaged.iter().filter(|part| !told.contains(&part_id(part))).collect();
    if news.is_empty() && lost.is_empty() {
        return Ok(());
    }
    let schema = schema(Table::Events, meta);
    let wrap = |source| LogError::Arrow { table: Table::Events, source };
    let mut builder = BatchBuilder::<EventRow>::new(meta.num_patches());
    let (segment, last) = last_place(found);
    let run_id = Arc::from(meta.run_id.as_str());
    for row in lost.iter().map(|part| damage_event(part)).chain(news.iter().map(|stream| event(stream))) {
        let mut place = last;
        place.stamp.ts_us = Clock::start().stamp().ts_us;
        builder.push(&Common::new(&run_id, segment, &place), &row);
    }
    let batch = builder.finish(&schema).map_err(wrap)?;
    atomic::create_plain_dir(&paths::table_dir(run, Table::Events))?;
    let number = sums::next_number(run, Table::Events)?;
    let names: Vec<String> = news.iter().map(|s| s.name()).chain(lost.iter().map(|part| part_id(part))).collect();
    let pairs = [(KEY_STREAM, number.to_string()), (KEY_REPAIRED, names.join(","))];
    write_part(run, Table::Events, number, &schema, &pairs, std::iter::once(Ok(batch)))
}

fn damage_event(part: &DamagedPart) -> EventRow {
    let fields = json!({
        "table": part.table.name(),
        "part": part.number,
        "rows": part.num_rows,
        "damage": part.reason,
        "set_aside": part.set_aside.as_ref().and_then(|aside| aside.file_name()).map(|name| name.to_string_lossy()),
    });
    repair_event(Severity::Warn, "log_damage", part.to_string(), &fields)
}

fn repair_event(severity: Severity, kind: &'static str, message: String, fields: &serde_json::Value) -> EventRow {
    EventRow { severity, kind: kind.into(), stage: Some("log".into()), message, fields: fields.to_string() }
}

/// Segment and place of the run when it died, as far as its streams show.
fn last_place(found: &[Found]) -> (i32, Place) {
    let mut segment = 0;
    let mut last = Place { stamp: Stamp { ts_us: 0, wall_s: 0.0 }, epoch: 0, step: 0, level: None };
    for batch in found.iter().filter_map(|stream| stream.contents.batches.last()) {
        let Some(common) = Common::read(batch, batch.num_rows() - 1) else { continue };
        segment = segment.max(common.segment);
        last.epoch = last.epoch.max(common.epoch);
        last.step = last.step.max(common.step);
        last.stamp.wall_s = last.stamp.wall_s.max(common.wall_s);
    }
    (segment, last)
}

fn event(stream: &Found) -> EventRow {
    let contents = &stream.contents;
    let (name, lost, rows) = (stream.name(), contents.lost_bytes(), contents.num_rows());
    let (severity, message) = match (&contents.foreign, lost) {
        (Some(reason), _) => (Severity::Warn, format!("stream {name} set aside: {reason}")),
        (None, 0) => (Severity::Info, format!("stream {name} was left open: {rows} rows recovered, nothing torn")),
        (None, _) => (Severity::Warn, format!("stream {name} was torn: {rows} rows recovered, {lost} bytes lost")),
    };
    let fields = json!({
        "table": stream.table.name(),
        "stream": stream.number,
        "rows": rows,
        "lost_bytes": lost,
        "total_bytes": contents.total_bytes,
        "damage": contents.damage,
    });
    repair_event(severity, "log_repair", message, &fields)
}

/// Step 4: removes a stream that is sealed and reported; a file that is no log is kept under another name.
fn retire(stream: &Found) -> Result<Option<PathBuf>, LogError> {
    if stream.contents.foreign.is_none() {
        atomic::remove_file(&stream.path)?;
        return Ok(None);
    }
    let aside = stream.path.with_extension("arrows.foreign");
    atomic::rename(&stream.path, &aside)?;
    Ok(Some(aside))
}

/// Removes the rows of steps greater than `step` from the sealed parts of the tables that are truncated, part by part:
/// each part is replaced by rename, and a part without rows left is removed.
pub(crate) fn truncate_sealed(run: &Path, step: i64) -> Result<TruncateReport, LogError> {
    let mut report = TruncateReport::default();
    for table in Table::ALL.into_iter().filter(|table| table.declaration().is_truncated) {
        let mut removed = 0;
        let sums = Sums::read(run)?;
        // The newest part first: so at any moment readers see all rows up to some step, and none after it.
        for number in paths::parts(run, table)?.into_iter().rev() {
            removed += truncate_part(run, table, number, step, &sums)?;
        }
        atomic::fsync_dir(&paths::table_dir(run, table))?;
        report.tables.push((table, removed));
    }
    Ok(report)
}

fn truncate_part(run: &Path, table: Table, number: u64, step: i64, sums: &Sums) -> Result<u64, LogError> {
    let path = &paths::part_path(run, table, number);
    let part = Part::open(run, table, number, sums)?;
    if part.num_rows() == 0 || part.max_step().is_some_and(|max| max <= step) {
        return Ok(0);
    }
    let (schema, before) = (part.schema(), part.num_rows());
    let mut pairs = vec![(KEY_STREAM, part.pairs.get(KEY_STREAM).cloned().unwrap_or_else(|| number.to_string()))];
    if let Some(lost) = part.pairs.get(KEY_LOST_BYTES) {
        pairs.push((KEY_LOST_BYTES, lost.clone()));
    }
    let kept = part.read(path)?.iter().map(|b| rows_until(b, step)).collect::<Option<Vec<_>>>();
    let kept = kept.ok_or_else(|| LogError::Corrupt { path: path.to_path_buf(), reason: "no column `step`".into() })?;
    let after: u64 = kept.iter().map(|b| b.num_rows() as u64).sum();
    if after == before {
        return Ok(0);
    }
    if after == 0 && number > 0 {
        sums::append(run, &[(table, number, None)])?;
        atomic::remove_file(path)?;
    } else {
        write_part(run, table, number, &schema, &pairs, kept.into_iter().map(Ok))?;
    }
    Ok(before - after)
}

fn rows_until(batch: &RecordBatch, step: i64) -> Option<RecordBatch> {
    let steps = batch.column_by_name("step")?.as_primitive_opt::<Int64Type>()?;
    let keep: BooleanArray = steps.values().iter().map(|s| Some(*s <= step)).collect();
    filter_record_batch(batch, &keep).ok()
}
