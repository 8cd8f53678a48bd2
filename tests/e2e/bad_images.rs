//! Images that cannot be decoded: refused with their names, or passed over, the same ones on every run.

use mlomae_storage::dataset::convert::encode_png;
use mlomae_storage::dataset::{Dataset, Split, SyntheticDataset, SyntheticSpec};

use crate::place::{Place, wait_for};

const SKIP: [&str; 2] = ["--set", "data.on_bad_image=skip"];
const FILES: [&str; 4] = ["--set", "data.format=image-folder", "--set", "data.path=images"];

/// Generated images as folders of PNG files, of which every `every`th of the train split (and one of the test split) is
/// damaged. Returns the number of damaged files of each.
fn spoilt_images(place: &Place, every: usize) -> (usize, usize) {
    let spec = SyntheticSpec { num_train: 90, num_test: 16, image: 16, channels: 1, ..SyntheticSpec::default() };
    let mut num_spoilt = (0, 0);
    for split in [Split::Train, Split::Test] {
        let images = SyntheticDataset::new(&spec, split).expect("images");
        for index in 0..images.len() {
            let sample = images.sample(index).expect("generated");
            let folder = place.path(&format!("images/{split}/class-{}", sample.label.expect("a label")));
            std::fs::create_dir_all(&folder).expect("folder");
            let png = encode_png(&sample.image).expect("encoded");
            let (is_bad, num) = match split {
                Split::Train => (index % every == every / 2, &mut num_spoilt.0),
                Split::Test | Split::Validation => (index == 5, &mut num_spoilt.1),
            };
            *num += usize::from(is_bad);
            let bytes = match index % 3 {
                _ if !is_bad => png,
                0 => png[..png.len() - 9].to_vec(),
                1 => b"\0\0\0\x1cftypavif\0\0\0\0avifmif1".to_vec(),
                _ => png.iter().enumerate().map(|(at, byte)| if at == png.len() / 2 { !byte } else { *byte }).collect(),
            };
            std::fs::write(folder.join(format!("{index:03}.png")), bytes).expect("written");
        }
    }
    num_spoilt
}

fn train(place: &Place, run: &str, more: &[&str]) -> String {
    let mut args = vec!["train", "tiny.toml", "--run-dir", run];
    args.extend(FILES.iter().chain(&SKIP).chain(more));
    place.succeed(&args)
}

fn with<'a>(first: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [first, &FILES, more].concat()
}

#[test]
fn bad_images_are_refused_by_name_unless_they_are_to_be_skipped() {
    let place = Place::new();
    let (num_train, num_test) = spoilt_images(&place, 7);
    let lines = place.fail(65, &with(&["train", "tiny.toml", "--run-dir", "refused"], &[]));
    assert!(lines[0].contains(".png: sample ") && lines[0].contains("images/train/class-"), "{lines:?}");
    let lines = place.fail(65, &with(&["check", "tiny.toml"], &[]));
    assert_eq!(lines.len(), num_train + num_test, "{lines:?}");
    assert!(lines.iter().any(|line| line.ends_with("not AVIF")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("truncated png image")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("corrupt png image")), "{lines:?}");

    let out = place.succeed(&with(&["check", "tiny.toml"], &SKIP));
    let line = format!("images     all 106 decoded; {} of them are bad and will be skipped", num_train + num_test);
    assert!(out.contains(&line), "{out}");
    let lines = place.fail(78, &with(&["check", "tiny.toml"], &["--set", "data.on_bad_image=ignore"]));
    assert!(lines[0].contains("data.on_bad_image") && lines[0].contains("skip"), "{lines:?}");
}

#[test]
fn skipped_images_are_named_once_and_the_same_on_every_run_and_resume() {
    let place = Place::new();
    let (num_train, num_test) = spoilt_images(&place, 7);
    let out = train(&place, "straight", &["--set", "train.outer_iterations=60"]);
    let line = format!("skipped     bad images: {num_train} of train, {num_test} of test; events name them");
    assert!(out.contains(&line), "{out}");
    let named = |run: &str| {
        let rows = place.rows(run, "events").into_iter().filter(|row| row.contains("image_skipped"));
        let mut rows: Vec<_> = rows.filter_map(|row| Some(row[row.find("images/")?..].to_owned())).collect();
        rows.sort();
        rows
    };
    let rows = named("straight");
    assert_eq!(rows.len(), num_train + num_test, "{rows:?}");
    assert!(rows.iter().filter(|row| row.contains("sample ") && row.contains("images/train/")).count() == num_train);

    train(&place, "workers", &["--set", "train.outer_iterations=60", "--set", "actors.load.workers=3"]);
    place.assert_same_end("straight", "workers");
    assert_eq!(named("workers").len(), rows.len());
    train(&place, "serial", &["--set", "train.outer_iterations=60", "--serial"]);
    place.assert_same_end("straight", "serial");

    let long = ["--set", "train.outer_iterations=500", "--set", "eval.at_end=false"];
    train(&place, "long", &long);
    let mut running = place.start(&with(&["train", "tiny.toml", "--run-dir", "resumed"], &[&SKIP[..], &long].concat()));
    let latest = place.path("resumed/checkpoints/latest/state.json");
    wait_for("a checkpoint", || latest.exists() || running.has_ended());
    running.signal("INT");
    assert_eq!(running.end().code, Some(130));
    place.succeed(&["train", "--resume", "resumed", "--quiet"]);
    place.assert_same_end("long", "resumed");

    let out = place.succeed(&["eval", "knn", "straight", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(report["num_test"], 15);
    place.succeed(&["visualize", "straight", "--out", "panel.png"]);
}

#[test]
fn too_many_bad_images_are_refused_all_the_same() {
    let place = Place::new();
    spoilt_images(&place, 1);
    let lines = place.fail(65, &with(&["train", "tiny.toml", "--run-dir", "none", "--set", "data.image=16"], &SKIP));
    assert!(lines[0].contains("images/train/class-"), "{lines:?}");
    // With a normalisation of their own the first batch finds out.
    let fixed =
        ["--set", "data.mean=[0.5]", "--set", "data.std=[0.2]", "--set", "data.channels=1", "--set", "data.image=16"];
    let lines = place.fail(65, &with(&["train", "tiny.toml", "--run-dir", "batch"], &[&SKIP[..], &fixed].concat()));
    assert!(lines.iter().any(|line| line.contains("too many bad images in the ")), "{lines:?}");
}
