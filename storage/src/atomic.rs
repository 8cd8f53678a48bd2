//! Files that are either whole or absent: temporary file, fsync, rename, fsync of the folder.
//!
//! Every change this crate makes to a run directory goes through here, so that tests can fail, record, or copy the
//! directory at each single operation.
//!
//! No file here is opened through a symbolic link (`O_NOFOLLOW`), and none but a regular one: whoever can write into a
//! run directory must not be able to turn a write, or a wait, elsewhere. The folders `logs`, `checkpoints`, `images`
//! and `report` of a run, and all above it, may be links: people keep them on other disks.

#[cfg(test)]
pub(crate) mod record;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::exit_code::ExitCode;
use crate::unfinished::Unfinished;
use crate::{input, machine_memory};
#[cfg(test)]
use record::{Op, note};

/// Unit tests make thousands of directories and pull no plug: there only the disk's own part is left out.
const SYNCS: bool = !cfg!(test);

/// A file operation that failed, with the operation and the path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} `{}`: {source}", path.display())]
pub struct FileError {
    /// What was tried: `create`, `write`, `rename`, ...
    pub op: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

impl FileError {
    /// An error of operation `op` on `path`.
    #[must_use]
    pub fn new(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self { op, path: path.to_path_buf(), source }
    }

    /// No input for one that is missing or no file, bad data for one that is too large, I/O for any other error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        let is_input = matches!(self.op, "read" | "open" | "list" | "resolve");
        match input::refusal_code(&self.source) {
            Some(code) if is_input => code,
            _ if is_input && self.is_missing() => ExitCode::NoInput,
            _ => ExitCode::Io,
        }
    }

    /// True when the file or folder does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Runs one operation under the test hook and names it in its error.
fn step<T>(op: &'static str, path: &Path, action: impl FnOnce() -> io::Result<T>) -> Result<T, FileError> {
    #[cfg(test)]
    fault::check(op, path).map_err(|e| FileError::new(op, path, e))?;
    action().map_err(|e| FileError::new(op, path, e))
}

/// What is said of a file that is not followed or not waited for.
fn refused(what: &str) -> io::Error {
    io::Error::other(format!("{what}, which is not followed within a run directory"))
}

/// Refuses what is no regular file, without opening it: a link, a device, a pipe.
fn check_plain(path: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_symlink() {
        return Err(refused("it is a symbolic link"));
    }
    input::check_kind(kind)
}

/// Opens a regular file, never through a link, and never waiting for the other end of a pipe.
pub(crate) fn open_plain(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        // The system's own words for a link are "too many levels of symbolic links".
        Err(error) => {
            let is_known = |e: &io::Error| e.kind() == io::ErrorKind::Other || input::refusal(e).is_some();
            return Err(check_plain(path).err().filter(is_known).unwrap_or(error));
        }
    };
    input::check_kind(file.metadata()?.file_type())?;
    Ok(file)
}

/// Makes a folder and its parents, and brings the entries of all that were missing to the disk.
///
/// # Errors
/// [`FileError`] if a folder cannot be made, or what is in its place is no folder.
pub fn create_dir_all(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    if above != path {
        create_dir_all(above)?;
    }
    step("create folder", path, || match fs::create_dir(path) {
        // Made by somebody else in between.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    })?;
    #[cfg(test)]
    note(|| Op::CreateDir(path.into()));
    fsync_dir(above)
}

/// Makes a folder that must not exist yet; its entry is not brought to the disk.
///
/// # Errors
/// [`FileError`] if it cannot be made, also because there is something of that name.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    step("create folder", path, || fs::create_dir(path))?;
    #[cfg(test)]
    note(|| Op::CreateDir(path.into()));
    Ok(())
}

/// Makes a folder within a run directory; one that is there already must be none by a link.
pub(crate) fn create_plain_dir(path: &Path) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(found) if found.is_symlink() => Err(FileError::new("open", path, refused("it is a symbolic link"))),
        Ok(_) => Err(FileError::new("create folder", path, io::ErrorKind::AlreadyExists.into())),
        Err(_) => {
            create_dir(path)?;
            fsync_dir(parent(path))
        }
    }
}

/// Creates a file that must not exist yet.
///
/// # Errors
/// [`FileError`] if it cannot be created, also because there is something of that name.
pub fn create_new(path: &Path) -> Result<File, FileError> {
    let file = step("create", path, || OpenOptions::new().write(true).create_new(true).open(path))?;
    #[cfg(test)]
    note(|| Op::Create(path.into()));
    Ok(file)
}

/// Opens a regular file to append to it, and creates it if it is missing; never through a link.
pub(crate) fn append(path: &Path) -> Result<File, FileError> {
    #[cfg(test)]
    let is_new = fs::symlink_metadata(path).is_err();
    let file = step("create", path, || open_plain(path, OpenOptions::new().append(true).create(true)))?;
    #[cfg(test)]
    if is_new {
        note(|| Op::Create(path.into()));
    }
    Ok(file)
}

/// Writes all bytes at the file's position; a failure may leave some of them written.
///
/// # Errors
/// [`FileError`] if not all bytes could be written.
pub fn write_all(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    #[cfg(test)]
    if let Err(error) = fault::check("write", path) {
        // What a full disk does: part of the bytes arrive.
        let _ = file.write_all(&bytes[..bytes.len() / 2]);
        return Err(FileError::new("write", path, error));
    }
    file.write_all(bytes).map_err(|e| FileError::new("write", path, e))?;
    #[cfg(test)]
    note(|| Op::Write(path.into(), record::Contents(bytes.to_vec())));
    Ok(())
}

/// Cuts the file back to `len` bytes and continues writing there.
///
/// # Errors
/// [`FileError`] if its length or position cannot be set.
pub fn truncate(file: &mut File, path: &Path, len: u64) -> Result<(), FileError> {
    step("truncate", path, || {
        file.set_len(len)?;
        file.seek(SeekFrom::Start(len)).map(|_| ())
    })?;
    #[cfg(test)]
    note(|| Op::Truncate(path.into(), len));
    Ok(())
}

/// Brings a file's contents to the disk.
///
/// # Errors
/// [`FileError`] if the system reports that it could not write the contents.
pub fn sync(file: &File, path: &Path) -> Result<(), FileError> {
    step("sync", path, || if SYNCS { file.sync_all() } else { Ok(()) })?;
    #[cfg(test)]
    note(|| Op::Sync(path.into()));
    Ok(())
}

/// Renames within one file system, replacing what is there. A link is renamed itself, and replaced itself.
///
/// # Errors
/// [`FileError`] if `from` is missing, or the system refuses.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    step("rename", from, || fs::rename(from, to))?;
    #[cfg(test)]
    note(|| Op::Rename(from.into(), to.into()));
    Ok(())
}

/// Removes a file or a link; a file that is already gone is no error.
///
/// # Errors
/// [`FileError`] if it is there and cannot be removed.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    step("remove", path, || ignore_missing(fs::remove_file(path)))?;
    #[cfg(test)]
    note(|| Op::Remove(path.into()));
    Ok(())
}

/// Removes a folder with all it holds, or a link to one without what it holds; a folder that is already gone is no
/// error.
///
/// # Errors
/// [`FileError`] if something in it cannot be removed.
pub fn remove_dir_all(path: &Path) -> Result<(), FileError> {
    step("remove", path, || ignore_missing(fs::remove_dir_all(path)))?;
    #[cfg(test)]
    note(|| Op::RemoveDirAll(path.into()));
    Ok(())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a symbolic link that must not exist yet.
///
/// # Errors
/// [`FileError`] if it cannot be made, also because there is something of that name.
pub fn symlink(target: &Path, link: &Path) -> Result<(), FileError> {
    step("link", link, || std::os::unix::fs::symlink(target, link))?;
    #[cfg(test)]
    note(|| Op::Symlink(target.into(), link.into()));
    Ok(())
}

/// Reads a whole regular file, which may take half of the memory that is left.
///
/// # Errors
/// [`FileError`] if the file is missing, no regular file, too large or unreadable.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    read_at_most(path, machine_memory::available().num_bytes / 2)
}

/// Reads a whole regular file of at most `max_bytes`.
///
/// # Errors
/// [`FileError`] if the file is missing, no regular file, longer than `max_bytes` or unreadable.
pub fn read_at_most(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    input::read_at_most(path, max_bytes).map_err(|e| FileError::new("read", path, e))
}

/// Reads a whole file of a run directory, which may take half of the memory that is left: a regular one, not through a
/// link.
///
/// # Errors
/// [`FileError`] if the file is missing, a link, no regular file, too large or unreadable.
pub fn read_plain(path: &Path) -> Result<Vec<u8>, FileError> {
    read_plain_at_most(path, machine_memory::available().num_bytes / 2)
}

/// Reads a whole file of a run directory, of at most `max_bytes`: a regular one, not through a link.
///
/// # Errors
/// [`FileError`] if the file is missing, a link, no regular file, longer than `max_bytes` or unreadable.
pub fn read_plain_at_most(path: &Path, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let read = || {
        let file = open_plain(path, OpenOptions::new().read(true))?;
        let num_bytes = file.metadata()?.len();
        input::read_to_end(file, num_bytes, max_bytes)
    };
    read().map_err(|e| FileError::new("read", path, e))
}

/// Brings a folder's entries (names, renames, removals) to the disk.
///
/// # Errors
/// [`FileError`] if the folder cannot be opened or written to the disk.
pub fn fsync_dir(path: &Path) -> Result<(), FileError> {
    step("sync folder", path, || {
        let folder = File::open(path)?;
        if SYNCS { folder.sync_all() } else { Ok(()) }
    })?;
    #[cfg(test)]
    note(|| Op::SyncDir(path.into()));
    Ok(())
}

/// Names in a folder; a folder that is missing is empty.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::new("list", dir, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| FileError::new("list", dir, e))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The folder that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, never a part, even across a power loss.
///
/// # Errors
/// [`FileError`] if a step fails; the earlier file, or none, is still there then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path)?;
    file.put(bytes)?;
    file.commit()
}

/// A file that appears under its name only when it is whole.
///
/// It is written as `<name>.tmp`; dropping it without [`AtomicFile::commit`] removes that again.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    tmp: PathBuf,
    file: Option<File>,
    /// Last, so that the temporary file is gone when it is no longer noted.
    _unfinished: Unfinished,
}

impl AtomicFile {
    /// Opens `<path>.tmp` for writing.
    ///
    /// # Errors
    /// [`FileError`] if the temporary file cannot be created.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let mut name = path.as_os_str().to_os_string();
        name.push(".tmp");
        let tmp = PathBuf::from(name);
        // What an interrupted write left. Anything but a regular file was put there by somebody else.
        if fs::symlink_metadata(&tmp).is_ok() {
            check_plain(&tmp).map_err(|e| FileError::new("create", &tmp, e))?;
            remove_file(&tmp)?;
        }
        let unfinished = Unfinished::note(&tmp);
        let file = create_new(&tmp)?;
        Ok(Self { path: path.to_path_buf(), tmp, file: Some(file), _unfinished: unfinished })
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// [`FileError`] if the bytes cannot be written.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        match &mut self.file {
            Some(file) => write_all(file, &self.tmp, bytes),
            None => Err(FileError::new("write", &self.tmp, io::Error::other("closed"))),
        }
    }

    /// Renames to the final name without bringing anything to the disk, and keeps the file open for more.
    pub(crate) fn publish(mut self) -> Result<File, FileError> {
        rename(&self.tmp, &self.path)?;
        // The temporary name is gone and must not be removed on drop.
        self.file.take().ok_or_else(|| FileError::new("write", &self.path, io::Error::other("closed")))
    }

    /// Fsync, rename to the final name, fsync of the folder.
    ///
    /// # Errors
    /// [`FileError`] if the contents cannot be written to the disk or renamed; the earlier file is still there then.
    pub fn commit(mut self) -> Result<(), FileError> {
        if let Some(file) = &self.file {
            sync(file, &self.tmp)?;
            rename(&self.tmp, &self.path)?;
            // From here on the temporary name is gone and must not be removed on drop.
            self.file = None;
        }
        fsync_dir(parent(&self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes).map_err(|e| io::Error::new(e.source.kind(), e.source))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing more can be done about a failure here; leftovers are also cleaned by the next repair.
            let _ = fs::remove_file(&self.tmp);
        }
    }
}

#[cfg(test)]
pub(crate) mod fault {
    //! Lets a test see, and fail, each operation of its own thread.

    use super::{Path, io};
    use std::cell::RefCell;

    type Hook = Box<dyn FnMut(&'static str, &Path) -> io::Result<()>>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    pub(super) fn check(op: &'static str, path: &Path) -> io::Result<()> {
        HOOK.with(|hook| match hook.borrow_mut().as_mut() {
            Some(hook) => hook(op, path),
            None => Ok(()),
        })
    }

    /// Runs `body` with `hook` called before each operation.
    pub(crate) fn with<T>(
        hook: impl FnMut(&'static str, &Path) -> io::Result<()> + 'static,
        body: impl FnOnce() -> T,
    ) -> T {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                HOOK.with(|hook| *hook.borrow_mut() = None);
            }
        }
        HOOK.with(|slot| *slot.borrow_mut() = Some(Box::new(hook)));
        let _reset = Reset;
        body()
    }

    /// Fails every operation from the `n`-th on (0-based), as a full disk does.
    pub(crate) fn full_from<T>(n: usize, body: impl FnOnce() -> T) -> T {
        let mut count = 0;
        with(
            move |op, _| {
                count += 1;
                let frees = matches!(op, "remove" | "truncate");
                if count > n && !frees { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
            },
            body,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_atomic(&path, b"old").unwrap();
        let mut failures = 0;
        for n in 0..10 {
            let result = fault::full_from(n, || write_atomic(&path, b"new contents"));
            let now = fs::read(&path).unwrap();
            match result {
                Ok(()) => {
                    assert_eq!(now, b"new contents");
                    assert!(failures >= 4, "create, write, sync, rename, sync folder: {failures}");
                    return;
                }
                Err(error) => {
                    failures += 1;
                    assert_eq!(error.exit_code(), 74);
                    assert!(now == b"old" || error.op == "sync folder", "{error}");
                    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
                    assert_eq!(names.len(), 1, "temporary file left behind");
                }
            }
        }
        panic!("never succeeded");
    }

    #[test]
    fn errors_name_operation_and_path() {
        let error = write_atomic(Path::new("/nonexistent/folder/x"), b"").unwrap_err();
        assert!(error.to_string().starts_with("cannot create `/nonexistent/folder/x.tmp`"), "{error}");
        assert_eq!(error.exit_code(), 74);
        assert_eq!(read(Path::new("/nonexistent/x")).unwrap_err().exit_code(), 66);
    }
}
