//! What a benchmark found, as a table and as JSON.

use std::fmt;

use crate::measure::workload::{Lap, WorkloadSpec};
use mlomae_kernels as kernels;
use mlomae_model::lane::Chosen;
use serde::Serialize;

use super::peer::{Goodbye, PeerLap};
use super::{median, medians};
use crate::measure::measurement::Measurement;

/// Milliseconds of an outer iteration by level: medians over the rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Levels {
    /// Scoring both level-1 batches.
    pub score_ms: f64,
    /// Both level-1 steps.
    pub pretrain_ms: f64,
    /// Level 2's step, v1 and w.
    pub evaluate_ms: f64,
    /// The hypergradient and the policy's step.
    pub policy_ms: f64,
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Preset.
    pub preset: String,
    /// Images of each level's batch.
    pub batch: usize,
    /// Compute threads.
    pub num_threads: usize,
    /// Images of a micro-batch.
    pub micro_batch: usize,
    /// Random masks instead of learned ones.
    pub baseline: bool,
    /// Engine that computes.
    pub engine: String,
    /// Its device; empty where the processor computes.
    pub device: String,
    /// Instruction set of the processor's kernels.
    pub isa: String,
    /// What products are computed in.
    pub arithmetic: String,
    /// Measured outer iterations.
    pub num_rounds: usize,
    /// Median milliseconds of an outer iteration, tensors in memory, without a pipeline.
    pub ms_outer: f64,
    /// The fastest and the slowest.
    pub ms_outer_range: [f64; 2],
    /// By level.
    pub levels: Levels,
    /// Level-1 images a second.
    pub images_per_s: f64,
    /// Arithmetic of the products in one outer iteration, 10⁹ operations, those of attention included. What a device
    /// computes again to save memory is not counted.
    pub gflop_outer: f64,
    /// 10⁹ operations a second.
    pub gflops: f64,
    /// The processor's peak, measured around each iteration: the median. Null where another device computes.
    pub peak_gflops: f64,
    /// Arithmetic of an iteration as a share of the peak around it, in percent: the median. Null as that.
    pub peak_percent: f64,
    /// Share of an outer iteration in which the device was at work, by its own clock: from the first work of each call
    /// to the end of its last, pauses in between included. The median; null on the processor.
    pub device_busy: Option<f64>,
    /// Largest resident memory of this process.
    pub peak_bytes: u64,
    /// The most that was taken of the device's own memory, for tensors and workspaces. Null on the processor.
    pub device_peak_bytes: Option<u64>,
    /// Bytes taken from the system for tensors after the first iterations.
    pub allocated_bytes_after_warm_up: u64,
    /// The peer.
    pub peer: Option<PeerReport>,
    /// The whole pipeline.
    pub pipeline: Option<PipelineReport>,
}

/// The peer beside ours.
#[derive(Debug, Clone, Serialize)]
pub struct PeerReport {
    /// What it is.
    pub about: String,
    /// Median milliseconds of an outer iteration.
    pub ms_outer: f64,
    /// The fastest and the slowest.
    pub ms_outer_range: [f64; 2],
    /// How many times as fast ours is: the median of the ratios of neighbouring iterations.
    pub ratio: f64,
    /// The most memory that its tensors had on the device; on the processor the largest resident memory of its process.
    pub peak_bytes: u64,
    /// Our peak in the same memory as a share of its.
    pub memory_ratio: f64,
}

impl PeerReport {
    pub(super) fn new(goodbye: Goodbye, theirs: &[PeerLap], ours: &[Lap], our_peak_bytes: u64) -> Self {
        Self {
            about: goodbye.about,
            ms_outer: median(theirs.iter().map(|lap| lap.ms)),
            ms_outer_range: range(theirs.iter().map(|lap| lap.ms)),
            ratio: median(theirs.iter().zip(ours).map(|(theirs, ours)| theirs.ms / ours.total_ms())),
            peak_bytes: goodbye.peak_bytes,
            memory_ratio: our_peak_bytes as f64 / goodbye.peak_bytes as f64,
        }
    }
}

/// The pipeline's throughput, with what its stages did.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineReport {
    /// By how many outer iterations the levels may overlap.
    pub lag: u32,
    /// Milliseconds of an outer iteration.
    pub ms_outer: f64,
    /// Level-1 images a second.
    pub images_per_s: f64,
    /// The measured stretch.
    #[serde(flatten)]
    pub measurement: Measurement,
}

/// The median share of an iteration in which the device was at work.
fn busy(laps: &[Lap]) -> Option<f64> {
    let shares: Option<Vec<f64>> = laps.iter().map(|lap| Some(lap.device_ms? / lap.total_ms())).collect();
    shares.map(|shares| median(shares.into_iter()))
}

fn range(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values.fold([f64::INFINITY, 0.0], |[least, most], value| [least.min(value), most.max(value)])
}

impl BenchReport {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        spec: &WorkloadSpec,
        engine: &Chosen,
        arithmetic: String,
        micro_batch: usize,
        laps: &[Lap],
        peaks: &[f64],
        peak_bytes: u64,
        device_peak_bytes: Option<u64>,
        allocated_bytes_after_warm_up: u64,
        peer: Option<PeerReport>,
        pipeline: Option<(u32, Measurement)>,
    ) -> Self {
        let lap = medians(laps);
        let ms_outer = median(laps.iter().map(Lap::total_ms));
        let gflops = lap.gflop / ms_outer * 1e3;
        let num_images = 2 * spec.batch;
        Self {
            preset: spec.preset.as_str().to_owned(),
            batch: spec.batch,
            num_threads: spec.num_threads,
            micro_batch,
            baseline: spec.baseline,
            engine: engine.device.name().to_owned(),
            device: engine.description.clone(),
            isa: kernels::isa().name().to_owned(),
            arithmetic,
            num_rounds: laps.len(),
            ms_outer,
            ms_outer_range: range(laps.iter().map(Lap::total_ms)),
            levels: Levels {
                score_ms: lap.score_ms,
                pretrain_ms: lap.pretrain_ms,
                evaluate_ms: lap.evaluate_ms,
                policy_ms: lap.policy_ms,
            },
            images_per_s: num_images as f64 / ms_outer * 1e3,
            gflop_outer: lap.gflop,
            gflops,
            peak_gflops: median(peaks.iter().copied()),
            peak_percent: median(
                laps.iter().zip(peaks).map(|(lap, peak)| 100.0 * lap.gflop / lap.total_ms() * 1e3 / peak),
            ),
            device_busy: busy(laps),
            peak_bytes,
            device_peak_bytes,
            allocated_bytes_after_warm_up,
            peer,
            pipeline: pipeline.map(|(lag, measurement)| PipelineReport {
                lag,
                ms_outer: measurement.ms_outer(),
                images_per_s: measurement.images_per_second(),
                measurement,
            }),
        }
    }
}

impl BenchReport {
    /// Whether the processor computed, whose peak is measured.
    const fn is_host(&self) -> bool {
        self.peak_gflops.is_finite()
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masks = if self.baseline { "random masks" } else { "learned masks" };
        write!(f, "{}, batch {}, {masks}, ", self.preset, self.batch)?;
        match self.is_host() {
            true => {
                write!(f, "{} on {}, {} threads, ", self.arithmetic, self.isa, self.num_threads)?;
                write!(f, "micro-batches of {}", self.micro_batch)?;
            }
            false => write!(f, "{} on {} ({})", self.arithmetic, self.engine, self.device)?,
        }
        writeln!(f, ", {} rounds", self.num_rounds)?;
        writeln!(f)?;
        let share = |ms: f64| 100.0 * ms / self.ms_outer;
        let Levels { score_ms, pretrain_ms, evaluate_ms, policy_ms } = self.levels;
        for (name, ms) in [
            ("score (2 batches)", score_ms),
            ("pretrain (2 steps)", pretrain_ms),
            ("evaluate", evaluate_ms),
            ("policy", policy_ms),
        ] {
            writeln!(f, "{name:<20} {ms:>10.1} ms {:>5.1} %", share(ms))?;
        }
        let [least, most] = self.ms_outer_range;
        writeln!(f, "{:<20} {:>10.1} ms   {least:.1} to {most:.1}", "outer iteration", self.ms_outer)?;
        writeln!(f, "{:<20} {:>10.1} /s", "images", self.images_per_s)?;
        write!(f, "{:<20} {:>10.1} GFLOP/s", "arithmetic", self.gflops)?;
        if self.is_host() {
            write!(f, ", {:.1} % of the measured peak of {:.1}", self.peak_percent, self.peak_gflops)?;
        }
        writeln!(f, "; {:.2} GFLOP in all", self.gflop_outer)?;
        if let Some(busy) = self.device_busy {
            writeln!(f, "{:<20} {:>10.1} % of the time at work", "device", 100.0 * busy)?;
        }
        if let Some(bytes) = self.device_peak_bytes {
            writeln!(f, "{:<20} {:>10.1} MiB at most", "device memory", mib(bytes))?;
        }
        writeln!(
            f,
            "{:<20} {:>10.1} MiB at most; {} bytes allocated for tensors after the first iterations",
            "memory",
            mib(self.peak_bytes),
            self.allocated_bytes_after_warm_up
        )?;
        if let Some(peer) = &self.peer {
            let [least, most] = peer.ms_outer_range;
            writeln!(f)?;
            writeln!(f, "{:<20} {:>10.1} ms   {least:.1} to {most:.1}   {}", "peer", peer.ms_outer, peer.about)?;
            writeln!(f, "{:<20} {:>10.1} MiB", "its memory", mib(peer.peak_bytes))?;
            writeln!(f, "{:<20} {:>10.2} times as fast, {:.2} of the memory", "ours", peer.ratio, peer.memory_ratio)?;
        }
        if let Some(pipeline) = &self.pipeline {
            writeln!(f)?;
            writeln!(
                f,
                "{:<20} {:>10.1} ms   {:.1} images/s over {} outer iterations at lag {}",
                "whole pipeline",
                pipeline.ms_outer,
                pipeline.images_per_s,
                pipeline.measurement.num_outer,
                pipeline.lag
            )?;
            writeln!(f, "{}", StageTable(&pipeline.measurement))?;
        }
        Ok(())
    }
}

/// The stages of a measurement as a table.
#[derive(Debug)]
pub struct StageTable<'a>(pub &'a Measurement);

impl fmt::Display for StageTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:<12} {:>7} {:>13} {:>7} {:>8} {:>9}",
            "stage", "workers", "ms an outer", "busy", "wait in", "wait out"
        )?;
        for stage in &self.0.stages {
            write!(
                f,
                "\n  {:<12} {:>7} {:>13.2} {:>6.1}% {:>7.1}% {:>8.1}%",
                stage.stage.as_str(),
                stage.num_workers,
                stage.busy_ms,
                100.0 * stage.utilization,
                100.0 * stage.wait_in,
                100.0 * stage.wait_out
            )?;
        }
        Ok(())
    }
}
