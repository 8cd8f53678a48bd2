//! Fault stages under the supervisor. A pipeline of all six stages: each but the first relays
//! numbered items of the one before; the fault of one stage strikes at its third item.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;

use mlomae_dataflow::flow::exit::StageError;
use mlomae_dataflow::flow::ports::{
    Halt, OrderedReceiver, OrderedSender, Payload, WaitContext, fan_in_edge, ordered_edge,
};
use mlomae_dataflow::flow::stage_name::EdgeId;
use mlomae_dataflow::flow::stop::StopLevel;
use mlomae_storage::exit_code::ExitCode;

use super::*;
use crate::roles::telemetry::WorkerProbe;

const NUM_ITEMS: u64 = 20;
const THIRD: u64 = 2;

struct Item;

impl Payload for Item {
    fn size_bytes(&self) -> usize {
        8
    }
}

/// What a stage does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    PanicOnThird,
    PanicAlways,
    FailOnThird(ExitCode),
    NanOnThird,
    HangOnThird,
    SlowSink,
}

struct Body {
    stage: StageName,
    fault: Fault,
    source: Option<OrderedReceiver<Item>>,
    sink: Option<OrderedSender<Item>>,
    wait: WaitContext,
    seq: u64,
    num_items: u64,
    done: Arc<Mutex<Vec<StageName>>>,
    release: Arc<AtomicBool>,
}

impl Body {
    fn run(&mut self) -> Exit {
        let counters = self.wait.counters.clone();
        let _run = counters.run();
        while self.seq < self.num_items {
            // As the real source does: a graceful stop is heeded between items, by the first alone.
            if self.source.is_none() && self.wait.stop.concerns(StopLevel::Graceful) {
                return Exit::Stopped;
            }
            let seq = self.seq;
            if let Some(source) = &mut self.source
                && let Err(halt) = source.recv(seq, &self.wait)
            {
                return self.halted(halt);
            }
            if let Some(exit) = self.strike(seq) {
                return exit;
            }
            if let Some(sink) = &mut self.sink
                && let Err(halt) = sink.send(seq, Item, &self.wait)
            {
                return self.halted(halt);
            }
            self.wait.counters.add_item(8);
            self.seq += 1;
        }
        Exit::Finished
    }

    fn strike(&mut self, seq: u64) -> Option<Exit> {
        match self.fault {
            Fault::PanicAlways => panic!("always"),
            Fault::SlowSink => sleep(Duration::from_millis(2)),
            _ if seq != THIRD => {}
            Fault::None => {}
            Fault::PanicOnThird => {
                // The item is lost; its successor takes its number, so that the order holds.
                self.fault = Fault::None;
                if let Some(sink) = &mut self.sink {
                    let _ = sink.send(seq, Item, &self.wait);
                }
                self.seq += 1;
                return Some(Exit::Panicked { message: "third item".to_owned(), lost_sample_ids: vec![70, 71] });
            }
            Fault::FailOnThird(exit_code) => {
                return Some(Exit::Failed(StageError::Data {
                    stage: self.stage,
                    message: "sample 7: not an image".to_owned(),
                    exit_code,
                }));
            }
            Fault::NanOnThird => {
                return Some(Exit::Failed(StageError::NonFinite {
                    level: "pretrain".to_owned(),
                    quantity: "loss".to_owned(),
                    step: seq,
                    value: f64::NAN,
                }));
            }
            Fault::HangOnThird => {
                while !self.release.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(5));
                }
            }
        }
        None
    }

    /// A stage that is disconnected in a graceful stop has drained.
    fn halted(&self, halt: Halt) -> Exit {
        match halt {
            Halt::Stopped => Exit::Stopped,
            Halt::Disconnected if self.wait.stop.concerns(StopLevel::Graceful) => Exit::Stopped,
            Halt::Disconnected => Exit::Disconnected,
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.done.lock().expect("no test panics with the lock").push(self.stage);
    }
}

struct Pipeline {
    workers: Vec<WorkerBody>,
    stop: StopFlag,
    done: Arc<Mutex<Vec<StageName>>>,
    release: Arc<AtomicBool>,
    load: StageCounters,
}

/// The six stages in a row, of which the stages in `faults` have one.
fn pipeline(faults: &[(StageName, Fault)], capacity: usize, num_items: u64) -> Pipeline {
    let stop = StopFlag::new();
    let done = Arc::default();
    let release = Arc::<AtomicBool>::default();
    let mut source = None;
    let mut workers = Vec::new();
    let mut load = StageCounters::new();
    for stage in StageName::ALL {
        let counters = StageCounters::new();
        if stage == StageName::Load {
            load = counters.clone();
        }
        let (sink, next) = if stage == StageName::Log {
            (None, None)
        } else {
            let mut edge = ordered_edge(EdgeId::fan_in(stage), 1, 1, capacity);
            (edge.senders.pop(), edge.receivers.pop())
        };
        let fault = faults.iter().find(|fault| fault.0 == stage).map_or(Fault::None, |f| f.1);
        let mut body = Body {
            stage,
            fault,
            source: std::mem::replace(&mut source, next),
            sink,
            wait: WaitContext::new(stop.clone(), counters.clone()),
            seq: 0,
            num_items,
            done: Arc::clone(&done),
            release: Arc::clone(&release),
        };
        workers.push(WorkerBody::new(WorkerId { stage, instance: 0 }, 2, counters, move || body.run()));
    }
    Pipeline { workers, stop, done, release, load }
}

fn quick() -> SupervisorOptions {
    SupervisorOptions {
        tick: Duration::from_millis(5),
        report_every: Duration::from_millis(20),
        graceful_deadline: Duration::from_secs(20),
        final_deadline: Duration::from_secs(20),
    }
}

impl Pipeline {
    fn supervise(self, options: SupervisorOptions) -> (Outcome, Vec<StageName>) {
        let outcome = supervise(self.workers, &self.stop, None, options);
        let done = self.done.lock().expect("no test panics with the lock").clone();
        // Ends a stage that hangs, so that no thread outlives its test for long.
        self.release.store(true, Ordering::Relaxed);
        (outcome, done)
    }
}

#[test]
fn a_sound_pipeline_finishes_with_0() {
    for capacity in [0, 1, 4] {
        let (outcome, done) = pipeline(&[], capacity, NUM_ITEMS).supervise(quick());
        assert_eq!(outcome.exit_code(), 0, "{outcome:?}");
        assert_eq!(outcome.exits.len(), 6);
        assert!(outcome.exits.iter().all(|exit| matches!(exit.exit, Exit::Finished)));
        assert_eq!(outcome.error_message(), None);
        assert!(outcome.events.is_empty(), "{:?}", outcome.events);
        assert_eq!(done.len(), 6, "every task is dropped: {done:?}");
    }
}

#[test]
fn a_pipeline_of_no_stage_ends_at_once() {
    let outcome = supervise(Vec::new(), &StopFlag::new(), None, quick());
    assert_eq!(outcome.exit_code(), 0);
}

#[test]
fn one_panic_is_survived_by_load_score_and_log_alone() {
    for stage in StageName::ALL {
        let (outcome, _) = pipeline(&[(stage, Fault::PanicOnThird)], 1, NUM_ITEMS).supervise(quick());
        if stage.is_restartable() {
            assert_eq!(outcome.exit_code(), 0, "{stage}: {outcome:?}");
            assert_eq!(outcome.num_restarts(), 1, "{stage}");
            let [PipelineEvent::Restarted { worker, lost_sample_ids, restarts_left, .. }] = &outcome.events[..] else {
                panic!("{stage}: {:?}", outcome.events)
            };
            assert_eq!((worker.stage, *restarts_left), (stage, 1));
            assert_eq!(lost_sample_ids, &[70, 71]);
        } else {
            assert_eq!(outcome.exit_code(), 70, "{stage}");
            assert_eq!(outcome.num_restarts(), 0, "{stage}");
            let cause = outcome.cause().expect("a panic is a cause");
            assert_eq!(cause.worker.stage, stage, "its neighbours' exits are no cause");
            assert_eq!(outcome.error_message().as_deref(), Some(&*format!("{stage} 0: internal error: third item")));
            assert_eq!(outcome.exits.len(), 6, "every stage acknowledges");
        }
    }
}

#[test]
fn a_stage_that_panics_every_time_ends_the_run_after_its_restarts() {
    for stage in StageName::ALL {
        let (outcome, _) = pipeline(&[(stage, Fault::PanicAlways)], 1, NUM_ITEMS).supervise(quick());
        assert_eq!(outcome.exit_code(), 70);
        let expected = if stage.is_restartable() { 2 } else { 0 };
        assert_eq!(outcome.num_restarts(), expected, "{stage}");
        assert_eq!(outcome.cause().map(|cause| cause.worker.stage), Some(stage));
    }
}

#[test]
fn an_error_ends_the_run_with_its_code_and_message() {
    for stage in StageName::ALL {
        for exit_code in [ExitCode::BadData, ExitCode::NoInput, ExitCode::Io] {
            let fault = [(stage, Fault::FailOnThird(exit_code))];
            let (outcome, _) = pipeline(&fault, 0, NUM_ITEMS).supervise(quick());
            assert_eq!(outcome.exit_code(), exit_code);
            assert_eq!(outcome.error_message(), Some(format!("{stage}: sample 7: not an image")));
        }
    }
    let fault = [(StageName::Encoder, Fault::NanOnThird)];
    let (outcome, _) = pipeline(&fault, 4, NUM_ITEMS).supervise(quick());
    assert_eq!(outcome.exit_code(), 70);
    assert_eq!(outcome.error_message().as_deref(), Some("pretrain: loss is not finite at step 2: NaN"));
}

#[test]
fn a_graceful_stop_drains_front_to_back() {
    for (reason, exit_code) in
        [(StopReason::Interrupt, ExitCode::Interrupt), (StopReason::Terminate, ExitCode::Terminate)]
    {
        // The sink is the slowest, so that all queues are full when the stop comes.
        let pipeline = pipeline(&[(StageName::Log, Fault::SlowSink)], 4, u64::MAX);
        let (stop, load) = (pipeline.stop.clone(), pipeline.load.clone());
        let asker = std::thread::spawn(move || {
            while load.snapshot().items < 30 {
                sleep(Duration::from_millis(1));
            }
            stop.request(reason);
        });
        let (outcome, done) = pipeline.supervise(quick());
        asker.join().expect("the asker only waits");
        assert_eq!(outcome.exit_code(), exit_code, "{outcome:?}");
        assert_eq!(done, StageName::ALL, "each stage outlives its source");
        assert!(outcome.error_message().is_none());
    }
}

#[test]
fn a_hanging_stage_is_named_and_given_up() {
    for stage in StageName::ALL {
        let options = SupervisorOptions {
            graceful_deadline: Duration::from_millis(100),
            final_deadline: Duration::from_millis(100),
            ..quick()
        };
        let pipeline = pipeline(&[(stage, Fault::HangOnThird)], 1, u64::MAX);
        let (flag, load) = (pipeline.stop.clone(), pipeline.load.clone());
        let asker = std::thread::spawn(move || {
            while load.snapshot().items < THIRD {
                sleep(Duration::from_millis(1));
            }
            sleep(Duration::from_millis(30));
            flag.request(StopReason::Terminate);
        });
        let begin = Instant::now();
        let (outcome, _) = pipeline.supervise(options);
        asker.join().expect("the asker only waits");
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(outcome.exit_code(), 70, "{outcome:?}");
        let abandoned: Vec<_> = outcome.abandoned.iter().map(|w| w.worker.stage).collect();
        assert!(abandoned.contains(&stage), "{stage}: {outcome:?}");
        let named = |event: &PipelineEvent| match event {
            PipelineEvent::StillRunning { workers } => workers.iter().any(|worker| worker.worker.stage == stage),
            _ => false,
        };
        assert!(outcome.events.iter().any(named), "{stage}: {:?}", outcome.events);
        assert!(outcome.error_message().is_some_and(|text| text.contains(stage.as_str())));
    }
}

#[test]
fn a_sink_of_telemetry_does_not_keep_the_log_stage_waiting() {
    let stop = StopFlag::new();
    let (to_log, from_all) = fan_in_edge::<Item>(EdgeId::fan_in(StageName::Log), 2, 64);
    let counters = StageCounters::new();
    let num_logged = Arc::new(AtomicU64::new(0));
    let log = {
        let (counters, num_logged) = (counters.clone(), Arc::clone(&num_logged));
        WorkerBody::new(WorkerId { stage: StageName::Log, instance: 0 }, 0, counters.clone(), move || {
            loop {
                match from_all.recv_timeout(Duration::from_millis(5), &counters) {
                    Ok(Some(Item)) => _ = num_logged.fetch_add(1, Ordering::Relaxed),
                    Ok(None) => {}
                    Err(_) => return Exit::Finished,
                }
            }
        })
    };
    let records = to_log.clone();
    let encoder =
        WorkerBody::new(WorkerId { stage: StageName::Encoder, instance: 0 }, 0, StageCounters::new(), move || {
            sleep(Duration::from_millis(60));
            records.send(Item, &WaitContext::default()).map_or(Exit::Disconnected, |()| Exit::Finished)
        });
    let probe = WorkerProbe { worker: encoder.id(), counters: encoder.counters(), inputs: Vec::new() };
    let telemetry = Telemetry::new(vec![probe], Duration::from_millis(10), Duration::MAX, move |samples| {
        for _ in samples {
            let _ = to_log.send(Item, &WaitContext::default());
        }
    });
    let outcome = supervise(vec![log, encoder], &stop, Some(telemetry), quick());
    assert_eq!(outcome.exit_code(), 0, "{outcome:?}");
    let num_logged = num_logged.load(Ordering::Relaxed);
    assert!(num_logged >= 3, "samples of a 60 ms run taken every 10 ms: {num_logged}");
}

#[test]
fn no_mixture_of_faults_deadlocks() {
    // A plain generator suffices: the mixture must vary, not be random.
    let mut state = 1_u64;
    let mut draw = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let kinds = [
        Fault::None,
        Fault::PanicOnThird,
        Fault::PanicAlways,
        Fault::FailOnThird(ExitCode::BadData),
        Fault::NanOnThird,
        Fault::SlowSink,
    ];
    let mut num_bad = 0;
    for round in 0..120 {
        let faults = StageName::ALL.map(|stage| (stage, kinds[draw(kinds.len())]));
        let faults = if draw(3) == 0 { faults[..].to_vec() } else { vec![faults[draw(6)]] };
        let pipeline = pipeline(&faults, draw(5), NUM_ITEMS);
        if draw(4) == 0 {
            pipeline.stop.request(StopReason::Interrupt);
        }
        let begin = Instant::now();
        let (outcome, done) = pipeline.supervise(quick());
        assert!(begin.elapsed() < Duration::from_secs(15), "round {round}: {faults:?}");
        assert!(outcome.abandoned.is_empty(), "round {round}: {faults:?}");
        assert_eq!(outcome.exits.len(), 6, "round {round}: {faults:?}");
        assert_eq!(done.len(), 6, "round {round}: {faults:?}");
        assert_eq!(outcome.exit_code() == 0, outcome.stop_reason.is_none(), "{outcome:?}");
        num_bad += usize::from(outcome.exit_code() != 0);
    }
    assert!((20..120).contains(&num_bad), "the mixture is no mixture: {num_bad} of 120 ended badly");
}
