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
use crate::train::eval::{Judge, JudgedFigure, Judgement, Protocol};
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
  mlomae eval knn runs/my-run/checkpoints/step-00000200 --set eval.knn_k=5 --json
  mlomae eval probe latest --untrained")]
pub(crate) struct Args {
    /// knn: votes of the nearest training images; linear: a linear classifier on the features; probe: the tasks' own
    /// heads on the frozen encoder, by their own metrics
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
    Probe,
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
            ProtocolArg::Probe => Protocol::Probe,
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
        let Judgement { figures, num_train, num_test, seconds } = result;
        let of_untrained = |name: &str| {
            let judged = untrained.as_ref().and_then(|judged| judged.figures.iter().find(|figure| figure.name == name));
            judged.map(|figure| figure.value)
        };
        if self.json {
            let mut report = serde_json::json!({
                "task": protocol.as_str(),
                "checkpoint": loaded.folder,
                "num_train": num_train,
                "num_test": num_test,
                "split": split,
                "num_skipped": loaded.experiment.data.bad_images.skipped().len(),
                "seconds": seconds,
            });
            if let Some(main) = figures.first() {
                report["ci_low"] = main.interval.map(|[low, _]| low).into();
                report["ci_high"] = main.interval.map(|[_, high]| high).into();
            }
            for figure in &figures {
                report[figure.name.as_ref()] = figure.value.into();
                report[format!("untrained_{}", figure.name)] = of_untrained(&figure.name).into();
            }
            if protocol == Protocol::Probe {
                let row = |figure: &JudgedFigure| {
                    serde_json::json!({
                        "name": figure.name,
                        "unit": figure.unit,
                        "value": figure.value,
                        "ci_low": figure.interval.map(|[low, _]| low),
                        "ci_high": figure.interval.map(|[_, high]| high),
                        "untrained": of_untrained(&figure.name),
                    })
                };
                report["metrics"] = figures.iter().map(row).collect();
            }
            writeln!(session.out, "{report:#}")?;
            return Ok(());
        }
        let of_images = format!(
            "on {num_test} {split} images ({num_train} labelled train images, {}, {seconds:.1} s)",
            loaded.name()
        );
        if protocol == Protocol::Probe {
            writeln!(session.out, "probe {of_images}")?;
            for figure in &figures {
                let interval = figure.interval.map_or_else(String::new, |[low, high]| match figure.unit {
                    "share" => format!(" [{:.2}, {:.2}]", 100.0 * low, 100.0 * high),
                    _ => format!(" [{low:.4}, {high:.4}]"),
                });
                let other = of_untrained(&figure.name).map_or_else(String::new, |value| {
                    let other = JudgedFigure { value, ..figure.clone() };
                    format!(", {} with an untrained encoder", other.value_text())
                });
                writeln!(session.out, "  {:24}{}{interval}{other}", figure.name, figure.value_text())?;
            }
        } else {
            for figure in &figures {
                writeln!(session.out, "{} {} {} {of_images}", protocol.as_str(), figure.name, figure.value_text())?;
                if let Some(value) = of_untrained(&figure.name) {
                    writeln!(session.out, "{:.2} % with an untrained encoder", 100.0 * value)?;
                }
            }
        }
        if let Some(counts) = loaded.experiment.data.bad_images.counts_text() {
            writeln!(session.out, "bad images skipped: {counts}")?;
        }
        Ok(())
    }
}
