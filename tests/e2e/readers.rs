//! Real DuckDB, polars and pyarrow open the logs of finished, running and killed runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::{Place, wait_for};

/// A Python with the three libraries: `MLOMAE_PYTHON`, which must then have them, or `python3` if it has. In CI it is
/// an error if there is none.
fn python() -> Option<PathBuf> {
    if let Some(python) = std::env::var_os("MLOMAE_PYTHON") {
        return Some(python.into());
    }
    let probe = Command::new("python3").args(["-c", "import duckdb, polars, pyarrow"]).output();
    if probe.is_ok_and(|probe| probe.status.success()) {
        return Some("python3".into());
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "no Python with duckdb, polars and pyarrow; set MLOMAE_PYTHON to one (tests/python/requirements.txt)"
    );
    eprintln!("not checked: no Python with duckdb, polars and pyarrow (set MLOMAE_PYTHON to one)");
    None
}

/// Runs `check_logs.py`, which must find no error, and returns its table.
fn check(python: &Path, args: &[&str], place: &Place) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/check_logs.py");
    let output = Command::new(python).arg(script).args(args).current_dir(place.path("")).output().expect("python");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Opens the logs of `run` with the three libraries, where there is a Python that has them.
pub fn check_if_possible(place: &Place, run: &str) {
    if let Some(python) = python() {
        check(&python, &[run], place);
    }
}

/// Rows that pyarrow found in sealed parts and in live streams of `table`.
fn num_rows(text: &str, table: &str) -> (usize, usize) {
    let line = text.lines().find(|line| line.starts_with(table)).expect("line of the table");
    let numbers: Vec<usize> = line.split_whitespace().skip(1).map(|word| word.parse().expect("number")).collect();
    (numbers[1], numbers[5])
}

#[test]
fn duckdb_polars_and_pyarrow_open_finished_running_and_killed_runs() {
    let Some(python) = python() else {
        return;
    };
    let place = Place::new();
    place.train("finished", &[]);
    for format in ["parquet", "csv", "arrow"] {
        place.succeed(&["logs", "export", "finished", "--format", format, "--out", "exports"]);
    }
    let text = check(&python, &["finished", "--exports", "exports"], &place);
    assert!(text.contains("steps of the pretraining loss: 1..14, 14 rows"), "{text}");

    let long = ["train", "tiny.toml", "--quiet", "--run-dir=killed", "--set", "train.outer_iterations=1000000"];
    // Small segments, so that some are sealed while others are open.
    let rotation = ["--set", "logs.rotate_rows=500", "--set", "checkpoint.every_steps=100"];
    let mut running = place.start(&[&long[..], &rotation].concat());
    // Wait for the stream after the third part: then that part's own stream is removed, and no row is in two files.
    let next = place.path("killed/logs/live/metrics-000004.arrows");
    wait_for("a sealed segment", || next.exists() || running.has_ended());
    running.signal("KILL");
    assert_eq!(running.end().code, None);
    let text = check(&python, &["killed"], &place);
    let (sealed, live) = num_rows(&text, "metrics");
    assert!(sealed >= 500 && text.starts_with("killed: running"), "{text}");

    place.succeed(&["logs", "repair", "killed"]);
    let text = check(&python, &["killed"], &place);
    let (repaired, left) = num_rows(&text, "metrics");
    assert!(repaired == sealed + live && left == 0, "{text}");

    place.succeed(&["train", "--resume", "killed", "--max-outer=2000", "--quiet"]);
    check(&python, &["killed"], &place);
}
