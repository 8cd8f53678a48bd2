//! Broken configurations and checkpoints that do not fit: the message names the key or tensor, and no file is changed.

use std::collections::BTreeMap;
use std::path::Path;

use crate::place::{Place, file_names, read};

/// Whether a line about a problem says what it is about and what is allowed.
fn is_whole(line: &str) -> bool {
    // An error of TOML syntax has a position instead of a key; an unknown key has no allowed values.
    let has_place = line.starts_with("broken.toml:");
    has_place || line.contains(": unknown key") || (line.contains("(allowed: ") && line.ends_with(')'))
}

#[test]
fn broken_configurations_are_refused_by_key_value_and_range_before_anything_is_begun() {
    let cases: toml::Table = include_str!("../fixtures/broken-configs.toml").parse().expect("TOML");
    let cases = cases["case"].as_array().expect("cases");
    let text = |case: &toml::Value, key: &str| case[key].as_str().expect("text").to_owned();
    let mut cases: Vec<_> = cases.iter().map(|case| (text(case, "text"), vec![text(case, "begins")])).collect();
    assert!(cases.len() >= 60, "{}", cases.len());
    let many = |text: &str, begins: &[&str]| (text.to_owned(), begins.iter().map(|&line| line.to_owned()).collect());
    cases.push(many(
        "[mask]\nratio = 2\n[pretrain]\nlearning_rate = 0.1\n[actors.load]\nqueue_cap = 9",
        &[
            "actors.load.queue_cap = 9",
            "mask.ratio = 2",
            "pretrain.learning_rate: unknown key; did you mean pretrain.lr?",
        ],
    ));
    cases.push(many("[model]\nheads = 5\npatch = 5", &["model.heads = 5", "model.patch = 5"]));
    let place = Place::new();
    let (mut num_refusals, mut num_lines) = (0, 0);
    for (config, begins) in &cases {
        // The messages name the file, and the list gives it the name that the other test gives it.
        place.write("broken.toml", config.as_bytes());
        let begins: Vec<_> = begins.iter().map(|begin| begin.replace("test.toml", "broken.toml")).collect();
        for command in ["check", "train"] {
            let mut args = vec![command, "broken.toml"];
            if command == "train" {
                args.extend(["--set", "run.root=new"].iter().filter(|_| !config.contains("[run]")));
            }
            let mut lines = place.fail(78, &args);
            lines.sort();
            assert_eq!(lines.len(), begins.len(), "{command} {config:?}: {lines:?}");
            for (line, begin) in lines.iter().zip(&begins) {
                assert!(line.starts_with(begin), "{command} {config:?}: {line:?}");
                assert!(is_whole(line), "{command} {config:?}: {line:?}");
            }
            num_refusals += 1;
            num_lines += lines.len();
        }
        assert_eq!(file_names(&place.path("")), ["broken.toml", "tiny.toml"], "{config:?}: nothing is begun");
    }
    println!("{} broken configurations, {num_refusals} refusals with {num_lines} lines, no run directory", cases.len());
}

/// All files below a folder with their bytes, except the lock.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in file_names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            let inner = contents(&path);
            all.extend(inner.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if name != "run.lock" {
            all.insert(name, read(&path));
        }
    }
    all
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_by_name_and_nothing_is_touched() {
    let place = Place::new();
    place.train("run", &[]);
    let run = place.path("run");
    let whole = contents(&run);
    let mut num_refusals = 0;
    let mut refused = |settings: &[&str], code: i32, culprit: &str| {
        let before = contents(&run);
        let args = [&["train", "--resume", "run", "--max-outer", "9", "--quiet"][..], settings].concat();
        let lines = place.fail(code, &args);
        assert!(lines.len() == 1 && lines[0].contains(culprit), "{settings:?} {culprit}: {lines:?}");
        assert!(contents(&run) == before, "{settings:?} {culprit}: the run was touched");
        num_refusals += 1;
    };
    for (setting, culprit) in [
        ("model.dim=32", "model.dim = 32: cannot take effect"),
        ("model.depth=2", "model.depth = 2: cannot take effect"),
        ("model.patch=8", "model.patch = 8: cannot take effect"),
        ("mask.hidden=12", "mask.hidden = 12: cannot take effect"),
        ("mask.net=token-mlp", "mask.strategy = \"token-mlp\": cannot take effect"),
        ("pipeline.lag=1", "pipeline.lag = 1: cannot be raised"),
    ] {
        refused(&["--set", setting], 78, culprit);
    }
    let latest = run.join("checkpoints/latest");
    for name in file_names(&latest) {
        let path = latest.join(&name);
        let bytes = read(&path);
        for len in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..len]).expect("write");
            refused(&[], 65, &name);
        }
        if name != "state.json" {
            std::fs::remove_file(&path).expect("removed");
            refused(&[], 66, &name);
        }
        std::fs::write(&path, &bytes).expect("write");
    }
    let state = latest.join("state.json");
    let text = String::from_utf8(read(&state)).expect("UTF-8");
    for version in ["0", "2", "99", "\"1\""] {
        let other = text.replace("\"format_version\": 1", &format!("\"format_version\": {version}"));
        assert_ne!(other, text);
        std::fs::write(&state, other).expect("write");
        refused(&[], 65, "version");
    }
    std::fs::write(&state, text.replace("mlomae.checkpoint", "other.checkpoint")).expect("write");
    refused(&[], 65, "state.json");
    std::fs::write(&state, &text).expect("write");
    assert!(contents(&run) == whole);
    place.succeed(&["train", "--resume", "run", "--max-outer", "9", "--quiet"]);
    println!("{num_refusals} checkpoints that do not fit: each refused by name, nothing touched");
}
