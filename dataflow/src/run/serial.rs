//! The serial executor: the same stages, stepped in order on one thread, without queues.

use crate::counts::Outer;
use crate::flow::counters::StageCounters;
use crate::flow::exit::{Exit, StageError};
use crate::flow::stage::Stage;
use crate::flow::stage_name::StageName;
use crate::flow::stop::{StopFlag, StopLevel};
use crate::method::Method;
use crate::record::{Record, Recorder};
use crate::run::pipeline::{Setup, Stages};
use crate::stages::encoder::EncoderInput;
use crate::stages::load::{LoadUnit, Loaded};
use crate::stages::log::{LogStage, RecordSink};
use crate::stages::score::{ScoreInput, Shift};

/// What a serial run shows while it goes on.
pub struct SerialRun<K> {
    stages: Stages,
    method: Method,
    log: LogStage<K>,
    stop: StopFlag,
    outers: std::ops::Range<Outer>,
    counters: [StageCounters; 5],
    recorder: Recorder,
}

impl<K: RecordSink> SerialRun<K> {
    /// A run of `setup` whose records go to `sink`.
    ///
    /// # Errors
    /// When compute threads cannot be started.
    pub fn new(setup: Setup, sink: K, stop: StopFlag) -> Result<Self, mlomae_model::ModelError> {
        let outers = setup.outers();
        let (method, stages) = setup.stages()?;
        let counters = std::array::from_fn(|_| StageCounters::new());
        Ok(Self { stages, method, log: LogStage::new(sink), stop, outers, counters, recorder: Recorder::default() })
    }

    /// Each stage's counters: busy times; a serial run never waits.
    #[must_use]
    pub fn counters(&self) -> Vec<(StageName, StageCounters)> {
        StageName::ALL.into_iter().zip(self.counters.iter().cloned()).collect()
    }

    /// Runs to the end, a stop or an error, and seals the logs.
    pub fn run(mut self) -> (Exit, K) {
        let exit = match self.run_iterations() {
            Ok(exit) => exit,
            Err(error) => Exit::Failed(error),
        };
        let exit = match (self.log.close(), exit) {
            (Err(error), exit) if exit.is_clean() => Exit::Failed(error),
            (_, exit) => exit,
        };
        (exit, self.log.into_sink())
    }

    fn run_iterations(&mut self) -> Result<Exit, StageError> {
        for outer in self.outers.start.until(self.outers.end) {
            if self.stop.level() != StopLevel::None {
                self.finish(outer)?;
                return Ok(Exit::Stopped);
            }
            self.iterate(outer)?;
        }
        self.finish(self.outers.end)?;
        Ok(Exit::Finished)
    }

    fn finish(&mut self, outer: Outer) -> Result<(), StageError> {
        let step = outer.first_step(self.method.unroll);
        self.stages.encoder.finish(step.0, &mut self.recorder)?;
        self.stages.evaluator.finish(outer.0, &mut self.recorder)?;
        self.stages.policy.finish(outer.0, &mut self.recorder)?;
        self.write()
    }

    fn write(&mut self) -> Result<(), StageError> {
        self.recorder.take().into_iter().try_for_each(|record: Record| self.log.handle(record))
    }

    /// One outer iteration: pretrain k times, finetune, mask.
    fn iterate(&mut self, outer: Outer) -> Result<(), StageError> {
        let unroll = self.method.unroll;
        let first_unit = LoadUnit::first_of(outer, unroll);
        let mut snapshot = None;
        for place in 0..unroll {
            let step = outer.step_at(place, unroll);
            let Loaded::Pretrain(batch) = self.load(first_unit + place)? else {
                return Err(out_of_order(step.0));
            };
            let policy_version = self.method.policy_version(outer);
            let version = self.stages.policy.version(policy_version, outer.newest_version()).cloned();
            let version = version.ok_or_else(|| out_of_order(step.0))?;
            let shift: Option<Shift> = version.shift.filter(|_| place == 0 && !policy_version.is_initial());
            let encoder = &self.stages.encoder;
            let theta = self.method.scores_need_theta().then(|| encoder.theta().clone());
            let theta = theta.or_else(|| encoder.teacher().cloned());
            let input = ScoreInput { batch, policy: version.policy, policy_version, theta, shift: shift.clone() };
            let scored = step_of(&mut self.stages.score, &self.counters[1], step.0, input, &mut self.recorder)?;
            let input = EncoderInput { scored, shift };
            let output = step_of(&mut self.stages.encoder, &self.counters[2], step.0, input, &mut self.recorder)?;
            snapshot = output.snapshot;
            self.write()?;
        }
        let Loaded::Labelled(pair) = self.load(first_unit + unroll)? else {
            return Err(out_of_order(outer.0));
        };
        let Some(crate::flow::stage::Flow::Item(snapshot)) = snapshot else { return Err(out_of_order(outer.0)) };
        let direction =
            step_of(&mut self.stages.evaluator, &self.counters[3], outer.0, (snapshot, pair), &mut self.recorder)?;
        step_of(&mut self.stages.policy, &self.counters[4], outer.0, direction, &mut self.recorder)?;
        self.write()
    }

    fn load(&mut self, unit: u64) -> Result<Loaded, StageError> {
        step_of(&mut self.stages.load, &self.counters[0], unit, (), &mut self.recorder)
    }
}

fn step_of<S: Stage<Log = Recorder>>(
    stage: &mut S,
    counters: &StageCounters,
    unit: u64,
    input: S::In,
    recorder: &mut Recorder,
) -> Result<S::Out, StageError> {
    let _busy = counters.run();
    counters.begin_unit();
    let output = stage.process(unit, input, recorder)?;
    if let Some(ns) = stage.device_ns() {
        counters.add_device(ns);
    }
    counters.add_item(0);
    Ok(output)
}

fn out_of_order(unit: u64) -> StageError {
    StageError::Internal {
        stage: StageName::Encoder,
        message: format!("serial executor is out of order at unit {unit}"),
    }
}
