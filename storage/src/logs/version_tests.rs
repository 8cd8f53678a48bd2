//! Logs that earlier versions of the program wrote.

use std::fs;
use std::path::{Path, PathBuf};

use arrow::datatypes::{Field, Fields};

use super::fault_tests::{by_hand, copy_dir, ctx};
use super::paths::parts;
use super::sealed::Part;
use super::sums::Sums;
use super::*;

/// A run of version 1.0: 12 level-1 steps, then a resume that was killed in step 27.
fn old_run(root: &Path) -> PathBuf {
    let run = root.join("run");
    copy_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/logs-1.0"), &run);
    run
}

fn rows<R: Row>(run: &Path) -> Vec<Logged<R>> {
    let mut reader = TableReader::new(run);
    let rows = reader.poll().unwrap();
    assert_eq!(reader.take_damaged(), []);
    rows
}

#[test]
fn the_columns_of_version_1_0_are_still_written() {
    let root = tempfile::tempdir().unwrap();
    let run = old_run(root.path());
    let sums = Sums::read(&run).unwrap();
    for table in Table::ALL {
        for number in parts(&run, table).unwrap() {
            let part = Part::open(&run, table, number, &sums).unwrap();
            let (found, own) = (part.schema(), schema(table, part.meta()));
            // Later minor versions may only have added columns that are nullable.
            let (kept, added) = own.fields().split_at(found.fields().len());
            for (found, own) in found.fields().iter().zip(kept) {
                let column = |field: &Field| (field.name().clone(), field.data_type().clone(), field.is_nullable());
                assert_eq!(column(found), column(own), "{table} {number}");
            }
            assert!(added.iter().all(|field| field.is_nullable()), "{table}: {added:?}");
            for key in [KEY_NAME, KEY_RUN, KEY_GRID] {
                assert_eq!(found.metadata().get(key), own.metadata().get(key), "{table} {number}: {key}");
            }
        }
    }
    assert!(SCHEMA_VERSION.starts_with("1."), "another major version must keep these rows readable");
}

#[test]
fn every_row_of_version_1_0_is_read_typed_and_exported_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let run = old_run(root.path());
    let metrics = rows::<MetricRow>(&run);
    let losses = metrics.iter().filter(|row| row.row.name == "loss" && row.place.level == Some(Level::Pretrain));
    assert!(losses.map(|row| row.place.step).eq(1..=26));
    let masks = rows::<MaskRow>(&run);
    for row in &masks {
        let (mask, score) = (&row.row.mask, row.row.score.as_ref().unwrap());
        assert_eq!((mask.len(), score.len(), row.row.grid_h, row.row.grid_w), (16, 16, 4, 4));
        assert_eq!(mask.iter().filter(|masked| **masked).count(), 12);
        assert_eq!(row.place.level, Some(Level::Pretrain));
    }
    let actors = rows::<ActorRow>(&run);
    let lags: Vec<_> =
        actors.iter().map(|row| (row.row.stage.as_ref(), row.row.lag)).filter(|(_, lag)| *lag != 0).collect();
    assert_eq!(lags, [("score", 1)]);
    assert!(actors.iter().all(|row| row.row.device_s.is_none()), "not known before 1.1");
    let events = rows::<EventRow>(&run);
    assert!(events.iter().any(|row| row.segment == 1 && row.row.kind == "checkpoint" && row.place.step == 18));
    let evals = rows::<EvalRow>(&run);
    assert_eq!(evals[0].row.metric, "accuracy");
    assert!(evals.iter().all(|row| row.row.ci_low.or(row.row.ci_high).is_none()), "not known before 1.2");
    assert_eq!([metrics.len(), masks.len(), actors.len(), events.len(), evals.len()], [514, 18, 6, 19, 2]);
    // The sums are those of what the program of version 1.0 exported of this run.
    let sums = [0x4068_9bce, 0x1d26_6574, 0x37fe_d720, 0x50b7_37d0, 0x742c_97c4];
    for (exported, sum) in export_all(&run, ExportFormat::Csv, &root.path().join("out")).unwrap().iter().zip(sums) {
        assert_eq!(crc32fast::hash(&fs::read(&exported.path).unwrap()), sum, "{}", exported.table);
    }
}

#[test]
fn a_table_that_an_earlier_version_had_not_is_empty_until_the_run_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (run, out) = (old_run(root.path()), root.path().join("out"));
    let num_exported = || export_all(&run, ExportFormat::Csv, &out).map(|exported| exported.len());
    fs::remove_dir_all(run.join("logs/evals")).unwrap();
    fs::remove_file(run.join("logs/live/evals-000002.arrows")).unwrap();
    assert!(num_exported().is_err(), "it is listed: someone deleted it");
    let list = run.join("logs/sums.jsonl");
    let lines = fs::read_to_string(&list).unwrap();
    let others: Vec<_> =
        lines.lines().filter(|line| !line.contains("evals/")).map(|line| format!("{line}\n")).collect();
    fs::write(&list, others.concat()).unwrap();
    assert_eq!(num_exported().unwrap(), Table::ALL.len() - 1);
    assert_eq!(rows::<EvalRow>(&run), []);
    assert_eq!(tail(&run, Table::Evals, 9).unwrap(), Vec::<String>::new());
    let ctx = LogContext { run_id: "run".into(), patch_grid: (4, 4), ..ctx(2) };
    LogWriter::resume(&run, ctx, by_hand(), 18).unwrap().0.close().unwrap();
    assert_eq!(num_exported().unwrap(), Table::ALL.len());
    assert_eq!(rows::<EvalRow>(&run), []);
}

#[test]
fn a_run_of_version_1_0_goes_on_with_its_logs() {
    let root = tempfile::tempdir().unwrap();
    let run = old_run(root.path());
    let ctx = LogContext { run_id: "run".into(), patch_grid: (4, 4), ..ctx(2) };
    let (mut log, report) = LogWriter::resume(&run, ctx, by_hand(), 18).unwrap();
    assert_eq!((report.repair.lost_bytes(), report.repair.damaged.len()), (0, 0));
    let place = |step| Place { stamp: Clock::start().stamp(), epoch: 0, step, level: Some(Level::Pretrain) };
    for step in 19..=30 {
        let (name, value) = ("loss".into(), 0.5);
        log.push(place(step), MetricRow { name, value, split: "pretrain".into(), unit: "1".into() }).unwrap();
    }
    let old = rows::<ActorRow>(&run);
    let new = ActorRow { device_s: Some(0.5), ..old[0].row.clone() };
    log.push(place(30), new).unwrap();
    log.close().unwrap();
    let device_s: Vec<_> = rows::<ActorRow>(&run).iter().map(|row| row.row.device_s).collect();
    assert_eq!(device_s, [vec![None; old.len()], vec![Some(0.5)]].concat(), "beside the parts of version 1.0");
    export(&run, Table::Actors, ExportFormat::Csv, &root.path().join("actors.csv")).unwrap();
    let text = fs::read_to_string(root.path().join("actors.csv")).unwrap();
    assert!(text.starts_with("run_id,") && text.lines().next().unwrap().ends_with(",lag,device_s"), "{text}");
    assert!(text.trim_end().ends_with(",0.5"), "{text}");
    let metrics = rows::<MetricRow>(&run);
    let losses = metrics.iter().filter(|row| row.row.name == "loss" && row.place.level == Some(Level::Pretrain));
    assert!(losses.map(|row| (row.place.step, row.segment)).eq((1..=30).map(|step| (
        step,
        match step {
            1..=12 => 0,
            13..=18 => 1,
            _ => 2,
        }
    ))));
    let events = rows::<EventRow>(&run);
    let went_back = events.iter().find(|row| row.row.kind == EVENT_WENT_BACK).unwrap();
    assert_eq!((went_back.segment, went_back.place.step), (2, 18));
    // Parts of both program versions have the same columns, but for those at the end that came later; the metadata
    // names the version.
    for table in Table::ALL {
        let sums = Sums::read(&run).unwrap();
        let of = |number: &u64| Part::open(&run, table, *number, &sums).unwrap().schema().fields().clone();
        let fields: Vec<_> = parts(&run, table).unwrap().iter().map(of).collect();
        let is_kept = |pair: &[Fields]| pair[0].iter().zip(&pair[1]).all(|(before, after)| before == after);
        assert!(fields.windows(2).all(is_kept), "{table}");
    }
    assert!(repair(&run).unwrap().is_empty());
}
