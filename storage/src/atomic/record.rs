//! Records the operations of a thread with their contents, so that a test knows what a power loss would leave.

use std::cell::RefCell;
use std::path::PathBuf;

/// One operation that succeeded.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    CreateDir(PathBuf),
    Create(PathBuf),
    /// Bytes appended at the end of the file.
    Write(PathBuf, Contents),
    Truncate(PathBuf, u64),
    Sync(PathBuf),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    RemoveDirAll(PathBuf),
    /// Target and link.
    Symlink(PathBuf, PathBuf),
    /// What the program had promised by then, as the test says it.
    Promise(i64),
}

/// Bytes, shown by their number.
#[derive(Clone)]
pub(crate) struct Contents(pub(crate) Vec<u8>);

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

thread_local! {
    static OPS: RefCell<Option<Vec<Op>>> = const { RefCell::new(None) };
}

/// Adds an operation if this thread is being recorded.
pub(crate) fn note(op: impl FnOnce() -> Op) {
    OPS.with(|ops| {
        if let Some(ops) = ops.borrow_mut().as_mut() {
            ops.push(op());
        }
    });
}

/// The operations of `body`.
pub(crate) fn recorded(body: impl FnOnce()) -> Vec<Op> {
    OPS.with(|ops| *ops.borrow_mut() = Some(Vec::new()));
    body();
    OPS.with(|ops| ops.borrow_mut().take()).unwrap_or_default()
}
