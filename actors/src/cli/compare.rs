//! `mlomae compare`: arms over seeds, paired, with verdicts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mlomae_dataflow::config::{ConfigInputs, most_like};
use mlomae_dataflow::flow::stop::StopFlag;
use mlomae_storage::atomic::create_dir_all;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::run_dir::RunLock;

use super::bar::Bar;
use super::config_args::{Setting, read};
use super::session::Session;
use crate::compare::cell::{Cell, CellRecord, ChildOptions, Status};
use crate::compare::cost::Costs;
use crate::compare::evaluations::kind_of;
use crate::compare::experiment::{Budget, ExperimentFile, overruled};
use crate::compare::markdown::{amount_text, value_text};
use crate::compare::output;
use crate::compare::plan::{PlannedArm, Planner, costs_path};
use crate::compare::schedule::run_cells;
use crate::compare::summary::{Choice, Known, Summary, summarise};
use crate::process::error::CliError;
use crate::watch::progress::duration_text;

/// Say whether learned masks beat a baseline: arms over seeds, paired, with verdicts
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An experiment's file:
  base = \"cifar10.toml\"               configuration under all arms: a path relative to this file, or \"quickstart\"
  seeds = [0, 1, 2, 3, 4, 5]          a seed fixes initial weights, roles, order and augmentation in all arms
  reference = \"random\"                or references = [...]: arms that the others are held against
  primary = \"linear.accuracy\"         the metric of the verdicts
  evals = [\"knn\", \"linear\"]           evaluations of every cell
  logged = [\"object_score_auc\"]       last values of these numbers of the logs, beside the evaluations
  tested = [\"learned\"]                arms that get verdicts; all but the reference without it
  set = [\"data.path=/data/cifar-10\"]  settings of all arms
  budget = { kind = \"gflop\", value = 2e6 }
                                      or outer (outer iterations), steps (level-1 steps), images, seconds; without
                                      it train.outer_iterations. Schedules end with it. gflop counts all passes,
                                      those of levels 2 and 3 included; seconds become iterations by timing the
                                      arms in turns, once, which DIR/costs.json keeps
  [judge]                             other data or labels judge than train, of images of the same side and channels:
  set = [\"data.synthetic.label=place\"]
                                      keys of data and eval over those of the arm; base = \"other.toml\" takes data
                                      from there. Images are normalised as those that trained
  [arms.random]
  ready = \"random\"                    random, untrained, published, recommended, shuffled-labels,
                                      shuffled-scores, mask-only, weight-only, multitask, frozen-policy, accident
  [arms.learned]
  set = [\"mask.strategy=token-mlp\"]   settings of the arm
  about = \"as in the paper\"           a text for the report
  [arms.learned.grid]                 chosen on the role validation and on tuning_seeds = [...]
  \"policy.lr\" = [1e-4, 1e-3]
  [arms.initial]
  untrained = true                    judges the initial encoder; steps = 0 is the same

Every cell, one arm on one seed, is an ordinary run in DIR/cells/ARM/seed-S, beside which lie its
configuration, its log and seed-S.json. A second call does what is missing: finished cells are
kept unless configuration, data, version or instruction set have changed, interrupted ones go on to
the bit, failed ones are tried again. Ctrl-C leaves everything resumable. Results do not depend on
--jobs. DIR gets report.html (a page with
charts, for a browser), summary.md, summary.json and cells.parquet, renewed after every cell; and at the
end items.parquet, what each evaluation says of every image that judged. ci_low and ci_high of a value are
its bootstrap interval over these images within the seed: verdicts rest on seeds alone.

Exit codes: 0 all cells finished, 1 some failed, and as of train.

Examples:
  mlomae compare experiment.toml --dry-run
  mlomae compare experiment.toml --out results/masks
  mlomae compare experiment.toml --out results/masks --seeds 0,1 --only random,learned")]
pub(crate) struct Args {
    /// The experiment's file
    #[arg(value_name = "EXPERIMENT")]
    experiment: PathBuf,
    /// Folder of cells and results; without it runs/compare/NAME
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the plan and what it costs; nothing is trained but a short stretch to measure
    #[arg(long)]
    dry_run: bool,
    /// Arms to run, by name; the others are shown as they are
    #[arg(long, value_delimiter = ',', value_name = "ARM")]
    only: Vec<String>,
    /// Seeds to run, of those in the file; the others are shown as they are
    #[arg(long, value_delimiter = ',', value_name = "SEED")]
    seeds: Vec<u64>,
    /// Cells at a time, which share the cores
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Single setting of all arms, as in --set data.path=/elsewhere; an arm's own are stronger; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Setting)]
    set: Vec<String>,
}

/// An experiment with where it is worked on.
struct Comparison<'a> {
    args: &'a Args,
    file: &'a ExperimentFile,
    name: String,
    out: PathBuf,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let shown = self.experiment.display().to_string();
        let file = ExperimentFile::parse(&shown, &read(&self.experiment)?)?;
        let stem = self.experiment.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let out = self.out.clone().unwrap_or_else(|| Path::new("runs/compare").join(&stem));
        self.check_choice(&file)?;
        let folder = self.experiment.parent().unwrap_or(Path::new(""));
        let base = named(folder, &file.base)?;
        let judge_base = file.judge.as_ref().and_then(|judge| judge.base.as_ref());
        let judge_base = judge_base.map(|name| named(folder, name)).transpose()?;
        let comparison = Comparison { args: &self, file: &file, name: stem, out };
        let events = session.events.clone();
        let mut planner = Planner::new(&file, &shown, base, judge_base, &self.set, &events);
        comparison.run(&mut planner, session)
    }

    /// Refuses arms and seeds that the experiment lacks, and settings that contradict its budget.
    fn check_choice(&self, file: &ExperimentFile) -> Result<(), CliError> {
        let names: Vec<&str> = file.arms.iter().map(|arm| arm.name.as_str()).collect();
        if let Some(name) = self.only.iter().find(|name| !names.contains(&name.as_str())) {
            let like = most_like(name, names.iter().copied());
            let like = like.map_or_else(String::new, |like| format!("; did you mean {like}?"));
            return Err(CliError::usage(format!("--only {name}: is no arm{like} (allowed: {})", names.join(", "))));
        }
        if let Some(seed) = self.seeds.iter().find(|seed| !file.seeds.contains(seed)) {
            let seeds: Vec<String> = file.seeds.iter().map(u64::to_string).collect();
            let line = format!("--seeds {seed}: is none of the experiment's (allowed: {})", seeds.join(", "));
            return Err(CliError::usage(line));
        }
        if matches!(file.budget, Budget::Seconds(_)) && self.jobs > 1 {
            let line = "--jobs: a budget of seconds is of a machine alone (allowed: 1)";
            return Err(CliError::usage(line.to_owned()));
        }
        let passed_over = |set: &String| overruled(set, file.budget).map(|(key, why)| (set.clone(), key, why));
        if let Some((set, key, why)) = self.set.iter().find_map(passed_over) {
            return Err(CliError::usage(format!("--set {set}: has no effect here: {why} (allowed: no {key})")));
        }
        Ok(())
    }

    /// Whether an arm is to be run.
    fn wants(&self, arm: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == arm)
    }
}

impl Comparison<'_> {
    fn run(&self, planner: &mut Planner<'_>, session: &mut Session<'_>) -> Result<(), CliError> {
        let mut arms = planner.arms(&BTreeMap::new())?;
        let mut trials = planner.trials()?;
        let mut costs = Costs::read(&costs_path(&self.out));
        let _lock = if self.args.dry_run {
            None
        } else {
            create_dir_all(&self.out)?;
            Some(RunLock::acquire(&self.out)?)
        };
        let is_dry = self.args.dry_run;
        {
            let bar = Bar::new(&session.terminal, "measuring");
            let mut progress = |done, all| bar.set("measuring", done, all);
            // The trials stand for the arms that are chosen among them.
            planner.spend(&mut trials, &mut costs, is_dry, !is_dry, &mut progress)?;
            planner.spend(&mut arms, &mut costs, is_dry, !is_dry, &mut progress)?;
        }
        let warnings = planner.warnings(&arms, self.file.seeds.len());
        if is_dry {
            return self.print_plan(&trials, &arms, &warnings, session);
        }
        for warning in &warnings {
            tracing::warn!(kind = "compare", "{warning}");
        }
        for arm in trials.iter().chain(&arms).filter(|arm| self.args.wants(&arm.name)) {
            if let Some(failure) = &arm.failure {
                tracing::warn!(
                    kind = "compare",
                    "{} failed with {}: {}",
                    arm.title(),
                    failure.exit_code,
                    failure.error
                );
            }
        }
        let stop = StopFlag::new();
        session.signals.end_gracefully(&stop);
        let options = ChildOptions {
            evals: self.file.evals.clone(),
            logged: self.file.logged.clone(),
            jobs: usize::from(self.args.jobs),
            stop,
        };
        let tuning = self.tune(&trials, &options, session)?;
        if let Some(choices) = tuning.as_ref().filter(|choices| !choices.is_empty()) {
            let chosen = |choice: &Choice| {
                let grid = &self.file.arms.iter().find(|arm| arm.name == choice.arm).map_or(&[][..], |arm| &arm.grid);
                let set = &choice.trials[choice.chosen].0;
                let set = set[set.len().saturating_sub(grid.len())..].to_vec();
                tracing::info!(kind = "compare", "{}: chosen on the role validation: {}", choice.arm, set.join(" "));
                (choice.arm.clone(), set)
            };
            arms = planner.arms(&choices.iter().map(chosen).collect())?;
            planner.spend(&mut arms, &mut costs, false, true, &mut |_, _| {})?;
        }
        let Some(tuning) = tuning else { return self.end(&options, 0, None, session) };
        let cells = self.cells(&arms)?;
        let (summary, num_failed) = self.run_cells(&arms, &cells, &options, &warnings, &tuning, session)?;
        self.end(&options, num_failed, Some(&summary), session)
    }

    /// All cells, seeds outermost.
    fn cells(&self, arms: &[PlannedArm]) -> Result<Vec<Cell>, CliError> {
        let seeds = self.file.seeds.iter();
        seeds.flat_map(|seed| arms.iter().map(|arm| arm.cell(&self.out, *seed, &self.file.logged))).collect()
    }

    fn is_wanted(&self, cell: &Cell) -> bool {
        self.args.wants(&cell.arm) && (self.args.seeds.is_empty() || self.args.seeds.contains(&cell.seed))
    }

    /// Runs the trials of all grids and chooses. None if it was interrupted.
    fn tune(
        &self,
        trials: &[PlannedArm],
        options: &ChildOptions,
        session: &Session<'_>,
    ) -> Result<Option<Vec<Choice>>, CliError> {
        let of = |trials: &mut dyn Iterator<Item = &PlannedArm>| -> Result<Vec<Cell>, CliError> {
            let trials: Vec<&PlannedArm> = trials.collect();
            let seeds = self.file.tuning_seeds.iter();
            seeds.flat_map(|seed| trials.iter().map(|trial| trial.cell(&self.out, *seed, &self.file.logged))).collect()
        };
        let cells = of(&mut trials.iter().filter(|trial| self.args.wants(&trial.name)))?;
        let mut progress = Progress::new(&cells, options, session);
        run_cells(&cells, options, &mut |index, record| {
            progress.tell(&cells[index], record);
            Ok(())
        })?;
        drop(progress);
        if options.stop.reason().is_some() {
            return Ok(None);
        }
        let is_higher_better = kind_of(&self.file.primary).is_none_or(|kind| kind.is_higher_better);
        let mut choices = Vec::new();
        for arm in self.file.arms.iter().filter(|arm| !arm.grid.is_empty()) {
            let mut found = Vec::new();
            let mut is_done = true;
            for trial in trials.iter().filter(|trial| trial.name == arm.name) {
                let mut values = Vec::new();
                for cell in of(&mut std::iter::once(trial))? {
                    let record = cell.record();
                    let is_finished = cell.is_finished(&record, &options.evals);
                    is_done &= is_finished || record.status == Status::Failed;
                    values.push(record.value(&self.file.primary).filter(|_| is_finished));
                }
                found.push((trial.set.clone(), values));
            }
            // An arm that is not to be run stays as it is: chosen before, or not chosen.
            if !is_done && !self.args.wants(&arm.name) {
                continue;
            }
            let Some(chosen) = Choice::best(&found, is_higher_better) else {
                let line = format!("arms.{}.grid: every trial has a failed cell, so that none can be chosen", arm.name);
                return Err(CliError::new(ExitCode::Failed, line));
            };
            choices.push(Choice { arm: arm.name.clone(), metric: self.file.primary.clone(), trials: found, chosen });
        }
        Ok(Some(choices))
    }

    /// Runs the cells that are wanted; the results are written after each. Gives the number of failed ones too.
    fn run_cells(
        &self,
        arms: &[PlannedArm],
        cells: &[Cell],
        options: &ChildOptions,
        warnings: &[String],
        tuning: &[Choice],
        session: &Session<'_>,
    ) -> Result<(Summary, usize), CliError> {
        let write = |with_curves: bool| -> Result<Summary, CliError> {
            let known: Vec<Known<'_>> = cells.iter().map(|cell| (cell, cell.record())).collect();
            let (warnings, tuning) = (warnings.to_vec(), tuning.to_vec());
            let summary = summarise(&self.name, self.file, &self.file.seeds, arms, &known, warnings, tuning);
            output::write(&self.out, &summary, &known, self.file, with_curves)?;
            Ok(summary)
        };
        write(false)?;
        let wanted: Vec<Cell> = cells.iter().filter(|cell| self.is_wanted(cell)).cloned().collect();
        let mut progress = Progress::new(&wanted, options, session);
        run_cells(&wanted, options, &mut |index, record| {
            progress.tell(&wanted[index], record);
            write(false).map(|_| ())
        })?;
        drop(progress);
        let summary = write(true)?;
        let num_failed = wanted.iter().filter(|cell| cell.record().status == Status::Failed).count();
        Ok((summary, num_failed))
    }

    /// Prints the results, and answers as the comparison ended.
    fn end(
        &self,
        options: &ChildOptions,
        num_failed: usize,
        summary: Option<&Summary>,
        session: &mut Session<'_>,
    ) -> Result<(), CliError> {
        if let Some(summary) = summary {
            print_verdicts(summary, session)?;
            writeln!(session.out, "results     {}", self.out.join("report.html").display())?;
        }
        if let Some(reason) = options.stop.reason() {
            tracing::info!(kind = "compare", "interrupted; the same command goes on");
            return Err(CliError::silent(reason.exit_code()));
        }
        if num_failed > 0 {
            let cells = if num_failed == 1 { "cell" } else { "cells" };
            let line = format!("{num_failed} {cells} failed, see {}", self.out.join("summary.md").display());
            return Err(CliError::new(ExitCode::Failed, line));
        }
        Ok(())
    }

    /// Prints what would be done and what it costs.
    fn print_plan(
        &self,
        trials: &[PlannedArm],
        arms: &[PlannedArm],
        warnings: &[String],
        session: &mut Session<'_>,
    ) -> Result<(), CliError> {
        let out = &mut session.out;
        writeln!(out, "budget      {}", self.file.budget)?;
        writeln!(out, "primary     {}", self.file.primary)?;
        if let Some(judge) = &self.file.judge {
            writeln!(out, "judged by   {judge}; with the normalisation of the training")?;
        }
        writeln!(out, "machine     {}", crate::compare::cost::machine())?;
        let width = trials.iter().chain(arms).map(|arm| arm.title().len()).max().unwrap_or(0).max(4);
        writeln!(
            out,
            "\n{:<width$} {:>8} {:>8} {:>9} {:>9} {:>10} {:>9}  cells",
            "arm", "outer", "steps", "images", "labels", "GFLOP", "time"
        )?;
        let (mut gflop, mut seconds, mut num_missing, mut num_all, mut num_failed) = (0.0, 0.0, 0usize, 0usize, 0usize);
        for arm in trials.iter().chain(arms) {
            let seeds = if arm.trial.is_some() { &self.file.tuning_seeds } else { &self.file.seeds };
            let (mut missing, mut took) = (0, Vec::new());
            for seed in seeds {
                let cell = arm.cell(&self.out, *seed, &self.file.logged)?;
                let record = cell.record();
                if cell.failure.is_some() {
                    continue;
                }
                if cell.is_finished(&record, &self.file.evals) {
                    took.push(record.seconds + record.judge_seconds);
                } else if arm.trial.is_some() && self.args.wants(&arm.name) || self.is_wanted(&cell) {
                    missing += 1;
                }
            }
            // Cells that are done tell the time better than a short stretch.
            let each = match took.is_empty() {
                true => arm.expected_seconds().unwrap_or(0.0),
                false => took.iter().sum::<f64>() / took.len() as f64,
            };
            num_all += seeds.len();
            if let Some(failure) = &arm.failure {
                writeln!(out, "{:<width$} failed with {}: {}", arm.title(), failure.exit_code, failure.error)?;
                num_failed += usize::from(self.args.wants(&arm.name));
                continue;
            }
            let amount = arm.amount();
            gflop += amount.gflop * f64::from(missing);
            seconds += each * f64::from(missing);
            num_missing += missing as usize;
            let chosen = if arm.trial.is_none() && trials.iter().any(|trial| trial.name == arm.name) {
                ", with what its trials choose"
            } else {
                ""
            };
            writeln!(
                out,
                "{:<width$} {:>8} {:>8} {:>9} {:>9} {:>10} {:>9}  {missing} of {} to run{chosen}",
                arm.title(),
                amount.outer,
                amount.steps,
                amount_text(amount.images as f64),
                amount_text(amount.labels as f64),
                amount_text(amount.gflop),
                time_text(each),
                seeds.len()
            )?;
        }
        writeln!(
            out,
            "\n{num_missing} of {num_all} cells to run: {} GFLOP, {} one after the other; times are of finished cells \
             with their evaluations, else of a short stretch of training, to which evaluations come",
            amount_text(gflop),
            time_text(seconds)
        )?;
        for warning in warnings {
            writeln!(out, "note        {warning}")?;
        }
        if num_failed > 0 {
            let line = format!("{num_failed} of {} arms cannot be run, see above", trials.len() + arms.len());
            return Err(CliError::new(ExitCode::Failed, line));
        }
        Ok(())
    }
}

/// The configuration that an experiment's file names: a file beside it in `folder`, or the embedded one.
fn named(folder: &Path, name: &str) -> Result<ConfigInputs, CliError> {
    let path = folder.join(name);
    if name == "quickstart" && !path.exists() {
        return Ok(ConfigInputs::quickstart());
    }
    Ok(ConfigInputs::default().layer(&path.display().to_string(), &read(&path)?))
}

fn seeds_text(number: usize) -> String {
    if number == 1 { "1 seed".to_owned() } else { format!("{number} seeds") }
}

fn time_text(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.1} s") } else { duration_text(seconds) }
}

/// Prints the primary metric of every arm against every reference.
fn print_verdicts(summary: &Summary, session: &mut Session<'_>) -> Result<(), CliError> {
    use crate::compare::markdown::{difference_text, interval_text, p_text, verdict_text};
    let out = &mut session.out;
    let width = summary.arms.iter().map(|arm| arm.name.len()).max().unwrap_or(0).max(9);
    for arm in &summary.arms {
        let value = arm.values.get(&summary.primary);
        let value = value.map_or("-".to_owned(), |value| value_text(value.mean, &value.unit));
        let states = crate::compare::tables::states_text(arm);
        writeln!(out, "{:<width$} {} {value}; cells: {states}", arm.name, summary.primary)?;
    }
    for reference in &summary.references {
        writeln!(out, "\nagainst {reference}")?;
        let of =
            |one: &&crate::compare::summary::Comparison| one.reference == *reference && one.metric == summary.primary;
        for one in summary.comparisons.iter().filter(of) {
            writeln!(
                out,
                "{:<width$} {} {}, p {}, {}: {}",
                one.arm,
                difference_text(one.paired.mean, &one.unit),
                interval_text(one),
                p_text(one.p_holm.unwrap_or(one.paired.p)),
                seeds_text(one.paired.num_pairs),
                verdict_text(one)
            )?;
        }
    }
    writeln!(out)?;
    Ok(())
}

/// Tells of cells as they end: lines, and on a terminal a bar.
struct Progress {
    bar: Bar,
    num_done: usize,
    num_all: usize,
    begin: Instant,
}

impl Progress {
    fn new(cells: &[Cell], options: &ChildOptions, session: &Session<'_>) -> Self {
        let num_done = cells.iter().filter(|cell| cell.is_finished(&cell.record(), &options.evals)).count();
        let bar = Bar::new(&session.terminal, "cells");
        bar.set("cells", num_done, cells.len());
        if num_done > 0 {
            tracing::info!(kind = "compare", "{num_done} of {} cells are finished already", cells.len());
        }
        Self { bar, num_done, num_all: cells.len(), begin: Instant::now() }
    }

    fn tell(&mut self, cell: &Cell, record: &CellRecord) {
        let after = time_text(self.begin.elapsed().as_secs_f64());
        match record.status {
            Status::Finished => {
                self.num_done += 1;
                self.bar.set("cells", self.num_done, self.num_all);
                let values: Vec<String> =
                    record.metrics.iter().map(|m| format!("{} {}", m.name, value_text(m.value, &m.unit))).collect();
                tracing::info!(
                    kind = "compare",
                    "{}: {}, trained in {} ({} of {} cells, {after})",
                    cell.title,
                    values.join(", "),
                    time_text(record.seconds),
                    self.num_done,
                    self.num_all
                );
            }
            Status::Failed => {
                let code = record.exit_code.map_or_else(String::new, |code| format!(" with {code}"));
                let error = record.error.as_deref().unwrap_or("no message");
                tracing::warn!(kind = "compare", "{} failed{code}: {error}", cell.title);
            }
            _ => tracing::info!(kind = "compare", "{}: {}", cell.title, record.status.as_str()),
        }
    }
}
