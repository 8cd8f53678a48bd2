//! The logs in the normal course of things.

use std::fs::{self, File};
use std::time::Duration;

use arrow::ipc::reader::FileReader;

use super::fault_tests::{by_hand, ctx, push_step};
use super::paths::{part_path, parts};
use super::sealed::Part;
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
        for (table, path, rows) in export_all(&run, format, &out).unwrap() {
            let expected = if table == Table::Events { 0 } else { 30 };
            assert_eq!(rows, expected, "{table}");
            match format {
                ExportFormat::Parquet => {
                    let part = Part::open(&path, table).unwrap();
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
    let part = Part::open(&part_path(root.path(), Table::Metrics, 5), Table::Metrics).unwrap();
    assert_eq!(part.max_step(), Some(35));
    log.close().unwrap();
}

#[test]
fn rows_that_do_not_fit_are_refused_and_leave_no_trace() {
    let root = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(root.path(), ctx(0), by_hand()).unwrap();
    let stamp = log.clock().stamp();
    let row = MaskRow {
        stamp,
        epoch: 0,
        step: 0,
        level: Level::Mask,
        sample_id: 0,
        label: None,
        policy_version: 0,
        mask_ratio: 0.5,
        mask: vec![true; 6],
        score: Some(vec![0.0; 5]),
        patch_loss: None,
    };
    let error = log.mask(row).unwrap_err();
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

#[test]
fn a_damaged_part_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(root.path(), ctx(0), by_hand()).unwrap();
    push_step(&mut log, 0).unwrap();
    log.close().unwrap();
    let path = part_path(root.path(), Table::Metrics, 1);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = tail(root.path(), Table::Metrics, 1).unwrap_err();
    assert!(error.to_string().contains("part-000001.parquet") && error.exit_code() == 65, "{error}");
}
