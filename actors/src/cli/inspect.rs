//! `mlomae inspect`: what a checkpoint holds.

use std::path::PathBuf;

use mlomae_storage::checkpoint::{self, Checkpoint, NamedTensor};
use mlomae_storage::escape::one_line;
use serde_json::Value;

use super::run_path::find_run;
use super::session::Session;
use crate::process::error::CliError;

/// Widest column of names; a longer name stands out.
const MAX_WIDTH: usize = 200;

/// Print what a checkpoint holds; checks every file against its sum
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CHECKPOINT is a run directory (its latest checkpoint), the id of a run below ./runs, `latest`, or a
step-… folder.

Examples:
  mlomae inspect runs/my-run
  mlomae inspect runs/my-run/checkpoints/step-00000200 --tensors
  mlomae inspect latest --json | jq .state.outer_iteration")]
pub(crate) struct Args {
    /// Checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// List every tensor with its shape, mean, deviation and largest value
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let folder = checkpoint::resolve(&find_run(&self.checkpoint)?)?;
        let loaded = checkpoint::load(&folder)?;
        if self.json {
            let files: serde_json::Map<_, _> =
                files(&loaded).map(|(name, tensors)| (name.to_owned(), file_json(tensors))).into_iter().collect();
            let report = serde_json::json!({
                "path": folder,
                "step": loaded.step,
                "program_version": loaded.program_version,
                "files": files,
                "state": loaded.state,
            });
            writeln!(session.out, "{report:#}")?;
            return Ok(());
        }
        writeln!(session.out, "{}", folder.display())?;
        writeln!(
            session.out,
            "  {:<16} {}, written by mlomae {}",
            "step",
            loaded.step,
            one_line(&loaded.program_version)
        )?;
        for (key, value) in loaded.state.as_object().into_iter().flatten().filter(|(key, _)| *key != "step") {
            if let Some(text) = short(value) {
                writeln!(session.out, "  {:<16} {}", one_line(key), one_line(&text))?;
            }
        }
        for (name, tensors) in files(&loaded) {
            let num_values: usize = tensors.iter().map(|tensor| tensor.values.len()).sum();
            writeln!(
                session.out,
                "  {:<22} {:>4} tensors  {:>11} values",
                format!("{name}.safetensors"),
                tensors.len(),
                num_values
            )?;
            if self.tensors {
                let width = tensors.iter().map(|tensor| one_line(&tensor.name).len()).max().unwrap_or(0).min(MAX_WIDTH);
                for tensor in tensors {
                    let Statistics { mean, std, max_abs } = statistics(&tensor.values);
                    let shape = format!("{:?}", tensor.shape);
                    writeln!(
                        session.out,
                        "    {:<width$}  {shape:<18} mean {mean:>10.3e}  std {std:>9.3e}  max {max_abs:>9.3e}",
                        one_line(&tensor.name)
                    )?;
                }
            }
        }
        Ok(())
    }
}

fn files(checkpoint: &Checkpoint) -> [(&'static str, &[NamedTensor]); 4] {
    [
        ("model", &checkpoint.model),
        ("head", &checkpoint.head),
        ("mask", &checkpoint.mask),
        ("optimizer", &checkpoint.optimizer),
    ]
}

fn file_json(tensors: &[NamedTensor]) -> Value {
    let tensor = |tensor: &NamedTensor| {
        let Statistics { mean, std, max_abs } = statistics(&tensor.values);
        serde_json::json!({
            "name": tensor.name,
            "shape": tensor.shape,
            "mean": mean,
            "std": std,
            "max_abs": max_abs,
        })
    };
    tensors.iter().map(tensor).collect()
}

/// A value that fits on a line; none for what only programs read.
fn short(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => value.to_string(),
        other => other.to_string(),
    };
    (text.chars().count() <= 80).then_some(text)
}

struct Statistics {
    mean: f64,
    std: f64,
    max_abs: f64,
}

/// Mean, population deviation and largest absolute value; zeros of nothing. NaN where a value is NaN.
fn statistics(values: &[f32]) -> Statistics {
    let num = values.len().max(1) as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / num;
    let squares = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>();
    let max_abs = values.iter().fold(0.0_f64, |max, value| {
        let value = f64::from(value.abs());
        if value.is_nan() || value > max { value } else { max }
    });
    Statistics { mean, std: (squares / num).sqrt(), max_abs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_right_and_show_what_is_not_finite() {
        let Statistics { mean, std, max_abs } = statistics(&[1.0, -3.0, 2.0, 0.0]);
        assert_eq!((mean, max_abs), (0.0, 3.0));
        assert!((std - 3.5_f64.sqrt()).abs() < 1e-12);
        assert!(statistics(&[1.0, f32::NAN, 0.5]).mean.is_nan());
        assert_eq!(statistics(&[]).max_abs, 0.0);
    }

    #[test]
    fn long_values_are_left_to_programs() {
        assert_eq!(short(&serde_json::json!([1, 2])).as_deref(), Some("[1,2]"));
        assert_eq!(short(&serde_json::json!("x".repeat(81))), None);
    }
}
