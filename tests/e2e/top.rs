//! `top`, `timeline` and `simulate` on finished, running and killed runs.

use serde_json::Value;

use crate::place::{Place, wait_for};

fn json(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&place.succeed(args)).expect("one JSON object")
}

#[test]
fn top_shows_a_finished_run_from_its_logs() {
    let place = Place::new();
    place.train("run", &[]);
    let text = place.succeed(&["top", "run", "--once"]);
    assert_eq!(text, place.succeed(&["top", "run"]), "one frame where there is no terminal");
    assert!(!text.contains('\u{1b}'), "plain text: {text:?}");
    for part in ["run  finished  ", "outer 7/7 (100.0 %)", "loss mask", "load 0", "encoder 0", "log 0"] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    let frame = json(&place, &["top", "run", "--json"]);
    assert_eq!((&frame["outer"], &frame["is_running"]), (&7.into(), &false.into()), "{frame}");
    let stages = frame["stages"].as_array().expect("stages");
    let items = |name: &str| stages.iter().find(|stage| stage["stage"] == name).expect("a stage")["items"].clone();
    assert_eq!((items("encoder"), items("policy")), (14.into(), 7.into()));
    for loss in frame["losses"].as_array().expect("losses") {
        assert!(loss["newest"].as_f64().is_some_and(f64::is_finite), "{loss}");
        assert!(loss["history"].as_array().is_some_and(|history| history.len() >= 7), "{loss}");
    }
}

#[test]
fn top_follows_a_run_at_work_and_knows_one_that_was_killed() {
    let place = Place::new();
    let settings = ["--set", "train.outer_iterations=1000000", "--set", "logs.actors_every_seconds=0.1"];
    let mut args = vec!["train", "tiny.toml", "--quiet", "--run-dir", "run"];
    args.extend(settings);
    let mut running = place.start(&args);
    let record = place.path("run/config.toml");
    wait_for("a run", || record.exists() || running.has_ended());
    let frame = || json(&place, &["top", "run", "--json"]);
    wait_for("samples", || {
        place.path("run/logs/live").exists() && frame()["stages"].as_array().is_some_and(|s| s.len() >= 6)
    });
    let first = frame();
    assert_eq!((&first["is_running"], &first["status"]), (&true.into(), &"running".into()), "{first}");
    wait_for("progress", || frame()["outer"].as_u64() > first["outer"].as_u64());
    running.signal("KILL");
    assert_eq!(running.end().code, None);
    let text = place.succeed(&["top", "run"]);
    assert!(text.contains("died (its process is gone"), "{text}");
    assert!(text.contains("encoder 0"), "{text}");
    assert!(place.succeed(&["timeline", "run"]).contains("encoder"));
}

#[test]
fn a_timeline_accounts_for_the_time_of_every_stage() {
    let place = Place::new();
    place.train("run", &["--set", "train.outer_iterations=40", "--set", "actors.load.workers=2"]);
    let timeline = json(&place, &["timeline", "run", "--json"]);
    let stages = timeline["stages"].as_array().expect("stages");
    let names: Vec<_> = stages.iter().map(|stage| stage["stage"].as_str().expect("a name")).collect();
    assert_eq!(names, ["load", "score", "encoder", "evaluator", "policy", "log"]);
    let wall = timeline["span_s"][1].as_f64().expect("end") - timeline["span_s"][0].as_f64().expect("begin");
    for stage in stages {
        let seconds = |key: &str| stage[key].as_f64().expect("seconds");
        let covered = seconds("busy_s") + seconds("wait_in_s") + seconds("wait_out_s");
        assert!(covered > 0.0 && covered <= (wall + 1e-6) * seconds("num_workers"), "{covered} of {wall}: {stage}");
        assert!(stage["buckets"].as_array().is_some_and(|buckets| !buckets.is_empty()), "{stage}");
    }
    assert_eq!((&stages[0]["num_workers"], &stages[4]["items"]), (&2.into(), &40.0.into()));
    assert_eq!(timeline["policy_version"], 40);
    let text = place.succeed(&["timeline", "run"]);
    assert!(text.contains("at least max(0, busy_encoder + max(busy_evaluator, busy_policy) - wall)"), "{text}");
    assert!(text.lines().skip(1).take(6).all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn a_simulation_says_what_it_knows_of_other_machines() {
    let place = Place::new();
    place.train("run", &["--set", "train.outer_iterations=40"]);
    let report = json(&place, &["simulate", "run", "--cores", "1,64", "--lag", "0,2", "--json"]);
    let cases = report["cases"].as_array().expect("cases");
    let value = |place: usize, key: &str| cases[place][key].as_f64().expect("a number");
    assert_eq!(cases.len(), 4);
    // In the simulation more cores or lag are never slower, and a single core is never idle.
    assert!(value(2, "outer_per_s") >= value(0, "outer_per_s"), "{report}");
    assert!(value(3, "outer_per_s") >= value(2, "outer_per_s"), "{report}");
    assert!(value(1, "efficiency") > 0.97 && value(3, "efficiency") < 0.5, "{report}");
    assert!(report["measured"]["outer_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    let text = place.succeed(&["simulate", "run"]);
    assert_eq!(text.lines().count(), 4 + 9, "three numbers of cores with three lags: {text}");
    assert_eq!(place.run(&["simulate", "run", "--cores", "0"]).code, Some(2));
}

#[test]
fn a_run_that_is_none_is_refused() {
    let place = Place::new();
    for command in ["top", "timeline", "simulate"] {
        assert!(place.fail(66, &[command, "nope"])[0].contains("nope"), "{command}");
    }
}
