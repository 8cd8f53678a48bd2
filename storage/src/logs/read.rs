//! Rows of a table as typed values, from sealed parts and open streams.

use std::marker::PhantomData;
use std::path::Path;

use super::common::{Common, Place};
use super::error::LogError;
use super::paths;
use super::row::Columns as _;
use super::sealed::{DamagedPart, row_text_bytes};
use super::tables::Row;
use super::tail::Follow;
use crate::machine_memory::{self, bytes_text};

/// A row as it was logged.
#[derive(Debug, Clone, PartialEq)]
pub struct Logged<R> {
    /// How often the run had been resumed: cumulative counters restart at 0 with each segment.
    pub segment: i32,
    /// When, and where in training.
    pub place: Place,
    /// The row.
    pub row: R,
}

/// Reads a table from its first row on, then the rows that are added.
#[derive(Debug)]
pub struct TableReader<R> {
    follow: Follow,
    row: PhantomData<R>,
}

impl<R: Row> TableReader<R> {
    /// A reader that has read nothing yet.
    #[must_use]
    pub fn new(run: &Path) -> Self {
        Self { follow: Follow::from_start(run, R::TABLE), row: PhantomData }
    }

    /// The damaged parts found since the last call; their rows are skipped.
    pub fn take_damaged(&mut self) -> Vec<DamagedPart> {
        self.follow.take_damaged()
    }

    /// The rows since the last call, at first all. Returns at once; wait between calls.
    ///
    /// # Errors
    /// If a file cannot be read or was not written by this program, or if the rows would take more than half of the
    /// available memory.
    pub fn poll(&mut self) -> Result<Vec<Logged<R>>, LogError> {
        let mut rows = Vec::new();
        let bound = machine_memory::available().num_bytes / 2;
        let mut num_bytes = 0_u64;
        self.follow.poll_rows(|batch, row| {
            num_bytes = num_bytes.saturating_add(size_of::<Logged<R>>() as u64 + row_text_bytes(batch, row));
            if num_bytes > bound {
                // Further rows are counted, not kept.
                rows = Vec::new();
                return;
            }
            if let (Some(common), Some(value)) = (Common::read(batch, row), R::read(batch, row)) {
                rows.push(Logged { segment: common.segment, place: common.place(), row: value });
            }
        })?;
        if num_bytes > bound {
            let (needed, bound) = (bytes_text(num_bytes), bytes_text(bound));
            return Err(LogError::Corrupt {
                path: paths::table_dir(self.follow.run(), R::TABLE),
                reason: format!("its rows take {needed} of memory, at most {bound} are taken for them"),
            });
        }
        Ok(rows)
    }
}
