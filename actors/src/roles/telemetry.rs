//! Telemetry: samples what every worker does and how full the queues are, and names the worker
//! that hangs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use mlomae_dataflow::flow::counters::{Activity, CountersSnapshot, StageCounters};
use mlomae_dataflow::flow::ports::EdgeGauge;
use mlomae_dataflow::flow::stage_name::WorkerId;

/// Where one worker's figures are read. Holds no end of any channel.
#[derive(Debug, Clone)]
pub struct WorkerProbe {
    /// The worker.
    pub worker: WorkerId,
    /// Its counters.
    pub counters: StageCounters,
    /// The edges that it receives from.
    pub inputs: Vec<Arc<EdgeGauge>>,
}

/// The figures of one worker at one time.
#[derive(Debug, Clone)]
pub struct ActorSample {
    /// The worker.
    pub worker: WorkerId,
    /// Its counters, cumulative.
    pub counters: CountersSnapshot,
    /// Items waiting on all edges that it receives from.
    pub queue_len: usize,
    /// Items that those edges can hold.
    pub queue_cap: usize,
    /// Payload bytes waiting on them.
    pub queue_bytes: usize,
    /// `1 - waits / wall` since the sample before, in 0..=1.
    pub utilization: f64,
}

/// The newest samples, shared with the displays.
#[derive(Debug, Clone, Default)]
pub struct NewestSamples {
    samples: Arc<Mutex<Arc<[ActorSample]>>>,
}

impl NewestSamples {
    /// The newest sample of each worker; empty before the first.
    #[must_use]
    pub fn get(&self) -> Arc<[ActorSample]> {
        Arc::clone(&self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, samples: Arc<[ActorSample]>) {
        *self.samples.lock().unwrap_or_else(PoisonError::into_inner) = samples;
    }
}

/// What the watchdog found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A worker computes on one unit of work for longer than the limit.
    Hangs {
        /// The worker.
        worker: WorkerId,
        /// For how long.
        busy: Duration,
    },
    /// Every running worker waits, none has finished an item, for longer than the limit.
    Stuck {
        /// The waiting workers with what they wait for.
        waiting: Vec<(WorkerId, Activity)>,
    },
}

type SampleSink = Box<dyn FnMut(&[ActorSample]) + Send>;

/// Takes the samples and watches them. Plain state: an actor steps it in a threaded run, a thread in the background in
/// a serial one.
pub struct Telemetry {
    probes: Vec<WorkerProbe>,
    newest: NewestSamples,
    sink: SampleSink,
    sample_every: Duration,
    hang_limit: Duration,
    /// By worker, whether its present hang has been reported.
    reported: Vec<bool>,
    reported_stuck: bool,
}

impl Telemetry {
    /// Telemetry of `probes`. `sink` is called with each round of samples, in the probes' order,
    /// and must not block; it is dropped before the log stage is waited for. A worker that
    /// computes on one unit of work for longer than `hang_limit` is named by a warning.
    #[must_use]
    pub fn new(
        probes: Vec<WorkerProbe>,
        sample_every: Duration,
        hang_limit: Duration,
        sink: impl FnMut(&[ActorSample]) + Send + 'static,
    ) -> Self {
        Self {
            newest: NewestSamples::default(),
            sink: Box::new(sink),
            sample_every,
            hang_limit,
            reported: vec![false; probes.len()],
            reported_stuck: false,
            probes,
        }
    }

    /// The newest samples, for a display.
    #[must_use]
    pub fn newest(&self) -> NewestSamples {
        self.newest.clone()
    }

    /// How often a sample is due.
    #[must_use]
    pub const fn sample_every(&self) -> Duration {
        self.sample_every
    }

    /// Takes one sample of every worker, hands them to the sink and returns what the watchdog
    /// found anew.
    pub fn sample(&mut self) -> Vec<Finding> {
        let before = self.newest.get();
        let samples: Arc<[ActorSample]> =
            self.probes.iter().enumerate().map(|(index, probe)| sample(probe, before.get(index))).collect();
        self.newest.set(Arc::clone(&samples));
        (self.sink)(&samples);
        let findings = self.watch(&before, &samples);
        for finding in &findings {
            log(finding);
        }
        findings
    }

    fn watch(&mut self, before: &[ActorSample], samples: &[ActorSample]) -> Vec<Finding> {
        let limit_ns = u64::try_from(self.hang_limit.as_nanos()).unwrap_or(u64::MAX);
        let mut findings = Vec::new();
        for (sample, reported) in samples.iter().zip(&mut self.reported) {
            let hangs = sample.counters.hangs(limit_ns);
            if hangs && !*reported {
                let busy = Duration::from_nanos(sample.counters.activity_ns);
                findings.push(Finding::Hangs { worker: sample.worker, busy });
            }
            *reported = hangs;
        }
        let running = || samples.iter().filter(|sample| sample.counters.activity != Activity::Idle);
        // A receiver without a deadline, such as the log stage's, leaves its wait now and then, so that long waits
        // alone prove nothing; no finished item between two samples does.
        let num_items = |samples: &[ActorSample]| samples.iter().map(|s| s.counters.items).sum::<u64>();
        let waits_long =
            |sample: &&ActorSample| sample.counters.activity != Activity::Busy && sample.counters.unit_ns > limit_ns;
        let stuck = running().next().is_some()
            && running().all(|sample| sample.counters.activity != Activity::Busy)
            && running().any(|sample| waits_long(&sample))
            && !before.is_empty()
            && num_items(before) == num_items(samples);
        if stuck && !self.reported_stuck {
            let waiting = running().map(|sample| (sample.worker, sample.counters.activity)).collect();
            findings.push(Finding::Stuck { waiting });
        }
        self.reported_stuck = stuck;
        findings
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("probes", &self.probes.len()).finish_non_exhaustive()
    }
}

fn sample(probe: &WorkerProbe, before: Option<&ActorSample>) -> ActorSample {
    let counters = probe.counters.snapshot();
    let base = before.map(|before| before.counters).unwrap_or_default();
    let wall_ns = counters.wall_ns().saturating_sub(base.wall_ns());
    let busy_ns = counters.busy_ns.saturating_sub(base.busy_ns);
    ActorSample {
        worker: probe.worker,
        counters,
        queue_len: probe.inputs.iter().map(|edge| edge.queue_len()).sum(),
        queue_cap: probe.inputs.iter().map(|edge| edge.queue_cap()).sum(),
        queue_bytes: probe.inputs.iter().map(|edge| edge.queue_bytes()).sum(),
        utilization: if wall_ns == 0 { 0.0 } else { busy_ns as f64 / wall_ns as f64 },
    }
}

fn log(finding: &Finding) {
    match finding {
        Finding::Hangs { worker, busy } => tracing::warn!(
            kind = "stage_hangs",
            stage = %worker.stage,
            instance = worker.instance,
            "{worker} has been busy on one item for {:.1} s",
            busy.as_secs_f64()
        ),
        Finding::Stuck { waiting } => {
            let waiting: Vec<_> =
                waiting.iter().map(|(worker, activity)| format!("{worker} ({})", activity.as_str())).collect();
            tracing::warn!(kind = "pipeline_stuck", "every stage waits: {}", waiting.join(", "));
        }
    }
}

/// Takes a last sample for the sink and drops the sink. The watchdog goes on while the log stage drains.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Close;

/// Steps a [`Telemetry`] on the supervisor's arbiter.
pub(crate) struct TelemetryActor {
    telemetry: Telemetry,
}

impl TelemetryActor {
    pub(crate) const fn new(telemetry: Telemetry) -> Self {
        Self { telemetry }
    }
}

impl Actor for TelemetryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let every = self.telemetry.sample_every;
        ctx.run_interval(every, |actor, _| {
            actor.telemetry.sample();
        });
    }
}

impl Handler<Close> for TelemetryActor {
    type Result = ();

    fn handle(&mut self, _: Close, _: &mut Self::Context) {
        self.telemetry.sample();
        self.telemetry.sink = Box::new(|_| {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::flow::stage_name::{StageName, WorkerId};
    use std::thread::sleep;

    fn probe(stage: StageName) -> WorkerProbe {
        WorkerProbe { worker: WorkerId { stage, instance: 0 }, counters: StageCounters::new(), inputs: Vec::new() }
    }

    #[test]
    fn a_hang_is_named_once_and_again_after_it_ended() {
        let hanging = probe(StageName::Evaluator);
        let waiting = probe(StageName::Policy);
        let probes = vec![hanging.clone(), waiting.clone()];
        let limit = Duration::from_millis(20);
        let mut telemetry = Telemetry::new(probes, Duration::from_secs(1), limit, |_| {});
        let _waiting_run = waiting.counters.run();
        let _wait = waiting.counters.wait_in();
        let run = hanging.counters.run();
        assert_eq!(telemetry.sample(), []);
        sleep(Duration::from_millis(30));
        let findings = telemetry.sample();
        assert!(matches!(findings[..], [Finding::Hangs { worker, .. }] if worker == hanging.worker), "{findings:?}");
        assert_eq!(telemetry.sample(), [], "named once");
        drop(run);
        telemetry.sample();
        let _run = hanging.counters.run();
        sleep(Duration::from_millis(30));
        assert_eq!(telemetry.sample().len(), 1, "a new hang");
    }

    #[test]
    fn a_pipeline_of_waiting_stages_is_stuck() {
        let probes = vec![probe(StageName::Load), probe(StageName::Score)];
        let limit = Duration::from_millis(10);
        let mut telemetry = Telemetry::new(probes.clone(), Duration::from_secs(1), limit, |_| {});
        let _runs = probes.iter().map(|probe| probe.counters.run()).collect::<Vec<_>>();
        let _wait_out = probes[0].counters.wait_out();
        let _wait_in = probes[1].counters.wait_in();
        telemetry.sample();
        sleep(Duration::from_millis(20));
        let expected = vec![(probes[0].worker, Activity::WaitOut), (probes[1].worker, Activity::WaitIn)];
        assert_eq!(telemetry.sample(), [Finding::Stuck { waiting: expected }]);
        assert_eq!(telemetry.sample(), []);
        probes[1].counters.add_item(10);
        assert_eq!(telemetry.sample(), [], "an item was finished");
    }

    #[test]
    fn utilization_is_of_the_last_interval_and_counters_are_cumulative() {
        let probe = probe(StageName::Encoder);
        let mut telemetry = Telemetry::new(vec![probe.clone()], Duration::from_secs(1), Duration::MAX, |_| {});
        let newest = telemetry.newest();
        assert!(newest.get().is_empty());
        let _run = probe.counters.run();
        sleep(Duration::from_millis(20));
        telemetry.sample();
        assert!(newest.get()[0].utilization > 0.99);
        let _wait = probe.counters.wait_in();
        // Starts the interval within the wait.
        telemetry.sample();
        sleep(Duration::from_millis(20));
        telemetry.sample();
        let sample = &newest.get()[0];
        assert!(sample.utilization < 0.01, "{}", sample.utilization);
        assert!(sample.counters.busy_ns >= 20_000_000);
    }
}
