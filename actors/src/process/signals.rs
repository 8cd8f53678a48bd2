//! What the process does when a signal comes: checkpoint and go on, end in good order, or leave at once.
//!
//! | signal | while a run trains | else |
//! |---|---|---|
//! | INT, TERM | checkpoint at the end of the outer iteration, then end; a second one leaves at once | leave at once |
//! | HUP, USR2, XCPU | the same, but repetitions change nothing: they are often sent twice | leave at once |
//! | USR1 | checkpoint at the end of the outer iteration, and go on | go on |
//! | XFSZ | the write fails, as on a full disk | the same |
//!
//! A hang-up that was ignored when the program began, as under nohup, stays ignored.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use mlomae_dataflow::flow::stop::{StopFlag, StopReason};
use mlomae_dataflow::method::checkpoint_request::CheckpointRequest;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::unfinished;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::process::background::Background;
use crate::process::error::CliError;

/// How long exit hooks may take on a disk or a terminal that hangs.
const PATIENCE: Duration = Duration::from_millis(1200);

/// What is done before a signal ends the process, as noting the interruption in `run.json`.
type ExitHook = Box<dyn FnOnce(StopReason) + Send>;

/// What a signal that ends the process does.
enum Mode {
    /// Leave at once, as nothing is lost.
    AtOnce(Option<ExitHook>),
    /// Raise the flag; the run ends itself. `num_hasty` counts INT and TERM, of which the second leaves at once.
    Graceful { stop: StopFlag, num_hasty: u32, exit_hook: Option<ExitHook> },
}

/// Shared between the program and the watcher, which holds the lock while it acts: the mode cannot change meanwhile,
/// and a program that changes it while the process leaves waits for the end.
struct Shared {
    mode: Mode,
    checkpoint: Option<CheckpointRequest>,
}

/// Watches the signals until it is dropped.
///
/// The watcher is a thread of its own that only sleeps: it works in a serial run without an actor
/// system too, and no busy or blocked stage can keep it from leaving.
pub struct SignalWatcher {
    shared: Arc<Mutex<Shared>>,
    _watcher: Background,
}

impl SignalWatcher {
    /// Starts to watch: a signal leaves at once. `before_leaving` leaves the terminal in order.
    ///
    /// # Errors
    /// If the signal handlers cannot be installed or no thread can be started.
    pub fn start(before_leaving: impl Fn() + Send + Sync + 'static) -> Result<Self, CliError> {
        Self::watch(Arc::new(before_leaving))
            .map_err(|error| CliError::new(ExitCode::Io, format!("cannot watch signals: {error}")))
    }

    fn watch(before_leaving: Arc<dyn Fn() + Send + Sync>) -> io::Result<Self> {
        // With a handler that does nothing, a write beyond `ulimit -f` fails (EFBIG) instead of killing the process.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let mut watched = vec![SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU];
        if !is_ignored(SIGHUP) {
            watched.push(SIGHUP);
        }
        let mut signals = Signals::new(watched)?;
        let handle = signals.handle();
        let shared = Arc::new(Mutex::new(Shared { mode: Mode::AtOnce(None), checkpoint: None }));
        let of_watcher = Arc::clone(&shared);
        let watch = move || {
            for signal in signals.forever() {
                let mut shared = lock(&of_watcher);
                if let Some(reason) = shared.on_signal(signal) {
                    let (Mode::AtOnce(exit_hook) | Mode::Graceful { exit_hook, .. }) = &mut shared.mode;
                    leave(reason, exit_hook.take(), Arc::clone(&before_leaving));
                }
            }
        };
        let watcher = Background::start_with_end("mlomae-signals", move || handle.close(), watch)?;
        Ok(Self { shared, _watcher: watcher })
    }

    /// From here on signals raise `stop`, and the run ends itself; the second INT or TERM leaves at once.
    pub fn end_gracefully(&self, stop: &StopFlag) {
        self.graceful(stop, None);
    }

    /// As [`end_gracefully`](Self::end_gracefully), but the second INT or TERM leaves after `exit_hook`.
    pub fn end_gracefully_with(&self, stop: &StopFlag, exit_hook: impl FnOnce(StopReason) + Send + 'static) {
        self.graceful(stop, Some(Box::new(exit_hook)));
    }

    fn graceful(&self, stop: &StopFlag, exit_hook: Option<ExitHook>) {
        let mut shared = lock(&self.shared);
        let num_hasty = match shared.mode {
            Mode::AtOnce(_) => 0,
            Mode::Graceful { num_hasty, .. } => num_hasty,
        };
        shared.mode = Mode::Graceful { stop: stop.clone(), num_hasty, exit_hook };
    }

    /// From here on signals leave at once, after `exit_hook`. A flag that was raised before stays raised.
    pub fn leave_at_once(&self, exit_hook: impl FnOnce(StopReason) + Send + 'static) {
        lock(&self.shared).mode = Mode::AtOnce(Some(Box::new(exit_hook)));
    }

    /// From here on USR1 requests a checkpoint.
    pub fn ask_for_checkpoints(&self, request: &CheckpointRequest) {
        lock(&self.shared).checkpoint = Some(request.clone());
    }

    /// From here on there is nothing to checkpoint any more, and USR1 says so.
    pub fn end_checkpoints(&self) {
        lock(&self.shared).checkpoint = None;
    }
}

impl fmt::Debug for SignalWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalWatcher").finish_non_exhaustive()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Handles `signal`; answers the reason if the process shall leave at once.
    fn on_signal(&mut self, signal: i32) -> Option<StopReason> {
        let (reason, is_hasty) = match signal {
            SIGUSR1 => {
                self.on_checkpoint_signal();
                return None;
            }
            SIGTERM => (StopReason::Terminate, true),
            SIGHUP => (StopReason::HangUp, false),
            SIGUSR2 => (StopReason::Preempt, false),
            SIGXCPU => (StopReason::CpuTime, false),
            _ => (StopReason::Interrupt, true),
        };
        match &mut self.mode {
            Mode::AtOnce(_) => Some(reason),
            Mode::Graceful { stop, num_hasty, .. } => {
                *num_hasty += u32::from(is_hasty);
                if *num_hasty > 1 {
                    // Nothing more is computed while the process leaves.
                    stop.stop_now(reason);
                    return Some(reason);
                }
                stop.stop_gracefully(reason);
                None
            }
        }
    }

    fn on_checkpoint_signal(&self) {
        match &self.checkpoint {
            None => tracing::info!(kind = "checkpoint_asked", "SIGUSR1: there is nothing to checkpoint, going on"),
            Some(request) => {
                if request.ask() {
                    tracing::info!(kind = "checkpoint_asked", "SIGUSR1: a checkpoint follows this outer iteration");
                }
            }
        }
    }
}

/// Ends the process within [`PATIENCE`], whatever hangs.
fn leave(reason: StopReason, exit_hook: Option<ExitHook>, before_leaving: Arc<dyn Fn() + Send + Sync>) -> ! {
    let (done, all_done) = mpsc::channel();
    let clean_up = move || {
        before_leaving();
        if let Some(exit_hook) = exit_hook {
            exit_hook(reason);
        }
        unfinished::remove_all_and_hold();
        // After the time limit nothing receives it.
        let _ = done.send(());
    };
    if thread::Builder::new().name("mlomae-leaving".to_owned()).spawn(clean_up).is_ok() {
        // The process ends in either case.
        let _ = all_done.recv_timeout(PATIENCE);
    }
    signal_hook::low_level::exit(reason.exit_code().into())
}

/// Whether the process was started with `signal` ignored, as nohup does with hang-ups; false where the system does not
/// say.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_ignored_in(&status, signal)
}

/// The same from the text of `/proc/self/status`, whose line `SigIgn:` is a mask in hexadecimal.
fn is_ignored_in(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    u32::try_from(signal - 1).ok().and_then(|bit| mask.checked_shr(bit)).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::counts::Outer;
    use mlomae_dataflow::flow::stop::StopLevel;

    fn graceful(stop: &StopFlag) -> Shared {
        Shared { mode: Mode::Graceful { stop: stop.clone(), num_hasty: 0, exit_hook: None }, checkpoint: None }
    }

    #[test]
    fn the_second_hasty_signal_leaves_with_its_own_reason() {
        let stop = StopFlag::new();
        let mut shared = graceful(&stop);
        assert_eq!(shared.on_signal(SIGINT), None);
        assert_eq!((stop.level(), stop.reason()), (StopLevel::Graceful, Some(StopReason::Interrupt)));
        assert_eq!(shared.on_signal(SIGTERM), Some(StopReason::Terminate));
        assert_eq!(stop.level(), StopLevel::Now);
    }

    #[test]
    fn hang_ups_and_the_schedulers_signals_are_no_haste_however_many() {
        for (signal, code) in [(SIGHUP, 129), (SIGUSR2, 140), (SIGXCPU, 152)] {
            let stop = StopFlag::new();
            let mut shared = graceful(&stop);
            for signal in [signal, signal, SIGHUP, SIGUSR2, SIGXCPU, SIGTERM] {
                assert_eq!(shared.on_signal(signal), None);
            }
            assert_eq!(stop.level(), StopLevel::Graceful);
            assert_eq!(stop.reason().map(|reason| reason.exit_code().code()), Some(code));
            assert_eq!(shared.on_signal(SIGTERM), Some(StopReason::Terminate));
        }
    }

    #[test]
    fn the_first_signal_after_an_error_lets_the_logs_be_sealed() {
        let stop = StopFlag::new();
        stop.stop_now(StopReason::Error);
        let mut shared = graceful(&stop);
        assert_eq!(shared.on_signal(SIGINT), None);
        assert_eq!(shared.on_signal(SIGINT), Some(StopReason::Interrupt));
    }

    #[test]
    fn outside_of_training_every_ending_signal_leaves_and_usr1_does_not() {
        for (signal, code) in [(SIGINT, 130), (SIGTERM, 143), (SIGHUP, 129), (SIGUSR2, 140), (SIGXCPU, 152)] {
            let mut shared = Shared { mode: Mode::AtOnce(None), checkpoint: None };
            assert_eq!(shared.on_signal(SIGUSR1), None);
            assert_eq!(shared.on_signal(signal).map(|reason| reason.exit_code().code()), Some(code));
        }
    }

    #[test]
    fn usr1_asks_for_one_checkpoint_and_for_no_end() {
        let (stop, request) = (StopFlag::new(), CheckpointRequest::default());
        let mut shared = Shared { checkpoint: Some(request.clone()), ..graceful(&stop) };
        for _ in 0..5 {
            assert_eq!(shared.on_signal(SIGUSR1), None);
        }
        assert_eq!(stop.level(), StopLevel::None);
        for outer in 1..4 {
            request.take(Outer(outer));
        }
        assert_eq!([1, 2, 3].map(|outer| request.is_marked(Outer(outer))), [true, false, false]);
    }

    #[test]
    fn ignored_signals_are_found_in_the_mask() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\tffffffffffffffff\n";
        let ignored: Vec<i32> = (1..=64).filter(|&signal| is_ignored_in(status, signal)).collect();
        assert_eq!(ignored, [SIGHUP, 13]);
        assert!(!is_ignored_in("", SIGHUP) && !is_ignored_in("SigIgn:\tzz", SIGHUP));
    }

    #[test]
    fn a_raised_signal_reaches_the_flag() {
        let stop = StopFlag::new();
        let watcher = SignalWatcher::start(|| {}).expect("handlers install");
        watcher.end_gracefully(&stop);
        signal_hook::low_level::raise(SIGTERM).expect("a handler is installed");
        let begin = std::time::Instant::now();
        while stop.level() == StopLevel::None {
            assert!(begin.elapsed().as_secs() < 10, "the signal does not arrive");
            thread::sleep(Duration::from_millis(2));
        }
        drop(watcher);
        assert_eq!(stop.level(), StopLevel::Graceful);
        assert_eq!(stop.reason(), Some(StopReason::Terminate));
    }
}
