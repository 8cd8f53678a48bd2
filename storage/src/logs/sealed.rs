//! The sealed tier: whole Parquet files.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, SchemaRef};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::statistics::Statistics;

use super::error::LogError;
use super::schema::{Table, recognise};
use crate::atomic::{AtomicFile, FileError};
use crate::dataset::{footer, pages};
use crate::guard::guarded;
use crate::input::open_regular;
use crate::machine_memory::{self, bytes_text};

/// Key-value of a part: the number of the live stream it was sealed from.
pub(crate) const KEY_STREAM: &str = "mlomae.stream";
/// Key-value of a part made by a repair: the bytes of its stream that could not be read.
pub(crate) const KEY_LOST_BYTES: &str = "mlomae.lost_bytes";
/// Key-value of an events part made by a repair: the streams whose repair it reports, comma-separated.
pub(crate) const KEY_REPAIRED: &str = "mlomae.repaired";

/// Rows that are decoded at once.
const ROWS_PER_BATCH: usize = 8192;
/// The rows of any part may take this much memory; in unit tests less, which is sooner filled.
const MAX_PART_BYTES: u64 = if cfg!(test) { 64 << 20 } else { 2 << 30 };
/// Those of a larger one may take this many times its size. Numbers shrink to a twentieth at most.
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

/// Writes batches to `path`, which appears only when it is whole and on the disk.
///
/// `next` yields the batches; zero batches make a file of zero rows. Returns the number of rows.
pub(crate) fn write_parquet(
    path: &Path,
    schema: &SchemaRef,
    extra: &[(&str, String)],
    batches: impl Iterator<Item = Result<RecordBatch, LogError>>,
) -> Result<u64, LogError> {
    let wrap = |source| LogError::Parquet { path: path.to_path_buf(), source };
    let file = AtomicFile::create(path)?;
    let mut writer =
        ArrowWriter::try_new(file, SchemaRef::clone(schema), Some(properties(schema, extra))).map_err(wrap)?;
    let mut rows = 0;
    for batch in batches {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(wrap)?;
    }
    writer.into_inner().map_err(wrap)?.commit()?;
    Ok(rows)
}

/// A sealed part, opened: its schema and key-values.
pub(crate) struct Part {
    file: File,
    metadata: ArrowReaderMetadata,
    /// Key-values of the file.
    pub(crate) pairs: HashMap<String, String>,
}

fn corrupt(path: &Path, reason: impl ToString) -> LogError {
    LogError::Corrupt { path: path.to_path_buf(), reason: reason.to_string() }
}

impl Part {
    /// Opens a part and checks that it holds `table`.
    pub(crate) fn open(path: &Path, table: Table) -> Result<Self, LogError> {
        let file = open_regular(path).map_err(|e| FileError::new("open", path, e))?;
        footer::check(&file).map_err(|e| corrupt(path, e))?;
        let load = || ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()).map_err(|e| corrupt(path, e));
        let metadata = guarded(load, |reason| corrupt(path, reason))?;
        recognise(table, metadata.schema()).map_err(|e| corrupt(path, e))?;
        let pairs = metadata.metadata().file_metadata().key_value_metadata();
        let pairs = pairs.into_iter().flatten().filter_map(|p| Some((p.key.clone(), p.value.clone()?))).collect();
        Ok(Self { file, metadata, pairs })
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

    /// All batches. What they take is bounded before they are decoded, and texts, of which a dictionary says once what is in
    /// a million rows, while they are.
    pub(crate) fn read(self, path: &Path) -> Result<Vec<RecordBatch>, LogError> {
        let bound = self.file.metadata().map_or(0, |file| max_bytes(file.len()));
        let refuse = |needed: u64| {
            let (needed, bound) = (bytes_text(needed), bytes_text(bound));
            corrupt(path, format!("its rows take {needed} of memory or more, at most {bound} are taken for them"))
        };
        let decode = || {
            let extent = pages::check(&self.file, self.metadata.metadata(), &ProjectionMask::all());
            let extent = extent.map_err(|e| corrupt(path, e))?;
            if extent.value_bytes > bound {
                return Err(refuse(extent.value_bytes));
            }
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file, self.metadata)
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

/// What the rows of a part of `file_bytes` may take: half of the memory that is left, and of that what no part of a real
/// run comes near.
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
