//! Power losses: what a real sequence of operations may have left on the disk at any moment, within what fsync
//! promises.
//!
//! The model is weaker than common file systems: of a file, only what was there at its last fsync is certain; what came
//! later may be there, in part, or as zeros. Of a folder, the entries at its last fsync are certain; later changes
//! arrive in their order, but up to any point, and independently of files and of other folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::fault_tests::{by_hand, ctx, push_step};
use super::paths::{live_dir, part_path, parts};
use super::sealed::{Part, open_file};
use super::source::Snapshot;
use super::sums::Sums;
use super::*;
use crate::atomic::record::{Op, note, recorded};
use crate::checkpoint::{self, CheckpointRef, TensorRef};
use crate::run_dir::{RunDir, RunRecord, RunStatus};

/// Number of disk states that are tested.
const NUM_STATES: u64 = 500;

enum Node {
    File { durable: Vec<u8>, current: Vec<u8> },
    Folder { durable: Entries, current: Entries, later: Vec<Changes> },
    Link(PathBuf),
}

type Entries = BTreeMap<String, usize>;
/// Names that appear or go together: two in a rename.
type Changes = Vec<(String, Option<usize>)>;

/// A disk, and what of it is durable.
struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
}

fn apply(entries: &mut Entries, changes: &Changes) {
    for (name, node) in changes {
        match node {
            Some(node) => drop(entries.insert(name.clone(), *node)),
            None => drop(entries.remove(name)),
        }
    }
}

impl Disk {
    fn new(root: &Path) -> Self {
        let mut disk = Self { root: root.to_path_buf(), nodes: Vec::new() };
        disk.add_folder();
        disk
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn add_folder(&mut self) -> usize {
        self.add(Node::Folder { durable: Entries::new(), current: Entries::new(), later: Vec::new() })
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let below = path.strip_prefix(&self.root).expect("all is below the root");
        below.iter().try_fold(0, |node, name| match &self.nodes[node] {
            Node::Folder { current, .. } => current.get(&*name.to_string_lossy()).copied(),
            _ => None,
        })
    }

    fn change(&mut self, folder: &Path, changes: Changes) {
        let node = self.find(folder).unwrap_or_else(|| panic!("no folder {}", folder.display()));
        let Node::Folder { current, later, .. } = &mut self.nodes[node] else { panic!("{}", folder.display()) };
        apply(current, &changes);
        later.push(changes);
    }

    fn name(path: &Path) -> String {
        path.file_name().expect("a name").to_string_lossy().into_owned()
    }

    fn enter(&mut self, path: &Path, node: Node) {
        let node = self.add(node);
        self.change(path.parent().expect("below the root"), vec![(Self::name(path), Some(node))]);
    }

    fn file(&mut self, path: &Path) -> (&mut Vec<u8>, &mut Vec<u8>) {
        let node = self.find(path).unwrap_or_else(|| panic!("no file {}", path.display()));
        match &mut self.nodes[node] {
            Node::File { durable, current } => (durable, current),
            _ => panic!("no file {}", path.display()),
        }
    }

    fn remove(&mut self, path: &Path) {
        let Some(node) = self.find(path) else { return };
        if let Node::Folder { current, .. } = &self.nodes[node] {
            let names: Vec<String> = current.keys().cloned().collect();
            names.iter().for_each(|name| self.remove(&path.join(name)));
        }
        self.change(path.parent().expect("below the root"), vec![(Self::name(path), None)]);
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::CreateDir(path) => {
                let node = self.add_folder();
                self.change(path.parent().expect("below the root"), vec![(Self::name(path), Some(node))]);
            }
            Op::Create(path) => self.enter(path, Node::File { durable: Vec::new(), current: Vec::new() }),
            Op::Symlink(target, link) => self.enter(link, Node::Link(target.clone())),
            Op::Write(path, bytes) => self.file(path).1.extend(&bytes.0),
            Op::Truncate(path, len) => self.file(path).1.truncate(*len as usize),
            Op::Sync(path) => {
                let (durable, current) = self.file(path);
                durable.clone_from(current);
            }
            Op::SyncDir(path) => {
                let node = self.find(path).expect("a folder");
                let Node::Folder { durable, current, later } = &mut self.nodes[node] else { panic!("no folder") };
                durable.clone_from(current);
                later.clear();
            }
            Op::Rename(from, to) => {
                assert_eq!(from.parent(), to.parent(), "no rename across folders");
                let node = self.find(from);
                assert!(node.is_some(), "{}", from.display());
                let changes = vec![(Self::name(from), None), (Self::name(to), node)];
                self.change(from.parent().expect("below the root"), changes);
            }
            Op::Remove(path) | Op::RemoveDirAll(path) => self.remove(path),
            Op::Promise(_) => {}
        }
    }

    /// Writes to `to` a state that a power loss may leave.
    fn lose_power(&self, to: &Path, luck: &mut ChaCha8Rng) {
        self.leave(0, to, luck);
    }

    fn leave(&self, node: usize, to: &Path, luck: &mut ChaCha8Rng) {
        match &self.nodes[node] {
            Node::Link(target) => std::os::unix::fs::symlink(target, to).unwrap(),
            Node::File { durable, current } => fs::write(to, torn(durable, current, luck)).unwrap(),
            Node::Folder { durable, later, .. } => {
                fs::create_dir_all(to).unwrap();
                let mut entries = durable.clone();
                let arrived = part_of(later.len(), luck);
                later[..arrived].iter().for_each(|changes| apply(&mut entries, changes));
                entries.iter().for_each(|(name, node)| self.leave(*node, &to.join(name), luck));
            }
        }
    }
}

/// Nothing, all, or a random part, each with probability 1/3.
fn part_of(all: usize, luck: &mut ChaCha8Rng) -> usize {
    match luck.random_range(0..3) {
        0 => 0,
        1 => all,
        _ => luck.random_range(0..=all),
    }
}

/// What of a file's contents is there.
fn torn(durable: &[u8], current: &[u8], luck: &mut ChaCha8Rng) -> Vec<u8> {
    if !current.starts_with(durable) {
        return if luck.random_range(0..2) == 0 { durable.to_vec() } else { current.to_vec() };
    }
    let mut left = current[..durable.len() + part_of(current.len() - durable.len(), luck)].to_vec();
    if luck.random_range(0..3) == 0 {
        // The length arrived, the contents did not.
        left.resize(luck.random_range(left.len()..=current.len()), 0);
    }
    left
}

fn save(run: &Path, step: i64) {
    let values: Vec<f32> = (0..600).map(|i| (i * step) as f32).collect();
    let tensor = |name| vec![TensorRef { name, shape: &[600], values: &values }];
    let checkpoint = CheckpointRef {
        model: tensor("a"),
        head: tensor("b"),
        mask: tensor("c"),
        optimizer: tensor("d"),
        state: &serde_json::json!({ "outer_iteration": step }),
        keep: 2,
    };
    checkpoint::save(run, step.cast_unsigned(), &checkpoint).unwrap();
}

/// As a run does: rows, then the checkpoint that relies on them.
fn train(log: &mut LogWriter, run: &Path, steps: std::ops::RangeInclusive<i64>) {
    for step in steps {
        push_step(log, step).unwrap();
        if step % 3 == 0 {
            log.flush().unwrap();
        }
        if step % 5 == 0 {
            log.seal().unwrap();
        }
        if step % 4 == 0 {
            log.sync().unwrap();
            save(run, step);
            note(|| Op::Promise(step));
        }
    }
}

/// A run that is started, killed, resumed, resumed again from an older checkpoint, and finished.
fn life_of_a_run(root: &Path) {
    let dir = RunDir::create(root, "run").unwrap();
    let run = dir.path().to_path_buf();
    dir.write_configs("a = 1\n", "").unwrap();
    let mut record = RunRecord::begin("run", "0", "", 1);
    dir.write_record(&record).unwrap();
    note(|| Op::Promise(0));
    let mut log = LogWriter::open(&run, ctx(0), by_hand()).unwrap();
    train(&mut log, &run, 1..=22);
    log.flush().unwrap();
    drop((log, dir));
    let dir = RunDir::open_locked(&run).unwrap();
    checkpoint::clean(&run).unwrap();
    record.resume("0", "");
    dir.write_record(&record).unwrap();
    let mut log = LogWriter::resume(&run, ctx(1), by_hand(), 20).unwrap().0;
    train(&mut log, &run, 21..=32);
    log.close().unwrap();
    note(|| Op::Promise(28));
    checkpoint::go_back(&run, 28).unwrap();
    let mut log = LogWriter::resume(&run, ctx(2), by_hand(), 28).unwrap().0;
    train(&mut log, &run, 29..=34);
    log.sync().unwrap();
    // Of one step twice: the second replaces the first.
    save(&run, 34);
    save(&run, 34);
    note(|| Op::Promise(34));
    log.close().unwrap();
    record.end(RunStatus::Finished, 0, None);
    dir.write_record(&record).unwrap();
}

/// The steps of a table's rows, after checks of what every row must have.
fn steps(run: &Path, table: Table) -> Vec<i64> {
    let snapshot = Snapshot::take(run, table, 0).unwrap();
    assert_eq!(snapshot.missing, []);
    let (mut steps, mut seen, mut damaged) = (Vec::new(), std::collections::HashSet::new(), Vec::new());
    for (_, piece) in &snapshot.pieces {
        for batch in snapshot.read(piece, &mut damaged).unwrap() {
            let column = |name: &str| batch.column_by_name(name).unwrap().clone();
            let step = column("step");
            let step = step.as_primitive::<Int64Type>().values();
            let segment = column("segment");
            for (row, segment) in segment.as_primitive::<Int32Type>().values().iter().enumerate() {
                if table != Table::Events {
                    assert!(
                        seen.insert((*segment, step[row])),
                        "{table}: step {} of segment {segment} twice",
                        step[row]
                    );
                }
                match table {
                    Table::Actors => {
                        assert_eq!(
                            column("busy_s").as_primitive::<Float64Type>().value(row),
                            0.5,
                            "step {}",
                            step[row]
                        );
                    }
                    Table::Metrics => {
                        let value = column("value").as_primitive::<Float64Type>().value(row);
                        assert_eq!(value, 1.0 / (step[row] + 1) as f64, "step {}", step[row]);
                    }
                    _ => {}
                }
            }
            steps.extend(step);
        }
    }
    assert_eq!(damaged, []);
    steps
}

/// Resumes the run after the power loss; returns the step that it continues from, if there is a run.
fn wake(root: &Path, promised: Option<i64>) -> Option<i64> {
    let run = root.join("run");
    if !run.join("run.json").exists() {
        assert_eq!(promised, None, "the record was promised");
        return None;
    }
    let dir = RunDir::open_locked(&run).unwrap();
    dir.record().unwrap();
    dir.read_config().unwrap();
    for table in Table::ALL {
        for number in parts(&run, table).unwrap() {
            let path = part_path(&run, table, number);
            let part = Part::of_file(&open_file(&path).unwrap(), &path, table, number, &Sums::default());
            part.and_then(|part| part.read(&path)).expect("a query over *.parquet succeeds");
        }
    }
    let whole = || {
        for (step, folder) in checkpoint::list(&run).unwrap() {
            let loaded = checkpoint::load(&folder).expect("every checkpoint is whole");
            assert_eq!((loaded.step, loaded.model[0].values[1]), (step, step as f32));
        }
    };
    whole();
    checkpoint::clean(&run).unwrap();
    whole();
    let from = match checkpoint::resolve(&run) {
        Ok(latest) => checkpoint::load(&latest).unwrap().step.cast_signed(),
        Err(_) => 0,
    };
    assert!(Some(from) >= promised, "goes on from {from}");
    let (mut log, report) = LogWriter::resume(&run, ctx(9), by_hand(), from).unwrap();
    assert_eq!(report.repair.damaged, []);
    let assert_no_gap = |to: i64| {
        for table in [Table::Metrics, Table::Masks, Table::Evals] {
            let steps = steps(&run, table);
            assert!(steps.iter().copied().eq(1..=to), "{table} up to {to}: {steps:?}");
        }
        let actors = steps(&run, Table::Actors);
        assert!((1..=to).all(|step| actors.contains(&step)), "actors up to {to}: {actors:?}");
    };
    assert_no_gap(from);
    for step in from + 1..=from + 3 {
        push_step(&mut log, step).unwrap();
    }
    log.sync().unwrap();
    save(&run, from + 3);
    log.close().unwrap();
    assert_no_gap(from + 3);
    assert_eq!(checkpoint::load(&run).unwrap().step.cast_signed(), from + 3);
    assert_eq!(crate::atomic::names(&live_dir(&run)).unwrap(), [""; 0]);
    steps(&run, Table::Events);
    Some(from)
}

#[test]
fn after_any_power_loss_every_checkpoint_is_whole_and_no_row_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let ops = recorded(|| life_of_a_run(root.path()));
    assert!(ops.len() > 500, "{} operations", ops.len());
    let mut luck = ChaCha8Rng::seed_from_u64(11);
    let (mut num_runs, mut froms, mut cuts) = (0, BTreeMap::<i64, u32>::new(), Vec::new());
    for state in 0..NUM_STATES {
        let cut = luck.random_range(0..=ops.len());
        let mut disk = Disk::new(root.path());
        ops[..cut].iter().for_each(|op| disk.run(op));
        let promised = ops[..cut].iter().rev().find_map(|op| match op {
            Op::Promise(step) => Some(*step),
            _ => None,
        });
        let left = tempfile::tempdir().unwrap();
        disk.lose_power(left.path(), &mut luck);
        let outcome = std::panic::catch_unwind(|| wake(left.path(), promised));
        let Ok(from) = outcome else {
            let before: Vec<String> = ops[..cut].iter().rev().take(6).map(|op| format!("{op:?}")).collect();
            panic!("state {state}: power lost after operation {cut}, promised {promised:?}; the last: {before:#?}");
        };
        num_runs += u32::from(from.is_some());
        *froms.entry(from.unwrap_or(-1)).or_default() += 1;
        cuts.push(cut);
    }
    cuts.sort_unstable();
    cuts.dedup();
    println!(
        "{NUM_STATES} states after power losses, at {} of {} moments: {num_runs} with a run, all resumed; \
         every checkpoint whole, every promised one there, no step missing or twice",
        cuts.len(),
        ops.len()
    );
    assert!(froms.len() >= 8, "from all of its checkpoints: {froms:?}");
}
