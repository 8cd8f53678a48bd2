//! How fast a configuration trains: a short stretch of a real run, of which nothing is kept.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mlomae_dataflow::counts::Outer;
use mlomae_dataflow::flow::counters::{CountersSnapshot, StageCounters};
use mlomae_dataflow::flow::fault::FaultPlan;
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::flow::stop::{StopFlag, StopReason};
use mlomae_dataflow::run::sink::Latest;
use mlomae_dataflow::run::state::TrainState;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::unfinished::Unfinished;
use serde::Serialize;

use crate::process::error::{CliError, check_outcome};
use crate::process::logging::EventQueue;
use crate::train::experiment::Experiment;
use crate::train::run::Run;
use crate::train::training::{TrainingOptions, train};

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Outer iterations before the measured stretch: queues and recycled memory fill up.
    pub num_warm_up: u64,
    /// Outer iterations of the measured stretch, at least.
    pub min_outer: u64,
    /// Seconds of the measured stretch, at least.
    pub min_seconds: f64,
}

/// What the workers of a stage did in the measured stretch.
#[derive(Debug, Clone, Serialize)]
pub struct StageMeasurement {
    /// The stage.
    #[serde(serialize_with = "as_text")]
    pub stage: StageName,
    /// Its workers.
    pub num_workers: usize,
    /// Items done.
    pub items: u64,
    /// Milliseconds of work for one outer iteration, summed over the workers.
    pub busy_ms: f64,
    /// Share of the time in which its workers worked.
    pub utilization: f64,
    /// Share of the time in which they waited for input.
    pub wait_in: f64,
    /// Share of the time in which they waited for room in a queue.
    pub wait_out: f64,
}

fn as_text<S: serde::Serializer>(stage: &StageName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(stage.as_str())
}

/// A measured stretch.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// Outer iterations in it.
    pub num_outer: u64,
    /// Its length.
    pub seconds: f64,
    /// Level-1 images in it.
    pub num_images: u64,
    /// The stages in order.
    pub stages: Vec<StageMeasurement>,
}

impl Measurement {
    /// Outer iterations a second.
    #[must_use]
    pub fn outer_per_second(&self) -> f64 {
        self.num_outer as f64 / self.seconds
    }

    /// Milliseconds of an outer iteration.
    #[must_use]
    pub fn ms_outer(&self) -> f64 {
        1e3 * self.seconds / self.num_outer as f64
    }

    /// Level-1 images a second.
    #[must_use]
    pub fn images_per_second(&self) -> f64 {
        self.num_images as f64 / self.seconds
    }

    /// The stage that holds the others up: the one whose workers worked the largest share of the time.
    #[must_use]
    pub fn bottleneck(&self) -> Option<&StageMeasurement> {
        self.stages.iter().max_by(|a, b| a.utilization.total_cmp(&b.utilization))
    }
}

/// Counters of a worker with its stage.
type Counted = Vec<(StageName, StageCounters)>;

/// Trains from scratch until the limits are met, logs included, and measures the last stretch. `experiment` must have
/// outer iterations enough.
///
/// # Errors
/// If the run cannot be made or ends by an error, or nothing was measured.
pub fn measure(experiment: &Experiment, limits: Limits, events: &EventQueue) -> Result<Measurement, CliError> {
    let scratch =
        tempfile::tempdir().map_err(|error| CliError::file("create folder", &std::env::temp_dir(), &error))?;
    let _unfinished = Unfinished::note(scratch.path());
    // Recycled memory of another configuration would not fit.
    let method = experiment.data.method(&experiment.config)?;
    let state = TrainState::fresh(&method);
    let latest = Latest::default();
    let sink = Run::scratch(scratch.path(), experiment)?.sink(experiment, Outer(0), latest.clone())?;
    let own_stop = StopFlag::new();
    let (sender, receiver) = mpsc::channel::<Counted>();
    let options = TrainingOptions {
        serial: false,
        display: None,
        events: events.clone(),
        stop: own_stop.clone(),
        latest,
        faults: FaultPlan::default(),
        observer: Some(Box::new(move |probes| {
            let counters = probes.iter().map(|probe| (probe.worker.stage, probe.counters.clone()));
            // The receiver was dropped: there is nothing to report to.
            let _ = sender.send(counters.collect());
        })),
    };
    let images_per_outer = method.unroll * experiment.config.pretrain.batch as u64;
    let stretch = thread::scope(|scope| {
        let own_stop = &own_stop;
        let watch = move || {
            let counters = receiver.recv().ok()?;
            let stretch = watch(&counters, limits, || own_stop.reason().is_some());
            own_stop.request(StopReason::Enough);
            stretch
        };
        let watcher = thread::Builder::new().spawn_scoped(scope, watch).map_err(|error| CliError::no_thread(&error))?;
        let trained = train(experiment, state, sink, options);
        // Ends the watcher if the training ended by itself.
        own_stop.request(StopReason::Enough);
        let stretch = watcher.join().ok().flatten();
        check_outcome(&trained?.outcome).map(|()| stretch)
    })?;
    let Some(Stretch { num_outer, seconds, stages }) = stretch else {
        let line = "the run ended before a stretch of it was measured";
        return Err(CliError::new(ExitCode::Internal, line));
    };
    Ok(Measurement { num_outer, seconds, num_images: num_outer * images_per_outer, stages })
}

struct Stretch {
    num_outer: u64,
    seconds: f64,
    stages: Vec<StageMeasurement>,
}

/// Waits for the start and the end of the stretch, at both of which the policy finishes an outer iteration.
fn watch(counters: &Counted, limits: Limits, should_end: impl Fn() -> bool) -> Option<Stretch> {
    let policy = counters.iter().find(|(stage, _)| *stage == StageName::Policy).map(|(_, counters)| counters)?;
    let snapshot = || -> (Instant, Vec<CountersSnapshot>) {
        (Instant::now(), counters.iter().map(|(_, counters)| counters.snapshot()).collect())
    };
    let mut begin: Option<(u64, (Instant, Vec<CountersSnapshot>))> = None;
    let mut end = None;
    let mut seen = 0;
    while !should_end() {
        let done = policy.snapshot().items;
        if done == seen {
            thread::sleep(Duration::from_micros(500));
            continue;
        }
        seen = done;
        match &begin {
            None if done >= limits.num_warm_up => begin = Some((done, snapshot())),
            None => {}
            Some((first, (since, _))) => {
                end = Some((done, snapshot()));
                if done - first >= limits.min_outer && since.elapsed().as_secs_f64() >= limits.min_seconds {
                    break;
                }
            }
        }
    }
    let ((first, (since, before)), (last, (until, after))) = begin.zip(end)?;
    let (num_outer, wall) = (last - first, until - since);
    let mut stages: Vec<StageMeasurement> = Vec::new();
    for stage in StageName::ALL {
        let places = || (0..counters.len()).filter(|&i| counters[i].0 == stage);
        let total = |value: fn(&CountersSnapshot) -> u64| -> u64 {
            places().map(|i| value(&after[i]).saturating_sub(value(&before[i]))).sum()
        };
        let num_workers = places().count();
        let share = |ns: u64| ns as f64 / (wall.as_nanos() as f64 * num_workers.max(1) as f64);
        let busy_ns = total(|counters| counters.busy_ns);
        stages.push(StageMeasurement {
            stage,
            num_workers,
            items: total(|counters| counters.items),
            busy_ms: busy_ns as f64 * 1e-6 / num_outer as f64,
            utilization: share(busy_ns),
            wait_in: share(total(|counters| counters.wait_in_ns)),
            wait_out: share(total(|counters| counters.wait_out_ns)),
        });
    }
    Some(Stretch { num_outer, seconds: wall.as_secs_f64(), stages })
}
