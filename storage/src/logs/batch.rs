//! Rows to Arrow record batches.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use super::common::Common;
use super::row::{Builders, Columns};

/// Collects rows of one table into record batches.
#[derive(Debug)]
pub struct BatchBuilder<R: Columns> {
    common: <Common as Columns>::Builders,
    own: R::Builders,
    num_rows: usize,
}

impl<R: Columns> BatchBuilder<R> {
    /// A builder without rows, whose lists have `num_patches` values.
    pub(super) fn new(num_patches: usize) -> Self {
        Self { common: Common::builders(num_patches), own: R::builders(num_patches), num_rows: 0 }
    }

    pub(super) fn push(&mut self, common: &Common, row: &R) {
        common.push(&mut self.common);
        row.push(&mut self.own);
        self.num_rows += 1;
    }
}

/// A builder of any table.
pub trait AnyBatchBuilder {
    /// Number of rows since the last batch.
    fn num_rows(&self) -> usize;

    /// The rows so far as a batch under the table's schema; the vocabularies stay.
    ///
    /// # Errors
    /// [`ArrowError`] if the rows do not follow the schema.
    fn finish(&mut self, schema: &SchemaRef) -> Result<RecordBatch, ArrowError>;

    /// Clears dictionaries of more than `limit` values. Only between two streams: keys start again at 0.
    fn trim_vocabularies(&mut self, limit: usize);
}

impl<R: Columns> AnyBatchBuilder for BatchBuilder<R> {
    fn num_rows(&self) -> usize {
        self.num_rows
    }

    fn finish(&mut self, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
        let num_rows = std::mem::take(&mut self.num_rows);
        let columns = self.common.all().into_iter().chain(self.own.all());
        let columns = columns.map(|column| column.finish(num_rows)).collect::<Result<Vec<ArrayRef>, _>>()?;
        RecordBatch::try_new(Arc::clone(schema), columns)
    }

    fn trim_vocabularies(&mut self, limit: usize) {
        self.common.all().into_iter().chain(self.own.all()).for_each(|column| column.trim(limit));
    }
}

/// Bytes held by a batch's arrays, roughly.
pub(super) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| column.get_buffer_memory_size()).sum()
}
