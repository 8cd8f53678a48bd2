//! The supervisor: starts the workers, runs restartable ones again, takes the pipeline down in
//! order, and answers how it ended.
//!
//! It lives on the arbiter of the calling thread and computes nothing. Actix restarts no panicked
//! thread and drains nothing, so restart and shutdown are done here: the stop flag is raised,
//! disconnects flow downstream as the workers drop their ports, every worker acknowledges with its
//! [`Exit`], and only then the actix system stops.

use std::panic::catch_unwind;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use mlomae_dataflow::flow::counters::StageCounters;
use mlomae_dataflow::flow::exit::{Exit, StageError, panic_message};
use mlomae_dataflow::flow::stage_name::{StageName, WorkerId};
use mlomae_dataflow::flow::stop::{StopFlag, StopLevel, StopReason};

use crate::roles::outcome::{Outcome, PipelineEvent, StillRunning, WorkerExit};
use crate::roles::telemetry::{Close, Telemetry, TelemetryActor};
use crate::roles::worker::{Run, WorkerActor, WorkerBody};

/// The supervisor's patience.
#[derive(Debug, Clone, Copy)]
pub struct SupervisorOptions {
    /// How often the stop flag and the deadlines are looked at.
    pub tick: Duration,
    /// How often the workers that are still running are named during a shutdown.
    pub report_every: Duration,
    /// How long a graceful stop may take before it becomes a stop at once.
    pub graceful_deadline: Duration,
    /// How long a stop at once may take before the workers that still run are abandoned.
    pub final_deadline: Duration,
}

impl Default for SupervisorOptions {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            report_every: Duration::from_secs(5),
            graceful_deadline: Duration::from_secs(600),
            final_deadline: Duration::from_secs(60),
        }
    }
}

/// Runs the `workers` of a pipeline to their end on threads of their own; blocks the calling thread,
/// which becomes the arbiter of supervisor and telemetry.
///
/// The ports inside the workers' bodies must be the only ends of their channels; an end kept elsewhere
/// would keep its channel connected and the pipeline waiting.
#[must_use]
pub fn supervise(
    workers: Vec<WorkerBody>,
    stop: &StopFlag,
    telemetry: Option<Telemetry>,
    options: SupervisorOptions,
) -> Outcome {
    let (sender, receiver) = mpsc::channel();
    let mut supervisor = Supervisor {
        workers: Vec::new(),
        to_start: workers,
        stop: stop.clone(),
        options,
        telemetry: None,
        telemetry_to_start: telemetry,
        events: Vec::new(),
        exits: Vec::new(),
        stopping_since: None,
        leaving_since: None,
        reported_at: Instant::now(),
        outcome: Some(sender),
    };
    let system = match catch_unwind(System::new) {
        Ok(system) => system,
        Err(payload) => {
            stop.stop_now(StopReason::Error);
            supervisor.seal_logs_here();
            let message = format!("the actor system cannot be started: {}", panic_message(payload.as_ref()));
            return Outcome::unsupervised(stop.reason(), message);
        }
    };
    system.block_on(async move {
        supervisor.start();
    });
    let ran = system.run();
    receiver.try_recv().unwrap_or_else(|_| {
        let message = ran.map_or_else(
            |error| format!("the actor system failed: {error}"),
            |()| "the supervisor ended without an outcome".to_owned(),
        );
        Outcome::unsupervised(stop.reason(), message)
    })
}

struct Supervised {
    id: WorkerId,
    /// None once the worker has acknowledged its end.
    address: Option<Addr<WorkerActor>>,
    counters: StageCounters,
    restarts_left: u32,
}

struct Supervisor {
    workers: Vec<Supervised>,
    to_start: Vec<WorkerBody>,
    stop: StopFlag,
    options: SupervisorOptions,
    telemetry_to_start: Option<Telemetry>,
    /// None once `Close` has been sent to it.
    telemetry: Option<Addr<TelemetryActor>>,
    events: Vec<PipelineEvent>,
    exits: Vec<WorkerExit>,
    stopping_since: Option<Instant>,
    leaving_since: Option<Instant>,
    reported_at: Instant,
    outcome: Option<mpsc::Sender<Outcome>>,
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Back to front, so that every receiver is there before its senders.
        self.to_start.sort_by_key(WorkerBody::id);
        while let Some(body) = self.to_start.pop() {
            let (id, counters, restarts_left) = (body.id(), body.counters(), body.max_restarts());
            match WorkerActor::spawn(body) {
                Ok(address) => self.workers.push(Supervised { id, counters, restarts_left, address: Some(address) }),
                Err((body, cause)) => self.cannot_start(id, body, &cause),
            }
        }
        self.telemetry = self.telemetry_to_start.take().map(|telemetry| TelemetryActor::new(telemetry).start());
        for index in 0..self.workers.len() {
            self.run_worker(index, ctx);
        }
        ctx.run_interval(self.options.tick, Self::tick);
        self.finish_if_done(ctx);
    }
}

impl Supervisor {
    /// Takes the pipeline down before it has started, since a worker has no thread. What is not started yet is dropped,
    /// so that its neighbours see their ports close.
    fn cannot_start(&mut self, id: WorkerId, body: Option<WorkerBody>, cause: &str) {
        let message = format!("cannot start the thread of {id}: {cause}");
        let exit = Exit::Failed(StageError::Io { stage: id.stage, message });
        self.stop.stop_now(StopReason::Error);
        // Before the ports close: the log stage ends when all have, and this belongs into the logs.
        self.emit(PipelineEvent::Fatal { worker: id, exit: exit.clone() });
        self.exits.push(WorkerExit { worker: id, exit });
        self.to_start.extend(body);
        self.seal_logs_here();
    }

    /// Drops all bodies that have no thread; that of the log stage first drains and seals, on this one.
    fn seal_logs_here(&mut self) {
        // It may hold a sender to the log stage.
        self.telemetry_to_start = None;
        let (log, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.to_start).into_iter().partition(|body| body.id().stage == StageName::Log);
        drop(others);
        for body in log {
            let worker = body.id();
            let exit = body.run_here();
            self.exits.push(WorkerExit { worker, exit });
        }
    }

    fn run_worker(&mut self, index: usize, ctx: &mut Context<Self>) {
        let worker = &self.workers[index];
        let Some(address) = &worker.address else { return };
        let run = Run { restarts_left: worker.restarts_left };
        let exit = address.send(run).into_actor(self).map(move |answer, supervisor, ctx| {
            let exit = answer.unwrap_or_else(|error| {
                tracing::error!(kind = "stage_failed", "the thread of worker {index} is gone: {error}");
                Exit::Panicked { message: format!("the worker's thread is gone: {error}"), lost_sample_ids: Vec::new() }
            });
            supervisor.acknowledge(index, exit, ctx);
        });
        ctx.spawn(exit);
    }

    /// Takes a worker's answer: runs it again, or notes its end and what follows from it.
    fn acknowledge(&mut self, index: usize, exit: Exit, ctx: &mut Context<Self>) {
        let worker = &mut self.workers[index];
        let id = worker.id;
        let fatal = exit.takes_pipeline_down(id.stage, worker.restarts_left);
        if let Exit::Panicked { message, lost_sample_ids } = &exit
            && !fatal
        {
            worker.restarts_left -= 1;
            let restarts_left = worker.restarts_left;
            self.emit(PipelineEvent::Restarted {
                worker: id,
                message: message.clone(),
                lost_sample_ids: lost_sample_ids.clone(),
                restarts_left,
            });
            self.run_worker(index, ctx);
            return;
        }
        // Dropping the last address ends the worker's thread.
        worker.address = None;
        if fatal {
            // The worker has logged it.
            self.events.push(PipelineEvent::Fatal { worker: id, exit: exit.clone() });
            self.stop.stop_now(StopReason::Error);
        }
        self.exits.push(WorkerExit { worker: id, exit });
        self.close_telemetry_if_only_log_is_left();
        self.finish_if_done(ctx);
    }

    /// The telemetry's sink may hold a sender to the log stage, which ends when all senders are gone.
    fn close_telemetry_if_only_log_is_left(&mut self) {
        let mut running = self.workers.iter().filter(|worker| worker.address.is_some());
        if running.all(|worker| worker.id.stage == StageName::Log)
            && let Some(telemetry) = self.telemetry.take()
        {
            telemetry.do_send(Close);
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let level = self.stop.level();
        if level == StopLevel::None {
            return;
        }
        let now = Instant::now();
        if self.stopping_since.is_none() {
            self.stopping_since = Some(now);
            self.reported_at = now;
            if let Some(reason) = self.stop.reason() {
                self.emit(PipelineEvent::Stopping { reason });
            }
        }
        if level == StopLevel::Now && self.leaving_since.is_none() {
            self.leaving_since = Some(now);
        }
        if now.duration_since(self.reported_at) >= self.options.report_every {
            self.reported_at = now;
            let workers = self.still_running();
            self.emit(PipelineEvent::StillRunning { workers });
        }
        let passed =
            |since: Option<Instant>, deadline| since.is_some_and(|since| now.duration_since(since) >= deadline);
        if passed(self.leaving_since, self.options.final_deadline) {
            let workers = self.still_running();
            self.emit(PipelineEvent::Abandoned { workers });
            self.finish(ctx);
        } else if self.leaving_since.is_none()
            && passed(self.stopping_since, self.options.graceful_deadline)
            && let Some(reason) = self.stop.reason()
        {
            let workers = self.still_running();
            self.emit(PipelineEvent::DeadlinePassed { workers });
            self.stop.stop_now(reason);
        }
    }

    fn still_running(&self) -> Vec<StillRunning> {
        self.workers
            .iter()
            .filter(|worker| worker.address.is_some())
            .map(|worker| {
                let counters = worker.counters.snapshot();
                StillRunning {
                    worker: worker.id,
                    activity: counters.activity,
                    activity_time: Duration::from_nanos(counters.activity_ns),
                }
            })
            .collect()
    }

    fn emit(&mut self, event: PipelineEvent) {
        event.log();
        self.events.push(event);
    }

    fn finish_if_done(&mut self, ctx: &mut Context<Self>) {
        if self.workers.iter().all(|worker| worker.address.is_none()) {
            self.finish(ctx);
        }
    }

    fn finish(&mut self, ctx: &mut Context<Self>) {
        let Some(sender) = self.outcome.take() else { return };
        let abandoned = self.still_running();
        let outcome = Outcome {
            exits: std::mem::take(&mut self.exits),
            abandoned,
            events: std::mem::take(&mut self.events),
            stop_reason: self.stop.reason(),
            supervision_error: None,
        };
        // The receiver waits in `supervise`; it cannot be gone.
        let _ = sender.send(outcome);
        ctx.stop();
        System::current().stop();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // A panic of the supervisor itself would otherwise leave the system running forever.
        if self.outcome.is_some()
            && let Some(system) = System::try_current()
        {
            self.stop.stop_now(StopReason::Error);
            system.stop();
        }
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
