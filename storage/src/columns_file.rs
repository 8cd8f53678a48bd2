//! A small table as a Parquet file, column by column.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};

use crate::atomic::write_atomic;
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
