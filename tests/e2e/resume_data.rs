//! A resume compares the data with those of the run so far, and finds them after a move.

use std::path::Path;

use image::{GrayImage, Luma};
use mlomae_storage::checkpoint::{self, CheckpointRef, NamedTensor};
use serde_json::{Value, json};

use crate::place::Place;

/// A change of the data below a folder.
type Edit = fn(&Path);

/// 90 + 18 images in three classes as a folder.
fn write_folder(place: &Place, name: &str) {
    for (split, num) in [("train", 90), ("test", 18)] {
        for number in 0..num {
            let (class, shade) = (["ant", "bee", "cat"][number % 3], number as u8);
            let folder = place.path(name).join(split).join(class);
            std::fs::create_dir_all(&folder).expect("folder");
            let image = GrayImage::from_fn(16, 16, |x, y| {
                Luma([shade.wrapping_mul(7) ^ (x * 16 + y * (1 + number as u32 % 3)) as u8])
            });
            image.save(folder.join(format!("{number:03}.png"))).expect("saved");
        }
    }
}

const FOLDER: [&str; 4] = ["--set", "data.format=image-folder", "--set", "data.path=data"];

/// A place with a run of half its length on a folder of images.
fn half_a_run(place: &Place) {
    write_folder(place, "data");
    place.train("run", &[&FOLDER[..], &["--max-outer", "4"]].concat());
}

const GO_ON: [&str; 5] = ["train", "--resume", "run", "--max-outer", "7"];

fn exchange(a: &Path, b: &Path) {
    let (first, second) = (std::fs::read(a).expect("read"), std::fs::read(b).expect("read"));
    std::fs::write(a, second).expect("write");
    std::fs::write(b, first).expect("write");
}

#[test]
fn data_that_changed_are_refused_with_what_changed_and_accepted_if_wanted() {
    let changes: [(&str, Edit); 5] = [
        ("train: 89 images, were 90", |data| std::fs::remove_file(data.join("train/cat/002.png")).expect("removed")),
        ("train: class 2 is \"dog\", was \"cat\"", |data| {
            for split in ["train", "test"] {
                std::fs::rename(data.join(split).join("cat"), data.join(split).join("dog")).expect("renamed");
            }
        }),
        ("train: 4 classes, were 3", |data| {
            std::fs::create_dir(data.join("train/dog")).expect("made");
            std::fs::rename(data.join("train/cat/002.png"), data.join("train/dog/0.png")).expect("moved");
        }),
        ("train: labels or their order", |data| {
            std::fs::rename(data.join("train/ant/000.png"), data.join("train/bee/000.png")).expect("moved");
        }),
        ("train: pixels of sample 0 (2 of 90 compared images differ)", |data| {
            exchange(&data.join("train/ant/000.png"), &data.join("train/cat/002.png"));
        }),
    ];
    for (what, change) in changes {
        let place = Place::new();
        half_a_run(&place);
        change(&place.path("data"));
        let (weights, record) = (place.weights("run"), place.run_record("run"));
        let lines = place.fail(78, &GO_ON);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("data is not what the checkpoint was trained on (train: "), "{lines:?}");
        assert!(lines[0].contains(what) && lines[0].contains("--accept-changed-data"), "{what}: {lines:?}");
        assert_eq!((weights, record), (place.weights("run"), place.run_record("run")), "nothing is touched");
        // Other data to evaluate on give a warning; other classes are refused.
        if what.contains("class") {
            assert!(place.fail(78, &["eval", "knn", "run"])[0].contains("same classes"));
        } else {
            let ended = place.run(&["eval", "knn", "run", "--json"]);
            assert!(ended.code == Some(0) && ended.err.contains(what), "{ended:#?}");
        }
        if what.contains("classes") {
            // The head has another shape then.
            let lines = place.fail(65, &[&GO_ON[..], &["--accept-changed-data"]].concat());
            assert!(lines.len() == 1 && lines[0].contains("must have shape"), "{lines:?}");
            continue;
        }
        place.succeed(&[&GO_ON[..], &["--accept-changed-data", "--quiet"]].concat());
        let events = place.rows("run", "events");
        assert_eq!(events.iter().filter(|row| row.contains(",warn,data_changed,")).count(), 1, "{events:#?}");
        // From then on these are the run's data.
        place.succeed(&["train", "--resume", "run", "--max-outer", "8", "--quiet"]);
    }
    let place = Place::new();
    assert!(place.fail_usage(&["train", "tiny.toml", "--accept-changed-data"]).contains("--resume"));
}

#[test]
fn what_changes_no_training_is_told_and_the_run_goes_on() {
    let changes: [(&str, Edit); 2] = [
        ("test: 17 images, were 18", |data| std::fs::remove_file(data.join("test/ant/000.png")).expect("removed")),
        ("train: names or lengths of files, all images are the same", |data| {
            std::fs::rename(data.join("train/ant/000.png"), data.join("train/ant/0000.png")).expect("renamed");
        }),
    ];
    for (what, change) in changes {
        let place = Place::new();
        half_a_run(&place);
        place.copy("run", "same");
        place.succeed(&["train", "--resume", "same", "--max-outer", "7", "--quiet"]);
        change(&place.path("data"));
        let ended = place.run(&[&GO_ON[..], &["--quiet"]].concat());
        assert!(ended.code == Some(0) && ended.err.contains(what), "{ended:#?}");
        assert_eq!(place.weights("same"), place.weights("run"), "training does not depend on it");
    }
}

#[test]
fn data_are_found_from_any_folder_and_beside_a_moved_run() {
    let place = Place::new();
    half_a_run(&place);
    std::fs::create_dir(place.path("deep")).expect("folder");
    for args in [&["eval", "knn", "../run"][..], &["visualize", "../run", "--out", "panel.png"]] {
        let ended = place.run_in("deep", args);
        assert_eq!((ended.code, &*ended.err), (Some(0), ""), "{args:?}");
    }
    let resume = ["train", "--resume", "../run", "--max-outer", "5", "--quiet"];
    let ended = place.run_in("deep", &resume);
    assert_eq!((ended.code, &*ended.err), (Some(0), ""));
    // Run and data have moved together.
    std::fs::create_dir(place.path("there")).expect("folder");
    for name in ["run", "data"] {
        std::fs::rename(place.path(name), place.path("there").join(name)).expect("moved");
    }
    let ended = place.run(&["train", "--resume", "there/run", "--max-outer", "6", "--quiet"]);
    assert!(ended.code == Some(0) && ended.err.contains("no longer at"), "{ended:#?}");
    // The data alone.
    std::fs::rename(place.path("there/data"), place.path("elsewhere")).expect("moved");
    let go_on = ["train", "--resume", "there/run", "--max-outer", "7", "--quiet"];
    for args in [&go_on[..], &["eval", "knn", "there/run"]] {
        let lines = place.fail(66, args);
        assert!(lines.len() == 1 && lines[0].starts_with("dataset not found: "), "{lines:?}");
        assert!(lines[0].ends_with("there/data; if it has moved: --set data.path=NEW"), "{lines:?}");
    }
    place.succeed(&[&go_on[..], &["--set", "data.path=elsewhere"]].concat());
    place.succeed(&["eval", "knn", "there/run"]);
    assert_eq!(place.loss_steps("there/run"), (1..=14).collect::<Vec<_>>());
}

/// Rewrites the newest checkpoint with its state changed by `change`.
fn with_state(place: &Place, run: &str, change: impl FnOnce(&mut Value)) {
    let mut loaded = checkpoint::load(&place.path(run)).expect("a checkpoint");
    change(&mut loaded.state);
    let refs = |tensors: &'static [NamedTensor]| tensors.iter().map(NamedTensor::as_ref).collect::<Vec<_>>();
    let loaded: &'static checkpoint::Checkpoint = Box::leak(Box::new(loaded));
    let reference = CheckpointRef {
        model: refs(&loaded.model),
        head: refs(&loaded.head),
        mask: refs(&loaded.mask),
        optimizer: refs(&loaded.optimizer),
        state: &loaded.state,
        keep: 9,
    };
    checkpoint::save(&place.path(run), loaded.step, &reference).expect("saved");
}

#[test]
fn a_checkpoint_of_an_older_version_goes_on_with_a_note() {
    let place = Place::new();
    write_folder(&place, "data");
    place.train("run", &[&FOLDER[..], &["--max-outer", "4"]].concat());
    place.copy("run", "straight");
    place.succeed(&["train", "--resume", "straight", "--max-outer", "7", "--quiet"]);
    // Older versions recorded neither a hash of the contents nor absolute paths.
    let folder = place.path("").canonicalize().expect("a folder").display().to_string();
    let folder = folder.trim_end_matches('/');
    let as_before = |text: &str| {
        let text = text.replace(&format!("\"{folder}/data\""), "\"data\"").replace(&format!("\"{folder}\""), "\".\"");
        assert!(text.contains("path = \"data\"") && text.contains("root = \".\""), "{text}");
        text
    };
    with_state(&place, "run", |state| {
        state.as_object_mut().expect("object").remove("data_content").expect("there");
        state["config"] = Value::String(as_before(state["config"].as_str().expect("text")));
    });
    let config = String::from_utf8(crate::place::read(&place.path("run/config.toml"))).expect("UTF-8");
    place.write("run/config.toml", as_before(&config).as_bytes());
    std::fs::create_dir(place.path("deep")).expect("folder");
    let ended = place.run_in("deep", &["train", "--resume", "../run", "--max-outer", "7"]);
    assert!(ended.code == Some(0) && ended.err.contains("of an older version"), "{ended:#?}");
    assert_eq!(place.weights("straight"), place.weights("run"));
}

#[test]
fn a_state_that_cannot_be_is_refused_in_one_line() {
    let place = Place::new();
    place.train("base", &["--max-outer", "4"]);
    let cases: [(&str, Value, &str); 11] = [
        ("/outer_iteration", json!(-1), "outer_iteration must be a whole number"),
        ("/outer_iteration", json!(3), "step must be 6"),
        ("/outer_iteration", json!(1e300), "outer_iteration must be a whole number"),
        ("/step", json!(-8), "step must be"),
        ("/wall_s", json!(-1.0), "wall_s must be seconds"),
        ("/wall_s", json!("soon"), "wall_s must be seconds"),
        ("/policy/adamw_step", json!(400), "policy.adamw_step must be a whole number from 0 to 4"),
        ("/normalisation/std", json!([0.0]), "normalisation must have finite values"),
        ("/normalisation/mean", json!([0.5, 0.5, 0.5]), "normalisation must have finite values"),
        ("/normalisation/mean", json!([1e60]), "normalisation must have finite values"),
        ("/data_content/train", json!({ "format": 3 }), "data_content"),
    ];
    for (number, (key, value, expected)) in cases.into_iter().enumerate() {
        let run = format!("run-{number}");
        place.copy("base", &run);
        with_state(&place, &run, |state| *state.pointer_mut(key).expect(key) = value.clone());
        for args in [&["train", "--resume", &run, "--max-outer", "7"][..], &["eval", "knn", &run]] {
            let lines = place.fail(65, args);
            assert!(lines.len() == 1 && lines[0].contains(expected), "{key} {value}: {lines:?}");
            assert!(lines[0].contains(&run), "{lines:?}");
        }
    }
    // A folder that claims another step.
    place.copy("base/checkpoints/step-00000008", "base/checkpoints/step-00000007");
    let lines = place.fail(65, &["train", "--resume", "base/checkpoints/step-00000007", "--max-outer", "7"]);
    assert!(lines.len() == 1 && lines[0].contains("is of step 8, not of step 7"), "{lines:?}");
}
