//! The newest rows of a table, and following it as rows are added (`tail -f`).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;

use super::error::LogError;
use super::sealed::DamagedPart;
use super::source::Snapshot;
use super::tables::Table;
use super::text;

/// The last `n` rows of `table` as lines, oldest first, from sealed parts and open streams.
///
/// # Errors
/// As [`Follow::last`].
pub fn tail(run: &Path, table: Table, n: usize) -> Result<Vec<String>, LogError> {
    Ok(Follow::last(run, table, n)?.1)
}

/// Follows a table while it is being written: each [`Follow::poll`] returns the rows that came since the last one.
///
/// Damaged parts are skipped; [`Follow::take_damaged`] reports them.
#[derive(Debug)]
pub struct Follow {
    run: PathBuf,
    table: Table,
    /// The piece being read, and how many of its rows are done.
    number: u64,
    done: usize,
    damaged: Vec<DamagedPart>,
    /// Parts that were reported once.
    named: HashSet<u64>,
}

impl Follow {
    /// Follows `table` from its first row on: the first poll returns all rows so far.
    #[must_use]
    pub fn from_start(run: &Path, table: Table) -> Self {
        Self { run: run.to_path_buf(), table, number: 0, done: 0, damaged: Vec::new(), named: HashSet::new() }
    }

    /// The damaged parts found since the last call.
    pub fn take_damaged(&mut self) -> Vec<DamagedPart> {
        let mut damaged = std::mem::take(&mut self.damaged);
        damaged.retain(|part| self.named.insert(part.number));
        damaged
    }

    /// The run directory.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// Follows `table` from now on; the rows so far are skipped.
    ///
    /// # Errors
    /// As [`Follow::last`].
    pub fn new(run: &Path, table: Table) -> Result<Self, LogError> {
        Ok(Self::last(run, table, 0)?.0)
    }

    /// Follows `table` from now on, and returns its last `n` rows as lines.
    ///
    /// # Errors
    /// [`LogError::NoLogs`] if there are none; or if a file cannot be read or was not written by this program.
    pub fn last(run: &Path, table: Table, n: usize) -> Result<(Self, Vec<String>), LogError> {
        let snapshot = Snapshot::take(run, table, 0)?;
        let mut follow = Self::from_start(run, table);
        follow.damaged.extend(snapshot.missing.iter().cloned());
        let mut lines = Vec::new();
        for (i, (number, piece)) in snapshot.pieces.iter().rev().enumerate() {
            if i > 0 && lines.len() >= n {
                break;
            }
            let batches = snapshot.read(piece, &mut follow.damaged)?;
            if i == 0 {
                follow.number = *number;
                follow.done = batches.iter().map(RecordBatch::num_rows).sum();
            }
            'piece: for batch in batches.iter().rev() {
                for row in (0..batch.num_rows()).rev() {
                    if lines.len() >= n {
                        break 'piece;
                    }
                    lines.push(text::line(batch, row));
                }
            }
        }
        lines.reverse();
        Ok((follow, lines))
    }

    /// The rows that came since the last call, as lines. Returns at once; wait between calls.
    ///
    /// # Errors
    /// As [`Follow::last`].
    pub fn poll(&mut self) -> Result<Vec<String>, LogError> {
        let mut lines = Vec::new();
        self.poll_rows(|batch, row| lines.push(text::line(batch, row)))?;
        Ok(lines)
    }

    /// As [`Follow::poll`], for callers that read the columns themselves: `each(batch, row)` for every new row.
    ///
    /// # Errors
    /// As [`Follow::last`].
    pub fn poll_rows(&mut self, mut each: impl FnMut(&RecordBatch, usize)) -> Result<(), LogError> {
        let snapshot = Snapshot::take(&self.run, self.table, self.number)?;
        self.damaged.extend(snapshot.missing.iter().cloned());
        for (number, piece) in &snapshot.pieces {
            let mut skip = if *number == self.number { self.done } else { 0 };
            self.number = *number;
            self.done = skip;
            for batch in snapshot.read(piece, &mut self.damaged)? {
                let from = skip.min(batch.num_rows());
                skip -= from;
                for row in from..batch.num_rows() {
                    each(&batch, row);
                    self.done += 1;
                }
            }
        }
        Ok(())
    }
}
