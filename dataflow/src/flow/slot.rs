//! A versioned slot: the feedback from a later stage to an earlier one.
//!
//! A slot is no queue, so the queues stay without cycles. A reader names the exact version it
//! wants; the newest few are kept for it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::flow::ports::{Halt, POLL, WaitContext};
use crate::flow::stop::StopLevel;

struct State<T> {
    /// Ascending, without gaps.
    versions: VecDeque<(u64, Arc<T>)>,
    closed: bool,
}

struct Inner<T> {
    name: String,
    num_kept: usize,
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Inner<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every change of the state is one push and some pops: a panic leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a version could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The wait was left.
    #[error("wait for a version ended: {0:?}")]
    Halted(Halt),
    /// The version is older than what the slot keeps: the reader's schedule is wrong.
    #[error("slot {slot} keeps versions {oldest} and newer, wanted version {wanted}")]
    Evicted {
        /// The slot's name.
        slot: String,
        /// The oldest kept version.
        oldest: u64,
        /// The wanted version.
        wanted: u64,
    },
}

/// The one writer of a slot; dropping it closes the slot.
pub struct SlotWriter<T> {
    inner: Arc<Inner<T>>,
}

impl<T> SlotWriter<T> {
    /// Publishes the next version. The oldest is evicted when there are more than the kept number.
    ///
    /// # Panics
    /// If `version` does not follow the newest one.
    pub fn publish(&mut self, version: u64, value: Arc<T>) {
        let mut state = self.inner.lock();
        if let Some((newest, _)) = state.versions.back() {
            assert_eq!(version, newest + 1, "invariant: versions of {} have no gaps", self.inner.name);
        }
        state.versions.push_back((version, value));
        // Dropped after the lock: freeing a large value must not hold up the readers.
        let evicted = if state.versions.len() > self.inner.num_kept { state.versions.pop_front() } else { None };
        drop(state);
        self.inner.changed.notify_all();
        drop(evicted);
    }
}

impl<T> Drop for SlotWriter<T> {
    fn drop(&mut self) {
        self.inner.lock().closed = true;
        self.inner.changed.notify_all();
    }
}

impl<T> fmt::Debug for SlotWriter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotWriter({})", self.inner.name)
    }
}

/// A reader of a slot; cloning makes a further one.
pub struct SlotReader<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for SlotReader<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> SlotReader<T> {
    /// Waits for exactly `version`; heeds only a stop of level "now".
    ///
    /// # Errors
    /// [`SlotError::Halted`] by the stop flag, or because the writer is gone and never published
    /// it; [`SlotError::Evicted`] if it was evicted.
    pub fn wait(&self, version: u64, context: &WaitContext) -> Result<Arc<T>, SlotError> {
        let mut state = self.inner.lock();
        if let Some(outcome) = self.look(&state, version) {
            return outcome;
        }
        let _wait = context.counters.wait_in();
        loop {
            if context.stop.concerns(StopLevel::Now) {
                return Err(SlotError::Halted(Halt::Stopped));
            }
            state = self.inner.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
            if let Some(outcome) = self.look(&state, version) {
                return outcome;
            }
        }
    }

    fn look(&self, state: &State<T>, version: u64) -> Option<Result<Arc<T>, SlotError>> {
        if let Some((oldest, _)) = state.versions.front() {
            if version < *oldest {
                return Some(Err(SlotError::Evicted {
                    slot: self.inner.name.clone(),
                    oldest: *oldest,
                    wanted: version,
                }));
            }
            let place = usize::try_from(version - oldest).unwrap_or(usize::MAX);
            if let Some((_, value)) = state.versions.get(place) {
                return Some(Ok(Arc::clone(value)));
            }
        }
        state.closed.then_some(Err(SlotError::Halted(Halt::Disconnected)))
    }
}

impl<T> fmt::Debug for SlotReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotReader({})", self.inner.name)
    }
}

/// Makes a slot that keeps the newest `num_kept` versions (at least one).
#[must_use]
pub fn slot<T>(name: &str, num_kept: usize) -> (SlotWriter<T>, SlotReader<T>) {
    let inner = Arc::new(Inner {
        name: name.to_owned(),
        num_kept: num_kept.max(1),
        state: Mutex::new(State { versions: VecDeque::with_capacity(num_kept + 1), closed: false }),
        changed: Condvar::new(),
    });
    (SlotWriter { inner: Arc::clone(&inner) }, SlotReader { inner })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::flow::stop::StopReason;

    #[test]
    fn a_reader_gets_exactly_the_version_it_names() {
        let (mut writer, reader) = slot("policy", 2);
        let context = WaitContext::default();
        let waiting = {
            let (reader, context) = (reader.clone(), context.clone());
            std::thread::spawn(move || reader.wait(1, &context).map(|value| *value))
        };
        writer.publish(0, Arc::new(10));
        std::thread::sleep(Duration::from_millis(5));
        writer.publish(1, Arc::new(11));
        assert_eq!(waiting.join().expect("no panic"), Ok(11));
        assert_eq!(reader.wait(0, &context).map(|value| *value), Ok(10));
        writer.publish(2, Arc::new(12));
        assert_eq!(reader.wait(0, &context), Err(SlotError::Evicted { slot: "policy".into(), oldest: 1, wanted: 0 }));
        assert!(context.counters.snapshot().wait_in_ns > 0);
    }

    #[test]
    fn only_the_kept_versions_stay_in_memory() {
        let (mut writer, _reader) = slot("policy", 3);
        let values: Vec<Arc<u64>> = (0..10).map(Arc::new).collect();
        for (version, value) in values.iter().enumerate() {
            writer.publish(version as u64, Arc::clone(value));
        }
        let held: Vec<bool> = values.iter().map(|value| Arc::strong_count(value) > 1).collect();
        assert_eq!(held.iter().filter(|held| **held).count(), 3);
        assert!(held[7..].iter().all(|held| *held));
    }

    #[test]
    fn a_closed_slot_still_gives_what_it_has() {
        let (mut writer, reader) = slot("theta", 2);
        writer.publish(5, Arc::new(()));
        drop(writer);
        let context = WaitContext::default();
        assert!(reader.wait(5, &context).is_ok());
        assert_eq!(reader.wait(6, &context), Err(SlotError::Halted(Halt::Disconnected)));
    }

    #[test]
    fn a_stop_ends_a_wait() {
        let (writer, reader) = slot::<()>("theta", 1);
        let context = WaitContext::default();
        let stop = context.stop.clone();
        let start = Instant::now();
        let waiting = std::thread::spawn(move || reader.wait(0, &context));
        stop.request(StopReason::Interrupt);
        std::thread::sleep(2 * POLL);
        assert!(!waiting.is_finished(), "a graceful stop lets the iteration end");
        stop.request(StopReason::Interrupt);
        assert_eq!(waiting.join().expect("no panic"), Err(SlotError::Halted(Halt::Stopped)));
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(writer);
    }
}
