//! The loop around a stage's body: cuts, ends, losses and errors in a chain of three stages.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::flow::counters::StageCounters;
use crate::flow::exit::{Exit, StageError};
use crate::flow::ports::{OrderedReceiver, OrderedSender, Payload, WaitContext, fan_in_edge, ordered_edge};
use crate::flow::stage::{Flow, Interrupt, Log, Lost, Stage, StageRunner, Wiring};
use crate::flow::stage_name::{EdgeId, StageName, WorkerId};
use crate::flow::stop::{StopFlag, StopLevel, StopReason};

const UNROLL: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number(u64);

impl Payload for Number {
    fn size_bytes(&self) -> usize {
        8
    }
}

/// What a stage said: a kind and a number.
type Said = (&'static str, u64);

impl Payload for Said {
    fn size_bytes(&self) -> usize {
        size_of::<Self>()
    }
}

/// Keeps what was said since it was last taken.
#[derive(Debug, Default)]
struct Notes(Vec<Said>);

impl Log for Notes {
    type Record = Said;

    fn lose(&mut self, _: WorkerId, unit: u64, _: &Lost) {
        self.0.push(("lost_batch", unit));
    }

    fn take(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Panic(u64),
    Error(u64),
}

/// Counts, as the loader.
struct Source {
    fault: Fault,
}

impl Stage for Source {
    type In = ();
    type Out = Number;
    type Log = Notes;
    const NAME: StageName = StageName::Load;

    fn process(&mut self, unit: u64, (): (), notes: &mut Notes) -> Result<Number, StageError> {
        notes.0.push(("source", unit));
        match self.fault {
            Fault::Panic(at) if at == unit => {
                self.fault = Fault::None;
                panic!("unit {unit}");
            }
            Fault::Error(at) if at == unit => Err(StageError::Data {
                stage: Self::NAME,
                message: format!("unit {unit}"),
                exit_code: mlomae_storage::exit_code::ExitCode::BadData,
            }),
            _ => Ok(Number(unit)),
        }
    }

    fn sample_ids(&mut self, unit: u64, (): &()) -> Vec<i64> {
        vec![unit as i64]
    }
}

/// Sums, as the encoder: it has state, and the pipeline is cut before its outer iterations.
struct Sum {
    sum: u64,
    num_lost: u64,
    nap: Duration,
    fault: Fault,
}

impl Stage for Sum {
    type In = Number;
    type Out = Number;
    type Log = Notes;
    const NAME: StageName = StageName::Encoder;

    fn process(&mut self, unit: u64, Number(number): Number, _: &mut Notes) -> Result<Number, StageError> {
        assert_eq!(number, unit);
        assert_ne!(self.fault, Fault::Panic(unit), "as wanted");
        std::thread::sleep(self.nap);
        self.sum += number;
        Ok(Number(self.sum))
    }

    fn skip(&mut self, _: u64, _: Lost, _: &mut Notes) -> Result<Flow<Number>, StageError> {
        self.num_lost += 1;
        Ok(Flow::Item(Number(self.sum)))
    }

    fn sample_ids(&mut self, _: u64, _: &Number) -> Vec<i64> {
        Vec::new()
    }

    fn may_stop_before(&self, unit: u64) -> bool {
        unit.is_multiple_of(UNROLL)
    }

    fn finish(&mut self, next_unit: u64, notes: &mut Notes) -> Result<(), StageError> {
        notes.0.push(("sum_end", next_unit));
        notes.0.push(("sum_lost", self.num_lost));
        Ok(())
    }
}

/// Takes every last sum of an outer iteration, as the evaluator.
struct Last {
    newest: u64,
}

impl Stage for Last {
    type In = Number;
    type Out = Number;
    type Log = Notes;
    const NAME: StageName = StageName::Evaluator;

    fn process(&mut self, _: u64, number: Number, _: &mut Notes) -> Result<Number, StageError> {
        self.newest = number.0;
        Ok(number)
    }

    fn sample_ids(&mut self, _: u64, _: &Number) -> Vec<i64> {
        Vec::new()
    }

    fn finish(&mut self, next_unit: u64, notes: &mut Notes) -> Result<(), StageError> {
        notes.0.push(("last_end", next_unit));
        notes.0.push(("last_value", self.newest));
        Ok(())
    }
}

struct Ports {
    input: Option<OrderedReceiver<Flow<Number>>>,
    output: Option<OrderedSender<Flow<Number>>>,
    output_every: u64,
}

impl<S: Stage<In = I, Out = Number>, I: FromNumber> Wiring<S> for Ports {
    fn receive(&mut self, unit: u64, heed: StopLevel, context: &WaitContext) -> Result<Flow<I>, Interrupt> {
        match &mut self.input {
            Some(input) => Ok(input.recv_heeding(unit, heed, context)?.map(I::from_number)),
            None => Ok(Flow::Item(I::from_number(Number(0)))),
        }
    }

    fn send(&mut self, unit: u64, output: Flow<Number>, context: &WaitContext) -> Result<usize, Interrupt> {
        let bytes = output.size_bytes();
        if let Some(port) = &mut self.output
            && (unit + 1).is_multiple_of(self.output_every)
        {
            port.send(unit / self.output_every, output, context)?;
        }
        Ok(bytes)
    }
}

trait FromNumber: Send {
    fn from_number(number: Number) -> Self;
}

impl FromNumber for () {
    fn from_number(_: Number) {}
}

impl FromNumber for Number {
    fn from_number(number: Number) -> Self {
        number
    }
}

struct Chain {
    stop: StopFlag,
    threads: Vec<JoinHandle<Exit>>,
    log: JoinHandle<Vec<Said>>,
}

fn start(num_outer: u64, nap: Duration, source_fault: Fault, sum_fault: Fault) -> Chain {
    let first = ordered_edge(EdgeId::between(StageName::Load, StageName::Encoder), 1, 1, 1);
    let second = ordered_edge(EdgeId::between(StageName::Encoder, StageName::Evaluator), 1, 1, 0);
    let (log, log_receiver) = fan_in_edge::<Said>(EdgeId::fan_in(StageName::Log), 3, 16);
    let stop = StopFlag::new();
    let context = || WaitContext::new(stop.clone(), StageCounters::new());
    let (mut first_senders, mut first_receivers) = (first.senders, first.receivers);
    let (mut second_senders, mut second_receivers) = (second.senders, second.receivers);
    let ports = Ports { input: None, output: first_senders.pop(), output_every: 1 };
    let units = 0..num_outer * UNROLL;
    let mut source = StageRunner::new(Source { fault: source_fault }, 0, units.clone(), ports, log.clone(), context());
    let ports = Ports { input: first_receivers.pop(), output: second_senders.pop(), output_every: UNROLL };
    let sum = Sum { sum: 0, num_lost: 0, nap, fault: sum_fault };
    let mut sum = StageRunner::new(sum, 0, units, ports, log.clone(), context());
    let ports = Ports { input: second_receivers.pop(), output: None, output_every: 1 };
    let mut last = StageRunner::new(Last { newest: 0 }, 0, 0..num_outer, ports, log, context());
    let threads = vec![
        std::thread::spawn(move || {
            loop {
                let exit = source.run();
                if !matches!(exit, Exit::Panicked { .. }) {
                    return exit;
                }
            }
        }),
        std::thread::spawn(move || sum.run()),
        std::thread::spawn(move || last.run()),
    ];
    let log = std::thread::spawn(move || {
        let mut said = Vec::new();
        while let Ok(record) = log_receiver.recv_timeout(Duration::from_millis(50), &StageCounters::new()) {
            said.extend(record);
        }
        said
    });
    Chain { stop, threads, log }
}

impl Chain {
    fn join(self) -> (Vec<Exit>, Vec<Said>) {
        let begin = Instant::now();
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            assert!(begin.elapsed() < Duration::from_secs(30), "the pipeline does not come down");
            std::thread::sleep(Duration::from_millis(1));
        }
        let exits = self.threads.into_iter().map(|thread| thread.join().expect("caught")).collect();
        (exits, self.log.join().expect("no panic"))
    }
}

fn value(said: &[Said], kind: &str) -> u64 {
    let found: Vec<u64> = said.iter().filter(|(k, _)| *k == kind).map(|(_, number)| *number).collect();
    assert_eq!(found.len(), 1, "{kind}: {said:?}");
    found[0]
}

#[test]
fn a_run_to_the_end_finishes_everywhere() {
    let (exits, said) = start(10, Duration::ZERO, Fault::None, Fault::None).join();
    assert!(exits.iter().all(|exit| matches!(exit, Exit::Finished)), "{exits:?}");
    assert_eq!(value(&said, "sum_end"), 30);
    assert_eq!(value(&said, "last_end"), 10);
    assert_eq!(value(&said, "last_value"), (0..30).sum::<u64>());
    assert_eq!(said.iter().filter(|(kind, _)| *kind == "source").count(), 30);
}

#[test]
fn a_graceful_stop_cuts_every_stage_at_the_same_outer_iteration() {
    for wait_ms in [0, 3, 17, 40] {
        let chain = start(1_000_000, Duration::from_millis(1), Fault::None, Fault::None);
        std::thread::sleep(Duration::from_millis(wait_ms));
        chain.stop.request(StopReason::Terminate);
        let (exits, said) = chain.join();
        assert!(exits.iter().all(|exit| matches!(exit, Exit::Stopped)), "{exits:?}");
        let end = value(&said, "sum_end");
        assert_eq!(end % UNROLL, 0);
        assert_eq!(value(&said, "last_end"), end / UNROLL);
        assert_eq!(value(&said, "last_value"), (0..end).sum::<u64>());
    }
}

#[test]
fn a_stop_now_leaves_at_once_and_without_a_final_state() {
    let chain = start(1_000_000, Duration::from_millis(1), Fault::None, Fault::None);
    std::thread::sleep(Duration::from_millis(10));
    let begin = Instant::now();
    chain.stop.stop_now(StopReason::Error);
    let (exits, said) = chain.join();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(exits.iter().all(|exit| matches!(exit, Exit::Stopped)), "{exits:?}");
    assert!(said.iter().all(|(kind, _)| *kind == "source"), "{said:?}");
}

#[test]
fn a_lost_unit_keeps_its_place() {
    let (exits, said) = start(5, Duration::ZERO, Fault::Panic(7), Fault::None).join();
    assert!(exits.iter().all(|exit| matches!(exit, Exit::Finished)), "{exits:?}");
    assert_eq!(value(&said, "sum_lost"), 1);
    assert_eq!(value(&said, "last_value"), (0..15).sum::<u64>() - 7);
    assert_eq!(said.iter().filter(|(kind, _)| *kind == "lost_batch").count(), 1);
    assert!(!said.contains(&("source", 7)), "its records are dropped");
}

#[test]
fn an_error_takes_the_neighbours_down_by_disconnect() {
    let (exits, said) = start(50, Duration::ZERO, Fault::Error(10), Fault::None).join();
    assert!(matches!(&exits[0], Exit::Failed(error) if error.exit_code() == 65), "{exits:?}");
    assert!(matches!(exits[1], Exit::Disconnected) && matches!(exits[2], Exit::Disconnected), "{exits:?}");
    assert!(said.iter().all(|(kind, _)| *kind == "source"), "no final state after an error: {said:?}");
}

#[test]
fn a_panic_in_a_stage_with_state_takes_both_neighbours_down() {
    let (exits, _) = start(50, Duration::ZERO, Fault::None, Fault::Panic(10)).join();
    assert!(matches!(exits[0], Exit::Disconnected), "{exits:?}");
    assert!(matches!(&exits[1], Exit::Panicked { message, .. } if message.contains("as wanted")), "{exits:?}");
    assert!(matches!(exits[2], Exit::Disconnected), "{exits:?}");
}
