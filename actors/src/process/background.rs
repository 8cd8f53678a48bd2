//! Threads in the background, which end when their handle is dropped.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A thread that ends when this is dropped, which waits for it.
pub struct Background {
    end: Option<Box<dyn FnOnce() + Send>>,
    thread: Option<JoinHandle<()>>,
}

/// How the thread of a [`Background`] learns of its end.
#[derive(Debug)]
pub struct Ended(Receiver<()>);

impl Ended {
    /// Waits for `timeout`, or until the end comes; whether it has come.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> bool {
        self.0.recv_timeout(timeout) != Err(RecvTimeoutError::Timeout)
    }
}

impl Background {
    /// Runs `body` on a thread of that name. It must return soon after the end that it waits for.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub fn start(name: &str, body: impl FnOnce(&Ended) + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        Self::start_with_end(name, move || drop(sender), move || body(&Ended(receiver)))
    }

    /// As [`start`](Self::start), for a body that learns of its end by what `end` does.
    ///
    /// # Errors
    /// If the system starts no thread.
    pub fn start_with_end(
        name: &str,
        end: impl FnOnce() + Send + 'static,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Self { end: Some(Box::new(end)), thread: Some(thread) })
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Background").field(&self.thread.as_ref().map(JoinHandle::thread)).finish()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
        if let Some(thread) = self.thread.take() {
            // Ignored: what runs in the background is not part of training, and the panic hook has reported a panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn dropping_ends_the_thread_and_waits_for_it() {
        let is_over = Arc::<AtomicBool>::default();
        let ends = Arc::clone(&is_over);
        let start = Instant::now();
        let background = Background::start("test", move |ended| {
            assert!(!ended.within(Duration::ZERO));
            assert!(ended.within(Duration::from_secs(60)));
            ends.store(true, Ordering::Release);
        });
        thread::sleep(Duration::from_millis(20));
        drop(background.expect("a thread"));
        assert!(is_over.load(Ordering::Acquire) && start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_body_that_panicked_is_no_trouble_at_the_end() {
        drop(Background::start("test", |_| panic!("in the background")).expect("a thread"));
    }
}
