//! An interrupted run, resumed, ends where the uninterrupted one does.

use crate::place::Place;
use crate::place::{file_names, wait_for};

/// Long enough to be interrupted by a test, short enough to be run to the end.
const LONG: [&str; 6] =
    ["--set", "train.outer_iterations=500", "--set", "checkpoint.every_steps=50", "--set", "eval.at_end=false"];

fn start_and_signal(place: &Place, run: &str, settings: &[&str], signal: &str) -> crate::place::Ended {
    let mut args = vec!["train", "tiny.toml", "--run-dir", run];
    args.extend(LONG.iter().chain(settings));
    let mut running = place.start(&args);
    let latest = place.path(run).join("checkpoints/latest/state.json");
    wait_for("a checkpoint", || latest.exists() || running.has_ended());
    running.signal(signal);
    running.end()
}

fn straight(place: &Place, run: &str, settings: &[&str]) {
    let mut args = LONG.to_vec();
    args.extend(settings);
    place.train(run, &args);
}

#[test]
fn stopped_by_a_signal_and_resumed_equals_straight() {
    for (signal, code, settings) in
        [("INT", 130, &[][..]), ("TERM", 143, &["--set", "pipeline.lag=1", "--set", "actors.score.workers=2"])]
    {
        let place = Place::new();
        straight(&place, "straight", settings);
        let ended = start_and_signal(&place, "stopped", settings, signal);
        assert_eq!(ended.code, Some(code), "{ended:#?}");
        assert!(!ended.err.contains("error"), "a signal is no error: {ended:#?}");

        let record = place.run_record("stopped");
        assert_eq!(record["status"], "interrupted");
        assert_eq!(record["exit_code"], code);
        assert_eq!(place.live_streams("stopped"), Vec::<String>::new(), "all logs are sealed");
        let (done, step) = (place.state("stopped")["outer_iteration"].clone(), record["step"].clone());
        assert_eq!(done.as_u64().map(|done| 2 * done), step.as_u64(), "the checkpoint is the newest state");
        assert!(done.as_u64() < Some(500), "{done}");
        assert_ne!(place.weights("straight"), place.weights("stopped"));

        place.succeed(&["train", "--resume", "stopped", "--quiet"]);
        place.assert_same_end("straight", "stopped");
        assert_eq!(place.run_record("stopped")["status"], "finished");
        assert_eq!(place.run_record("stopped")["segment"], 1);
    }
}

#[test]
fn killed_and_resumed_equals_straight() {
    let place = Place::new();
    straight(&place, "straight", &[]);
    let ended = start_and_signal(&place, "killed", &[], "KILL");
    assert_eq!(ended.code, None, "{ended:#?}");
    assert_eq!(place.run_record("killed")["status"], "running", "nobody was left to say otherwise");
    assert!(!place.live_streams("killed").is_empty());
    // Resume it serially this time: the number of workers does not matter either.
    place.succeed(&["train", "--resume", "killed", "--serial", "--quiet"]);
    place.assert_same_end("straight", "killed");
    assert_eq!(place.live_streams("killed"), Vec::<String>::new());
    let names = file_names(&place.path("killed/checkpoints"));
    assert!(names.iter().all(|name| !name.contains("tmp")), "{names:?}");
}

#[test]
fn an_instruction_set_is_recorded_kept_and_its_change_told() {
    let place = Place::new();
    let half = ["--set", "train.outer_iterations=4", "--max-outer", "2", "--isa", "portable"];
    for run in ["kept", "twin", "changed"] {
        place.train(run, &half);
        assert_eq!(place.run_record(run)["host"]["isa"], "portable");
    }
    let resume = |run: &str, isa: &str| {
        let ended = place.start(&["train", "--resume", run, "--set", "train.outer_iterations=4", "--isa", isa]).end();
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        ended.err
    };
    for run in ["kept", "twin"] {
        assert!(!resume(run, "portable").contains("rounds otherwise"));
    }
    place.assert_same_end("kept", "twin");
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        let told = resume("changed", "avx2");
        assert!(told.contains("computed with portable and goes on with avx2"), "{told}");
        assert_eq!(place.run_record("changed")["host"]["isa"], "avx2");
        assert_ne!(place.weights("kept"), place.weights("changed"), "otherwise nothing was chosen");
    }
    let refused = place.fail(2, &["train", "tiny.toml", "--isa", "sse"]);
    assert!(refused[0].contains("must be one of portable"), "{refused:?}");
}

#[test]
fn a_run_in_bf16_resumes_to_the_bits_of_a_straight_one() {
    let place = Place::new();
    let bf16 = ["--set", "compute.precision=bf16"];
    place.train("straight", &bf16);
    place.train("resumed", &[&bf16[..], &["--serial"]].concat());
    let record = place.run_record("resumed");
    assert!(record["host"]["arithmetic"].as_str().is_some_and(|words| words.contains("bf16")), "{record}");
    place.succeed(&["train", "--resume", "resumed/checkpoints/step-00000006", "--quiet"]);
    place.assert_same_end("straight", "resumed");
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let place = Place::new();
    place.train("run", &[]);
    let path = place.path("run/checkpoints/latest/mask.safetensors");
    let mut bytes = crate::place::read(&path);
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&path, bytes).expect("write");
    for args in [&["train", "--resume", "run", "--max-outer", "9"][..], &["inspect", "run"], &["eval", "knn", "run"]] {
        let lines = place.fail(65, args);
        assert!(lines.len() == 1 && lines[0].contains("mask.safetensors"), "{args:?}: {lines:?}");
    }
}

#[test]
fn a_run_goes_back_to_an_older_checkpoint_when_the_newest_is_damaged() {
    let place = Place::new();
    place.train("straight", &[]);
    place.train("run", &[]);
    let steps = || file_names(&place.path("run/checkpoints"));
    let newest = "run/checkpoints/step-00000014";
    let older = steps().into_iter().rfind(|name| name.starts_with("step-") && !newest.ends_with(name.as_str()));
    let older = older.expect("an older checkpoint");
    std::fs::write(place.path(newest).join("mask.safetensors"), b"torn").expect("write");
    let refusals = [
        &["train", "--resume", "run"][..],
        &["eval", "knn", "run"],
        &["visualize", "run", "--out", "panel.png"],
        &["train", "--resume", newest],
    ];
    for args in refusals {
        let lines = place.fail(65, args);
        assert!(lines.len() == 1 && lines[0].contains("mask.safetensors"), "{args:?}: {lines:?}");
        assert!(lines[0].ends_with(&format!("run/checkpoints/{older}")), "{args:?}: {lines:?}");
    }
    let from = format!("run/checkpoints/{older}");
    place.succeed(&["eval", "knn", &from]);
    place.succeed(&["train", "--resume", &from, "--quiet"]);
    place.assert_same_end("straight", "run");
    assert_eq!(place.loss_steps("run"), (1..=14).collect::<Vec<_>>(), "neither a gap nor a repeat");
    assert!(steps().contains(&"aside-step-00000014".to_owned()), "{:?}", steps());
    place.succeed(&["train", "--resume", "run", "--quiet"]);
}

#[test]
fn events_have_the_step_at_which_they_happened() {
    let place = Place::new();
    place.train("run", &["--max-outer", "4"]);
    place.succeed(&["train", "--resume", "run", "--max-outer", "7", "--quiet"]);
    let events = place.rows("run", "events");
    let steps = |kind: &str| -> Vec<String> {
        let rows = events.iter().filter(|row| row.contains(&format!(",{kind},")));
        rows.map(|row| row.split(',').nth(5).expect("step").to_owned()).collect()
    };
    assert_eq!(steps("run_started"), ["0"]);
    assert_eq!(steps("run_resumed"), ["8"]);
    assert_eq!(steps("checkpoint"), ["6", "8", "12", "14"]);
}

#[test]
fn a_run_that_is_killed_before_its_evaluation_is_not_finished() {
    let place = Place::new();
    let settings = ["--set", "data.synthetic.num_train=6000", "--set", "data.synthetic.num_test=3000"];
    let mut running = place.start(&[&["train", "tiny.toml", "--quiet", "--run-dir", "run"][..], &settings].concat());
    let last = place.path("run/checkpoints/step-00000014");
    wait_for("the last checkpoint", || last.exists() || running.has_ended());
    running.signal("KILL");
    assert_eq!(running.end().code, None);
    let record = place.run_record("run");
    assert_eq!((&record["status"], &record["ended"]), (&"running".into(), &serde_json::Value::Null));
    place.succeed(&["train", "--resume", "run", "--quiet"]);
    assert_eq!(place.run_record("run")["status"], "finished");
    assert_eq!(place.rows("run", "evals").len(), 2);
}
