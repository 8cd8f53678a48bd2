//! A file for decoders that report a disk's error as damage of the data: it keeps the error, which then is the one to
//! report.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use crate::dataset::error::DataError;
use crate::input::open_regular;

/// An open file of fixed length. Cloning shares the file and its first error.
pub(crate) struct WatchedFile<F = File> {
    file: Arc<F>,
    len: u64,
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl<F> Clone for WatchedFile<F> {
    fn clone(&self) -> Self {
        Self { file: Arc::clone(&self.file), len: self.len, failure: Arc::clone(&self.failure) }
    }
}

impl WatchedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let open = || {
            let file = open_regular(path)?;
            Ok((file.metadata()?.len(), file))
        };
        let (len, file) = open().map_err(|e| DataError::read(path, e))?;
        Ok(Self::new(file, len))
    }
}

impl<F: FileExt> WatchedFile<F> {
    fn new(file: F, len: u64) -> Self {
        Self { file: Arc::new(file), len, failure: Arc::default() }
    }

    /// What a decoder made of the file, unless the system could not read it.
    pub(crate) fn explain<T>(&self, decoded: Result<T, DataError>, path: &Path) -> Result<T, DataError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (decoded, failure) {
            (Err(_), Some(error)) => Err(DataError::read(path, error)),
            (decoded, _) => decoded,
        }
    }
}

/// Reads from one place on.
pub(crate) struct WatchedRead<F> {
    file: WatchedFile<F>,
    at: u64,
}

impl<F: FileExt> Read for WatchedRead<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.file.read_at(buffer, self.at) {
            Ok(len) => {
                self.at += len as u64;
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                // The same error twice: one to keep, one for the decoder, which need not pass it on.
                let again = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
                self.file.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                Err(again)
            }
        }
    }
}

impl<F> Length for WatchedFile<F> {
    fn len(&self) -> u64 {
        self.len
    }
}

impl<F: FileExt + Send + Sync> ChunkReader for WatchedFile<F> {
    type T = BufReader<WatchedRead<F>>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(WatchedRead { file: self.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        // Grows with what there really is: a footer cannot make it allocate.
        let mut bytes = Vec::new();
        let read = self.get_read(start)?.take(length as u64).read_to_end(&mut bytes)?;
        if read != length {
            return Err(ParquetError::EOF(format!("expected {length} bytes at {start}, got {read}")));
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::formats::hf_parquet::{self, HfParquet};
    use crate::dataset::{DatasetSpec, Split, SyntheticSpec, convert};

    /// A disk that cannot read one place.
    struct Failing {
        bytes: Vec<u8>,
        from: u64,
    }

    impl FileExt for Failing {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = offset + buffer.len() as u64;
            if (offset..end.max(offset + 1)).contains(&self.from) && offset < self.bytes.len() as u64 {
                return Err(io::Error::from_raw_os_error(5));
            }
            (&self.bytes[(offset as usize).min(self.bytes.len())..]).read(buffer)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn a_sector_that_cannot_be_read_is_no_bad_data_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let spec = SyntheticSpec { num_train: 20, num_test: 5, image: 16, ..SyntheticSpec::default() };
        convert::write_synthetic(&spec, dir.path(), &mut |_, _| {}).unwrap();
        let path = dir.path().join("train-00000-of-00001.parquet");
        let bytes = std::fs::read(&path).unwrap();
        let spec = DatasetSpec::new(HfParquet::NAME, Some(path.clone()), Split::Train);
        let (mut num_failed, mut num_read) = (0, 0);
        for from in (4..bytes.len() as u64).step_by(97).chain([bytes.len() as u64 - 1]) {
            let file = WatchedFile::new(Failing { bytes: bytes.clone(), from }, bytes.len() as u64);
            let read = hf_parquet::read_for_tests(file.clone(), &path, &spec);
            match file.explain(read, &path) {
                Ok(()) => num_read += 1,
                Err(error) => {
                    assert_eq!(error.exit_code(), 74, "byte {from}: {error}");
                    assert!(error.to_string().contains("Input/output error"), "byte {from}: {error}");
                    num_failed += 1;
                }
            }
        }
        assert!(num_failed > 20, "{num_failed} failed, {num_read} did not need the sector");
    }
}
