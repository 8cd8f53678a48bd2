//! Where a run's records go: the Arrow logs and the checkpoints of its run directory.

mod advances;
mod latest;
mod tensors;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mlomae_storage::checkpoint::{self, CheckpointRef};
use mlomae_storage::clock::{Clock, Stamp};
use mlomae_storage::logs::{LogRow, LogWriter, Place};

use crate::flow::exit::StageError;
use crate::flow::stage_name::StageName;
use crate::record::statistics::internal;
use crate::record::{CheckpointFile, Moment, Record, RecordBody, When};
use crate::stages::log::{AssembledCheckpoint, RecordSink};

use advances::Advances;
use tensors::Named;

pub use latest::{Latest, LatestValues};
pub use tensors::CheckpointTensors;

/// The part of `state.json` that stays constant over a run: an object.
pub type StaticState = serde_json::Map<String, serde_json::Value>;

/// Writes records to a run directory.
pub struct RunSink {
    run: PathBuf,
    logs: Option<LogWriter>,
    clock: Clock,
    keep: usize,
    state: StaticState,
    latest: Latest,
    advances: Advances,
}

fn io(message: impl std::fmt::Display) -> StageError {
    StageError::Io { stage: StageName::Log, message: message.to_string() }
}

impl RunSink {
    /// A sink for the run directory `run`; checkpoints contain `state` and the states of the stages, and the newest
    /// `keep` are kept. The run starts at the step of `latest`.
    #[must_use]
    pub fn new(run: &Path, logs: LogWriter, keep: usize, state: StaticState, latest: Latest) -> Self {
        let (clock, start) = (logs.clock(), latest.get());
        let advances = Advances::starting(start.step, start.epoch);
        Self { run: run.to_path_buf(), logs: Some(logs), clock, keep, state, latest, advances }
    }

    fn stamp(&self, at: SystemTime) -> Stamp {
        let age_s = at.elapsed().map_or(0.0, |age| age.as_secs_f64());
        let since = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        Stamp { ts_us: i64::try_from(since).unwrap_or(i64::MAX), wall_s: (self.clock.wall_s() - age_s).max(0.0) }
    }

    fn logs(&mut self) -> Result<&mut LogWriter, StageError> {
        self.logs.as_mut().ok_or_else(|| io("the logs are closed"))
    }

    /// The place of a row that was made `at` a time. A sample of the scorer gets the policy's lag at that time.
    fn place(&self, at: SystemTime, when: When, row: &mut LogRow) -> Place {
        let stamp = self.stamp(at);
        match when {
            When::At(Moment { epoch, step, level }) => Place { stamp, epoch, step: step.logged(), level: Some(level) },
            When::Step(step) => {
                let epoch = self.advances.newest(|advance| advance.step <= step).epoch;
                Place { stamp, epoch, step: step.logged(), level: None }
            }
            When::Made => {
                let advance = self.advances.newest(|advance| advance.at <= at);
                if let LogRow::Actors(sample) = row
                    && sample.stage == StageName::Score.as_str()
                {
                    sample.lag = advance.policy_lag;
                }
                Place { stamp, epoch: advance.epoch, step: advance.step.logged(), level: None }
            }
        }
    }

    fn note(&mut self, at: SystemTime, when: When, row: &LogRow) {
        let metric =
            if let (When::At(moment), LogRow::Metrics(metric)) = (when, row) { Some((moment, metric)) } else { None };
        if let Some((moment, metric)) = metric {
            self.advances.note(at, moment, metric);
        }
        self.latest.update(|latest| {
            latest.num_rows += 1;
            if let Some((moment, metric)) = metric {
                latest.note(moment, metric);
            }
        });
    }
}

impl RecordSink for RunSink {
    fn write(&mut self, record: Record) -> Result<(), StageError> {
        let RecordBody::Row(when, mut row) = record.body else { return Ok(()) };
        self.note(record.at, when, &row);
        let place = self.place(record.at, when, &mut row);
        self.logs()?.push(place, row).map_err(io)
    }

    fn checkpoint(&mut self, assembled: &AssembledCheckpoint) -> Result<String, StageError> {
        // Rows up to the checkpoint must be on disk before it, so that a resumed run has no gap.
        self.logs()?.sync().map_err(io)?;
        let mut state = self.state.clone();
        state.insert("outer_iteration".into(), assembled.outer.0.into());
        state.insert("step".into(), assembled.step.0.into());
        state.insert("wall_s".into(), self.clock.wall_s().into());
        for part in &assembled.parts {
            state.insert(part.part.as_str().into(), part.state.clone());
        }
        let state = serde_json::Value::Object(state);
        let tensors = || assembled.parts.iter().flat_map(|part| &part.tensors);
        // A device that fails while its tensors are fetched fails as anywhere else.
        let named = |file| Named::of(file, tensors()).map_err(internal(StageName::Log));
        let (model, head) = (named(CheckpointFile::Model)?, named(CheckpointFile::Head)?);
        let (mask, optimizer) = (named(CheckpointFile::Mask)?, named(CheckpointFile::Optimizer)?);
        let checkpoint = CheckpointRef {
            model: model.refs(),
            head: head.refs(),
            mask: mask.refs(),
            optimizer: optimizer.refs(),
            state: &state,
            keep: self.keep.max(1),
        };
        let dir = checkpoint::save(&self.run, assembled.step.0, &checkpoint).map_err(io)?;
        self.latest.update(|latest| {
            latest.num_checkpoints += 1;
            // The last steps of a run need not have been logged.
            latest.step = latest.step.max(assembled.step);
        });
        Ok(dir.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    fn flush(&mut self) -> Result<(), StageError> {
        let logs = self.logs()?;
        logs.flush().and_then(|()| logs.rotate()).map_err(io)
    }

    fn close(&mut self) -> Result<(), StageError> {
        match self.logs.take() {
            Some(logs) => logs.close().map_err(io),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use mlomae_model::vector::DeviceMemory;
    use mlomae_model::{Buffer, Layout, Level as TrainLevel, ModelError, Vector};
    use mlomae_storage::exit_code::ExitCode;
    use mlomae_storage::logs::{LogContext, LogPolicy, TableReader};

    use super::*;
    use crate::counts::{Outer, Step};
    use crate::record::{ActorRow, CheckpointPart, EventRow, FlatTensors, Level, MetricRow, PartOf, Severity};

    fn sink(run: &Path, latest: Latest) -> RunSink {
        let context = LogContext {
            run_id: "run".into(),
            segment: 0,
            patch_grid: (1, 1),
            program_version: "0".into(),
            clock: Clock::start(),
        };
        let logs = LogWriter::open(run, context, LogPolicy::default()).expect("logs");
        RunSink::new(run, logs, 1, StaticState::new(), latest)
    }

    fn event(kind: &'static str, at: SystemTime, step: Option<Step>) -> Record {
        let row = EventRow {
            severity: Severity::Info,
            kind: kind.into(),
            stage: None,
            message: String::new(),
            fields: "{}".into(),
        };
        Record { at, ..Record::row(step.map_or(When::Made, When::Step), row) }
    }

    fn metric(at: SystemTime, step: u64, name: &'static str, value: f64) -> Record {
        let moment =
            Moment { epoch: i32::try_from(step / 10).expect("small"), step: Step(step), level: Level::Pretrain };
        let row = MetricRow { name: name.into(), value, split: "pretrain".into(), unit: "1".into() };
        Record { at, ..Record::row(When::At(moment), row) }
    }

    #[test]
    fn events_are_stamped_with_the_step_at_their_time_and_flushed_at_once() {
        let folder = tempfile::tempdir().expect("folder");
        let mut sink = sink(folder.path(), Latest::starting(Step(28), 2));
        let begin = SystemTime::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        for step in 29..=42 {
            sink.write(metric(after(step), step, "loss", 1.0)).expect("written");
        }
        // They come late: training has gone on.
        sink.write(event("resumed", begin, None)).expect("written");
        sink.write(event("midway", after(35), None)).expect("written");
        sink.write(event("late", after(99), None)).expect("written");
        sink.write(event("checkpoint", after(99), Some(Step(30)))).expect("written");
        sink.flush().expect("flushed");
        // The sink is not closed, as after a kill.
        let rows = TableReader::<EventRow>::new(folder.path()).poll().expect("readable");
        let rows: Vec<_> = rows.iter().map(|row| (&*row.row.kind, row.place.step, row.place.epoch)).collect();
        assert_eq!(rows, [("resumed", 28, 2), ("midway", 35, 3), ("late", 42, 4), ("checkpoint", 30, 3)]);
    }

    /// Memory of a device that is gone.
    #[derive(Debug)]
    struct Gone;

    impl DeviceMemory for Gone {
        fn len(&self) -> usize {
            1
        }
        fn download(&self) -> Result<Buffer, ModelError> {
            Err(ModelError::Lane { lane: "cuda", problem: "the GPU is lost".to_owned() })
        }
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }

    #[test]
    fn a_device_that_is_lost_at_a_checkpoint_is_no_fault_of_the_disk() {
        let folder = tempfile::tempdir().expect("folder");
        let mut sink = sink(folder.path(), Latest::starting(Step(0), 0));
        let mut layout = Layout::new(TrainLevel::Pretrain);
        layout.add("weight", &[1]);
        let tensors = FlatTensors::new(CheckpointFile::Model, "", &Arc::new(layout), Vector::of_device(Arc::new(Gone)));
        let part = CheckpointPart {
            outer: Outer(1),
            step: Step(2),
            part: PartOf::Encoder,
            tensors: vec![tensors],
            state: serde_json::json!({}),
        };
        let checkpoint = AssembledCheckpoint { outer: Outer(1), step: Step(2), parts: vec![Arc::new(part)] };
        let error = sink.checkpoint(&checkpoint).expect_err("the GPU is lost");
        assert_eq!(error.exit_code(), ExitCode::Internal, "{error}");
        assert_eq!(sink.latest.get().num_checkpoints, 0);
    }

    #[test]
    fn samples_of_score_tell_the_lag_that_was_measured_at_their_time() {
        let folder = tempfile::tempdir().expect("folder");
        let mut sink = sink(folder.path(), Latest::starting(Step(0), 0));
        let begin = SystemTime::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        for (step, lag) in [(1, 0.0), (2, 1.0), (3, 2.0)] {
            sink.write(metric(after(step), step, "loss", 1.0)).expect("written");
            sink.write(metric(after(step), step, "policy_lag", lag)).expect("written");
        }
        assert_eq!(sink.latest.get().policy_lag, Some(2.0));
        let sample = |stage: StageName, at| {
            let row = ActorRow {
                stage: stage.as_str().into(),
                instance: 0,
                items: 0,
                bytes: 0,
                busy_s: 0.0,
                wait_in_s: 0.0,
                wait_out_s: 0.0,
                queue_len: 0,
                queue_cap: 0,
                queue_bytes: 0,
                utilization: 0.0,
                restarts: 0,
                lag: 0,
                device_s: None,
            };
            Record { at, ..Record::row(When::Made, row) }
        };
        for seconds in 0..=4 {
            sink.write(sample(StageName::Score, after(seconds))).expect("written");
            sink.write(sample(StageName::Encoder, after(seconds))).expect("written");
        }
        sink.close().expect("closed");
        let rows = TableReader::<ActorRow>::new(folder.path()).poll().expect("readable");
        let lags =
            |stage: &str| rows.iter().filter(|row| row.row.stage == stage).map(|row| row.row.lag).collect::<Vec<_>>();
        assert_eq!((lags("score"), lags("encoder")), (vec![0, 0, 1, 2, 2], vec![0; 5]));
    }
}
