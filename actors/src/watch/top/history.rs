//! The course of a run from its logs: the stages' counters over time, losses, events.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_dataflow::counts::Step;
use mlomae_dataflow::flow::stage_name::{StageName, WorkerId};
use mlomae_dataflow::record::Metric;
use mlomae_storage::logs::{Abandoned, ActorRow, EventRow, Level, Logged, MetricRow, Severity, TableReader};
use mlomae_storage::run_dir::{RunDir, RunLock, RunRecord, RunStatus};

use crate::process::error::CliError;

/// How many values of a loss are kept, evenly over the run.
const MAX_POINTS: usize = 4096;

/// The counters of a worker at one time of the run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Seconds of running time since the run began.
    pub at_s: f64,
    /// Items done.
    pub items: f64,
    /// Seconds of work.
    pub busy_s: f64,
    /// Seconds waiting for input.
    pub wait_in_s: f64,
    /// Seconds waiting for room in an output.
    pub wait_out_s: f64,
    /// Seconds for which a device worked, where one with a clock of its own does.
    pub device_s: Option<f64>,
}

impl Totals {
    fn of(row: &ActorRow) -> Self {
        Self {
            at_s: 0.0,
            items: row.items as f64,
            busy_s: row.busy_s,
            wait_in_s: row.wait_in_s,
            wait_out_s: row.wait_out_s,
            device_s: row.device_s,
        }
    }

    /// The time that the counters cover.
    #[must_use]
    pub fn covered_s(&self) -> f64 {
        self.busy_s + self.wait_in_s + self.wait_out_s
    }

    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            at_s: f(self.at_s, other.at_s),
            items: f(self.items, other.items),
            busy_s: f(self.busy_s, other.busy_s),
            wait_in_s: f(self.wait_in_s, other.wait_in_s),
            wait_out_s: f(self.wait_out_s, other.wait_out_s),
            device_s: match (self.device_s, other.device_s) {
                (None, None) => None,
                (a, b) => Some(f(a.unwrap_or(0.0), b.unwrap_or(0.0))),
            },
        }
    }

    /// What came between `earlier` and this.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.zip(earlier, |a, b| a - b)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

/// A worker within one segment of a run, from its start.
#[derive(Debug, Clone, Default)]
pub struct Track {
    rows: Vec<Totals>,
    /// When the worker started. A row is stamped when it is written, up to a second after its counters were read, so
    /// the least delayed one is the best estimate.
    begin_s: f64,
    newest: Option<Logged<ActorRow>>,
}

impl Track {
    /// Adds the next sample.
    pub fn push(&mut self, sample: Logged<ActorRow>) {
        let mut totals = Totals::of(&sample.row);
        let begin_s = sample.place.stamp.wall_s - totals.covered_s();
        self.begin_s = if self.rows.is_empty() { begin_s } else { self.begin_s.min(begin_s) };
        totals.at_s = totals.covered_s();
        self.rows.push(totals);
        self.newest = Some(sample);
    }

    /// The newest row as it was logged.
    #[must_use]
    pub fn newest(&self) -> Option<&ActorRow> {
        self.newest.as_ref().map(|sample| &sample.row)
    }

    /// When the worker started, in the run's time.
    #[must_use]
    pub const fn begin_s(&self) -> f64 {
        self.begin_s
    }

    /// Until when something is known of it.
    #[must_use]
    pub fn end_s(&self) -> f64 {
        self.begin_s + self.rows.last().map_or(0.0, |row| row.at_s)
    }

    /// The times of its samples.
    pub fn sample_times(&self) -> impl Iterator<Item = f64> + '_ {
        self.rows.iter().map(|row| self.begin_s + row.at_s)
    }

    /// The counters at a time, interpolated linearly between two samples; zero before the start, the last ones after
    /// the end.
    #[must_use]
    pub fn at(&self, at_s: f64) -> Totals {
        let own = at_s - self.begin_s;
        let place = self.rows.partition_point(|row| row.at_s <= own);
        let before = place.checked_sub(1).map_or_else(Totals::default, |place| self.rows[place]);
        let Some(after) = self.rows.get(place).filter(|_| own > 0.0) else {
            return Totals { at_s, ..before };
        };
        let share = (own - before.at_s) / (after.at_s - before.at_s);
        Totals { at_s, ..before.zip(*after, |a, b| a + share * (b - a)) }
    }
}

/// All that the commands `top`, `timeline` and `simulate` look at.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    /// `run.json`.
    pub record: RunRecord,
    /// The run's configuration.
    pub config: Config,
    /// Whether its process holds the run.
    pub is_running: bool,
    actors: TableReader<ActorRow>,
    metrics: TableReader<MetricRow>,
    events: TableReader<EventRow>,
    /// History that the run abandoned by going back: its samples do not count.
    abandoned: Abandoned,
    /// The workers of each segment.
    pub tracks: BTreeMap<(i32, WorkerId), Track>,
    /// Losses of the levels pretrain, finetune and mask by level-1 steps done.
    pub losses: [LossHistory; 3],
    /// Level-1 steps done.
    pub step: i64,
    /// Level-1 steps of the outer iterations whose policy update is done.
    pub policy_step: i64,
    /// The newest images a second of level 1.
    pub images_per_s: Option<f64>,
    /// The newest lag of the policy in use, in outer iterations.
    pub policy_lag: Option<f64>,
    /// Warnings and errors, oldest first.
    pub warnings: Vec<Logged<EventRow>>,
}

/// The values of a loss over the run.
#[derive(Debug, Clone, Default)]
pub struct LossHistory {
    /// Every `stride`th value.
    values: Vec<f64>,
    stride: usize,
    skip: usize,
    /// The newest value.
    pub newest: Option<f64>,
}

impl LossHistory {
    /// Adds the next value. Of a long run, every second, fourth, … value is kept.
    pub fn push(&mut self, value: f64) {
        self.newest = Some(value);
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        self.values.push(value);
        self.stride = self.stride.max(1);
        if self.values.len() == MAX_POINTS {
            let mut keep = false;
            self.values.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
        self.skip = self.stride - 1;
    }

    /// Means of the values that are numbers over `num` equal parts of the run, fewer for a short run.
    #[must_use]
    pub fn means(&self, num: usize) -> Vec<f64> {
        let num = num.min(self.values.len());
        let part = |i: usize| &self.values[i * self.values.len() / num..(i + 1) * self.values.len() / num];
        let mean = |values: &[f64]| {
            let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
            finite.iter().sum::<f64>() / finite.len() as f64
        };
        (0..num).map(|i| mean(part(i))).collect()
    }
}

impl History {
    /// Reads everything that the logs of `run` hold now.
    ///
    /// # Errors
    /// If there is no run, or a file of it cannot be read.
    pub fn open(run: &Path) -> Result<Self, CliError> {
        let dir = RunDir::open(run)?;
        let name = dir.config().display().to_string();
        let config = Config::resolve(&ConfigInputs::default().layer(&name, &dir.read_config()?))?;
        let mut history = Self {
            path: run.to_owned(),
            record: dir.record()?,
            config,
            is_running: false,
            actors: TableReader::new(run),
            metrics: TableReader::new(run),
            events: TableReader::new(run),
            abandoned: Abandoned::default(),
            tracks: BTreeMap::new(),
            losses: Default::default(),
            step: 0,
            policy_step: 0,
            images_per_s: None,
            policy_lag: None,
            warnings: Vec::new(),
        };
        history.poll()?;
        Ok(history)
    }

    /// Reads what has come since.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn poll(&mut self) -> Result<(), CliError> {
        // Looked at before the rows: what is written before the end is seen after it.
        self.is_running = RunLock::is_held(&self.path);
        self.record = RunDir::open(&self.path)?.record()?;
        let events = self.events.poll()?;
        let mut went_back = false;
        for event in &events {
            went_back |= self.abandoned.note(event);
        }
        if went_back && (self.step > 0 || !self.tracks.is_empty()) {
            // It happened while we looked: what was read is no longer the run's history.
            let fresh = Self::open(&self.path)?;
            *self = fresh;
            return Ok(());
        }
        for sample in self.actors.poll()? {
            if self.abandoned.has(sample.segment, sample.place.step) {
                continue;
            }
            // Stages of a later version of the program are not known here.
            if let Ok(stage) = sample.row.stage.parse() {
                let instance = usize::try_from(sample.row.instance).unwrap_or(0);
                let worker = WorkerId { stage, instance };
                self.tracks.entry((sample.segment, worker)).or_default().push(sample);
            }
        }
        for metric in self.metrics.poll()? {
            self.add_metric(&metric);
        }
        // Warnings stay, whichever history they are of.
        self.warnings.extend(events.into_iter().filter(|event| event.row.severity >= Severity::Warn));
        let damaged = [self.actors.take_damaged(), self.metrics.take_damaged(), self.events.take_damaged()];
        for part in damaged.iter().flatten() {
            tracing::warn!(kind = "log_damage", "{part}");
        }
        Ok(())
    }

    fn add_metric(&mut self, Logged { place, row, .. }: &Logged<MetricRow>) {
        let Some(level) = place.level.filter(|level| *level != Level::Eval) else { return };
        self.step = self.step.max(place.step);
        match Metric::of(level, &row.name) {
            Some(Metric::PretrainLoss) => self.losses[0].push(row.value),
            Some(Metric::FinetuneLoss) => self.losses[1].push(row.value),
            Some(Metric::ValidationLoss) => self.losses[2].push(row.value),
            Some(Metric::ImagesPerSecond) => self.images_per_s = Some(row.value),
            Some(Metric::PolicyLag) => self.policy_lag = Some(row.value),
            // The policy itself writes it, at the end of its update.
            Some(Metric::HypergradientNorm) => self.policy_step = self.policy_step.max(place.step),
            _ => {}
        }
    }

    /// The run's status as text: a run whose process is gone has died, whatever `run.json` says.
    #[must_use]
    pub fn status(&self) -> String {
        match self.record.status {
            RunStatus::Running if !self.is_running => "died (its process is gone; train --resume goes on)".to_owned(),
            status => status.to_string(),
        }
    }

    /// The newest segment of which there are samples.
    #[must_use]
    pub fn newest_segment(&self) -> Option<i32> {
        self.tracks.keys().map(|(segment, _)| *segment).max()
    }

    /// The workers of one segment.
    pub fn segment(&self, segment: i32) -> impl Iterator<Item = (WorkerId, &Track)> {
        self.tracks.iter().filter(move |((of, _), _)| *of == segment).map(|((_, worker), track)| (*worker, track))
    }

    /// Outer iterations whose policy update is done. Without logged updates (random masks, sparse metrics) they are
    /// counted by the policy's items in all segments, then by level 1's steps.
    #[must_use]
    pub fn num_outer_done(&self) -> u64 {
        let unroll = self.config.method.unroll.max(1);
        let logged = Step::from_logged(self.policy_step).outer(unroll).0;
        let updates =
            self.tracks.iter().filter(|((_, worker), _)| *worker == WorkerId { stage: StageName::Policy, instance: 0 });
        let counted = updates.filter_map(|(_, track)| u64::try_from(track.newest()?.items).ok()).sum();
        match logged.max(counted) {
            0 => Step::from_logged(self.step).outer(unroll).0,
            done => done,
        }
    }

    /// Cores of the machine on which the run was last.
    #[must_use]
    pub fn num_cores(&self) -> usize {
        self.record.host.cpus.max(1)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mlomae_storage::logs::{Place, Stamp};

    /// A sample `delay_s` after its counters were read by a worker that started at second 10.
    pub(crate) fn sample(stage: StageName, covered: [f64; 3], items: i64, delay_s: f64) -> Logged<ActorRow> {
        let [busy_s, wait_in_s, wait_out_s] = covered;
        let stamp = Stamp { ts_us: 1, wall_s: 10.0 + covered.iter().sum::<f64>() + delay_s };
        let row = ActorRow {
            stage: stage.as_str().into(),
            instance: 0,
            items,
            bytes: 0,
            busy_s,
            wait_in_s,
            wait_out_s,
            queue_len: 1,
            queue_cap: 2,
            queue_bytes: 0,
            utilization: 0.5,
            restarts: 0,
            lag: 0,
            device_s: None,
        };
        Logged { segment: 0, place: Place { stamp, epoch: 0, step: 0, level: None }, row }
    }

    #[test]
    fn a_track_is_straight_between_samples_whatever_their_delays() {
        let mut track = Track::default();
        track.push(sample(StageName::Encoder, [1.0, 1.0, 0.0], 4, 0.7));
        track.push(sample(StageName::Encoder, [5.0, 1.0, 0.0], 8, 0.0));
        track.push(sample(StageName::Encoder, [5.0, 3.0, 0.0], 8, 0.4));
        assert_eq!((track.begin_s(), track.end_s()), (10.0, 18.0));
        let busy = |at: f64| track.at(at).busy_s;
        assert_eq!([busy(0.0), busy(10.0), busy(11.0), busy(12.0)], [0.0, 0.0, 0.5, 1.0]);
        assert_eq!([busy(14.0), busy(16.0), busy(17.0), busy(99.0)], [3.0, 5.0, 5.0, 5.0]);
        assert_eq!(track.at(14.0).items, 6.0);
        assert_eq!(track.at(14.0).device_s, None);
        assert_eq!(track.sample_times().collect::<Vec<_>>(), [12.0, 16.0, 18.0]);
    }

    #[test]
    fn times_of_a_device_are_straight_too() {
        let mut track = Track::default();
        for (seconds, device_s) in [(2.0, 1.0), (6.0, 4.0)] {
            let mut sample = sample(StageName::Encoder, [seconds, 0.0, 0.0], 1, 0.0);
            sample.row.device_s = Some(device_s);
            track.push(sample);
        }
        assert_eq!([11.0, 14.0, 99.0].map(|at| track.at(at).device_s), [Some(0.5), Some(2.5), Some(4.0)]);
        let during = track.at(16.0).since(track.at(12.0)).plus(Totals::default());
        assert_eq!(during.device_s, Some(3.0), "beside a worker whose host computes");
    }

    #[test]
    fn a_long_history_of_a_loss_keeps_its_shape() {
        let mut loss = LossHistory::default();
        for i in 0..100_000 {
            loss.push(if i == 70 { f64::NAN } else { f64::from(i) });
        }
        assert_eq!(loss.newest, Some(99_999.0));
        let means = loss.means(4);
        assert_eq!(means.len(), 4);
        for (i, mean) in means.iter().enumerate() {
            assert!((mean - (12_500.0 + 25_000.0 * i as f64)).abs() < 200.0, "{means:?}");
        }
        assert_eq!(LossHistory::default().means(9), Vec::<f64>::new());
    }
}
