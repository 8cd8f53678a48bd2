//! `logs export`, `tail` and `repair` on finished, running and killed runs.

use crate::place::{Place, Running, file_names, read, wait_for};

const TABLES: [&str; 5] = ["actors", "evals", "events", "masks", "metrics"];

/// A run that does not end by itself, after its first checkpoint.
fn endless(place: &Place, run: &str) -> Running {
    let settings = ["--set", "train.outer_iterations=1000000", "--set", "checkpoint.every_steps=40"];
    let mut args = vec!["train", "tiny.toml", "--quiet", "--run-dir", run];
    args.extend(settings);
    let mut running = place.start(&args);
    let latest = place.path(run).join("checkpoints/latest/state.json");
    wait_for("a checkpoint", || latest.exists() || running.has_ended());
    running
}

#[test]
fn a_finished_run_is_sealed_and_exported_whole() {
    let place = Place::new();
    place.train("run", &[]);
    assert_eq!(place.live_streams("run"), Vec::<String>::new());
    assert_eq!(place.loss_steps("run"), (1..=14).collect::<Vec<_>>());
    assert_eq!(place.rows("run", "evals").len(), 2, "trained and untrained");
    // A panel of 3 images at every fourth step.
    assert_eq!(place.rows("run", "masks").len() % 3, 0);
    for format in ["parquet", "csv", "arrow"] {
        let out = place.succeed(&["logs", "export", "run", "--format", format, "--out", "exports"]);
        assert_eq!(out.lines().count(), 5, "{out}");
    }
    let names = file_names(&place.path("exports"));
    assert_eq!(names.len(), 15, "{names:?}");
    assert!(place.succeed(&["logs", "repair", "run"]).contains("nothing to repair"));
}

#[test]
fn nothing_is_made_for_a_run_that_is_not_there() {
    let place = Place::new();
    place.fail(66, &["logs", "export", "nowhere"]);
    assert_eq!(file_names(&place.path("")), ["tiny.toml"]);
}

#[test]
fn tail_prints_the_last_rows_of_each_table() {
    let place = Place::new();
    place.train("run", &[]);
    for table in TABLES {
        let all = place.succeed(&["logs", "tail", "run", "--table", table, "-n", "100000"]);
        let all: Vec<_> = all.lines().collect();
        assert_eq!(all.len(), place.rows("run", table).len(), "{table}");
        let last = place.succeed(&["logs", "tail", "run", "--table", table, "-n", "2"]);
        assert_eq!(last.lines().collect::<Vec<_>>(), all[all.len() - 2..], "{table}");
    }
}

#[test]
fn tail_follows_a_run_to_its_end() {
    let place = Place::new();
    let running = endless(&place, "run");
    let follower = place.start(&["logs", "tail", "run", "--table", "events", "-n", "1", "--follow"]);
    running.signal("INT");
    assert_eq!(running.end().code, Some(130));
    let ended = follower.end();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.out.contains("checkpoint"), "what came after the start was printed: {ended:#?}");
}

#[test]
fn a_killed_run_is_repaired_up_to_its_damage() {
    let place = Place::new();
    let running = endless(&place, "run");
    running.signal("KILL");
    assert_eq!(running.end().code, None);
    let before = place.loss_steps("run");
    assert_eq!(before, (1..=before.len() as u64).collect::<Vec<_>>());
    // The last bytes of a stream tear, as in a crash of the machine.
    let live = place.live_streams("run");
    let metrics = live.iter().find(|name| name.starts_with("metrics-")).expect("a stream");
    let path = place.path("run/logs/live").join(metrics);
    let bytes = read(&path);
    std::fs::write(&path, &bytes[..bytes.len() - 9]).expect("write");

    let report = place.succeed(&["logs", "repair", "run"]);
    assert!(report.contains("bytes lost"), "{report}");
    assert_eq!(place.live_streams("run"), Vec::<String>::new());
    let after = place.loss_steps("run");
    assert!(after.len() <= before.len() && before.starts_with(&after), "{} of {}", after.len(), before.len());
    let events = place.rows("run", "events");
    assert!(events.iter().any(|row| row.contains("warn") && row.contains("bytes")), "the loss is an event: {events:?}");
    assert!(place.succeed(&["logs", "repair", "run"]).contains("nothing to repair"));
}

#[test]
fn a_running_run_cannot_be_repaired_but_read() {
    let place = Place::new();
    let mut running = endless(&place, "run");
    let lines = place.fail(74, &["logs", "repair", "run"]);
    assert!(lines[0].contains("run"), "{lines:?}");
    assert!(!place.loss_steps("run").is_empty());
    assert!(!running.has_ended());
}
