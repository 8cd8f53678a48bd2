//! A temporary folder in which the program runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A pretraining of a tenth of a second: 16 x 16 grey images, 7 outer iterations.
pub const TINY: &str = include_str!("../fixtures/tiny.toml");

/// The files of a checkpoint that hold numbers.
const TENSOR_FILES: [&str; 4] = ["model.safetensors", "head.safetensors", "mask.safetensors", "optimizer.safetensors"];

/// Timeout of every wait, so that a hang fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether whoever runs the tests has ignored SIGHUP for them.
fn hang_ups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 1 == 1))
}

/// A temporary folder with `tiny.toml` in it.
pub struct Place {
    folder: TempDir,
}

/// Exit code and output of a finished program.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A program that runs, killed if the test ends before it.
pub struct Running {
    child: Option<Child>,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { folder: TempDir::new().expect("temporary folder") };
        place.write("tiny.toml", TINY.as_bytes());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("write");
    }

    /// Copies a folder as it is, with its links.
    pub fn copy(&self, from: &str, to: &str) {
        let status = Command::new("cp").arg("-a").arg(self.path(from)).arg(self.path(to)).status();
        assert!(status.expect("cp").success(), "{from} to {to}");
    }

    /// Runs the program in the folder `below`, to its end.
    pub fn run_in(&self, below: &str, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        Ended::of(command.current_dir(self.path(below)).output().expect("program starts"))
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_mlomae-under-test");
        let mut command = if hang_ups_are_ignored() {
            // Under nohup the program inherits the ignored SIGHUP, and rightly ignores it too.
            let mut env = Command::new("env");
            env.args(["--default-signal=HUP", program]);
            env
        } else {
            Command::new(program)
        };
        command.args(args).current_dir(self.folder.path()).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// Runs the program to its end, however that is. No end may show a panic.
    pub fn run(&self, args: &[&str]) -> Ended {
        let ended = Ended::of(self.command(args).output().expect("program starts"));
        assert!(!ended.err.contains("panicked"), "{args:?}: {ended:#?}");
        ended
    }

    /// Runs the program to its end with injected faults.
    pub fn run_with_faults(&self, faults: &str, args: &[&str]) -> Ended {
        Ended::of(self.command(args).env("MLOMAE_FAULT", faults).output().expect("program starts"))
    }

    /// Runs the program to its end with RUST_LOG set.
    pub fn run_with_filter(&self, filter: &str, args: &[&str]) -> Ended {
        Ended::of(self.command(args).env("RUST_LOG", filter).output().expect("program starts"))
    }

    /// Runs the program, which must succeed, and returns its stdout.
    pub fn succeed(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:#?}");
        ended.out
    }

    /// Runs the program, which must end with `code` and say why in lines that begin with `error: `.
    pub fn fail(&self, code: i32, args: &[&str]) -> Vec<String> {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {ended:#?}");
        let lines = ended.err.lines().filter_map(|line| line.strip_prefix("error: "));
        let lines: Vec<_> = lines.map(str::to_owned).collect();
        assert!(!lines.is_empty(), "{args:?}: {ended:#?}");
        lines
    }

    /// Runs the program, whose command line must be refused, and returns its message.
    pub fn fail_usage(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:#?}");
        ended.err
    }

    /// Trains `tiny.toml` in the run directory `run`.
    pub fn train(&self, run: &str, args: &[&str]) {
        let mut all = vec!["train", "tiny.toml", "--run-dir", run];
        all.extend(args);
        self.succeed(&all);
    }

    /// Starts the program without waiting for it.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { child: Some(command.spawn().expect("program starts")) }
    }

    /// Starts the program without waiting for it, with variables in its environment.
    pub fn start_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { child: Some(command.spawn().expect("program starts")) }
    }

    /// Starts the program from a shell that has run `before`, as in `ulimit -f 9`, and without waiting for it.
    pub fn start_in_shell(&self, before: &str, args: &[&str]) -> Running {
        let program = env!("CARGO_BIN_EXE_mlomae-under-test");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before}; exec \"$0\" \"$@\""), program]).args(args);
        command.current_dir(self.folder.path()).env_remove("RUST_LOG").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { child: Some(command.spawn().expect("a shell")) }
    }

    /// Starts the program without waiting for it; its stderr goes to a file.
    pub fn start_with_log(&self, args: &[&str], log: &str) -> Running {
        let log = std::fs::File::create(self.path(log)).expect("a file");
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(log);
        Running { child: Some(command.spawn().expect("program starts")) }
    }

    /// The bytes of all tensors (weights, moments) in the run's newest checkpoint, by file.
    pub fn weights(&self, run: &str) -> Vec<(&'static str, Vec<u8>)> {
        let latest = self.path(run).join("checkpoints/latest");
        TENSOR_FILES.map(|name| (name, read(&latest.join(name)))).into()
    }

    /// The state that a checkpoint keeps beside its tensors, without what depends on the wall clock and
    /// on where and by how many workers it was made.
    pub fn state(&self, run: &str) -> Value {
        let text = read(&self.path(run).join("checkpoints/latest/state.json"));
        let mut file: Value = serde_json::from_slice(&text).expect("state.json");
        let state = file["state"].as_object_mut().expect("state");
        for key in ["wall_s", "config"] {
            assert!(state.remove(key).is_some(), "{key} is there to be ignored");
        }
        file["state"].clone()
    }

    /// Asserts that two runs ended in the same checkpoint to the bit.
    pub fn assert_same_end(&self, expected: &str, got: &str) {
        for ((name, a), (_, b)) in self.weights(expected).iter().zip(self.weights(got)) {
            assert!(!a.is_empty(), "{expected}: {name}");
            assert!(*a == b, "{name} of {expected} and {got} differ");
        }
        assert_eq!(self.state(expected), self.state(got), "{expected} and {got}");
    }

    pub fn run_record(&self, run: &str) -> Value {
        serde_json::from_slice(&read(&self.path(run).join("run.json"))).expect("run.json")
    }

    /// The rows of a table by `logs export` to CSV, without its head.
    pub fn rows(&self, run: &str, table: &str) -> Vec<String> {
        let out = format!("{}-{table}.csv", run.replace('/', "-"));
        self.succeed(&["logs", "export", run, "--table", table, "--format", "csv", "--out", &out]);
        let text = String::from_utf8(read(&self.path(&out))).expect("UTF-8");
        text.lines().skip(1).map(str::to_owned).collect()
    }

    /// The level-1 steps whose pretraining loss is in the metrics.
    pub fn loss_steps(&self, run: &str) -> Vec<u64> {
        let rows = self.rows(run, "metrics");
        let losses = rows.iter().filter(|row| row.contains(",pretrain,loss,"));
        losses.map(|row| row.split(',').nth(5).and_then(|step| step.parse().ok()).expect("step")).collect()
    }

    /// The names of the live log streams of a run.
    pub fn live_streams(&self, run: &str) -> Vec<String> {
        file_names(&self.path(run).join("logs/live"))
    }
}

/// The names of the files in a folder, sorted; none if it does not exist.
pub fn file_names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Running {
    /// Sends a signal by its name, as `INT`.
    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("runs").id();
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status();
        assert!(status.expect("sh").success(), "kill -{name} {id}");
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().expect("runs").try_wait().expect("wait").is_some()
    }

    /// Closes stdout's reader, as `head` does when it has seen enough.
    pub fn close_stdout(&mut self) {
        drop(self.child.as_mut().expect("runs").stdout.take());
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        wait_for("the program's end", || self.has_ended());
        let child = self.child.take().expect("runs");
        Ended::of(child.wait_with_output().expect("output"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
