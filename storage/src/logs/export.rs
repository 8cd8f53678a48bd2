//! Export of a table to one file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, SchemaRef};
use arrow::ipc::writer::FileWriter;

use super::columns::Vocabulary;
use super::error::LogError;
use super::paths::table_dir;
use super::sealed::{DamagedPart, write_parquet};
use super::source::Snapshot;
use super::sums::Sums;
use super::tables::Table;
use super::text;
use crate::atomic::create_dir_all;
use crate::out_file::OutFile;

/// The form of an exported table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// Parquet, zstd.
    Parquet,
    /// RFC 4180, with a header; nulls are empty, lists are `[a, b]`.
    Csv,
    /// An Arrow IPC file (with footer).
    ArrowIpc,
}

impl ExportFormat {
    /// The file name extension.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::ArrowIpc => "arrow",
        }
    }
}

impl FromStr for ExportFormat {
    type Err = LogError;

    fn from_str(name: &str) -> Result<Self, LogError> {
        match name {
            "parquet" => Ok(Self::Parquet),
            "csv" => Ok(Self::Csv),
            "arrow" => Ok(Self::ArrowIpc),
            _ => Err(LogError::UnknownFormat(name.to_string())),
        }
    }
}

/// The result of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The table.
    pub table: Table,
    /// The file.
    pub path: PathBuf,
    /// Rows in it.
    pub num_rows: u64,
    /// Parts whose rows are not in it.
    pub damaged: Vec<DamagedPart>,
}

/// Writes all rows of `table`, sealed and open, to `out`: see [`OutFile`]. Damaged parts are skipped.
///
/// Works on a finished, a killed and a running run, and changes nothing in it.
///
/// # Errors
/// [`LogError::NoLogs`] if there are none; or if a file cannot be read, was not written by this program, or the output
/// cannot be written.
pub fn export(run: &Path, table: Table, format: ExportFormat, out: &Path) -> Result<Exported, LogError> {
    let snapshot = Snapshot::take(run, table, 0)?;
    let schema = snapshot.schema.clone().ok_or_else(|| LogError::Corrupt {
        path: table_dir(run, table),
        reason: "the table has neither parts nor streams that can be read".into(),
    })?;
    let file = OutFile::create(out)?;
    let mut damaged = snapshot.missing.clone();
    let num_rows = match format {
        ExportFormat::Parquet => {
            let (file, rows) = write_parquet(file, out, &schema, &[], batches(&snapshot, &schema, &mut damaged))?;
            file.commit()?;
            rows
        }
        ExportFormat::Csv => write_csv(&snapshot, &schema, file, &mut damaged)?,
        ExportFormat::ArrowIpc => write_ipc(&snapshot, &schema, table, file, &mut damaged)?,
    };
    Ok(Exported { table, path: out.to_path_buf(), num_rows, damaged })
}

/// Exports every table as `<out>/<table>.<extension>`, except tables that the run lacks because an earlier version of
/// the program wrote it.
///
/// # Errors
/// As [`export`].
pub fn export_all(run: &Path, format: ExportFormat, out: &Path) -> Result<Vec<Exported>, LogError> {
    // No folder is created if there is no run.
    Snapshot::take(run, Table::Metrics, 0)?;
    create_dir_all(out)?;
    let path = |table| out.join(format!("{table}.{}", format.extension()));
    let sums = Sums::read(run)?;
    // A table that was deleted is still listed.
    let is_there = |table: &Table| table_dir(run, *table).is_dir() || sums.max_number(*table).is_some();
    Table::ALL.into_iter().filter(is_there).map(|table| export(run, table, format, &path(table))).collect()
}

/// The batches of a snapshot under one schema, piece by piece.
fn batches<'a>(
    snapshot: &'a Snapshot,
    schema: &'a SchemaRef,
    damaged: &'a mut Vec<DamagedPart>,
) -> impl Iterator<Item = Result<RecordBatch, LogError>> + 'a {
    snapshot.pieces.iter().flat_map(move |(_, piece)| match snapshot.read(piece, damaged) {
        Ok(batches) => batches.into_iter().map(|b| conform(&b, schema)).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    })
}

/// Puts a batch under the newest schema: metadata of its own, and columns of later minor versions as nulls.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, LogError> {
    let rows = batch.num_rows();
    let mut columns: Vec<ArrayRef> = batch.columns().iter().take(schema.fields().len()).cloned().collect();
    for field in schema.fields().iter().skip(columns.len()) {
        columns.push(arrow::array::new_null_array(field.data_type(), rows));
    }
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|error| LogError::Corrupt {
        path: PathBuf::from("logs"),
        reason: format!("parts of one table differ: {error}"),
    })
}

fn write_csv(
    snapshot: &Snapshot,
    schema: &SchemaRef,
    mut file: OutFile,
    damaged: &mut Vec<DamagedPart>,
) -> Result<u64, LogError> {
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let mut lines = names.join(",") + "\r\n";
    let mut value = String::new();
    let mut rows = 0;
    for batch in batches(snapshot, schema, damaged) {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        for row in 0..batch.num_rows() {
            for (i, column) in batch.columns().iter().enumerate() {
                if i > 0 {
                    lines.push(',');
                }
                value.clear();
                text::cell(column, row, &mut value);
                text::csv_field(&value, &mut lines);
            }
            lines.push_str("\r\n");
        }
        file.put(lines.as_bytes())?;
        lines.clear();
    }
    file.put(lines.as_bytes())?;
    file.commit()?;
    Ok(rows)
}

/// An IPC file allows one dictionary a column, so a first pass collects the vocabularies and a second one renumbers.
fn write_ipc(
    snapshot: &Snapshot,
    schema: &SchemaRef,
    table: Table,
    file: OutFile,
    damaged: &mut Vec<DamagedPart>,
) -> Result<u64, LogError> {
    let wrap = |source| LogError::Arrow { table, source };
    let mut vocabularies = BTreeMap::<usize, Vocabulary>::new();
    for batch in batches(snapshot, schema, damaged) {
        for (i, column) in batch?.columns().iter().enumerate().filter(|(_, c)| is_dictionary(c)) {
            renumber(column, vocabularies.entry(i).or_default()).map_err(wrap)?;
        }
    }
    let mut writer = FileWriter::try_new(file, schema).map_err(wrap)?;
    let mut rows = 0;
    // The first pass has reported the damaged parts.
    for batch in batches(snapshot, schema, &mut Vec::new()) {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        let mut columns = batch.columns().to_vec();
        for (i, vocabulary) in &mut vocabularies {
            columns[*i] = renumber(&columns[*i], vocabulary).map_err(wrap)?;
        }
        let batch = RecordBatch::try_new(Arc::clone(schema), columns).map_err(wrap)?;
        writer.write(&batch).map_err(wrap)?;
    }
    writer.into_inner().map_err(wrap)?.commit()?;
    Ok(rows)
}

fn is_dictionary(column: &ArrayRef) -> bool {
    matches!(column.data_type(), DataType::Dictionary(..))
}

/// The same column with the keys of `vocabulary`, which takes in values it does not have yet.
fn renumber(column: &ArrayRef, vocabulary: &mut Vocabulary) -> Result<ArrayRef, arrow::error::ArrowError> {
    let Some(dict) = column.as_dictionary_opt::<Int32Type>() else { return Ok(Arc::clone(column)) };
    let Some(values) = dict.values().as_string_opt::<i32>() else { return Ok(Arc::clone(column)) };
    let mut keys = Vec::<Option<i32>>::with_capacity(dict.len());
    // Only values in use enter the vocabulary, in order of first use.
    let mut known: Vec<Option<i32>> = vec![None; values.len()];
    for key in dict.keys() {
        keys.push(match key.and_then(|k| usize::try_from(k).ok()).filter(|k| *k < values.len()) {
            Some(k) if values.is_valid(k) => Some(*known[k].get_or_insert_with(|| vocabulary.key(values.value(k)))),
            _ => None,
        });
    }
    Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(keys), vocabulary.array())?))
}
