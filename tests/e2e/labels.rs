//! Labels and classes from the files to the accuracy, and which split is evaluated on. The datasets are those of
//! `tests/fixtures/labels/make.py`: the same images with labels in several forms; any encoder separates the classes.

use serde_json::Value;

use crate::place::{Place, file_names, fixture, read};

fn data(name: &str) -> String {
    let path = fixture("labels").join(name);
    format!("data.path={}", path.to_str().expect("UTF-8"))
}

/// The arguments that put a dataset in the place of the generated one.
fn with<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--set", "data.format=auto", "--set", data];
    args.extend(more);
    args
}

/// The k-NN accuracies at the end of a run: trained and untrained.
fn accuracies(place: &Place, run: &str) -> Vec<f64> {
    let rows = place.rows(run, "evals");
    let value = |row: &String| {
        let mut fields = row.split(',').skip_while(|field| !field.starts_with("accuracy"));
        fields.nth(1).and_then(|value| value.parse().ok()).expect("a value behind the metric's name")
    };
    rows.iter().map(value).collect()
}

fn knn(place: &Place, run: &str, more: &[&str]) -> Value {
    let mut args = vec!["eval", "knn", run, "--json"];
    args.extend(more);
    serde_json::from_str(&place.succeed(&args)).expect("JSON")
}

#[test]
fn permuted_names_and_strings_are_judged_as_the_plain_labels_are() {
    let place = Place::new();
    for name in ["plain", "permuted", "string-index"] {
        place.train(name, &with(&data(name), &[]));
        assert_eq!(knn(&place, name, &[])["accuracy"], 1.0, "{name}");
        assert_eq!(place.rows(name, "evals").len(), 2, "{name}");
        // The classes are the same in the same order, and so are the weights.
        assert_eq!(place.weights("plain"), place.weights(name), "{name}");
    }
    // A conversion keeps what the labels mean.
    for name in ["permuted", "string-index"] {
        let source = fixture("labels").join(name);
        let out = place.succeed(&["data", "convert", source.to_str().expect("UTF-8"), &format!("{name}-copy")]);
        assert!(!out.contains("without"), "{out}");
        let (run, path) = (format!("{name}-run"), format!("data.path={name}-copy"));
        place.train(&run, &with(&path, &[]));
        assert_eq!(place.weights("plain"), place.weights(&run), "{name}");
        assert_eq!(knn(&place, &run, &[])["accuracy"], 1.0, "{name}");
    }
}

#[test]
fn a_column_that_tells_images_apart_is_no_label() {
    let place = Place::new();
    let data = data("string-index");
    let args = with(&data, &["--set", "data.label_column=__index_level_0__"]);
    for command in ["check", "train"] {
        let lines = place.fail(65, &[&[command, "tiny.toml"], &args[..]].concat());
        assert!(lines.len() == 1 && lines[0].contains("__index_level_0__ (int64)"), "{lines:?}");
        assert!(lines[0].contains("90 labelled images have 90 different ones"), "{lines:?}");
    }
    assert!(!place.path("runs").exists(), "nothing was begun");
}

#[test]
fn the_validation_split_judges_where_the_test_split_has_no_labels_and_it_is_said() {
    let place = Place::new();
    let data = data("unlabelled-test");
    let out = place.succeed(&[&["check", "tiny.toml"], &with(&data, &[])[..]].concat());
    assert!(out.contains("note       the test split has no labels: the validation split judges"), "{out}");
    let out = place.succeed(&[&["train", "tiny.toml", "--run-dir", "auto"], &with(&data, &[])[..]].concat());
    assert!(out.contains("k-NN        100.0 % of 24 validation images"), "{out}");
    assert!(place.rows("auto", "evals").iter().all(|row| row.contains(",validation,")), "the split has its name");
    let events = place.rows("auto", "events");
    assert!(events.iter().any(|row| row.contains("test_split") && row.contains("no labels")), "{events:?}");
    place.train("named", &with(&data, &["--set", "data.test_split=validation"]));
    assert_eq!(accuracies(&place, "auto"), accuracies(&place, "named"));
    assert_eq!(accuracies(&place, "auto").len(), 2);
    assert_eq!(place.weights("auto"), place.weights("named"));

    // If a split without labels is configured by name for the evaluation, the run is refused before it starts.
    let lines =
        place.fail(65, &[&["train", "tiny.toml"], &with(&data, &["--set", "data.test_split=test"])[..]].concat());
    assert!(lines[0].starts_with("data.test_split = test: the test split has no labels"), "{lines:?}");
    let lines = place.fail(66, &["train", "tiny.toml", "--set", "data.test_split=validation"]);
    assert!(lines[0].starts_with("data.test_split = validation: there is no validation split"), "{lines:?}");
    assert!(!place.path("runs").exists(), "nothing was begun");

    // A conversion says what has no label, and takes the validation split along.
    let source = fixture("labels/unlabelled-test");
    let out = place.succeed(&["data", "convert", source.to_str().expect("UTF-8"), "copy"]);
    assert_eq!(file_names(&place.path("copy")).len(), 3, "{out}");
    assert_eq!(out.lines().filter(|line| line.contains("30 images, 30 of them without a label")).count(), 1, "{out}");
    place.train("copied", &with("data.path=copy", &[]));
    assert_eq!(place.weights("auto"), place.weights("copied"));
}

#[test]
fn without_a_split_that_judges_training_ends_well_and_eval_names_the_key() {
    let place = Place::new();
    let data = data("unlabelled-test");
    let none = with(&data, &["--set", "data.test_split=none"]);
    let out = place.succeed(&[&["train", "tiny.toml", "--run-dir", "run"], &none[..]].concat());
    assert!(out.contains("k-NN        skipped, data.test_split is none"), "{out}");
    let record = place.run_record("run");
    assert_eq!((&record["status"], &record["exit_code"]), (&"finished".into(), &0.into()));
    assert_eq!(place.rows("run", "evals").len(), 0);
    for task in ["knn", "linear"] {
        let lines = place.fail(66, &["eval", task, "run"]);
        assert!(lines.len() == 1 && lines[0].contains("data.test_split"), "{lines:?}");
    }
    let judged = knn(&place, "run", &["--set", "data.test_split=validation"]);
    assert_eq!((&judged["split"], &judged["num_test"]), (&"validation".into(), &24.into()));
}

#[test]
fn a_failed_evaluation_costs_nothing_of_a_finished_run() {
    let place = Place::new();
    std::fs::create_dir(place.path("data")).expect("folder");
    for file in ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"] {
        place.write(&format!("data/{file}"), &read(&fixture("labels/plain").join(file)));
    }
    let test = "data/test-00000-of-00001.parquet";
    let whole = read(&place.path(test));
    let signatures: Vec<usize> = (0..whole.len()).filter(|at| whole[*at..].starts_with(b"\x89PNG")).collect();
    let mut damaged = whole.clone();
    damaged[signatures[4]] = b'?';
    place.write(test, &damaged);

    let args = [&["train", "tiny.toml", "--run-dir", "run"], &with("data.path=data", &[])[..]].concat();
    let lines = place.fail(65, &args);
    assert!(lines.len() == 1 && lines[0].contains("training is finished and saved"), "{lines:?}");
    assert!(lines[0].contains("test-00000-of-00001.parquet: sample 4"), "{lines:?}");
    let record = place.run_record("run");
    assert_eq!((&record["status"], &record["exit_code"]), (&"finished".into(), &65.into()));
    assert!(record["error"].as_str().is_some_and(|error| error.contains("sample 4")), "{record}");
    assert_eq!(place.state("run")["step"], 14);
    assert_eq!(place.loss_steps("run").last(), Some(&14));
    assert_eq!(place.live_streams("run"), [""; 0], "the logs are sealed");

    place.write(test, &whole);
    assert_eq!(knn(&place, "run", &[])["accuracy"], 1.0);
}
