//! Datasets from their generation to training on them, and the embedded default.

use serde_json::Value;

use crate::place::{Place, file_names, fixture};

fn info(place: &Place, args: &[&str]) -> Value {
    let mut all = vec!["data", "info", "--json"];
    all.extend(args);
    serde_json::from_str(&place.succeed(&all)).expect("JSON")
}

#[test]
fn without_a_configuration_the_quickstart_runs_from_an_empty_folder() {
    let place = Place::new();
    std::fs::remove_file(place.path("tiny.toml")).expect("remove");
    // The real networks and images of the quickstart; only its length and the evaluation are shortened.
    // The old name of the flag.
    let out = place.succeed(&["train", "--max-steps", "2", "--set", "eval.max_train=64", "--set", "eval.max_test=32"]);
    assert!(out.contains("k-NN"), "{out}");
    let runs = file_names(&place.path("runs"));
    let run = runs.iter().find(|name| *name != "latest").expect("a run");
    assert_eq!(place.run_record(&format!("runs/{run}"))["status"], "finished");
    assert_eq!(place.state(&format!("runs/{run}"))["step"], 4);
    let inspected = place.succeed(&["inspect", "latest"]);
    assert!(inspected.contains("step-00000004"), "{inspected}");
}

#[test]
fn a_generated_dataset_is_written_read_and_trained_on() {
    let place = Place::new();
    place.succeed(&["data", "synthetic", "shapes", "--num-train=90", "--num-test=16", "--image=16", "--channels=1"]);
    let report = info(&place, &["shapes"]);
    let splits = report["splits"].as_array().expect("splits");
    assert_eq!(splits.len(), 2);
    assert_eq!((&splits[0]["split"], &splits[0]["num_samples"]), (&"train".into(), &90.into()));
    assert_eq!((&splits[1]["split"], &splits[1]["num_samples"]), (&"test".into(), &16.into()));
    assert_eq!(splits[0]["max_size"], serde_json::json!([16, 16]));

    // The files hold the same pixels and labels as the generator, so training on them is the same.
    place.train("generated", &[]);
    place.train("files", &["--set", "data.format=hf-parquet", "--set", "data.path=shapes"]);
    assert_eq!(place.weights("generated"), place.weights("files"));
}

#[test]
fn every_format_converts_to_parquet_with_the_same_statistics() {
    let place = Place::new();
    for (path, format) in [
        ("cifar10-bin", "cifar-bin"),
        ("cifar10-py3", "cifar-pickle"),
        ("idx-gz", "idx"),
        ("image-folder", "image-folder"),
    ] {
        let source = fixture("readers").join(path);
        let source = source.to_str().expect("UTF-8");
        place.succeed(&["data", "convert", source, format]);
        let (before, after) = (info(&place, &[source]), info(&place, &[format]));
        let splits = |report: &Value| report["splits"].as_array().expect("splits").clone();
        assert_eq!(splits(&before).len(), splits(&after).len(), "{format}");
        for (before, after) in splits(&before).iter().zip(splits(&after)) {
            assert_eq!(before["format"], format);
            assert_eq!(after["format"], "hf-parquet");
            for key in ["split", "num_samples", "min_size", "max_size", "channels", "mean", "std", "classes"] {
                assert_eq!(before[key], after[key], "{format}: {key}");
            }
        }
    }
}

#[test]
fn a_shown_configuration_trains_the_same() {
    let place = Place::new();
    let shown = place.succeed(&["config", "show", "tiny.toml"]);
    place.write("shown.toml", shown.as_bytes());
    place.train("tiny", &[]);
    place.succeed(&["train", "shown.toml", "--run-dir", "shown"]);
    place.assert_same_end("tiny", "shown");
}
