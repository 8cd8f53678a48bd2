//! The progress display of a run: a bar with losses and utilization on a terminal, plain lines
//! elsewhere.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mlomae_dataflow::flow::stage_name::StageName;

use crate::process::background::{Background, Ended};
use crate::process::terminal::Terminal;
use crate::roles::telemetry::{ActorSample, NewestSamples};

/// How often the terminal's display is renewed.
const REDRAW_EVERY: Duration = Duration::from_millis(250);
/// How often a plain line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Rates are taken over this time, so that they neither flicker nor lag.
const RATE_WINDOW: Duration = Duration::from_secs(20);

/// What a run has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProgressFigures {
    /// Outer iterations of the whole run.
    pub num_outer_iterations: u64,
    /// Outer iterations done, those before a resume included.
    pub num_done: u64,
    /// Images that level 1 has trained on in this process.
    pub num_images: u64,
    /// The newest loss of level 1 (pretrain).
    pub pretrain_loss: Option<f64>,
    /// The newest loss of level 2 (finetune).
    pub finetune_loss: Option<f64>,
    /// The newest loss of level 3 (mask).
    pub mask_loss: Option<f64>,
}

/// Displays what `figures` answers and the utilization of `samples` on `terminal`, until the answer is dropped.
///
/// # Errors
/// If no thread can be started.
pub fn display(
    terminal: Terminal,
    figures: impl Fn() -> ProgressFigures + Send + 'static,
    samples: NewestSamples,
) -> std::io::Result<Background> {
    Background::start("mlomae-progress", move |ended| {
        if terminal.is_interactive() {
            redraw(&terminal, &figures, &samples, ended);
        } else {
            write_lines(&figures, &samples, ended);
        }
    })
}

fn redraw(terminal: &Terminal, figures: &dyn Fn() -> ProgressFigures, samples: &NewestSamples, ended: &Ended) {
    let style = ProgressStyle::with_template("{prefix} {wide_bar:.cyan/dim} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    let text = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = terminal.bars().add(ProgressBar::new(0).with_style(style).with_prefix("pretraining"));
    let losses = terminal.bars().add(ProgressBar::new(0).with_style(text.clone()));
    let stages = terminal.bars().add(ProgressBar::new(0).with_style(text));
    let mut rates = Rates::default();
    loop {
        let figures = figures();
        let rate = rates.update(Instant::now(), &figures);
        bar.set_length(figures.num_outer_iterations);
        bar.set_position(figures.num_done);
        bar.set_message(counts(&figures, rate));
        losses.set_message(format!("loss  {}", losses_text(&figures)));
        stages.set_message(format!("busy  {}", utilization(&samples.get())));
        if ended.within(REDRAW_EVERY) {
            break;
        }
    }
    for line in [&bar, &losses, &stages] {
        line.finish_and_clear();
        terminal.bars().remove(line);
    }
}

fn write_lines(figures: &dyn Fn() -> ProgressFigures, samples: &NewestSamples, ended: &Ended) {
    let mut rates = Rates::default();
    let mut written = None;
    let mut line_at = Instant::now() + LINE_EVERY;
    loop {
        let wait = REDRAW_EVERY.min(line_at.saturating_duration_since(Instant::now()));
        let is_over = ended.within(wait);
        let figures = figures();
        let rate = rates.update(Instant::now(), &figures);
        if !is_over && Instant::now() < line_at {
            continue;
        }
        line_at = Instant::now() + LINE_EVERY;
        if written != Some(figures) {
            written = Some(figures);
            tracing::info!(
                target: "mlomae_progress",
                kind = "progress",
                outer_iteration = figures.num_done,
                num_outer_iterations = figures.num_outer_iterations,
                "{}",
                plain_line(&figures, rate, &samples.get())
            );
        }
        if is_over {
            return;
        }
    }
}

/// Figures of the last while, to take rates from.
#[derive(Debug, Default)]
struct Rates {
    points: VecDeque<(Instant, u64, u64)>,
}

/// Rates over the last while; none while nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Rate {
    outer_per_s: Option<f64>,
    images_per_s: Option<f64>,
}

impl Rates {
    fn update(&mut self, now: Instant, figures: &ProgressFigures) -> Rate {
        self.points.push_back((now, figures.num_done, figures.num_images));
        // The newest point that is older than the window stays: a slow run has a rate too.
        while self.points.len() > 2
            && self.points.get(1).is_some_and(|point| now.duration_since(point.0) > RATE_WINDOW)
            && self.points.get(1).map(|point| point.1) < Some(figures.num_done)
        {
            self.points.pop_front();
        }
        let Some(&(since, num_done, num_images)) = self.points.front() else {
            return Rate::default();
        };
        let seconds = now.duration_since(since).as_secs_f64();
        let rate = |count: u64| (seconds > 0.0 && count > 0).then(|| count as f64 / seconds);
        Rate {
            outer_per_s: rate(figures.num_done.saturating_sub(num_done)),
            images_per_s: rate(figures.num_images.saturating_sub(num_images)),
        }
    }
}

fn counts(figures: &ProgressFigures, rate: Rate) -> String {
    let mut text = format!("{}/{}", figures.num_done, figures.num_outer_iterations);
    if let Some(outer_per_s) = rate.outer_per_s {
        text += &format!("  {outer_per_s:.2} it/s");
    }
    if let Some(images_per_s) = rate.images_per_s {
        text += &format!("  {images_per_s:.0} images/s");
    }
    let num_left = figures.num_outer_iterations.saturating_sub(figures.num_done);
    if let Some(outer_per_s) = rate.outer_per_s
        && num_left > 0
    {
        text += &format!("  ETA {}", duration_text(num_left as f64 / outer_per_s));
    }
    text
}

fn losses_text(figures: &ProgressFigures) -> String {
    let loss = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    format!(
        "pretrain {}  finetune {}  mask {}",
        loss(figures.pretrain_loss),
        loss(figures.finetune_loss),
        loss(figures.mask_loss)
    )
}

/// The mean utilization of each stage's workers.
fn utilization(samples: &[ActorSample]) -> String {
    let stage = |stage: StageName| {
        let of_stage = || samples.iter().filter(|sample| sample.worker.stage == stage);
        let num_workers = of_stage().count();
        let sum: f64 = of_stage().map(|sample| sample.utilization).sum();
        (num_workers > 0).then(|| format!("{stage} {:.0}%", 100.0 * sum / num_workers as f64))
    };
    StageName::ALL.into_iter().filter_map(stage).collect::<Vec<_>>().join("  ")
}

fn plain_line(figures: &ProgressFigures, rate: Rate, samples: &[ActorSample]) -> String {
    let utilization = utilization(samples);
    let busy = if utilization.is_empty() { String::new() } else { format!("  busy {utilization}") };
    format!("{}  loss {}{busy}", counts(figures, rate), losses_text(figures))
}

/// `42s`, `3m 05s`, `2h 05m`.
pub(crate) fn duration_text(seconds: f64) -> String {
    let seconds = seconds.round().max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_window() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let figures = |num_done: u64| ProgressFigures {
            num_outer_iterations: 1000,
            num_done,
            num_images: num_done * 64,
            ..ProgressFigures::default()
        };
        let mut rates = Rates::default();
        assert_eq!(rates.update(at(0), &figures(100)), Rate::default());
        // 2/s for 60 s, then 1/s.
        for second in 1..=60 {
            rates.update(at(second), &figures(100 + 2 * second));
        }
        let mut rate = Rate::default();
        for second in 61..=120 {
            rate = rates.update(at(second), &figures(160 + second));
        }
        assert_eq!(rate, Rate { outer_per_s: Some(1.0), images_per_s: Some(64.0) });
        assert_eq!(counts(&figures(280), rate), "280/1000  1.00 it/s  64 images/s  ETA 12m 00s");
    }

    #[test]
    fn a_run_slower_than_the_window_has_a_rate() {
        let begin = Instant::now();
        let mut rates = Rates::default();
        let mut rate = Rate::default();
        for second in 0..400 {
            let figures =
                ProgressFigures { num_outer_iterations: 10, num_done: second / 100, ..ProgressFigures::default() };
            rate = rates.update(begin + Duration::from_secs(second), &figures);
        }
        let outer_per_s = rate.outer_per_s.expect("a rate");
        assert!((0.005..0.02).contains(&outer_per_s), "{outer_per_s}");
    }

    #[test]
    fn durations_read_well() {
        let texts = [0.4, 59.4, 61.0, 3599.0, 7500.0].map(duration_text);
        assert_eq!(texts, ["0s", "59s", "1m 01s", "59m 59s", "2h 05m"]);
    }

    #[test]
    fn a_missing_loss_is_a_dash() {
        let figures = ProgressFigures {
            num_outer_iterations: 4,
            num_done: 1,
            pretrain_loss: Some(0.51234),
            ..ProgressFigures::default()
        };
        assert_eq!(plain_line(&figures, Rate::default(), &[]), "1/4  loss pretrain 0.5123  finetune -  mask -");
    }
}
