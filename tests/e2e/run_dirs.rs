//! Which folders a run may take, and what `--restart` moves aside.

use crate::place::{Place, file_names};

#[test]
fn a_run_directory_without_a_name_is_the_folder_it_stands_for() {
    let place = Place::new();
    place.train("runs/precious", &[]);
    std::fs::create_dir_all(place.path("mine/deep")).expect("folders");
    place.write("mine/notes.txt", b"do not move");
    // `mine/deep/..` is `mine`, which is there, and no run.
    let args = ["train", "tiny.toml", "--run-dir", "mine/deep/.."];
    let lines = place.fail(74, &args);
    assert!(lines.len() == 1 && lines[0].contains("mine"), "{lines:?}");
    let lines = place.fail(74, &[&args[..], &["--restart"]].concat());
    assert!(lines.len() == 1 && lines[0].contains("not moved aside") && lines[0].contains("mine"), "{lines:?}");
    for dir in ["/", "no/such/.."] {
        for restart in [&[][..], &["--restart"]] {
            let lines = place.fail(2, &[&["train", "tiny.toml", "--run-dir", dir], restart].concat());
            assert!(lines.len() == 1 && lines[0].contains("--run-dir needs a folder with a name"), "{lines:?}");
        }
    }
    for dir in [".", ".."] {
        let ended = place.run(&["train", "tiny.toml", "--run-dir", dir, "--restart"]);
        assert!(!matches!(ended.code, Some(0)) && ended.err.starts_with("error: "), "{dir}: {ended:#?}");
    }
    assert_eq!(file_names(&place.path("")), ["mine", "runs", "tiny.toml"]);
    assert_eq!(file_names(&place.path("runs")), ["precious"]);
}

#[test]
fn only_runs_and_empty_folders_are_moved_aside() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("photos/checkpoints")).expect("folders");
    place.write("photos/holiday.jpg", b"?");
    let restart = |dir: &str| place.run(&["train", "tiny.toml", "--quiet", "--run-dir", dir, "--restart"]);
    for dir in ["photos", "tiny.toml"] {
        let ended = restart(dir);
        assert_eq!(ended.code, Some(74), "{ended:#?}");
        assert!(ended.err.contains("not moved aside") && ended.err.lines().count() == 1, "{ended:#?}");
    }
    assert_eq!(file_names(&place.path("photos")), ["checkpoints", "holiday.jpg"]);
    // A run, one that was killed before its record, and an empty folder.
    place.train("run", &[]);
    std::fs::create_dir_all(place.path("killed/logs")).expect("folders");
    place.write("killed/run.lock", b"1\n");
    place.write("killed/config.toml.tmp", b"");
    std::fs::create_dir(place.path("empty")).expect("folder");
    for dir in ["run", "killed", "empty"] {
        let ended = restart(dir);
        assert_eq!(ended.code, Some(0), "{dir}: {ended:#?}");
        assert!(place.path(&format!("{dir}.before-1")).is_dir(), "{dir}");
        assert_eq!(place.run_record(dir)["status"], "finished", "{dir}");
    }
}
