//! Reading a table, sealed and open, also while a run is writing it.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::error::LogError;
use super::paths;
use super::schema::Table;
use super::sealed::Part;
use super::stream::read_stream;

/// A piece of a table: a sealed part, or the rows of an open stream.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Sealed(PathBuf),
    Live(Vec<RecordBatch>),
}

/// All rows of a table at one moment, each exactly once, in order.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    table: Table,
    /// Number and piece, ascending.
    pub(crate) pieces: Vec<(u64, Piece)>,
    /// The newest schema, with its metadata.
    pub(crate) schema: Option<SchemaRef>,
}

impl Snapshot {
    /// Takes a snapshot of the pieces numbered `from` and higher. No lock is needed:
    /// the streams are read before the parts are listed, so rows that move from one to the other are seen in the part.
    pub(crate) fn take(run: &Path, table: Table, from: u64) -> Result<Self, LogError> {
        paths::require_logs(run)?;
        let mut live = Vec::new();
        for number in paths::streams(run, table)?.into_iter().filter(|n| *n >= from) {
            match read_stream(&paths::live_path(run, table, number), table) {
                Ok(contents) => live.push((number, contents)),
                // Sealed since it was listed.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let parts = paths::parts(run, table)?;
        live.retain(|(number, _)| !parts.contains(number));
        let mut schema = live.last().and_then(|(_, c)| c.schema.as_ref()).map(|(schema, _)| SchemaRef::clone(schema));
        if schema.is_none()
            && let Some(last) = parts.last()
        {
            schema = Some(Part::open(&paths::part_path(run, table, *last), table)?.schema());
        }
        let sealed = parts.into_iter().filter(|n| *n >= from);
        let mut pieces: Vec<(u64, Piece)> =
            sealed.map(|n| (n, Piece::Sealed(paths::part_path(run, table, n)))).collect();
        pieces.extend(live.into_iter().map(|(n, contents)| (n, Piece::Live(contents.batches))));
        pieces.sort_by_key(|(number, _)| *number);
        Ok(Self { table, pieces, schema })
    }

    /// The batches of one piece.
    pub(crate) fn read(&self, piece: &Piece) -> Result<Vec<RecordBatch>, LogError> {
        match piece {
            Piece::Sealed(path) => Part::open(path, self.table)?.read(path),
            Piece::Live(batches) => Ok(batches.clone()),
        }
    }
}
