//! `mlomae eval`: the quality of an encoder's features.

use std::path::PathBuf;

use mlomae_dataflow::config::ConfigInputs;
use mlomae_model::Level;

use super::bar::Bar;
use super::config_args::OverlayArgs;
use super::run_path::find_run;
use super::session::Session;
use crate::process::error::CliError;
use crate::train::continuity::Purpose;
use crate::train::eval::{Judge, Judgement, Protocol};
use crate::train::loaded_checkpoint::{Base, LoadedCheckpoint};
use crate::train::memory::Needs;

/// Judge the encoder's features on the test split, which pretraining never saw
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CHECKPOINT is a run directory (its latest checkpoint), the id of a run below ./runs, `latest`, or a
step-… folder. The encoder is frozen; the labels of the train split are used, its test split judges.

Examples:
  mlomae eval knn latest
  mlomae eval linear runs/my-run --untrained
  mlomae eval knn runs/my-run/checkpoints/step-00000200 --set eval.knn_k=5 --json")]
pub(crate) struct Args {
    /// knn: votes of the nearest training images; linear: a linear classifier on the features
    #[arg(value_enum, id = "task", value_name = "TASK")]
    protocol: ProtocolArg,
    /// Checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    #[command(flatten)]
    overlay: OverlayArgs,
    /// Also judge an untrained encoder of the same shape, for comparison
    #[arg(long)]
    untrained: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ProtocolArg {
    Knn,
    Linear,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let overlay: ConfigInputs = self.overlay.inputs()?;
        let loaded = LoadedCheckpoint::load(&find_run(&self.checkpoint)?, Base::Own, overlay, Purpose::Judge)?;
        loaded.experiment.tell_engine();
        Needs::of_evaluation(&loaded.experiment).check(loaded.experiment.config.run.memory_check)?;
        let protocol = match self.protocol {
            ProtocolArg::Knn => Protocol::Knn,
            ProtocolArg::Linear => Protocol::Linear,
        };
        let judge = Judge::new(&loaded.experiment)?;
        let bar = Bar::new(&session.terminal, protocol.as_str());
        let judge = |theta| {
            let mut progress = |name, done, all| bar.set(name, done, all);
            judge.judge(protocol, theta, &mut progress)
        };
        let result = judge(&loaded.state.theta)?;
        let untrained = if self.untrained {
            let experiment = &loaded.experiment;
            Some(judge(&experiment.method.model.init(Level::Pretrain, experiment.config.seed).into())?)
        } else {
            None
        };
        drop(bar);
        let split = loaded.experiment.judging_split();
        let Judgement { accuracy, interval, num_train, num_test, seconds } = result;
        if self.json {
            let report = serde_json::json!({
                "task": protocol.as_str(),
                "checkpoint": loaded.folder,
                "accuracy": accuracy,
                "ci_low": interval.map(|[low, _]| low),
                "ci_high": interval.map(|[_, high]| high),
                "untrained_accuracy": untrained.map(|judgement| judgement.accuracy),
                "num_train": num_train,
                "num_test": num_test,
                "split": split,
                "num_skipped": loaded.experiment.data.bad_images.skipped().len(),
                "seconds": seconds,
            });
            writeln!(session.out, "{report:#}")?;
            return Ok(());
        }
        writeln!(
            session.out,
            "{} accuracy {:.2} % on {num_test} {split} images ({num_train} labelled train images, {}, {seconds:.1} s)",
            protocol.as_str(),
            100.0 * accuracy,
            loaded.name()
        )?;
        if let Some(untrained) = untrained {
            writeln!(session.out, "{:.2} % with an untrained encoder", 100.0 * untrained.accuracy)?;
        }
        if let Some(counts) = loaded.experiment.data.bad_images.counts_text() {
            writeln!(session.out, "bad images skipped: {counts}")?;
        }
        Ok(())
    }
}
