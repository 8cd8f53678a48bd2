//! Data parallelism that never changes a bit.
//!
//! Work is cut into pieces that depend on the batch alone, never on the number of threads; threads take pieces as they get free, and
//! results are put together in the order of the pieces.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

use crate::arena::{Arena, Buffer};
use crate::error::ModelError;
use crate::kernels;

/// Threads, recycled memory and the micro-batch of one stage.
#[derive(Clone, Debug)]
pub struct Compute {
    pool: Option<Arc<rayon::ThreadPool>>,
    num_threads: usize,
    /// Recycled memory of all passes.
    pub arena: Arena,
    /// Images of a micro-batch, the unit of distribution and of reduction. Changing it changes rounding.
    pub micro_batch: usize,
}

impl Compute {
    /// `num_threads` 1 computes on the calling thread.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(num_threads: usize, micro_batch: usize, arena: Arena) -> Result<Self, ModelError> {
        let num_threads = num_threads.max(1);
        let pool = if num_threads == 1 {
            None
        } else {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(num_threads)
                .thread_name(|i| format!("compute-{i}"))
                .build()
                .map_err(|error| ModelError::Config(format!("cannot start {num_threads} compute threads: {error}")))?;
            Some(Arc::new(pool))
        };
        Ok(Compute { pool, num_threads, arena, micro_batch: micro_batch.max(1) })
    }

    /// One thread, for tests and small jobs.
    pub fn serial(micro_batch: usize) -> Self {
        Compute { pool: None, num_threads: 1, arena: Arena::new(), micro_batch: micro_batch.max(1) }
    }

    /// Threads in use.
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// The micro-batches of a batch.
    pub fn micro_batches(&self, batch: usize) -> Vec<Range<usize>> {
        (0..batch).step_by(self.micro_batch).map(|start| start..(start + self.micro_batch).min(batch)).collect()
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
        let pieces = Pieces::new(num);
        let results: Mutex<Vec<Option<R>>> = Mutex::new((0..num).map(|_| None).collect());
        pool.broadcast(|_| {
            while let Some(i) = pieces.take() {
                if let Some(result) = pieces.guard(|| work(i)) {
                    lock(&results)[i] = Some(result);
                }
            }
        });
        pieces.rethrow();
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()
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

    /// Forward for every piece, one step in the middle that sees all of it, then backward for every piece on the thread that did its
    /// forward, because a tape cannot change threads.
    ///
    /// A panic in a piece is passed on to the caller after all threads have come to rest.
    pub fn two_phase<S, Z: Send, M: Send + Sync, R: Send>(
        &self,
        num: usize,
        forward: impl Fn(usize) -> (S, Z) + Sync,
        middle: impl FnOnce(Vec<Z>) -> M + Send,
        backward: impl Fn(usize, S, &M) -> R + Sync,
    ) -> (M, Vec<R>) {
        let Some(pool) = self.pool.as_ref().filter(|_| num > 1) else {
            let (states, outputs): (Vec<S>, Vec<Z>) = (0..num).map(&forward).unzip();
            let middle = middle(outputs);
            let results = states.into_iter().enumerate().map(|(i, state)| backward(i, state, &middle)).collect();
            return (middle, results);
        };
        let pieces = Pieces::new(num);
        let barrier = Barrier::new(self.num_threads);
        let outputs: Mutex<Vec<Option<Z>>> = Mutex::new((0..num).map(|_| None).collect());
        let results: Mutex<Vec<Option<R>>> = Mutex::new((0..num).map(|_| None).collect());
        let middle_step = Mutex::new(Some(middle));
        let middle_result: Mutex<Option<Arc<M>>> = Mutex::new(None);
        pool.broadcast(|_| {
            let mut states: Vec<(usize, S)> = Vec::new();
            while let Some(i) = pieces.take() {
                if let Some((state, output)) = pieces.guard(|| forward(i)) {
                    states.push((i, state));
                    lock(&outputs)[i] = Some(output);
                }
            }
            if barrier.wait().is_leader() && !pieces.panicked() {
                let outputs = std::mem::take(&mut *lock(&outputs)).into_iter().flatten().collect();
                if let Some(step) = lock(&middle_step).take() {
                    *lock(&middle_result) = pieces.guard(|| step(outputs)).map(Arc::new);
                }
            }
            barrier.wait();
            let Some(middle) = lock(&middle_result).clone() else { return };
            for (i, state) in states {
                if let Some(result) = pieces.guard(|| backward(i, state, &middle)) {
                    lock(&results)[i] = Some(result);
                }
            }
        });
        pieces.rethrow();
        let middle = middle_result.into_inner().unwrap_or_else(PoisonError::into_inner).and_then(Arc::into_inner);
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect();
        (middle.expect("invariant: without a panic the middle step has run and its threads are gone"), results)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands out piece numbers and keeps the first panic; after one, no more work is begun.
struct Pieces {
    next: AtomicUsize,
    num: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Pieces {
    fn new(num: usize) -> Self {
        Pieces { next: AtomicUsize::new(0), num, panic: Mutex::new(None) }
    }

    fn take(&self) -> Option<usize> {
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        (i < self.num && !self.panicked()).then_some(i)
    }

    fn panicked(&self) -> bool {
        lock(&self.panic).is_some()
    }

    fn guard<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        if self.panicked() {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => Some(result),
            Err(payload) => {
                lock(&self.panic).get_or_insert(payload);
                None
            }
        }
    }

    fn rethrow(self) {
        if let Some(payload) = self.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }
}

/// Adds vectors up in the order of their pieces, ((g0 + g1) + g2) + …, as they arrive in any order.
#[derive(Default)]
pub struct OrderedSum {
    state: Mutex<SumState>,
}

#[derive(Default)]
struct SumState {
    next: usize,
    sum: Option<Buffer>,
    waiting: BTreeMap<usize, Buffer>,
}

impl OrderedSum {
    /// Adds piece `index`; its memory goes back to the arena as soon as its turn has come.
    pub fn add(&self, index: usize, piece: Buffer) {
        let mut state = lock(&self.state);
        state.waiting.insert(index, piece);
        let state = &mut *state;
        while let Some(piece) = state.waiting.remove(&state.next) {
            state.next += 1;
            match &mut state.sum {
                Some(sum) => kernels::add(sum, &piece),
                None => state.sum = Some(piece),
            }
        }
    }

    /// The sum of all pieces so far.
    pub fn finish(self) -> Option<Buffer> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_for_any_thread_count() {
        for threads in [1, 2, 3] {
            let compute = Compute::new(threads, 4, Arena::new()).unwrap();
            let (sum, results) =
                compute.two_phase(10, |i| (i, i * 2), |zs| zs.iter().sum::<usize>(), |i, state, sum| state + i + sum);
            assert_eq!(sum, 90);
            assert_eq!(results, (0..10).map(|i| 2 * i + 90).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_survives() {
        let compute = Compute::new(3, 1, Arena::new()).unwrap();
        for phase in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                compute.two_phase(
                    8,
                    |i| ((), assert!(phase != 0 || i != 5, "forward")),
                    |_| assert!(phase != 1, "middle"),
                    |i, (), ()| assert!(phase != 2 || i != 3, "backward"),
                )
            }));
            assert!(outcome.is_err());
            assert_eq!(compute.map(3, |i| i), [0, 1, 2]);
        }
    }

    #[test]
    fn sums_do_not_depend_on_arrival() {
        let pieces: Vec<Vec<f32>> = (0..6).map(|i| vec![0.1 * 10f32.powi(i), 1e-3, -7.0 / (i as f32 + 1.0)]).collect();
        let sum = |order: &[usize]| {
            let s = OrderedSum::default();
            order.iter().for_each(|&i| s.add(i, Buffer::from_vec(pieces[i].clone())));
            s.finish().unwrap().to_vec()
        };
        assert_eq!(sum(&[0, 1, 2, 3, 4, 5]), sum(&[5, 3, 1, 0, 2, 4]));
    }
}
