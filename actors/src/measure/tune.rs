//! `mlomae tune`: which workers, micro-batches and queues make a configuration fastest on this machine.
//!
//! One setting after the other is varied (coordinate descent). Machines are shared and noisy, so a value wins only if
//! it beats the best one so far twice, before and after it, by more than 3 %, in units of the arithmetic peak that is
//! measured around each run. If the choice as a whole does not beat the configured one at the end, that one stays.
//! Nothing that is varied changes a result of training.

use std::time::{Duration, Instant};

use mlomae_dataflow::config::{ActorsConfig, Config};
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_kernels as kernels;
use mlomae_model::parallel::compute::whole_branch;

use crate::measure::measurement::{Limits, Measurement, measure};
use crate::process::error::CliError;
use crate::process::logging::EventQueue;
use crate::train::experiment::Experiment;

/// A smaller gain is taken for noise.
const LEAST_GAIN: f64 = 0.03;
/// Seconds for which the machine's speed is measured before and after each run.
const PEAK_SECONDS: f64 = 0.03;
/// Turns of the best choice and the configured one at the end.
const NUM_LAST_TURNS: usize = 2;
/// Queue capacities that are tried.
const CAPACITIES: [usize; 5] = [0, 1, 2, 4, 8];

/// A number of one stage that results do not depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `workers`.
    Workers,
    /// `micro_batch`.
    MicroBatch,
    /// `queue_cap`.
    QueueCap,
}

impl Setting {
    const fn key(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::MicroBatch => "micro_batch",
            Self::QueueCap => "queue_cap",
        }
    }

    fn of(self, actors: &mut ActorsConfig, stage: StageName) -> &mut usize {
        let stage = actors.stage_mut(stage);
        match self {
            Self::Workers => &mut stage.workers,
            Self::MicroBatch => &mut stage.micro_batch,
            Self::QueueCap => &mut stage.queue_cap,
        }
    }
}

/// Values for one setting of one or several stages together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knob {
    /// The stages.
    pub stages: Vec<StageName>,
    /// The setting.
    pub setting: Setting,
    /// What is tried besides the present value.
    pub values: Vec<usize>,
}

impl Knob {
    /// The value that holds in `config`, with 0 resolved to what it stands for.
    fn present(&self, config: &Config, actors: &ActorsConfig) -> usize {
        let stage = actors.stage(self.stages[0]);
        let batch = match self.stages[0] {
            StageName::Evaluator => config.finetune.batch.min(config.policy.batch),
            _ => config.pretrain.batch,
        };
        match self.setting {
            Setting::Workers => stage.num_workers(),
            Setting::QueueCap => stage.queue_cap,
            Setting::MicroBatch => {
                let num_images = actors.micro_batch(self.stages[0], batch, stage.num_workers());
                whole_branch(config.train.grain, num_images)
            }
        }
    }

    fn set(&self, actors: &ActorsConfig, value: usize) -> ActorsConfig {
        let mut changed = actors.clone();
        for stage in &self.stages {
            *self.setting.of(&mut changed, *stage) = value;
        }
        changed
    }

    /// As in `encoder, evaluator workers`.
    fn name(&self) -> String {
        let stages: Vec<_> = self.stages.iter().map(|stage| stage.as_str()).collect();
        format!("{} {}", stages.join(", "), self.setting.key())
    }

    fn describe(&self, value: usize) -> String {
        format!("{} = {value}", self.name())
    }
}

/// Everything that is varied for `config` on a machine of `num_cores` cores, what matters most first. Where levels do
/// not compute on the host (`is_host`), they have neither threads nor micro-batches there to vary.
#[must_use]
pub fn knobs(config: &Config, num_cores: usize, is_host: bool) -> Vec<Knob> {
    use StageName::{Encoder, Evaluator, Load, Log, Policy, Score};
    let powers = |most: usize| (0..).map(|power| 1usize << power).take_while(move |&value| value <= most);
    let workers: Vec<usize> = powers(num_cores).chain([num_cores]).collect();
    let knob = |stages: &[StageName], setting, values: Vec<usize>| {
        let mut values = values;
        values.sort_unstable();
        values.dedup();
        Knob { stages: stages.to_vec(), setting, values }
    };
    let grain = config.train.grain;
    let cuts = |batch: usize| powers(batch / grain).map(|num_grains| num_grains * grain).collect::<Vec<_>>();
    let mut knobs = Vec::new();
    if is_host {
        if config.pipeline.lag == 0 {
            // The levels take turns and share their threads.
            knobs.push(knob(&[Encoder, Evaluator, Policy], Setting::Workers, workers.clone()));
        } else {
            knobs.extend([Encoder, Evaluator, Policy].map(|stage| knob(&[stage], Setting::Workers, workers.clone())));
        }
        let labelled = config.finetune.batch.min(config.policy.batch);
        knobs.push(knob(&[Evaluator], Setting::MicroBatch, cuts(labelled)));
        for stage in [Encoder, Policy] {
            knobs.push(knob(&[stage], Setting::MicroBatch, cuts(config.pretrain.batch)));
        }
    }
    knobs.push(knob(&[Load], Setting::Workers, powers(num_cores.min(8)).collect()));
    knobs.push(knob(&[Score], Setting::Workers, powers(num_cores.min(4)).collect()));
    if is_host {
        knobs.push(knob(&[Score], Setting::MicroBatch, cuts(config.pretrain.batch)));
    }
    for stage in [Score, Encoder, Load, Evaluator, Policy, Log] {
        knobs.push(knob(&[stage], Setting::QueueCap, CAPACITIES.to_vec()));
    }
    knobs
}

/// One measured choice.
#[derive(Debug, Clone)]
pub struct Trial {
    /// What was changed.
    pub what: String,
    /// What it gave.
    pub measurement: Measurement,
    /// Throughput over that of the best choice before, measured beside it; the smaller of two where it looked better.
    pub gain: f64,
    /// Whether it became the best choice.
    pub taken: bool,
}

/// What a sweep found.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// As configured.
    pub start: Measurement,
    /// What was tried, in order.
    pub trials: Vec<Trial>,
    /// The best choice.
    pub actors: ActorsConfig,
    /// The best choice and the configured one, measured in turns at the end.
    pub end: (Measurement, Measurement),
    /// Throughput of the best choice over that of the configured one, from these turns.
    pub gain: f64,
    /// Whether the choice beats the configured one; if not, `actors` are as configured.
    pub is_better: bool,
    /// What the time did not suffice for.
    pub left_out: Vec<String>,
}

/// A measurement in units of the machine's speed around it.
struct Turn {
    measurement: Measurement,
    /// Outer iterations for 10⁹ operations that the machine could do.
    speed: f64,
}

/// How the sweep goes on, for a display.
#[derive(Debug, Clone)]
pub struct SweepProgress {
    /// What is being measured.
    pub what: String,
    /// Time spent.
    pub spent: Duration,
}

/// Sweeps all knobs for about `budget`.
///
/// # Errors
/// If a run cannot be made or fails.
pub fn tune(
    mut experiment: Experiment,
    budget: Duration,
    events: &EventQueue,
    mut progress: impl FnMut(&SweepProgress),
) -> Result<Tuning, CliError> {
    let begin = Instant::now();
    let num_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let config = experiment.config.clone();
    let is_host = experiment.method.engine.device.is_host();
    let knobs = knobs(&config, num_cores, is_host);
    let configured = experiment.config.actors.clone();
    let num_runs: usize = knobs.iter().map(|knob| knob.values.len() + 1).sum();
    // Half as many again for winners, which are measured once more, and the last turns.
    let slice = budget.as_secs_f64() / (1.5 * num_runs as f64);
    let limits = Limits { num_warm_up: 1, min_outer: 3, min_seconds: (0.6 * slice).clamp(0.05, 30.0) };
    let mut at = |actors: &ActorsConfig, what: &str| {
        progress(&SweepProgress { what: what.to_owned(), spent: begin.elapsed() });
        experiment.config.actors = actors.clone();
        // The processor's speed says nothing of another device's.
        let peak = || match is_host {
            true => kernels::peak_gflops(kernels::Factors::F32, num_cores, PEAK_SECONDS)
                .map_err(|error| CliError::no_thread(&error)),
            false => Ok(1.0),
        };
        let before = peak()?;
        let measurement = measure(&experiment, limits, events)?;
        let speed = measurement.outer_per_second() / f64::midpoint(before, peak()?);
        Ok::<_, CliError>(Turn { measurement, speed })
    };
    let start = at(&configured, "as configured")?.measurement;
    // The time of one run, set-up included.
    let one_run = begin.elapsed();
    let (mut best, mut trials, mut left_out) = (configured.clone(), Vec::new(), Vec::new());
    for knob in knobs {
        let present = knob.present(&config, &best);
        let values: Vec<usize> = knob.values.iter().copied().filter(|&value| value != present).collect();
        // Its runs, a second look at the winner, and the last turns.
        if values.is_empty() || begin.elapsed() + one_run * (values.len() + 3 + 2 * NUM_LAST_TURNS) as u32 > budget {
            left_out.extend((!values.is_empty()).then(|| knob.name()));
            continue;
        }
        let reference = at(&best, "the best so far")?.speed;
        let first = trials.len();
        for &value in &values {
            let what = knob.describe(value);
            let Turn { measurement, speed } = at(&knob.set(&best, value), &what)?;
            let gain = speed / reference;
            trials.push(Trial { what, measurement, gain, taken: false });
        }
        let Some(winner) = (first..trials.len()).max_by(|&a, &b| trials[a].gain.total_cmp(&trials[b].gain)) else {
            continue;
        };
        let trial = &mut trials[winner];
        if trial.gain > 1.0 + LEAST_GAIN {
            // Once more, the other way round.
            let changed = knob.set(&best, values[winner - first]);
            let (again, reference) = (at(&changed, &trial.what)?, at(&best, "the best so far")?);
            trial.gain = trial.gain.min(again.speed / reference.speed);
            trial.taken = trial.gain > 1.0 + LEAST_GAIN;
            if trial.taken {
                best = changed;
            }
        }
    }
    let mut end = (at(&best, "the best")?, at(&configured, "as configured")?);
    let mut gain = end.0.speed / end.1.speed;
    for _ in 1..NUM_LAST_TURNS {
        end = (at(&best, "the best")?, at(&configured, "as configured")?);
        gain = gain.min(end.0.speed / end.1.speed);
    }
    let is_better = gain > 1.0;
    let actors = if is_better { best } else { configured };
    Ok(Tuning { start, trials, actors, end: (end.0.measurement, end.1.measurement), gain, is_better, left_out })
}

/// The choice as an overlay for `train --config-overlay`: TOML tables of the stages under `header`, comment lines.
#[must_use]
pub fn overlay(actors: &ActorsConfig, header: &[String]) -> String {
    let mut text: String = header.iter().map(|line| format!("# {line}\n")).collect();
    for name in StageName::ALL {
        let stage = actors.stage(name);
        text += &format!("\n[actors.{name}]\nworkers = {}\nqueue_cap = {}\n", stage.workers, stage.queue_cap);
        if stage.micro_batch > 0 {
            text += &format!("micro_batch = {}\n", stage.micro_batch);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::config::ConfigInputs;

    #[test]
    fn every_choice_is_a_valid_configuration() {
        for lag in 0..2 {
            let inputs = ConfigInputs::quickstart().set(&format!("pipeline.lag={lag}"));
            let config = Config::resolve(&inputs).unwrap();
            let knobs = knobs(&config, 6, true);
            for stage in StageName::ALL {
                for setting in [Setting::Workers, Setting::QueueCap] {
                    let varied = knobs.iter().any(|knob| knob.setting == setting && knob.stages.contains(&stage));
                    assert_eq!(varied, (setting, stage) != (Setting::Workers, StageName::Log), "{stage} {setting:?}");
                }
            }
            for knob in &knobs {
                for &value in &knob.values {
                    let actors = knob.set(&config.actors, value);
                    let text = overlay(&actors, &["a test".to_owned()]);
                    let tuned = Config::resolve(&inputs.clone().layer("overlay", &text)).unwrap();
                    assert_eq!(tuned.actors, actors, "{}", knob.describe(value));
                    let plain = Config { actors: config.actors.clone(), ..tuned };
                    assert_eq!(plain, config, "nothing but actors changes");
                }
            }
        }
    }

    #[test]
    fn where_the_host_does_not_compute_only_its_own_workers_and_queues_vary() {
        let config = Config::resolve(&ConfigInputs::quickstart()).unwrap();
        for knob in knobs(&config, 6, false) {
            let is_own = matches!(knob.stages[..], [StageName::Load | StageName::Score]);
            assert!(knob.setting == Setting::QueueCap || (knob.setting == Setting::Workers && is_own), "{knob:?}");
        }
    }

    #[test]
    fn the_present_value_is_what_automatic_stands_for() {
        let inputs = ConfigInputs::quickstart().set("actors.encoder.workers=3").set("train.grain=4");
        let config = Config::resolve(&inputs).unwrap();
        let present =
            |setting, stage| Knob { stages: vec![stage], setting, values: Vec::new() }.present(&config, &config.actors);
        assert_eq!(present(Setting::Workers, StageName::Encoder), 3);
        assert_eq!(present(Setting::MicroBatch, StageName::Encoder), 16);
        assert_eq!(present(Setting::MicroBatch, StageName::Evaluator), 16);
        assert_eq!(present(Setting::QueueCap, StageName::Encoder), 2);
        assert!(present(Setting::Workers, StageName::Policy) > 0, "as many as there are cores");
    }
}
