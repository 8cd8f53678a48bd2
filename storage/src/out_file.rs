//! Files that a user names for a command's output.
//!
//! A regular file appears whole or not at all and keeps the mode of the one it replaces; a device, a pipe and the
//! target of a link are written through, as other tools do; `-` is stdout. A folder is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::atomic::{FileError, fsync_dir, parent};
use crate::clock::unix_us;
use crate::unfinished::Unfinished;

/// An output that is being written. Dropped without [`OutFile::commit`], it leaves nothing half-done behind.
#[derive(Debug)]
pub struct OutFile {
    path: PathBuf,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Stdout(io::Stdout),
    /// The open target of a link, a device or a pipe.
    Through {
        file: File,
        /// It is a regular file, which is emptied before the first write, and again if it stays unfinished.
        is_regular: bool,
        /// The link led to nothing.
        is_new: bool,
        has_begun: bool,
    },
    /// A new file beside the one to replace.
    Replace {
        tmp: PathBuf,
        file: File,
        /// A process that is made to leave removes it.
        _unfinished: Unfinished,
    },
    Done,
}

/// Whether a path stands for stdout.
#[must_use]
pub fn is_stdout(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

impl OutFile {
    /// Opens the output; nothing of an earlier one is lost before the new one is whole, or begun where it is written
    /// through.
    ///
    /// # Errors
    /// If it is a folder, or cannot be opened or made.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let failed = |op| move |error| FileError::new(op, path, error);
        let out = |sink| Self { path: path.to_path_buf(), sink };
        if is_stdout(path) {
            return Ok(out(Sink::Stdout(io::stdout())));
        }
        let named = match fs::symlink_metadata(path) {
            Ok(named) => Some(named),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(FileError::new("create", path, error)),
        };
        let target = fs::metadata(path).ok();
        if target.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(FileError::new("write", path, io::ErrorKind::IsADirectory.into()));
        }
        let is_regular = target.as_ref().is_none_or(fs::Metadata::is_file);
        if named.as_ref().is_some_and(|named| !named.is_file()) {
            let file = OpenOptions::new().write(true).create(is_regular).truncate(false).open(path);
            let file = file.map_err(failed("write"))?;
            return Ok(out(Sink::Through { file, is_regular, is_new: target.is_none(), has_begun: false }));
        }
        if named.is_some() {
            // A rename needs no leave of the file itself; who made it read-only wants it to stay.
            drop(OpenOptions::new().write(true).open(path).map_err(failed("write"))?);
        }
        if path.file_name().is_none() {
            return Err(FileError::new("write", path, io::ErrorKind::IsADirectory.into()));
        }
        let tmp = parent(path).join(format!(".mlomae-{}-{}.tmp", std::process::id(), unix_us()));
        let unfinished = Unfinished::note(&tmp);
        let file = OpenOptions::new().write(true).create_new(true).open(&tmp);
        let file = file.map_err(failed("create"))?;
        let out = out(Sink::Replace { tmp, file, _unfinished: unfinished });
        if let (Some(named), Sink::Replace { file, .. }) = (named, &out.sink) {
            file.set_permissions(named.permissions()).map_err(failed("create"))?;
        }
        Ok(out)
    }

    /// Whether the output is stdout, which then has nothing else to say.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        matches!(self.sink, Sink::Stdout(_))
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// If they cannot be written; of kind `BrokenPipe` if the reader is gone.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.write_all(bytes).map_err(|error| FileError::new("write", &self.path, error))
    }

    /// Ends the output: a regular file is brought to the disk under its name.
    ///
    /// # Errors
    /// If that fails.
    pub fn commit(mut self) -> Result<(), FileError> {
        let path = &self.path;
        let failed = |op| move |error| FileError::new(op, path, error);
        match &mut self.sink {
            Sink::Stdout(out) => out.flush().map_err(failed("write"))?,
            Sink::Through { file, is_regular, has_begun, .. } => {
                if *is_regular {
                    if !*has_begun {
                        file.set_len(0).map_err(failed("write"))?;
                    }
                    file.sync_all().map_err(failed("sync"))?;
                }
            }
            Sink::Replace { tmp, file, .. } => {
                file.sync_all().map_err(failed("sync"))?;
                fs::rename(tmp, path).map_err(failed("rename"))?;
            }
            Sink::Done => {}
        }
        let is_replaced = matches!(self.sink, Sink::Replace { .. });
        self.sink = Sink::Done;
        if is_replaced { fsync_dir(parent(&self.path)) } else { Ok(()) }
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Stdout(out) => out.write(bytes),
            Sink::Through { file, is_regular, has_begun, .. } => {
                if *is_regular && !*has_begun {
                    file.set_len(0)?;
                }
                *has_begun = true;
                file.write(bytes)
            }
            Sink::Replace { file, .. } => file.write(bytes),
            Sink::Done => Err(io::Error::other("the output has ended")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stdout(out) => out.flush(),
            _ => Ok(()),
        }
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        // The error that led here is the one to report.
        match &self.sink {
            Sink::Replace { tmp, .. } => drop(fs::remove_file(tmp)),
            Sink::Through { is_new: true, .. } => {
                if let Ok(target) = fs::canonicalize(&self.path) {
                    let _ = fs::remove_file(target);
                }
            }
            Sink::Through { file, is_regular: true, has_begun: true, .. } => drop(file.set_len(0)),
            _ => {}
        }
    }
}

/// Writes an output at once.
///
/// # Errors
/// As [`OutFile::create`], [`OutFile::put`] and [`OutFile::commit`].
pub fn write_out(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut out = OutFile::create(path)?;
    out.put(bytes)?;
    out.commit()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        crate::atomic::names(dir).unwrap()
    }

    #[test]
    fn regular_files_are_replaced_whole_with_their_mode_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.csv");
        write_out(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let mut out = OutFile::create(&path).unwrap();
        out.put(b"half").unwrap();
        drop(out);
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["x.csv".to_owned()]));
        write_out(&path, b"new").unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), found.mode() & 0o777), (b"new".to_vec(), 0o640));
        assert_ne!(found.ino(), inode, "a reader of the old one keeps it");
        assert_eq!(names(dir.path()), ["x.csv"]);
    }

    #[test]
    fn links_are_written_through_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        symlink(&target, &link).unwrap();
        // A link to nothing makes its target, and an unfinished one takes it back.
        let mut out = OutFile::create(&link).unwrap();
        out.put(b"half").unwrap();
        drop(out);
        assert_eq!(names(dir.path()), ["link"]);
        write_out(&link, b"long contents").unwrap();
        let inode = fs::metadata(&target).unwrap().ino();
        write_out(&link, b"short").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"short");
        assert_eq!(fs::metadata(&target).unwrap().ino(), inode);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mut out = OutFile::create(&link).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"short", "kept until the first write");
        out.put(b"half").unwrap();
        drop(out);
        assert_eq!(fs::read(&target).unwrap(), b"", "nothing half-done");
        symlink(dir.path(), dir.path().join("folder")).unwrap();
        let error = OutFile::create(&dir.path().join("folder")).unwrap_err();
        assert!(error.to_string().contains("directory") && error.exit_code() == 74, "{error}");
    }

    #[test]
    fn devices_and_pipes_are_written_through() {
        write_out(Path::new("/dev/null"), b"gone").unwrap();
        let error = write_out(Path::new("/dev/full"), b"x").unwrap_err();
        assert_eq!((error.source.kind(), error.exit_code().code()), (io::ErrorKind::StorageFull, 74));
        let (mut reader, writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer)));
        let mut out = OutFile::create(&path).unwrap();
        out.put(b"through").unwrap();
        out.commit().unwrap();
        drop(writer);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "through");
        let error = OutFile::create(Path::new("/nonexistent/x")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x`") && error.exit_code() == 74, "{error}");
    }
}
