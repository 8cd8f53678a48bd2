//! The stages' utilization over a run, and how much the levels overlapped, from the `actors` table.

use mlomae_dataflow::flow::stage_name::StageName;
use serde::Serialize;

use crate::watch::top::history::{History, Totals, Track};
use crate::watch::top::render::HEIGHTS;

/// How the overlap is bounded, said where it is printed. It holds whether or not levels 2 and 3 overlap each other.
pub const OVERLAP: &str = "at least max(0, busy_encoder + max(busy_evaluator, busy_policy) - wall) per sample";
/// What [`Timeline::busy_beyond_wall`] is. While levels 2 and 3 overlap each other, their time counts twice.
pub const BUSY_BEYOND_WALL: &str = "max(0, busy_encoder + busy_evaluator + busy_policy - wall) per sample";

/// A run's course.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timeline {
    /// The run's id.
    pub run: String,
    /// `pipeline.lag`.
    pub lag: u32,
    /// Begin and end in seconds of running time.
    pub span_s: [f64; 2],
    /// Seconds of a bucket.
    pub bucket_s: f64,
    /// The stages in their order.
    pub stages: Vec<StageCourse>,
    /// Share of the wall time, bounded as [`OVERLAP`] says.
    pub overlap: f64,
    /// Share of the wall time, [`BUSY_BEYOND_WALL`].
    pub busy_beyond_wall: f64,
    /// Seconds of the device over all stages as a share of the wall time, where there is one; more than 1 where work of
    /// several stages ran on it at once.
    pub device: Option<f64>,
    /// Outer iterations a second.
    pub outer_per_s: f64,
    /// Updates of the policy that are done.
    pub policy_version: u64,
    /// Lag of the policy in use in outer iterations, at the newest logged step.
    pub policy_lag: Option<f64>,
}

/// A stage, all its workers together; shares are of the workers' time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageCourse {
    /// The stage.
    pub stage: String,
    /// Its workers.
    pub num_workers: usize,
    /// Utilization by bucket, 0..=1.
    pub buckets: Vec<f64>,
    /// Share of the time at work.
    pub utilization: f64,
    /// Seconds of work.
    pub busy_s: f64,
    /// Seconds waiting for input.
    pub wait_in_s: f64,
    /// Seconds waiting for room.
    pub wait_out_s: f64,
    /// Share of the time waiting for input.
    pub wait_in: f64,
    /// Share of the time waiting for room.
    pub wait_out: f64,
    /// Seconds for which a device with a clock of its own worked for the stage; none where the host computes.
    pub device_s: Option<f64>,
    /// The same as a share of the workers' time.
    pub device: Option<f64>,
    /// That share by bucket.
    pub device_buckets: Option<Vec<f64>>,
    /// Items done.
    pub items: f64,
    /// Items a second.
    pub items_per_s: f64,
}

impl Timeline {
    /// The course of a run over at most `max_buckets` buckets, none shorter than the time between samples; none if
    /// there are no samples. The tracks are those of all segments.
    #[must_use]
    pub fn of(history: &History, max_buckets: usize) -> Option<Self> {
        let tracks: Vec<((i32, StageName), &Track)> =
            history.tracks.iter().map(|((segment, worker), track)| ((*segment, worker.stage), track)).collect();
        let course = Course::of(&tracks, history.config.logs.actors_every_seconds, max_buckets)?;
        let policy = course.stages.iter().find(|stage| stage.stage == StageName::Policy.as_str());
        Some(Self {
            run: history.record.id.clone(),
            lag: history.config.pipeline.lag,
            outer_per_s: policy.map_or(0.0, |stage| stage.items_per_s),
            policy_version: history.num_outer_done(),
            policy_lag: history.policy_lag,
            span_s: course.span_s,
            bucket_s: course.bucket_s,
            overlap: course.overlap,
            busy_beyond_wall: course.busy_beyond_wall,
            device: course.device,
            stages: course.stages,
        })
    }

    /// As text without a newline at its end.
    #[must_use]
    pub fn render(&self) -> String {
        let [begin, end] = self.span_s;
        let mut text = format!(
            "{}  pipeline.lag = {}  {begin:.1} s to {end:.1} s, {:.2} s a column; \
             utilization ▁ to █ by eighths, . for less than 1 %\n",
            self.run, self.lag, self.bucket_s
        );
        for stage in &self.stages {
            let cells: String = stage.buckets.iter().map(|share| cell(*share)).collect();
            text += &format!("{:<10} {cells}\n", stage.stage);
            if let Some(buckets) = &stage.device_buckets {
                let cells: String = buckets.iter().map(|share| cell(*share)).collect();
                text += &format!("{:<10} {cells}\n", "  device");
            }
        }
        let has_device = self.stages.iter().any(|stage| stage.device_s.is_some());
        text += &format!(
            "\n{:<10} {:>7} {:>6} {:>9} {:>9} {:>6} {:>9} {:>6} {:>9}",
            "stage", "workers", "busy", "busy s", "wait in s", "in", "wait out s", "out", "items/s"
        );
        if has_device {
            text += &format!(" {:>9} {:>6}", "device s", "device");
        }
        for stage in &self.stages {
            text += &format!(
                "\n{:<10} {:>7} {:>4.0} % {:>9.2} {:>9.2} {:>4.0} % {:>10.2} {:>4.0} % {:>9.2}",
                stage.stage,
                stage.num_workers,
                100.0 * stage.utilization,
                stage.busy_s,
                stage.wait_in_s,
                100.0 * stage.wait_in,
                stage.wait_out_s,
                100.0 * stage.wait_out,
                stage.items_per_s
            );
            if has_device {
                let seconds = stage.device_s.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}"));
                let share = stage.device.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
                text += &format!(" {seconds:>9} {share:>6}");
            }
        }
        let lag = self.policy_lag.map_or_else(|| "-".to_owned(), |lag| format!("{lag}"));
        text += &format!("\n\nlevels 1 and 2/3 at once: {:.1} % of the wall time, {OVERLAP}", 100.0 * self.overlap);
        text +=
            &format!("\nbusy beyond the wall time: {:.1} % of it, {BUSY_BEYOND_WALL}", 100.0 * self.busy_beyond_wall);
        if let Some(device) = self.device {
            text += &format!("\nthe device's time over all stages: {:.1} % of the wall time", 100.0 * device);
        }
        text += &format!(
            "\n{:.3} outer iterations/s, policy version {}, in use {lag} outer iterations behind",
            self.outer_per_s, self.policy_version
        );
        text
    }
}

fn cell(share: f64) -> char {
    match share {
        share if share < 0.01 => '.',
        share => HEIGHTS[((share * 8.0).ceil() as usize).clamp(1, 8) - 1],
    }
}

/// What follows from the tracks alone.
#[derive(Debug)]
struct Course {
    span_s: [f64; 2],
    bucket_s: f64,
    stages: Vec<StageCourse>,
    overlap: f64,
    busy_beyond_wall: f64,
    device: Option<f64>,
}

impl Course {
    fn of(tracks: &[((i32, StageName), &Track)], sample_s: f64, max_buckets: usize) -> Option<Self> {
        let begin = tracks.iter().map(|(_, track)| track.begin_s()).reduce(f64::min)?;
        let end = tracks.iter().map(|(_, track)| track.end_s()).reduce(f64::max)?;
        let wall = end - begin;
        let num_buckets = ((wall / sample_s) as usize).clamp(1, max_buckets.max(1));
        let bucket_s = wall / num_buckets as f64;
        let share = |seconds: f64, of: f64| if of > 0.0 { (seconds / of).clamp(0.0, 1.0) } else { 0.0 };
        let mut stages = Vec::new();
        for name in StageName::ALL {
            let own: Vec<_> = tracks.iter().filter(|((_, stage), _)| *stage == name).collect();
            let Some(newest) = own.iter().map(|((segment, _), _)| *segment).max() else {
                continue;
            };
            let num_workers = own.iter().filter(|((segment, _), _)| *segment == newest).count();
            let during = |from: f64, to: f64| {
                let parts = own.iter().map(|(_, track)| track.at(to).since(track.at(from)));
                parts.fold(Totals::default(), Totals::plus)
            };
            let workers_s = |seconds: f64| seconds * num_workers as f64;
            let bucket = |i: usize| {
                let from = begin + bucket_s * i as f64;
                during(from, from + bucket_s)
            };
            let buckets: Vec<Totals> = (0..num_buckets).map(bucket).collect();
            let of_bucket = |seconds: f64| share(seconds, workers_s(bucket_s));
            // From before the first sample: the counters are zero there.
            let total = during(begin - 1.0, end);
            stages.push(StageCourse {
                stage: name.as_str().to_owned(),
                num_workers,
                buckets: buckets.iter().map(|during| of_bucket(during.busy_s)).collect(),
                utilization: share(total.busy_s, workers_s(wall)),
                busy_s: total.busy_s,
                wait_in_s: total.wait_in_s,
                wait_out_s: total.wait_out_s,
                wait_in: share(total.wait_in_s, workers_s(wall)),
                wait_out: share(total.wait_out_s, workers_s(wall)),
                device_s: total.device_s,
                device: total.device_s.map(|seconds| share(seconds, workers_s(wall))),
                device_buckets: total
                    .device_s
                    .map(|_| buckets.iter().map(|during| of_bucket(during.device_s.unwrap_or(0.0))).collect()),
                items: total.items,
                items_per_s: if wall > 0.0 { total.items / wall } else { 0.0 },
            });
        }
        let [mut overlap_s, mut beyond_s] = [0.0_f64; 2];
        for ((segment, _), encoder) in tracks.iter().filter(|((_, stage), _)| *stage == StageName::Encoder) {
            let find = |name| tracks.iter().find(|(key, _)| *key == (*segment, name)).map(|(_, track)| *track);
            let (evaluator, policy) = (find(StageName::Evaluator), find(StageName::Policy));
            let mut from = encoder.begin_s();
            for to in encoder.sample_times() {
                let busy = |track: Option<&Track>| track.map_or(0.0, |track| track.at(to).since(track.at(from)).busy_s);
                let [one, two, three] = [busy(Some(encoder)), busy(evaluator), busy(policy)];
                beyond_s += (one + two + three - (to - from)).max(0.0);
                overlap_s += (one + two.max(three) - (to - from)).max(0.0);
                from = to;
            }
        }
        let (overlap, busy_beyond_wall) = (share(overlap_s, wall), if wall > 0.0 { beyond_s / wall } else { 0.0 });
        let device_s = stages.iter().filter_map(|stage| stage.device_s).reduce(|a, b| a + b);
        let device = device_s.map(|seconds| if wall > 0.0 { seconds / wall } else { 0.0 });
        Some(Self { span_s: [begin, end], bucket_s, stages, overlap, busy_beyond_wall, device })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::top::history::tests::sample;

    fn track(stage: StageName, seconds: &[[f64; 3]]) -> Track {
        let mut track = Track::default();
        for (i, covered) in seconds.iter().enumerate() {
            track.push(sample(stage, *covered, i as i64 + 1, 0.0));
        }
        track
    }

    fn course(evaluator: &[[f64; 3]], policy: &[[f64; 3]]) -> Course {
        use StageName::{Encoder, Evaluator, Policy};
        let encoder = track(Encoder, &[[1.0, 0.0, 0.0], [1.5, 0.5, 0.0]]);
        let (evaluator, policy) = (track(Evaluator, evaluator), track(Policy, policy));
        let tracks = [((0, Encoder), &encoder), ((0, Evaluator), &evaluator), ((0, Policy), &policy)];
        Course::of(&tracks, 1.0, 60).unwrap()
    }

    #[test]
    fn stages_that_take_turns_do_not_overlap() {
        let course = course(&[[0.0, 1.0, 0.0], [0.25, 1.75, 0.0]], &[[0.0, 1.0, 0.0], [0.25, 1.75, 0.0]]);
        assert_eq!((course.span_s, course.bucket_s), ([10.0, 12.0], 1.0));
        assert_eq!((course.overlap, course.busy_beyond_wall), (0.0, 0.0));
        let encoder = &course.stages[0];
        assert_eq!(encoder.buckets, [1.0, 0.5]);
        assert_eq!((encoder.utilization, encoder.busy_s, encoder.wait_in, encoder.items_per_s), (0.75, 1.5, 0.25, 1.0));
    }

    #[test]
    fn what_does_not_fit_the_wall_time_overlapped() {
        let course = course(&[[0.5, 0.5, 0.0], [1.25, 0.75, 0.0]], &[[0.25, 0.75, 0.0], [0.5, 1.5, 0.0]]);
        // Second 1: 1 + 0.5 + 0.25 - 1; second 2: 0.5 + 0.75 + 0.25 - 1.
        assert_eq!(course.busy_beyond_wall, (0.75 + 0.5) / 2.0);
        assert_eq!(course.overlap, (0.5 + 0.25) / 2.0);
    }

    #[test]
    fn a_device_stands_beside_the_host_where_there_is_one() {
        let mut encoder = Track::default();
        for (seconds, device_s) in [(1.0, 0.5), (2.0, 1.5)] {
            let mut sample = sample(StageName::Encoder, [seconds, 0.0, 0.0], 1, 0.0);
            sample.row.device_s = Some(device_s);
            encoder.push(sample);
        }
        let load = track(StageName::Load, &[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]);
        let tracks = [((0, StageName::Load), &load), ((0, StageName::Encoder), &encoder)];
        let course = Course::of(&tracks, 1.0, 60).unwrap();
        let [load, encoder] = &course.stages[..] else { panic!("two stages") };
        assert_eq!((encoder.device_s, encoder.device, course.device), (Some(1.5), Some(0.75), Some(0.75)));
        assert_eq!(encoder.device_buckets.as_deref(), Some(&[0.5, 1.0][..]));
        assert_eq!((load.device_s, load.device, load.device_buckets.is_none()), (None, None, true));
        let timeline = |stages: &[StageCourse]| Timeline {
            run: "run".to_owned(),
            lag: 1,
            span_s: course.span_s,
            bucket_s: course.bucket_s,
            overlap: 0.0,
            busy_beyond_wall: 0.0,
            device: stages.iter().find_map(|stage| stage.device),
            outer_per_s: 1.0,
            policy_version: 1,
            policy_lag: None,
            stages: stages.to_vec(),
        };
        let text = timeline(&course.stages).render();
        for part in
            ["\nencoder    ██\n  device   ▄█\n", " device s device\n", "      1.50   75 %", "        -      -\n"]
        {
            assert!(text.contains(part), "{part:?} in:\n{text}");
        }
        assert!(text.contains("\nthe device's time over all stages: 75.0 % of the wall time\n"), "{text}");
        let text = timeline(&course.stages[..1]).render();
        assert!(!text.contains("device"), "{text}");
    }

    #[test]
    fn nothing_is_said_without_samples_and_a_level_has_its_character() {
        assert!(Course::of(&[], 1.0, 60).is_none());
        assert_eq!([0.0, 0.1, 0.5, 0.51, 1.0].map(cell), ['.', '▁', '▄', '▅', '█']);
    }
}
