//! Opening what somebody else has named: only regular files, and never more bytes than there is reason for.
//!
//! Opening a named pipe waits for its writer, and reading a device may never end; a file's kind is looked at before it
//! is opened, and again after it, with `O_NONBLOCK`, as a name may change in between.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::exit_code::ExitCode;

/// Why an input is refused before a byte of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is something else than a regular file: what it is.
    Kind(&'static str),
    /// It has more bytes than it may have.
    Size {
        /// Its bytes.
        num_bytes: u64,
        /// The most that it may have.
        max_bytes: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "a regular file is needed, this is a {kind}"),
            Self::Size { num_bytes, max_bytes } => write!(f, "may have at most {max_bytes} bytes, not {num_bytes}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(io::ErrorKind::InvalidInput, refusal)
    }
}

/// The [`Refusal`] inside an error of this module.
#[must_use]
pub fn refusal(error: &io::Error) -> Option<Refusal> {
    error.get_ref()?.downcast_ref().copied()
}

/// The exit code of a refusal, 66 for what is no file and 65 for one that is too large; none for another error.
#[must_use]
pub fn refusal_code(error: &io::Error) -> Option<ExitCode> {
    refusal(error).map(|refusal| match refusal {
        Refusal::Kind(_) => ExitCode::NoInput,
        Refusal::Size { .. } => ExitCode::BadData,
    })
}

/// Refuses what is no regular file.
pub(crate) fn check_kind(kind: fs::FileType) -> io::Result<()> {
    let name = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "folder"
    } else if kind.is_fifo() {
        "named pipe"
    } else if kind.is_socket() {
        "socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "device"
    } else {
        "thing of another kind"
    };
    Err(Refusal::Kind(name).into())
}

/// Opens a regular file for reading; links are followed. Never waits.
///
/// # Errors
/// The system's, or a [`Refusal::Kind`].
pub fn open_regular(path: &Path) -> io::Result<File> {
    check_kind(fs::metadata(path)?.file_type())?;
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check_kind(file.metadata()?.file_type())?;
    Ok(file)
}

/// All bytes of a regular file, at most `max_bytes`.
///
/// # Errors
/// The system's, a [`Refusal`], or `OutOfMemory` if there is no room for so many bytes.
pub fn read_at_most(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let num_bytes = file.metadata()?.len();
    read_to_end(file, num_bytes, max_bytes)
}

/// All bytes of `source`, which announces `num_bytes`, at most `max_bytes`.
///
/// # Errors
/// As [`read_at_most`].
pub fn read_to_end(source: impl Read, num_bytes: u64, max_bytes: u64) -> io::Result<Vec<u8>> {
    let refuse = |num_bytes| io::Error::from(Refusal::Size { num_bytes, max_bytes });
    if num_bytes > max_bytes {
        return Err(refuse(num_bytes));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(num_bytes).unwrap_or(usize::MAX)).map_err(|_| out_of_memory())?;
    source.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    // It may have grown, or be a file of /proc that announces nothing.
    if bytes.len() as u64 > max_bytes { Err(refuse(bytes.len() as u64)) } else { Ok(bytes) }
}

fn out_of_memory() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// What `open_regular` answers, which must not take long.
    fn opened(path: &Path) -> Result<(), Option<Refusal>> {
        let (sender, answer) = mpsc::channel();
        let path = path.to_owned();
        std::thread::spawn(move || sender.send(open_regular(&path).map(drop).map_err(|error| refusal(&error))));
        answer.recv_timeout(Duration::from_secs(20)).expect("opening waits")
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), b"12345").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        assert_eq!(opened(&path("file")), Ok(()));
        assert_eq!(opened(&path("link")), Ok(()));
        assert_eq!(opened(&path("pipe")), Err(Some(Refusal::Kind("named pipe"))));
        assert_eq!(opened(&path("socket")), Err(Some(Refusal::Kind("socket"))));
        assert_eq!(opened(dir.path()), Err(Some(Refusal::Kind("folder"))));
        assert_eq!(opened(Path::new("/dev/zero")), Err(Some(Refusal::Kind("device"))));
        assert_eq!(opened(&path("nothing")), Err(None));
    }

    #[test]
    fn more_bytes_than_allowed_are_refused_before_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_at_most(&path, 5).unwrap(), b"12345");
        let refused = refusal(&read_at_most(&path, 4).unwrap_err());
        assert_eq!(refused, Some(Refusal::Size { num_bytes: 5, max_bytes: 4 }));
        // A sparse file of a terabyte.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(refusal_code(&read_at_most(&path, 1 << 20).unwrap_err()), Some(ExitCode::BadData));
        // A source that says less than it has.
        assert!(read_to_end(&b"12345"[..], 0, 4).is_err());
    }
}
