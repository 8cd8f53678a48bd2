//! A disk that fills, that becomes read-only, and a run directory that is deleted under its run: one clear line, exit
//! code 74, and what was written before is intact.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::{Place, wait_for};

const NUM_OUTER: u64 = 300;
const SETTINGS: [&str; 5] = [
    "train.outer_iterations=300",
    "checkpoint.every_steps=20",
    "checkpoint.keep=100",
    "logs.rotate_rows=500",
    "eval.at_end=false",
];

/// A file system of its own in a place, unmounted when dropped.
struct Disk {
    path: PathBuf,
}

/// Runs a command that only root may, by sudo if need be.
fn as_root(args: &[&str]) -> Result<(), String> {
    let mut says = String::new();
    for prefix in [&[][..], &["sudo", "-n"]] {
        let all = [prefix, args].concat();
        match Command::new(all[0]).args(&all[1..]).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => says += &String::from_utf8_lossy(&output.stderr),
            Err(error) => says += &format!("{}: {error}\n", all[0]),
        }
    }
    Err(says)
}

impl Disk {
    /// A disk of so many KiB. None, loudly, where no file system can be mounted; that is a failure where CI is set.
    fn mount(place: &Place, name: &str, size_kib: u32) -> Option<Self> {
        let path = place.path(name);
        std::fs::create_dir(&path).expect("folder");
        let (mode, target) = (format!("size={size_kib}k,mode=0777"), path.to_string_lossy());
        match as_root(&["mount", "-t", "tmpfs", "-o", &mode, "tmpfs", &target]) {
            Ok(()) => Some(Self { path }),
            Err(says) => {
                println!("NOT TESTED: no file system can be mounted here, which needs root: {says}");
                assert!(std::env::var_os("CI").is_none(), "where CI is set, this must be tested: {says}");
                None
            }
        }
    }

    fn remount(&self, option: &str) {
        as_root(&["mount", "-o", &format!("remount,{option}"), &self.path.to_string_lossy()]).expect("remounted");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that panics may leave a process with an open file there; a lazy unmount works all the same.
        let _ = as_root(&["umount", "-l", &self.path.to_string_lossy()]);
    }
}

fn train_args(run: &str) -> Vec<&str> {
    let mut args = vec!["train", "tiny.toml", "--quiet", "--run-dir", run];
    args.extend(SETTINGS.iter().flat_map(|setting| ["--set", setting]));
    args
}

fn assert_one_line(lines: &[String], text: &str, what: &str) {
    assert!(lines.len() == 1 && lines[0].contains(text) && lines[0].contains('`'), "{what}: {lines:?}");
}

fn has_checkpoint(run: &Path) -> bool {
    run.join("checkpoints/latest/state.json").exists()
}

#[test]
fn a_full_disk_ends_the_run_which_goes_on_when_there_is_room() {
    let place = Place::new();
    place.succeed(&train_args("straight"));
    let (mut num_full, mut num_with_checkpoint) = (0, 0);
    let sizes = [8, 24, 48, 96, 160, 200, 256, 300, 333, 400, 512, 600];
    for size_kib in sizes {
        let name = format!("disk-{size_kib}");
        let Some(disk) = Disk::mount(&place, &name, size_kib) else { return };
        let run = format!("{name}/run");
        let lines = place.fail(74, &train_args(&run));
        assert_one_line(&lines, "No space left", &run);
        num_full += 1;
        let has_checkpoint = has_checkpoint(&place.path(&run));
        if has_checkpoint {
            num_with_checkpoint += 1;
            place.succeed(&["inspect", &run]);
            place.succeed(&["logs", "export", &run, "--format", "csv", "--out", "exports"]);
            assert_one_line(&place.fail(74, &["train", "--resume", &run, "--quiet"]), "No space left", &run);
            place.succeed(&["inspect", &run]);
        }
        disk.remount("size=64m");
        if place.path(&run).join("run.json").exists() {
            place.succeed(&["train", "--resume", &run, "--quiet"]);
        } else {
            place.succeed(&[&train_args(&run)[..], &["--restart"]].concat());
        }
        place.assert_same_end("straight", &run);
        assert_eq!(place.live_streams(&run), Vec::<String>::new(), "{run}");
        let steps = place.loss_steps(&run);
        assert_eq!(steps, (1..=2 * NUM_OUTER).collect::<Vec<_>>(), "{run}");
    }
    assert!(num_with_checkpoint >= 4, "{num_with_checkpoint}");
    println!(
        "{num_full} full disks: exit 74 with one line, {num_with_checkpoint} kept a checkpoint, \
         all went on to the same bits"
    );
}

#[test]
fn a_read_only_disk_is_refused_and_nothing_on_it_changes() {
    let place = Place::new();
    let Some(disk) = Disk::mount(&place, "disk", 65536) else { return };
    place.train("disk/run", &[]);
    disk.remount("ro");
    let before = (place.weights("disk/run"), place.run_record("disk/run"));
    let mut num_refused = 0;
    for args in [
        &["train", "tiny.toml", "--run-dir", "disk/new"][..],
        &["train", "tiny.toml", "--run-dir", "disk/run", "--restart"],
        &["train", "--resume", "disk/run", "--max-outer", "9"],
        &["logs", "repair", "disk/run"],
    ] {
        assert_one_line(&place.fail(74, args), "Read-only", &format!("{args:?}"));
        num_refused += 1;
    }
    assert!(before == (place.weights("disk/run"), place.run_record("disk/run")));
    place.succeed(&["inspect", "disk/run"]);
    place.succeed(&["logs", "export", "disk/run", "--format", "csv", "--out", "exports"]);
    disk.remount("rw");
    place.succeed(&["train", "--resume", "disk/run", "--max-outer", "9", "--quiet"]);
    println!("{num_refused} commands refused on a read-only disk: exit 74 with one line, nothing changed");
}

#[test]
fn a_run_directory_deleted_under_its_run_ends_it() {
    let place = Place::new();
    let mut num_deleted = 0;
    for setting in ["checkpoint.every_steps=20", "checkpoint.every_steps=1000000"] {
        let run = format!("run-{num_deleted}");
        let settings = ["--set", "train.outer_iterations=1000000", "--set", setting];
        let args = [&["train", "tiny.toml", "--quiet", "--run-dir", &run][..], &settings].concat();
        let mut running = place.start(&args);
        let live = place.path(&run).join("logs/live");
        wait_for("the logs", || crate::place::file_names(&live).len() == 5 || running.has_ended());
        // The run may create a file while its folder is being deleted.
        wait_for("the folder to go", || {
            std::fs::remove_dir_all(place.path(&run)).is_ok() || !place.path(&run).exists()
        });
        let ended = running.end();
        assert_eq!(ended.code, Some(74), "{ended:#?}");
        let lines: Vec<_> = ended.err.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains(&run), "{ended:#?}");
        assert!(!place.path(&run).join("run.json").exists(), "it is not made again");
        num_deleted += 1;
    }
    println!("{num_deleted} run directories deleted under their runs: exit 74 with one line");
}
