//! Times one outer iteration by level: `cargo bench -p mlomae-bench -- [tiny|small|base] [threads] [micro_batch] [rounds] [batch]`.

use mlomae_bench::{Lap, Workload};
use mlomae_dataflow::config::Preset;

fn main() -> Result<(), mlomae_model::ModelError> {
    // cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |place: usize| args.get(place).and_then(|a| a.parse::<usize>().ok());
    let name = args.first().map_or("tiny", String::as_str);
    let preset = Preset::from_name(name)
        .ok_or_else(|| mlomae_model::ModelError::Config(format!("preset must be tiny, small or base, got {name}")))?;
    let threads = number(1).unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut workload = Workload::new(preset, number(4), threads, number(2).unwrap_or(16))?;
    println!("{name}, batch {}, {threads} threads", workload.batch);
    let mut laps: Vec<Lap> = Vec::new();
    for round in 0..number(3).unwrap_or(8) + 2 {
        let lap = workload.step()?;
        // The first two rounds fill the recycled memory.
        if round >= 2 {
            laps.push(lap);
        }
    }
    let median = |part: fn(&Lap) -> f64| {
        let mut values: Vec<f64> = laps.iter().map(part).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!("score     {:9.1} ms", median(|l| l.score_ms));
    println!("pretrain  {:9.1} ms", median(|l| l.pretrain_ms));
    println!("evaluate  {:9.1} ms", median(|l| l.evaluate_ms));
    println!("policy    {:9.1} ms", median(|l| l.policy_ms));
    let (total, gflop) = (median(Lap::total_ms), median(|l| l.gflop));
    println!("total     {total:9.1} ms, {gflop:.1} GFLOP, {:.0} GFLOP/s", gflop / total * 1e3);
    println!("memory    {:9.1} MiB", workload.allocated_bytes() as f64 / f64::from(1 << 20));
    Ok(())
}
