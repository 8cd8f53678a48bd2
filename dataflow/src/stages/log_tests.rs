//! The log stage: assembly of checkpoints, draining, faults.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::log::{AssembledCheckpoint, LogRunner, LogStage, RecordSink};
use crate::counts::Outer;
use crate::flow::exit::{Exit, StageError};
use crate::flow::ports::{FanInSender, WaitContext, fan_in_edge};
use crate::flow::stage_name::{EdgeId, StageName};
use crate::flow::stop::StopReason;
use crate::record::{CheckpointPart, EventRow, PartOf, Record, RecordBody, Severity};

#[derive(Debug, Default)]
struct Memory {
    kinds: Vec<String>,
    checkpoints: Vec<(u64, u64, Vec<PartOf>)>,
    num_flushes: usize,
    is_closed: bool,
    fails_checkpoints: bool,
    panics_on: Option<&'static str>,
}

impl RecordSink for Memory {
    fn write(&mut self, record: Record) -> Result<(), StageError> {
        assert!(!self.is_closed, "written after the end");
        let Some(event) = record.get::<EventRow>() else {
            return Ok(());
        };
        if self.panics_on == Some(event.kind.as_ref()) {
            self.panics_on = None;
            panic!("sink");
        }
        self.kinds.push(event.kind.to_string());
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &AssembledCheckpoint) -> Result<String, StageError> {
        if self.fails_checkpoints {
            return Err(StageError::Io { stage: StageName::Log, message: "no space left".into() });
        }
        let parts = checkpoint.parts.iter().map(|part| part.part).collect();
        self.checkpoints.push((checkpoint.outer.0, checkpoint.step.0, parts));
        Ok(format!("step-{:08}", checkpoint.step))
    }

    fn flush(&mut self) -> Result<(), StageError> {
        self.num_flushes += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), StageError> {
        self.is_closed = true;
        Ok(())
    }
}

fn part(outer: u64, part: PartOf) -> Record {
    let outer = Outer(outer);
    let part =
        CheckpointPart { outer, step: outer.first_step(2), part, tensors: Vec::new(), state: serde_json::Value::Null };
    Record::now(RecordBody::Part(Arc::new(part)))
}

fn event(kind: &'static str) -> Record {
    Record::event(EventRow {
        severity: Severity::Info,
        kind: kind.into(),
        stage: None,
        message: String::new(),
        fields: "{}".into(),
    })
}

type Running = JoinHandle<(Vec<Exit>, LogRunner<Memory>)>;

fn start(sink: Memory) -> (FanInSender<Record>, WaitContext, Running) {
    let (sender, receiver) = fan_in_edge(EdgeId::fan_in(StageName::Log), 1, 4);
    let context = WaitContext::default();
    let mut runner = LogRunner::new(LogStage::new(sink), receiver, context.clone());
    let thread = std::thread::spawn(move || {
        let mut exits = vec![runner.run()];
        while matches!(exits.last(), Some(Exit::Panicked { .. })) {
            exits.push(runner.run());
        }
        (exits, runner)
    });
    (sender, context, thread)
}

#[test]
fn a_checkpoint_is_written_when_its_three_parts_are_in_whatever_their_order() {
    let mut stage = LogStage::new(Memory::default());
    // With a lag the encoder is ahead: parts of two checkpoints mix.
    for record in [
        part(1, PartOf::Encoder),
        part(2, PartOf::Encoder),
        part(1, PartOf::Policy),
        part(1, PartOf::Evaluator),
        part(2, PartOf::Evaluator),
    ] {
        stage.handle(record).expect("written");
    }
    assert_eq!(stage.sink().checkpoints, [(1, 2, PartOf::ALL.to_vec())]);
    for which in PartOf::ALL {
        stage.handle(part(1, which)).expect("ignored");
    }
    assert_eq!(stage.sink().checkpoints.len(), 1, "the final state repeats no checkpoint");
    stage.close().expect("closed");
    let sink = stage.into_sink();
    assert_eq!(sink.kinds, ["checkpoint", "incomplete_checkpoint"]);
    assert!(sink.is_closed && sink.num_flushes > 0);
}

#[test]
fn everything_sent_is_written_even_after_a_stop_now() {
    let (sender, context, thread) = start(Memory::default());
    let quiet = WaitContext::default();
    for i in 0..50 {
        sender.send(event("row"), &quiet).expect("the log stage drains");
        if i == 10 {
            context.stop.stop_now(StopReason::Error);
        }
    }
    drop(sender);
    let (exits, runner) = thread.join().expect("no panic");
    assert!(matches!(exits[..], [Exit::Stopped]), "{exits:?}");
    assert_eq!(runner.context().counters.snapshot().items, 50);
}

#[test]
fn a_panic_costs_one_record_and_the_stage_goes_on() {
    let (sender, context, thread) = start(Memory { panics_on: Some("poison"), ..Memory::default() });
    for kind in ["a", "poison", "b", "c"] {
        sender.send(event(kind), &context).expect("the log stage drains");
    }
    drop(sender);
    let (exits, runner) = thread.join().expect("caught");
    assert!(matches!(exits[..], [Exit::Panicked { .. }, Exit::Finished]), "{exits:?}");
    let counted = runner.context().counters.snapshot();
    assert_eq!((counted.items, counted.restarts), (3, 1));
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_an_io_error_and_the_logs_are_sealed() {
    let (sender, context, thread) = start(Memory { fails_checkpoints: true, ..Memory::default() });
    for which in PartOf::ALL {
        sender.send(part(3, which), &context).expect("room");
    }
    drop(sender);
    let (exits, _) = thread.join().expect("no panic");
    assert!(
        matches!(&exits[..], [Exit::Failed(error)]
            if error.exit_code() == 74 && error.to_string().contains("no space")),
        "{exits:?}"
    );
}
