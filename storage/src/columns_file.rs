//! A small table as a Parquet file, column by column.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, RecordBatchReader, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::atomic::{open_plain, write_atomic};
use crate::guard::guarded;
use crate::logs::{LogError, write_parquet};

/// A column; `None` is null.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Text.
    Text(Vec<Option<String>>),
    /// Whole numbers.
    Int(Vec<Option<i64>>),
    /// Numbers.
    Float(Vec<Option<f64>>),
}

/// Writes the named `columns`, all of one length, as a Parquet file, atomically.
///
/// # Errors
/// If the columns have different lengths or the file cannot be written.
pub fn write_columns(path: &Path, columns: Vec<(&str, Column)>) -> Result<(), LogError> {
    let field = |(name, column): &(&str, Column)| {
        let kind = match column {
            Column::Text(_) => DataType::Utf8,
            Column::Int(_) => DataType::Int64,
            Column::Float(_) => DataType::Float64,
        };
        Field::new(*name, kind, true)
    };
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let array = |(_, column)| -> ArrayRef {
        match column {
            Column::Text(values) => Arc::new(StringArray::from(values)),
            Column::Int(values) => Arc::new(Int64Array::from(values)),
            Column::Float(values) => Arc::new(Float64Array::from(values)),
        }
    };
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.into_iter().map(array).collect())
        .map_err(|error| LogError::Corrupt { path: path.to_path_buf(), reason: error.to_string() })?;
    let (bytes, _) = write_parquet(Vec::new(), path, &schema, &[], std::iter::once(Ok(batch)))?;
    Ok(write_atomic(path, &bytes)?)
}

/// Reads the columns of a file that [`write_columns`] wrote, with their names.
///
/// # Errors
/// If the file cannot be read, is damaged, or has columns of other kinds.
pub fn read_columns(path: &Path) -> Result<Vec<(String, Column)>, LogError> {
    let corrupt = |reason: String| LogError::Corrupt { path: path.to_path_buf(), reason };
    let read = || -> Result<Vec<(String, Column)>, LogError> {
        let file = open_plain(path, OpenOptions::new().read(true)).map_err(|error| corrupt(error.to_string()))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        let reader = reader.map_err(|error| corrupt(error.to_string()))?;
        let empty = |field: &Arc<Field>| {
            let column = match field.data_type() {
                DataType::Utf8 => Column::Text(Vec::new()),
                DataType::Int64 => Column::Int(Vec::new()),
                DataType::Float64 => Column::Float(Vec::new()),
                other => return Err(corrupt(format!("column {} is of the type {other}", field.name()))),
            };
            Ok((field.name().clone(), column))
        };
        let mut columns = reader.schema().fields().iter().map(empty).collect::<Result<Vec<_>, _>>()?;
        for batch in reader {
            let batch = batch.map_err(|error| corrupt(error.to_string()))?;
            for ((_, column), array) in columns.iter_mut().zip(batch.columns()) {
                column.extend(array);
            }
        }
        Ok(columns)
    };
    // Readers of Parquet may panic on a damaged file.
    guarded(read, corrupt)
}

impl Column {
    /// Adds the values of an array of the same kind.
    fn extend(&mut self, array: &ArrayRef) {
        match self {
            Self::Text(values) => {
                values.extend(array.as_string::<i32>().iter().map(|value| value.map(str::to_owned)));
            }
            Self::Int(values) => values.extend(array.as_primitive::<Int64Type>().iter()),
            Self::Float(values) => values.extend(array.as_primitive::<Float64Type>().iter()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.parquet");
        let columns = || {
            vec![
                ("name", Column::Text(vec![Some("a".to_owned()), None, Some(String::new())])),
                ("number", Column::Int(vec![None, Some(i64::MIN), Some(7)])),
                ("value", Column::Float(vec![Some(0.1), Some(-0.0), None])),
            ]
        };
        write_columns(&path, columns()).unwrap();
        let expected: Vec<(String, Column)> =
            columns().into_iter().map(|(name, column)| (name.to_owned(), column)).collect();
        assert_eq!(read_columns(&path).unwrap(), expected);
        write_columns(&path, vec![("number", Column::Int(Vec::new()))]).unwrap();
        assert_eq!(read_columns(&path).unwrap(), [("number".to_owned(), Column::Int(Vec::new()))]);
        let bytes = std::fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(read_columns(&path).is_err(), "cut at {len}");
        }
        assert!(read_columns(&folder.path().join("none")).is_err());
    }
}
