//! Downstream tasks of every kind: feedback, resumes, evaluations and refusals.

use serde_json::Value;

use crate::place::Place;
use crate::schedules::values;

/// Every task, as the value of the key `task`, with the first metric of its probe.
const TASKS: [(&str, &str, &str); 8] = [
    ("labels", r#"[{ kind = "multi-label" }]"#, "mean_average_precision"),
    ("values", r#"[{ kind = "regression", loss = "mse", tap = "mean" }]"#, "r2"),
    ("patch", r#"[{ kind = "segmentation" }]"#, "mean_iou"),
    ("linear", r#"[{ kind = "segmentation", head = "linear" }]"#, "mean_iou"),
    ("up", r#"[{ kind = "segmentation", head = "up" }]"#, "mean_iou"),
    ("boxes", r#"[{ kind = "detection" }]"#, "ap"),
    ("fine", r#"[{ kind = "detection", upsample = 2 }]"#, "ap"),
    (
        "several",
        r#"[{ kind = "class", tap = "mean" }, { kind = "segmentation", weight = 0.5 }, { kind = "detection", name = "find" }]"#,
        "class.accuracy",
    ),
];

/// Images of a run that learns `task`: those of `tiny.toml`, without what depends on the length of the run.
fn settings(task: &str) -> Vec<String> {
    let settings = [
        &format!("task={task}"),
        "eval.at_end=false",
        "eval.linear_epochs=2",
        "pretrain.schedule=constant",
        "finetune.schedule=constant",
        "policy.schedule=constant",
    ];
    settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]).collect()
}

fn with<'a>(settings: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    settings.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

#[test]
fn every_task_gives_feedback_and_the_same_bits_however_it_runs() {
    let place = Place::new();
    for (name, task, metric) in TASKS {
        let settings = settings(task);
        place.train(name, &with(&settings, &["--set", "pipeline.lag=1"]));
        let (serial, half) = (format!("{name}-serial"), format!("{name}-half"));
        let other = ["--serial", "--set", "pipeline.lag=1", "--set", "actors.evaluator.micro_batch=1"];
        place.train(&serial, &with(&settings, &other));
        assert_eq!(place.weights(&serial), place.weights(name), "{name}: serial, in other pieces");
        place.train(&half, &with(&settings, &["--set", "pipeline.lag=1", "--max-outer", "3"]));
        place.succeed(&["train", "--resume", &half, "--max-outer", "7", "--quiet"]);
        place.assert_same_end(name, &half);

        let norms = values(&place, name, "hypergradient_norm");
        assert!(norms.len() == 7 && norms.iter().all(|norm| *norm > 0.0), "{name}: {norms:?}");

        let text = place.succeed(&["eval", "probe", name, "--json"]);
        let report: Value = serde_json::from_str(&text).expect("JSON");
        let first = &report["metrics"][0];
        assert_eq!(first["name"], metric, "{name}: {report:#}");
        let value = first["value"].as_f64().expect("a number");
        assert!(value.is_finite(), "{name}: {value}");
        if let (Some(low), Some(high)) = (first["ci_low"].as_f64(), first["ci_high"].as_f64()) {
            assert!(low <= high, "{name}: {low} {high}");
        }
    }
}

#[test]
fn a_probe_that_computes_tokens_again_says_the_same() {
    let place = Place::new();
    place.train("run", &with(&settings(TASKS[2].1), &[]));
    let probe = |more: &[&str]| -> Value {
        let text = place.succeed(&[&["eval", "probe", "run", "--json"], more].concat());
        serde_json::from_str::<Value>(&text).expect("JSON")["metrics"].take()
    };
    assert_eq!(probe(&[]), probe(&["--set", "eval.cache_mib=0"]));
}

#[test]
fn tasks_of_one_length_tell_how_far_they_agree() {
    let place = Place::new();
    let settings = settings(TASKS[7].1);
    place.train("run", &with(&settings, &["--set", "method.balance=normalised"]));
    place.train("serial", &with(&settings, &["--set", "method.balance=normalised", "--serial"]));
    assert_eq!(place.weights("serial"), place.weights("run"));
    for name in ["class.segmentation", "class.find", "segmentation.find"] {
        let cosines = values(&place, "run", &format!("task_cosine.{name}"));
        assert!(cosines.len() == 7 && cosines.iter().all(|cosine| cosine.abs() <= 1.0), "{name}: {cosines:?}");
    }
}

#[test]
fn a_run_without_classes_is_judged_by_its_own_task_at_the_end() {
    let place = Place::new();
    let args = ["--set", "method.task=segmentation", "--set", "eval.linear_epochs=1"];
    let mut all = vec!["train", "tiny.toml", "--run-dir", "run"];
    all.extend(args);
    let out = place.succeed(&all);
    assert!(out.lines().any(|line| line.starts_with("probe       mean iou ")), "{out}");
    let rows = place.rows("run", "evals");
    for name in ["mean_iou", "mean_iou_untrained", "pixel_accuracy"] {
        assert_eq!(rows.iter().filter(|row| row.contains(&format!(",{name},"))).count(), 1, "{name}: {rows:?}");
    }
    let again = place.succeed(&["train", "--resume", "run"]);
    assert!(again.lines().any(|line| line.starts_with("probe       mean iou ")), "{again}");
    let lines = place.fail(78, &["eval", "knn", "run"]);
    assert!(lines.len() == 1 && lines[0].contains("eval probe"), "{lines:?}");
}

#[test]
fn closed_forms_are_for_tasks_that_have_them() {
    let place = Place::new();
    for task in [TASKS[0].1, TASKS[1].1] {
        let ridge = [&["check", "tiny.toml", "--set", "method.hypergradient=ridge"][..], &["--set"]].concat();
        place.succeed(&[&ridge[..], &[&format!("task={task}")]].concat());
    }
    for task in [TASKS[2].1, TASKS[5].1] {
        let lines = place
            .fail(78, &["check", "tiny.toml", "--set", "method.hypergradient=ridge", "--set", &format!("task={task}")]);
        assert!(lines.len() == 1 && lines[0].contains("ridge"), "{lines:?}");
    }
}

#[test]
fn tasks_that_cannot_be_are_refused_by_name() {
    let place = Place::new();
    let refusal = |sets: &[&str]| {
        let mut args = vec!["check", "tiny.toml"];
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        let lines = place.fail(78, &args);
        assert_eq!(lines.len(), 1, "{sets:?}: {lines:?}");
        lines[0].clone()
    };
    for (sets, parts) in [
        (&[r#"task=[{ kind = "segmentaton" }]"#][..], &["task[0].kind", "did you mean \"segmentation\"?"][..]),
        (&[r#"task=[{ name = "a" }]"#], &["task[0].kind", "is missing", "multi-label"]),
        (&[r#"task=[{ kind = "detection", head = "up" }]"#], &["task[0].head", "unknown key"]),
        (&[r#"task=[{ kind = "segmentation", head = "upp" }]"#], &["task[0].head", "linear"]),
        (&[r#"task=[{ kind = "detection", upsample = 3 }]"#], &["task[0].upsample", "1, 2"]),
        (&[r#"task=[{ kind = "class" }, { kind = "class" }]"#], &["different names", "class"]),
        (&[r#"task=[{ kind = "class", weight = 2.0 }]"#], &["weight", "1"]),
        (&[r#"task=[{ kind = "class" }, { kind = "detection", weight = -1.0 }]"#], &["weight"]),
        (&["task=3"], &["task", "list"]),
        (&[r#"task=[{ kind = "detection" }]"#, "method.task=segmentation"], &["method.task", "[[task]]"]),
        (&[r#"task=[{ kind = "detection" }]"#, "method.shuffle_labels=true"], &["method.shuffle_labels"]),
    ] {
        let line = refusal(sets);
        for part in parts {
            assert!(line.contains(part), "{sets:?}: {line}");
        }
    }
}

#[test]
fn data_without_a_kind_of_targets_are_refused() {
    let place = Place::new();
    let args = ["train", "--set", "method.task=detection", "--run-dir", "run"];
    let lines = place.fail(65, &args);
    assert!(lines.len() == 1 && lines[0].contains("boxes"), "{lines:?}");
    assert!(!place.path("run").exists());
}
