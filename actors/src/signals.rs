//! SIGINT and SIGTERM: the first asks for a graceful stop, the second leaves at once.

use std::io;
use std::thread::{self, JoinHandle};

use mlomae_dataflow::stop::{StopFlag, StopReason};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::error::{CliError, exit_code};

/// Watches the signals until it is dropped.
///
/// The watcher is a thread of its own that only sleeps: it works in a serial run without an actor
/// system too, and no busy or blocked stage can keep it from leaving.
#[derive(Debug)]
pub struct SignalWatcher {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SignalWatcher {
    /// Starts to watch; signals raise `stop`. `before_leaving` runs when a second signal ends the
    /// process, to leave the terminal in order.
    ///
    /// # Errors
    /// If the signal handlers cannot be installed or no thread can be started.
    pub fn start(stop: StopFlag, before_leaving: impl Fn() + Send + 'static) -> Result<Self, CliError> {
        Self::watch(stop, before_leaving)
            .map_err(|error| CliError::new(exit_code::IO, format!("cannot watch signals: {error}")))
    }

    fn watch(stop: StopFlag, before_leaving: impl Fn() + Send + 'static) -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let handle = signals.handle();
        let watch = move || {
            for (num_before, signal) in signals.forever().enumerate() {
                if let Some(exit_code) = on_signal(&stop, signal, num_before) {
                    before_leaving();
                    signal_hook::low_level::exit(exit_code.into());
                }
            }
        };
        let thread = thread::Builder::new().name("mlomae-signals".to_owned()).spawn(watch)?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for SignalWatcher {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It only loops over signals; had it panicked, there would be nothing to repair.
            let _ = thread.join();
        }
    }
}

/// Raises `stop` for `signal`, the `num_before + 1`st, and returns the code to leave with, if it is
/// time to leave at once. An error that raised the flag before does not count: it is no wish to leave.
fn on_signal(stop: &StopFlag, signal: i32, num_before: usize) -> Option<u8> {
    let reason = match signal {
        SIGTERM => StopReason::Terminate,
        _ => StopReason::Interrupt,
    };
    stop.request(reason);
    (num_before > 0).then(|| reason.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::stop::StopLevel;

    #[test]
    fn the_second_signal_leaves_with_its_own_code() {
        let stop = StopFlag::new();
        assert_eq!(on_signal(&stop, SIGINT, 0), None);
        assert_eq!(stop.level(), StopLevel::Graceful);
        assert_eq!(stop.reason(), Some(StopReason::Interrupt));
        assert_eq!(on_signal(&stop, SIGTERM, 1), Some(143));
    }

    #[test]
    fn the_first_signal_after_an_error_lets_the_logs_be_sealed() {
        let stop = StopFlag::new();
        stop.stop_now(StopReason::Error);
        assert_eq!(on_signal(&stop, SIGINT, 0), None);
        assert_eq!(on_signal(&stop, SIGINT, 1), Some(130));
    }

    #[test]
    fn a_raised_signal_reaches_the_flag() {
        let stop = StopFlag::new();
        let watcher = SignalWatcher::start(stop.clone(), || {}).expect("handlers install");
        signal_hook::low_level::raise(SIGTERM).expect("a handler is installed");
        let begin = std::time::Instant::now();
        while stop.level() == StopLevel::None {
            assert!(begin.elapsed().as_secs() < 10, "the signal does not arrive");
            thread::sleep(std::time::Duration::from_millis(2));
        }
        drop(watcher);
        assert_eq!(stop.level(), StopLevel::Graceful);
        assert_eq!(stop.reason(), Some(StopReason::Terminate));
    }
}
