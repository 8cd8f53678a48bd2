//! The sealed tier: whole Parquet files.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::statistics::Statistics;

use super::error::LogError;
use super::schema::{Table, recognise};
use crate::atomic::{AtomicFile, FileError};
use crate::guard::guarded;

/// Key-value of a part: the number of the live stream it was sealed from.
pub(crate) const KEY_STREAM: &str = "mlomae.stream";
/// Key-value of a part made by a repair: the bytes of its stream that could not be read.
pub(crate) const KEY_LOST_BYTES: &str = "mlomae.lost_bytes";
/// Key-value of an events part made by a repair: the streams whose repair it reports, comma-separated.
pub(crate) const KEY_REPAIRED: &str = "mlomae.repaired";

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
        let file = File::open(path).map_err(|e| FileError::new("open", path, e))?;
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

    /// All batches.
    pub(crate) fn read(self, path: &Path) -> Result<Vec<RecordBatch>, LogError> {
        let decode = || {
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file, self.metadata)
                .with_batch_size(8192)
                .build()
                .map_err(|e| corrupt(path, e))?;
            reader.map(|batch| batch.map_err(|e| corrupt(path, e))).collect()
        };
        guarded(decode, |reason| corrupt(path, reason))
    }
}
