//! A frame as lines of text.

use super::Frame;
use crate::watch::progress::duration_text;

/// Cells of a utilization bar.
const BAR_WIDTH: usize = 10;
const EIGHTHS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
/// Heights of a sparkline.
pub const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The frame as text without a newline at its end.
#[must_use]
pub fn render(frame: &Frame) -> String {
    let rate =
        |rate: Option<f64>, digits: usize| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.digits$}"));
    let mut text = format!("{}  {}  {} of running time\n", frame.run, frame.status, duration_text(frame.wall_s));
    let percent = 100.0 * frame.outer as f64 / frame.num_outer.max(1) as f64;
    text += &format!("outer {}/{} ({percent:.1} %)  {}/s", frame.outer, frame.num_outer, rate(frame.outer_per_s, 2));
    text += &format!("  {} images/s", rate(frame.images_per_s, 0));
    if let Some(eta_s) = frame.eta_s {
        text += &format!("  ETA {}", duration_text(eta_s));
    }
    text += "\n\n";
    for loss in &frame.losses {
        let newest = loss.newest.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
        text += &format!("loss {:<9} {newest:>9}  {}\n", loss.level, sparkline(&loss.history));
    }
    text += &format!(
        "\n{:<12} {:>8} {:>9} {:>7}  {:<17} {:>7} {:>8} {:>8} {:>4}",
        "stage", "items", "items/s", "queue", "busy", "wait in", "wait out", "restarts", "lag"
    );
    let has_device = frame.stages.iter().any(|stage| stage.device.is_some());
    if has_device {
        text += &format!(" {:>7}", "device");
    }
    for stage in &frame.stages {
        text += &format!(
            "\n{:<12} {:>8} {:>9.2} {:>7}  {} {:>4.0} % {:>5.0} % {:>6.0} % {:>8} {:>4}",
            format!("{} {}", stage.stage, stage.instance),
            stage.items,
            stage.items_per_s,
            format!("{}/{}", stage.queue_len, stage.queue_cap),
            bar(stage.utilization),
            100.0 * stage.utilization,
            100.0 * stage.wait_in,
            100.0 * stage.wait_out,
            stage.restarts,
            stage.lag
        );
        if has_device {
            let share = stage.device.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
            text += &format!(" {share:>7}");
        }
    }
    if frame.stages.is_empty() {
        text += "\nno samples of the stages yet";
    }
    text += &format!("\nrates and shares over the last {:.1} s", frame.window_s);
    if frame.num_warnings > 0 {
        text += &format!("\n\n{} warnings and errors, the last:", frame.num_warnings);
    }
    for warning in &frame.warnings {
        // A message may quote anything; a line stays a line.
        let message: String = warning.message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        text += &format!("\n{:>9}  {:<5} {}: {message}", duration_text(warning.wall_s), warning.severity, warning.kind);
    }
    text
}

fn bar(share: f64) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (8 * BAR_WIDTH) as f64).round() as usize;
    (0..BAR_WIDTH).map(|cell| EIGHTHS[eighths.saturating_sub(8 * cell).min(8)]).collect()
}

/// The values between their lowest and highest; a gap where there is no number.
#[must_use]
pub fn sparkline(values: &[f64]) -> String {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let (lowest, highest) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let height = |value: f64| {
        if !value.is_finite() {
            return ' ';
        }
        let share = if highest > lowest { (value - lowest) / (highest - lowest) } else { 0.0 };
        HEIGHTS[((share * 8.0) as usize).min(7)]
    };
    values.iter().map(|value| height(*value)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{LossLine, StageLine, WarningLine};
    use super::*;

    fn frame() -> Frame {
        let stage = |stage: &str, utilization| StageLine {
            stage: stage.into(),
            instance: 0,
            items: 40,
            items_per_s: 1.25,
            queue_len: 1,
            queue_cap: 2,
            utilization,
            wait_in: 0.25,
            wait_out: 0.0,
            device: None,
            restarts: 0,
            lag: 1,
        };
        Frame {
            run: "quick".into(),
            status: "running".into(),
            is_running: true,
            wall_s: 32.0,
            outer: 20,
            num_outer: 80,
            outer_per_s: Some(0.5),
            eta_s: Some(120.0),
            images_per_s: Some(80.0),
            window_s: 10.0,
            losses: vec![LossLine {
                level: "pretrain".into(),
                newest: Some(0.25),
                history: vec![1.0, 0.5, f64::NAN, 0.0],
            }],
            stages: vec![stage("load", 0.0), stage("encoder", 0.75)],
            num_warnings: 7,
            warnings: vec![WarningLine {
                wall_s: 3.0,
                severity: "warn".into(),
                kind: "stage_hangs".into(),
                message: "two\nlines".into(),
            }],
        }
    }

    #[test]
    fn a_frame_shows_all_that_it_holds() {
        let text = render(&frame());
        for part in [
            "quick  running  ",
            "outer 20/80 (25.0 %)  0.50/s  80 images/s  ETA ",
            "loss pretrain     0.2500  █▅ ▁\n",
            "\nencoder 0          40      1.25     1/2  ███████▌     75 %    25 %      0 %        0    1",
            "7 warnings and errors",
            "stage_hangs: two lines",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let widths: Vec<_> =
            text.lines().filter(|l| l.ends_with(" lag") || l.ends_with("   1")).map(|l| l.chars().count()).collect();
        assert_eq!(widths.len(), 3);
        assert!(widths.iter().all(|width| *width == widths[0] && *width <= 100), "{widths:?}:\n{text}");
    }

    #[test]
    fn a_device_has_a_column_where_there_is_one() {
        let mut frame = frame();
        assert!(!render(&frame).contains("device"));
        frame.stages[1].device = Some(0.625);
        let text = render(&frame);
        let ends = |end: &str| text.lines().any(|line| line.ends_with(end));
        assert!(ends(" lag  device") && ends("    1       -") && ends("    1    62 %"), "{text}");
    }

    #[test]
    fn what_is_not_known_yet_is_said() {
        let text = render(&Frame { stages: vec![], outer_per_s: None, eta_s: None, images_per_s: None, ..frame() });
        assert!(text.contains("-/s  - images/s\n") && text.contains("no samples"), "{text}");
    }

    #[test]
    fn bars_and_sparklines_reach_from_end_to_end() {
        assert_eq!([bar(0.0), bar(1.0), bar(7.0)], ["          ", "██████████", "██████████"]);
        assert_eq!(sparkline(&[0.0, 7.0, 3.5]), "▁█▅");
        assert_eq!(sparkline(&[2.0, 2.0]), "▁▁");
        assert_eq!(sparkline(&[]), "");
    }
}
