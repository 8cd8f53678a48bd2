//! Random topologies of slow, failing and panicking stages under real threads, with stops at random moments: whatever
//! happens, every thread comes home.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::flow::counters::StageCounters;
use crate::flow::exit::{Exit, StageError};
use crate::flow::fault::{FaultPhase, FaultPlan};
use crate::flow::ports::{FanInSender, OrderedReceiver, OrderedSender, Payload, WaitContext};
use crate::flow::stage::{Flow, Interrupt, Stage, StageRunner, Wiring};
use crate::flow::stage_name::{EdgeId, StageName};
use crate::flow::stop::{StopFlag, StopLevel, StopReason};
use crate::flow::topology::{EdgeDecl, StageDecl, Topology};
use crate::record::{EventRow, Record, Recorder, Severity};
use crate::stages::log::{AssembledCheckpoint, LogRunner, LogStage, RecordSink};

const NUM_TOPOLOGIES: u64 = 250;
/// Nothing here takes a second; the machine may be stopped for a while.
const DEADLINE: Duration = Duration::from_secs(240);
const MAX_RESTARTS: usize = 3;

#[derive(Debug, Clone, Copy)]
struct Item(u64);

impl Payload for Item {
    fn size_bytes(&self) -> usize {
        8
    }
}

/// What a toy stage does with a unit.
struct Body {
    max_nap_us: u64,
    fails_at: Option<u64>,
    rng: ChaCha8Rng,
}

impl Body {
    fn work(
        &mut self,
        stage: StageName,
        unit: u64,
        items: &[Item],
        recorder: &mut Recorder,
    ) -> Result<Item, StageError> {
        assert!(items.iter().all(|item| item.0 == unit), "{items:?} for unit {unit}");
        if self.max_nap_us > 0 {
            std::thread::sleep(Duration::from_micros(self.rng.random_range(0..self.max_nap_us)));
        }
        recorder.event(EventRow {
            severity: Severity::Info,
            kind: "unit".into(),
            stage: Some(stage.as_str().into()),
            message: String::new(),
            fields: unit.to_string(),
        });
        match self.fails_at {
            Some(at) if at == unit => Err(StageError::Data {
                stage,
                message: format!("unit {unit}"),
                exit_code: mlomae_storage::exit_code::ExitCode::BadData,
            }),
            _ => Ok(Item(unit)),
        }
    }
}

/// Ports from any number of earlier stages to any number of later ones.
struct Ports {
    worker: u64,
    num_workers: u64,
    inputs: Vec<OrderedReceiver<Flow<Item>>>,
    /// The nearest first: so no capacity can deadlock.
    outputs: Vec<OrderedSender<Flow<Item>>>,
    num_handed_on: Arc<AtomicU64>,
}

impl<S: Stage<In = Vec<Item>, Out = Item>> Wiring<S> for Ports {
    fn owns(&self, unit: u64) -> bool {
        unit % self.num_workers == self.worker
    }

    fn receive(&mut self, unit: u64, heed: StopLevel, context: &WaitContext) -> Result<Flow<Vec<Item>>, Interrupt> {
        let mut all = Flow::Item(Vec::new());
        for input in &mut self.inputs {
            let item = input.recv_heeding(unit, heed, context)?;
            all = all.zip(item).map(|(mut items, item)| {
                items.push(item);
                items
            });
        }
        Ok(all)
    }

    fn send(&mut self, unit: u64, output: Flow<Item>, context: &WaitContext) -> Result<usize, Interrupt> {
        for port in &mut self.outputs {
            port.send(unit, output.clone(), context)?;
        }
        self.num_handed_on.fetch_add(1, Ordering::Relaxed);
        Ok(output.size_bytes())
    }
}

macro_rules! toy_stages {
    ($($toy:ident = $name:ident),+) => {
        $(
            struct $toy(Body);

            impl Stage for $toy {
                type In = Vec<Item>;
                type Out = Item;
                type Log = Recorder;
                const NAME: StageName = StageName::$name;

                fn process(
                    &mut self,
                    unit: u64,
                    items: Vec<Item>,
                    recorder: &mut Recorder,
                ) -> Result<Item, StageError> {
                    self.0.work(Self::NAME, unit, &items, recorder)
                }

                fn sample_ids(&mut self, unit: u64, _: &Vec<Item>) -> Vec<i64> {
                    vec![unit as i64]
                }

                fn may_stop_before(&self, unit: u64) -> bool {
                    unit.is_multiple_of(3)
                }
            }
        )+

        /// A worker of the stage of that name.
        fn worker(
            name: StageName,
            body: Body,
            units: u64,
            ports: Ports,
            log: FanInSender<Record>,
            context: WaitContext,
        ) -> Box<dyn FnMut() -> Exit + Send> {
            let instance = ports.worker as usize;
            match name {
                $(StageName::$name => {
                    let mut runner = StageRunner::new($toy(body), instance, 0..units, ports, log, context);
                    Box::new(move || runner.run())
                })+
                StageName::Log => unreachable!("the log stage has a runner of its own"),
            }
        }
    };
}

toy_stages!(Load = Load, Score = Score, Encoder = Encoder, Evaluator = Evaluator, Policy = Policy);

struct SlowSink {
    nap: Duration,
    num_rows: Arc<AtomicU64>,
}

impl RecordSink for SlowSink {
    fn write(&mut self, _: Record) -> Result<(), StageError> {
        std::thread::sleep(self.nap);
        self.num_rows.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn checkpoint(&mut self, _: &AssembledCheckpoint) -> Result<String, StageError> {
        unreachable!("no part is sent")
    }

    fn flush(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), StageError> {
        Ok(())
    }
}

/// A topology with all that happens to it.
#[derive(Debug)]
struct Scene {
    topology: Topology,
    units: u64,
    max_naps_us: Vec<u64>,
    faults: Option<String>,
    num_faults: usize,
    /// Which stage returns an error, and at which unit.
    fails: Option<(StageName, u64)>,
    stop: Option<(StopReason, Duration)>,
}

impl Scene {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut names = StageName::ALL[..5].to_vec();
        while names.len() > 2 && rng.random_range(0..3) == 0 {
            names.remove(rng.random_range(0..names.len()));
        }
        let mut edges = Vec::new();
        for (place, &to) in names.iter().enumerate().skip(1) {
            for (from_place, &from) in names[..place].iter().enumerate() {
                // Neighbours always, others now and then.
                if from_place + 1 == place || rng.random_range(0..3) == 0 {
                    let capacity = rng.random_range(0..=4);
                    edges.push(EdgeDecl { id: EdgeId::between(from, to), capacity, payload_bytes: 8, large_bytes: 0 });
                }
            }
        }
        let capacity = rng.random_range(0..=4);
        let log = EdgeDecl { id: EdgeId::fan_in(StageName::Log), capacity, payload_bytes: 8, large_bytes: 0 };
        edges.push(log);
        let mut stages: Vec<_> =
            names.iter().map(|&name| StageDecl { name, num_workers: rng.random_range(1..=4) }).collect();
        stages.push(StageDecl { name: StageName::Log, num_workers: 1 });
        let units = rng.random_range(1..=40);
        let all = [&names[..], &[StageName::Log]].concat();
        let num_faults = [0, 0, 1, 2, 6][rng.random_range(0..5)];
        let faults: Vec<String> = (0..num_faults)
            .map(|_| {
                let (stage, phase) = (all[rng.random_range(0..all.len())], FaultPhase::ALL[rng.random_range(0..5)]);
                let unit = match rng.random_range(0..6) {
                    0 => "any".to_owned(),
                    _ => rng.random_range(0..units).to_string(),
                };
                let kind = ["panic", "panic", "hang=0.01"][rng.random_range(0..3)];
                format!("{stage}:{phase}:{unit}:{kind}")
            })
            .collect();
        Self {
            topology: Topology::new(stages, edges).expect("valid"),
            units,
            max_naps_us: (0..6).map(|_| [0, 0, 200, 1500][rng.random_range(0..4)]).collect(),
            faults: (!faults.is_empty()).then(|| faults.join(",")),
            num_faults,
            fails: (rng.random_range(0..5) == 0)
                .then(|| (names[rng.random_range(0..names.len())], rng.random_range(0..units))),
            stop: (rng.random_range(0..3) == 0).then(|| {
                let reason = if rng.random_range(0..2) == 0 { StopReason::Terminate } else { StopReason::Error };
                (reason, Duration::from_micros(rng.random_range(0..8000)))
            }),
        }
    }

    /// The workers, by stage.
    fn workers(&self, stop: &StopFlag, handed_on: &Arc<AtomicU64>, rows: &Arc<AtomicU64>) -> Vec<(StageName, Worker)> {
        let faults: FaultPlan =
            self.faults.as_deref().map_or_else(FaultPlan::default, |text| text.parse().expect("a plan"));
        let context = || WaitContext::new(stop.clone(), StageCounters::new()).with_faults(faults.clone());
        let (log, records) = self.topology.fan_in::<Record>(StageName::Log).expect("declared");
        let stages = self.topology.stages();
        let last = stages[stages.len() - 2].name;
        let mut ports: Vec<(StageName, Ports)> = Vec::new();
        for stage in &stages[..stages.len() - 1] {
            for worker in 0..stage.num_workers {
                let counted = if stage.name == last { handed_on.clone() } else { Arc::default() };
                ports.push((
                    stage.name,
                    Ports {
                        worker: worker as u64,
                        num_workers: stage.num_workers as u64,
                        inputs: Vec::new(),
                        outputs: Vec::new(),
                        num_handed_on: counted,
                    },
                ));
            }
        }
        // Edges are declared by their receiving stage, so a sender gets the nearest first.
        for edge in self.topology.edges() {
            let EdgeId { from: Some(from), to } = edge.id else { continue };
            let made = self.topology.ordered::<Flow<Item>>(from, to).expect("declared");
            let senders = ports.iter_mut().filter(|(name, _)| *name == from);
            senders.zip(made.senders).for_each(|((_, ports), sender)| ports.outputs.push(sender));
            let receivers = ports.iter_mut().filter(|(name, _)| *name == to);
            receivers.zip(made.receivers).for_each(|((_, ports), receiver)| ports.inputs.push(receiver));
        }
        let mut workers: Vec<(StageName, Worker)> = Vec::new();
        for (name, ports) in ports {
            let body = Body {
                max_nap_us: self.max_naps_us[name as usize],
                fails_at: self.fails.filter(|(stage, _)| *stage == name).map(|(_, unit)| unit),
                rng: ChaCha8Rng::seed_from_u64(ports.worker),
            };
            workers.push((name, worker(name, body, self.units, ports, log.clone(), context())));
        }
        drop(log);
        let sink = SlowSink { nap: Duration::from_micros(self.max_naps_us[5] / 10), num_rows: rows.clone() };
        let mut log = LogRunner::new(LogStage::new(sink), records, context());
        workers.push((StageName::Log, Box::new(move || log.run())));
        workers
    }

    /// Runs it; gives the ends of all workers, the units that the last stage handed on, and the restarts.
    fn run(&self, seed: u64) -> (Vec<(StageName, Exit)>, u64, u64) {
        let stop = StopFlag::new();
        let (handed_on, rows, restarts) = (Arc::default(), Arc::default(), Arc::new(AtomicU64::new(0)));
        let threads: Vec<_> = self
            .workers(&stop, &handed_on, &rows)
            .into_iter()
            .map(|(name, mut worker)| {
                let (restarts, stop) = (restarts.clone(), stop.clone());
                std::thread::spawn(move || {
                    let mut left = if name.is_restartable() { MAX_RESTARTS } else { 0 };
                    loop {
                        let exit = worker();
                        if !matches!(exit, Exit::Panicked { .. }) || left == 0 {
                            // Odd seeds have no supervisor: the disconnects alone must bring the rest down.
                            if !exit.is_clean() && seed.is_multiple_of(2) {
                                stop.stop_now(StopReason::Error);
                            }
                            return (name, exit);
                        }
                        left -= 1;
                        restarts.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        if let Some((reason, after)) = self.stop {
            std::thread::sleep(after);
            match reason {
                StopReason::Error => stop.stop_now(reason),
                reason => stop.request(reason),
            }
        }
        let begin = Instant::now();
        while threads.iter().any(|thread| !thread.is_finished()) {
            assert!(begin.elapsed() < DEADLINE, "deadlock of topology {seed}:\n{self:#?}");
            std::thread::sleep(Duration::from_micros(200));
        }
        let exits = threads.into_iter().map(|thread| thread.join().expect("caught")).collect();
        (exits, handed_on.load(Ordering::Relaxed), restarts.load(Ordering::Relaxed))
    }
}

type Worker = Box<dyn FnMut() -> Exit + Send>;

#[test]
fn no_topology_with_slow_and_failing_stages_deadlocks() {
    let (mut num_finished, mut num_stopped, mut num_failed, mut num_faults, mut num_restarts) = (0, 0, 0, 0, 0);
    let (mut num_workers, mut num_units) = (0, 0);
    for seed in 0..NUM_TOPOLOGIES {
        let scene = Scene::random(&mut ChaCha8Rng::seed_from_u64(seed));
        let (exits, handed_on, restarts) = scene.run(seed);
        num_workers += exits.len();
        num_units += handed_on;
        num_faults += scene.num_faults;
        num_restarts += restarts;
        if exits.iter().all(|(_, exit)| matches!(exit, Exit::Finished)) {
            num_finished += 1;
            assert_eq!(handed_on, scene.units, "every unit arrives once, or its loss does: {seed} {scene:#?}");
        } else if exits.iter().all(|(_, exit)| exit.is_clean()) {
            num_stopped += 1;
            assert!(scene.stop.is_some(), "{seed} {exits:?}: {scene:#?}");
        } else {
            num_failed += 1;
            let is_expected = scene.faults.is_some() || scene.fails.is_some();
            assert!(is_expected, "nothing was to go wrong: {seed} {exits:?}: {scene:#?}");
            let has_cause = exits.iter().any(|(_, exit)| matches!(exit, Exit::Panicked { .. } | Exit::Failed(_)));
            assert!(has_cause, "{seed} {exits:?}: {scene:#?}");
            let internal = exits.iter().find(|(_, exit)| matches!(exit, Exit::Failed(StageError::Internal { .. })));
            assert!(internal.is_none(), "{seed} {exits:?}: {scene:#?}");
        }
    }
    assert!(num_finished > 60 && num_stopped > 20 && num_failed > 40, "{num_finished} {num_stopped} {num_failed}");
    println!(
        "{NUM_TOPOLOGIES} topologies, {num_workers} workers, {num_faults} faults, \
         {num_restarts} restarts, {num_units} units: \
         {num_finished} finished, {num_stopped} stopped, {num_failed} ended by a fault, none hung"
    );
}
