//! `mlomae visualize`: what the masking network masks and the decoder reconstructs.

use std::path::PathBuf;

use mlomae_dataflow::config::ConfigInputs;
use mlomae_storage::atomic::write_atomic;
use mlomae_storage::dataset::Split;
use mlomae_storage::out_file::{is_stdout, write_out};

use super::config_args::OverlayArgs;
use super::run_path::find_run;
use super::session::Session;
use crate::pictures::panel_of;
use crate::process::error::CliError;
use crate::train::continuity::Purpose;
use crate::train::loaded_checkpoint::{Base, LoadedCheckpoint};
use crate::train::memory::Needs;

/// Write a PNG panel of images with their scores, masks and reconstructions
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CHECKPOINT is a run directory (its latest checkpoint), the id of a run below ./runs, `latest`, or a
step-… folder.

Examples:
  mlomae visualize latest
  mlomae visualize runs/my-run --out panel.png -n 12 --split train")]
pub(crate) struct Args {
    /// Checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The picture, `-` for stdout; default: images/<checkpoint>.png in the run directory
    #[arg(long, value_name = "PNG")]
    out: Option<PathBuf>,
    /// Number of images, drawn by the run's seed
    #[arg(short = 'n', long = "images", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    num_images: u16,
    /// Split that the images come from
    #[arg(long, default_value = "test", value_name = "train|test", value_parser = parse_split)]
    split: Split,
    #[command(flatten)]
    overlay: OverlayArgs,
}

fn parse_split(text: &str) -> Result<Split, String> {
    match Split::parse(text) {
        Ok(split @ (Split::Train | Split::Test)) => Ok(split),
        _ => Err("must be train, or test for the images that judge (data.test_split says which)".to_owned()),
    }
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let overlay: ConfigInputs = self.overlay.inputs()?;
        let loaded = LoadedCheckpoint::load(&find_run(&self.checkpoint)?, Base::Own, overlay, Purpose::Judge)?;
        loaded.experiment.tell_engine();
        let needs = Needs::of_pictures(&loaded.experiment, self.num_images.into());
        needs.check(loaded.experiment.config.run.memory_check)?;
        let panel = panel_of(&loaded, self.split, self.num_images.into())?;
        let name = format!("{}.png", loaded.name());
        let (out, is_of_run) = match (self.out, loaded.run()) {
            (Some(out), _) => (out, false),
            (None, Some(run)) => (run.join("images").join(name), true),
            (None, None) => (PathBuf::from(name), false),
        };
        let mut png = std::io::Cursor::new(Vec::new());
        panel
            .write_to(&mut png, image::ImageFormat::Png)
            .map_err(|error| CliError::file("write", &out, &std::io::Error::other(error.to_string())))?;
        if is_of_run {
            write_atomic(&out, png.get_ref())?;
        } else {
            write_out(&out, png.get_ref())?;
        }
        if !is_stdout(&out) {
            writeln!(session.out, "{}", out.display())?;
        }
        Ok(())
    }
}
