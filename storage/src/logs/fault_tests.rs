//! Kills, full disks, truncated files and garbage: afterwards each flushed row is there exactly once.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::paths::{live_dir, live_path, parts, streams};
use super::source::Snapshot;
use super::stream::{parse_stream, read_stream};
use super::*;
use crate::atomic::fault;

const GRID: (u16, u16) = (2, 3);

pub(super) fn ctx(segment: i32) -> LogContext {
    LogContext {
        run_id: "test-run".into(),
        segment,
        patch_grid: GRID,
        program_version: "0.1.0".into(),
        clock: Clock::resume(segment as f64 * 100.0),
    }
}

/// A policy without automatic rotation: tables are sealed by explicit calls alone.
pub(super) fn by_hand() -> LogPolicy {
    LogPolicy { flush_every: Duration::from_secs(3600), seal_age: Duration::from_secs(3600), ..LogPolicy::default() }
}

/// One row of every table for level-1 step `step`, with new dictionary values in every step.
pub(super) fn push_step(log: &mut LogWriter, step: i64) -> Result<(), LogError> {
    let stamp = log.clock().stamp();
    let place = |level| Place { stamp, epoch: step as i32 / 10, step, level };
    let name = if step % 4 == 3 { format!("loss_{step}").into() } else { "loss".into() };
    let value = 1.0 / (step + 1) as f64;
    log.push(place(Some(Level::Pretrain)), MetricRow { name, value, split: "pretrain".into(), unit: "1".into() })?;
    let mask = MaskRow {
        sample_id: step * 7,
        label: (step % 2 == 0).then_some(3),
        policy_version: step / 2,
        mask_ratio: 0.5,
        mask: (0..6).map(|i| i % 2 == step % 2).collect(),
        score: (step % 3 != 0).then(|| vec![0.25; 6]),
        patch_loss: (step % 3 == 0).then(|| vec![step as f32; 6]),
        grid_h: GRID.0 as i16,
        grid_w: GRID.1 as i16,
    };
    log.push(place(Some(Level::Mask)), mask)?;
    let actor = ActorRow {
        stage: "load".into(),
        instance: 0,
        items: step,
        bytes: step * 1000,
        busy_s: 0.5,
        wait_in_s: 0.25,
        wait_out_s: 0.0,
        queue_len: 1,
        queue_cap: 4,
        queue_bytes: 100,
        utilization: 0.5,
        restarts: 0,
        lag: 0,
        device_s: None,
    };
    log.push(place(None), actor)?;
    let eval = EvalRow {
        task: "knn".into(),
        split: "test".into(),
        metric: "accuracy".into(),
        value: 0.5,
        n: 100,
        checkpoint: format!("step-{step:08}"),
        seconds: 0.1,
        ci_low: Some(0.4),
        ci_high: None,
    };
    log.push(place(Some(Level::Eval)), eval)
}

fn note(log: &mut LogWriter, kind: &'static str) -> Result<(), LogError> {
    let place = Place { stamp: log.clock().stamp(), epoch: 0, step: 0, level: None };
    let row = EventRow {
        severity: Severity::Info,
        kind: kind.into(),
        stage: None,
        message: "a, \"quoted\"\nmessage".into(),
        fields: "{}".into(),
    };
    log.push(place, row)
}

/// The steps of a table in order, sealed and live.
fn steps(run: &Path, table: Table) -> Vec<i64> {
    let snapshot = Snapshot::take(run, table, 0).unwrap();
    let mut steps = Vec::new();
    for (_, piece) in &snapshot.pieces {
        for batch in snapshot.read(piece, &mut Vec::new()).unwrap() {
            steps.extend(batch.column_by_name("step").unwrap().as_primitive::<Int64Type>().values());
        }
    }
    steps
}

/// How many events of a kind there are.
fn count_events(run: &Path, kind: &str) -> usize {
    let lines = tail(run, Table::Events, usize::MAX).unwrap();
    lines.iter().filter(|line| line.contains(&format!("kind={kind} "))).count()
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Four of the tables hold one row a step.
const STEPPED: [Table; 4] = [Table::Metrics, Table::Masks, Table::Actors, Table::Evals];

fn assert_steps(run: &Path, expected: std::ops::RangeInclusive<usize>, what: &str) -> usize {
    let mut least = usize::MAX;
    for table in STEPPED {
        let steps = steps(run, table);
        assert!(expected.contains(&steps.len()), "{what}: {table}: {} rows, expected {expected:?}", steps.len());
        assert!(steps.iter().copied().eq(0..steps.len() as i64), "{what}: {table}: {steps:?}");
        least = least.min(steps.len());
    }
    least
}

fn assert_repaired(run: &Path) {
    assert_eq!(repair(run).unwrap(), RepairReport::default(), "a second repair finds nothing");
    for table in Table::ALL {
        assert!(streams(run, table).unwrap().is_empty());
        assert!(!parts(run, table).unwrap().is_empty() || table == Table::Events);
    }
}

/// Pushes rows and seals now and then; counts the rows that were accepted and those that were flushed.
fn script(run: &Path, pushed: &Cell<usize>, flushed: &Cell<usize>) -> Result<(), LogError> {
    let mut log = LogWriter::open(run, ctx(0), by_hand())?;
    for step in 0..12 {
        push_step(&mut log, step)?;
        pushed.set(pushed.get() + 1);
        if step % 2 == 1 {
            log.flush()?;
            flushed.set(pushed.get());
        }
        if step == 6 {
            note(&mut log, "half")?;
            log.seal()?;
            flushed.set(pushed.get());
        }
    }
    log.close()?;
    flushed.set(pushed.get());
    Ok(())
}

#[test]
fn killed_before_any_operation_no_flushed_row_is_lost_or_doubled() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let (pushed, flushed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let kills = Rc::new(RefCell::new(Vec::<(PathBuf, usize, usize, String)>::new()));
    let hook = {
        let (run, root, pushed, flushed, kills) =
            (run.clone(), root.path().to_path_buf(), pushed.clone(), flushed.clone(), kills.clone());
        move |op: &'static str, path: &Path| {
            if run.join("logs").exists() {
                let copy = root.join(format!("kill-{}", kills.borrow().len()));
                copy_dir(&run, &copy);
                let what = format!("before {op} {}", path.file_name().unwrap_or_default().to_string_lossy());
                kills.borrow_mut().push((copy, flushed.get(), pushed.get(), what));
            }
            Ok(())
        }
    };
    fault::with(hook, || script(&run, &pushed, &flushed).unwrap());
    assert_eq!(assert_steps(&run, 12..=12, "finished"), 12);
    assert!(fs::read_dir(live_dir(&run)).unwrap().next().is_none(), "a clean exit seals everything");
    let kills = kills.borrow();
    assert!(kills.len() > 80, "{} operations", kills.len());
    for (copy, flushed, pushed, what) in kills.iter() {
        for table in Table::ALL {
            for number in streams(copy, table).unwrap() {
                let stream = read_stream(&live_path(copy, table, number), table).unwrap();
                assert!(stream.schema.is_some(), "{what}: {table} {number} is there and cannot be opened");
            }
        }
        assert_steps(copy, *flushed..=*pushed, what);
        repair(copy).unwrap();
        let rows = assert_steps(copy, *flushed..=*pushed, &format!("{what}, repaired"));
        if rows > 0 {
            assert_repaired(copy);
        }
        // Resume from a checkpoint somewhere before the kill.
        let from = (rows as i64 - 3).max(-1);
        let (mut log, _) = LogWriter::resume(copy, ctx(1), by_hand(), from).unwrap();
        for step in from + 1..20 {
            push_step(&mut log, step).unwrap();
        }
        log.close().unwrap();
        for table in [Table::Metrics, Table::Masks, Table::Evals] {
            assert!(steps(copy, table).into_iter().eq(0..20), "{what}: {table} after resume");
        }
    }
}

#[test]
fn a_repair_killed_at_any_operation_is_finished_by_the_next() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let mut log = LogWriter::open(&run, ctx(0), by_hand()).unwrap();
    for step in 0..5 {
        push_step(&mut log, step).unwrap();
        log.flush().unwrap();
    }
    note(&mut log, "x").unwrap();
    log.flush().unwrap();
    drop(log);
    // Damage three of the five streams: metrics loses its last batch; masks keeps all rows, with garbage after them;
    // evals loses all.
    let path = live_path(&run, Table::Metrics, 1);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let path = live_path(&run, Table::Masks, 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend([0xff; 11]);
    fs::write(&path, bytes).unwrap();
    fs::write(live_path(&run, Table::Evals, 1), b"nothing of use").unwrap();

    let copies = Rc::new(Cell::new(0));
    let hook = {
        let (run, root, copies) = (run.clone(), root.path().to_path_buf(), copies.clone());
        move |_: &'static str, _: &Path| {
            copy_dir(&run, &root.join(format!("kill-{}", copies.get())));
            copies.set(copies.get() + 1);
            Ok(())
        }
    };
    let report = fault::with(hook, || repair(&run).unwrap());
    assert_eq!(report.streams.len(), 5);
    assert!(copies.get() >= 20, "{} operations", copies.get());
    for n in 0..copies.get() {
        let copy = root.path().join(format!("kill-{n}"));
        repair(&copy).unwrap();
        assert_eq!(steps(&copy, Table::Metrics), [0, 1, 2, 3], "kill {n}");
        assert_eq!(steps(&copy, Table::Masks), [0, 1, 2, 3, 4], "kill {n}");
        assert_eq!(steps(&copy, Table::Actors), [0, 1, 2, 3, 4], "kill {n}");
        assert!(steps(&copy, Table::Evals).is_empty());
        assert_eq!(count_events(&copy, "log_repair"), 5, "kill {n}: one report a stream");
        assert_eq!(count_events(&copy, "x"), 1);
        assert_repaired(&copy);
    }
}

#[test]
fn on_a_full_disk_every_write_says_so_and_nothing_is_lost() {
    let mut failures = 0;
    for n in 0.. {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        let (pushed, flushed) = (Cell::new(0), Cell::new(0));
        let result = fault::full_from(n, || script(&run, &pushed, &flushed));
        if result.is_ok() {
            break;
        }
        failures += 1;
        assert_eq!(result.unwrap_err().exit_code(), 74);
        if !run.join("logs").exists() {
            continue;
        }
        for table in STEPPED {
            let rows = steps(&run, table).len();
            assert!((flushed.get()..=pushed.get()).contains(&rows), "full from {n}: {table}: {rows}");
        }
        repair(&run).unwrap();
        assert_steps(&run, flushed.get()..=pushed.get(), &format!("full from {n}, repaired"));
        let parts = Snapshot::take(&run, Table::Metrics, 0).unwrap();
        let mut damaged = Vec::new();
        parts.pieces.iter().for_each(|(_, piece)| drop(parts.read(piece, &mut damaged).unwrap()));
        assert_eq!(damaged, []);
    }
    assert!(failures > 80, "{failures} failures");
}

#[test]
fn a_writer_goes_on_when_the_disk_has_room_again() {
    for n in 0..40 {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        let mut log = LogWriter::open(&run, ctx(0), by_hand()).unwrap();
        push_step(&mut log, 0).unwrap();
        log.seal().unwrap();
        let failed = fault::full_from(n, || {
            push_step(&mut log, 1).unwrap();
            let first = log.flush().is_err();
            push_step(&mut log, 2).unwrap();
            let second = log.seal().is_err();
            push_step(&mut log, 3).unwrap();
            first | second | log.sync().is_err()
        });
        assert!(failed || n > 30, "full from {n}");
        push_step(&mut log, 4).unwrap();
        log.flush().unwrap();
        assert_steps(&run, 5..=5, &format!("full from {n}, live"));
        log.close().unwrap();
        assert_steps(&run, 5..=5, &format!("full from {n}, closed"));
        assert!(fs::read_dir(live_dir(&run)).unwrap().next().is_none());
    }
}

/// A stream of a table, with the file lengths and rows after each flush.
fn stream_of(table: Table) -> (Vec<u8>, Vec<(usize, usize)>) {
    let root = tempfile::tempdir().unwrap();
    let mut log = LogWriter::open(root.path(), ctx(0), by_hand()).unwrap();
    let path = live_path(root.path(), table, 1);
    let mut marks = vec![(fs::metadata(&path).unwrap().len() as usize, 0)];
    for step in 0..9 {
        push_step(&mut log, step).unwrap();
        if step % 2 == 0 {
            log.flush().unwrap();
            marks.push((fs::metadata(&path).unwrap().len() as usize, step as usize + 1));
        }
    }
    (fs::read(&path).unwrap(), marks)
}

#[test]
fn a_stream_cut_at_any_byte_keeps_all_whole_batches() {
    for table in STEPPED {
        let (bytes, marks) = stream_of(table);
        for cut in 0..=bytes.len() {
            let whole = marks.iter().rev().find(|(len, _)| *len <= cut);
            let contents = parse_stream(bytes[..cut].to_vec(), table);
            assert_eq!(contents.num_rows(), whole.map_or(0, |w| w.1), "{table} cut at {cut}");
            assert_eq!(contents.lost_bytes() as usize, cut - whole.map_or(0, |w| w.0), "{table} cut at {cut}");
            assert_eq!(contents.damage.is_none(), contents.lost_bytes() == 0, "{table} cut at {cut}");
        }
    }
}

#[test]
fn repair_seals_a_cut_stream_and_reports_the_loss_once() {
    let (bytes, marks) = stream_of(Table::Masks);
    for cut in (0..=bytes.len()).step_by(61).chain(marks.iter().map(|(len, _)| *len)) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(live_dir(root.path())).unwrap();
        fs::write(live_path(root.path(), Table::Masks, 4), &bytes[..cut]).unwrap();
        let (len, rows) = marks.iter().rev().find(|(len, _)| *len <= cut).copied().unwrap_or_default();
        let report = repair(root.path()).unwrap();
        assert_eq!((report.num_rows(), report.lost_bytes()), (rows as u64, (cut - len) as u64), "cut at {cut}");
        assert_eq!(steps(root.path(), Table::Masks), (0..rows as i64).collect::<Vec<_>>());
        assert_eq!(repair(root.path()).unwrap(), RepairReport::default());
        let news = rows > 0 || cut > len;
        assert_eq!(count_events(root.path(), "log_repair"), usize::from(news), "cut at {cut}");
        if cut > len {
            let line = tail(root.path(), Table::Events, 1).unwrap().remove(0);
            assert!(line.contains(&format!("\"lost_bytes\":{}", cut - len)), "{line}");
        }
    }
}

#[test]
fn altered_streams_and_garbage_never_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (mut damaged, mut gave_up) = (0, 0);
    for table in STEPPED {
        let (bytes, _) = stream_of(table);
        let all = parse_stream(bytes.clone(), table).num_rows();
        for _ in 0..4_000 {
            let mut bytes = bytes.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 => bytes[at] = 0xff,
                    2 => {
                        let end = (at + 512).min(bytes.len());
                        bytes[at..end].fill(0);
                    }
                    _ => drop(bytes.drain(at..(at + 5).min(bytes.len()))),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            let contents = parse_stream(bytes, table);
            assert!(contents.num_rows() <= all);
            assert!(contents.good_bytes <= contents.total_bytes);
            damaged += usize::from(contents.damage.is_some());
            gave_up += usize::from(contents.damage.is_some_and(|d| d.contains("gave up")));
        }
    }
    for len in 0..600 {
        let mut bytes = vec![0u8; len];
        rng.fill_bytes(&mut bytes);
        if len % 2 == 0 {
            bytes.iter_mut().take(4).for_each(|b| *b = 0xff);
        }
        let contents = parse_stream(bytes, Table::Metrics);
        assert_eq!((contents.num_rows(), contents.lost_bytes() as usize), (0, len));
    }
    assert!(damaged > 8_000, "{damaged}");
    assert_eq!(gave_up, 0, "the checks before the decoder keep it from panicking");
}

#[test]
fn a_stream_of_something_else_is_set_aside() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(live_dir(root.path())).unwrap();
    let (bytes, _) = stream_of(Table::Metrics);
    let path = live_path(root.path(), Table::Actors, 1);
    fs::write(&path, &bytes).unwrap();
    let report = repair(root.path()).unwrap();
    let aside = report.streams[0].set_aside.clone().unwrap();
    assert_eq!(fs::read(aside).unwrap(), bytes);
    assert_eq!(count_events(root.path(), "log_repair"), 1);
    assert_eq!(repair(root.path()).unwrap(), RepairReport::default());
}

#[test]
fn truncation_killed_at_any_operation_is_finished_by_the_next() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let mut log = LogWriter::open(&run, ctx(0), by_hand()).unwrap();
    for step in 0..12 {
        push_step(&mut log, step).unwrap();
        if step % 4 == 3 {
            log.seal().unwrap();
        }
    }
    log.close().unwrap();
    let copies = Rc::new(Cell::new(0));
    let hook = {
        let (run, root, copies) = (run.clone(), root.path().to_path_buf(), copies.clone());
        move |_: &'static str, _: &Path| {
            copy_dir(&run, &root.join(format!("kill-{}", copies.get())));
            copies.set(copies.get() + 1);
            Ok(())
        }
    };
    let report = fault::with(hook, || truncate_after(&run, 5).unwrap());
    assert_eq!(report.num_rows(), 18, "6 rows of 3 tables");
    assert!(copies.get() >= 10);
    for n in 0..copies.get() {
        let copy = root.path().join(format!("kill-{n}"));
        truncate_after(&copy, 5).unwrap();
        for table in [Table::Metrics, Table::Masks, Table::Evals] {
            assert_eq!(steps(&copy, table), [0, 1, 2, 3, 4, 5], "kill {n}: {table}");
        }
        assert_eq!(steps(&copy, Table::Actors).len(), 12);
        assert_eq!(truncate_after(&copy, 5).unwrap().num_rows(), 0);
    }
}

#[test]
fn deleted_under_the_run_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let mut log = LogWriter::open(&run, ctx(0), by_hand()).unwrap();
    push_step(&mut log, 0).unwrap();
    fs::remove_dir_all(&run).unwrap();
    let error = log.flush().unwrap_err();
    assert!(error.to_string().contains("deleted while the run was writing"), "{error}");
    assert_eq!(error.exit_code(), 74);
    assert!(log.close().is_err());
}
