//! A checkpoint asked for from outside (checkpoint on demand), as schedulers do before they preempt a job.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::counts::Outer;

/// A wish for one checkpoint beside the periodic ones. It changes no result. Cloning shares it.
///
/// The stages reach an outer iteration at different times, and a checkpoint has a part of each: the foremost, the
/// encoder, takes the wish at the end of an outer iteration and marks it for those behind it.
#[derive(Debug, Clone, Default)]
pub struct CheckpointRequest {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    is_asked: AtomicBool,
    /// Outer iterations after which a checkpoint is written, taken and not yet reached by the last stage.
    marked: Mutex<BTreeSet<Outer>>,
}

impl CheckpointRequest {
    /// Asks for a checkpoint at the end of the outer iteration that is running. Wishes that come before it is taken
    /// coalesce into one. Returns whether this is the first of them.
    #[must_use]
    pub fn ask(&self) -> bool {
        !self.shared.is_asked.swap(true, Ordering::AcqRel)
    }

    /// For the foremost stage: takes the wish, if there is one, for the state after `outer` outer iterations.
    pub fn take(&self, outer: Outer) {
        if self.shared.is_asked.swap(false, Ordering::AcqRel) {
            self.marked().insert(outer);
        }
    }

    /// Whether a checkpoint of the state after `outer` outer iterations was asked for.
    #[must_use]
    pub fn is_marked(&self, outer: Outer) -> bool {
        self.marked().contains(&outer)
    }

    /// For the last stage: forgets what was asked for up to `outer`.
    pub fn forget(&self, outer: Outer) {
        self.marked().retain(|&marked| marked > outer);
    }

    fn marked(&self) -> MutexGuard<'_, BTreeSet<Outer>> {
        self.shared.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_coalesce_until_they_are_taken_and_stages_behind_see_them() {
        let request = CheckpointRequest::default();
        let seen_by_stages = request.clone();
        seen_by_stages.take(Outer(1));
        assert!(!request.is_marked(Outer(1)), "nobody asked");
        assert_eq!([request.ask(), request.ask(), request.ask()], [true, false, false]);
        for outer in [2, 3].map(Outer) {
            seen_by_stages.take(outer);
        }
        assert_eq!([2, 3].map(|outer| request.is_marked(Outer(outer))), [true, false]);
        assert!(request.ask(), "the next wish is another");
        seen_by_stages.take(Outer(4));
        request.forget(Outer(2));
        assert_eq!([2, 4].map(|outer| request.is_marked(Outer(outer))), [false, true]);
    }
}
