//! Consistent snapshots of a table, sealed and open, also while it is written, resumed or repaired by another process.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::error::LogError;
use super::paths;
use super::repair::missing;
use super::sealed::{DamagedPart, Part, open_file};
use super::stream::read_stream;
use super::sums::Sums;
use super::tables::Table;

/// How often a snapshot is retried when its files change meanwhile, as they do for an instant in a resume.
const ATTEMPTS: u32 = 40;
/// The pause before a retry.
const PAUSE: Duration = Duration::from_millis(5);
/// Parts that a snapshot holds open at most, the newest: they stay readable whatever a resume or a repair does.
const MAX_OPEN: usize = 400;

/// A piece of a table: a sealed part, or the rows of an open stream.
#[derive(Debug)]
pub(crate) enum Piece {
    Sealed(Sealed),
    Live(Vec<RecordBatch>),
}

/// A sealed part that is yet to be read.
#[derive(Debug)]
pub(crate) struct Sealed {
    number: u64,
    path: PathBuf,
    /// None for the oldest parts of a long run.
    file: Option<File>,
}

/// All rows of a table at one moment, each exactly once, in order.
#[derive(Debug)]
pub(crate) struct Snapshot {
    table: Table,
    /// Number and piece, ascending.
    pub(crate) pieces: Vec<(u64, Piece)>,
    /// The newest schema, with its metadata.
    pub(crate) schema: Option<SchemaRef>,
    /// Parts that are listed but missing.
    pub(crate) missing: Vec<DamagedPart>,
    sums: Sums,
}

impl Snapshot {
    /// Takes a snapshot of the pieces numbered `from` and higher, without a lock: the streams are read before the parts
    /// are listed, so rows that move from one to the other are seen in the part; and if parts are replaced or removed
    /// meanwhile, as by a resume or a repair, it is taken again.
    pub(crate) fn take(run: &Path, table: Table, from: u64) -> Result<Self, LogError> {
        for _ in 1..ATTEMPTS {
            if let Some(snapshot) = Self::try_take(run, table, from)? {
                return Ok(snapshot);
            }
            std::thread::sleep(PAUSE);
        }
        Self::try_take(run, table, from)?.ok_or_else(|| LogError::Changing { path: paths::table_dir(run, table) })
    }

    /// None if the parts changed meanwhile.
    fn try_take(run: &Path, table: Table, from: u64) -> Result<Option<Self>, LogError> {
        paths::require_logs(run)?;
        let before = Sums::read(run)?;
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
        let first_open = parts.len().saturating_sub(MAX_OPEN);
        let mut sealed = Vec::new();
        for (place, &number) in parts.iter().enumerate().filter(|(_, number)| **number >= from) {
            let path = paths::part_path(run, table, number);
            let file = match (place >= first_open).then(|| open_file(&path)).transpose() {
                Ok(file) => file,
                Err(error) if error.is_missing() => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            sealed.push(Sealed { number, path, file });
        }
        // A new part is listed after it is there, and a replaced or removed one before: this list knows what was
        // opened.
        let sums = Sums::read(run)?;
        // Numbers are never reused: a stream that still exists was neither sealed nor removed meanwhile.
        let streams = paths::streams(run, table)?;
        let is_same = sealed.iter().all(Sealed::is_in_place)
            && live.iter().all(|(number, _)| streams.contains(number))
            && paths::parts(run, table)?.starts_with(&parts);
        if !is_same {
            return Ok(None);
        }
        let is_missing = |number: &u64| {
            let is_here = parts.contains(number) || live.iter().any(|(other, _)| other == number);
            *number >= from && !is_here && sums.newest(table, *number).is_some()
        };
        let missing = before.expected(table).filter(is_missing).map(|n| missing(run, table, n, &sums)).collect();
        let mut schema = live.last().and_then(|(_, c)| c.schema.as_ref()).map(|(schema, _)| SchemaRef::clone(schema));
        let mut newest_first = parts.iter().rev();
        while schema.is_none() {
            let Some(number) = newest_first.next() else { break };
            match Part::open(run, table, *number, &sums) {
                Ok(part) => schema = Some(part.schema()),
                Err(LogError::Corrupt { .. }) => {}
                Err(LogError::File(error)) if error.is_missing() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let mut pieces: Vec<(u64, Piece)> = sealed.into_iter().map(|part| (part.number, Piece::Sealed(part))).collect();
        pieces.extend(live.into_iter().map(|(n, contents)| (n, Piece::Live(contents.batches))));
        pieces.sort_by_key(|(number, _)| *number);
        Ok(Some(Self { table, pieces, schema, missing, sums }))
    }

    /// The batches of one piece; none of a part that is damaged, which is added to `damaged`.
    pub(crate) fn read(&self, piece: &Piece, damaged: &mut Vec<DamagedPart>) -> Result<Vec<RecordBatch>, LogError> {
        let part = match piece {
            Piece::Live(batches) => return Ok(batches.clone()),
            Piece::Sealed(part) => part,
        };
        match self.read_part(part) {
            Err(LogError::Corrupt { reason, .. }) => {
                let num_rows = self.sums.newest(self.table, part.number).map(|sum| sum.rows);
                let (table, number, path) = (self.table, part.number, part.path.clone());
                damaged.push(DamagedPart { table, number, path, reason, num_rows, set_aside: None });
                Ok(Vec::new())
            }
            other => other,
        }
    }

    fn read_part(&self, part: &Sealed) -> Result<Vec<RecordBatch>, LogError> {
        let opened;
        let file = match &part.file {
            Some(file) => file,
            None => {
                opened = open_file(&part.path)?;
                &opened
            }
        };
        Part::of_file(file, &part.path, self.table, part.number, &self.sums)?.read(&part.path)
    }
}

impl Sealed {
    /// Whether the path still names the open file.
    fn is_in_place(&self) -> bool {
        let Some(file) = &self.file else { return true };
        match (file.metadata(), fs::symlink_metadata(&self.path)) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }
}
