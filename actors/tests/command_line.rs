//! The binary as a user meets it: what it prints, where, and its exit codes.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn mlomae(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlomae"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    mlomae(args).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the output is UTF-8")
}

/// Runs a command that must fail with `exit_code`, silent on stdout and with only `error: ` lines
/// on stderr; returns these without their prefix.
fn errors(args: &[&str], exit_code: i32) -> Vec<String> {
    let output = run(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{args:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    let line = |line: &str| {
        let line = line.strip_prefix("error: ");
        line.unwrap_or_else(|| panic!("{args:?}: not an error line in:\n{stderr}")).to_owned()
    };
    stderr.lines().map(line).collect()
}

#[test]
fn help_goes_to_stdout_and_has_examples() {
    for args in [&["--help"][..], &["help", "config"], &["config", "--help"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(text(&output.stdout).contains("Examples:"), "{args:?}");
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn a_wrong_command_line_is_usage() {
    for args in [&[][..], &["trian"], &["config"], &["config", "show", "--nope"], &["--log-format", "xml"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
    }
    let output = mlomae(&["config", "show"]).env("RUST_LOG", "a=b=c").output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("error: RUST_LOG "), "{}", text(&output.stderr));
}

#[test]
fn a_shown_configuration_is_a_configuration_again() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("shown.toml");
    let args = ["config", "show", "--set", "model.preset=small", "--set", "pretrain.lr=3e-4"];
    let shown = run(&args).stdout;
    assert!(text(&shown).contains("lr = 0.0003"));
    std::fs::write(&path, &shown).expect("the folder is writable");
    let again = run(&["config", "show", path.to_str().expect("a plain path")]);
    assert_eq!(text(&again.stdout), text(&shown));
}

#[test]
fn every_error_of_a_configuration_is_one_line() {
    let lines =
        errors(&["config", "show", "--set", "mask.ratio=2", "--set", "pretrain.lrr=1", "--set", "seed=\"x\""], 78);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("mask.ratio = 2: ")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("did you mean pretrain.lr?")), "{lines:?}");
}

#[test]
fn overlays_win_over_the_configuration_and_settings_over_both() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("the folder is writable");
        path.to_str().expect("a plain path").to_owned()
    };
    let base = file("base.toml", "seed = 5\n[mask]\nratio = 0.6\n[train]\nouter_iterations = 7\n");
    let overlay = file("overlay.toml", "[mask]\nratio = 0.7\n[train]\nouter_iterations = 8\n");
    let args = ["config", "show", &base, "--config-overlay", &overlay, "--set", "train.outer_iterations=9"];
    let shown = run(&args).stdout;
    for line in ["seed = 5", "ratio = 0.7", "outer_iterations = 9"] {
        assert!(text(&shown).lines().any(|shown| shown == line), "{line} in {}", text(&shown));
    }
}

#[test]
fn missing_and_unreadable_configurations_are_named() {
    assert_eq!(errors(&["config", "show", "nope/x.toml"], 66), ["no such file: nope/x.toml"]);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let binary = dir.path().join("x.toml");
    std::fs::write(&binary, [b's', b'e', 0xff, 0xfe]).expect("the folder is writable");
    let lines = errors(&["check", binary.to_str().expect("a plain path")], 78);
    assert!(lines[0].ends_with("x.toml: not UTF-8 text, first at byte 2"), "{lines:?}");
    let lines = errors(&["check", dir.path().to_str().expect("a plain path")], 66);
    let says = |text: &str| lines[0].starts_with("cannot read ") && lines[0].ends_with(text);
    assert!(says("a regular file is needed, this is a folder"), "{lines:?}");
}

#[test]
fn a_closed_stdout_is_quiet() {
    let mut child =
        mlomae(&["config", "schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_full_disk_is_an_io_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is writable");
    let output = mlomae(&["config", "schema"]).stdout(full).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(74));
    assert!(text(&output.stderr).starts_with("error: cannot write to stdout: "));
}

#[test]
fn a_configuration_and_its_data_are_checked_at_once() {
    let lines = errors(
        &["check", "--set", "mask.ratio=2", "--set", "data.format=\"auto\"", "--set", "data.path=/nope/data"],
        78,
    );
    assert!(lines.iter().any(|line| line.starts_with("mask.ratio = 2: ")), "{lines:?}");
    assert!(lines.iter().any(|line| line == "dataset not found: /nope/data"), "{lines:?}");
    let lines = errors(&["check", "--set", "data.format=\"auto\"", "--set", "data.path=/nope/data"], 66);
    assert_eq!(lines, ["dataset not found: /nope/data"]);
    let lines = errors(&["check", "--set", "pretrain.batch=3001", "--set", "policy.batch=1001"], 78);
    assert_eq!(lines.len(), 2, "{lines:?}");
    let output = run(&["check"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).ends_with("\nok\n"), "{}", text(&output.stdout));
}

/// A run that takes a second: generated images and networks as small as they may be.
const SMALL: &[&str] = &[
    "--set",
    "data.format=\"synthetic\"",
    "--set",
    "data.synthetic.num_train=200",
    "--set",
    "data.synthetic.num_test=60",
    "--set",
    "data.synthetic.image=16",
    "--set",
    "data.augment.crop_padding=2",
    "--set",
    "model.patch=4",
    "--set",
    "model.dim=16",
    "--set",
    "model.heads=2",
    "--set",
    "model.depth=1",
    "--set",
    "model.dec_dim=16",
    "--set",
    "model.dec_depth=1",
    "--set",
    "model.dec_heads=2",
    "--set",
    "mask.hidden=16",
    "--set",
    "pretrain.batch=16",
    "--set",
    "finetune.batch=16",
    "--set",
    "policy.batch=16",
    "--set",
    "checkpoint.every_steps=4",
];

fn train(dir: &Path, run: &str, args: &[&str]) -> Command {
    let mut command = mlomae(&["train", "--run-dir", run]);
    command.args(SMALL).args(args).current_dir(dir);
    command
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

/// The bytes of the latest checkpoint's tensors.
fn weights(run: &Path) -> Vec<Vec<u8>> {
    let file = |name: &&str| run.join("checkpoints/latest").join(format!("{name}.safetensors"));
    let read =
        |path: std::path::PathBuf| std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    ["model", "head", "mask", "optimizer"].iter().map(|name| read(file(name))).collect()
}

#[test]
fn a_run_is_trained_judged_pictured_and_inspected() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let summary = succeed(&mut train(dir.path(), "runs/one", &["--max-outer", "6"]));
    for part in ["iterations  6 of 6 outer, 12 level-1 steps", "k-NN  ", "step-00000012", "evaluator  "] {
        assert!(summary.contains(part), "{part} in:\n{summary}");
    }
    let here = |args: &[&str]| succeed(mlomae(args).current_dir(dir.path()));
    for task in ["knn", "linear"] {
        let report: serde_json::Value =
            serde_json::from_str(&here(&["eval", task, "one", "--json"])).expect("one JSON object");
        assert_eq!(report["num_test"], 60, "{report}");
        assert!(report["accuracy"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{report}");
    }
    let picture = here(&["visualize", "latest", "-n", "2"]);
    assert!(picture.ends_with("runs/one/images/step-00000012.png\n"), "{picture}");
    let png = std::fs::read(dir.path().join(picture.trim())).expect("the picture is there");
    assert!(png.starts_with(b"\x89PNG"));
    let inspected = here(&["inspect", "runs/one", "--tensors"]);
    assert!(inspected.contains("blocks.0.attn.qkv.weight"), "{inspected}");
    let events = here(&["logs", "tail", "one", "-n", "100"]);
    assert!(events.contains("kind=checkpoint") && events.contains("kind=run_started"), "{events}");
    let exported = here(&["logs", "export", "one", "--format", "csv", "--out", "csv"]);
    assert_eq!(exported.lines().count(), 5);
    let evals = std::fs::read_to_string(dir.path().join("csv/evals.csv")).expect("it was exported");
    assert_eq!(evals.lines().count(), 3, "{evals}");
    assert_eq!(here(&["logs", "repair", "one"]), "nothing to repair\n");
}

#[test]
fn serial_threaded_and_resumed_runs_end_in_the_same_weights() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let end = ["--quiet", "--max-outer", "8", "--set", "eval.at_end=false"];
    assert_eq!(succeed(&mut train(dir.path(), "runs/threads", &end)), "", "quiet means quiet");
    let expected = weights(&dir.path().join("runs/threads"));
    succeed(train(dir.path(), "runs/serial", &end).arg("--serial"));
    assert_eq!(weights(&dir.path().join("runs/serial")), expected);
    let workers =
        ["--set", "actors.load.workers=3", "--set", "actors.score.workers=2", "--set", "actors.encoder.queue_cap=0"];
    succeed(train(dir.path(), "runs/workers", &end).args(workers));
    assert_eq!(weights(&dir.path().join("runs/workers")), expected);

    // Killed at a time that is somewhere within the run, at best; resuming must do in any case.
    let mut child = train(dir.path(), "runs/killed", &end).stderr(Stdio::null()).spawn().expect("the binary starts");
    let checkpoints = dir.path().join("runs/killed/checkpoints/latest");
    let begin = std::time::Instant::now();
    while !checkpoints.exists() && begin.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().expect("it is a child of ours");
    child.wait().expect("it ends");
    succeed(mlomae(&["train", "--quiet", "--resume", "runs/killed"]).current_dir(dir.path()));
    assert_eq!(weights(&dir.path().join("runs/killed")), expected);
}

#[test]
fn a_run_in_the_way_is_refused_and_moved_aside_on_request() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let end = ["--quiet", "--max-outer", "2", "--set", "eval.at_end=false"];
    succeed(&mut train(dir.path(), "runs/x", &end));
    let output = train(dir.path(), "runs/x", &end).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(74));
    assert!(text(&output.stderr).contains("exists already"), "{}", text(&output.stderr));
    succeed(train(dir.path(), "runs/x", &end).arg("--restart"));
    assert!(dir.path().join("runs/x.before-1/run.json").exists());
    assert_eq!(weights(&dir.path().join("runs/x")), weights(&dir.path().join("runs/x.before-1")));
}

#[cfg(unix)]
#[test]
fn signals_end_a_run_with_a_checkpoint_and_sealed_logs() {
    for (signal, exit_code) in [("-INT", 130), ("-TERM", 143)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut child = train(dir.path(), "runs/x", &["--quiet", "--max-outer", "100000"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let run = dir.path().join("runs/x");
        let begin = std::time::Instant::now();
        while !run.join("checkpoints/latest").exists() {
            assert!(begin.elapsed().as_secs() < 60, "no checkpoint comes");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(killed.expect("kill is there").success());
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(exit_code));
        let live = std::fs::read_dir(run.join("logs/live")).expect("it is there");
        assert_eq!(live.count(), 0, "the logs are sealed");
        let record = std::fs::read_to_string(run.join("run.json")).expect("it is there");
        assert!(record.contains("\"interrupted\""), "{record}");
    }
}

#[test]
fn logs_are_json_on_request() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let args = ["--log-format", "json", "--max-outer", "1", "--set", "eval.at_end=false"];
    let output = train(dir.path(), "runs/x", &args).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(0));
    let mut num_lines = 0;
    for line in text(&output.stderr).lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("each line is JSON");
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
        num_lines += 1;
    }
    assert!(num_lines >= 5, "{num_lines}");
}
