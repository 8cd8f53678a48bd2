//! Whole runs on datasets as archives, systems and the Hub leave them: the same weights as on the plain ones, and
//! everything passed over is told by `data info`, by `check` and in the `events` table.

use std::path::Path;

use image::GrayImage;

use crate::place::Place;

/// Writes 16 x 16 images of two classes, as many for each as said.
fn write_split(folder: &Path, num: u32) {
    for (class, name) in ["ant", "bee"].into_iter().enumerate() {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        for number in 0..num {
            let value = |x: u32, y: u32| (x * 7 + y * 3 * (class as u32 + 1) + number * 11) as u8;
            let image = GrayImage::from_fn(16, 16, |x, y| image::Luma([value(x, y)]));
            image.save(folder.join(format!("{number:02}.png"))).expect("an image");
        }
    }
}

fn data(path: &str) -> Vec<String> {
    ["data.format=auto".to_owned(), format!("data.path={path}")]
        .into_iter()
        .flat_map(|setting| ["--set".to_owned(), setting])
        .collect()
}

fn train(place: &Place, run: &str, path: &str, more: &[&str]) {
    let data = data(path);
    let args: Vec<&str> = data.iter().map(String::as_str).chain(more.iter().copied()).collect();
    place.train(run, &args);
}

fn rename(place: &Place, from: &str, to: &str) {
    std::fs::create_dir_all(place.path(to).parent().expect("a folder")).expect("folder");
    std::fs::rename(place.path(from), place.path(to)).expect("rename");
}

#[test]
fn folders_of_an_unpacked_archive_train_as_the_plain_ones_and_what_is_passed_over_is_told() {
    let place = Place::new();
    for (train, test) in [("plain/train", "plain/test"), ("messy/Archive/TRAIN", "messy/Archive/Val")] {
        write_split(&place.path(train), 40);
        write_split(&place.path(test), 8);
    }
    // What macOS, a NAS, an interrupted download and a half-made class leave.
    write_split(&place.path("messy/__MACOSX/Archive/TRAIN"), 1);
    write_split(&place.path("messy/Archive/TRAIN/@eaDir"), 1);
    write_split(&place.path("messy/Archive/train_noisy"), 3);
    std::fs::create_dir(place.path("messy/Archive/TRAIN/cow\u{1b}[31m")).expect("folder");
    place.write("messy/Archive/TRAIN/ant/Thumbs.db", b"?");
    place.write("messy/Archive/TRAIN/ant/notes.txt", b"?");

    train(&place, "plain-run", "plain", &[]);
    train(&place, "messy-run", "messy", &[]);
    assert_eq!(place.weights("plain-run"), place.weights("messy-run"));
    let skipped = |run: &str| -> Vec<String> {
        place.rows(run, "events").into_iter().filter(|row| row.contains(",data_skipped,")).collect()
    };
    assert_eq!(skipped("plain-run"), [""; 0]);
    let events = skipped("messy-run");
    let data = data("messy");
    let check: Vec<&str> = ["check", "tiny.toml"].into_iter().chain(data.iter().map(String::as_str)).collect();
    let check = place.run(&check);
    assert_eq!(check.code, Some(0), "{check:?}");
    let info = place.succeed(&["data", "info", "messy"]);
    for note in [
        "hidden or system files and folders skipped: 2 (Archive/TRAIN/@eaDir, Archive/TRAIN/ant/Thumbs.db)",
        "folders of other splits left out: 1 (Archive/train_noisy)",
        "folders without images, no classes: 1 (Archive/TRAIN/cow\\u{1b}[31m)",
        "1 (Archive/TRAIN/ant/notes.txt",
    ] {
        // CSV and JSON may quote and escape what is in between.
        let (name, first) = (note.rsplit('/').next().unwrap_or(note), note.split('\\').next().unwrap_or(note));
        assert!(
            events.iter().any(|row| row.contains(first) && row.contains(name.trim_end_matches(')'))),
            "{note}: {events:?}"
        );
        assert!(info.contains(note) && check.err.contains(note), "{note}: {info}\n{}", check.err);
    }
    assert!(!info.contains('\u{1b}') && !check.err.contains('\u{1b}') && !events.concat().contains('\u{1b}'));
}

#[test]
fn parquet_as_the_hub_lays_it_out_trains_as_the_generated_images() {
    let place = Place::new();
    place.succeed(&["data", "synthetic", "shapes", "--num-train=90", "--num-test=16", "--image=16", "--channels=1"]);
    rename(&place, "shapes/train-00000-of-00001.parquet", "hub/default/train/0000.parquet");
    rename(&place, "shapes/test-00000-of-00001.parquet", "hub/default/test/0000.parquet");
    place.train("generated", &[]);
    train(&place, "files", "hub", &[]);
    assert_eq!(place.weights("generated"), place.weights("files"));

    // A second configuration beside it could be meant as well; a path or an exclusion says which.
    std::fs::create_dir_all(place.path("hub/noisy/train")).expect("folder");
    std::fs::copy(place.path("hub/default/test/0000.parquet"), place.path("hub/noisy/train/0000.parquet"))
        .expect("copy");
    let data = data("hub");
    let args: Vec<&str> = ["train", "tiny.toml"].into_iter().chain(data.iter().map(String::as_str)).collect();
    let lines = place.fail(65, &args);
    assert!(lines.len() == 1 && lines[0].contains("several datasets in hub"), "{lines:?}");
    assert!(lines[0].ends_with("choose data.path from them: default, noisy"), "{lines:?}");
    train(&place, "excluded", "hub", &["--set", "data.exclude=[\"noisy\"]"]);
    assert_eq!(place.weights("generated"), place.weights("excluded"));
    let config = place.succeed(&["config", "show", "excluded/config.toml"]);
    assert!(config.contains("exclude = [\"noisy\"]"), "{config}");
}

#[test]
fn a_broken_exclusion_is_a_broken_configuration() {
    let place = Place::new();
    for value in ["[\"a[\"]", "[\"../x\"]", "[\"\"]"] {
        let setting = format!("data.exclude={value}");
        let set = ["--set", "data.format=auto", "--set", "data.path=x", "--set", &setting];
        let lines = place.fail(78, &[&["check", "tiny.toml"][..], &set].concat());
        assert!(lines[0].starts_with("data.exclude") && lines[0].contains("names or patterns"), "{lines:?}");
    }
    let lines = place.fail(78, &["check", "tiny.toml", "--set", "data.exclude=[\"x\"]"]);
    assert!(lines[0].contains("data.format reads no files"), "{lines:?}");
    let info = place.run(&["data", "info", ".", "--exclude", "["]);
    assert!(info.code == Some(65) && info.err.contains("data.exclude must be names or patterns"), "{info:?}");
}
