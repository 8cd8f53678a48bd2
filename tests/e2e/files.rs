//! Output files, symbolic links within a run, damaged parts of the logs, locks, and threads that cannot start.

use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use crate::place::{Ended, Place, file_names, read};

const EXPORT: [&str; 8] = ["logs", "export", "run", "--table", "metrics", "--format", "csv", "--out"];

#[test]
fn outputs_go_where_they_are_told() {
    let place = Place::new();
    place.train("run", &[]);
    let export = |out: &str| place.run(&[&EXPORT[..], &[out]].concat());
    let csv = {
        assert_eq!(export("x.csv").code, Some(0));
        read(&place.path("x.csv"))
    };
    for out in ["-", "/dev/stdout"] {
        let ended = export(out);
        assert_eq!((ended.code, ended.out.as_bytes()), (Some(0), &csv[..]), "{out}: {}", ended.err);
    }
    assert_eq!(export("/dev/null").code, Some(0));
    place.write("target", b"old and longer than nothing");
    symlink("target", place.path("link")).expect("link");
    assert_eq!(export("link").code, Some(0));
    assert!(place.path("link").is_symlink());
    assert_eq!(read(&place.path("target")), csv);
    // A named pipe, with a reader and with one that closes it early.
    let pipe = place.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let reader = std::thread::spawn(move || read(&pipe));
    assert_eq!(export("pipe").code, Some(0));
    assert_eq!(reader.join().expect("read"), csv);
    let pipe = place.path("pipe");
    let reader = std::thread::spawn(move || drop(std::fs::File::open(pipe).expect("opened")));
    let ended = export("pipe");
    reader.join().expect("gone");
    assert!(ended.code == Some(0) && ended.err.is_empty(), "a reader that goes is no error: {ended:#?}");
    std::fs::create_dir(place.path("folder")).expect("folder");
    for (out, says) in [("folder", "directory"), ("/dev/full", "No space"), ("no/such/x.csv", "No such")] {
        let lines = place.fail(74, &[&EXPORT[..], &[out]].concat());
        assert!(lines.len() == 1 && lines[0].contains(says) && lines[0].contains(out), "{out}: {lines:?}");
    }
    let lines = place.fail(2, &["logs", "export", "run", "--out", "-"]);
    assert!(lines[0].contains("--table"), "{lines:?}");
    let png = place.bytes(&["visualize", "run", "-n", "2", "--out", "-"]);
    assert!(png.starts_with(b"\x89PNG") && image::load_from_memory(&png).is_ok());
    let names = ["folder", "link", "pipe", "run", "target", "tiny.toml", "x.csv"];
    assert_eq!(file_names(&place.path("")), names, "nothing half-done is left");
}

#[test]
fn a_damaged_part_of_the_logs_is_named_and_in_nobodys_way() {
    let place = Place::new();
    place.train("run", &["--set", "logs.rotate_rows=20"]);
    let all = place.loss_steps("run");
    let part = place.path("run/logs/metrics/part-000002.parquet");
    let mut bytes = read(&part);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, &bytes).expect("write");
    for args in [
        &["top", "run", "--once"][..],
        &["timeline", "run"],
        &["logs", "tail", "run", "--table", "metrics", "-n", "1000"],
        &["simulate", "run", "--cores", "4"],
    ] {
        let ended = place.run(args);
        assert!(ended.code == Some(0) && ended.err.contains("part-000002.parquet"), "{args:?}: {ended:#?}");
    }
    let lines = place.fail(65, &[&EXPORT[..], &["rest.csv"]].concat());
    assert!(lines.len() == 1 && lines[0].contains("part-000002.parquet") && lines[0].contains(" rows "), "{lines:?}");
    let rest = String::from_utf8(read(&place.path("rest.csv"))).expect("UTF-8");
    assert!(rest.lines().count() > 20, "the others are there: {rest}");
    let said = place.succeed(&["logs", "repair", "run"]);
    assert!(said.contains("part-000002.parquet.damaged"), "{said}");
    assert!(place.loss_steps("run").len() < all.len());
    assert!(place.rows("run", "events").iter().any(|row| row.contains(",warn,log_damage,")));
    // A resume does the same by itself.
    let part = place.path("run/logs/masks/part-000001.parquet");
    std::fs::write(&part, b"").expect("write");
    let ended = place.run(&["train", "--resume", "run", "--max-outer", "9", "--quiet"]);
    assert!(ended.code == Some(0) && ended.err.contains("part-000001.parquet"), "{ended:#?}");
    assert_eq!(place.run_record("run")["status"], "finished");
    assert!(place.succeed(&["logs", "repair", "run"]).contains("nothing to repair"));
}

#[test]
fn nothing_in_a_run_is_followed_through_a_link() {
    let place = Place::new();
    place.train("run", &[]);
    place.write("precious", b"precious");
    let copy = |name: &str| {
        let run = place.path(name);
        assert!(Command::new("cp").arg("-a").arg(place.path("run")).arg(&run).status().expect("cp").success());
        run
    };
    for (number, name) in ["run.lock", "run.json", "config.input.toml", "checkpoints/latest"].iter().enumerate() {
        let run = format!("run-{number}");
        let link = copy(&run).join(name);
        std::fs::remove_file(&link).expect("removed");
        let target = if *name == "checkpoints/latest" { "run/checkpoints/step-00000014" } else { "precious" };
        symlink(place.path(target), &link).expect("link");
        let ended = place.run(&["train", "--resume", &run, "--max-outer", "9", "--quiet"]);
        assert!(matches!(ended.code, Some(65 | 74)) && ended.err.lines().count() == 1, "{name}: {ended:#?}");
        assert!(ended.err.contains(name), "{name}: {ended:#?}");
    }
    for (number, name) in
        ["run.json.tmp", "checkpoints/.tmp-step-00000018", "checkpoints/.tmp-latest"].iter().enumerate()
    {
        let run = format!("tmp-{number}");
        symlink(place.path("precious"), copy(&run).join(name)).expect("link");
        let ended = place.run(&["train", "--resume", &run, "--max-outer", "9", "--quiet"]);
        assert!(matches!(ended.code, Some(0 | 74)), "{name}: {ended:#?}");
    }
    assert_eq!(read(&place.path("precious")), b"precious");
    // Folders of a run may be on another disk.
    copy("far");
    for name in ["checkpoints", "logs"] {
        std::fs::rename(place.path("far").join(name), place.path(&format!("other-{name}"))).expect("moved");
        symlink(place.path(&format!("other-{name}")), place.path("far").join(name)).expect("link");
    }
    symlink(place.path("far"), place.path("near")).expect("link");
    place.succeed(&["train", "--resume", "near", "--max-outer", "9", "--quiet"]);
    assert_eq!(place.loss_steps("far"), (1..=18).collect::<Vec<_>>());
}

#[test]
fn a_run_at_work_is_never_moved_however_many_begin_at_once() {
    let place = Place::new();
    let args = ["train", "tiny.toml", "--quiet", "--run-dir", "run", "--restart"];
    let (mut num_ran, mut num_refused) = (0, 0);
    for _ in 0..4 {
        let all: Vec<_> = (0..5).map(|_| place.start(&args)).collect();
        for running in all {
            let ended = running.end();
            match ended.code {
                Some(0) => num_ran += 1,
                // Another process was first: the run is in use, or was created in between.
                Some(74) => {
                    assert_eq!(ended.err.lines().count(), 1, "{ended:#?}");
                    num_refused += 1;
                }
                _ => panic!("{ended:#?}"),
            }
        }
    }
    let runs = file_names(&place.path("")).into_iter().filter(|name| name.starts_with("run"));
    let finished = runs.filter(|run| {
        let is_run = place.path(run).join("run.json").exists();
        if is_run {
            assert_eq!(place.run_record(run)["status"], "finished", "{run}");
            assert_eq!(place.loss_steps(run), (1..=14).collect::<Vec<_>>(), "{run}");
        }
        is_run
    });
    assert_eq!(finished.count(), num_ran, "each run that succeeded is somewhere, whole");
    println!("{num_ran} ran, {num_refused} were refused with one line");
}

/// Runs the program as a separate user who may have so many threads.
fn with_threads(place: &Place, program: &str, num: u32, args: &[&str]) -> Option<Ended> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=54321", "--regid=54321", "--clear-groups", "prlimit", &format!("--nproc={num}"), program]);
    command.args(args).current_dir(place.path("")).stdin(Stdio::null());
    let output = command.output().ok()?;
    let ended = Ended::of(output);
    (!ended.err.contains("setpriv:")).then_some(ended)
}

#[test]
fn a_thread_that_cannot_start_ends_the_run_with_its_cause_sealed_logs_and_a_record() {
    let place = Place::new();
    let program = place.path("mlomae");
    std::fs::copy(env!("CARGO_BIN_EXE_mlomae-under-test"), &program).expect("copied");
    for (path, mode) in [(place.path(""), 0o777), (program.clone(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
    }
    let program = program.to_string_lossy().into_owned();
    let (mut num_refused, mut num_with_run) = (0, 0);
    for serial in [&[][..], &["--serial"]] {
        for num in 1..40 {
            let run = format!("run-{}-{num}", serial.len());
            let threads = ["--set", "actors.encoder.workers=2", "--set", "pipeline.lag=1"];
            let args = [&["train", "tiny.toml", "--run-dir", &run][..], &threads, serial].concat();
            let Some(ended) = with_threads(&place, &program, num, &args) else {
                println!("NOT TESTED: no other user to be here, which needs root and setpriv");
                assert!(std::env::var_os("CI").is_none(), "where CI is set, this must be tested");
                return;
            };
            assert!(!ended.err.contains("panicked"), "{num} threads: {ended:#?}");
            let has_run = place.path(&run).join("run.json").exists();
            if ended.code == Some(0) {
                assert!(num > 2, "{num} threads are enough");
                break;
            }
            assert_eq!(ended.code, Some(74), "{num} threads: {ended:#?}");
            let errors: Vec<_> = ended.err.lines().filter(|line| line.starts_with("error: ")).collect();
            assert!(errors.len() == 1 && errors[0].contains("temporarily unavailable"), "{num} threads: {ended:#?}");
            num_refused += 1;
            if has_run {
                num_with_run += 1;
                let record = place.run_record(&run);
                assert_eq!((&record["status"], &record["exit_code"]), (&"failed".into(), &74.into()), "{num}");
                assert_eq!(place.live_streams(&run), Vec::<String>::new(), "{num} threads: the logs are sealed");
            }
        }
    }
    assert!(num_refused >= 5 && num_with_run >= 5, "{num_refused}, {num_with_run}");
    println!("{num_refused} runs without a thread that they need ended with 74 and one line, {num_with_run} had a run");
}

impl Place {
    /// Stdout of a command that must succeed, as bytes: it need not be text.
    fn bytes(&self, args: &[&str]) -> Vec<u8> {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().expect("program starts");
        let mut bytes = Vec::new();
        child.stdout.take().expect("piped").read_to_end(&mut bytes).expect("read");
        assert!(child.wait().expect("ends").success(), "{args:?}");
        bytes
    }
}
