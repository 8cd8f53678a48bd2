//! The end of `mlomae train`: the encoder is judged, and the final report printed.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use mlomae_dataflow::counts::{Outer, Step};
use mlomae_dataflow::flow::exit::panic_message;
use mlomae_dataflow::input::bad_images::SkippedImage;
use mlomae_dataflow::run::sink::{CheckpointTensors, Latest};
use mlomae_dataflow::run::state::TrainState;
use mlomae_model::Level;
use mlomae_storage::checkpoint;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::logs::Table;

use super::bar::Bar;
use super::overview::count_text;
use crate::process::error::CliError;
use crate::process::terminal::Terminal;
use crate::train::eval::{Judge, Judgement, Protocol};
use crate::train::experiment::Experiment;
use crate::train::resumption::Finished;
use crate::train::run::Run;
use crate::train::training::TrainingReport;
use crate::watch::progress::duration_text;
use crate::watch::stage_times::stage_times;

/// The k-NN accuracies of the final encoder and of an untrained one.
pub(super) struct FinalJudgement {
    trained: Judgement,
    untrained: Judgement,
    checkpoint: String,
    step: Step,
    /// Images that were passed over while judging.
    skipped: Vec<SkippedImage>,
}

impl FinalJudgement {
    /// Writes both to the `evals` table, and gives them.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn write(self, run: &Run, experiment: &Experiment) -> Result<(Judgement, Judgement), CliError> {
        let Self { trained, untrained, checkpoint, step, skipped } = self;
        let results = [(Protocol::Knn, "accuracy", trained), (Protocol::Knn, "accuracy_untrained", untrained)];
        run.write_evals(experiment, &checkpoint, step, &experiment.judging_split(), &results, &skipped)?;
        Ok((trained, untrained))
    }
}

/// Judges the final encoder beside an untrained one. None if no split judges. Writes nothing.
///
/// # Errors
/// If the checkpoint or the data cannot be read.
pub(super) fn final_judgement(
    run: &Run,
    experiment: &Experiment,
    terminal: &Terminal,
) -> Result<Option<FinalJudgement>, CliError> {
    if experiment.data.test.is_none() {
        tracing::warn!(kind = "evaluation_skipped", "k-NN is skipped, {}", experiment.data.test_role.text);
        return Ok(None);
    }
    let folder = checkpoint::resolve(run.path())?;
    let loaded = checkpoint::load(&folder)?;
    let state = TrainState::restore(&experiment.method, &CheckpointTensors(&loaded), &loaded.state)
        .map_err(|error| CliError::new(ExitCode::BadData, format!("{error}: {}", folder.display())))?;
    let judge = Judge::new(experiment)?;
    let skipped_before = experiment.data.bad_images.skipped();
    let bar = Bar::new(terminal, "k-NN");
    let mut progress = |name, done, all| bar.set(name, done, all);
    let trained = judge.judge(Protocol::Knn, &state.theta, &mut progress)?;
    let fresh = experiment.method.model.init(Level::Pretrain, experiment.config.seed).into();
    let untrained = judge.judge(Protocol::Knn, &fresh, &mut progress)?;
    let checkpoint = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // The log stage has ended: what it can no longer write is written with the results.
    let mut skipped = experiment.data.bad_images.skipped();
    skipped.retain(|image| !skipped_before.contains(image));
    Ok(Some(FinalJudgement { trained, untrained, checkpoint, step: Step(loaded.step), skipped }))
}

/// What `judge` answers, whose failure costs nothing of the run: it says that the training is done and what can be done
/// later. A panic is a failure too.
///
/// # Errors
/// As `judge`, with the failure's own exit code.
pub(super) fn judge_at_end<T>(run: &Run, judge: impl FnOnce() -> Result<T, CliError>) -> Result<T, CliError> {
    let judged = catch_unwind(AssertUnwindSafe(judge)).unwrap_or_else(|payload| {
        let line = format!("internal error: {}", panic_message(payload.as_ref()));
        Err(CliError::new(ExitCode::Internal, line))
    });
    judged.map_err(|error| match error {
        CliError::Failed { lines, exit_code } if !lines.is_empty() => {
            let path = run.path().display();
            let line = format!(
                "the training is finished and saved, but its evaluation failed: {}; \
                 `mlomae eval knn {path}` repeats it",
                lines.join("; ")
            );
            CliError::new(exit_code, line)
        }
        other => other,
    })
}

/// Prints what the process did, and where each stage's time went.
#[allow(clippy::too_many_arguments)]
pub(super) fn print_report(
    out: &mut dyn Write,
    run: &Run,
    experiment: &Experiment,
    report: &TrainingReport,
    latest: &Latest,
    first_outer: Outer,
    judged: Option<&(Judgement, Judgement)>,
    num_evals: u64,
    begin: Instant,
) -> Result<(), CliError> {
    let latest = latest.get();
    let method = &experiment.method;
    let first_step = first_outer.first_step(method.unroll);
    let step = latest.step.max(first_step);
    let seconds = begin.elapsed().as_secs_f64();
    let num_steps = step.since(first_step);
    writeln!(out, "run         {}", run.path().display())?;
    writeln!(out, "iterations  {} of {} outer, {step} level-1 steps", step.outer(method.unroll), method.total_outer)?;
    writeln!(
        out,
        "time        {}, {} images trained on by this process",
        duration_text(seconds),
        count_text(usize::try_from(num_steps).unwrap_or(0) * experiment.config.pretrain.batch)
    )?;
    let loss = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    writeln!(
        out,
        "losses      pretrain {}, finetune {}, mask {}",
        loss(latest.pretrain_loss),
        loss(latest.finetune_loss),
        loss(latest.validation_loss)
    )?;
    if let (Some(object), Some(background)) = (latest.object_mask_share, latest.background_mask_share) {
        let auc = latest.object_score_auc.map_or_else(String::new, |auc| format!("; scores find it with AUC {auc:.3}"));
        let (object, background) = (100.0 * object, 100.0 * background);
        writeln!(out, "object      {object:.0} % of its patches masked, {background:.0} % of the others{auc}")?;
    }
    print_judgement(out, run.path(), experiment, judged)?;
    // The evaluation at the end is written behind the log stage.
    let num_later = |table| if table == Table::Evals { num_evals } else { 0 };
    let rows = Table::ALL.map(|table| format!("{table} {}", report.rows.get(table) + num_later(table)));
    writeln!(out, "log rows    {}", rows.join(", "))?;
    if report.outcome.num_restarts() > 0 {
        writeln!(out, "restarts    {}, see the events table", report.outcome.num_restarts())?;
    }
    if !report.samples.is_empty() {
        writeln!(out, "\n{}", stage_times(&report.samples))?;
    }
    Ok(())
}

/// Prints how a run ended that had ended before.
pub(super) fn print_finished(out: &mut dyn Write, finished: &Finished) -> Result<(), CliError> {
    let Finished { experiment, dir, outer, step, judged } = finished;
    writeln!(out, "run         {}", dir.path().display())?;
    writeln!(out, "iterations  {outer} of {} outer, {step} level-1 steps; finished", experiment.method.total_outer)?;
    print_judgement(out, dir.path(), experiment, judged.as_ref())
}

/// Prints the evaluation at the end, and the checkpoint that it was of.
fn print_judgement(
    out: &mut dyn Write,
    run: &Path,
    experiment: &Experiment,
    judged: Option<&(Judgement, Judgement)>,
) -> Result<(), CliError> {
    if let Some((trained, untrained)) = judged {
        writeln!(
            out,
            "k-NN        {:.1} % of {} {} images; {:.1} % with an untrained encoder",
            100.0 * trained.accuracy,
            trained.num_test,
            experiment.data.test.as_ref().map_or("test", |test| test.info().split.as_str()),
            100.0 * untrained.accuracy
        )?;
    } else if experiment.data.test.is_none() {
        writeln!(out, "k-NN        skipped, {}", experiment.data.test_role.text)?;
    }
    if let Some(counts) = experiment.data.bad_images.counts_text() {
        writeln!(out, "skipped     bad images: {counts}; events name them")?;
    }
    if let Ok(folder) = checkpoint::resolve(run) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        writeln!(out, "checkpoint  checkpoints/{name}")?;
    }
    Ok(())
}
