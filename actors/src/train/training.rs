//! One training process: from a prepared run to its outcome, by threads under the supervisor or on
//! one thread without actors.

use std::sync::Arc;
use std::time::Duration;

use mlomae_dataflow::counts::Outer;
use mlomae_dataflow::flow::exit::Exit;
use mlomae_dataflow::flow::fault::FaultPlan;
use mlomae_dataflow::flow::stage_name::{StageName, WorkerId};
use mlomae_dataflow::flow::stop::StopFlag;
use mlomae_dataflow::run::pipeline::{self, BuildError};
use mlomae_dataflow::run::serial::SerialRun;
use mlomae_dataflow::run::sink::{Latest, RunSink};
use mlomae_dataflow::run::state::TrainState;
use mlomae_storage::exit_code::ExitCode;

use crate::process::background::Background;
use crate::process::error::CliError;
use crate::process::logging::EventQueue;
use crate::process::terminal::Terminal;
use crate::roles::outcome::{Outcome, WorkerExit};
use crate::roles::supervisor::{SupervisorOptions, supervise};
use crate::roles::telemetry::{ActorSample, NewestSamples, Telemetry, WorkerProbe};
use crate::roles::worker::WorkerBody;
use crate::train::experiment::Experiment;
use crate::train::run_log::{RowCounts, RunLog};
use crate::watch::progress::{self, ProgressFigures};

/// How a process trains.
pub struct TrainingOptions {
    /// On one thread, without actors.
    pub serial: bool,
    /// Where to show the progress; none to show nothing.
    pub display: Option<Terminal>,
    /// The program's own events.
    pub events: EventQueue,
    /// The stop flag that signals raise.
    pub stop: StopFlag,
    /// The newest numbers, which the sink writes.
    pub latest: Latest,
    /// Gets the workers' probes before they start.
    pub observer: Option<Observer>,
    /// Faults put into the stages on purpose; a serial run takes none.
    pub faults: FaultPlan,
}

/// Looks at the workers' counters from outside.
pub type Observer = Box<dyn FnOnce(&[WorkerProbe]) + Send>;

impl std::fmt::Debug for TrainingOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainingOptions").field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// What a process did.
#[derive(Debug)]
pub struct TrainingReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The last samples of all workers.
    pub samples: Arc<[ActorSample]>,
    /// Rows written.
    pub rows: RowCounts,
}

/// Trains from `state` to the end, a stop or an error; blocks. Rows and checkpoints go to `sink`, which
/// is sealed when this returns.
///
/// # Errors
/// If the pipeline cannot be built. An error of a stage is in the report's outcome.
pub fn train(
    experiment: &Experiment,
    state: TrainState,
    sink: RunSink,
    options: TrainingOptions,
) -> Result<TrainingReport, CliError> {
    let config = &experiment.config;
    let first_outer = state.outer;
    let setup = experiment.data.setup(config, experiment.method.clone(), state)?;
    let sink = RunLog::new(sink, options.events);
    let (sample_queue, rows) = (sink.samples(), sink.row_counts());
    let (stop, latest) = (options.stop, options.latest);
    let display = |samples: NewestSamples| {
        let figures = progress_of(experiment, first_outer, latest.clone());
        options.display.clone().map(|terminal| progress::display(terminal, figures, samples))
    };
    let telemetry = |probes: Vec<WorkerProbe>| {
        let every = Duration::from_secs_f64(config.logs.actors_every_seconds);
        let limit = match config.actors.watchdog_seconds {
            0.0 => Duration::MAX,
            seconds => Duration::from_secs_f64(seconds),
        };
        if let Some(observer) = options.observer {
            observer(&probes);
        }
        Telemetry::new(probes, every, limit, move |samples| sample_queue.push(samples))
    };
    let no_thread = |error: std::io::Error| CliError::no_thread(&error);

    let (outcome, samples) = if options.serial {
        let run = SerialRun::new(setup, sink, stop.clone())?;
        let probe =
            |(stage, counters)| WorkerProbe { worker: WorkerId { stage, instance: 0 }, counters, inputs: Vec::new() };
        let telemetry = telemetry(run.counters().into_iter().map(probe).collect());
        let newest = telemetry.newest();
        let display = display(newest.clone()).transpose().map_err(no_thread)?;
        let telemetry = sample_in_background(telemetry).map_err(no_thread)?;
        let exit = mlomae_dataflow::flow::exit::catch_panic(|| run.run().0);
        drop((telemetry, display));
        (serial_outcome(exit, &stop), newest)
    } else {
        let pipeline =
            pipeline::build_with_faults(setup, sink, &stop, &options.faults).map_err(|error| match error {
                BuildError::Model(error) => error.into(),
                BuildError::Topology(error) => internal(error),
            })?;
        // The log stage ends when all senders are gone; the telemetry's samples reach it by the sink.
        drop(pipeline.log);
        let probes = pipeline.workers.iter().map(|worker| WorkerProbe {
            worker: worker.id,
            counters: worker.counters.clone(),
            inputs: pipeline.gauges.iter().filter(|edge| edge.id().to == worker.id.stage).cloned().collect(),
        });
        let telemetry = telemetry(probes.collect());
        let newest = telemetry.newest();
        let display = display(newest.clone()).transpose().map_err(no_thread)?;
        let max_restarts = config.actors.max_restarts;
        let workers = pipeline
            .workers
            .into_iter()
            .map(|worker| WorkerBody::new(worker.id, max_restarts, worker.counters, worker.run));
        let outcome = supervise(workers.collect(), &stop, Some(telemetry), SupervisorOptions::default());
        drop(display);
        (outcome, newest)
    };
    Ok(TrainingReport { outcome, samples: samples.get(), rows })
}

/// Takes samples where there is no arbiter that does; the last one when the answer is dropped.
fn sample_in_background(mut telemetry: Telemetry) -> std::io::Result<Background> {
    Background::start("mlomae-telemetry", move |ended| {
        while !ended.within(telemetry.sample_every()) {
            telemetry.sample();
        }
        telemetry.sample();
    })
}

fn internal(error: impl std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Internal, format!("pipeline cannot be built: {error}"))
}

/// The one worker of a serial run ends for all.
fn serial_outcome(exit: Exit, stop: &StopFlag) -> Outcome {
    let stop_reason = stop.reason().filter(|_| matches!(exit, Exit::Stopped));
    let worker = WorkerId { stage: StageName::Encoder, instance: 0 };
    Outcome {
        exits: vec![WorkerExit { worker, exit }],
        abandoned: Vec::new(),
        events: Vec::new(),
        stop_reason,
        supervision_error: None,
    }
}

/// How far a run is that goes on after `first_outer` outer iterations, from the newest metrics.
pub fn progress_of(
    experiment: &Experiment,
    first_outer: Outer,
    latest: Latest,
) -> impl Fn() -> ProgressFigures + Send + 'static {
    let (unroll, num_outer_iterations) = (experiment.method.unroll, experiment.method.total_outer.0);
    let batch = experiment.config.pretrain.batch as u64;
    let first_step = first_outer.first_step(unroll);
    move || {
        let latest = latest.get();
        let step = latest.step.max(first_step);
        ProgressFigures {
            num_outer_iterations,
            num_done: step.outer(unroll).0,
            num_images: step.since(first_step) * batch,
            pretrain_loss: latest.pretrain_loss,
            finetune_loss: latest.finetune_loss,
            mask_loss: latest.validation_loss,
        }
    }
}
