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
    // Serially, for once: who goes on does not matter either.
    place.succeed(&["train", "--resume", "killed", "--serial", "--quiet"]);
    place.assert_same_end("straight", "killed");
    assert_eq!(place.live_streams("killed"), Vec::<String>::new());
    let names = file_names(&place.path("killed/checkpoints"));
    assert!(names.iter().all(|name| !name.contains("tmp")), "{names:?}");
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let place = Place::new();
    place.train("run", &[]);
    let path = place.path("run/checkpoints/latest/mask.safetensors");
    let mut bytes = crate::place::read(&path);
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&path, bytes).expect("write");
    for args in [&["train", "--resume", "run", "--max-steps", "9"][..], &["inspect", "run"], &["eval", "knn", "run"]] {
        let lines = place.fail(65, args);
        assert!(lines.len() == 1 && lines[0].contains("mask.safetensors"), "{args:?}: {lines:?}");
    }
}

#[test]
fn a_resumed_run_refuses_other_data() {
    let place = Place::new();
    place.train("run", &[]);
    let args = ["train", "--resume", "run", "--set", "data.synthetic.num_train=91", "--max-steps", "9"];
    let lines = place.fail(65, &args);
    assert!(lines[0].contains("fingerprint"), "{lines:?}");
}
