//! `mlomae gpu products`: how long each product of an outer iteration takes on the GPU.

use mlomae_dataflow::config::Preset;
use mlomae_device::{Gpu, ProductKind, recorded, time_products};
use mlomae_model::Precision;
use mlomae_model::lane::Engine;
use mlomae_storage::exit_code::ExitCode;
use serde::Serialize;

use super::session::Session;
use crate::measure::workload::{Workload, WorkloadSpec};
use crate::process::error::CliError;

/// Time each kind of product of an outer iteration by itself
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An outer iteration of a preset is computed once, and every kind of product that it has is then timed on random values
with its launches left out. Attention, which has kernels of its own, is no part of it. Ends with 70 if
the GPU fails, 78 without one.

Examples:
  mlomae gpu products --preset base --precision bf16
  mlomae gpu products --preset small --precision tf32 --peak 8192 --json | jq '.products[:5]'")]
pub(super) struct Products {
    /// Shape of the networks: tiny, small or base
    #[arg(long, default_value = "small", value_parser = super::bench::parse_preset)]
    preset: Preset,
    /// Images of each level's batch [default: the preset's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=4096))]
    batch: Option<u16>,
    /// Precision of the products: f32, tf32 or bf16
    #[arg(long, default_value = "bf16", value_name = "PRECISION", value_parser = super::verify::parse_precision)]
    precision: Precision,
    /// Milliseconds for which each kind is measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    ms: u16,
    /// Time a product of SIDE x SIDE x SIDE too, and give shares of its speed
    #[arg(long, value_name = "SIDE", value_parser = clap::value_parser!(u16).range(1..=32_768))]
    peak: Option<u16>,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// The times of all kinds.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    preset: &'static str,
    batch: usize,
    precision: String,
    /// Of the product that shares are taken of.
    peak_tflops: Option<f64>,
    /// All products of an outer iteration, one after the other.
    ms_outer: f64,
    gflop_outer: f64,
    tflops: f64,
    percent_of_peak: Option<f64>,
    /// The most time first.
    products: Vec<Row>,
}

/// A kind of product.
#[derive(Debug, Serialize)]
struct Row {
    m: usize,
    n: usize,
    k: usize,
    /// Whether the first and the second factor are stored transposed.
    transposed: [bool; 2],
    /// Types of the factors and of the result.
    types: String,
    bias: bool,
    accumulate: bool,
    /// In an outer iteration.
    calls: u64,
    /// Of one.
    us: f64,
    tflops: f64,
    percent_of_peak: Option<f64>,
    /// Share of the time of all products.
    percent_of_time: f64,
}

impl Products {
    pub(super) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let gpu = super::gpu::open()?;
        let mut spec = WorkloadSpec::new(self.preset);
        spec.batch = self.batch.map_or(spec.batch, usize::from);
        spec.precision = self.precision;
        spec.engine = Engine::by_name("cuda")
            .ok_or_else(|| CliError::new(ExitCode::Internal, "the engine cuda is not in the list".to_owned()))?;
        // Every product is enqueued by the first iteration, which replays no graph. Its memory is given back.
        let (stepped, kinds) = recorded(|| Workload::new(spec).and_then(|mut workload| workload.step()));
        stepped?;
        let report = self.measured(&gpu, spec.batch, kinds.into_iter().collect())?;
        if self.json {
            let json = serde_json::to_string_pretty(&report)
                .map_err(|error| CliError::new(ExitCode::Internal, format!("report has no JSON form: {error}")))?;
            writeln!(session.out, "{json}")?;
        } else {
            session.out.write_all(table(&report).as_bytes())?;
        }
        Ok(())
    }

    fn measured(&self, gpu: &Gpu, batch: usize, kinds: Vec<(ProductKind, u64)>) -> Result<Report, CliError> {
        let precision = match self.precision {
            Precision::F32 => mlomae_device::Precision::F32,
            Precision::Tf32 => mlomae_device::Precision::Tf32,
            Precision::Bf16 => mlomae_device::Precision::Bf16,
        };
        let low = self.precision == Precision::Bf16;
        let ms = f64::from(self.ms);
        let mut peak_tflops = None;
        if let Some(side) = self.peak.map(usize::from) {
            let plain = [false; 2];
            let shape = [side; 3];
            let kind =
                ProductKind { shape, transposed: plain, low_in: low, low_out: low, bias: false, accumulate: false };
            time_products(gpu, precision, &[kind], 10.0 * ms, &mut |kind, seconds| {
                peak_tflops = Some(kind.flops() / seconds * 1e-12);
            })
            .map_err(|error| super::gpu::failed(&error))?;
        }
        let percent = |tflops: f64| peak_tflops.map(|peak| 100.0 * tflops / peak);
        let names: Vec<ProductKind> = kinds.iter().map(|(kind, _)| *kind).collect();
        let mut products = Vec::new();
        time_products(gpu, precision, &names, ms, &mut |kind, seconds| {
            let name = |low: bool| if low { "bf16" } else { "f32" };
            let tflops = kind.flops() / seconds * 1e-12;
            products.push(Row {
                m: kind.shape[0],
                n: kind.shape[1],
                k: kind.shape[2],
                transposed: kind.transposed,
                types: format!("{} to {}", name(kind.low_in), name(kind.low_out)),
                bias: kind.bias,
                accumulate: kind.accumulate,
                calls: kinds.iter().find(|(known, _)| known == kind).map_or(0, |(_, calls)| *calls),
                us: 1e6 * seconds,
                tflops,
                percent_of_peak: percent(tflops),
                percent_of_time: 0.0,
            });
        })
        .map_err(|error| super::gpu::failed(&error))?;
        let us = |row: &Row| row.us * row.calls as f64;
        let total_us: f64 = products.iter().map(us).sum();
        products.iter_mut().for_each(|row| row.percent_of_time = 100.0 * us(row) / total_us);
        products.sort_by(|a, b| us(b).total_cmp(&us(a)));
        let gflop_outer = kinds.iter().map(|(kind, calls)| kind.flops() * *calls as f64 * 1e-9).sum::<f64>();
        let tflops = gflop_outer / total_us * 1e3;
        Ok(Report {
            device: gpu.facts().name.clone(),
            preset: self.preset.as_str(),
            batch,
            precision: self.precision.to_string(),
            peak_tflops,
            ms_outer: 1e-3 * total_us,
            gflop_outer,
            tflops,
            percent_of_peak: percent(tflops),
            products,
        })
    }
}

/// For people.
fn table(report: &Report) -> String {
    let Report { preset, batch, precision, ms_outer, gflop_outer, tflops, .. } = report;
    let share = |percent: Option<f64>| percent.map_or_else(String::new, |percent| format!("{percent:8.1}"));
    let head = if report.peak_tflops.is_some() { "  % of peak" } else { "" };
    let mut text = format!(
        "{preset}, batch {batch}, {precision} on {}: {ms_outer:.2} ms of products an outer iteration, {gflop_outer:.1} \
         GFLOP, {tflops:.2} TFLOP/s\n{:>7} {:>7} {:>7}  {:<5} {:<13} {:>5} {:>10} {:>9} {:>7}{head}\n",
        report.device, "m", "n", "k", "", "types", "calls", "us", "TFLOP/s", "% time"
    );
    for row in &report.products {
        let factors = row.transposed.map(|transposed| if transposed { "T" } else { "N" }).concat();
        let more = [if row.bias { "b" } else { "" }, if row.accumulate { "+" } else { "" }].concat();
        text += &format!(
            "{:>7} {:>7} {:>7}  {:<5} {:<13} {:>5} {:>10.1} {:>9.2} {:>7.1}{}\n",
            row.m,
            row.n,
            row.k,
            format!("{factors}{more}"),
            row.types,
            row.calls,
            row.us,
            row.tflops,
            row.percent_of_time,
            share(row.percent_of_peak)
        );
    }
    text
}
