//! A cell: one arm on one seed. It is an ordinary run, trained and judged by child processes of this program, so that
//! whatever happens in it happens to it alone; beside it lies a record of how far it is.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mlomae_dataflow::config::Config;
use mlomae_dataflow::flow::stop::StopFlag;
use mlomae_kernels as kernels;
use mlomae_storage::atomic::{create_dir_all, write_atomic};
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::run_dir::RunDir;
use mlomae_storage::run_dir::RunLock;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::evaluations::{MetricValue, metric_names};
use super::plan::Amount;
use crate::process::error::CliError;
use crate::train::experiment::config_toml;

/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a run may still be held by a process that an earlier comparison has left behind.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes at the end of a cell's log in which its error is looked for.
const LOG_TAIL: u64 = 16 << 10;

/// The images that a cell is judged on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum JudgedOn {
    /// The split that judges, as `mlomae eval` has it.
    Test,
    /// The role validation of the train split: for choices.
    Validation,
}

impl JudgedOn {
    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }
}

/// One arm on one seed.
#[derive(Debug, Clone)]
pub struct Cell {
    /// In the words of messages.
    pub title: String,
    /// The arm.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// Hash of what its weights depend on.
    pub key: String,
    /// Hash of how it is judged.
    pub judge_key: String,
    /// Its run directory.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: Config,
    /// The configuration that judges it, if other data judge than train.
    pub judge: Option<Config>,
    /// Whether it is the initial encoder.
    pub untrained: bool,
    /// What it is judged on.
    pub on: JudgedOn,
    /// What it takes.
    pub amount: Amount,
    /// Why it cannot be run, if that is known before.
    pub failure: Option<Failure>,
}

/// Why an arm cannot be run: its cost could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Exit code of a process that ended so.
    pub exit_code: i32,
    /// The error, in one line.
    pub error: String,
}

impl Failure {
    /// The failure for a reader of the arm's cells.
    #[must_use]
    pub fn of(error: &CliError) -> Self {
        let text = error.to_string().replace('\n', "; ");
        Self { exit_code: error.exit_code().into(), error: format!("its cost cannot be measured: {text}") }
    }
}

/// How far a cell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nothing of it is there that counts.
    Pending,
    /// A process began to train it and has not noted an end.
    Begun,
    /// A signal ended it; it can be resumed.
    Interrupted,
    /// It is trained, and not judged yet.
    Trained,
    /// It is trained and judged.
    Finished,
    /// It ended by an error.
    Failed,
}

impl Status {
    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Begun => "begun",
            Self::Interrupted => "interrupted",
            Self::Trained => "trained",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// What is known of a cell, kept as `seed-S.json` beside its run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellRecord {
    /// The cell's key.
    pub key: String,
    /// How its metrics were judged.
    pub judge_key: String,
    /// How far it is.
    pub status: Status,
    /// Exit code of the process that failed; 128 and the signal's number if one killed it.
    pub exit_code: Option<i32>,
    /// Its error.
    pub error: Option<String>,
    /// Results.
    pub metrics: Vec<MetricValue>,
    /// Seconds of training, over all its processes.
    pub seconds: f64,
    /// Seconds of the process that judged it.
    pub judge_seconds: f64,
    /// Cells that ran at a time while this one was trained; its seconds are shared with them.
    pub jobs: usize,
}

impl CellRecord {
    fn new(cell: &Cell, status: Status) -> Self {
        let (key, judge_key) = (cell.key.clone(), cell.judge_key.clone());
        Self {
            key,
            judge_key,
            status,
            exit_code: None,
            error: None,
            metrics: Vec::new(),
            seconds: 0.0,
            judge_seconds: 0.0,
            jobs: 1,
        }
    }

    /// The value of a metric.
    #[must_use]
    pub fn value(&self, metric: &str) -> Option<f64> {
        self.metrics.iter().find(|value| value.name == metric).map(|value| value.value)
    }
}

/// How children run.
#[derive(Debug, Clone)]
pub struct ChildOptions {
    /// Evaluations of every cell.
    pub evals: Vec<String>,
    /// Numbers of the logs that are read beside them.
    pub logged: Vec<String>,
    /// Cells at a time.
    pub jobs: usize,
    /// Raised when the comparison shall end.
    pub stop: StopFlag,
}

/// How a child ended.
enum Ended {
    Well,
    /// With an exit code, and what it said.
    Badly(i32, String),
    /// Because the comparison ends.
    Stopped,
}

impl Cell {
    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{extension}"));
        self.dir.with_file_name(name)
    }

    /// Where its record is kept.
    #[must_use]
    pub fn record_path(&self) -> PathBuf {
        self.beside("json")
    }

    /// Where is kept what its evaluations say of every image.
    #[must_use]
    pub fn items_path(&self) -> PathBuf {
        self.beside("items.parquet")
    }

    /// What is known of it; pending if nothing is, or if its record is of another key. One of which it is not kept what
    /// is said of each image is yet to be judged.
    #[must_use]
    pub fn record(&self) -> CellRecord {
        if let Some(Failure { exit_code, error }) = &self.failure {
            let (exit_code, error) = (Some(*exit_code), Some(error.clone()));
            return CellRecord { exit_code, error, ..CellRecord::new(self, Status::Failed) };
        }
        let record = std::fs::read(self.record_path()).ok();
        let record: Option<CellRecord> = record.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let record = record.filter(|record| record.key == self.key);
        let mut record = record.unwrap_or_else(|| CellRecord::new(self, Status::Pending));
        if record.status == Status::Finished && !self.items_path().is_file() {
            record.status = Status::Trained;
        }
        record
    }

    /// Whether its record has everything that `evals` ask for.
    #[must_use]
    pub fn is_finished(&self, record: &CellRecord, evals: &[String]) -> bool {
        let has = |name: &String| record.metrics.iter().any(|metric| metric.name == *name);
        record.status == Status::Finished
            && record.judge_key == self.judge_key
            && evals.iter().flat_map(|eval| metric_names(eval)).all(|name| has(&name))
    }

    /// Trains and judges what is missing of it, and notes every step in its record.
    ///
    /// # Errors
    /// If the record or what it needs cannot be written. That the cell itself fails is no error, but in its record.
    pub fn run(&self, options: &ChildOptions) -> Result<CellRecord, CliError> {
        let mut record = self.record();
        if self.is_finished(&record, &options.evals) {
            return Ok(record);
        }
        create_dir_all(self.dir.parent().unwrap_or(Path::new(".")))?;
        let config_path = self.beside("toml");
        write_atomic(&config_path, config_toml(&self.config)?.as_bytes())?;
        if let Some(judge) = &self.judge {
            write_atomic(&self.beside("judge.toml"), config_toml(judge)?.as_bytes())?;
        }
        let is_trained = matches!(record.status, Status::Trained | Status::Finished);
        if !is_trained && !self.untrained {
            self.wait_for_lock(options)?;
            // A record of this key that is not pending is of the run that lies there.
            let resumes = record.status != Status::Pending && RunDir::open(&self.dir).is_ok();
            if record.status == Status::Pending && RunDir::open(&self.dir).is_ok() {
                tracing::info!(
                    kind = "compare",
                    "{}: the run that lies there is of another configuration, version or data, and is moved aside",
                    self.title
                );
            }
            record = CellRecord { jobs: options.jobs, ..CellRecord::new(self, Status::Begun) };
            self.write(&record)?;
            let ended = self.child(&self.train_args(&config_path, resumes, options), None, options)?;
            record.seconds = RunDir::open(&self.dir).and_then(|run| run.record()).map_or(0.0, |run| run.wall_s);
            if self.note(&mut record, ended, Status::Trained)?.is_none() {
                return Ok(record);
            }
        }
        let answer = self.beside("answer");
        let is_new = record.status == Status::Pending;
        if is_new {
            self.write(&CellRecord::new(self, Status::Begun))?;
        }
        let begin = Instant::now();
        let ended = self.child(&self.judge_args(&config_path, is_new, options), Some(&answer), options)?;
        if self.note(&mut record, ended, Status::Trained)?.is_some() {
            let bytes = std::fs::read(&answer).map_err(|error| CliError::file("read", &answer, &error))?;
            match serde_json::from_slice(&bytes) {
                Ok(metrics) => {
                    record = CellRecord {
                        metrics,
                        judge_seconds: begin.elapsed().as_secs_f64(),
                        judge_key: self.judge_key.clone(),
                        status: Status::Finished,
                        exit_code: None,
                        error: None,
                        ..record
                    };
                }
                Err(error) => {
                    record.status = Status::Failed;
                    record.error = Some(format!("its evaluation gave no results: {error}"));
                }
            }
            self.write(&record)?;
        }
        // Ignored: what is in it is in the record.
        let _ = std::fs::remove_file(&answer);
        Ok(record)
    }

    /// Notes the end of a child; answers with nothing unless it ended well.
    fn note(&self, record: &mut CellRecord, ended: Ended, well: Status) -> Result<Option<()>, CliError> {
        let was_trained = matches!(record.status, Status::Trained | Status::Finished);
        let is_well = matches!(ended, Ended::Well);
        (record.status, record.exit_code, record.error) = match ended {
            Ended::Well => (well, None, None),
            // What is trained stays so, whatever becomes of its evaluation.
            Ended::Stopped if was_trained => (Status::Trained, None, None),
            Ended::Stopped => (Status::Interrupted, None, None),
            Ended::Badly(code, error) => (Status::Failed, Some(code), Some(error)),
        };
        self.write(record)?;
        Ok(is_well.then_some(()))
    }

    fn write(&self, record: &CellRecord) -> Result<(), CliError> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| CliError::new(ExitCode::Internal, format!("record of {}: {error}", self.title)))?;
        Ok(write_atomic(&self.record_path(), &text)?)
    }

    /// A comparison that was killed may have left a child that is about to end.
    fn wait_for_lock(&self, options: &ChildOptions) -> Result<(), CliError> {
        let begin = Instant::now();
        while self.dir.is_dir() && RunLock::is_held(&self.dir) {
            if begin.elapsed() > PATIENCE {
                let line = format!("{} is in use by another process: {}", self.title, self.dir.display());
                return Err(CliError::new(ExitCode::Io, line));
            }
            if options.stop.reason().is_some() {
                break;
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn train_args(&self, config: &Path, resumes: bool, options: &ChildOptions) -> Vec<String> {
        let mut args = vec!["train".to_owned()];
        let dir = self.dir.display().to_string();
        if resumes {
            args.extend(["--resume".to_owned(), dir]);
        } else {
            args.extend([config.display().to_string(), "--run-dir".to_owned(), dir, "--restart".to_owned()]);
        }
        args.push("--quiet".to_owned());
        if options.jobs > 1 {
            // Cells share the cores; the number of threads changes no bit.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let share = (cores / options.jobs).max(1);
            for stage in ["encoder", "evaluator", "policy"] {
                args.extend(["--set".to_owned(), format!("actors.{stage}.workers={share}")]);
            }
        }
        args
    }

    fn judge_args(&self, config: &Path, is_new: bool, options: &ChildOptions) -> Vec<String> {
        let mut args: Vec<String> =
            ["compare-cell", &self.dir.display().to_string(), "--evals", &options.evals.join(",")]
                .map(str::to_owned)
                .into();
        args.extend(["--on".to_owned(), self.on.as_str().to_owned()]);
        args.extend(["--items".to_owned(), self.items_path().display().to_string()]);
        if self.untrained {
            args.push("--untrained".to_owned());
        }
        if is_new {
            args.push("--restart".to_owned());
        }
        if !options.logged.is_empty() {
            args.extend(["--logged".to_owned(), options.logged.join(",")]);
        }
        args.extend(["--config".to_owned(), config.display().to_string()]);
        if self.judge.is_some() {
            args.extend(["--judge".to_owned(), self.beside("judge.toml").display().to_string()]);
        }
        args
    }

    /// Runs this program with `args` to its end. Its stdout goes to the file `out`, its stderr to the cell's log.
    fn child(&self, args: &[String], out: Option<&Path>, options: &ChildOptions) -> Result<Ended, CliError> {
        if options.stop.reason().is_some() {
            return Ok(Ended::Stopped);
        }
        let log_path = self.beside("log");
        let log = OpenOptions::new().append(true).create(true).open(&log_path);
        let log = log.map_err(|error| CliError::file("write", &log_path, &error))?;
        let begin = log.metadata().map_or(0, |metadata| metadata.len());
        let stdout = match out {
            Some(path) => File::create(path).map_err(|error| CliError::file("write", path, &error))?.into(),
            None => Stdio::null(),
        };
        // Stays this very program if the file that it was started from is replaced meanwhile.
        let program = Path::new("/proc/self/exe");
        let mut child = Command::new(if program.exists() { program.to_owned() } else { own_program()? })
            .args(["--isa", kernels::isa().name(), "--ends-with-parent"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            // Ctrl-C reaches the comparison alone, which ends its children in good order.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                CliError::new(ExitCode::Io, format!("cannot start a process for {}: {error}", self.title))
            })?;
        let (status, was_stopped) = wait(&mut child, &options.stop)?;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(match code {
            0 => Ended::Well,
            _ if was_stopped => Ended::Stopped,
            code => Ended::Badly(code, last_error(&log_path, begin).unwrap_or_else(|| how(status))),
        })
    }
}

/// Waits for a child's end, and asks it to end when the comparison shall.
fn wait(child: &mut Child, stop: &StopFlag) -> Result<(ExitStatus, bool), CliError> {
    let mut is_asked = false;
    loop {
        let looked = child.try_wait();
        let looked =
            looked.map_err(|error| CliError::new(ExitCode::Io, format!("cannot wait for a process: {error}")))?;
        if let Some(status) = looked {
            return Ok((status, is_asked));
        }
        if !is_asked && stop.reason().is_some() {
            is_asked = true;
            // Ignored: it has ended by itself.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        thread::sleep(LOOK);
    }
}

fn own_program() -> Result<PathBuf, CliError> {
    std::env::current_exe()
        .map_err(|error| CliError::new(ExitCode::Io, format!("cannot find the program's own file: {error}")))
}

fn how(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => "it ended without a message".to_owned(),
    }
}

/// The last error that was written to a log behind the byte `begin`.
fn last_error(log: &Path, begin: u64) -> Option<String> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(begin.max(len.saturating_sub(LOG_TAIL)))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().find_map(|line| line.strip_prefix("error: ")).map(str::to_owned)
}
