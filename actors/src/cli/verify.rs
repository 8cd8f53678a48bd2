//! `mlomae verify`: one outer iteration against golden vectors, or the trajectory of many.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlomae_model::ModelError;
use mlomae_model::Precision;
use mlomae_model::golden::{Check, Golden, GoldenTensor, How};
use mlomae_model::hypergradient::{FORMS, HypergradientChoice};
use mlomae_model::lane::Device;
use mlomae_storage::checkpoint::read_safetensors;
use mlomae_storage::escape::one_line;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::machine_memory::{Available, available, bytes_text};

use super::config_args::EngineArg;
use super::session::Session;
use crate::process::error::CliError;
use crate::train::experiment::tell_engine;

/// Compare one outer iteration with the golden vectors of an independent reference
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file holds initial weights, batches, and what the reference got from them: losses, scores,
masks, gradients, hypergradients and the weights afterwards. Ends with exit code 1 if a quantity
is further off than its limit.

In bf16 the limits are wider, and finite differences (clean, published) are noise and fail.

With --outer nothing is compared: a line of JSON an outer iteration, over the file's batches used
again in each, shows where training goes.

Examples:
  mlomae verify tests/fixtures/golden/tiny.safetensors
  mlomae verify golden.safetensors --json | jq '.checks[] | select(.ok | not)'
  mlomae verify golden.safetensors --precision bf16
  mlomae verify golden.safetensors --outer 40 --hypergradient tangent | jq .mask_loss")]
pub(crate) struct Args {
    /// Golden file
    #[arg(value_name = "FILE.safetensors")]
    file: PathBuf,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Run N outer iterations instead and print each as a line of JSON: losses, mean scores, norm of the hypergradient
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    outer: Option<u64>,
    /// The one form of the hypergradient to run [default: every form; with bf16 tangent]
    #[arg(long, value_name = "FORM", value_parser = parse_form)]
    hypergradient: Option<HypergradientChoice>,
    /// Precision of the networks' products: f32, or bf16 and (on a GPU) tf32, which have wider limits
    #[arg(long, default_value = "f32", value_name = "PRECISION", value_parser = parse_precision)]
    precision: Precision,
    /// Compute threads; the results are the same to the bit for any number
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    #[command(flatten)]
    engine: EngineArg,
}

/// A form of which a golden file has a value.
fn parse_form(name: &str) -> Result<HypergradientChoice, String> {
    let known = || FORMS.iter().filter(|form| form.is_of_the_paper());
    let names = || known().map(|form| form.name()).collect::<Vec<_>>().join(", ");
    let form = HypergradientChoice::by_name(name).filter(|form| form.is_of_the_paper());
    form.ok_or_else(|| format!("allowed: {}", names()))
}

pub(super) fn parse_precision(name: &str) -> Result<Precision, String> {
    let names = || Precision::ALL.map(Precision::name).join(", ");
    Precision::by_name(name).ok_or_else(|| format!("allowed: {}", names()))
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let how = How { precision: self.precision, form: self.hypergradient };
        let golden = read(&self.file)?;
        check_memory(&golden, &self.file)?;
        let refused = |error| match error {
            // The shapes are the file's, not the user's.
            error @ ModelError::Config(_) => {
                CliError::new(ExitCode::BadData, format!("{error}: {}", self.file.display()))
            }
            error => error.into(),
        };
        let engine = self.engine.get().choose()?;
        tell_engine(&engine);
        let device = engine.device.get();
        if let Some(problem) = device.refuses(self.precision) {
            return Err(CliError::usage(format!("--precision {}: {problem}", self.precision)));
        }
        if let Some(num_outer) = self.outer {
            return trajectory(&golden, device, self.threads.into(), how, num_outer, session, refused);
        }
        let checks = golden.verify_on(device, self.threads.into(), how).map_err(refused)?;
        let num_failed = checks.iter().filter(|check| !check.ok).count();
        if self.json {
            let report = serde_json::json!({
                "file": self.file,
                "engine": device.name(),
                "ok": num_failed == 0,
                "checks": checks,
            });
            writeln!(session.out, "{report:#}")?;
        } else {
            session.out.write_all(table(&checks).as_bytes())?;
        }
        if num_failed == 0 && !checks.is_empty() {
            return Ok(());
        }
        session.out.flush()?;
        let line = format!(
            "{num_failed} of {} quantities are further off than their limits in {}",
            checks.len(),
            self.file.display()
        );
        Err(CliError::new(ExitCode::Failed, line))
    }
}

/// Prints a line of JSON for each outer iteration as it is done.
fn trajectory(
    golden: &Golden,
    device: &dyn Device,
    num_threads: usize,
    how: How,
    num_outer: u64,
    session: &mut Session<'_>,
    refused: impl Fn(ModelError) -> CliError,
) -> Result<(), CliError> {
    let mut written = Ok(());
    let outcome = golden.trajectory(device, num_threads, how, num_outer, &mut |lap| {
        let line = serde_json::to_string(lap).map_err(std::io::Error::other);
        written = line.and_then(|line| writeln!(session.out, "{line}"));
        // A reader that is gone ends the run early.
        written.is_ok()
    });
    written?;
    outcome.map_err(refused)
}

/// Refuses passes that this machine has no memory for: the file's metadata decides how much they keep.
fn check_memory(golden: &Golden, path: &Path) -> Result<(), CliError> {
    let c = &golden.config;
    let tokens = c.image.checked_div(c.patch).unwrap_or(0).saturating_pow(2).saturating_add(1);
    let block = |depth: usize, dim: usize, heads: usize| {
        let vectors = 15_usize.saturating_mul(dim).saturating_add(heads.saturating_mul(tokens));
        depth.saturating_mul(tokens).saturating_mul(vectors)
    };
    let kept = block(c.depth, c.dim, c.heads).saturating_add(block(c.dec_depth, c.dec_dim, c.dec_heads));
    let needed = (c.batch.saturating_mul(kept) as u64).saturating_mul(4);
    let Available { num_bytes, limit } = available();
    if needed <= num_bytes {
        return Ok(());
    }
    let (needed, left) = (bytes_text(needed), bytes_text(num_bytes));
    let line = format!("its shapes need about {needed} of memory, {limit} leaves {left}: {}", path.display());
    Err(CliError::new(ExitCode::BadData, line))
}

/// Reads a golden file; integers become floats, as the model takes them.
fn read(path: &Path) -> Result<Golden, CliError> {
    let (metadata, tensors) = read_safetensors(path)?;
    let config = metadata.get("config").ok_or_else(|| {
        let line = format!("not a golden file, its metadata lacks `config`: {}", path.display());
        CliError::new(ExitCode::BadData, line)
    })?;
    let config = Golden::parse_config(config)
        .map_err(|error| CliError::new(ExitCode::BadData, format!("{error}: {}", path.display())))?;
    let tensors = tensors.into_iter().map(|tensor| {
        let values = tensor.data.to_f64().into_iter().map(|value| value as f32).collect();
        (tensor.name, GoldenTensor { shape: tensor.shape, values })
    });
    Ok(Golden { config, tensors: tensors.collect::<BTreeMap<_, _>>() })
}

/// A line each: quantity, relative error, limit, ok.
fn table(checks: &[Check]) -> String {
    let quantities = || checks.iter().map(|check| one_line(&check.quantity));
    let width = quantities().map(|quantity| quantity.chars().count()).max().unwrap_or(0).clamp(8, 200);
    let mut text = format!("{:<width$}  {:>14}  {:>8}  ok\n", "quantity", "relative error", "limit");
    for (Check { error, limit, ok, .. }, quantity) in checks.iter().zip(quantities()) {
        let ok = if *ok { "ok" } else { "FAILED" };
        text += &format!("{quantity:<width$}  {error:>14.2e}  {limit:>8.0e}  {ok}\n");
    }
    let num_ok = checks.iter().filter(|check| check.ok).count();
    text + &format!("{num_ok} of {} ok\n", checks.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_of_which_golden_files_have_no_value_is_no_form_to_verify() {
        assert_eq!(parse_form("tangent").map(|form| form.name()), Ok("tangent"));
        for name in ["ridge", "cg", "magic"] {
            assert_eq!(parse_form(name).map(|form| form.name()), Err("allowed: clean, published, tangent".to_owned()));
        }
    }

    #[test]
    fn a_failed_quantity_stands_out() {
        let check = |quantity: &str, error: f64, ok| Check { quantity: quantity.to_owned(), error, limit: 1e-4, ok };
        let text = table(&[check("pretrain0.grad", 2e-7, true), check("mask.loss", f64::NAN, false)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].ends_with("2.00e-7      1e-4  ok"), "{text}");
        assert!(lines[2].ends_with("NaN      1e-4  FAILED"), "{text}");
        assert_eq!(lines[3], "1 of 2 ok");
    }
}
