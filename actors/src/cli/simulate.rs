//! `mlomae simulate`: how fast a run would be on other cores and with another lag.

use std::path::PathBuf;

use mlomae_dataflow::config::Config;
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::run::edges::{EDGES, capacity};
use mlomae_storage::exit_code::ExitCode;

use super::run_path::find_run;
use super::session::Session;
use crate::measure::simulation::{STAGES, Scenario, Simulated, Work, simulate};
use crate::process::error::CliError;
use crate::watch::top::history::{History, Totals};

/// Outer iterations of a simulation.
const NUM_OUTER: u64 = 120;

/// Predict a run's speed on other numbers of cores and with other lags, from its logs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Model: an item's work is cut into pieces of train.grain images, which run on the cores that are free; loading is
not cut. No limit of memory bandwidth, no shared caches, no logging, no serial parts: what it prints is an upper
bound in these respects.

The logs hold the wall time of a stage on its threads, so the core-seconds of an item are busy x threads (at most the
run's cores), scaled down where all stages together would have had more than the run's cores.

Examples:
  mlomae simulate latest
  mlomae simulate runs/my-run --cores 2,8,32 --lag 0,1 --json")]
pub(crate) struct Args {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Numbers of cores
    #[arg(long, value_delimiter = ',', default_value = "4,16,64")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
    cores: Vec<u16>,
    /// Values of pipeline.lag
    #[arg(long, value_delimiter = ',', default_value = "0,1,2", value_parser = clap::value_parser!(u8).range(0..=8))]
    lag: Vec<u8>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What the logs of a run say about its stages.
struct Measured {
    /// Core-seconds of an item of load, score, encoder, evaluator, policy.
    core_s: [f64; 5],
    outer_per_s: f64,
    /// Factor by which the core-seconds were scaled to fit the run's cores.
    scale: f64,
}

/// Compute threads of encoder, evaluator and policy on a machine with `num_cores` cores.
fn level_threads(config: &Config, num_cores: usize) -> [usize; 3] {
    [StageName::Encoder, StageName::Evaluator, StageName::Policy]
        .map(|stage| config.actors.stage(stage).num_workers_on(num_cores))
}

fn measure(history: &History) -> Option<Measured> {
    let (config, num_cores) = (&history.config, history.num_cores());
    let segment = history.newest_segment()?;
    let tracks: Vec<_> = history.segment(segment).collect();
    let begin = tracks.iter().map(|(_, track)| track.begin_s()).reduce(f64::min)?;
    let end = tracks.iter().map(|(_, track)| track.end_s()).reduce(f64::max)?;
    let mut threads = level_threads(config, num_cores);
    if config.pipeline.lag == 0 {
        threads = [threads.into_iter().max().unwrap_or(1); 3];
    }
    let score = if config.scores_need_theta() { threads[0] } else { 1 };
    let threads = [1, score, threads[0], threads[1], threads[2]].map(|num| num.min(num_cores) as f64);
    let mut core_s = [0.0; 5];
    let (mut all_core_s, mut num_outer) = (0.0, 0.0);
    for (place, stage) in STAGES.into_iter().enumerate() {
        let own = tracks.iter().filter(|(worker, _)| worker.stage == stage).map(|(_, track)| track.at(end));
        let total = own.fold(Totals::default(), Totals::plus);
        if total.items < 1.0 {
            return None;
        }
        core_s[place] = total.busy_s * threads[place] / total.items;
        all_core_s += total.busy_s * threads[place];
        num_outer = total.items;
    }
    let scale = (num_cores as f64 * (end - begin) / all_core_s).min(1.0);
    Some(Measured { core_s: core_s.map(|seconds| seconds * scale), outer_per_s: num_outer / (end - begin), scale })
}

fn scenario(config: &Config, measured: &Measured, num_cores: usize, lag: u64) -> Scenario {
    let [pretrain, finetune, policy] = [config.pretrain.batch, config.finetune.batch, config.policy.batch];
    let unroll = config.method.unroll;
    let ns = |seconds: f64| (seconds * 1e9) as u64;
    let pieces = |batch: usize| batch.div_ceil(config.train.grain.max(1)) as u64;
    let [load, score, encoder, evaluator, update] = measured.core_s;
    // The measured mean is over both kinds of loads; their shares are those of their images.
    let per_image = load * (unroll + 1) as f64 / (unroll as f64 * pretrain as f64 + (finetune + policy) as f64);
    let load = |images: usize| Work { core_ns: ns(per_image * images as f64), num_pieces: 1 };
    let level = |seconds: f64, batch: usize| Work { core_ns: ns(seconds), num_pieces: pieces(batch) };
    Scenario {
        num_cores,
        lag,
        unroll,
        load: [load(pretrain), load(finetune + policy)],
        levels: [
            level(score, pretrain),
            level(encoder, pretrain),
            level(evaluator, finetune.min(policy)),
            level(update, pretrain),
        ],
        num_workers: [StageName::Load, StageName::Score]
            .map(|stage| config.actors.stage(stage).num_workers_on(num_cores)),
        num_threads: level_threads(config, num_cores),
        queue_caps: EDGES.map(|edge| capacity(edge, &config.actors)),
        scores_need_theta: config.scores_need_theta(),
        num_outer: NUM_OUTER,
    }
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let history = History::open(&find_run(&self.run)?)?;
        let engine = &history.record.host.engine;
        if !engine.is_empty() && engine != "cpu" {
            let line = format!("simulate varies cores, and the run computed on another device: {engine}");
            return Err(CliError::new(ExitCode::NoInput, line));
        }
        let measured = measure(&history).ok_or_else(|| {
            let run = self.run.display();
            CliError::new(ExitCode::NoInput, format!("the logs hold no finished item of every stage: {run}"))
        })?;
        let config = &history.config;
        let at = |cores: usize, lag: u64| simulate(&scenario(config, &measured, cores, lag));
        let (own_cores, own_lag) = (history.num_cores(), u64::from(config.pipeline.lag));
        let own = at(own_cores, own_lag);
        let cases =
            self.cores.iter().flat_map(|cores| self.lag.iter().map(|lag| (usize::from(*cores), u64::from(*lag))));
        let cases: Vec<(usize, u64, Simulated)> = cases.map(|(cores, lag)| (cores, lag, at(cores, lag))).collect();
        if self.json {
            let row = |(cores, lag, simulated): &(usize, u64, Simulated)| {
                serde_json::json!({
                    "cores": cores,
                    "lag": lag,
                    "outer_per_s": simulated.outer_per_s,
                    "speed_up": simulated.outer_per_s / measured.outer_per_s,
                    "efficiency": simulated.efficiency,
                    "bottleneck": simulated.bottleneck().as_str(),
                })
            };
            let report = serde_json::json!({
                "run": history.record.id,
                "measured": {
                    "cores": own_cores,
                    "lag": own_lag,
                    "outer_per_s": measured.outer_per_s,
                    "core_s_per_item": measured.core_s,
                    "scale": measured.scale,
                },
                "own": row(&(own_cores, own_lag, own)),
                "cases": cases.iter().map(row).collect::<Vec<_>>(),
            });
            writeln!(session.out, "{report}")?;
            return Ok(());
        }
        writeln!(
            session.out,
            "measured: {} cores, lag {own_lag}: {:.3} outer iterations/s; simulated the same: {:.3}",
            own_cores, measured.outer_per_s, own.outer_per_s
        )?;
        write!(session.out, "core-ms of an item:")?;
        for (stage, seconds) in STAGES.iter().zip(measured.core_s) {
            write!(session.out, "  {stage} {:.2}", 1e3 * seconds)?;
        }
        writeln!(session.out, "  (busy x threads x {:.2})\n", measured.scale)?;
        let head = ["cores", "lag", "outer/s", "speed-up", "efficiency"];
        writeln!(
            session.out,
            "{:>6} {:>4} {:>10} {:>9} {:>11}  bottleneck",
            head[0], head[1], head[2], head[3], head[4]
        )?;
        for (cores, lag, simulated) in &cases {
            writeln!(
                session.out,
                "{cores:>6} {lag:>4} {:>10.3} {:>9.2} {:>9.0} %  {}",
                simulated.outer_per_s,
                simulated.outer_per_s / measured.outer_per_s,
                100.0 * simulated.efficiency,
                simulated.bottleneck()
            )?;
        }
        Ok(())
    }
}
