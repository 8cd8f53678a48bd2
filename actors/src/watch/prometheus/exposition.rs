//! Prometheus' text exposition format, version 0.0.4.

use std::fmt::Write;

use mlomae_dataflow::flow::counters::CountersSnapshot;
use mlomae_dataflow::flow::stage_name::{EdgeId, WorkerId};

use crate::watch::progress::ProgressFigures;

/// The figures behind the metrics, at one time.
#[derive(Debug, Clone)]
pub struct Figures {
    /// The program's version.
    pub version: &'static str,
    /// The workers and their counters.
    pub workers: Vec<(WorkerId, CountersSnapshot)>,
    /// The queues between the stages, each once.
    pub queues: Vec<QueueSample>,
    /// How far the run is.
    pub progress: ProgressFigures,
    /// Level-1 images a second.
    pub images_per_second: Option<f64>,
    /// Epoch of the pretrain role.
    pub epoch: i32,
    /// Checkpoints written by this process.
    pub num_checkpoints: u64,
    /// Log rows written by this process.
    pub num_rows: u64,
    /// Outer iterations by which the masks' policy was behind, as last measured.
    pub policy_lag: Option<f64>,
    /// Resident and peak memory in bytes, where the system reports them.
    pub memory: Option<(u64, u64)>,
}

/// A queue at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSample {
    /// The edge whose queue it is.
    pub edge: EdgeId,
    /// Items waiting.
    pub len: usize,
    /// Items that it can hold.
    pub capacity: usize,
    /// Payload bytes waiting.
    pub bytes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

type Labels = Vec<(&'static str, String)>;

/// Name, help and value of a family whose samples are made of `S`.
type Family<'a, S, V> = (&'a str, &'a str, &'a dyn Fn(&S) -> V);

/// The metrics as text. A family without samples is left out.
#[must_use]
pub fn render(figures: &Figures) -> String {
    let mut text = Exposition::default();
    let build = (vec![("version", figures.version.to_owned())], 1.0);
    text.family(Kind::Gauge, "mlomae_build_info", "Constant 1, labelled with the program's version.", [build]);
    workers(&mut text, &figures.workers);
    queues(&mut text, &figures.queues);
    run(&mut text, figures);
    if let Some((resident, peak)) = figures.memory {
        let mut bytes = |name, help, bytes: u64| text.value(Kind::Gauge, name, help, Some(bytes as f64));
        bytes("process_resident_memory_bytes", "Resident memory size in bytes.", resident);
        bytes("mlomae_resident_memory_peak_bytes", "Largest resident memory size so far in bytes.", peak);
    }
    text.text
}

fn workers(text: &mut Exposition, workers: &[(WorkerId, CountersSnapshot)]) {
    let seconds = |ns: u64| ns as f64 * 1e-9;
    let families: [Family<CountersSnapshot, f64>; 6] = [
        ("mlomae_stage_items_total", "Items that the worker has finished.", &|c| c.items as f64),
        ("mlomae_stage_bytes_total", "Payload bytes of the items that the worker has finished.", &|c| c.bytes as f64),
        ("mlomae_stage_busy_seconds_total", "Time that the worker has computed.", &|c| seconds(c.busy_ns)),
        ("mlomae_stage_wait_in_seconds_total", "Time that the worker has waited for inputs.", &|c| {
            seconds(c.wait_in_ns)
        }),
        ("mlomae_stage_wait_out_seconds_total", "Time that the worker has waited for room in outputs.", &|c| {
            seconds(c.wait_out_ns)
        }),
        ("mlomae_stage_restarts_total", "Restarts of the worker after a panic.", &|c| c.restarts as f64),
    ];
    for (name, help, value) in families {
        let samples = workers.iter().map(|(worker, counters)| {
            let labels = vec![("stage", worker.stage.to_string()), ("instance", worker.instance.to_string())];
            (labels, value(counters))
        });
        text.family(Kind::Counter, name, help, samples);
    }
    let device = workers.iter().filter_map(|(worker, counters)| {
        let labels = vec![("stage", worker.stage.to_string()), ("instance", worker.instance.to_string())];
        Some((labels, seconds(counters.device_ns?)))
    });
    let help = "Time that a device with a clock of its own has worked for the worker.";
    text.family(Kind::Counter, "mlomae_stage_device_seconds_total", help, device);
}

fn queues(text: &mut Exposition, queues: &[QueueSample]) {
    let families: [Family<QueueSample, usize>; 3] = [
        ("mlomae_queue_length", "Items waiting in the queue before the stage.", &|queue| queue.len),
        ("mlomae_queue_capacity", "Items that the queue before the stage can hold.", &|queue| queue.capacity),
        ("mlomae_queue_bytes", "Payload bytes waiting in the queue before the stage.", &|queue| queue.bytes),
    ];
    for (name, help, value) in families {
        let samples = queues.iter().map(|queue| {
            let labels = vec![("stage", queue.edge.to.to_string()), ("queue", queue.edge.to_string())];
            (labels, value(queue) as f64)
        });
        text.family(Kind::Gauge, name, help, samples);
    }
}

fn run(text: &mut Exposition, figures: &Figures) {
    let progress = &figures.progress;
    let losses =
        [("pretrain", progress.pretrain_loss), ("finetune", progress.finetune_loss), ("mask", progress.mask_loss)];
    let losses = losses.into_iter().filter_map(|(level, loss)| Some((vec![("level", level.to_owned())], loss?)));
    text.family(Kind::Gauge, "mlomae_loss", "Newest loss of the level.", losses);
    use Kind::{Counter, Gauge};
    for (kind, name, help, value) in [
        (
            Counter,
            "mlomae_outer_iterations_total",
            "Outer iterations done, those before a resume included.",
            Some(progress.num_done as f64),
        ),
        (
            Gauge,
            "mlomae_outer_iterations_planned",
            "Outer iterations of the whole run.",
            Some(progress.num_outer_iterations as f64),
        ),
        (Counter, "mlomae_images_total", "Images of level 1 seen by this process.", Some(progress.num_images as f64)),
        (Gauge, "mlomae_images_per_second", "Newest rate of level 1 in images per second.", figures.images_per_second),
        (Gauge, "mlomae_epoch", "Epoch of the pretrain role.", Some(figures.epoch.into())),
        (
            Gauge,
            "mlomae_policy_lag",
            "Outer iterations by which the masks' policy was behind, as last measured.",
            figures.policy_lag,
        ),
        (
            Counter,
            "mlomae_checkpoints_total",
            "Checkpoints written by this process.",
            Some(figures.num_checkpoints as f64),
        ),
        (Counter, "mlomae_log_rows_total", "Log rows written by this process.", Some(figures.num_rows as f64)),
    ] {
        text.value(kind, name, help, value);
    }
}

#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn value(&mut self, kind: Kind, name: &str, help: &str, value: Option<f64>) {
        self.family(kind, name, help, value.map(|value| (Labels::new(), value)));
    }

    fn family(&mut self, kind: Kind, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        for (index, (labels, value)) in samples.into_iter().enumerate() {
            // Writing to a string cannot fail.
            if index == 0 {
                let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            }
            let labels: Vec<_> = labels.iter().map(|(key, text)| format!("{key}=\"{}\"", escaped(text))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.text, "{name}{labels} {}", number(value));
        }
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn number(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::flow::stage_name::StageName;

    fn progress() -> ProgressFigures {
        ProgressFigures {
            num_outer_iterations: 7,
            num_done: 3,
            num_images: 36,
            pretrain_loss: Some(0.25),
            finetune_loss: None,
            mask_loss: Some(f64::INFINITY),
        }
    }

    fn figures() -> Figures {
        let worker = |stage, instance| WorkerId { stage, instance };
        let counters =
            CountersSnapshot { items: 12, bytes: 4096, busy_ns: 1_500_000_000, restarts: 1, ..Default::default() };
        Figures {
            version: "1.2.3",
            workers: vec![(worker(StageName::Load, 0), counters), (worker(StageName::Load, 1), counters)],
            queues: vec![QueueSample {
                edge: EdgeId::between(StageName::Load, StageName::Score),
                len: 1,
                capacity: 4,
                bytes: 99,
            }],
            progress: progress(),
            images_per_second: None,
            epoch: 2,
            num_checkpoints: 1,
            num_rows: 5,
            policy_lag: Some(1.0),
            memory: Some((4096, 8192)),
        }
    }

    #[test]
    fn each_family_has_help_then_type_then_its_samples() {
        let text = render(&figures());
        let has = |lines: &str| assert!(text.contains(lines), "{lines}\nin {text}");
        has("# HELP mlomae_stage_items_total Items that the worker has finished.\n\
             # TYPE mlomae_stage_items_total counter\n\
             mlomae_stage_items_total{stage=\"load\",instance=\"0\"} 12\n\
             mlomae_stage_items_total{stage=\"load\",instance=\"1\"} 12\n\
             # HELP mlomae_stage_bytes_total ");
        has("\nmlomae_stage_busy_seconds_total{stage=\"load\",instance=\"1\"} 1.5\n");
        has("\nmlomae_queue_length{stage=\"score\",queue=\"load->score\"} 1\n");
        has("\nmlomae_loss{level=\"pretrain\"} 0.25\nmlomae_loss{level=\"mask\"} +Inf\n");
        has("# TYPE mlomae_outer_iterations_total counter\nmlomae_outer_iterations_total 3\n");
        has("# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes 4096\n");
        assert!(text.starts_with("# HELP mlomae_build_info ") && text.ends_with('\n'));
    }

    #[test]
    fn the_time_of_a_device_is_told_of_the_workers_that_have_one() {
        let mut figures = figures();
        assert!(!render(&figures).contains("device"));
        figures.workers[1].1.device_ns = Some(250_000_000);
        let text = render(&figures);
        assert!(text.contains("\nmlomae_stage_device_seconds_total{stage=\"load\",instance=\"1\"} 0.25\n"), "{text}");
        assert_eq!(text.matches("mlomae_stage_device_seconds_total{").count(), 1);
    }

    #[test]
    fn what_is_not_known_is_left_out_with_its_head() {
        let text = render(&figures());
        assert!(!text.contains("mlomae_images_per_second") && !text.contains("finetune"), "{text}");
        let unknown = Figures { workers: Vec::new(), queues: Vec::new(), memory: None, ..figures() };
        let text = render(&unknown);
        assert!(!text.contains("stage") && !text.contains("memory"), "{text}");
        assert!(text.contains("mlomae_policy_lag 1\n"));
    }

    #[test]
    fn labels_are_escaped_and_numbers_have_prometheus_names() {
        assert_eq!(escaped("a\\b\"c\nd"), r#"a\\b\"c\nd"#);
        let text = [1e-9, 0.1, 1e15, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(number);
        assert_eq!(text, ["0.000000001", "0.1", "1000000000000000", "NaN", "+Inf", "-Inf"]);
    }
}
