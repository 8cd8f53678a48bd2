//! `mlomae config`: the configuration as the program understands it.

use mlomae_dataflow::config::schema;

use super::config_args::ConfigArgs;
use super::session::Session;
use crate::process::error::CliError;
use crate::train::experiment::config_toml;

/// Show the resolved configuration, or the schema of all keys
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mlomae config show                             every key of the quickstart with its value
  mlomae config show configs/cifar10.toml --set model.preset=base
  mlomae config schema > mlomae.schema.json      for an editor's completion")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the whole configuration as TOML: defaults, preset, CONFIG, overlays and settings
    Show(ConfigArgs),
    /// Print the JSON schema: every key with its meaning, default and allowed values
    Schema,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let text = match self.command {
            Command::Show(args) => config_toml(&args.resolve()?.0)?,
            Command::Schema => format!("{:#}\n", schema()),
        };
        session.out.write_all(text.as_bytes())?;
        Ok(())
    }
}
