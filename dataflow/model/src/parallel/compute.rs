//! Data parallelism that never changes a bit.
//!
//! A batch consists of grains of a fixed number of images. Sums over a batch are taken over each grain first, and the grains' sums are
//! added along one binary tree ([`crate::parallel::sum::Tree`]) that depends on the number of grains alone. Threads take micro-batches of 1, 2, 4, … grains,
//! which are whole branches of that tree: neither the number of threads nor the size of a micro-batch changes a bit.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

use crate::error::ModelError;
use crate::parallel::arena::Arena;

/// Threads, recycled memory, grain and micro-batch of one stage.
#[derive(Clone, Debug)]
pub struct Compute {
    pool: Option<Arc<rayon::ThreadPool>>,
    num_threads: usize,
    /// Recycled memory of all passes.
    pub arena: Arena,
    grain: usize,
    micro_batch: usize,
}

/// Images of the largest branch of whole grains within `num_images` images, of one grain at least.
pub fn whole_branch(grain: usize, num_images: usize) -> usize {
    let num_grains = (num_images / grain).max(1);
    grain << num_grains.ilog2()
}

impl Compute {
    /// Sums over grains of `grain` images, in micro-batches of one grain until [`Compute::with_micro_batch`] says otherwise.
    /// `num_threads` 1 computes on the calling thread.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(num_threads: usize, grain: usize, arena: Arena) -> Result<Self, ModelError> {
        let num_threads = num_threads.max(1);
        let pool = if num_threads == 1 {
            None
        } else {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(num_threads)
                .thread_name(|i| format!("compute-{i}"))
                .build()
                .map_err(|error| ModelError::Threads { num_threads, cause: error.to_string() })?;
            Some(Arc::new(pool))
        };
        let grain = grain.max(1);
        Ok(Compute { pool, num_threads, arena, grain, micro_batch: grain })
    }

    /// One thread, for tests and small jobs.
    pub fn serial(grain: usize) -> Self {
        let grain = grain.max(1);
        Compute { pool: None, num_threads: 1, arena: Arena::new(), grain, micro_batch: grain }
    }

    /// The same threads and memory with micro-batches of at most `num_images` images: the grain times the largest power of two that
    /// fits, at least one grain. This decides how much a thread takes at a time; it never changes a result.
    pub fn with_micro_batch(&self, num_images: usize) -> Self {
        Compute { micro_batch: whole_branch(self.grain, num_images), ..self.clone() }
    }

    /// Images of a grain. Changing it changes rounding.
    pub fn grain(&self) -> usize {
        self.grain
    }

    /// Images of a micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Threads in use.
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// The micro-batches of a batch, as ranges of images.
    pub fn micro_batches(&self, batch: usize) -> Vec<Range<usize>> {
        (0..batch).step_by(self.micro_batch).map(|start| start..(start + self.micro_batch).min(batch)).collect()
    }

    /// The grains of a batch, as ranges of images.
    pub fn grains(&self, batch: usize) -> Vec<Range<usize>> {
        (0..batch).step_by(self.grain).map(|start| start..(start + self.grain).min(batch)).collect()
    }

    /// Cuts `len` values into at most 16 pieces of whole cache lines, for sweeps over flat vectors.
    pub fn spans(&self, len: usize) -> Vec<Range<usize>> {
        let piece = len.div_ceil(16).next_multiple_of(1024);
        (0..len).step_by(piece.max(1)).map(|start| start..(start + piece).min(len)).collect()
    }

    /// The threads for `num` pieces; none if the calling thread does them all: where there is but one, and where it is
    /// in the middle of a piece or a step itself. There it would wait for threads that wait for it (deadlock).
    fn threads_for(&self, num: usize) -> Option<&rayon::ThreadPool> {
        self.pool.as_deref().filter(|_| num > 1 && !Inside::is_here())
    }

    /// Runs `work(i)` for all `i < num`, results in order.
    ///
    /// `work` may compute in turn, with any value of this type; that is done on the thread that is at it. A panic in a
    /// piece is passed on to the caller after all threads have come to rest.
    pub fn map<R: Send>(&self, num: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let Some(pool) = self.threads_for(num) else {
            return (0..num).map(work).collect();
        };
        let failure = Failure::default();
        let pieces = Pieces::new(num, &failure);
        let results = Places::new(num);
        pool.broadcast(|_| {
            let _inside = Inside::enter();
            pieces.each(|i| results.put(i, work(i)));
        });
        failure.rethrow();
        results.take()
    }

    /// Runs `work` over disjoint pieces of a vector, cut at `spans` (adjoining, from 0).
    pub fn map_slices(&self, values: &mut [f32], spans: &[Range<usize>], work: impl Fn(usize, &mut [f32]) + Sync) {
        let mut rest = values;
        let mut pieces = Vec::with_capacity(spans.len());
        for span in spans {
            let (piece, tail) = rest.split_at_mut(span.len());
            pieces.push(Mutex::new(piece));
            rest = tail;
        }
        self.map(pieces.len(), |i| {
            work(i, &mut lock(&pieces[i]));
        });
    }

    /// Forward for every piece; a step that sees all of them; other pieces in one go; a step that sees those too; backward for every
    /// piece of the first kind on the thread that did its forward, because a tape cannot change threads.
    ///
    /// Only pieces of the first kind keep something (`S`) from one phase to the next. Returns the second step's result and those of the
    /// backward passes. Pieces and steps may compute in turn, as those of [`Compute::map`]: while one thread takes a step, the others wait
    /// at a barrier and could not help it. A panic in a piece is passed on to the caller after all threads have come to rest.
    pub fn phases<S, Z: Send, A: Send + Sync, B: Send, M: Send + Sync, R: Send>(
        &self,
        num: [usize; 2],
        forward: impl Fn(usize) -> (S, Z) + Sync,
        first_step: impl FnOnce(Vec<Z>) -> A + Send,
        in_one_go: impl Fn(usize, &A) -> B + Sync,
        second_step: impl FnOnce(&A, Vec<B>) -> M + Send,
        backward: impl Fn(usize, S, &M) -> R + Sync,
    ) -> (A, M, Vec<R>) {
        let Some(pool) = self.threads_for(num[0].max(num[1])) else {
            let (states, outputs): (Vec<S>, Vec<Z>) = (0..num[0]).map(&forward).unzip();
            let first = first_step(outputs);
            let second = second_step(&first, (0..num[1]).map(|i| in_one_go(i, &first)).collect());
            let results = states.into_iter().enumerate().map(|(i, state)| backward(i, state, &second)).collect();
            return (first, second, results);
        };
        let failure = Failure::default();
        let pieces = num.map(|num| Pieces::new(num, &failure));
        let barrier = Barrier::new(self.num_threads);
        let outputs = Places::new(num[0]);
        let others = Places::new(num[1]);
        let results = Places::new(num[0]);
        let first = Once::new(first_step);
        let second = Once::new(second_step);
        pool.broadcast(|_| {
            let _inside = Inside::enter();
            let mut states: Vec<(usize, S)> = Vec::new();
            pieces[0].each(|i| {
                let (state, output) = forward(i);
                states.push((i, state));
                outputs.put(i, output);
            });
            if barrier.wait().is_leader() {
                failure.guard(|| first.run(|step| step(outputs.take())));
            }
            barrier.wait();
            if let Some(first) = first.result() {
                pieces[1].each(|i| others.put(i, in_one_go(i, &first)));
            }
            if barrier.wait().is_leader()
                && let Some(first) = first.result()
            {
                failure.guard(|| second.run(|step| step(&first, others.take())));
            }
            barrier.wait();
            let Some(second) = second.result() else { return };
            for (i, state) in states {
                failure.guard(|| results.put(i, backward(i, state, &second)));
            }
        });
        failure.rethrow();
        (first.into_result(), second.into_result(), results.take())
    }
}

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Marks its thread as one that is at work for a [`Compute`], until it is dropped.
struct Inside {
    was_inside: bool,
}

impl Inside {
    fn enter() -> Self {
        Self { was_inside: IS_INSIDE.replace(true) }
    }

    fn is_here() -> bool {
        IS_INSIDE.get()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IS_INSIDE.set(self.was_inside);
    }
}

/// The lock of `mutex`, whatever a panic left behind it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first panic of a piece; after one, no more work is begun.
#[derive(Default)]
struct Failure {
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Failure {
    fn has_come(&self) -> bool {
        lock(&self.panic).is_some()
    }

    fn guard(&self, work: impl FnOnce()) {
        if self.has_come() {
            return;
        }
        if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
            lock(&self.panic).get_or_insert(payload);
        }
    }

    fn rethrow(self) {
        if let Some(payload) = self.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }
}

/// Hands out piece numbers.
struct Pieces<'a> {
    next: AtomicUsize,
    num: usize,
    failure: &'a Failure,
}

impl<'a> Pieces<'a> {
    fn new(num: usize, failure: &'a Failure) -> Self {
        Pieces { next: AtomicUsize::new(0), num, failure }
    }

    /// Works on the pieces that are left until there are none, or a panic has come.
    fn each(&self, mut work: impl FnMut(usize)) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.num || self.failure.has_come() {
                return;
            }
            self.failure.guard(|| work(i));
        }
    }
}

/// Results that come in any order.
struct Places<R>(Mutex<Vec<Option<R>>>);

impl<R> Places<R> {
    fn new(num: usize) -> Self {
        Places(Mutex::new((0..num).map(|_| None).collect()))
    }

    fn put(&self, i: usize, result: R) {
        lock(&self.0)[i] = Some(result);
    }

    fn take(&self) -> Vec<R> {
        std::mem::take(&mut *lock(&self.0)).into_iter().flatten().collect()
    }
}

/// A step that one thread takes for all.
struct Once<F, M> {
    step: Mutex<Option<F>>,
    result: Mutex<Option<Arc<M>>>,
}

impl<F, M> Once<F, M> {
    fn new(step: F) -> Self {
        Once { step: Mutex::new(Some(step)), result: Mutex::new(None) }
    }

    fn run(&self, call: impl FnOnce(F) -> M) {
        if let Some(step) = lock(&self.step).take() {
            let result = call(step);
            *lock(&self.result) = Some(Arc::new(result));
        }
    }

    fn result(&self) -> Option<Arc<M>> {
        lock(&self.result).clone()
    }

    fn into_result(self) -> M {
        let result = self.result.into_inner().unwrap_or_else(PoisonError::into_inner).and_then(Arc::into_inner);
        result.expect("invariant: without a panic the step has run and its threads are gone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_for_any_thread_count() {
        for threads in [1, 2, 3] {
            let compute = Compute::new(threads, 4, Arena::new()).unwrap();
            let (first, second, results) = compute.phases(
                [10, 7],
                |i| (i, i * 2),
                |zs| zs.iter().sum::<usize>(),
                |i, first| first + i,
                |first, others| first + others.iter().sum::<usize>(),
                |i, state, second| state + i + second,
            );
            assert_eq!((first, second), (90, 90 + 7 * 90 + 21));
            assert_eq!(results, (0..10).map(|i| 2 * i + 741).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_survives() {
        let compute = Compute::new(3, 1, Arena::new()).unwrap();
        for phase in 0..5 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                compute.phases(
                    [8, 8],
                    |i| ((), assert!(phase != 0 || i != 5, "forward")),
                    |_| assert!(phase != 1, "first step"),
                    |i, ()| assert!(phase != 2 || i != 2, "in one go"),
                    |(), _| assert!(phase != 3, "second step"),
                    |i, (), ()| assert!(phase != 4 || i != 3, "backward"),
                )
            }));
            assert!(outcome.is_err());
            assert_eq!(compute.map(3, |i| i), [0, 1, 2]);
        }
    }

    /// Runs `body` on a thread of its own; a hang is a failure, not a wait.
    fn within_a_minute<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(body()));
        receiver.recv_timeout(std::time::Duration::from_secs(60)).expect("it hangs or has panicked")
    }

    /// A sum over pieces that each compute on `inner`, by maps and by phases.
    fn nested(outer: &Compute, inner: &Compute) -> Vec<u64> {
        let sum = |n: u64| inner.map(5, |i| n * i as u64).into_iter().sum::<u64>();
        let phases = |n: u64| {
            let (first, second, results) = inner.phases(
                [3, 2],
                |i| (i, sum(n + i as u64)),
                |zs| zs.into_iter().sum::<u64>(),
                |i, first| first + i as u64,
                |first, others| first + others.into_iter().sum::<u64>(),
                |i, state, second| second + (i + state) as u64,
            );
            first + second + results.into_iter().sum::<u64>()
        };
        let mut all = outer.map(7, |i| sum(i as u64) + phases(i as u64));
        let (first, second, results) = outer.phases(
            [4, 3],
            |i| (sum(i as u64), phases(i as u64)),
            |zs| phases(zs.into_iter().sum()),
            |i, first| sum(first % 1000) + i as u64,
            |first, others| sum(first % 1000) + phases(others.len() as u64),
            |i, state, second| state + phases((second + i as u64) % 1000),
        );
        all.extend([first, second]);
        all.extend(results);
        all
    }

    #[test]
    fn pieces_and_steps_may_compute_in_turn_on_the_same_threads_or_others() {
        within_a_minute(|| {
            let serial = Compute::serial(1);
            let expected = nested(&serial, &serial);
            for threads in [2, 3, 5] {
                let [one, other] = [(); 2].map(|()| Compute::new(threads, 1, Arena::new()).unwrap());
                for inner in [&one, &other, &serial] {
                    assert_eq!(nested(&one, inner), expected, "{threads} threads");
                }
                assert_eq!(nested(&serial, &one), expected, "{threads} threads");
            }
        });
    }

    #[test]
    fn a_panic_in_nested_work_leaves_the_threads_in_order() {
        within_a_minute(|| {
            let compute = Compute::new(2, 1, Arena::new()).unwrap();
            for _ in 0..10 {
                let step = || compute.map(4, |i| assert!(i != 2, "nested"));
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    compute.phases([4, 1], |i| ((), i), |_| step(), |i, _| i, |_, _| (), |_, (), ()| ())
                }));
                assert!(outcome.is_err());
                // Still on both threads: each piece waits for the other.
                let both = Barrier::new(2);
                compute.map(2, |_| both.wait());
            }
        });
    }

    #[test]
    fn phases_from_several_threads_at_once_take_turns() {
        within_a_minute(|| {
            let compute = Compute::new(3, 1, Arena::new()).unwrap();
            let alone = nested(&compute, &compute);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..50 {
                            assert_eq!(nested(&compute, &compute), alone);
                        }
                    });
                }
            });
        });
    }

    #[test]
    fn micro_batches_are_branches() {
        let compute = Compute::serial(4);
        for (asked, got) in [(1, 4), (4, 4), (7, 4), (8, 8), (13, 8), (16, 16), (100, 64)] {
            assert_eq!(compute.with_micro_batch(asked).micro_batch(), got);
        }
        assert_eq!(compute.with_micro_batch(8).micro_batches(18), [0..8, 8..16, 16..18]);
        assert_eq!(compute.grains(9), [0..4, 4..8, 8..9]);
    }
}
