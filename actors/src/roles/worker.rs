//! A worker: one stage instance on one thread, under a sync arbiter of its own.
//!
//! The messages that a worker takes carry no data, only "run": items travel over the ports that
//! the task owns.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use actix::prelude::*;
use mlomae_dataflow::flow::counters::StageCounters;
use mlomae_dataflow::flow::exit::{Exit, catch_panic, panic_message};
use mlomae_dataflow::flow::stage_name::StageName;

use crate::roles::outcome::PipelineEvent;

/// Which worker of which stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId {
    /// The stage.
    pub stage: StageName,
    /// The worker's number within its stage, from 0.
    pub instance: u16,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.stage, self.instance)
    }
}

/// What a worker runs: a stage's loop with its state and its ports.
///
/// Dropping the task drops the ports, which is how the neighbours learn that this end is gone.
pub struct StageTask {
    id: WorkerId,
    max_restarts: u32,
    counters: StageCounters,
    body: Box<dyn FnMut() -> Exit + Send>,
}

impl StageTask {
    /// Runs the task on this thread, as a worker would for the last time.
    pub(crate) fn run_here(mut self) -> Exit {
        catch_panic(|| (self.body)())
    }

    /// A task whose `body` is run until it exits, and again after a panic if the stage is
    /// restartable, at most `max_restarts` times.
    ///
    /// `counters` are those that the body counts in; the body also marks its runs in them.
    pub fn new(
        stage: StageName,
        instance: u16,
        max_restarts: u32,
        counters: StageCounters,
        body: impl FnMut() -> Exit + Send + 'static,
    ) -> Self {
        Self {
            id: WorkerId { stage, instance },
            max_restarts: if stage.is_restartable() { max_restarts } else { 0 },
            counters,
            body: Box::new(body),
        }
    }

    /// Which worker runs this task.
    #[must_use]
    pub const fn id(&self) -> WorkerId {
        self.id
    }

    /// How often the task may be run again; 0 for a stage that may not be.
    #[must_use]
    pub const fn max_restarts(&self) -> u32 {
        self.max_restarts
    }

    /// The counters of the task, shared.
    #[must_use]
    pub fn counters(&self) -> StageCounters {
        self.counters.clone()
    }
}

impl fmt::Debug for StageTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageTask")
            .field("id", &self.id)
            .field("max_restarts", &self.max_restarts)
            .finish_non_exhaustive()
    }
}

/// Runs the worker's task once, from wherever its state stands, and answers how it ended.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Exit")]
pub(crate) struct Run {
    /// Whether the task will be run again if it panics. If not, the task is dropped before the
    /// answer, so that the neighbours see the ports close.
    pub restarts_left: u32,
}

/// The actor of one worker.
pub(crate) struct Worker {
    task: Option<StageTask>,
}

impl Worker {
    /// Starts a thread for `task` and returns the address that it is commanded by.
    /// Needs a running actix system. The thread ends when the last address is dropped.
    ///
    /// # Errors
    /// If the system starts no more threads: with the task, which has not begun, and the system's words.
    pub(crate) fn spawn(task: StageTask) -> Result<Addr<Self>, (Option<StageTask>, String)> {
        let name = format!("mlomae-{}-{}", task.id.stage, task.id.instance);
        // The factory may be called again by actix, but a task exists once: the second worker
        // would have none and say so.
        let task = Arc::new(Mutex::new(Some(task)));
        let take = |task: &Mutex<Option<StageTask>>| task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let of_worker = Arc::clone(&task);
        // Actix panics where a thread cannot be started.
        let started = catch_unwind(AssertUnwindSafe(|| {
            SyncArbiter::start_with_thread_builder(
                1,
                move || thread::Builder::new().name(name.clone()),
                move || Self { task: take(&of_worker) },
            )
        }));
        started.map_err(|payload| {
            // One more try, for the reason alone.
            let cause = thread::Builder::new().spawn(|| {}).err().map(|error| error.to_string());
            (take(&task), cause.unwrap_or_else(|| panic_message(payload.as_ref())))
        })
    }

    fn run(&mut self, restarts_left: u32) -> Exit {
        let Some(task) = &mut self.task else {
            return Exit::Panicked {
                message: "invariant: a worker is run again only while it has its task".to_owned(),
                lost_sample_ids: Vec::new(),
            };
        };
        let exit = catch_panic(|| (task.body)());
        let (id, is_fatal) = (task.id, exit.takes_pipeline_down(task.id.stage, restarts_left));
        if is_fatal {
            // Before the ports close: the log stage ends when all have, and this belongs into the logs.
            PipelineEvent::Fatal { worker: id, exit: exit.clone() }.log();
        }
        if is_fatal || exit.is_clean() {
            let task = self.task.take();
            if catch_unwind(AssertUnwindSafe(|| drop(task))).is_err() {
                tracing::warn!(kind = "panic_in_drop", stage = %id.stage, "{id} panicked while it was dropped");
            }
        }
        exit
    }
}

impl Actor for Worker {
    type Context = SyncContext<Self>;
}

impl Handler<Run> for Worker {
    type Result = MessageResult<Run>;

    fn handle(&mut self, run: Run, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.run(run.restarts_left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::{TryRecvError, bounded};

    fn panics_on_third(stage: StageName) -> (Worker, crossbeam::channel::Receiver<u32>) {
        let (sender, receiver) = bounded(8);
        let mut num_items = 0;
        let body = move || {
            loop {
                num_items += 1;
                assert!(num_items != 3, "third item");
                if num_items == 5 {
                    return Exit::Finished;
                }
                sender.send(num_items).expect("the test holds the receiver");
            }
        };
        let task = StageTask::new(stage, 0, 2, StageCounters::new(), body);
        (Worker { task: Some(task) }, receiver)
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
            assert!(matches!(worker.run(0), Exit::Panicked { .. }), "there is no task any more");
        }
    }

    #[test]
    fn stages_with_weights_are_never_restarted() {
        let task = StageTask::new(StageName::Policy, 0, 3, StageCounters::new(), || Exit::Finished);
        assert_eq!(task.max_restarts(), 0);
    }
}
