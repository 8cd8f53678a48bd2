//! Input and output that fail at random: a shim before the C library (`tests/faults/shim.c`) fails one call, or all
//! from one on, of the program's calls on a run directory or a dataset. Every run ends, with the right code, keeps its
//! newest checkpoint, and can be resumed to the same bits as an undisturbed run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::luck::Luck;
use crate::place::{Ended, Place, file_names};

/// The number of faults after which a test ends.
const NUM_FAULTS_OF_RUNS: u64 = 300;
const NUM_FAULTS_OF_READERS: u64 = 150;

/// A run with a checkpoint after each of its four outer iterations, much rotation, and its evaluation.
const TRAIN: [&str; 22] = [
    "train",
    "tiny.toml",
    "--set",
    "data.format=auto",
    "--set",
    "data.path=dataset",
    "--set",
    "train.outer_iterations=4",
    "--set",
    "checkpoint.every_steps=2",
    "--set",
    "checkpoint.keep=2",
    "--set",
    "logs.rotate_rows=20",
    "--set",
    "logs.masks_every_steps=2",
    "--set",
    "actors.encoder.workers=1",
    "--set",
    "actors.policy.workers=1",
    "--set",
    "actors.evaluator.workers=1",
];

// As Linux numbers them.
const EINTR: i32 = 4;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const EMFILE: i32 = 24;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;
/// No error: a part of the bytes only.
const PART: i32 = 0;

/// The calls that fail, and with what.
const CALLS: [(&str, &[i32]); 11] = [
    ("open", &[EIO, EMFILE, EACCES, ENOSPC, EINTR]),
    ("read", &[EIO, EINTR, PART]),
    ("write", &[EIO, ENOSPC, EDQUOT, EFBIG, EINTR, PART]),
    ("fsync", &[EIO, ENOSPC, EINTR]),
    ("rename", &[EIO, EACCES, ENOSPC]),
    ("close", &[EIO]),
    ("truncate", &[EIO]),
    ("unlink", &[EIO, EACCES]),
    ("mkdir", &[EIO, EACCES, ENOSPC]),
    ("symlink", &[EIO, ENOSPC]),
    ("list", &[EIO, EACCES, EMFILE]),
];

/// One call, or all from one on.
#[derive(Debug, Clone)]
struct Fault {
    call: &'static str,
    at: u64,
    is_lasting: bool,
    errno: i32,
}

/// A fault that came to pass: its call, error and path.
#[derive(Debug, Clone)]
struct Hit {
    call: String,
    errno: i32,
    path: String,
}

/// How many calls of each name there are.
type Counts = BTreeMap<String, u64>;

/// What faults led to, for the table that the test prints.
type Tally = Mutex<BTreeMap<(String, i32), BTreeMap<String, u64>>>;

impl Fault {
    /// Of the calls that a run makes; none if there are none of the drawn kind.
    fn draw(luck: &mut Luck, counts: &Counts) -> Option<Self> {
        let (call, errors) = CALLS[luck.below(CALLS.len() as u64) as usize];
        let num = counts.get(call).copied().filter(|num| *num > 0)?;
        let errno = errors[luck.below(errors.len() as u64) as usize];
        // EINTR in all calls would be retried for ever.
        let is_lasting = luck.below(3) == 0 && errno != EINTR && errno != PART;
        Some(Self { call, at: luck.below(num), is_lasting, errno })
    }

    /// Whether the program need not notice.
    const fn is_harmless(errno: i32) -> bool {
        errno == EINTR || errno == PART
    }
}

/// The compiled shim and the place of its logs, which is none of the program's.
struct Shim {
    folder: tempfile::TempDir,
}

impl Shim {
    fn compile() -> Self {
        let folder = tempfile::TempDir::new().expect("temporary folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/shim.c");
        let mut command = Command::new("cc");
        command.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
        command.arg(folder.path().join("shim.so")).arg(source).arg("-ldl");
        let output = command.output().expect("cc, which Rust links with too");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the program to its end with calls on `path` counted, or failing.
    fn run(&self, place: &Place, name: &str, path: &str, fault: Option<&Fault>, args: &[&str]) -> (Ended, Vec<Hit>) {
        let log = self.log(name);
        let _ = std::fs::remove_file(&log);
        let shim = self.folder.path().join("shim.so").display().to_string();
        let numbers = fault.map(|fault| {
            let num = if fault.is_lasting { i64::from(i32::MAX) } else { 1 };
            [
                ("IO_FAULT_AT", fault.at.to_string()),
                ("IO_FAULT_NUM", num.to_string()),
                ("IO_FAULT_ERRNO", fault.errno.to_string()),
            ]
        });
        let log_text = log.display().to_string();
        let mut variables = vec![("LD_PRELOAD", &*shim), ("IO_FAULT_PATH", path), ("IO_FAULT_LOG", &*log_text)];
        variables.extend(numbers.iter().flatten().map(|(name, number)| (*name, &**number)));
        variables.extend(fault.map(|fault| ("IO_FAULT_CALL", fault.call)));
        let ended = place.start_with(&variables, args).end();
        let hits = self.lines(name).into_iter().filter(|line| !line.starts_with("count "));
        let hits = hits.map(|line| {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let mut next = || words.next().expect("call, error, path");
            let (call, errno) = (next(), next().parse().expect("a number"));
            Hit { call, errno, path: next() }
        });
        (ended, hits.collect())
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The calls on `path` of an undisturbed run.
    fn count(&self, place: &Place, path: &str, args: &[&str]) -> Counts {
        let (ended, hits) = self.run(place, "count", path, None, args);
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:#?}");
        assert!(hits.is_empty(), "{hits:?}");
        let counts = self.lines("count").into_iter().filter_map(|line| {
            let (name, number) = line.strip_prefix("count ")?.split_once(' ')?;
            Some((name.to_owned(), number.parse().expect("a number")))
        });
        counts.collect()
    }
}

/// Judges the end of a process in which faults came to pass: never a panic, a hang or another code than 0 and 74, with
/// one line; 0 where the fault was none, and a word where something was not written.
fn check(what: &str, ended: &Ended, hits: &[Hit], tally: &Tally) {
    let context = || format!("{what}: {hits:?} {ended:#?}");
    assert!(!ended.err.contains("panicked") && !ended.err.contains("internal error"), "{}", context());
    let num_lines = ended.err.lines().filter(|line| line.starts_with("error: ")).count();
    let is_harmless = hits.iter().all(|hit| Fault::is_harmless(hit.errno) || hit.call == "close");
    let outcome = match ended.code {
        Some(0) => {
            assert_eq!(num_lines, 0, "{}", context());
            let must_be_told = ["write", "fsync", "rename", "truncate", "mkdir", "symlink"];
            let is_told = ended.err.contains("warn");
            assert!(is_harmless || is_told || !must_be_told.contains(&&*hits[0].call), "untold: {}", context());
            if !is_harmless {
                println!("survived: {what}: {hits:?}");
            }
            if is_harmless {
                "no harm"
            } else if is_told {
                "survived, told"
            } else {
                "survived"
            }
        }
        Some(74) => {
            assert!(!is_harmless, "{}", context());
            assert!(num_lines == 1 && ended.err.contains("os error"), "{}", context());
            "74"
        }
        _ => panic!("{}", context()),
    };
    if let Some(hit) = hits.first() {
        let mut tally = tally.lock().expect("a tally");
        let outcomes = tally.entry((hit.call.clone(), hit.errno)).or_default();
        *outcomes.entry(outcome.to_owned()).or_default() += hits.len().min(1) as u64;
    }
}

fn print(tally: &Tally) {
    for ((call, errno), outcomes) in tally.lock().expect("a tally").iter() {
        println!("{call:9} {errno:4}  {outcomes:?}");
    }
}

/// The step of the newest checkpoint, as its own state says.
fn newest_step(place: &Place, run: &str) -> Option<u64> {
    let text = std::fs::read(place.path(run).join("checkpoints/latest/state.json")).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&text).expect("state.json is whole");
    state["step"].as_u64()
}

/// A run with one fault at its beginning and perhaps another when it is taken up; then it runs to its end.
fn fail_and_resume(
    place: &Place,
    shim: &Shim,
    run: &str,
    luck: &mut Luck,
    counts: &[(String, Counts)],
    tally: &Tally,
) -> u64 {
    let mut num_hits = 0;
    for attempt in 0..2 {
        let (path, counts) = &counts[usize::from(luck.below(5) == 0)];
        let path = if path == "straight" { run } else { path };
        let Some(fault) = Fault::draw(luck, counts) else { continue };
        let before = newest_step(place, run);
        let has_record = place.path(run).join("run.json").exists();
        let mut args = TRAIN.to_vec();
        args.extend(["--run-dir", run, "--restart"]);
        if has_record {
            args = vec!["train", "--resume", run];
        }
        let (ended, hits) = shim.run(place, run, path, Some(&fault), &args);
        check(&format!("{run} {attempt} {fault:?}"), &ended, &hits, tally);
        num_hits += u64::from(!hits.is_empty());
        let after = newest_step(place, run);
        assert!(after >= before, "{run}: a checkpoint is lost: {before:?} {after:?} {fault:?} {ended:#?}");
        if ended.code == Some(74)
            && place.path(run).join("run.json").exists()
            && hits.iter().all(|hit| !hit.path.contains("run.json") && !hit.path.ends_with(run))
            && !fault.is_lasting
            && ended.err.contains(if has_record { "going on after" } else { "info  run directory" })
        {
            let record = place.run_record(run);
            // Where only the evaluation failed, the training is finished.
            let status = if ended.err.contains("the training is finished") { "finished" } else { "failed" };
            let told = (&record["status"], &record["exit_code"]);
            assert_eq!(told, (&status.into(), &74.into()), "{fault:?} {ended:#?}");
        }
        if ended.code == Some(0) && !hits.is_empty() {
            assert_eq!(place.run_record(run)["status"], "finished", "{fault:?} {ended:#?}");
        }
    }
    if place.path(run).join("run.json").exists() {
        place.succeed(&["train", "--resume", run, "--quiet"]);
    } else {
        place.succeed(&[&TRAIN[..], &["--run-dir", run, "--quiet", "--restart"]].concat());
    }
    place.assert_same_end("straight", run);
    num_hits
}

fn with_dataset() -> Place {
    let place = Place::new();
    let sizes = ["--num-train", "90", "--num-test", "16", "--image", "16", "--channels", "1", "--num-classes", "4"];
    place.succeed(&[&["data", "synthetic", "dataset"][..], &sizes].concat());
    place
}

#[test]
fn runs_whose_input_and_output_fail_lose_nothing() {
    let (place, shim) = (with_dataset(), Shim::compile());
    let straight = [&TRAIN[..], &["--run-dir", "straight", "--restart"]].concat();
    let counts: Vec<_> =
        ["straight", "dataset"].map(|path| (path.to_owned(), shim.count(&place, path, &straight))).into();
    println!("calls: {counts:?}");
    assert!(["open", "read", "write", "fsync", "rename"].iter().all(|call| counts[0].1[*call] > 0), "{counts:?}");
    let seed = Luck::new(41).any();
    let (tally, num_hits, next) = (Tally::default(), AtomicU64::new(0), AtomicU64::new(0));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while num_hits.load(Ordering::Relaxed) < NUM_FAULTS_OF_RUNS {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    assert!(number < 2 * NUM_FAULTS_OF_RUNS, "the faults do not come to pass");
                    let mut luck = Luck::of(seed.wrapping_add(number));
                    let run = format!("run-{number}-");
                    let num = fail_and_resume(&place, &shim, &run, &mut luck, &counts, &tally);
                    num_hits.fetch_add(num, Ordering::Relaxed);
                    for name in file_names(&place.path("")).iter().filter(|name| name.starts_with(&run)) {
                        std::fs::remove_dir_all(place.path(name)).expect("removed");
                    }
                }
            });
        }
    });
    print(&tally);
    println!(
        "{} runs with {} faults in {:.1} s: all ended as they should and went on to the same bits",
        next.into_inner(),
        num_hits.into_inner(),
        begin.elapsed().as_secs_f64()
    );
}

#[test]
fn commands_whose_input_and_output_fail_say_so() {
    let (place, shim) = (with_dataset(), Shim::compile());
    place.succeed(&[&TRAIN[..], &["--run-dir", "run", "--quiet"]].concat());
    let commands: [&[&str]; 11] = [
        &["eval", "knn", "run"],
        &["eval", "linear", "run", "--set", "eval.linear_epochs=2"],
        &["inspect", "run"],
        &["logs", "export", "run", "--out", "out-run"],
        &["logs", "export", "run", "--table", "metrics", "--format", "csv", "--out", "out-run.csv"],
        &["logs", "tail", "run", "--table", "metrics"],
        &["top", "run", "--once"],
        &["timeline", "run"],
        &["visualize", "run", "--out", "out-run.png"],
        &["data", "info", "dataset"],
        &["data", "convert", "dataset", "out-dataset"],
    ];
    let clean = || {
        let _ = std::fs::remove_dir_all(place.path("out-run"));
        let _ = std::fs::remove_dir_all(place.path("out-dataset"));
    };
    let mut counts = Vec::new();
    for args in commands {
        for path in ["run", "dataset"] {
            clean();
            counts.push((args, path, shim.count(&place, path, args)));
        }
    }
    let mut luck = Luck::new(42);
    let tally = Tally::default();
    let (mut num_hits, mut num_runs) = (0, 0);
    let before = place.run_record("run");
    while num_hits < NUM_FAULTS_OF_READERS {
        num_runs += 1;
        assert!(num_runs < 20 * NUM_FAULTS_OF_READERS, "the faults do not come to pass");
        let (args, path, counts) = &counts[luck.below(counts.len() as u64) as usize];
        let Some(fault) = Fault::draw(&mut luck, counts) else { continue };
        clean();
        let (ended, hits) = shim.run(&place, "reader", path, Some(&fault), args);
        check(&format!("{args:?} {fault:?}"), &ended, &hits, &tally);
        num_hits += u64::from(!hits.is_empty());
        if ended.code == Some(74) && fault.call != "unlink" {
            let left = file_names(&place.path("out-dataset"));
            assert!(!left.iter().any(|name| name.ends_with(".tmp")), "{args:?} {fault:?} {left:?}");
        }
    }
    clean();
    assert_eq!(place.run_record("run"), before, "readers change nothing");
    print(&tally);
    println!("{num_hits} faults in commands that read: each said so or was none");
}

#[test]
fn a_fault_shows_in_the_shims_log() {
    let (place, shim) = (with_dataset(), Shim::compile());
    let fault = Fault { call: "open", at: 0, is_lasting: true, errno: EIO };
    let (ended, hits) = shim.run(&place, "log", "dataset", Some(&fault), &["data", "info", "dataset"]);
    assert_eq!(ended.code, Some(74), "{ended:#?}");
    assert!(!hits.is_empty() && hits.iter().all(|hit| hit.call == "open" && hit.errno == EIO), "{hits:?}");
}
