//! What `mlomae top` shows: the stages of a run from its Arrow logs alone.

pub mod history;
pub mod render;

use mlomae_dataflow::flow::stage_name::StageName;
use serde::Serialize;

use history::{History, Track};

/// Rates of a run at work are taken over this time.
const RATE_WINDOW_S: f64 = 10.0;
/// Points of a loss's history.
const NUM_LOSS_POINTS: usize = 32;
/// How many warnings are shown.
const NUM_WARNINGS: usize = 5;

/// A run at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frame {
    /// The run's id.
    pub run: String,
    /// How it stands.
    pub status: String,
    /// Whether its process is at work.
    pub is_running: bool,
    /// Seconds of running time that the logs cover.
    pub wall_s: f64,
    /// Outer iterations done.
    pub outer: u64,
    /// Outer iterations of the whole run.
    pub num_outer: u64,
    /// Outer iterations a second.
    pub outer_per_s: Option<f64>,
    /// Seconds until the end, of a run at work.
    pub eta_s: Option<f64>,
    /// Level-1 images a second.
    pub images_per_s: Option<f64>,
    /// The seconds over which rates and shares were taken, up to the newest sample.
    pub window_s: f64,
    /// The losses of the three levels.
    pub losses: Vec<LossLine>,
    /// The stages' workers.
    pub stages: Vec<StageLine>,
    /// Warnings and errors of the whole run.
    pub num_warnings: usize,
    /// The last of them, oldest first.
    pub warnings: Vec<WarningLine>,
}

/// The loss of a level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossLine {
    /// The level's name in the logs.
    pub level: String,
    /// The newest value.
    pub newest: Option<f64>,
    /// Means over equal parts of the run.
    pub history: Vec<f64>,
}

/// A worker of a stage; shares and rates are those of the frame's window.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageLine {
    /// The stage.
    pub stage: String,
    /// The worker within the stage.
    pub instance: i16,
    /// Items since the run was started or resumed.
    pub items: i64,
    /// Items a second.
    pub items_per_s: f64,
    /// Items in its input queues.
    pub queue_len: i32,
    /// Capacity of its input queues.
    pub queue_cap: i32,
    /// Share of the time at work.
    pub utilization: f64,
    /// Share of the time waiting for input.
    pub wait_in: f64,
    /// Share of the time waiting for room.
    pub wait_out: f64,
    /// Share of the time for which a device worked, where one with a clock of its own does.
    pub device: Option<f64>,
    /// Restarts after a panic.
    pub restarts: i32,
    /// Of the scorer: outer iterations by which its policy was behind, as last measured.
    pub lag: i32,
}

/// A warning or an error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WarningLine {
    /// Seconds of running time.
    pub wall_s: f64,
    /// `warn` or `error`.
    pub severity: String,
    /// What kind.
    pub kind: String,
    /// One line for people.
    pub message: String,
}

impl Frame {
    /// The run as its logs have it now.
    #[must_use]
    pub fn of(history: &History) -> Self {
        let segment = history.newest_segment();
        let tracks: Vec<_> = segment.into_iter().flat_map(|segment| history.segment(segment)).collect();
        let end = tracks.iter().map(|(_, track)| track.end_s()).fold(0.0, f64::max);
        let begin = tracks.iter().map(|(_, track)| track.begin_s()).fold(end, f64::min);
        // The last seconds of a run that is over would show nothing but its end.
        let since = if history.is_running { begin.max(end - RATE_WINDOW_S) } else { begin };
        let window_s = end - since;
        let stages: Vec<_> =
            tracks.iter().filter_map(|(worker, track)| line(worker.stage, track, since, end)).collect();
        let rate_of = |stage: StageName| {
            let items_per_s: f64 = stages.iter().filter(|s| s.stage == stage.as_str()).map(|s| s.items_per_s).sum();
            (items_per_s > 0.0).then_some(items_per_s)
        };
        let outer_per_s = rate_of(StageName::Policy);
        let batch = history.config.pretrain.batch as f64;
        let images_per_s = rate_of(StageName::Encoder).map(|steps| steps * batch).or(history.images_per_s);
        let (outer, num_outer) = (history.num_outer_done(), history.config.train.outer_iterations);
        let eta_s =
            outer_per_s.filter(|_| history.is_running).map(|rate| num_outer.saturating_sub(outer) as f64 / rate);
        let losses = ["pretrain", "finetune", "mask"].iter().zip(&history.losses).map(|(level, loss)| LossLine {
            level: (*level).to_owned(),
            newest: loss.newest,
            history: loss.means(NUM_LOSS_POINTS),
        });
        let warnings = &history.warnings;
        let last = warnings[warnings.len().saturating_sub(NUM_WARNINGS)..].iter().map(|event| WarningLine {
            wall_s: event.place.stamp.wall_s,
            severity: event.row.severity.name().to_owned(),
            kind: event.row.kind.to_string(),
            message: event.row.message.clone(),
        });
        Self {
            run: history.record.id.clone(),
            status: history.status(),
            is_running: history.is_running,
            wall_s: end,
            outer,
            num_outer,
            outer_per_s,
            eta_s,
            images_per_s,
            window_s,
            losses: losses.collect(),
            num_warnings: warnings.len(),
            warnings: last.collect(),
            stages,
        }
    }
}

fn line(stage: StageName, track: &Track, since: f64, until: f64) -> Option<StageLine> {
    let newest = track.newest()?;
    let during = track.at(until).since(track.at(since));
    let share = |seconds: f64| if until > since { (seconds / (until - since)).clamp(0.0, 1.0) } else { 0.0 };
    Some(StageLine {
        stage: stage.as_str().to_owned(),
        instance: newest.instance,
        items: newest.items,
        items_per_s: if until > since { during.items / (until - since) } else { 0.0 },
        queue_len: newest.queue_len,
        queue_cap: newest.queue_cap,
        utilization: share(during.busy_s),
        wait_in: share(during.wait_in_s),
        wait_out: share(during.wait_out_s),
        device: during.device_s.map(share),
        restarts: newest.restarts,
        lag: newest.lag,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_of_its_window() {
        let mut track = Track::default();
        track.push(history::tests::sample(StageName::Encoder, [1.0, 1.0, 0.0], 4, 0.0));
        track.push(history::tests::sample(StageName::Encoder, [4.0, 1.0, 1.0], 12, 0.0));
        let line = line(StageName::Encoder, &track, 12.0, 16.0).unwrap();
        assert_eq!((line.items, line.items_per_s), (12, 2.0));
        assert_eq!((line.utilization, line.wait_in, line.wait_out), (0.75, 0.0, 0.25));
    }
}
