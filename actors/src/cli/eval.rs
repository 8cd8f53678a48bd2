//! `mlomae eval`: the quality of an encoder's features.

use std::path::PathBuf;

use mlomae_dataflow::config::ConfigInputs;
use mlomae_model::Level;

use super::Session;
use super::bar::Bar;
use super::run_arg::{OverlayArgs, find_run};
use crate::process::error::CliError;
use crate::train::continuity::Purpose;
use crate::train::eval::{Judge, Judgement, Task};
use crate::train::memory::Needs;
use crate::train::trained::{Base, Trained};

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
    #[arg(value_enum)]
    task: TaskArg,
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
enum TaskArg {
    Knn,
    Linear,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let overlay: ConfigInputs = self.overlay.inputs()?;
        let trained = Trained::load(&find_run(&self.checkpoint)?, Base::Own, overlay, Purpose::Judge)?;
        Needs::of_evaluation(&trained.prepared).check(trained.prepared.config.run.memory_check)?;
        let task = match self.task {
            TaskArg::Knn => Task::Knn,
            TaskArg::Linear => Task::Linear,
        };
        let judge = Judge::new(&trained.prepared)?;
        let bar = Bar::new(&session.terminal, task.as_str());
        let judge = |theta| {
            let mut progress = |name, done, all| bar.set(name, done, all);
            judge.judge(task, theta, &mut progress)
        };
        let result = judge(&trained.state.theta)?;
        let untrained = if self.untrained {
            let prepared = &trained.prepared;
            Some(judge(&prepared.method.model.init(Level::Pretrain, prepared.config.seed).into())?)
        } else {
            None
        };
        drop(bar);
        let split = trained.prepared.data.test.as_ref().map_or("test", |test| test.info().split.as_str());
        let Judgement { accuracy, num_train, num_test, seconds } = result;
        if self.json {
            let report = serde_json::json!({
                "task": task.as_str(),
                "checkpoint": trained.folder,
                "accuracy": accuracy,
                "untrained_accuracy": untrained.map(|judgement| judgement.accuracy),
                "num_train": num_train,
                "num_test": num_test,
                "split": split,
                "num_skipped": trained.prepared.data.bad_images.skipped().len(),
                "seconds": seconds,
            });
            writeln!(session.out, "{report:#}")?;
            return Ok(());
        }
        writeln!(
            session.out,
            "{} accuracy {:.2} % on {num_test} {split} images ({num_train} labelled train images, {}, {seconds:.1} s)",
            task.as_str(),
            100.0 * accuracy,
            trained.name()
        )?;
        if let Some(untrained) = untrained {
            writeln!(session.out, "{:.2} % with an untrained encoder", 100.0 * untrained.accuracy)?;
        }
        if let Some(counts) = trained.prepared.data.bad_images.counts_text() {
            writeln!(session.out, "bad images skipped: {counts}")?;
        }
        Ok(())
    }
}
