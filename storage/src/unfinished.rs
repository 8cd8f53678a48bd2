//! Files and folders that are nothing yet: a process that is made to leave removes them (cleanup on exit).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What this process has begun, by number.
static BEGUN: Mutex<Begun> = Mutex::new(Begun { next: 0, paths: BTreeMap::new() });

/// Attempts to remove a folder into which another thread may still be writing, and the pause between them.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

struct Begun {
    next: u64,
    paths: BTreeMap<u64, PathBuf>,
}

fn begun() -> MutexGuard<'static, Begun> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a file or folder as unfinished until it is dropped.
#[derive(Debug)]
pub struct Unfinished {
    number: u64,
}

impl Unfinished {
    /// Notes `path`, before it is made.
    #[must_use]
    pub fn note(path: &Path) -> Self {
        let mut begun = begun();
        let number = begun.next;
        begun.next += 1;
        begun.paths.insert(number, path.to_path_buf());
        Self { number }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        begun().paths.remove(&self.number);
    }
}

/// Removes everything unfinished, for a process that leaves at once. From here on no thread can begin or finish
/// anything noted: it waits until the process is gone, and so reports no error over what was taken from it.
pub fn remove_all_and_hold() {
    let begun = begun();
    for path in begun.paths.values() {
        remove(path);
    }
    std::mem::forget(begun);
}

/// What cannot be removed stays; there is nobody left to report it to.
fn remove(path: &Path) {
    if !path.is_dir() {
        let _ = fs::remove_file(path);
        return;
    }
    for _ in 0..ATTEMPTS {
        if fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_known_until_it_is_finished() {
        let path = Path::new("some-unfinished-file");
        let is_known = || begun().paths.values().any(|known| known == path);
        let (first, second) = (Unfinished::note(path), Unfinished::note(path));
        drop(first);
        assert!(is_known(), "the other is still at work");
        drop(second);
        assert!(!is_known());
    }

    #[test]
    fn files_and_folders_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, inner) = (folder.path().join("a.tmp"), folder.path().join("b"));
        fs::write(&file, b"part").unwrap();
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("c"), b"part").unwrap();
        for path in [&file, &inner, &folder.path().join("never made")] {
            remove(path);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
