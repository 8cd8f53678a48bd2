//! A worker: one stage instance on one thread, under a sync arbiter of its own.
//!
//! The messages that a worker takes carry no data, only "run": items travel over the ports that
//! its body owns.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use actix::prelude::*;
use mlomae_dataflow::flow::counters::StageCounters;
use mlomae_dataflow::flow::exit::{Exit, catch_panic, panic_message};
use mlomae_dataflow::flow::stage_name::WorkerId;

use crate::roles::outcome::PipelineEvent;

/// What a worker runs: a stage's loop with its state and its ports.
///
/// Dropping it drops the ports, which is how the neighbours learn that this end is gone.
pub struct WorkerBody {
    id: WorkerId,
    max_restarts: u32,
    counters: StageCounters,
    run: Box<dyn FnMut() -> Exit + Send>,
}

impl WorkerBody {
    /// A body that is `run` until it exits, and again after a panic if the stage is restartable, at most `max_restarts`
    /// times.
    ///
    /// `counters` are those that it counts in; it also marks its runs in them.
    #[must_use]
    pub fn new(
        id: WorkerId,
        max_restarts: u32,
        counters: StageCounters,
        run: impl FnMut() -> Exit + Send + 'static,
    ) -> Self {
        let max_restarts = if id.stage.is_restartable() { max_restarts } else { 0 };
        Self { id, max_restarts, counters, run: Box::new(run) }
    }

    /// Runs on this thread, as a worker would for the last time.
    pub(crate) fn run_here(mut self) -> Exit {
        catch_panic(|| (self.run)())
    }

    /// Which worker runs it.
    #[must_use]
    pub const fn id(&self) -> WorkerId {
        self.id
    }

    /// How often it may be run again; 0 for a stage that may not be.
    #[must_use]
    pub const fn max_restarts(&self) -> u32 {
        self.max_restarts
    }

    /// Its counters, shared.
    #[must_use]
    pub fn counters(&self) -> StageCounters {
        self.counters.clone()
    }
}

impl fmt::Debug for WorkerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBody")
            .field("id", &self.id)
            .field("max_restarts", &self.max_restarts)
            .finish_non_exhaustive()
    }
}

/// Runs the worker's body once, from wherever its state stands, and answers how it ended.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Exit")]
pub(crate) struct Run {
    /// How often the body will be run again if it panics. With 0 it is dropped before the answer, so that the
    /// neighbours see the ports close.
    pub restarts_left: u32,
}

/// The actor of one worker.
pub(crate) struct WorkerActor {
    body: Option<WorkerBody>,
}

impl WorkerActor {
    /// Starts a thread for `body` and returns the address that it is commanded by.
    /// Needs a running actix system. The thread ends when the last address is dropped.
    ///
    /// # Errors
    /// If the system starts no more threads: with the body, which has not run, and the system's message.
    pub(crate) fn spawn(body: WorkerBody) -> Result<Addr<Self>, (Option<WorkerBody>, String)> {
        let name = format!("mlomae-{}-{}", body.id.stage, body.id.instance);
        // Actix may call the factory again, but a body exists once: the second worker would have none and say so.
        let body = Arc::new(Mutex::new(Some(body)));
        let take = |body: &Mutex<Option<WorkerBody>>| body.lock().unwrap_or_else(PoisonError::into_inner).take();
        let of_worker = Arc::clone(&body);
        // Actix panics where a thread cannot be started.
        let started = catch_unwind(AssertUnwindSafe(|| {
            SyncArbiter::start_with_thread_builder(
                1,
                move || thread::Builder::new().name(name.clone()),
                move || Self { body: take(&of_worker) },
            )
        }));
        started.map_err(|payload| {
            // One more try, for the reason alone.
            let cause = thread::Builder::new().spawn(|| {}).err().map(|error| error.to_string());
            (take(&body), cause.unwrap_or_else(|| panic_message(payload.as_ref())))
        })
    }

    fn run(&mut self, restarts_left: u32) -> Exit {
        let Some(body) = &mut self.body else {
            return Exit::Panicked {
                message: "invariant: a worker is run again only while it has its body".to_owned(),
                lost_sample_ids: Vec::new(),
            };
        };
        let exit = catch_panic(|| (body.run)());
        let (id, is_fatal) = (body.id, exit.takes_pipeline_down(body.id.stage, restarts_left));
        if is_fatal {
            // Before the ports close: the log stage ends when all have, and this belongs into the logs.
            PipelineEvent::Fatal { worker: id, exit: exit.clone() }.log();
        }
        if is_fatal || exit.is_clean() {
            let body = self.body.take();
            if catch_unwind(AssertUnwindSafe(|| drop(body))).is_err() {
                tracing::warn!(kind = "panic_in_drop", stage = %id.stage, "{id} panicked while it was dropped");
            }
        }
        exit
    }
}

impl Actor for WorkerActor {
    type Context = SyncContext<Self>;
}

impl Handler<Run> for WorkerActor {
    type Result = MessageResult<Run>;

    fn handle(&mut self, run: Run, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.run(run.restarts_left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::flow::stage_name::StageName;

    use crossbeam::channel::{TryRecvError, bounded};

    fn panics_on_third(stage: StageName) -> (WorkerActor, crossbeam::channel::Receiver<u32>) {
        let (sender, receiver) = bounded(8);
        let mut num_items = 0;
        let run = move || {
            loop {
                num_items += 1;
                assert!(num_items != 3, "third item");
                if num_items == 5 {
                    return Exit::Finished;
                }
                sender.send(num_items).expect("the test holds the receiver");
            }
        };
        let body = WorkerBody::new(WorkerId { stage, instance: 0 }, 2, StageCounters::new(), run);
        (WorkerActor { body: Some(body) }, receiver)
    }

    #[test]
    fn a_restartable_worker_keeps_its_state_and_ports_over_a_panic() {
        let (mut worker, items) = panics_on_third(StageName::Score);
        assert!(matches!(worker.run(2), Exit::Panicked { message, .. } if message == "third item"));
        assert!(matches!(worker.run(1), Exit::Finished));
        assert_eq!(items.try_iter().collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(items.try_recv(), Err(TryRecvError::Disconnected), "ports close at the end");
    }

    #[test]
    fn ports_close_when_no_restart_is_left() {
        for (stage, restarts_left) in [(StageName::Score, 0), (StageName::Encoder, 2)] {
            let (mut worker, items) = panics_on_third(stage);
            assert!(matches!(worker.run(restarts_left), Exit::Panicked { .. }));
            assert_eq!(items.try_iter().count(), 2);
            assert_eq!(items.try_recv(), Err(TryRecvError::Disconnected), "{stage}");
            assert!(matches!(worker.run(0), Exit::Panicked { .. }), "there is no body any more");
        }
    }

    #[test]
    fn stages_with_weights_are_never_restarted() {
        let id = WorkerId { stage: StageName::Policy, instance: 0 };
        let body = WorkerBody::new(id, 3, StageCounters::new(), || Exit::Finished);
        assert_eq!(body.max_restarts(), 0);
    }
}
