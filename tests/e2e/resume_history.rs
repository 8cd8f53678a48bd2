//! Resuming a finished run changes nothing, and the rows after a checkpoint that a run went back to are marked.

use serde_json::Value;

use crate::place::{Place, file_names, fixture, wait_for};

/// The events of a kind: segment, step and fields.
fn events(place: &Place, run: &str, kind: &str) -> Vec<(i64, i64, String)> {
    let rows = place.rows(run, "events");
    let rows = rows.iter().filter(|row| row.contains(&format!(",{kind},")));
    let number = |row: &str, at: usize| row.split(',').nth(at).and_then(|text| text.parse().ok()).expect("a number");
    rows.map(|row| (number(row, 3), number(row, 5), row.clone())).collect()
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let place = Place::new();
    let first = {
        place.train("run", &[]);
        place.rows("run", "evals")
    };
    assert_eq!(first.len(), 2);
    let files = |place: &Place| {
        let tables = ["actors", "evals", "events", "masks", "metrics"];
        tables.map(|table| file_names(&place.path("run/logs").join(table)))
    };
    let (record, before) = (place.run_record("run"), files(&place));
    for resume in ["run", "run/checkpoints/step-00000014"] {
        let ended = place.run(&["train", "--resume", resume]);
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(ended.err.contains("nothing is left to do"), "{ended:#?}");
        for part in
            ["iterations  7 of 7 outer, 14 level-1 steps; finished", "k-NN        ", "checkpoints/step-00000014"]
        {
            assert!(ended.out.contains(part), "{part}: {ended:#?}");
        }
        assert_eq!((place.run_record("run"), files(&place)), (record.clone(), before.clone()), "nothing is written");
    }
    // Another evaluation is another result, once.
    for _ in 0..2 {
        place.succeed(&["train", "--resume", "run", "--quiet", "--set", "eval.knn_k=3"]);
        assert_eq!(place.rows("run", "evals").len(), 4);
    }
    // More iterations end with their own.
    place.succeed(&["train", "--resume", "run", "--quiet", "--max-outer", "9"]);
    assert_eq!(place.rows("run", "evals").len(), 6);
    assert_eq!(place.run_record("run")["step"], 18);
}

#[test]
fn a_run_killed_after_its_evaluation_does_not_repeat_it() {
    let place = Place::new();
    place.train("run", &[]);
    // As a process leaves it that dies before it records the end.
    let path = place.path("run/run.json");
    let text = String::from_utf8(crate::place::read(&path)).expect("UTF-8");
    std::fs::write(&path, text.replace("\"finished\"", "\"running\"")).expect("write");
    let out = place.succeed(&["train", "--resume", "run"]);
    assert!(out.contains("k-NN        "), "{out}");
    assert_eq!(place.rows("run", "evals").len(), 2);
    assert_eq!(place.run_record("run")["status"], "finished");
}

#[test]
fn what_a_run_went_back_behind_is_marked_and_counted_once() {
    let place = Place::new();
    place.train("run", &["--set", "logs.actors_every_seconds=0.1"]);
    assert_eq!(events(&place, "run", "went_back").len(), 0);
    place.succeed(&["train", "--resume", "run/checkpoints/step-00000006", "--quiet"]);
    let marks = events(&place, "run", "went_back");
    let [(1, 6, mark)] = &marks[..] else { panic!("{marks:?}") };
    for part in ["from_step", "14", "to_step", "segment"] {
        assert!(mark.contains(part), "{mark}");
    }
    assert_eq!(place.loss_steps("run"), (1..=14).collect::<Vec<_>>(), "neither a gap nor a repeat");
    assert_eq!(place.rows("run", "evals").len(), 2, "the evaluation of what was abandoned is taken back");
    // The rule: an earlier segment and a later step than those of the mark.
    let actors = place.rows("run", "actors");
    let number =
        |row: &str, at: usize| -> i64 { row.split(',').nth(at).and_then(|text| text.parse().ok()).expect("number") };
    let abandoned = actors.iter().filter(|row| number(row, 3) < 1 && number(row, 5) > 6).count();
    assert!(abandoned > 0 && abandoned < actors.len(), "{abandoned} of {}", actors.len());
    let json = |args: &[&str]| -> Value { serde_json::from_str(&place.succeed(args)).expect("JSON") };
    assert_eq!(json(&["top", "run", "--json"])["outer"], 7);
    let timeline = json(&["timeline", "run", "--json"]);
    assert_eq!(timeline["policy_version"], 7);
    for stage in timeline["stages"].as_array().expect("stages") {
        let (name, items) = (stage["stage"].as_str().expect("name"), stage["items"].as_f64().expect("items"));
        let all = if name == "policy" || name == "evaluator" { 7.0 } else { f64::INFINITY };
        assert!(items <= all, "{name}: {items}");
    }
    // Continuing from the last step is not going back, although the abandoned rows are still there.
    place.succeed(&["train", "--resume", "run", "--max-outer", "9", "--quiet"]);
    assert_eq!(events(&place, "run", "went_back").len(), 1);
    assert_eq!(place.loss_steps("run"), (1..=18).collect::<Vec<_>>());
}

#[test]
fn a_killed_run_marks_the_steps_that_it_lost() {
    let place = Place::new();
    let settings = ["--set", "train.outer_iterations=1000000", "--set", "checkpoint.every_steps=600"];
    let mut running = place.start(&[&["train", "tiny.toml", "--quiet", "--run-dir", "run"][..], &settings].concat());
    let latest = place.path("run/checkpoints/latest/state.json");
    wait_for("a checkpoint", || latest.exists() || running.has_ended());
    let frame = || -> Value { serde_json::from_str(&place.succeed(&["top", "run", "--json"])).expect("JSON") };
    let at = frame()["outer"].as_u64();
    wait_for("a second of work behind it", || frame()["outer"].as_u64() > at.map(|at| at + 20));
    running.signal("KILL");
    assert_eq!(running.end().code, None);
    let step = checkpoint_step(&place);
    // A checkpoint may have come just before the kill.
    let is_behind = frame()["outer"].as_i64() > Some(step / 2);
    let outer = (step / 2 + 3).to_string();
    place.succeed(&["train", "--resume", "run", "--quiet", "--max-outer", &outer, "--set", "eval.at_end=false"]);
    let marks = events(&place, "run", "went_back");
    let places: Vec<_> = marks.iter().map(|(segment, to, _)| (*segment, *to)).collect();
    assert!(places == [(1, step)] || !is_behind, "{marks:?}");
    assert_eq!(place.run_record("run")["step"], step + 6);
    assert_eq!(frame()["outer"], step / 2 + 3);
}

fn checkpoint_step(place: &Place) -> i64 {
    place.state("run")["outer_iteration"].as_i64().expect("a number") * 2
}

/// A run whose logs are those of the program of schema version 1.0, killed in step 27, with the checkpoint of step 18.
fn old_run(place: &Place) {
    place.train("run", &["--max-steps", "9", "--set", "pipeline.lag=1"]);
    std::fs::remove_dir_all(place.path("run/logs")).expect("the new logs");
    let old = fixture("logs-1.0/logs");
    for table in file_names(&old).iter().filter(|name| !name.contains('.')) {
        std::fs::create_dir_all(place.path("run/logs").join(table)).expect("a folder");
        for name in file_names(&old.join(table)) {
            std::fs::copy(old.join(table).join(&name), place.path("run/logs").join(table).join(&name)).expect("a part");
        }
    }
    std::fs::copy(old.join("sums.jsonl"), place.path("run/logs/sums.jsonl")).expect("the list");
    let record = String::from_utf8(crate::place::read(&place.path("run/run.json"))).expect("UTF-8");
    let record = record.replace("\"finished\"", "\"running\"").replace("\"segment\": 0", "\"segment\": 1");
    std::fs::write(place.path("run/run.json"), record).expect("written");
}

#[test]
fn a_run_of_the_first_schema_is_read_and_resumed() {
    let place = Place::new();
    old_run(&place);
    let frame: Value = serde_json::from_str(&place.succeed(&["top", "run", "--json"])).expect("JSON");
    assert_eq!(frame["losses"][0]["history"].as_array().map(Vec::len), Some(26), "{frame}");
    let score = |frame: &Value| frame["stages"].as_array()?.iter().find(|stage| stage["stage"] == "score").cloned();
    assert_eq!(score(&frame).expect("the stage")["lag"], 1, "{frame}");
    assert!(place.succeed(&["timeline", "run"]).contains("encoder"));
    assert!(place.succeed(&["logs", "tail", "run", "--table", "masks", "-n", "1"]).contains(" mask="));
    assert_eq!(place.rows("run", "metrics").len(), 514);
    place.succeed(&["train", "--resume", "run", "--quiet", "--max-steps", "12"]);
    assert_eq!(place.loss_steps("run"), (1..=24).collect::<Vec<_>>(), "neither a gap nor a repeat");
    let marks = events(&place, "run", "went_back");
    assert!(matches!(&marks[..], [(2, 18, _)]), "{marks:?}");
    assert_eq!(place.run_record("run")["status"], "finished");
    let frame: Value = serde_json::from_str(&place.succeed(&["top", "run", "--json"])).expect("JSON");
    assert_eq!(score(&frame).expect("the stage")["lag"], 1, "measured now: {frame}");
    for table in ["metrics", "masks", "actors", "events", "evals"] {
        let num_parts = file_names(&place.path("run/logs").join(table)).len();
        assert!(num_parts >= 2, "old and new parts of {table}");
    }
    crate::readers::check_if_possible(&place, "run");
}
