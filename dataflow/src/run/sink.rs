//! Where a run's records go: the Arrow logs and the checkpoints of its run directory.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mlomae_model::Params;
use mlomae_storage::checkpoint::{self, Checkpoint, CheckpointRef, NamedTensor, TensorRef};
use mlomae_storage::clock::{Clock, Stamp};
use mlomae_storage::logs::Severity as LogSeverity;
use mlomae_storage::logs::{ActorRow, EvalRow, EventRow, LogRow, LogWriter, MaskRow, MetricRow};

use crate::flow::exit::StageError;
use crate::flow::stage_name::StageName;
use crate::record::{CheckpointFile, FlatTensors, Level, Moment, Record, RecordBody, Severity};
use crate::run::state::{TensorSource, TensorView};
use crate::stages::log::{AssembledCheckpoint, RecordSink};

/// The newest numbers of a run, for displays. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Latest {
    values: Arc<Mutex<LatestValues>>,
}

/// The newest numbers of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LatestValues {
    /// Level-1 steps done.
    pub step: i64,
    /// Epoch of the pretrain role.
    pub epoch: i32,
    /// L_m.
    pub pretrain_loss: Option<f64>,
    /// L_f.
    pub finetune_loss: Option<f64>,
    /// L_v.
    pub validation_loss: Option<f64>,
    /// How well the scores find the objects of the panel, where they are known: area under the ROC curve, 0.5 by chance.
    pub object_score_auc: Option<f64>,
    /// Share of the panel's object patches that are masked, where they are known.
    pub object_mask_share: Option<f64>,
    /// Share of the panel's other patches that are masked, where the objects are known.
    pub background_mask_share: Option<f64>,
    /// Level-1 images a second.
    pub images_per_second: Option<f64>,
    /// Checkpoints written by this process.
    pub num_checkpoints: u64,
    /// Rows written by this process.
    pub num_rows: u64,
}

impl Latest {
    /// The numbers of a run that starts after `step` level-1 steps, in `epoch`.
    #[must_use]
    pub fn starting(step: i64, epoch: i32) -> Self {
        let values = LatestValues { step, epoch, ..LatestValues::default() };
        Self { values: Arc::new(Mutex::new(values)) }
    }

    /// The numbers now.
    #[must_use]
    pub fn get(&self) -> LatestValues {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, change: impl FnOnce(&mut LatestValues)) {
        change(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What of `state.json` does not change over a run: an object.
pub type StaticState = serde_json::Map<String, serde_json::Value>;

/// Advances that are remembered: several times the second that a record may wait, of the fastest runs.
const MAX_ADVANCES: usize = 16_384;

/// When training reached a step.
#[derive(Debug, Clone, Copy)]
struct Advance {
    at: SystemTime,
    step: i64,
    epoch: i32,
}

/// How far training was at which time: events and samples are written later than they are made.
#[derive(Debug)]
struct Advances(VecDeque<Advance>);

impl Advances {
    fn starting(step: i64, epoch: i32) -> Self {
        Self(VecDeque::from([Advance { at: UNIX_EPOCH, step, epoch }]))
    }

    fn note(&mut self, at: SystemTime, step: i64, epoch: i32) {
        if self.0.back().is_some_and(|newest| newest.step >= step) {
            return;
        }
        if self.0.len() == MAX_ADVANCES {
            self.0.pop_front();
        }
        self.0.push_back(Advance { at, step, epoch });
    }

    /// Step and epoch of the newest advance that `is_past`, else of the oldest that is remembered.
    fn newest(&self, is_past: impl Fn(&Advance) -> bool) -> (i64, i32) {
        let found = self.0.iter().rev().find(|advance| is_past(advance)).or_else(|| self.0.front());
        found.map_or((0, 0), |advance| (advance.step, advance.epoch))
    }
}

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

fn severity(severity: Severity) -> LogSeverity {
    match severity {
        Severity::Info => LogSeverity::Info,
        Severity::Warning => LogSeverity::Warn,
        Severity::Error => LogSeverity::Error,
    }
}

impl RunSink {
    /// A sink for the run directory `run`; checkpoints get `state` beside what the stages say, and the newest `keep` stay.
    /// The run starts at the step of `latest`.
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

    fn row(&self, record: Record) -> Option<LogRow> {
        let (at, stamp) = (record.at, self.stamp(record.at));
        Some(match record.body {
            RecordBody::Metric(m) => LogRow::Metric(MetricRow {
                stamp,
                epoch: m.moment.epoch,
                step: m.moment.step,
                level: m.moment.level,
                name: m.name,
                value: m.value,
                split: m.split.into(),
                unit: m.unit.into(),
            }),
            RecordBody::Mask(m) => LogRow::Mask(MaskRow {
                stamp,
                epoch: m.moment.epoch,
                step: m.moment.step,
                level: m.moment.level,
                sample_id: m.sample_id,
                label: m.label,
                policy_version: m.policy_version,
                mask_ratio: m.mask_ratio,
                mask: m.mask,
                score: Some(m.score),
                patch_loss: Some(m.patch_loss),
            }),
            RecordBody::Actor(a) => {
                let (step, epoch) = self.advances.newest(|advance| advance.at <= at);
                let seconds = |ns: u64| ns as f64 * 1e-9;
                let c = &a.counters;
                LogRow::Actor(ActorRow {
                    stamp,
                    epoch,
                    step,
                    level: None,
                    stage: a.stage.as_str().into(),
                    instance: a.instance,
                    items: c.items.cast_signed(),
                    bytes: c.bytes.cast_signed(),
                    busy_s: seconds(c.busy_ns),
                    wait_in_s: seconds(c.wait_in_ns),
                    wait_out_s: seconds(c.wait_out_ns),
                    queue_len: a.queue_len,
                    queue_cap: a.queue_cap,
                    queue_bytes: a.queue_bytes,
                    utilization: a.utilization,
                    restarts: i32::try_from(c.restarts).unwrap_or(i32::MAX),
                    lag: a.lag,
                })
            }
            RecordBody::Event(e) => {
                let (step, epoch) = match e.step {
                    Some(step) => (step, self.advances.newest(|advance| advance.step <= step).1),
                    None => self.advances.newest(|advance| advance.at <= at),
                };
                LogRow::Event(EventRow {
                    stamp,
                    epoch,
                    step,
                    level: None,
                    severity: severity(e.severity),
                    kind: e.kind,
                    stage: e.stage.map(|stage| stage.as_str().into()),
                    message: e.message,
                    fields: e.fields.to_string(),
                })
            }
            RecordBody::Eval(e) => LogRow::Eval(EvalRow {
                stamp,
                epoch: e.moment.epoch,
                step: e.moment.step,
                level: e.moment.level,
                task: e.task,
                split: e.split.into(),
                metric: e.metric,
                value: e.value,
                n: e.num_samples,
                checkpoint: e.checkpoint,
                seconds: e.seconds,
            }),
            RecordBody::Part(_) => return None,
        })
    }

    fn note(&mut self, record: &Record) {
        let RecordBody::Metric(metric) = &record.body else {
            return self.latest.update(|latest| latest.num_rows += 1);
        };
        self.advances.note(record.at, metric.moment.step, metric.moment.epoch);
        self.latest.update(|latest| {
            latest.num_rows += 1;
            let Moment { epoch, step, level } = metric.moment;
            (latest.epoch, latest.step) = (latest.epoch.max(epoch), latest.step.max(step));
            match (level, &*metric.name) {
                (Level::Pretrain, "loss") => latest.pretrain_loss = Some(metric.value),
                (Level::Finetune, "loss") => latest.finetune_loss = Some(metric.value),
                (Level::Mask, "loss") => latest.validation_loss = Some(metric.value),
                (Level::Mask, "object_score_auc") => latest.object_score_auc = Some(metric.value),
                (Level::Mask, "object_mask_share") => latest.object_mask_share = Some(metric.value),
                (Level::Mask, "background_mask_share") => latest.background_mask_share = Some(metric.value),
                (Level::Pretrain, "images_per_second") => latest.images_per_second = Some(metric.value),
                _ => {}
            }
        });
    }
}

/// Tensors of a file with their full names.
struct Named<'a> {
    names: Vec<String>,
    /// Shape, host values of the whole flat vector, and the tensor's place in them.
    parts: Vec<(&'a [usize], Params, Range<usize>)>,
}

impl<'a> Named<'a> {
    fn of(file: CheckpointFile, tensors: impl Iterator<Item = &'a FlatTensors>) -> Result<Self, StageError> {
        let (mut names, mut parts) = (Vec::new(), Vec::new());
        for flat in tensors.filter(|flat| flat.file == file) {
            let values = flat.values.to_host().map_err(io)?;
            for entry in &flat.layout.entries {
                names.push(format!("{}{}", flat.prefix, entry.name));
                parts.push((&entry.shape[..], values.clone(), entry.range()));
            }
        }
        Ok(Self { names, parts })
    }

    fn refs(&self) -> Vec<TensorRef<'_>> {
        let refs = self.names.iter().zip(&self.parts);
        refs.map(|(name, (shape, values, place))| TensorRef { name, shape, values: &values[place.clone()] }).collect()
    }
}

impl RecordSink for RunSink {
    fn write(&mut self, record: Record) -> Result<(), StageError> {
        self.note(&record);
        match self.row(record) {
            Some(row) => self.logs()?.push(row).map_err(io),
            None => Ok(()),
        }
    }

    fn checkpoint(&mut self, assembled: &AssembledCheckpoint) -> Result<String, StageError> {
        // Rows up to the checkpoint must be on disk before it, so that a resumed run has no gap.
        self.logs()?.sync().map_err(io)?;
        let mut state = self.state.clone();
        state.insert("outer_iteration".into(), assembled.outer.into());
        state.insert("step".into(), assembled.step.into());
        state.insert("wall_s".into(), self.clock.wall_s().into());
        for part in &assembled.parts {
            state.insert(part.part.as_str().to_owned(), part.state.clone());
        }
        let state = serde_json::Value::Object(state);
        let tensors = || assembled.parts.iter().flat_map(|part| &part.tensors);
        let named = |file| Named::of(file, tensors());
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
        let dir = checkpoint::save(&self.run, assembled.step, &checkpoint).map_err(io)?;
        self.latest.update(|latest| latest.num_checkpoints += 1);
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

/// The tensors of a checkpoint that was read.
#[derive(Debug)]
pub struct CheckpointTensors<'a>(pub &'a Checkpoint);

impl TensorSource for CheckpointTensors<'_> {
    fn tensor(&self, file: CheckpointFile, name: &str) -> Option<TensorView<'_>> {
        let tensors: &[NamedTensor] = match file {
            CheckpointFile::Model => &self.0.model,
            CheckpointFile::Head => &self.0.head,
            CheckpointFile::Mask => &self.0.mask,
            CheckpointFile::Optimizer => &self.0.optimizer,
        };
        let tensor = tensors.iter().find(|tensor| tensor.name == name)?;
        Some((&tensor.shape, &tensor.values))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mlomae_storage::logs::{LogContext, LogPolicy, TableReader};

    use super::*;
    use crate::record::{EventRecord, MetricRecord};

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

    fn event(kind: &'static str, at: SystemTime, step: Option<i64>) -> Record {
        let body = RecordBody::Event(EventRecord {
            severity: Severity::Info,
            kind: kind.into(),
            stage: None,
            step,
            message: String::new(),
            fields: serde_json::json!({}),
        });
        Record { at, body }
    }

    fn metric(at: SystemTime, step: i64) -> Record {
        let moment = Moment { epoch: i32::try_from(step / 10).expect("small"), step, level: Level::Pretrain };
        let body = MetricRecord { moment, name: "loss".into(), value: 1.0, split: "pretrain", unit: "1" };
        Record { at, body: RecordBody::Metric(body) }
    }

    #[test]
    fn events_are_stamped_with_the_step_at_their_time_and_flushed_at_once() {
        let folder = tempfile::tempdir().expect("folder");
        let mut sink = sink(folder.path(), Latest::starting(28, 2));
        let begin = SystemTime::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        for step in 29..=42_i64 {
            sink.write(metric(after(step.cast_unsigned()), step)).expect("written");
        }
        // They come late: training has gone on.
        sink.write(event("resumed", begin, None)).expect("written");
        sink.write(event("midway", after(35), None)).expect("written");
        sink.write(event("late", after(99), None)).expect("written");
        sink.write(event("checkpoint", after(99), Some(30))).expect("written");
        sink.flush().expect("flushed");
        // The sink is not closed, as after a kill.
        let rows = TableReader::<EventRow>::new(folder.path()).poll().expect("readable");
        let rows: Vec<_> = rows.iter().map(|row| (&*row.row.kind, row.row.step, row.row.epoch)).collect();
        assert_eq!(rows, [("resumed", 28, 2), ("midway", 35, 3), ("late", 42, 4), ("checkpoint", 30, 3)]);
    }
}
