//! The run directory: one folder a run, its record, its config, its lock.

mod lock;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic::{self, FileError, create_dir_all, fsync_dir, open_plain, parent, read_plain_at_most, write_atomic};
use crate::clock::{compact, rfc3339, unix_us};
use crate::escape::os_text;
use crate::exit_code::ExitCode;

use lock::LOCK;
pub use lock::RunLock;

/// Version of `run.json`.
pub const RUN_FORMAT: u32 = 1;

/// The largest configuration file that is read: the shipped ones have some kilobytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The largest `run.json`: it holds a command line.
const MAX_RECORD_BYTES: u64 = 16 << 20;

/// What a run id is, for messages.
pub const RUN_ID_RULE: &str = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128";
/// Characters of a run id at most, which is also the name of a folder.
const MAX_RUN_ID: usize = 128;

const RECORD: &str = "run.json";
/// What a run directory may hold before its record is written.
const BEFORE_RECORD: [&str; 8] =
    [RECORD, LOCK, "config.toml", "config.input.toml", "logs", "checkpoints", "images", "report"];

/// A run directory could not be made, opened or read.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A file operation failed.
    #[error("run directory: {0}")]
    File(#[from] FileError),
    /// The folder for a new run is there already.
    #[error("run directory: it exists already, choose another run id or resume it: `{}`", .0.display())]
    Exists(PathBuf),
    /// The folder in the way of a new run is none itself.
    #[error("run directory: no run, so it is not moved aside, choose another run id: `{}`", .0.display())]
    NotMoved(PathBuf),
    /// There is no run here.
    #[error("run directory: no run (a folder with run.json) at `{}`", .0.display())]
    NoRun(PathBuf),
    /// A run id that cannot be a folder name.
    #[error("run directory: a run id must be {RUN_ID_RULE}: `{0}`")]
    BadId(String),
    /// `run.json` cannot be understood.
    #[error("run directory: cannot read `{}`: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process holds the run.
    #[error("run directory: in use by process {pid}: `{}`", path.display())]
    InUse {
        /// The run directory.
        path: PathBuf,
        /// The process (0 if unknown).
        pid: u32,
    },
}

impl RunDirError {
    /// The exit code of the command line: 65 corrupt, 66 missing, 74 I/O, 78 bad config.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::File(error) => error.exit_code(),
            Self::NoRun(_) => ExitCode::NoInput,
            Self::Corrupt { .. } => ExitCode::BadData,
            Self::BadId(_) => ExitCode::Config,
            Self::Exists(_) | Self::NotMoved(_) | Self::InUse { .. } => ExitCode::Io,
        }
    }
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Its process is, or was when last seen, at work.
    Running,
    /// It came to its end.
    Finished,
    /// It was stopped, by a signal or by a kill, and can be resumed.
    Interrupted,
    /// It ended with an error.
    Failed,
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        })
    }
}

/// What wrote a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Versions {
    /// The program.
    pub program: String,
    /// The log schemas; empty where nobody said.
    pub schema: String,
    /// The compiler, if known.
    pub rustc: Option<String>,
}

/// The machine a run is on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Processors available to the process.
    pub cpus: usize,
    /// System, kernel and architecture.
    pub os: String,
    /// Instruction set that the process computes with, which decides how results are rounded; empty where nobody said.
    pub isa: String,
    /// Engine that the process computes on, as `cpu` or `cuda`; empty where nobody said, which is `cpu`.
    pub engine: String,
    /// Its device: model, driver and libraries; empty where they decide nothing, as of a CPU.
    pub device: String,
    /// What it computes in, for example `f32`: its products, with the instructions of those that are rounded; empty
    /// where nobody said.
    pub arithmetic: String,
}

impl Host {
    /// This machine, on which the process computes with the instruction set `isa`.
    #[must_use]
    pub fn this(isa: &str) -> Self {
        let kernel = |file: &str| fs::read_to_string(Path::new("/proc/sys/kernel").join(file)).unwrap_or_default();
        let os = [std::env::consts::OS, kernel("osrelease").trim(), std::env::consts::ARCH].join(" ");
        Self {
            name: kernel("hostname").trim().to_string(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            os,
            isa: isa.to_string(),
            ..Self::default()
        }
    }

    /// What decides how results are rounded beside the instruction set, as text for people: the engine with its device.
    #[must_use]
    pub fn engine_text(&self) -> String {
        let engine = if self.engine.is_empty() { "cpu" } else { &self.engine };
        if self.device.is_empty() { engine.to_string() } else { format!("{engine} ({})", self.device) }
    }
}

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`RUN_FORMAT`] of the writer.
    pub format: u32,
    /// The run's id, which is its folder's name.
    pub id: String,
    /// How it stands.
    pub status: RunStatus,
    /// What wrote it.
    #[serde(default)]
    pub versions: Versions,
    /// The seed.
    pub seed: u64,
    /// When it began, RFC 3339 UTC.
    pub started: String,
    /// When it ended, RFC 3339 UTC.
    #[serde(default)]
    pub ended: Option<String>,
    /// The exit code of its last process.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The run it was started from.
    #[serde(default)]
    pub parent: Option<String>,
    /// The machine of its last process.
    #[serde(default)]
    pub host: Host,
    /// How many times it has been resumed: the `segment` of its newest log rows.
    #[serde(default)]
    pub segment: i32,
    /// The command line of its last process, program first. An argument need not be UTF-8: each byte of it that belongs
    /// to no UTF-8 sequence is written as `\xNN`, each backslash as `\\`.
    #[serde(default)]
    pub command: Vec<String>,
    /// Seconds of running time up to the end of its last orderly ended process.
    #[serde(default)]
    pub wall_s: f64,
    /// Level-1 steps done at that moment.
    #[serde(default)]
    pub step: i64,
    /// The error it failed with.
    #[serde(default)]
    pub error: Option<String>,
}

/// The arguments of this process as [`RunRecord::command`] has them.
fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| os_text(&argument)).collect()
}

impl RunRecord {
    /// The record of a run that begins now, in this process, on this machine, computing with `isa`.
    #[must_use]
    pub fn begin(id: &str, program_version: &str, isa: &str, seed: u64) -> Self {
        Self {
            format: RUN_FORMAT,
            id: id.to_string(),
            status: RunStatus::Running,
            versions: Versions {
                program: program_version.to_string(),
                schema: String::new(),
                rustc: option_env!("RUSTC_VERSION").map(str::to_string),
            },
            seed,
            started: rfc3339(unix_us()),
            ended: None,
            exit_code: None,
            parent: None,
            host: Host::this(isa),
            segment: 0,
            command: command_line(),
            wall_s: 0.0,
            step: 0,
            error: None,
        }
    }

    /// The same record, of a run whose logs have the schemas of this version.
    #[must_use]
    pub fn with_log_schema(mut self, version: &str) -> Self {
        self.versions.schema = version.to_string();
        self
    }

    /// The same record, of a process that computes in `arithmetic`.
    #[must_use]
    pub fn with_arithmetic(mut self, arithmetic: String) -> Self {
        self.host.arithmetic = arithmetic;
        self
    }

    /// The same run, taken up again by this process on this machine, computing with `isa`: running, one segment later.
    pub fn resume(&mut self, program_version: &str, isa: &str) {
        self.status = RunStatus::Running;
        self.versions.program = program_version.to_string();
        self.ended = None;
        self.exit_code = None;
        self.error = None;
        self.host = Host::this(isa);
        self.segment += 1;
        self.command = command_line();
    }

    /// Notes on which engine and device this process computes.
    pub fn compute_on(&mut self, engine: &str, device: &str) {
        (self.host.engine, self.host.device) = (engine.to_string(), device.to_string());
    }

    /// Ends it now.
    pub fn end(&mut self, status: RunStatus, exit_code: i32, error: Option<String>) {
        self.status = status;
        self.exit_code = Some(exit_code);
        self.error = error;
        self.ended = Some(rfc3339(unix_us()));
    }
}

/// A run's folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held by the process that trains.
    lock: Option<RunLock>,
}

impl RunDir {
    /// Makes `<root>/<run_id>` with its folders, and holds it for this process.
    ///
    /// # Errors
    /// [`RunDirError::BadId`] if `run_id` cannot be one, [`RunDirError::Exists`] if the folder is there,
    /// [`RunDirError::File`] if a file operation fails.
    pub fn create(root: &Path, run_id: &str) -> Result<Self, RunDirError> {
        if !is_run_id(run_id) {
            return Err(RunDirError::BadId(run_id.to_string()));
        }
        create_dir_all(root)?;
        let path = root.join(run_id);
        match atomic::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.source.kind() == ErrorKind::AlreadyExists => return Err(RunDirError::Exists(path)),
            Err(error) => return Err(error.into()),
        }
        let run = Self { lock: Some(RunLock::acquire(&path)?), path };
        // Another process may have moved the new folder aside before it was locked, and made and ended its own run
        // here.
        if crate::atomic::names(&run.path)?.iter().any(|name| name != LOCK) {
            return Err(RunDirError::Exists(run.path));
        }
        for dir in [run.logs(), run.checkpoints(), run.images(), run.report()] {
            atomic::create_plain_dir(&dir)?;
        }
        fsync_dir(parent(&run.path))?;
        Ok(run)
    }

    /// Renames what is in the way of a new run to `<name>.before-N`, and returns that path; none if there is nothing.
    ///
    /// The run's lock is held until it is moved, so that a run at work stays where it is. Only runs, what is left of
    /// those that were killed before they had a record, and empty folders are moved.
    ///
    /// # Errors
    /// [`RunDirError::NotMoved`] if it is no run, [`RunDirError::InUse`] if a process holds it, [`RunDirError::File`]
    /// if it cannot be renamed.
    pub fn move_aside(path: &Path) -> Result<Option<PathBuf>, RunDirError> {
        if !path.exists() {
            return Ok(None);
        }
        // Before the lock, which makes a file, and once more when nobody else can change it.
        Self::check_movable(path)?;
        let _lock = match RunLock::acquire(path) {
            // Another process has moved it in between.
            Err(RunDirError::File(error)) if error.is_missing() => return Ok(None),
            other => other?,
        };
        Self::check_movable(path)?;
        let name = |number: u32| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".before-{number}"));
            name
        };
        let aside = (1..)
            .map(|number| path.with_file_name(name(number)))
            .find(|aside| fs::symlink_metadata(aside).is_err())
            .unwrap_or_else(|| path.with_extension("before"));
        atomic::rename(path, &aside)?;
        fsync_dir(parent(path))?;
        Ok(Some(aside))
    }

    /// Refuses to move the folder at `path` aside unless it is a run, what is left of one that was killed before it had
    /// a record, or empty.
    fn check_movable(path: &Path) -> Result<(), RunDirError> {
        if fs::symlink_metadata(path.join(RECORD)).is_ok_and(|record| record.is_file()) {
            return Ok(());
        }
        if !path.is_dir() {
            return Err(RunDirError::NotMoved(path.to_path_buf()));
        }
        let names: Vec<String> = fs::read_dir(path)
            .and_then(|entries| {
                entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned())).collect()
            })
            .map_err(|e| FileError::new("read folder", path, e))?;
        let is_known = |name: &String| BEFORE_RECORD.contains(&name.strip_suffix(".tmp").unwrap_or(name));
        let is_left = names.iter().any(|name| name == LOCK) && names.iter().all(is_known);
        if names.is_empty() || is_left { Ok(()) } else { Err(RunDirError::NotMoved(path.to_path_buf())) }
    }

    /// Opens a run for reading; it may be running.
    ///
    /// # Errors
    /// [`RunDirError::NoRun`] if it has no record, [`RunDirError::File`] if that cannot be opened.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let record = path.join(RECORD);
        match open_plain(&record, OpenOptions::new().read(true)) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(RunDirError::NoRun(path.to_path_buf()));
            }
            Err(error) => return Err(FileError::new("open", &record, error).into()),
        }
        Ok(Self { path: path.to_path_buf(), lock: None })
    }

    /// Opens a run to continue it, and holds it for this process.
    ///
    /// # Errors
    /// Those of [`RunDir::open`] and [`RunLock::acquire`].
    pub fn open_locked(path: &Path) -> Result<Self, RunDirError> {
        Self::open(path)?;
        let lock = RunLock::acquire(path)?;
        // Another process may have moved the run between the two.
        Ok(Self { lock: Some(lock), ..Self::open(path)? })
    }

    /// Opens the newest run below `root` for reading, by the time it began. Records that cannot be read are skipped.
    ///
    /// # Errors
    /// [`RunDirError::NoRun`] if there is none, [`RunDirError::File`] if the folder cannot be read.
    pub fn latest(root: &Path) -> Result<Self, RunDirError> {
        let mut newest: Option<(String, String, PathBuf)> = None;
        for name in crate::atomic::names(root)? {
            let path = root.join(&name);
            let Ok(run) = Self::open(&path) else { continue };
            let Ok(record) = run.record() else { continue };
            let key = (record.started.clone(), name, path);
            if newest.as_ref().is_none_or(|best| *best < key) {
                newest = Some(key);
            }
        }
        newest.map_or_else(|| Err(RunDirError::NoRun(root.to_path_buf())), |(_, _, path)| Self::open(&path))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's id: the folder's name.
    #[must_use]
    pub fn id(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// `logs/`.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// `checkpoints/`.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// `images/`: PNG panels.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// `report/`.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join("report")
    }

    /// `config.toml`: every key, resolved.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// `config.input.toml`: as it was given.
    #[must_use]
    pub fn config_input(&self) -> PathBuf {
        self.path.join("config.input.toml")
    }

    /// Writes both configs.
    ///
    /// # Errors
    /// [`RunDirError::File`] if one of them cannot be written.
    pub fn write_configs(&self, resolved: &str, input: &str) -> Result<(), RunDirError> {
        write_atomic(&self.config_input(), input.as_bytes())?;
        Ok(write_atomic(&self.config(), resolved.as_bytes())?)
    }

    /// Reads the resolved config.
    ///
    /// # Errors
    /// [`RunDirError::File`] if it cannot be read, [`RunDirError::Corrupt`] if it is not UTF-8.
    pub fn read_config(&self) -> Result<String, RunDirError> {
        self.read_text(self.config())
    }

    /// Reads the config as it was given; empty if it is not there.
    ///
    /// # Errors
    /// [`RunDirError::File`] if it is there and cannot be read, [`RunDirError::Corrupt`] if it is not UTF-8.
    pub fn read_config_input(&self) -> Result<String, RunDirError> {
        match self.read_text(self.config_input()) {
            Err(RunDirError::File(error)) if error.is_missing() => Ok(String::new()),
            other => other,
        }
    }

    fn read_text(&self, path: PathBuf) -> Result<String, RunDirError> {
        String::from_utf8(read_plain_at_most(&path, MAX_CONFIG_BYTES)?)
            .map_err(|e| RunDirError::Corrupt { path, reason: e.utf8_error().to_string() })
    }

    /// Writes `run.json`, by rename.
    ///
    /// # Errors
    /// [`RunDirError::File`] if it cannot be written.
    pub fn write_record(&self, record: &RunRecord) -> Result<(), RunDirError> {
        let path = self.path.join(RECORD);
        let mut text = serde_json::to_string_pretty(record)
            .map_err(|e| RunDirError::Corrupt { path: path.clone(), reason: e.to_string() })?;
        text.push('\n');
        Ok(write_atomic(&path, text.as_bytes())?)
    }

    /// Reads `run.json` as it is.
    ///
    /// # Errors
    /// [`RunDirError::NoRun`] if there is none, [`RunDirError::Corrupt`] if it cannot be understood,
    /// [`RunDirError::File`] if it cannot be read.
    pub fn record(&self) -> Result<RunRecord, RunDirError> {
        let path = self.path.join(RECORD);
        let bytes = match read_plain_at_most(&path, MAX_RECORD_BYTES) {
            Err(error) if error.is_missing() => return Err(RunDirError::NoRun(self.path.clone())),
            other => other?,
        };
        let corrupt = |reason: String| RunDirError::Corrupt { path: path.clone(), reason };
        let record: RunRecord = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
        if record.format != RUN_FORMAT {
            return Err(corrupt(format!("expected format {RUN_FORMAT}, got {}", record.format)));
        }
        Ok(record)
    }

    /// How the run stands: a record that says `running` while no process holds the run means that it was killed.
    ///
    /// # Errors
    /// Those of [`RunDir::record`].
    pub fn status(&self) -> Result<RunStatus, RunDirError> {
        let status = self.record()?.status;
        let alive = self.lock.is_some() || RunLock::is_held(&self.path);
        Ok(if status == RunStatus::Running && !alive { RunStatus::Interrupted } else { status })
    }
}

/// A new run id: time (UTC), name, four random hex digits: `20261123-224412-quickstart-7f3a`.
///
/// Characters of `name` that do not fit a folder name become `-`.
#[must_use]
pub fn new_run_id(name: &str) -> String {
    let clean: String =
        name.chars().take(60).map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let clean = if clean.is_empty() { "run".to_string() } else { clean };
    format!("{}-{clean}-{:04x}", compact(unix_us()), random_u16())
}

fn random_u16() -> u16 {
    // The hasher's keys come from the system's random source.
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(std::process::id()) & 0xffff) as u16
}

/// Whether a text can be a run id, see [`RUN_ID_RULE`].
#[must_use]
pub fn is_run_id(id: &str) -> bool {
    id.len() <= MAX_RUN_ID
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_made_once_held_and_found_again() {
        let root = tempfile::tempdir().unwrap();
        let id = new_run_id("quick start/é");
        assert!(id.len() > 20 && is_run_id(&id), "{id}");
        let run = RunDir::create(root.path(), &id).unwrap();
        assert!(matches!(RunDir::create(root.path(), &id), Err(RunDirError::Exists(_))));
        assert!(RunDir::open(run.path()).is_err(), "no record yet");
        let mut record = RunRecord::begin(&id, "0.1.0", "avx2", u64::MAX);
        record.wall_s = 0.1 + 0.2;
        run.write_record(&record).unwrap();
        run.write_configs("a = 1\n", "# mine\n").unwrap();
        assert_eq!(run.record().unwrap(), record);
        assert_eq!(run.read_config().unwrap(), "a = 1\n");
        assert_eq!(RunDir::latest(root.path()).unwrap().id(), id);
        assert!(record.host.cpus >= 1 && !record.host.os.is_empty());

        let error = RunDir::open_locked(run.path()).unwrap_err();
        assert!(matches!(error, RunDirError::InUse { pid, .. } if pid == std::process::id()));
        assert_eq!(RunDir::open(run.path()).unwrap().status().unwrap(), RunStatus::Running);
        let path = run.path().to_path_buf();
        drop(run);
        assert_eq!(RunDir::open(&path).unwrap().status().unwrap(), RunStatus::Interrupted, "its process is gone");
        let run = RunDir::open_locked(&path).unwrap();
        record.resume("0.2.0", "avx512");
        assert_eq!((record.segment, record.status), (1, RunStatus::Running));
        record.end(RunStatus::Failed, 74, Some("disk full".into()));
        run.write_record(&record).unwrap();
        assert_eq!(run.status().unwrap(), RunStatus::Failed);
        assert_eq!(run.record().unwrap().exit_code, Some(74));
    }

    #[test]
    fn of_processes_that_restart_a_run_at_once_each_has_a_folder_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        let num_made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        // Some are late, or find that another was faster.
                        let _ = RunDir::move_aside(&path);
                        let Ok(run) = RunDir::create(root.path(), "run") else { continue };
                        assert!(
                            !run.path.join(RECORD).exists(),
                            "a run that another process has ended is written over"
                        );
                        run.write_record(&RunRecord::begin("run", "0", "", 1)).unwrap();
                        num_made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        let kept = fs::read_dir(root.path()).unwrap().filter(|run| run.as_ref().unwrap().path().join(RECORD).exists());
        assert_eq!(kept.count(), num_made.into_inner() as usize, "every run that was made is there");
    }

    #[test]
    fn the_latest_run_is_the_one_that_began_last() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(RunDir::latest(root.path()).unwrap_err().exit_code(), 66);
        for (id, started) in
            [("b", "2026-01-01T00:00:00Z"), ("a", "2026-02-01T00:00:00Z"), ("c", "2025-01-01T00:00:00Z")]
        {
            let run = RunDir::create(root.path(), id).unwrap();
            let record = RunRecord { started: started.into(), ..RunRecord::begin(id, "0", "", 1) };
            run.write_record(&record).unwrap();
        }
        RunDir::create(root.path(), "z-without-record").unwrap();
        assert_eq!(RunDir::latest(root.path()).unwrap().id(), "a");
    }

    #[test]
    fn ids_cannot_leave_the_root_and_broken_records_are_named() {
        let root = tempfile::tempdir().unwrap();
        assert!(RUN_ID_RULE.ends_with(&format!("at most {MAX_RUN_ID}")) && is_run_id(&"a".repeat(MAX_RUN_ID)));
        for id in ["", "..", "../x", "a/b", ".hidden", "a b", "é", &"a".repeat(MAX_RUN_ID + 1)] {
            assert!(matches!(RunDir::create(root.path(), id), Err(RunDirError::BadId(_))), "{id}");
        }
        let run = RunDir::create(root.path(), "x").unwrap();
        let path = run.path().join(RECORD);
        for text in ["", "{", "[]", "{\"format\":1}"] {
            fs::write(&path, text).unwrap();
            let error = run.record().unwrap_err();
            assert!(error.to_string().contains("run.json") && error.exit_code() == 65, "{error}");
        }
        let mut record = serde_json::to_value(RunRecord::begin("x", "0", "", 1)).unwrap();
        record["format"] = 9.into();
        fs::write(&path, record.to_string()).unwrap();
        assert!(run.record().unwrap_err().to_string().contains("expected format 1, got 9"));
        record["format"] = 1.into();
        record["added_later"] = "fine".into();
        fs::write(&path, record.to_string()).unwrap();
        assert_eq!(run.record().unwrap().seed, 1);
    }
}
