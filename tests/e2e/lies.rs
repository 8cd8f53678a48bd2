//! Inputs that claim false sizes, too little memory, and bytes that are no UTF-8: one line of error each, nothing lost.

use std::ffi::{OsStr, OsString};
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::place::{Place, fixture};

/// How long a refusal may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exit code, stdout and stderr of the program with arguments of any bytes; with `limit` in an address space of so many
/// KiB.
fn run(place: &Place, limit: Option<u64>, args: &[&OsStr]) -> (Option<i32>, Vec<u8>, String) {
    let program = env!("CARGO_BIN_EXE_mlomae-under-test");
    let mut command = match limit {
        Some(limit) => {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("ulimit -v {limit}; exec \"$0\" \"$@\"")).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(args).current_dir(place.path("")).env_remove("RUST_LOG").stdin(Stdio::null());
    let begin = Instant::now();
    let output = command.output().expect("program starts");
    assert!(begin.elapsed() < PATIENCE, "{args:?} took {:?}", begin.elapsed());
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!err.contains("panicked") && !err.contains("RUST_BACKTRACE"), "{args:?}: {err}");
    (output.status.code(), output.stdout, err)
}

fn os<'a>(args: &[&'a str]) -> Vec<&'a OsStr> {
    args.iter().map(|arg| OsStr::new(*arg)).collect()
}

/// The one line with which the program ends with `code`.
fn refusal(place: &Place, limit: Option<u64>, code: i32, args: &[&str]) -> String {
    let (found, _, err) = run(place, limit, &os(args));
    let shown: Vec<_> = args.iter().map(|arg| arg.chars().take(60).collect::<String>()).collect();
    assert_eq!(found, Some(code), "{shown:?}: {err}");
    let lines: Vec<_> = err.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert_eq!(lines.len(), 1, "{shown:?}: {err}");
    assert!(lines[0].len() < 2000 && !lines[0].contains(|c: char| c.is_control()), "{shown:?}: {}", lines[0]);
    lines[0].to_owned()
}

/// A split of rows that all name one picture of 1 MB, which a dictionary holds once.
fn dictionary_bomb(path: &Path, num_rows: usize) {
    let image = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([(x * y) as u8]));
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).expect("encoded");
    let mut bytes = png.into_inner();
    bytes.resize(1 << 20, 0);
    let parts =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let zstd = Compression::ZSTD(ZstdLevel::try_new(9).expect("a level"));
    let properties = WriterProperties::builder().set_compression(zstd).set_dictionary_page_size_limit(4 << 20).build();
    let mut writer: Option<ArrowWriter<std::fs::File>> = None;
    for start in (0..num_rows).step_by(100) {
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(std::iter::repeat_n(&bytes, 100)));
        let paths: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; 100]));
        let images: ArrayRef = Arc::new(StructArray::new(parts.clone(), vec![images, paths], None));
        let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..100).map(|row| (start as i64 + row) % 2)));
        let batch = RecordBatch::try_from_iter([("image", images), ("label", labels)]).expect("a batch");
        let new = || {
            ArrowWriter::try_new(std::fs::File::create(path).expect("a file"), batch.schema(), Some(properties.clone()))
        };
        writer.get_or_insert_with(|| new().expect("a writer")).write(&batch).expect("written");
    }
    writer.expect("rows").close().expect("closed");
}

#[test]
fn a_dictionary_that_would_take_gigabytes_is_read_in_little_memory() {
    let place = Place::new();
    dictionary_bomb(&place.path("train.parquet"), 3000);
    assert!(std::fs::metadata(place.path("train.parquet")).expect("a file").len() < 100_000);
    let (code, out, err) = run(&place, Some(1_000_000), &os(&["data", "info", "train.parquet"]));
    assert_eq!(code, Some(0), "{err}");
    assert!(String::from_utf8_lossy(&out).contains("images   3000"));
}

#[test]
fn what_does_not_fit_the_machine_is_refused_before_it_is_taken() {
    let place = Place::new();
    let huge = [
        "--set",
        "model.dim=4096",
        "--set",
        "model.depth=64",
        "--set",
        "model.heads=64",
        "--set",
        "mask.hidden=8192",
        "--set",
        "model.dec_dim=4096",
        "--set",
        "model.dec_depth=64",
        "--set",
        "model.dec_heads=64",
        "--set",
        "data.synthetic.image=512",
        "--set",
        "data.image=512",
        "--set",
        "model.patch=2",
    ];
    for command in ["check", "train", "tune"] {
        let line = refusal(&place, None, 78, &[&[command, "tiny.toml"][..], &huge].concat());
        assert!(line.starts_with("memory: this needs about ") && line.contains("GiB"), "{line}");
        assert!(line.contains("run.memory_check = \"warn\""), "{line}");
    }
    assert!(!place.path("runs").exists(), "nothing is begun");
    let line = refusal(&place, None, 78, &["bench", "--preset", "base", "--batch", "4096"]);
    assert!(line.starts_with("memory: ") && line.contains("--memory-check warn goes on all the same"), "{line}");
    // Two gigabytes of address space suffice for a small run; where they do not, the message names the limit.
    let train = ["train", "tiny.toml", "--run-dir", "small", "--quiet"];
    let (code, _, err) = run(&place, Some(2_000_000), &os(&train));
    assert_eq!(code, Some(0), "{err}");
    let large = ["--set", "model.dim=1024", "--set", "model.depth=24", "--set", "model.heads=16"];
    let line = refusal(&place, Some(2_000_000), 78, &[&["train", "tiny.toml"][..], &large].concat());
    assert!(line.contains("ulimit -v leaves"), "{line}");
    let shown = place.succeed(&["check", "tiny.toml"]);
    let memory = shown.lines().find(|line| line.starts_with("memory ")).expect("a line");
    assert!(memory.contains("data about") && memory.contains("; about "), "{memory}");
    refusal(&place, None, 78, &["check", "tiny.toml", "--set", "run.memory_check=never"]);
}

#[test]
fn settings_and_files_of_sixty_thousand_levels_are_refused() {
    let place = Place::new();
    let keys = format!("{}a=1", "a.".repeat(60_000));
    let lists = format!("x={}", "[".repeat(60_000));
    for setting in [&keys, &lists] {
        refusal(&place, None, 78, &["check", "tiny.toml", "--set", setting]);
    }
    for text in [keys, lists, format!("[{}a]\n", "a.".repeat(60_000))] {
        place.write("deep.toml", text.as_bytes());
        assert!(refusal(&place, None, 78, &["train", "deep.toml"]).starts_with("deep.toml"));
    }
    let many: Vec<_> = (0..10_000).flat_map(|seed| ["--set".to_owned(), format!("seed={seed}")]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let out = place.succeed(&[&["config", "show", "tiny.toml"][..], &many].concat());
    assert!(out.contains("seed = 9999"), "{out}");
    std::fs::File::create(place.path("large.toml")).and_then(|file| file.set_len(100 << 20)).expect("a file");
    let line = refusal(&place, None, 78, &["train", "large.toml"]);
    assert!(line.contains("large.toml: a configuration may have at most"), "{line}");
}

#[test]
fn arguments_that_are_no_text_are_kept_as_bytes_or_refused() {
    let place = Place::new();
    let name = |prefix: &str| OsString::from_iter([OsStr::new(prefix), OsStr::from_bytes(b"caf\xe9")]);
    std::fs::rename(place.path("tiny.toml"), place.path("").join(name(""))).expect("renamed");
    let config = name("");
    let args = [OsStr::new("train"), &config, OsStr::new("--run-dir"), OsStr::new(r"a\b/run"), OsStr::new("--quiet")];
    let (code, _, err) = run(&place, None, &args);
    assert_eq!(code, Some(0), "{err}");
    let command = &place.run_record(r"a\b/run")["command"];
    assert_eq!((&command[2], &command[4]), (&r"caf\xe9".into(), &r"a\\b/run".into()));
    for (option, value) in [("--set", name("data.path=")), ("--run-dir", name("")), ("--run-dir", name("x/"))] {
        let args = [OsStr::new("train"), &config, OsStr::new(option), &value];
        let (code, _, err) = run(&place, None, &args);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.lines().next().expect("a line").contains(r"caf\xe9"), "{err}");
    }
    // A run in a folder with such a name is resumed there, and no folder with another name appears.
    std::fs::rename(place.path(r"a\b"), place.path("").join(name("runs-"))).expect("renamed");
    let run_dir = Path::new(&name("runs-")).join("run");
    let more = OsStr::new("train.outer_iterations=9");
    let resume =
        [OsStr::new("train"), "--resume".as_ref(), run_dir.as_ref(), "--set".as_ref(), more, "--quiet".as_ref()];
    let (code, _, err) = run(&place, None, &resume);
    assert_eq!(code, Some(0), "{err}");
    let mut names: Vec<_> =
        std::fs::read_dir(place.path("")).expect("a folder").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, [name(""), name("runs-")]);
}

#[test]
fn pipes_devices_and_folders_where_files_are_expected_never_hang() {
    let place = Place::new();
    let made = Command::new("mkfifo").arg(place.path("pipe")).status().expect("mkfifo");
    assert!(made.success());
    place.train("run", &["--quiet"]);
    for file in ["pipe", "/dev/zero", "run"] {
        for args in [
            &["train", file][..],
            &["check", "tiny.toml", "--config-overlay", file],
            &["config", "show", file],
            &["verify", file],
            &["eval", "knn", "run", "--config-overlay", file],
        ] {
            let line = refusal(&place, None, 66, args);
            assert!(line.contains(file) && line.contains("a regular file is needed"), "{line}");
        }
    }
    // A shell's pipe is no file either, but it is meant to be read.
    let program = env!("CARGO_BIN_EXE_mlomae-under-test");
    let shell = format!("cat tiny.toml | {program} config show /dev/stdin");
    let shown = Command::new("sh").arg("-c").arg(shell).current_dir(place.path("")).output().expect("sh");
    assert!(shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains("outer_iterations = 7"));
    // In the place of the run's own files.
    for (file, args) in [
        ("run/logs/metrics/part-000001.parquet", &["logs", "tail", "run", "--table", "metrics"][..]),
        ("run/checkpoints/latest/model.safetensors", &["inspect", "run"]),
        ("run/run.json", &["train", "--resume", "run"]),
    ] {
        let (path, aside) = (place.path(file), place.path("aside"));
        std::fs::rename(&path, &aside).expect("renamed");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        refusal(&place, None, 66, args);
        std::fs::remove_file(&path).expect("removed");
        std::fs::rename(&aside, &path).expect("renamed");
    }
}

#[test]
fn files_of_a_terabyte_are_refused_by_their_size() {
    let place = Place::new();
    place.train("run", &["--quiet"]);
    std::fs::copy(fixture("golden/tiny.safetensors"), place.path("golden.safetensors")).expect("copied");
    for (file, args) in [
        ("run/run.json", &["train", "--resume", "run"][..]),
        ("run/checkpoints/latest/state.json", &["inspect", "run"]),
        ("run/checkpoints/latest/model.safetensors", &["eval", "knn", "run"]),
        ("golden.safetensors", &["verify", "golden.safetensors"]),
    ] {
        let path = place.path(file);
        let whole = std::fs::read(&path).expect("read");
        std::fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("grown");
        let line = refusal(&place, None, 65, args);
        assert!(line.contains(path.file_name().and_then(OsStr::to_str).expect("a name")), "{line}");
        std::fs::write(&path, whole).expect("written");
    }
}

#[test]
fn names_that_a_terminal_would_obey_are_printed_escaped() {
    let place = Place::new();
    let classes = ["ant\u{1b}[31m", "bee\nerror: not one"];
    for (number, class) in classes.iter().enumerate() {
        let folder = place.path("data").join(class);
        std::fs::create_dir_all(&folder).expect("folder");
        for image in 0..8 {
            let picture = image::GrayImage::from_pixel(16, 16, image::Luma([(number * 100 + image) as u8]));
            picture.save(folder.join(format!("{image}.png"))).expect("saved");
        }
    }
    let out = place.succeed(&["data", "info", "data", "--format", "image-folder"]);
    assert!(out.contains(r"ant\u{1b}[31m ") && out.contains(r"bee\nerror: not one  8"), "{out}");
    assert!(!out.contains('\u{1b}') && out.lines().all(|line| !line.starts_with("error")), "{out}");
    std::fs::write(place.path("data").join(classes[1]).join("0.png"), b"no picture").expect("written");
    let line = refusal(&place, None, 65, &["data", "info", "data", "--format", "image-folder"]);
    assert!(line.contains(r"bee\nerror: not one"), "{line}");
    for args in [&["no\u{1b}[31msuch"][..], &["train", "a\u{1b}]0;x\u{7}b.toml"], &["inspect", "x\ny"]] {
        let (_, _, err) = run(&place, None, &os(args));
        assert!(!err.contains(|c: char| c.is_control() && c != '\n'), "{err:?}");
    }
}
