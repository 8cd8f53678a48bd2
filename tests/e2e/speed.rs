//! `bench` and `tune`: they run and print results, and the settings that `tune` writes change no weight.

use serde_json::Value;

use crate::place::Place;

#[test]
fn bench_reports_levels_pipeline_and_memory() {
    let place = Place::new();
    let ended =
        place.succeed(&["bench", "--preset", "tiny", "--batch", "8", "--rounds", "2", "--threads", "1", "--json"]);
    let report: Value = serde_json::from_str(&ended).expect("one JSON object");
    let number = |pointer: &str| {
        report.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer}: {report}"))
    };
    let levels: f64 =
        ["score", "pretrain", "evaluate", "policy"].map(|level| number(&format!("/levels/{level}_ms"))).iter().sum();
    // Medians of parts and of the whole differ, but not by much.
    assert!((0.5..2.0).contains(&(levels / number("/ms_outer"))), "{report}");
    assert!(number("/peak_percent") > 0.0 && number("/peak_percent") < 300.0, "{report}");
    assert!(number("/peak_bytes") > 1e6 && number("/images_per_s") > 0.0, "{report}");
    assert_eq!(report["num_rounds"], 2);
    assert_eq!(report["peer"], Value::Null);
    let stages = report["pipeline"]["stages"].as_array().expect("stages");
    let names: Vec<_> = stages.iter().filter_map(|stage| stage["stage"].as_str()).collect();
    assert_eq!(names, ["load", "score", "encoder", "evaluator", "policy", "log"]);
    for stage in stages {
        let shares: f64 =
            ["utilization", "wait_in", "wait_out"].iter().filter_map(|share| stage[*share].as_f64()).sum();
        assert!((0.9..1.1).contains(&shares), "the time is work or waiting: {stage}");
    }
}

#[test]
fn a_peer_that_is_none_is_said_so() {
    let place = Place::new();
    let missing = place.run(&["bench", "--rounds", "1", "--peer", "/no/python"]);
    assert_eq!(missing.code, Some(66), "{missing:#?}");
    assert!(missing.err.contains("--peer: cannot run /no/python"), "{missing:#?}");
    let other = place.run(&["bench", "--rounds", "1", "--peer", "/bin/true"]);
    assert_eq!(other.code, Some(66), "{other:#?}");
    assert!(other.err.contains("needs a Python with torch"), "{other:#?}");
}

#[test]
fn what_tune_writes_is_an_overlay_that_changes_no_result() {
    let place = Place::new();
    let ended = place.succeed(&["tune", "tiny.toml", "--budget", "4", "--out", "tuned.toml"]);
    assert!(ended.contains("as configured") && ended.contains("bottleneck: "), "{ended:#?}");
    let overlay = std::fs::read_to_string(place.path("tuned.toml")).expect("overlay");
    assert!(overlay.contains("[actors.encoder]\nworkers = "), "{overlay}");
    place.train("plain", &[]);
    place.train("tuned", &["--config-overlay", "tuned.toml"]);
    assert_eq!(place.weights("plain"), place.weights("tuned"));
    // Nor would other settings that `tune` may pick on another machine.
    let other = "[actors.load]\nworkers = 3\n[actors.score]\nworkers = 2\nqueue_cap = 0\n\
                 [actors.encoder]\nworkers = 3\nmicro_batch = 8\n[actors.evaluator]\nmicro_batch = 4\nqueue_cap = 8\n\
                 [actors.policy]\nmicro_batch = 2\n";
    place.write("other.toml", other.as_bytes());
    place.train("other", &["--config-overlay", "other.toml"]);
    assert_eq!(place.weights("plain"), place.weights("other"));
}

#[test]
fn tune_refuses_what_it_cannot_use() {
    let place = Place::new();
    let broken = place.run(&["tune", "tiny.toml", "--set", "actors.load.workers=1000"]);
    assert_eq!(broken.code, Some(78), "{broken:#?}");
    let nowhere = place.run(&["tune", "tiny.toml", "--budget", "1", "--out", "no/folder/tuned.toml"]);
    assert_eq!(nowhere.code, Some(74), "{nowhere:#?}");
}
