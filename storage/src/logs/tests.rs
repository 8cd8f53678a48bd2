//! The logs in normal use: writing, reading, resuming, exporting, and damaged parts.

use std::fs::{self, File};
use std::time::Duration;

use arrow::ipc::reader::FileReader;

use super::fault_tests::{by_hand, ctx, push_step};
use super::paths::{part_path, parts};
use super::sealed::Part;
use super::sums::Sums;
use super::*;
use crate::run_dir::RunDir;

#[test]
fn rows_come_back_as_they_went_in_through_every_export() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let mut log = LogWriter::open(&run, ctx(0), by_hand()).unwrap();
    for step in 0..30 {
        push_step(&mut log, step).unwrap();
        if step == 9 || step == 19 {
            log.seal().unwrap();
        }
    }
    log.flush().unwrap();
    // The run is still open: sealed and live rows together.
    for format in [ExportFormat::Parquet, ExportFormat::Csv, ExportFormat::ArrowIpc] {
        let out = root.path().join(format.extension());
        for Exported { table, path, num_rows: rows, damaged } in export_all(&run, format, &out).unwrap() {
            assert_eq!(damaged, []);
            let expected = if table == Table::Events { 0 } else { 30 };
            assert_eq!(rows, expected, "{table}");
            match format {
                ExportFormat::Parquet => {
                    let part = Part::of_file(&File::open(&path).unwrap(), &path, table, 0, &Sums::default()).unwrap();
                    assert_eq!(part.num_rows(), expected);
                    assert_eq!(part.pairs.get(KEY_RUN).unwrap(), "test-run");
                }
                ExportFormat::ArrowIpc => {
                    let reader = FileReader::try_new(File::open(&path).unwrap(), None).unwrap();
                    let rows: usize = reader.map(|b| b.unwrap().num_rows()).sum();
                    assert_eq!(rows as u64, expected);
                }
                ExportFormat::Csv => {
                    let text = fs::read_to_string(&path).unwrap();
                    assert_eq!(text.matches("\r\n").count() as u64, expected + 1);
                }
            }
        }
    }
    let csv = fs::read_to_string(root.path().join("csv/masks.csv")).unwrap();
    let row: Vec<&str> = csv.lines().nth(2).unwrap().splitn(8, ',').collect();
    assert_eq!(&row[3..7], ["0", "0", "1", "mask"]);
    assert!(row[7].starts_with("7,,0,0.5,\"[false, true, false, true, false, true]\",\"[0.25, 0.25"), "{}", row[7]);
    assert!(row[7].ends_with("0.25]\",,2,3"), "{}", row[7]);
    let csv = fs::read_to_string(root.path().join("csv/metrics.csv")).unwrap();
    assert!(csv.contains(",pretrain,loss_3,0.25,pretrain,1\r\n"), "{csv}");
    log.close().unwrap();
}

#[test]
fn a_follower_sees_each_row_once_across_seals() {
    let root = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(root.path(), ctx(0), by_hand()).unwrap();
    push_step(&mut log, 0).unwrap();
    log.flush().unwrap();
    let (mut follow, first) = Follow::last(root.path(), Table::Evals, 5).unwrap();
    let mut seen = first.len();
    let mut lines = Vec::new();
    for step in 1..60 {
        push_step(&mut log, step).unwrap();
        match step % 7 {
            0 => log.seal().unwrap(),
            3 | 5 => log.flush().unwrap(),
            _ => {}
        }
        if step % 3 == 0 {
            lines.extend(follow.poll().unwrap());
        }
    }
    log.close().unwrap();
    lines.extend(follow.poll().unwrap());
    assert!(follow.poll().unwrap().is_empty());
    for (line, step) in lines.iter().zip(1..) {
        assert!(line.contains(&format!(" step={step} ")), "{line}");
        seen += 1;
    }
    assert_eq!(seen, 60);
    assert_eq!(tail(root.path(), Table::Evals, 23).unwrap(), lines[lines.len() - 23..]);
    let mask = tail(root.path(), Table::Masks, 1).unwrap().remove(0);
    assert!(mask.contains("mask=.#.#.# score=mean:0.2500"), "{mask}");
}

#[test]
fn tables_are_sealed_by_rows_and_by_age() {
    let root = tempfile::tempdir().unwrap();
    let policy = LogPolicy { seal_rows: 10, ..by_hand() };
    let mut log = LogWriter::open(root.path(), ctx(0), policy).unwrap();
    assert_eq!(parts(root.path(), Table::Events).unwrap(), [0], "an empty part from the first moment");
    for step in 0..35 {
        push_step(&mut log, step).unwrap();
        log.tick().unwrap();
    }
    assert_eq!(parts(root.path(), Table::Metrics).unwrap(), [0, 1, 2, 3]);
    assert_eq!(log.num_rows(Table::Metrics), 35);
    log.close().unwrap();
    assert_eq!(parts(root.path(), Table::Metrics).unwrap(), [0, 1, 2, 3, 4]);

    let policy = LogPolicy { seal_age: Duration::from_millis(1), ..by_hand() };
    let mut log = LogWriter::open(root.path(), ctx(1), policy).unwrap();
    push_step(&mut log, 35).unwrap();
    std::thread::sleep(Duration::from_millis(3));
    log.tick().unwrap();
    assert_eq!(parts(root.path(), Table::Metrics).unwrap().last(), Some(&5));
    assert_eq!(parts(root.path(), Table::Events).unwrap(), [0], "nothing to seal there");
    let part = Part::open(root.path(), Table::Metrics, 5, &Sums::default()).unwrap();
    assert_eq!(part.max_step(), Some(35));
    log.close().unwrap();
}

#[test]
fn rows_that_do_not_fit_are_refused_and_leave_no_trace() {
    let root = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(root.path(), ctx(0), by_hand()).unwrap();
    let place = Place { stamp: log.clock().stamp(), epoch: 0, step: 0, level: Some(Level::Mask) };
    let row = MaskRow {
        sample_id: 0,
        label: None,
        policy_version: 0,
        mask_ratio: 0.5,
        mask: vec![true; 6],
        score: Some(vec![0.0; 5]),
        patch_loss: None,
        grid_h: 2,
        grid_w: 3,
    };
    let error = log.push(place, row).unwrap_err();
    assert_eq!(error.to_string(), "logs: table `masks`, column `score`: expected 6 values, got 5");
    push_step(&mut log, 0).unwrap();
    log.close().unwrap();
    assert_eq!(tail(root.path(), Table::Masks, 9).unwrap().len(), 1);
}

#[test]
fn a_run_in_use_is_not_repaired() {
    let root = tempfile::tempdir().unwrap();
    let run = RunDir::create(root.path(), "r").unwrap();
    let mut log = LogWriter::open(run.path(), ctx(0), by_hand()).unwrap();
    push_step(&mut log, 0).unwrap();
    log.flush().unwrap();
    let error = repair(run.path()).unwrap_err();
    assert!(matches!(&error, LogError::InUse { pid, .. } if *pid == std::process::id()), "{error}");
    assert!(truncate_after(run.path(), 0).is_err());
    assert_eq!(tail(run.path(), Table::Metrics, 9).unwrap().len(), 1, "reading is free");
    drop((log, run));
    assert_eq!(repair(&root.path().join("r")).unwrap().num_rows(), 4);
}

#[test]
fn missing_logs_are_no_input() {
    let root = tempfile::tempdir().unwrap();
    for error in [
        repair(root.path()).unwrap_err(),
        tail(root.path(), Table::Metrics, 1).unwrap_err(),
        export(root.path(), Table::Metrics, ExportFormat::Csv, &root.path().join("x")).unwrap_err(),
    ] {
        assert_eq!(error.exit_code(), 66, "{error}");
    }
}

/// A run of 30 steps with three parts of each stepped table.
fn three_parts(run: &std::path::Path) {
    let mut log = LogWriter::open(run, ctx(0), by_hand()).unwrap();
    for step in 0..30 {
        push_step(&mut log, step).unwrap();
        if step % 10 == 9 {
            log.seal().unwrap();
        }
    }
    log.close().unwrap();
}

fn steps(run: &std::path::Path, table: Table) -> Vec<i64> {
    let step = |line: &String| line.split(" step=").nth(1)?.split(' ').next()?.parse().ok();
    tail(run, table, usize::MAX).unwrap().iter().map(|line| step(line).unwrap()).collect()
}

/// Damage to a part's file; the first also removes the list of parts, as if an earlier version had written the run.
const DAMAGES: [&str; 7] = ["unlisted flip", "flip", "cut", "empty", "garbage", "gone", "another part"];

fn damage(run: &std::path::Path, what: &str, at: usize) {
    let path = part_path(run, Table::Metrics, 2);
    let mut bytes = fs::read(&path).unwrap();
    match what {
        "unlisted flip" => {
            fs::remove_file(run.join("logs/sums.jsonl")).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 0x10;
        }
        "flip" => {
            let at = at % bytes.len();
            bytes[at] ^= 0x10;
        }
        "cut" => bytes.truncate(at % bytes.len()),
        "empty" => bytes.clear(),
        "garbage" => bytes.fill(0x5a),
        "gone" => return fs::remove_file(&path).unwrap(),
        _ => bytes = fs::read(part_path(run, Table::Metrics, 1)).unwrap(),
    }
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_damaged_part_is_named_set_aside_and_in_nobodys_way() {
    let root = tempfile::tempdir().unwrap();
    let good = root.path().join("good");
    three_parts(&good);
    let mut num_damaged = 0;
    for (place, what) in DAMAGES.into_iter().cycle().take(70).enumerate() {
        let run = root.path().join(format!("run-{place}"));
        super::fault_tests::copy_dir(&good, &run);
        damage(&run, what, place * 577 + 13);
        let rest: Vec<i64> = (0..10).chain(20..30).collect();
        // Readers report it and read the other parts.
        let mut reader = TableReader::<MetricRow>::new(&run);
        let read: Vec<i64> = reader.poll().unwrap().iter().map(|row| row.place.step).collect();
        assert_eq!(read, rest, "{what}");
        let named = reader.take_damaged();
        assert!(named.len() == 1 && named[0].to_string().contains("part-000002.parquet"), "{what}: {named:?}");
        assert_eq!(named[0].num_rows, (what != "unlisted flip").then_some(10), "{what}");
        assert!(reader.poll().unwrap().is_empty() && reader.take_damaged().is_empty(), "{what}: it is named once");
        for format in [ExportFormat::Parquet, ExportFormat::Csv, ExportFormat::ArrowIpc] {
            let exported = export(&run, Table::Metrics, format, &root.path().join("out")).unwrap();
            assert_eq!((exported.num_rows, exported.damaged.len()), (20, 1), "{what}");
        }
        // So does a resume, which sets it aside.
        if place % 2 == 0 {
            let (mut log, report) = LogWriter::resume(&run, ctx(1), by_hand(), 24).unwrap();
            assert_eq!(report.repair.damaged.len(), 1, "{what}");
            (25..30).for_each(|step| push_step(&mut log, step).unwrap());
            log.close().unwrap();
        } else {
            assert_eq!(repair(&run).unwrap().damaged.len(), 1, "{what}");
        }
        assert_eq!(steps(&run, Table::Metrics), rest, "{what}");
        assert_eq!(steps(&run, Table::Masks), (0..30).collect::<Vec<_>>(), "{what}");
        let events = tail(&run, Table::Events, usize::MAX).unwrap();
        let told: Vec<_> = events.iter().filter(|line| line.contains("kind=log_damage ")).collect();
        assert!(told.len() == 1 && told[0].contains("part-000002.parquet"), "{what}: {events:?}");
        assert_eq!(what == "unlisted flip", !told[0].contains("10 rows"), "{what}: {told:?}");
        let aside = crate::atomic::names(&run.join("logs/metrics")).unwrap();
        let num_aside = aside.iter().filter(|name| *name == "part-000002.parquet.damaged").count();
        assert_eq!(num_aside, usize::from(what != "gone"), "{what}: {aside:?}");
        assert!(repair(&run).unwrap().is_empty(), "{what}: a second repair finds nothing");
        num_damaged += 1;
    }
    println!("{num_damaged} damaged parts named, set aside, and in nobody's way");
}

#[test]
fn a_repair_of_parts_killed_at_any_operation_tells_of_each_once() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    three_parts(&run);
    damage(&run, "flip", 99);
    fs::write(part_path(&run, Table::Evals, 3), b"").unwrap();
    fs::remove_file(part_path(&run, Table::Masks, 1)).unwrap();
    let copies = std::rc::Rc::new(std::cell::Cell::new(0));
    let hook = {
        let (run, root, copies) = (run.clone(), root.path().to_path_buf(), copies.clone());
        move |_: &'static str, _: &std::path::Path| {
            super::fault_tests::copy_dir(&run, &root.join(format!("kill-{}", copies.get())));
            copies.set(copies.get() + 1);
            Ok(())
        }
    };
    assert_eq!(crate::atomic::fault::with(hook, || repair(&run).unwrap()).damaged.len(), 3);
    assert!(copies.get() >= 8, "{} operations", copies.get());
    for n in 0..copies.get() {
        let copy = root.path().join(format!("kill-{n}"));
        repair(&copy).unwrap();
        let events = tail(&copy, Table::Events, usize::MAX).unwrap();
        let num_told = |part: &str| events.iter().filter(|line| line.contains(part)).count();
        let told = ["metrics/part-000002", "evals/part-000003", "masks/part-000001"].map(num_told);
        assert_eq!(told, [1, 1, 1], "kill {n}: {events:?}");
        assert!(repair(&copy).unwrap().is_empty(), "kill {n}");
    }
}

#[test]
fn a_damaged_part_whose_stream_is_still_there_is_sealed_again() {
    let root = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(root.path(), ctx(0), by_hand()).unwrap();
    push_step(&mut log, 0).unwrap();
    log.flush().unwrap();
    let stream = super::paths::live_path(root.path(), Table::Metrics, 1);
    let bytes = fs::read(&stream).unwrap();
    log.close().unwrap();
    fs::write(&stream, bytes).unwrap();
    fs::write(part_path(root.path(), Table::Metrics, 1), b"PAR1").unwrap();
    let report = repair(root.path()).unwrap();
    assert_eq!(report.damaged[0].num_rows, Some(0));
    assert_eq!(steps(root.path(), Table::Metrics), [0]);
    assert!(repair(root.path()).unwrap().is_empty());
}

#[test]
fn a_part_tells_of_any_altered_byte_by_itself() {
    let root = tempfile::tempdir().unwrap();
    three_parts(root.path());
    let path = part_path(root.path(), Table::Masks, 2);
    let bytes = fs::read(&path).unwrap();
    let open = || Part::open(root.path(), Table::Masks, 2, &Sums::default());
    assert!(open().is_ok());
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        fs::write(&path, altered).unwrap();
        assert!(matches!(open(), Err(LogError::Corrupt { .. })), "byte {at}");
    }
}

#[test]
fn nothing_in_a_run_is_followed_through_a_link() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let outside = root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"precious").unwrap();
    let run = RunDir::create(root.path(), "good").unwrap();
    run.write_record(&crate::run_dir::RunRecord::begin("good", "0", "", 1)).unwrap();
    three_parts(run.path());
    drop(run);
    let good = root.path().join("good");
    let precious = outside.join("precious");
    let go_on = |run: &std::path::Path| -> Result<(), String> {
        let dir = RunDir::open_locked(run).map_err(|e| e.to_string())?;
        let record = dir.record().map_err(|e| e.to_string())?;
        dir.write_record(&record).map_err(|e| e.to_string())?;
        dir.write_configs("a = 1\n", "").map_err(|e| e.to_string())?;
        let mut log = LogWriter::resume(run, ctx(1), by_hand(), 40).map_err(|e| e.to_string())?.0;
        push_step(&mut log, 41).map_err(|e| e.to_string())?;
        log.close().map_err(|e| e.to_string())
    };
    let (mut num_refused, mut num_replaced) = (0, 0);
    for name in [
        "run.lock",
        "run.json",
        "run.json.tmp",
        "config.toml",
        "config.toml.tmp",
        "logs/sums.jsonl",
        "logs/metrics/part-000001.parquet",
        "logs/metrics/part-000004.parquet.tmp",
        "logs/live/metrics-000004.arrows",
        "logs/live/metrics-000004.arrows.tmp",
        "logs/live",
        "logs/evals",
    ] {
        let run = root.path().join(format!("run-{}", name.replace('/', "-")));
        super::fault_tests::copy_dir(&good, &run);
        let path = run.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
            symlink(&outside, &path).unwrap();
        } else {
            let _ = fs::remove_file(&path);
            symlink(&precious, &path).unwrap();
        }
        match go_on(&run) {
            Ok(()) => num_replaced += 1,
            Err(line) => {
                assert!(line.contains("symbolic link") && line.contains(name), "{name}: {line}");
                num_refused += 1;
            }
        }
        assert_eq!(fs::read(&precious).unwrap(), b"precious", "{name}");
        assert_eq!(crate::atomic::names(&outside).unwrap(), ["precious"], "{name}");
    }
    assert_eq!((num_refused, num_replaced), (9, 3), "configs and what a repair removes are replaced");
    // Symbolic links of folders to another disk are allowed, and so is one of the run itself.
    let run = root.path().join("moved");
    super::fault_tests::copy_dir(&good, &run);
    fs::rename(run.join("logs"), outside.join("logs")).unwrap();
    symlink(outside.join("logs"), run.join("logs")).unwrap();
    symlink(&run, root.path().join("link")).unwrap();
    go_on(&root.path().join("link")).unwrap();
    assert_eq!(steps(&run, Table::Metrics).last(), Some(&41));
}

#[test]
fn readers_of_a_table_that_is_resumed_again_and_again_see_no_gap_and_no_row_twice() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    three_parts(&run);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let num_looks = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut reader = TableReader::<MetricRow>::new(&run);
                    let steps: Vec<i64> = reader.poll().unwrap().iter().map(|row| row.place.step).collect();
                    assert!(steps.iter().copied().eq(0..steps.len() as i64) && steps.len() >= 13, "{steps:?}");
                    assert_eq!(reader.take_damaged(), []);
                    num_looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        for segment in 1..25 {
            let from = 12 + i64::from(segment) % 15;
            let mut log = LogWriter::resume(&run, ctx(segment), by_hand(), from).unwrap().0;
            for step in from + 1..30 {
                push_step(&mut log, step).unwrap();
                if step % 4 == 0 {
                    log.flush().unwrap();
                }
                if step % 7 == 0 {
                    log.seal().unwrap();
                }
            }
            if segment % 2 == 0 {
                log.flush().unwrap();
            } else {
                log.close().unwrap();
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("{num_looks:?} looks");
}

#[test]
fn a_stream_whose_end_reads_as_zeros_is_damaged_and_never_of_something_else() {
    let root = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(root.path(), ctx(0), by_hand()).unwrap();
    for step in 1..=2 {
        push_step(&mut log, step).unwrap();
        log.flush().unwrap();
    }
    let path = super::paths::live_path(root.path(), Table::Metrics, 1);
    let whole = fs::read(&path).unwrap();
    std::mem::forget(log);
    let mut nums_rows = std::collections::BTreeSet::new();
    for cut in 8..whole.len() {
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        let contents = super::stream::parse_stream(bytes, Table::Metrics);
        assert_eq!(contents.foreign, None, "zeros from byte {cut}");
        let steps: Vec<i64> = contents
            .batches
            .iter()
            .flat_map(|batch| {
                let column = batch.column_by_name("step").unwrap().clone();
                arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(&column).values().to_vec()
            })
            .collect();
        assert_eq!(steps, (1..=steps.len() as i64).collect::<Vec<_>>(), "zeros from byte {cut}");
        nums_rows.insert(steps.len());
    }
    assert_eq!(nums_rows.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
}
