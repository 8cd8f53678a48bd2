//! `mlomae bench`: how fast, in what, and beside what.

use std::path::PathBuf;

use crate::measure::workload::WorkloadSpec;
use mlomae_dataflow::config::{Config, ConfigInputs, MemoryCheck, Preset, rules};
use mlomae_storage::exit_code::ExitCode;

use super::bar::Bar;
use super::config_args::{EngineArg, Setting};
use super::session::Session;
use crate::measure::bench::{BenchSpec, PeerSpec, bench};
use crate::process::error::CliError;

/// Measure an outer iteration by level and stage, and beside PyTorch if a Python with torch is given
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An outer iteration is two level-1 steps, one of level 2 and one of level 3. Ours and the peer's take turns, so
that both see the same machine; figures are medians over the rounds. The peer computes on the same device and
in the same precision.

Examples:
  mlomae bench --preset small
  mlomae bench --preset small --peer venv/bin/python
  mlomae bench --preset base --batch 8 --peer venv/bin/python --rounds 5
  mlomae bench --preset small --set compute.precision=bf16
  mlomae bench --engine cuda --set compute.precision=bf16 --peer venv/bin/python --peer-savings --peer-compile
  mlomae bench --preset small --random --peer venv/bin/python   random masks, level 1 alone
  mlomae bench --preset tiny --json | jq .ms_outer")]
pub(crate) struct Args {
    /// Shape of the networks: tiny, small or base
    #[arg(long, default_value = "tiny", value_parser = parse_preset)]
    preset: Preset,
    /// Images of each level's batch [default: the preset's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=4096))]
    batch: Option<u16>,
    /// Compute threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Images that a thread takes at a time; 0 chooses by itself
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=4096))]
    micro_batch: u16,
    #[command(flatten)]
    engine: EngineArg,
    /// Random masks: level 1 alone
    #[arg(long)]
    random: bool,
    /// Measured outer iterations
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Python with torch, to run the same iteration in PyTorch in turns with ours
    #[arg(long, value_name = "PYTHON")]
    peer: Option<PathBuf>,
    /// The strict peer: the same mathematics with every exact saving, instead of the published passes
    #[arg(long, requires = "peer")]
    peer_savings: bool,
    /// Let the peer compile its networks by torch.compile
    #[arg(long, requires = "peer")]
    peer_compile: bool,
    /// Leave out the measurement of the whole pipeline
    #[arg(long)]
    no_pipeline: bool,
    /// `pipeline.lag` of that measurement: 0 takes the levels in turn, more lets them overlap
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=8))]
    lag: u32,
    /// What is done where the networks need more memory than there is: refuse or warn
    #[arg(long, default_value = "refuse", value_name = "CHECK", value_parser = parse_memory_check)]
    memory_check: MemoryCheck,
    /// Setting of compute.* or method.hypergradient, as in --set compute.precision=bf16; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Setting)]
    set: Vec<String>,
    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub(super) fn parse_preset(name: &str) -> Result<Preset, String> {
    Preset::from_name(name).ok_or_else(|| format!("allowed: {}", Preset::ALL.map(Preset::as_str).join(", ")))
}

fn parse_memory_check(name: &str) -> Result<MemoryCheck, String> {
    match name {
        "refuse" => Ok(MemoryCheck::Refuse),
        "warn" => Ok(MemoryCheck::Warn),
        _ => Err("allowed: refuse, warn".to_owned()),
    }
}

/// The configuration of `sets`, which may only give what a measurement does not give itself.
fn resolved(sets: &[String]) -> Result<Config, CliError> {
    let inputs = sets.iter().fold(ConfigInputs::default(), |inputs, set| inputs.set(set));
    // What is no setting of a known key is refused by its own line.
    let config = Config::resolve(&inputs.clone().set("data.format=synthetic"))?;
    let is_taken = |key: &str| key.starts_with("compute.") || key == "method.hypergradient";
    match rules().map(|(key, _)| key).find(|key| !is_taken(key) && inputs.gives(key)) {
        None => Ok(config),
        Some(key) => {
            let line =
                format!("--set {key}: bench takes compute.* and method.hypergradient; the preset gives the rest");
            Err(CliError::usage(line))
        }
    }
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let mut workload = WorkloadSpec::new(self.preset);
        workload.batch = self.batch.map_or(workload.batch, usize::from);
        workload.num_threads = self.threads.map_or(workload.num_threads, usize::from);
        workload.micro_batch = usize::from(self.micro_batch);
        workload.baseline = self.random;
        workload.engine = self.engine.get();
        let config = resolved(&self.set)?;
        (workload.precision, workload.hypergradient) = (config.compute.precision, config.method.hypergradient);
        let spec = BenchSpec {
            workload,
            num_rounds: usize::from(self.rounds),
            peer: self.peer.map(|python| PeerSpec { python, savings: self.peer_savings, compile: self.peer_compile }),
            lag: (!self.no_pipeline).then_some(self.lag),
            memory_check: self.memory_check,
        };
        let bar = Bar::new(&session.terminal, "bench");
        let report = bench(&spec, &session.events, |done, all| bar.set("bench", done, all))?;
        drop(bar);
        if self.json {
            let json = serde_json::to_string_pretty(&report)
                .map_err(|error| CliError::new(ExitCode::Internal, format!("report has no JSON form: {error}")))?;
            writeln!(session.out, "{json}")?;
        } else {
            write!(session.out, "{report}")?;
        }
        Ok(())
    }
}
