//! Data parallelism that never changes a bit.
//!
//! A batch consists of grains of a fixed number of images. Sums over a batch are taken over each grain first, and the grains' sums are
//! added along one binary tree ([`crate::sum::Tree`]) that depends on the number of grains alone. Threads take micro-batches of 1, 2, 4, … grains,
//! which are whole branches of that tree: neither the number of threads nor the size of a micro-batch changes a bit.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

use crate::arena::Arena;
use crate::error::ModelError;

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

    /// Runs `work(i)` for all `i < num`, results in order.
    ///
    /// A panic in a piece is passed on to the caller after all threads have come to rest.
    pub fn map<R: Send>(&self, num: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let Some(pool) = self.pool.as_ref().filter(|_| num > 1) else {
            return (0..num).map(work).collect();
        };
        let failure = Failure::default();
        let pieces = Pieces::new(num, &failure);
        let results = Places::new(num);
        pool.broadcast(|_| pieces.each(|i| results.put(i, work(i))));
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
    /// backward passes. A panic in a piece is passed on to the caller after all threads have come to rest.
    pub fn phases<S, Z: Send, A: Send + Sync, B: Send, M: Send + Sync, R: Send>(
        &self,
        num: [usize; 2],
        forward: impl Fn(usize) -> (S, Z) + Sync,
        first_step: impl FnOnce(Vec<Z>) -> A + Send,
        in_one_go: impl Fn(usize, &A) -> B + Sync,
        second_step: impl FnOnce(&A, Vec<B>) -> M + Send,
        backward: impl Fn(usize, S, &M) -> R + Sync,
    ) -> (A, M, Vec<R>) {
        let Some(pool) = self.pool.as_ref().filter(|_| num[0].max(num[1]) > 1) else {
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
