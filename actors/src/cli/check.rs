//! `mlomae check`: everything that can be known to be wrong before a run.

use mlomae_dataflow::config::{Config, ConfigInputs};
use mlomae_dataflow::data::Data;

use super::Session;
use super::config_args::ConfigArgs;
use super::facts::{bytes_text, facts, topology_of};
use crate::error::CliError;
use crate::setup::Prepared;

/// Check a configuration with its data, and print sizes and memory bounds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All errors are printed at once, one line each, with the key, its value and what is allowed.

Examples:
  mlomae check configs/cifar10.toml --set data.path=/data/cifar-10
  mlomae check configs/quickstart.toml --set model.preset=small --set pretrain.batch=256")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let inputs = self.config.inputs()?;
        let config = match Config::resolve(&inputs) {
            Ok(config) => config,
            Err(errors) => return Err(with_errors_of_data(errors.into(), &inputs)),
        };
        let prepared = Prepared::new(config, None)?;
        for (name, text) in facts(&prepared)? {
            writeln!(session.out, "{name:<10} {text}")?;
        }
        writeln!(session.out, "queues")?;
        for bound in topology_of(&prepared)?.bounds() {
            writeln!(
                session.out,
                "  {:<20} {:>3} items and {:>2} in hand, each about {}",
                bound.name,
                bound.queue_cap,
                bound.num_in_hand,
                bytes_text(bound.payload_bytes)
            )?;
        }
        if prepared.data.test.is_none() {
            writeln!(session.out, "note       no test split: train ends without an evaluation")?;
        }
        writeln!(session.out, "ok")?;
        Ok(())
    }
}

/// Adds what is wrong with the data, if that can be told although other keys are wrong.
fn with_errors_of_data(error: CliError, inputs: &ConfigInputs) -> CliError {
    let CliError::Failed { mut lines, exit_code } = error else {
        return error;
    };
    if let Some(config) = data_alone(inputs)
        && let Err(error) = Data::open(&config, None)
        && let CliError::Failed { lines: of_data, .. } = CliError::from(error)
    {
        // The other sections have their defaults here; what is said of them is not about the user's.
        lines.extend(of_data.into_iter().filter(|line| !is_about_key(line)));
    }
    CliError::Failed { lines, exit_code }
}

fn is_about_key(line: &str) -> bool {
    line.contains(" = ")
}

/// The configuration with its `data` section and the defaults of all others.
fn data_alone(inputs: &ConfigInputs) -> Option<Config> {
    let mut alone = ConfigInputs::default();
    for (name, text) in &inputs.layers {
        let mut table: toml::Table = text.parse().ok()?;
        table.retain(|key, _| key == "data");
        alone = alone.layer(name, &table.to_string());
    }
    for setting in inputs.sets.iter().filter(|setting| setting.trim_start().starts_with("data.")) {
        alone = alone.set(setting);
    }
    Config::resolve(&alone).ok()
}
