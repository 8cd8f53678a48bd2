//! The live tier: one open Arrow IPC stream a table, readable at any time, also after its writer was killed.
//!
//! A dictionary that has grown is written again as a whole, with the old values under their old keys; never as a delta,
//! which polars refuses. pyarrow and polars read such streams, with and without an end-of-stream marker.
//!
//! The metadata of each frame is padded by the [`TRAILER`], a checksum that other readers ignore: after a power loss,
//! pages of a frame may read as zeros, which nothing else in the format would reveal.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;

use super::error::LogError;
use super::stream::{TRAILER, frame_sum, frames};
use super::tables::Table;
use crate::atomic::{self, AtomicFile, FileError};

/// An open stream.
pub(crate) struct LiveStream {
    table: Table,
    path: PathBuf,
    number: u64,
    file: File,
    /// Length of the file up to the last whole frame.
    good_bytes: u64,
    /// The file may hold a part of a frame after `good_bytes`.
    torn: bool,
    /// Encodes into memory; what it holds is not yet in the file.
    encoder: StreamWriter<Vec<u8>>,
}

impl LiveStream {
    /// Creates the stream's file. It gets its name by a rename once the schema is in it, so that readers never see it
    /// without one.
    pub(crate) fn create(path: &Path, table: Table, number: u64, schema: &Schema) -> Result<Self, LogError> {
        let mut encoder =
            StreamWriter::try_new(Vec::new(), schema).map_err(|source| LogError::Arrow { table, source })?;
        let head = summed(&std::mem::take(encoder.get_mut()), table)?;
        let mut new = AtomicFile::create(path)?;
        new.put(&head)?;
        let file = new.publish()?;
        let good_bytes = head.len() as u64;
        Ok(Self { table, path: path.to_path_buf(), number, file, good_bytes, torn: false, encoder })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file and in the buffer.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.good_bytes + self.encoder.get_ref().len() as u64
    }

    /// Encodes a batch into the buffer that [`LiveStream::drain`] writes.
    pub(crate) fn encode(&mut self, batch: &RecordBatch) -> Result<(), LogError> {
        let waiting = std::mem::take(self.encoder.get_mut());
        let encoded = self.encoder.write(batch).map_err(|source| LogError::Arrow { table: self.table, source });
        let new = std::mem::replace(self.encoder.get_mut(), waiting);
        encoded?;
        let new = summed(&new, self.table)?;
        self.encoder.get_mut().extend(new);
        Ok(())
    }

    /// Writes the buffer. After a failure the file ends with its last whole frame, and the next call tries again.
    pub(crate) fn drain(&mut self) -> Result<(), FileError> {
        if self.encoder.get_ref().is_empty() {
            return Ok(());
        }
        if self.torn {
            atomic::truncate(&mut self.file, &self.path, self.good_bytes)?;
            self.torn = false;
        }
        let written = atomic::write_all(&mut self.file, &self.path, self.encoder.get_ref());
        if let Err(error) = written {
            self.torn = atomic::truncate(&mut self.file, &self.path, self.good_bytes).is_err();
            return Err(error);
        }
        self.good_bytes += self.encoder.get_ref().len() as u64;
        self.encoder.get_mut().clear();
        Ok(())
    }

    /// An error if the file has been deleted under the writer: writes to it would succeed and be lost.
    pub(crate) fn check_linked(&self) -> Result<(), FileError> {
        let metadata = self.file.metadata().map_err(|e| FileError::new("inspect", &self.path, e))?;
        if metadata.nlink() == 0 {
            let gone = io::Error::other("it was deleted while the run was writing it");
            return Err(FileError::new("write", &self.path, gone));
        }
        Ok(())
    }

    /// Flushes the file's contents to the disk (fsync).
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        atomic::sync(&self.file, &self.path)
    }
}

/// The same frames, each with a trailer.
fn summed(encoded: &[u8], table: Table) -> Result<Vec<u8>, LogError> {
    let broken = |reason: String| LogError::Arrow { table, source: ArrowError::IpcError(reason) };
    let mut out = Vec::with_capacity(encoded.len() + 4 * TRAILER.len());
    for frame in frames(encoded) {
        let (metadata, body) = frame.map_err(broken)?;
        let len = u32::try_from(metadata.len() + TRAILER.len() + 4).map_err(|e| broken(e.to_string()))?;
        out.extend(u32::MAX.to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(metadata);
        out.extend(TRAILER);
        out.extend(frame_sum(metadata, body).to_le_bytes());
        out.extend(body);
    }
    Ok(out)
}
