//! Signals other than those of `kills.rs`: checkpoints on demand, file size limits, and how soon a command exits.

use std::time::{Duration, Instant};

use crate::luck::Luck;
use crate::place::{Place, Running, file_names, wait_for};

/// How soon a command must react to a signal when it has nothing to save.
const HEEDED: Duration = Duration::from_secs(2);

/// A run that writes no checkpoint by itself before its end.
const LONG: [&str; 8] = [
    "train",
    "tiny.toml",
    "--set",
    "checkpoint.every_steps=1000000",
    "--set",
    "checkpoint.keep=2",
    "--set",
    "train.outer_iterations=600",
];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}

/// Sends a signal and expects the end with `code`, in time.
fn leaves_at_once(running: Running, signal: &str, code: i32) {
    let begin = Instant::now();
    running.signal(signal);
    let ended = running.end();
    let time = begin.elapsed();
    assert_eq!(ended.code, Some(code), "{signal}: {ended:#?}");
    assert!(!ended.err.contains("error"), "a signal is no error: {ended:#?}");
    assert!(time < HEEDED, "{signal}: {time:?}");
}

/// Steps of the checkpoints in a run directory.
fn checkpoints(place: &Place, run: &str) -> Vec<String> {
    let names = file_names(&place.path(run).join("checkpoints"));
    names.into_iter().filter(|name| name.starts_with("step-")).collect()
}

#[test]
fn checkpoints_on_demand_change_nothing_but_that_they_are_there() {
    let place = Place::new();
    let mut luck = Luck::new(31);
    for (variant, more) in [
        ("threads", &[][..]),
        ("serial", &["--serial"]),
        ("lag", &["--set", "pipeline.lag=2"]),
        ("random", &["--set", "method.baseline=true"]),
    ] {
        let (straight, asked) = (format!("straight-{variant}"), format!("asked-{variant}"));
        let more = [more, &["--set", "train.outer_iterations=200"]].concat();
        place.succeed(&with(&with(&LONG, &more), &["--quiet", "--run-dir", &straight]));
        assert_eq!(checkpoints(&place, &straight), ["step-00000400"]);
        let mut running = place.start(&with(&with(&LONG, &more), &["--quiet", "--run-dir", &asked]));
        // The run watches signals before it makes its directory, so that the first may come before training begins.
        wait_for("the run directory", || place.path(&asked).exists() || running.has_ended());
        let (mut num_asked, mut num_seen, mut last) = (0, 0, Vec::new());
        while !running.has_ended() {
            for _ in 0..=luck.below(3) {
                running.signal("USR1");
                num_asked += 1;
            }
            std::thread::sleep(luck.part_of(Duration::from_millis(120)));
            let now = checkpoints(&place, &asked);
            num_seen += u32::from(now != last);
            last = now;
        }
        let ended = running.end();
        assert_eq!(ended.code, Some(0), "{variant}: {ended:#?}");
        place.assert_same_end(&straight, &asked);
        assert!(num_seen >= 2, "{variant}: {num_seen} changes after {num_asked} signals");
        assert_eq!(checkpoints(&place, &asked).len(), 2, "{variant}: no more than are to be kept");
        let events = place.rows(&asked, "events");
        let num = |kind: &str| events.iter().filter(|row| row.contains(kind)).count();
        let (num_told, num_written) = (num(",checkpoint_asked,"), num(",checkpoint,"));
        assert!(num_told >= 1 && num_written >= 2, "{variant}: {num_told} asked, {num_written} written");
        assert!(
            num_written <= num_told + 1,
            "{variant}: those that come together count as one: {num_written} of {num_told}"
        );
        // A checkpoint made on demand can be resumed from like any other.
        let first = format!("{asked}/checkpoints/{}", checkpoints(&place, &asked)[0]);
        place.succeed(&["train", "--resume", &first, "--quiet"]);
        place.assert_same_end(&straight, &asked);
        println!(
            "{variant}: {num_asked} signals, {num_told} wishes, {num_written} checkpoints, the same end to the bit"
        );
    }
}

#[test]
fn signals_that_come_doubled_are_no_haste_but_a_second_term_is() {
    let place = Place::new();
    let begin = |run: &str| {
        let settings = ["--set", "train.outer_iterations=1000000", "--set", "checkpoint.every_steps=20"];
        let mut running = place.start(&[&LONG[..], &["--run-dir", run], &settings].concat());
        wait_for("a checkpoint", || !checkpoints(&place, run).is_empty() || running.has_ended());
        running
    };
    // Of signals that are pending together, a process is given the one of the lowest number first.
    for (first, codes) in [("HUP", vec![129]), ("USR2", vec![140, 129]), ("XCPU", vec![152, 140, 129])] {
        let running = begin(first);
        for signal in [first, first, "USR2", "HUP", "USR1"] {
            running.signal(signal);
        }
        let ended = running.end();
        let code = ended.code.unwrap_or_default();
        assert!(codes.contains(&code), "{first}: {ended:#?}");
        let record = place.run_record(first);
        assert_eq!((&record["status"], &record["exit_code"]), (&"interrupted".into(), &code.into()), "{first}");
        let newest = checkpoints(&place, first).pop().expect("a checkpoint");
        assert_eq!(newest, format!("step-{:08}", record["step"].as_u64().expect("a step")), "{first}");
        assert_eq!(place.live_streams(first), Vec::<String>::new(), "{first}: the logs are sealed");
    }
    let running = begin("twice");
    running.signal("TERM");
    leaves_at_once(running, "TERM", 143);
    let record = place.run_record("twice");
    assert_eq!((&record["status"], &record["exit_code"]), (&"interrupted".into(), &143.into()));
    assert!(record["step"].as_u64().is_some_and(|step| step >= 20), "{record}");
}

#[test]
fn a_hang_up_that_is_ignored_at_the_start_stays_ignored() {
    let place = Place::new();
    let args = with(&LONG, &["--quiet", "--run-dir", "run"]);
    let mut running = place.start_in_shell("trap '' HUP", &args);
    wait_for("metrics", || !place.live_streams("run").is_empty() || running.has_ended());
    let mut num_sent = 0;
    while num_sent < 3 && !running.has_ended() {
        running.signal("HUP");
        num_sent += 1;
    }
    assert_eq!(running.end().code, Some(0));
    assert!(num_sent > 0);
    assert_eq!(place.run_record("run")["status"], "finished");
}

#[test]
fn a_file_beyond_its_limit_is_an_io_error_and_the_run_goes_on_without_the_limit() {
    let place = Place::new();
    let settings = ["--quiet", "--set", "checkpoint.every_steps=20", "--set", "logs.masks_every_steps=1"];
    let args = with(&LONG, &settings);
    place.succeed(&with(&args, &["--run-dir", "straight"]));
    // In units of 512 or 1024 bytes: room for a checkpoint, and not for the rows of the whole run.
    let ended = place.start_in_shell("ulimit -f 400", &with(&args, &["--run-dir", "run"])).end();
    assert_eq!(ended.code, Some(74), "{ended:#?}");
    let lines: Vec<_> = ended.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains("File too large"), "{ended:#?}");
    let record = place.run_record("run");
    assert_eq!((&record["status"], &record["exit_code"]), (&"failed".into(), &74.into()));
    assert!(!checkpoints(&place, "run").is_empty(), "what was written before is there");
    place.succeed(&["train", "--resume", "run", "--quiet"]);
    place.assert_same_end("straight", "run");
    // Too small for any checkpoint, and for the record of the run.
    for (limit, run) in [("ulimit -f 8", "few"), ("ulimit -f 0", "none")] {
        let ended = place.start_in_shell(limit, &with(&args, &["--run-dir", run])).end();
        assert_eq!(ended.code, Some(74), "{limit}: {ended:#?}");
        assert!(!ended.err.contains("panicked"), "{limit}: {ended:#?}");
    }
}

#[test]
fn a_signal_during_start_up_leaves_at_once_and_nothing_behind() {
    let place = Place::new();
    // Normalisation is measured over two thousand large images first.
    let slow =
        ["data.synthetic.image=512", "data.synthetic.channels=3", "data.synthetic.num_train=6000", "model.patch=64"];
    let mut args = vec!["train", "tiny.toml", "--run-dir", "run"];
    args.extend(slow.iter().flat_map(|setting| ["--set", setting]));
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129), ("USR2", 140)] {
        let mut running = place.start(&args);
        std::thread::sleep(Duration::from_millis(700));
        assert!(!running.has_ended(), "the start takes longer");
        // USR1 requests a checkpoint, and must not end the run.
        running.signal("USR1");
        leaves_at_once(running, signal, code);
        assert_eq!(file_names(&place.path("")), ["tiny.toml"], "{signal}: nothing is begun");
    }
}

#[test]
fn a_signal_during_the_evaluation_at_the_end_leaves_at_once_and_the_resumed_run_evaluates() {
    let place = Place::new();
    let large = ["--set", "data.synthetic.num_test=60000", "--set", "eval.max_test=60000", "--set", "eval.batch=60000"];
    let args = with(&["train", "tiny.toml", "--quiet", "--run-dir", "run"], &large);
    for (signal, code) in [("INT", 130), ("USR2", 140)] {
        let mut running =
            if signal == "INT" { place.start(&args) } else { place.start(&["train", "--resume", "run", "--quiet"]) };
        let is_evaluating = || {
            place.path("run/checkpoints/step-00000014").exists()
                && place.path("run/logs/metrics").exists()
                && place.live_streams("run").is_empty()
        };
        wait_for("the end of training", || is_evaluating() || running.has_ended());
        std::thread::sleep(Duration::from_millis(300));
        leaves_at_once(running, signal, code);
        let record = place.run_record("run");
        assert_eq!((&record["status"], &record["exit_code"]), (&"interrupted".into(), &code.into()), "{signal}");
        assert_eq!(record["step"], 14, "{signal}");
        assert_eq!(place.rows("run", "evals"), Vec::<String>::new(), "{signal}");
    }
    place.succeed(&["train", "--resume", "run", "--quiet", "--set", "eval.max_test=100"]);
    assert_eq!(place.run_record("run")["status"], "finished");
    assert_eq!(place.rows("run", "evals").len(), 2);
}

#[test]
fn commands_leave_at_once_without_unfinished_files() {
    let place = Place::new();
    place.train("run", &["--quiet", "--set", "eval.at_end=false"]);
    let scratch = place.path("scratch");
    std::fs::create_dir(&scratch).expect("a folder");
    let before = file_names(&place.path(""));
    let scratch_text = scratch.to_str().expect("UTF-8");
    let large = ["--set", "data.synthetic.num_test=60000", "--set", "eval.max_test=60000", "--set", "eval.batch=60000"];
    for (args, until) in [
        (
            vec!["data", "synthetic", "out", "--num-train", "300000", "--image", "64"],
            "out/train-00000-of-00001.parquet.tmp",
        ),
        (vec!["bench", "--preset", "small", "--rounds", "1000"], ""),
        (vec!["bench", "--rounds", "1", "--batch", "16", "--threads", "1"], "scratch"),
        (vec!["tune", "tiny.toml", "--budget", "600", "--out", "tuned.toml"], "scratch"),
        (with(&["eval", "knn", "run"], &large), ""),
        (with(&["eval", "linear", "run", "--set", "eval.linear_epochs=100000"], &[]), ""),
    ] {
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            let mut running = place.start_with(&[("TMPDIR", scratch_text)], &args);
            match until {
                "" => std::thread::sleep(Duration::from_millis(600)),
                "scratch" => {
                    wait_for("a scratch run", || !file_names(&scratch).is_empty() || running.has_ended());
                    std::thread::sleep(Duration::from_millis(100));
                }
                path => {
                    wait_for("an unfinished file", || place.path(path).exists() || running.has_ended());
                    running.signal("USR1");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
            assert!(!running.has_ended(), "{args:?} is over: {:#?}", running.end());
            leaves_at_once(running, signal, code);
            assert_eq!(file_names(&scratch), Vec::<String>::new(), "{args:?}: {signal}");
            let left = file_names(&place.path("out"));
            assert_eq!(left, Vec::<String>::new(), "{args:?}: {signal}");
            let _ = std::fs::remove_dir(place.path("out"));
            assert_eq!(file_names(&place.path("")), before, "{args:?}: {signal}");
        }
    }
}

#[test]
fn a_closed_stdout_is_a_quiet_end() {
    let place = Place::new();
    place.train("run", &["--quiet"]);
    for args in [
        &["config", "schema"][..],
        &["config", "show"],
        &["--help"],
        &["--version"],
        &["train", "--help"],
        &["check", "tiny.toml"],
        &["data", "info", "--format", "embedded"],
        &["inspect", "run", "--tensors"],
        &["eval", "knn", "run"],
        &["top", "run"],
        &["timeline", "run"],
        &["logs", "tail", "run", "--table", "metrics", "-n", "100000"],
        &["train", "tiny.toml", "--run-dir", "other", "--restart"],
    ] {
        let mut running = place.start(args);
        running.close_stdout();
        let ended = running.end();
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:#?}");
        assert!(!ended.err.contains("panic") && !ended.err.contains("error"), "{args:?}: {ended:#?}");
    }
}
