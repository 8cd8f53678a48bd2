//! `mlomae bench`: an outer iteration by level, the pipeline by stage, and both beside a peer in the same run.

mod peer;
mod report;

use crate::measure::workload::{Lap, Workload, WorkloadSpec, strategy};
use mlomae_dataflow::config::{Config, ConfigInputs, MemoryCheck};
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::record::memory::process_memory;
use mlomae_kernels as kernels;
use mlomae_storage::dataset::FormatName;
use mlomae_storage::exit_code::ExitCode;

use crate::measure::measurement::{Limits, Measurement, measure};
use crate::process::error::CliError;
use crate::process::logging::EventQueue;
use crate::train::experiment::Experiment;
use crate::train::memory::Needs;

pub use peer::{Peer, PeerLap, PeerSpec};
pub use report::{BenchReport, Levels, PeerReport};

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchSpec {
    /// Networks, batch and threads.
    pub workload: WorkloadSpec,
    /// Measured outer iterations.
    pub num_rounds: usize,
    /// The peer to compare with.
    pub peer: Option<PeerSpec>,
    /// `pipeline.lag` with which to measure the whole pipeline too; none to leave it out.
    pub lag: Option<u32>,
    /// What is done where the networks need more memory than there is.
    pub memory_check: MemoryCheck,
}

/// Outer iterations before the measured ones: they fill the recycled memory.
const NUM_WARM_UP: usize = 2;
/// Seconds for which the arithmetic peak is measured each round.
const PEAK_SECONDS: f64 = 0.05;

/// Measures; `progress` gets the rounds done and their number. Ours and the peer's iterations take turns.
///
/// # Errors
/// If threads cannot be started, or the peer cannot run.
pub fn bench(
    spec: &BenchSpec,
    events: &EventQueue,
    mut progress: impl FnMut(usize, usize),
) -> Result<BenchReport, CliError> {
    let num_rounds = spec.num_rounds + NUM_WARM_UP;
    // The networks of the pipeline that is measured last are those of all that is measured before.
    let prepared = prepare(&spec.workload, spec.lag.unwrap_or(0))?;
    prepared.tell_engine();
    let (engine, arithmetic) = (prepared.method.engine.clone(), prepared.method.arithmetic());
    Needs::of_training(&prepared)?.check_or(spec.memory_check, "--memory-check warn")?;
    drop(prepared);
    let mut peer = spec.peer.as_ref().map(|peer| Peer::start(peer, &spec.workload, engine.device)).transpose()?;
    let mut workload = Workload::new(spec.workload)?;
    let (mut laps, mut peer_laps, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let mut allocated_after_warm_up = 0;
    for round in 0..num_rounds {
        progress(round, num_rounds);
        if round == NUM_WARM_UP {
            allocated_after_warm_up = workload.allocated_bytes();
        }
        // The machine's speed changes with its neighbours, so the peak is measured around each iteration.
        let peak = || match engine.device.is_host() {
            true => kernels::peak_gflops(spec.workload.precision.factors(), spec.workload.num_threads, PEAK_SECONDS)
                .map_err(|error| CliError::no_thread(&error)),
            false => Ok(f64::NAN),
        };
        let before = peak()?;
        laps.push(workload.step()?);
        peaks.push(f64::midpoint(before, peak()?));
        if let Some(peer) = &mut peer {
            peer_laps.push(peer.step()?);
        }
    }
    let allocated_bytes = workload.allocated_bytes() - allocated_after_warm_up;
    let micro_batch = workload.micro_batch();
    // Before the pipeline, whose networks come on top of the workload's.
    let peak_bytes = process_memory().map_or(0, |(_, peak)| peak);
    let device_peak_bytes = workload.device_peak_bytes();
    drop(workload);
    laps.drain(..NUM_WARM_UP);
    peaks.drain(..NUM_WARM_UP);
    let peer = match peer {
        Some(peer) => {
            peer_laps.drain(..NUM_WARM_UP);
            // The peer tells its peak in the memory that the networks are in.
            Some(PeerReport::new(peer.finish()?, &peer_laps, &laps, device_peak_bytes.unwrap_or(peak_bytes)))
        }
        None => None,
    };
    let pipeline = spec.lag.map(|lag| pipeline(&spec.workload, lag, events).map(|found| (lag, found))).transpose()?;
    Ok(BenchReport::new(
        &spec.workload,
        &engine,
        arithmetic,
        micro_batch,
        &laps,
        &peaks,
        peak_bytes,
        device_peak_bytes,
        allocated_bytes,
        peer,
        pipeline,
    ))
}

/// The same networks in the whole pipeline, fed with generated images.
fn pipeline(workload: &WorkloadSpec, lag: u32, events: &EventQueue) -> Result<Measurement, CliError> {
    let limits = Limits { num_warm_up: 2, min_outer: 5, min_seconds: 2.0 };
    measure(&prepare(workload, lag)?, limits, events)
}

fn prepare(workload: &WorkloadSpec, lag: u32) -> Result<Experiment, CliError> {
    let WorkloadSpec { preset, batch, num_threads, micro_batch, baseline, engine, precision, hypergradient } =
        *workload;
    let mut config = Config::resolve(&ConfigInputs::default().preset(preset))?;
    config.data.format = FormatName::parse("synthetic")?;
    config.data.synthetic.num_classes = 10;
    config.data.synthetic.num_train = 20 * batch;
    config.data.synthetic.num_test = 10;
    config.train.grain = workload.grain();
    config.train.outer_iterations = 1_000_000;
    config.checkpoint.every_steps = 1_000_000_000;
    config.mask.strategy = strategy(baseline);
    config.engine = engine;
    config.pipeline.lag = lag;
    config.compute.precision = precision;
    config.method.hypergradient = hypergradient;
    for of_level in [&mut config.pretrain.batch, &mut config.finetune.batch, &mut config.policy.batch] {
        *of_level = batch;
    }
    for stage in [StageName::Encoder, StageName::Evaluator, StageName::Policy] {
        let stage = config.actors.stage_mut(stage);
        (stage.workers, stage.micro_batch) = (num_threads, micro_batch);
    }
    Experiment::new(config.checked()?, None)
}

/// The middle of `values`, the mean of the two in the middle of an even number.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len => f64::midpoint(values[(len - 1) / 2], values[len / 2]),
    }
}

/// The medians of `laps` by level.
fn medians(laps: &[Lap]) -> Lap {
    let of = |part: fn(&Lap) -> f64| median(laps.iter().map(part));
    Lap {
        score_ms: of(|lap| lap.score_ms),
        pretrain_ms: of(|lap| lap.pretrain_ms),
        evaluate_ms: of(|lap| lap.evaluate_ms),
        policy_ms: of(|lap| lap.policy_ms),
        gflop: of(|lap| lap.gflop),
        device_ms: laps.iter().map(|lap| lap.device_ms).collect::<Option<Vec<_>>>().map(|all| median(all.into_iter())),
    }
}

fn peer_error(line: String) -> CliError {
    CliError::new(ExitCode::NoInput, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }
}
