//! Where each stage's time went, as a tree that is printed at the end of a run.

use std::fmt::Write;

use mlomae_dataflow::flow::counters::CountersSnapshot;
use mlomae_dataflow::flow::stage_name::StageName;

use crate::roles::telemetry::ActorSample;

/// The tree of `samples`, one line a stage and, where a stage has several workers, one line each
/// below it. Times are in seconds, summed over the workers; ends without a newline.
#[must_use]
pub fn stage_times(samples: &[ActorSample]) -> String {
    let has_device = samples.iter().any(|sample| sample.counters.device_ns.is_some());
    let mut text = format!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>6} {:>9}",
        "stage", "items", "busy s", "wait in", "wait out", "busy", "restarts"
    );
    if has_device {
        text += &format!(" {:>9}", "device s");
    }
    for stage in StageName::ALL {
        let workers: Vec<_> = samples.iter().filter(|s| s.worker.stage == stage).collect();
        let Some(total) = workers.iter().map(|worker| worker.counters).reduce(|a, b| a + b) else {
            continue;
        };
        push_line(&mut text, stage.as_str(), &total, has_device);
        if workers.len() > 1 {
            for (index, worker) in workers.iter().enumerate() {
                let branch = if index + 1 == workers.len() { "└─" } else { "├─" };
                let name = format!("{branch} {}", worker.worker);
                push_line(&mut text, &name, &worker.counters, has_device);
            }
        }
    }
    text
}

fn push_line(text: &mut String, name: &str, counters: &CountersSnapshot, has_device: bool) {
    let seconds = |ns: u64| ns as f64 / 1e9;
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\n{name:<14} {:>9} {:>9.2} {:>9.2} {:>9.2} {:>5.0}% {:>9}",
        counters.items,
        seconds(counters.busy_ns),
        seconds(counters.wait_in_ns),
        seconds(counters.wait_out_ns),
        100.0 * counters.utilization(),
        counters.restarts
    );
    if has_device {
        let device = counters.device_ns.map_or_else(|| "-".to_owned(), |ns| format!("{:.2}", seconds(ns)));
        let _ = write!(text, " {device:>9}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::flow::stage_name::WorkerId;

    fn sample(stage: StageName, instance: usize, busy_ns: u64, wait_in_ns: u64) -> ActorSample {
        ActorSample {
            worker: WorkerId { stage, instance },
            counters: CountersSnapshot { items: 5, busy_ns, wait_in_ns, ..Default::default() },
            queue_len: 0,
            queue_cap: 0,
            queue_bytes: 0,
            utilization: 0.0,
        }
    }

    #[test]
    fn workers_stand_below_their_stage() {
        let samples = [
            sample(StageName::Encoder, 0, 3_000_000_000, 1_000_000_000),
            sample(StageName::Load, 0, 500_000_000, 1_500_000_000),
            sample(StageName::Load, 1, 1_500_000_000, 500_000_000),
        ];
        let tree = stage_times(&samples);
        let lines: Vec<_> = tree.lines().collect();
        assert_eq!(lines.len(), 5, "{tree}");
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>()[..6], ["load", "10", "2.00", "2.00", "0.00", "50%"]);
        assert!(lines[2].starts_with("├─ load 0 ") && lines[3].starts_with("└─ load 1 "), "{tree}");
        assert!(lines[4].contains("75%"), "{tree}");
        let widths: Vec<_> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "columns align: {tree}");
    }

    #[test]
    fn a_device_has_a_column_where_there_is_one() {
        let mut samples = [sample(StageName::Encoder, 0, 3_000_000_000, 0), sample(StageName::Load, 0, 1, 1)];
        assert!(!stage_times(&samples).contains("device"));
        samples[0].counters.device_ns = Some(2_500_000_000);
        let tree = stage_times(&samples);
        let lines: Vec<_> = tree.lines().collect();
        assert!(lines[0].ends_with(" device s") && lines[1].ends_with(" -") && lines[2].ends_with(" 2.50"), "{tree}");
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "columns align: {tree}");
    }
}
