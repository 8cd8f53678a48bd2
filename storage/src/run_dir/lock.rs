//! The lock of a run: one process works in a run directory, and nobody moves it away under that.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::RunDirError;
use crate::atomic::{FileError, open_plain};

pub(super) const LOCK: &str = "run.lock";
/// How long a lock that is taken may be one that is only looked at.
const PEEK: Duration = Duration::from_millis(250);
/// How often a run directory may be moved away while its lock is being taken.
const MAX_MOVES: u32 = 100;

/// Holds a run for one process; released when dropped, and by the system when the process dies.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl RunLock {
    /// Takes the lock of the run directory `run`, without waiting.
    ///
    /// While it is held, no process of this program moves the folder or works in it. Locks of this kind (`flock`) do
    /// not reach other machines on some network file systems.
    ///
    /// # Errors
    /// [`RunDirError::InUse`] if another process holds it, [`RunDirError::File`] if the lock file cannot be opened or
    /// written.
    pub fn acquire(run: &Path) -> Result<Self, RunDirError> {
        let path = run.join(LOCK);
        for _ in 0..MAX_MOVES {
            let open = open_plain(&path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
            let mut file = open.map_err(|e| FileError::new("lock", &path, e))?;
            match try_for_a_moment(|| file.try_lock()) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut pid = String::new();
                    // Only for the message.
                    let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut pid);
                    let pid = pid.trim().parse().unwrap_or(0);
                    return Err(RunDirError::InUse { path: run.to_path_buf(), pid });
                }
                Err(TryLockError::Error(error)) => return Err(FileError::new("lock", &path, error).into()),
            }
            // Whoever held it may have moved the folder with its lock: then this is the lock of another place.
            if !is_at(&file, &path) {
                continue;
            }
            let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            noted.map_err(|e| FileError::new("write", &path, e))?;
            return Ok(Self { file });
        }
        Err(RunDirError::InUse { path: run.to_path_buf(), pid: 0 })
    }

    /// Whether a process holds the run now.
    #[must_use]
    pub fn is_held(run: &Path) -> bool {
        let Ok(file) = open_plain(&run.join(LOCK), OpenOptions::new().read(true)) else { return false };
        let is_held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        let _ = file.unlock();
        is_held
    }
}

impl Drop for RunLock {
    /// Gives the lock back itself: closing the file would not while a child that another thread has just forked still
    /// has a copy of the descriptor, which is until it begins its program.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// Whether an open file is still what its path names.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Tries a lock again for [`PEEK`] while it is taken, since [`RunLock::is_held`] takes it for an instant.
fn try_for_a_moment(lock: impl Fn() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    let begin = Instant::now();
    loop {
        match lock() {
            Err(TryLockError::WouldBlock) if begin.elapsed() < PEEK => std::thread::sleep(PEEK / 50),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_lock_given_back_is_free_though_a_forked_child_has_its_descriptor() {
        let root = tempfile::tempdir().unwrap();
        let lock = RunLock::acquire(root.path()).unwrap();
        let of_child = lock.file.try_clone().unwrap();
        assert!(RunLock::is_held(root.path()));
        drop(lock);
        assert!(!RunLock::is_held(root.path()));
        drop(RunLock::acquire(root.path()).unwrap());
        drop(of_child);
    }

    #[test]
    fn who_only_looks_at_a_lock_keeps_nobody_from_it() {
        let root = tempfile::tempdir().unwrap();
        drop(RunLock::acquire(root.path()).unwrap());
        let (is_over, num_looks) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    num_looks.fetch_add(u32::from(RunLock::is_held(root.path())), Ordering::Relaxed);
                }
            });
            for _ in 0..300 {
                drop(RunLock::acquire(root.path()).unwrap());
            }
            is_over.store(true, Ordering::Relaxed);
        });
        println!("{num_looks:?} looks found it held");
    }

    #[test]
    fn the_lock_of_a_folder_that_was_moved_meanwhile_is_not_that_of_its_place() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        let (num_moved, is_held) = (AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _ = fs::create_dir(&run);
                        let Ok(lock) = RunLock::acquire(&run) else { continue };
                        assert!(!is_held.swap(true, Ordering::SeqCst), "two hold the run");
                        assert!(is_at(&lock.file, &run.join(LOCK)), "the folder is where it was");
                        is_held.store(false, Ordering::SeqCst);
                        let number = num_moved.fetch_add(1, Ordering::Relaxed);
                        fs::rename(&run, root.path().join(format!("run.before-{number}"))).unwrap();
                    }
                });
            }
        });
        assert!(num_moved.load(Ordering::Relaxed) > 100, "{num_moved:?}");
    }
}
