//! What a worker of a stage did and where its time went.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a worker is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// Not running: before the first run, between runs and after the last.
    #[default]
    Idle,
    /// Computing, or moving an item without waiting.
    Busy,
    /// Waiting for an input: a queue is empty or a slot has not the version yet.
    WaitIn,
    /// Waiting for room in an output queue.
    WaitOut,
}

impl Activity {
    /// The name as written in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::WaitIn => "wait_in",
            Self::WaitOut => "wait_out",
        }
    }
}

/// Times of the activities that ended, and the present one.
#[derive(Debug)]
struct Clock {
    activity: Activity,
    since: Instant,
    /// When the present unit of work was taken: the watchdog's measure.
    unit_since: Instant,
    busy_ns: u64,
    wait_in_ns: u64,
    wait_out_ns: u64,
}

impl Clock {
    fn add(&mut self, now: Instant) {
        let ns = nanoseconds(self.since, now);
        match self.activity {
            Activity::Idle => {}
            Activity::Busy => self.busy_ns += ns,
            Activity::WaitIn => self.wait_in_ns += ns,
            Activity::WaitOut => self.wait_out_ns += ns,
        }
        self.since = now;
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// That no device has told a time.
const NO_DEVICE: u64 = u64::MAX;

#[derive(Debug)]
struct Inner {
    items: AtomicU64,
    bytes: AtomicU64,
    restarts: AtomicU64,
    /// [`NO_DEVICE`] until a device has told a time of its own.
    device_ns: AtomicU64,
    // Locked only when a wait really begins or ends, so that nothing but a reader of the telemetry contends for it.
    clock: Mutex<Clock>,
}

/// Cumulative counters of one worker. Cloning shares them, so that telemetry reads what the
/// worker writes.
#[derive(Debug, Clone)]
pub struct StageCounters {
    inner: Arc<Inner>,
}

impl Default for StageCounters {
    fn default() -> Self {
        Self::new()
    }
}

impl StageCounters {
    /// Counters at zero, idle.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            inner: Arc::new(Inner {
                items: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                restarts: AtomicU64::new(0),
                device_ns: AtomicU64::new(NO_DEVICE),
                clock: Mutex::new(Clock {
                    activity: Activity::Idle,
                    since: now,
                    unit_since: now,
                    busy_ns: 0,
                    wait_in_ns: 0,
                    wait_out_ns: 0,
                }),
            }),
        }
    }

    /// Marks the start of a run: the wall clock counts from here. The guard ends it, by a panic too.
    #[must_use]
    pub fn run(&self) -> ActivityGuard {
        self.enter(Activity::Busy)
    }

    /// Starts a wait's clock; dropping the guard returns to the activity before.
    #[must_use]
    pub fn wait_in(&self) -> ActivityGuard {
        self.enter(Activity::WaitIn)
    }

    /// Starts a wait's clock; dropping the guard returns to the activity before.
    #[must_use]
    pub fn wait_out(&self) -> ActivityGuard {
        self.enter(Activity::WaitOut)
    }

    /// Marks that the worker takes its next unit of work.
    pub fn begin_unit(&self) {
        self.clock().unit_since = Instant::now();
    }

    /// Counts one finished item of `bytes` bytes.
    pub fn add_item(&self, bytes: usize) {
        self.inner.items.fetch_add(1, Ordering::Relaxed);
        self.inner.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a restart after a panic.
    pub fn add_restart(&self) {
        self.inner.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds time for which a device with a clock of its own worked for this worker. Only the worker itself adds.
    pub fn add_device(&self, ns: u64) {
        let before = self.device_ns().unwrap_or(0);
        self.inner.device_ns.store(before.saturating_add(ns).min(NO_DEVICE - 1), Ordering::Relaxed);
    }

    fn device_ns(&self) -> Option<u64> {
        Some(self.inner.device_ns.load(Ordering::Relaxed)).filter(|ns| *ns != NO_DEVICE)
    }

    /// All counters now; an activity that lasts is counted up to now, so that no
    /// counter ever falls.
    #[must_use]
    pub fn snapshot(&self) -> CountersSnapshot {
        let clock = self.clock();
        let now = Instant::now();
        let activity_ns = nanoseconds(clock.since, now);
        let running = |activity: Activity| if clock.activity == activity { activity_ns } else { 0 };
        CountersSnapshot {
            items: self.inner.items.load(Ordering::Relaxed),
            bytes: self.inner.bytes.load(Ordering::Relaxed),
            busy_ns: clock.busy_ns + running(Activity::Busy),
            wait_in_ns: clock.wait_in_ns + running(Activity::WaitIn),
            wait_out_ns: clock.wait_out_ns + running(Activity::WaitOut),
            restarts: self.inner.restarts.load(Ordering::Relaxed),
            device_ns: self.device_ns(),
            activity: clock.activity,
            activity_ns,
            unit_ns: nanoseconds(clock.unit_since, now),
        }
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        // A panic elsewhere leaves nothing half-written here.
        self.inner.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, activity: Activity) -> ActivityGuard {
        let mut clock = self.clock();
        clock.add(Instant::now());
        let before = std::mem::replace(&mut clock.activity, activity);
        drop(clock);
        ActivityGuard { counters: self.clone(), before }
    }
}

/// Ends an activity when dropped.
#[derive(Debug)]
pub struct ActivityGuard {
    counters: StageCounters,
    before: Activity,
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        let mut clock = self.counters.clock();
        clock.add(Instant::now());
        clock.activity = self.before;
    }
}

/// The counters at one time. All are cumulative over the worker's runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountersSnapshot {
    /// Finished items.
    pub items: u64,
    /// Payload bytes of the finished items.
    pub bytes: u64,
    /// Wall time of all runs less both waits.
    pub busy_ns: u64,
    /// Time spent waiting for inputs.
    pub wait_in_ns: u64,
    /// Time spent waiting for room in outputs.
    pub wait_out_ns: u64,
    /// Restarts after a panic.
    pub restarts: u64,
    /// Time for which a device worked for the worker, by the device's own clock, up to the last finished item; none
    /// where the host computes.
    pub device_ns: Option<u64>,
    /// What the worker is doing.
    pub activity: Activity,
    /// For how long it has been doing so.
    pub activity_ns: u64,
    /// For how long the same unit of work has been in hand, waits included.
    pub unit_ns: u64,
}

impl CountersSnapshot {
    /// Wall time of all runs.
    #[must_use]
    pub const fn wall_ns(&self) -> u64 {
        self.busy_ns + self.wait_in_ns + self.wait_out_ns
    }

    /// `1 - waits / wall`, in 0..=1; 0 before the first run.
    #[must_use]
    pub fn utilization(&self) -> f64 {
        match self.wall_ns() {
            0 => 0.0,
            wall_ns => self.busy_ns as f64 / wall_ns as f64,
        }
    }

    /// Whether the worker has computed on one unit of work for longer than `limit_ns`: it hangs.
    /// A worker that never waits stays busy over many units, which is no hang.
    #[must_use]
    pub fn hangs(&self, limit_ns: u64) -> bool {
        self.activity == Activity::Busy && self.activity_ns.min(self.unit_ns) > limit_ns
    }
}

impl std::ops::Add for CountersSnapshot {
    type Output = Self;

    /// The counters of two workers of one stage together; the activity is the one that lasts longer.
    fn add(self, other: Self) -> Self {
        let slower = if other.activity_ns > self.activity_ns { other } else { self };
        Self {
            items: self.items + other.items,
            bytes: self.bytes + other.bytes,
            busy_ns: self.busy_ns + other.busy_ns,
            wait_in_ns: self.wait_in_ns + other.wait_in_ns,
            wait_out_ns: self.wait_out_ns + other.wait_out_ns,
            restarts: self.restarts + other.restarts,
            device_ns: self.device_ns.into_iter().chain(other.device_ns).reduce(|a, b| a + b),
            activity: slower.activity,
            activity_ns: slower.activity_ns,
            unit_ns: self.unit_ns.max(other.unit_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn wall_time_is_divided_without_rest() {
        let counters = StageCounters::new();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(counters.snapshot().wall_ns(), 0, "idle time is not counted");
        let begin = Instant::now();
        let run = counters.run();
        {
            let _wait = counters.wait_in();
            std::thread::sleep(Duration::from_millis(20));
            let during = counters.snapshot();
            assert_eq!(during.activity, Activity::WaitIn);
            assert!(during.wait_in_ns >= 20_000_000, "a wait counts while it lasts");
        }
        {
            let _wait = counters.wait_out();
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(10));
        drop(run);
        let wall_ns = nanoseconds(begin, Instant::now());
        let end = counters.snapshot();
        assert!(end.wait_in_ns >= 20_000_000 && end.wait_out_ns >= 10_000_000);
        assert!(end.busy_ns >= 10_000_000);
        assert!(end.wall_ns() <= wall_ns);
        assert!(end.wall_ns() >= 40_000_000);
        assert_eq!(end.activity, Activity::Idle);
    }

    #[test]
    fn a_device_has_a_time_of_its_own_and_none_is_not_zero() {
        let [host, device] = [(); 2].map(|()| StageCounters::new());
        device.add_device(0);
        assert_eq!((host.snapshot().device_ns, device.snapshot().device_ns), (None, Some(0)));
        device.add_device(7);
        device.add_device(5);
        let both = host.snapshot() + device.snapshot();
        assert_eq!((both.device_ns, (both + both).device_ns), (Some(12), Some(24)));
        assert_eq!((host.snapshot() + host.snapshot()).device_ns, None);
        device.add_device(u64::MAX);
        assert!(device.snapshot().device_ns.is_some(), "the largest time is one");
    }

    #[test]
    fn a_panic_ends_the_run() {
        let counters = StageCounters::new();
        let shared = counters.clone();
        let result = std::panic::catch_unwind(move || {
            let _run = shared.run();
            let _wait = shared.wait_in();
            panic!("in a wait");
        });
        assert!(result.is_err());
        assert_eq!(counters.snapshot().activity, Activity::Idle);
    }

    #[test]
    fn only_a_busy_worker_hangs() {
        let counters = StageCounters::new();
        let _run = counters.run();
        std::thread::sleep(Duration::from_millis(3));
        assert!(counters.snapshot().hangs(1_000_000));
        let wait = counters.wait_in();
        std::thread::sleep(Duration::from_millis(3));
        assert!(!counters.snapshot().hangs(1_000_000));
        drop(wait);
        std::thread::sleep(Duration::from_millis(3));
        counters.begin_unit();
        let next_unit = counters.snapshot();
        assert!(next_unit.unit_ns < next_unit.activity_ns);
        assert!(!next_unit.hangs(next_unit.unit_ns));
    }
}
