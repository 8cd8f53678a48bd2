//! The sealed tier: complete Parquet files, each with a checksum in its footer and another in the list of parts.
//!
//! The key-value `mlomae.crc32` of a part is the CRC-32 of the file with that value's eight digits taken as zeros, so
//! that a part can be checked alone. The list `logs/sums.jsonl` has the CRC-32 of the file as it is.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, SchemaRef};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::statistics::Statistics;

use super::error::LogError;
use super::paths::part_path;
use super::schema::{SchemaMeta, recognise};
use super::sums::{self, PartSum, Sums};
use super::tables::Table;
use crate::atomic::{self, FileError, open_plain};
use crate::dataset::{footer, pages};
use crate::guard::guarded;
use crate::input;
use crate::machine_memory::{self, bytes_text};

/// Key-value of a part: the number of the live stream it was sealed from.
pub(crate) const KEY_STREAM: &str = "mlomae.stream";
/// Key-value of a part made by a repair: the bytes of its stream that could not be read.
pub(crate) const KEY_LOST_BYTES: &str = "mlomae.lost_bytes";
/// Key-value of an events part made by a repair: the streams whose repair it reports, comma-separated.
pub(crate) const KEY_REPAIRED: &str = "mlomae.repaired";
/// Key-value of a part: its own sum.
const KEY_CRC32: &str = "mlomae.crc32";
/// Key-value of a part that must have a sum of its own, so that an altered byte cannot make it look like a part of a
/// version that wrote none.
const KEY_SUMMED: &str = "mlomae.summed";
/// Placeholder of the sum, also while the sum is computed.
const NO_CRC32: &[u8; 8] = b"00000000";

/// Rows in a decoded batch.
const ROWS_PER_BATCH: usize = 8192;
/// The decoded rows of any part may take this much memory (a limit against decompression bombs); less in unit tests.
const MAX_PART_BYTES: u64 = if cfg!(test) { 64 << 20 } else { 2 << 30 };
/// The decoded rows of a larger part may take this many times its size; real parts are not compressed below a
/// twentieth.
const MAX_RATIO: u64 = 64;

fn properties(schema: &SchemaRef, extra: &[(&str, String)]) -> WriterProperties {
    let mut pairs: Vec<KeyValue> = schema.metadata().iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone())).collect();
    pairs.extend(extra.iter().map(|(k, v)| KeyValue::new((*k).to_string(), v.clone())));
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    let level = ZstdLevel::try_new(3).unwrap_or_default();
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_created_by(format!("mlomae {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(pairs))
        .build()
}

/// Writes batches to `out`, which is given back; zero batches make a file of zero rows. Returns the number of rows too.
///
/// `path` is for errors.
pub(crate) fn write_parquet<W: Write + Send>(
    out: W,
    path: &Path,
    schema: &SchemaRef,
    extra: &[(&str, String)],
    batches: impl Iterator<Item = Result<RecordBatch, LogError>>,
) -> Result<(W, u64), LogError> {
    let wrap = |source| LogError::Parquet { path: path.to_path_buf(), source };
    let mut writer =
        ArrowWriter::try_new(out, SchemaRef::clone(schema), Some(properties(schema, extra))).map_err(wrap)?;
    let mut rows = 0;
    for batch in batches {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(wrap)?;
    }
    Ok((writer.into_inner().map_err(wrap)?, rows))
}

/// Writes a part atomically and durably, replacing one of its number, and adds it to the list.
pub(crate) fn write_part(
    run: &Path,
    table: Table,
    number: u64,
    schema: &SchemaRef,
    extra: &[(&str, String)],
    batches: impl Iterator<Item = Result<RecordBatch, LogError>>,
) -> Result<(), LogError> {
    let path = part_path(run, table, number);
    let mut extra = extra.to_vec();
    extra.push((KEY_CRC32, String::from_utf8_lossy(NO_CRC32).into_owned()));
    extra.push((KEY_SUMMED, "crc32".to_owned()));
    // Parts are sealed at a size limit, so one fits into memory.
    let (mut bytes, rows) = write_parquet(Vec::new(), &path, schema, &extra, batches)?;
    if let Some(at) = crc32_place(&bytes) {
        let crc32 = format!("{:08x}", crc32fast::hash(&bytes));
        bytes[at..at + NO_CRC32.len()].copy_from_slice(crc32.as_bytes());
    }
    let line = [(table, number, Some(PartSum { rows, bytes: bytes.len() as u64, crc32: crc32fast::hash(&bytes) }))];
    let replaces = std::fs::symlink_metadata(&path).is_ok();
    if replaces {
        sums::append(run, &line)?;
    }
    atomic::write_atomic(&path, &bytes)?;
    if replaces { Ok(()) } else { Ok(sums::append(run, &line)?) }
}

/// Position of the digits of a part's own sum: in its footer, after their key and Thrift's type and length.
fn crc32_place(bytes: &[u8]) -> Option<usize> {
    let (_, tail) = bytes.split_last_chunk::<8>()?;
    let footer_bytes = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]) as usize;
    let footer = bytes.len().checked_sub(8)?.checked_sub(footer_bytes)?;
    let key = [KEY_CRC32.as_bytes(), &[0x18, 8]].concat();
    // The key-values come after everything that depends on rows.
    let at = bytes[footer..].windows(key.len()).rposition(|window| window == key)?;
    let digits = footer + at + key.len();
    (digits + NO_CRC32.len() <= bytes.len()).then_some(digits)
}

/// Checks a part against its own sum; true if it has none.
fn fits_itself(bytes: &[u8]) -> bool {
    let Some(at) = crc32_place(bytes) else { return true };
    let (before, rest) = bytes.split_at(at);
    let (digits, after) = rest.split_at(NO_CRC32.len());
    let mut hasher = crc32fast::Hasher::new();
    [before, NO_CRC32, after].iter().for_each(|piece| hasher.update(piece));
    format!("{:08x}", hasher.finalize()).as_bytes() == digits
}

/// A part that is damaged or missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPart {
    /// Its table.
    pub table: Table,
    /// Its number.
    pub number: u64,
    /// Where it is, or should be.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// The rows that are lost with it, if the list of parts says.
    pub num_rows: Option<u64>,
    /// What a repair renamed it to.
    pub set_aside: Option<PathBuf>,
}

impl std::fmt::Display for DamagedPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.num_rows {
            Some(rows) => write!(f, "{rows} rows of table {} are lost: ", self.table)?,
            None => write!(f, "rows of table {} are lost: ", self.table)?,
        }
        write!(f, "{}: `{}`", self.reason, self.path.display())?;
        self.set_aside.as_ref().map_or(Ok(()), |aside| write!(f, ", set aside as `{}`", aside.display()))
    }
}

/// A sealed part, opened and checked: its schema and key-values.
pub(crate) struct Part {
    bytes: Bytes,
    metadata: ArrowReaderMetadata,
    meta: SchemaMeta,
    /// Whether the list has it.
    pub(crate) is_listed: bool,
    /// Key-values of the file.
    pub(crate) pairs: HashMap<String, String>,
}

fn corrupt(path: &Path, reason: impl ToString) -> LogError {
    LogError::Corrupt { path: path.to_path_buf(), reason: reason.to_string() }
}

/// Opens a part's file; the handle stays valid if the file is renamed or replaced.
pub(crate) fn open_file(path: &Path) -> Result<File, FileError> {
    open_plain(path, OpenOptions::new().read(true)).map_err(|e| FileError::new("open", path, e))
}

fn read_from_start(mut file: &File) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(0))?;
    input::read_to_end(file, file.metadata()?.len(), machine_memory::available().num_bytes / 2)
}

impl Part {
    /// Opens the part of `table` with a number.
    pub(crate) fn open(run: &Path, table: Table, number: u64, sums: &Sums) -> Result<Self, LogError> {
        let path = part_path(run, table, number);
        Self::of_file(&open_file(&path)?, &path, table, number, sums)
    }

    /// Reads an open file and checks that it is a part of `table`, the one of its number, and whole.
    ///
    /// A file that cannot be read is a [`LogError::File`], one with wrong contents a [`LogError::Corrupt`].
    pub(crate) fn of_file(file: &File, path: &Path, table: Table, number: u64, sums: &Sums) -> Result<Self, LogError> {
        let bytes = read_from_start(file).map_err(|e| FileError::new("read", path, e))?;
        let num_bytes = bytes.len() as u64;
        let fits = sums.fits(table, number, num_bytes, crc32fast::hash(&bytes));
        if fits == Some(false) {
            let reason = match sums.newest(table, number) {
                Some(sum) if sum.bytes != num_bytes => format!("it has {num_bytes} of {} bytes", sum.bytes),
                _ => "it was altered, its checksum does not fit".to_owned(),
            };
            return Err(corrupt(path, reason));
        }
        let is_listed = fits == Some(true);
        let has_own_sum = crc32_place(&bytes).is_some();
        if !is_listed && !fits_itself(&bytes) {
            return Err(corrupt(path, "it was altered, its checksum does not fit"));
        }
        match Self::parse(Bytes::from(bytes), path, table, is_listed) {
            Err(LogError::Corrupt { path, reason }) if is_listed || has_own_sum => {
                Err(LogError::Foreign { path, reason })
            }
            Ok(part) if !is_listed && !has_own_sum && part.pairs.contains_key(KEY_SUMMED) => {
                Err(corrupt(path, "it was altered, its checksum is gone"))
            }
            other => other,
        }
    }

    fn parse(bytes: Bytes, path: &Path, table: Table, is_listed: bool) -> Result<Self, LogError> {
        footer::check(&bytes).map_err(|e| corrupt(path, e))?;
        let load = || ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::default()).map_err(|e| corrupt(path, e));
        let metadata = guarded(load, |reason| corrupt(path, reason))?;
        let meta = recognise(table, metadata.schema()).map_err(|e| corrupt(path, e))?;
        let pairs = metadata.metadata().file_metadata().key_value_metadata();
        let pairs = pairs.into_iter().flatten().filter_map(|p| Some((p.key.clone(), p.value.clone()?))).collect();
        Ok(Self { bytes, metadata, meta, is_listed, pairs })
    }

    /// The run's metadata in the part.
    pub(crate) fn meta(&self) -> &SchemaMeta {
        &self.meta
    }

    /// The part's entry for the list.
    pub(crate) fn sum(&self) -> PartSum {
        PartSum { rows: self.num_rows(), bytes: self.bytes.len() as u64, crc32: crc32fast::hash(&self.bytes) }
    }

    /// The Arrow schema with its metadata.
    pub(crate) fn schema(&self) -> SchemaRef {
        SchemaRef::clone(self.metadata.schema())
    }

    /// Number of rows.
    pub(crate) fn num_rows(&self) -> u64 {
        u64::try_from(self.metadata.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// The greatest value of the column `step`, from the statistics; none if they do not say.
    pub(crate) fn max_step(&self) -> Option<i64> {
        let footer = self.metadata.metadata();
        let schema = footer.file_metadata().schema_descr();
        let column = (0..schema.num_columns()).find(|i| schema.column(*i).path().string() == "step")?;
        let mut max = i64::MIN;
        for group in footer.row_groups() {
            match group.column(column).statistics()? {
                Statistics::Int64(stats) => max = max.max(*stats.max_opt()?),
                _ => return None,
            }
        }
        Some(max)
    }

    /// All batches. Their memory is bounded before they are decoded; that of text while they are, since a dictionary
    /// stores a text once for any number of rows.
    pub(crate) fn read(self, path: &Path) -> Result<Vec<RecordBatch>, LogError> {
        let bound = max_bytes(self.bytes.len() as u64);
        let refuse = |needed: u64| {
            let (needed, bound) = (bytes_text(needed), bytes_text(bound));
            corrupt(path, format!("its rows take {needed} of memory or more, at most {bound} are taken for them"))
        };
        let decode = || {
            let extent = pages::check(&self.bytes, self.metadata.metadata(), &ProjectionMask::all());
            let extent = extent.map_err(|e| corrupt(path, e))?;
            if extent.value_bytes > bound {
                return Err(refuse(extent.value_bytes));
            }
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes, self.metadata)
                .with_batch_size(extent.batch_rows(ROWS_PER_BATCH))
                .build()
                .map_err(|e| corrupt(path, e))?;
            let (mut batches, mut num_bytes) = (Vec::new(), extent.value_bytes);
            for batch in reader {
                let batch = batch.map_err(|e| corrupt(path, e))?;
                num_bytes = num_bytes.saturating_add(text_bytes(&batch));
                if num_bytes > bound {
                    return Err(refuse(num_bytes));
                }
                batches.push(batch);
            }
            Ok(batches)
        };
        guarded(decode, |reason| corrupt(path, reason))
    }
}

/// Memory that the rows of a part of `file_bytes` may take: at most half of what is available, and no more than any
/// part of a real run needs.
fn max_bytes(file_bytes: u64) -> u64 {
    let believable = MAX_PART_BYTES.max(file_bytes.saturating_mul(MAX_RATIO));
    believable.min(machine_memory::available().num_bytes / 2)
}

/// Bytes of all texts of a batch, each counted in every row that has it.
fn text_bytes(batch: &RecordBatch) -> u64 {
    (0..batch.num_rows()).map(|row| row_text_bytes(batch, row)).fold(0, u64::saturating_add)
}

/// Bytes of the texts in a row.
pub(crate) fn row_text_bytes(batch: &RecordBatch, row: usize) -> u64 {
    let of_column = |column: &ArrayRef| {
        if column.is_null(row) {
            return 0;
        }
        if let Some(texts) = column.as_string_opt::<i32>() {
            return texts.value_length(row).max(0) as u64;
        }
        let named = column.as_dictionary_opt::<Int32Type>().and_then(|dictionary| {
            let key = usize::try_from(dictionary.keys().value(row)).ok()?;
            let values = dictionary.values().as_string_opt::<i32>()?;
            (key < values.len()).then(|| values.value_length(key).max(0) as u64)
        });
        named.unwrap_or(0)
    };
    batch.columns().iter().map(of_column).sum()
}
