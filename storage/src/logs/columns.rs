//! Rows into record batches.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, DictionaryArray, FixedSizeListArray, Float32Builder, Float64Builder, Int16Builder,
    Int32Builder, Int64Builder, NullBufferBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use arrow::error::ArrowError;

use super::rows::Cell;

/// Text values with stable numbers: a value keeps its key for as long as the vocabulary lives.
///
/// Keys are only ever appended, so a reader that keeps just the newest dictionary of a stream still decodes every batch.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    keys: HashMap<String, i32>,
    values: Vec<String>,
    /// The values as an array, shared by all batches until a value is added.
    array: Option<ArrayRef>,
}

impl Vocabulary {
    pub(crate) fn key(&mut self, value: &str) -> i32 {
        if let Some(key) = self.keys.get(value) {
            return *key;
        }
        let key = i32::try_from(self.values.len()).unwrap_or(i32::MAX);
        self.keys.insert(value.to_string(), key);
        self.values.push(value.to_string());
        self.array = None;
        key
    }

    pub(crate) fn array(&mut self) -> ArrayRef {
        let values = &self.values;
        Arc::clone(self.array.get_or_insert_with(|| Arc::new(StringArray::from_iter_values(values))))
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[derive(Debug)]
enum Column {
    Dict { keys: Int32Builder, vocabulary: Vocabulary },
    Utf8(StringBuilder),
    Time(TimestampMicrosecondBuilder),
    I64(Int64Builder),
    I32(Int32Builder),
    I16(Int16Builder),
    F64(Float64Builder),
    F32(Float32Builder),
    Bools { item: FieldRef, len: i32, values: BooleanBuilder },
    Floats { item: FieldRef, len: i32, values: Float32Builder, valid: NullBufferBuilder },
}

impl Column {
    fn new(kind: &DataType) -> Result<Self, ArrowError> {
        Ok(match kind {
            DataType::Dictionary(..) => Self::Dict { keys: Int32Builder::new(), vocabulary: Vocabulary::default() },
            DataType::Utf8 => Self::Utf8(StringBuilder::new()),
            DataType::Timestamp(_, zone) => {
                Self::Time(TimestampMicrosecondBuilder::new().with_timezone_opt(zone.clone()))
            }
            DataType::Int64 => Self::I64(Int64Builder::new()),
            DataType::Int32 => Self::I32(Int32Builder::new()),
            DataType::Int16 => Self::I16(Int16Builder::new()),
            DataType::Float64 => Self::F64(Float64Builder::new()),
            DataType::Float32 => Self::F32(Float32Builder::new()),
            DataType::FixedSizeList(item, len) => match item.data_type() {
                DataType::Boolean => Self::Bools { item: Arc::clone(item), len: *len, values: BooleanBuilder::new() },
                _ => Self::Floats {
                    item: Arc::clone(item),
                    len: *len,
                    values: Float32Builder::new(),
                    valid: NullBufferBuilder::new(0),
                },
            },
            other => return Err(ArrowError::SchemaError(format!("no log column has the type {other}"))),
        })
    }

    fn push(&mut self, cell: Cell<'_>) {
        match (self, cell) {
            (Self::Dict { keys, vocabulary }, Cell::Text(value)) => {
                keys.append_option(value.map(|v| vocabulary.key(v)));
            }
            (Self::Utf8(values), Cell::Text(value)) => values.append_option(value),
            (Self::Time(values), Cell::I64(value)) => values.append_value(value),
            (Self::I64(values), Cell::I64(value)) => values.append_value(value),
            (Self::I32(values), Cell::I32(value)) => values.append_option(value),
            (Self::I16(values), Cell::I16(value)) => values.append_value(value),
            (Self::F64(values), Cell::F64(value)) => values.append_value(value),
            (Self::F32(values), Cell::F32(value)) => values.append_value(value),
            (Self::Bools { values, .. }, Cell::Bools(items)) => values.append_slice(items),
            (Self::Floats { values, valid, len, .. }, Cell::Floats(items)) => match items {
                Some(items) => {
                    values.append_slice(items);
                    valid.append_non_null();
                }
                None => {
                    // Items are not nullable, so an absent list still holds zeros under its null bit.
                    (0..*len).for_each(|_| values.append_value(0.0));
                    valid.append_null();
                }
            },
            (column, cell) => unreachable!("invariant: a row's cells follow its columns: {column:?} <- {cell:?}"),
        }
    }

    fn finish(&mut self, rows: usize) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Self::Dict { keys, vocabulary } => Arc::new(DictionaryArray::try_new(keys.finish(), vocabulary.array())?),
            Self::Utf8(values) => Arc::new(values.finish()),
            Self::Time(values) => Arc::new(values.finish()),
            Self::I64(values) => Arc::new(values.finish()),
            Self::I32(values) => Arc::new(values.finish()),
            Self::I16(values) => Arc::new(values.finish()),
            Self::F64(values) => Arc::new(values.finish()),
            Self::F32(values) => Arc::new(values.finish()),
            Self::Bools { item, len, values } => {
                let values = Arc::new(values.finish());
                Arc::new(FixedSizeListArray::try_new_with_length(Arc::clone(item), *len, values, None, rows)?)
            }
            Self::Floats { item, len, values, valid } => {
                let (values, valid) = (Arc::new(values.finish()), valid.finish());
                Arc::new(FixedSizeListArray::try_new_with_length(Arc::clone(item), *len, values, valid, rows)?)
            }
        })
    }
}

/// Collects rows of one table into record batches.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    schema: SchemaRef,
    columns: Vec<Column>,
    rows: usize,
}

impl BatchBuilder {
    pub(crate) fn new(schema: SchemaRef) -> Result<Self, ArrowError> {
        let columns = schema.fields().iter().map(|f| Column::new(f.data_type())).collect::<Result<_, _>>()?;
        Ok(Self { schema, columns, rows: 0 })
    }

    pub(crate) fn push(&mut self, cells: &[Cell<'_>]) {
        assert_eq!(cells.len(), self.columns.len(), "invariant: one cell a column");
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            column.push(*cell);
        }
        self.rows += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// The rows so far as a batch; the vocabularies stay.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let rows = std::mem::take(&mut self.rows);
        let columns = self.columns.iter_mut().map(|c| c.finish(rows)).collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }

    /// Forgets vocabularies that have grown beyond `limit` values, between two streams.
    pub(crate) fn trim_vocabularies(&mut self, limit: usize) {
        for column in &mut self.columns {
            if let Column::Dict { keys, vocabulary } = column {
                debug_assert!(keys.values_slice().is_empty(), "keys in flight");
                if vocabulary.len() > limit {
                    vocabulary.clear();
                }
            }
        }
    }
}

/// Bytes held by a batch's arrays, roughly.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|c| c.get_buffer_memory_size()).sum()
}
