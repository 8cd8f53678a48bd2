//! Data parallelism with the same bits for any number of threads.
//!
//! A batch consists of grains of a fixed number of images. Sums over a batch are taken over each grain first, and the
//! sums of the grains are added along one binary tree ([`Tree`](crate::parallel::sum::Tree)) that depends on the number
//! of grains alone. Threads take micro-batches of 1, 2, 4, … grains, which are whole branches of that tree: so neither
//! the number of threads nor the size of a micro-batch changes a bit of the result.
//!
//! ```
//! use std::rc::Rc;
//!
//! use mlomae_model::{Arena, Compute};
//!
//! # fn main() -> Result<(), mlomae_model::ModelError> {
//! let compute = Compute::new(2, 4, Arena::new())?;
//! assert_eq!(compute.map(5, |i| i * i), [0, 1, 4, 9, 16]);
//!
//! // Forward: every piece leaves a state on its thread, which need not be `Send` (a tape), and returns an output.
//! let (held, outputs) = compute.hold(3, |i| (Rc::new(i), 10 * i));
//! // Here all pieces have run forward.
//! let sum: usize = outputs.iter().sum();
//! // Backward: every piece gets its state again, on the same thread.
//! assert_eq!(Compute::resume(held, |i, state: Rc<usize>| sum + i + *state), Some(vec![30, 32, 34]));
//! # Ok(())
//! # }
//! ```

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::ModelError;
use crate::parallel::arena::Arena;

/// Thread pool, memory pool, grain and micro-batch of one stage. Cloning shares both pools.
#[derive(Clone, Debug)]
pub struct Compute {
    /// None where the calling thread computes.
    pool: Option<Arc<rayon::ThreadPool>>,
    num_threads: usize,
    /// The memory pool of all passes.
    pub arena: Arena,
    grain: usize,
    micro_batch: usize,
}

/// The largest micro-batch within `num_images` images: the grain times a power of two, at least one grain. `grain` must
/// not be 0.
#[must_use]
pub fn whole_branch(grain: usize, num_images: usize) -> usize {
    let num_grains = (num_images / grain).max(1);
    grain << num_grains.ilog2()
}

impl Compute {
    /// A pool of `num_threads` threads, or the calling thread alone for 1. Grains have `grain` images, and so have
    /// micro-batches until [`Compute::with_micro_batch`].
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

    /// The calling thread alone, with an arena of its own, for tests and small jobs.
    #[must_use]
    pub fn serial(grain: usize) -> Self {
        let grain = grain.max(1);
        Compute { pool: None, num_threads: 1, arena: Arena::new(), grain, micro_batch: grain }
    }

    /// The same threads and memory with micro-batches of at most `num_images` images, see [`whole_branch`]. A
    /// micro-batch is what a thread takes at a time; its size changes no result.
    #[must_use]
    pub fn with_micro_batch(&self, num_images: usize) -> Self {
        Compute { micro_batch: whole_branch(self.grain, num_images), ..self.clone() }
    }

    /// Images of a grain. Changing it changes rounding.
    #[must_use]
    pub fn grain(&self) -> usize {
        self.grain
    }

    /// Images of a micro-batch.
    #[must_use]
    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Threads in use.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// The micro-batches of a batch, as ranges of images.
    #[must_use]
    pub fn micro_batches(&self, batch: usize) -> Vec<Range<usize>> {
        (0..batch).step_by(self.micro_batch).map(|start| start..(start + self.micro_batch).min(batch)).collect()
    }

    /// The grains of a batch, as ranges of images.
    #[must_use]
    pub fn grains(&self, batch: usize) -> Vec<Range<usize>> {
        (0..batch).step_by(self.grain).map(|start| start..(start + self.grain).min(batch)).collect()
    }

    /// The pieces for sweeps over a flat vector of `len` values: at most 16, of whole cache lines, whatever the number
    /// of threads.
    #[must_use]
    pub fn spans(&self, len: usize) -> Vec<Range<usize>> {
        let piece = len.div_ceil(16).next_multiple_of(1024);
        (0..len).step_by(piece.max(1)).map(|start| start..(start + piece).min(len)).collect()
    }

    /// The threads for `num` pieces; none if the calling thread computes them all: where there is one piece or one
    /// thread, and where the calling thread is a pool thread inside a piece. To wait for other pool threads there,
    /// which may wait for this one, would be a deadlock.
    fn threads_for(&self, num: usize) -> Option<&rayon::ThreadPool> {
        self.pool.as_deref().filter(|_| num > 1 && !Inside::is_here())
    }

    /// Runs `work(i)` for all `i < num` on the threads; the results, by i.
    ///
    /// Several threads may call it at once. `work` may call any method of this or another `Compute`: nested calls from
    /// a pool thread run on that thread. A panic in a piece is rethrown to the caller once all threads are done with
    /// their pieces.
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

    /// As [`Compute::map`], where piece i also gets exclusive access to the range `spans[i]` of `values`. The spans
    /// must be adjacent and start at 0.
    ///
    /// # Panics
    /// If the spans are longer than `values`.
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

    /// The first half of pieces that must see each other's outputs: runs `begin(i)` for all `i < num` as
    /// [`Compute::map`], and keeps the state that it returns in a thread-local of its thread, since states (tapes) need
    /// not be `Send`. Returns a handle for [`Compute::resume`], and the outputs, by i.
    ///
    /// A panic in a piece is rethrown to the caller once all threads are done; all states are dropped then.
    pub fn hold<S: 'static, Z: Send>(&self, num: usize, begin: impl Fn(usize) -> (S, Z) + Sync) -> (Held, Vec<Z>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let pool = self.threads_for(num).and(self.pool.clone());
        let (key, thread) = (NEXT.fetch_add(1, Ordering::Relaxed), std::thread::current().id());
        let held = Held { key, num, thread, pool, is_over: false };
        let failure = Failure::default();
        let pieces = Pieces::new(num, &failure);
        let outputs = Places::new(num);
        held.on_each_thread(|| {
            let mut states = States::new();
            pieces.each(|i| {
                let (state, output) = begin(i);
                states.push((i, Box::new(state)));
                outputs.put(i, output);
            });
            HELD.with_borrow_mut(|all| all.insert(held.key, states));
        });
        failure.rethrow();
        (held, outputs.take())
    }

    /// The second half of the pieces of [`Compute::hold`]: runs `end(i, state)` for each on the thread that has its
    /// state; the results, by i. The pool may do other work in between.
    ///
    /// None if a state cannot be had: where `S` is not the type of the states, or where the pieces did not run on a
    /// thread pool (one thread, one piece, or nested work) and this is another thread than the one that called `hold`.
    ///
    /// A panic in a piece is rethrown to the caller once all threads are done.
    pub fn resume<S: 'static, R: Send>(mut held: Held, end: impl Fn(usize, S) -> R + Sync) -> Option<Vec<R>> {
        if held.pool.is_none() && held.thread != std::thread::current().id() {
            return None;
        }
        let failure = Failure::default();
        let results = Places::new(held.num);
        held.on_each_thread(|| {
            let states = HELD.with_borrow_mut(|all| all.remove(&held.key)).unwrap_or_default();
            for (i, state) in states {
                let Ok(state) = state.downcast::<S>() else { continue };
                failure.guard(|| results.put(i, end(i, *state)));
            }
        });
        held.is_over = true;
        failure.rethrow();
        let results = results.take();
        (results.len() == held.num).then_some(results)
    }
}

/// States of pieces, each with the piece's index.
type States = Vec<(usize, Box<dyn Any>)>;

thread_local! {
    /// States of the pieces that ran on this thread, by the key of their [`Held`].
    static HELD: RefCell<HashMap<u64, States>> = RefCell::default();
}

/// A handle to the states of pieces on their threads, see [`Compute::hold`]. Dropping it drops the states, on their
/// threads.
#[derive(Debug)]
pub struct Held {
    key: u64,
    num: usize,
    /// The thread that has all states, where there is no pool.
    thread: std::thread::ThreadId,
    pool: Option<Arc<rayon::ThreadPool>>,
    /// Whether [`Compute::resume`] has taken the states.
    is_over: bool,
}

impl Held {
    /// Number of pieces.
    #[must_use]
    pub const fn num(&self) -> usize {
        self.num
    }

    fn on_each_thread(&self, work: impl Fn() + Sync) {
        match &self.pool {
            Some(pool) => {
                pool.broadcast(|_| {
                    let _inside = Inside::enter();
                    work();
                });
            }
            None => work(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let is_elsewhere = self.pool.is_none() && self.thread != std::thread::current().id();
        // States on another thread without a pool are freed when that thread ends. `try_with`: this may run while the
        // thread-locals of the thread are being destroyed, and the states with them.
        if !is_elsewhere && !self.is_over {
            let key = self.key;
            self.on_each_thread(|| {
                let _ = HELD.try_with(|all| all.try_borrow_mut().ok().and_then(|mut all| all.remove(&key)));
            });
        }
    }
}

thread_local! {
    /// Whether this thread is inside a piece, see [`Compute::threads_for`].
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A guard: until it is dropped, its thread is inside a piece.
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

/// Locks `mutex`, ignoring poison: what it guards stays valid if a thread panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first panic of a piece; after it, no further piece is started.
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

/// Hands out piece indices to the threads (work sharing).
struct Pieces<'a> {
    next: AtomicUsize,
    num: usize,
    failure: &'a Failure,
}

impl<'a> Pieces<'a> {
    fn new(num: usize, failure: &'a Failure) -> Self {
        Pieces { next: AtomicUsize::new(0), num, failure }
    }

    /// Runs `work` on pieces that no thread has taken yet, until there are none or a piece has panicked.
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

/// Results that arrive in any order, put back into the order of their pieces.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A state that is not `Send`, as a tape.
    struct Tape(std::rc::Rc<usize>, std::thread::ThreadId);

    fn begin(i: usize) -> (Tape, usize) {
        (Tape(std::rc::Rc::new(i), std::thread::current().id()), 2 * i)
    }

    fn end(i: usize, tape: Tape) -> usize {
        assert_eq!((i, std::thread::current().id()), (*tape.0, tape.1), "a piece ends where it began");
        3 * i
    }

    #[test]
    fn pieces_end_on_the_thread_that_began_them_and_results_are_in_order() {
        for threads in [1, 2, 3] {
            let compute = Compute::new(threads, 4, Arena::new()).unwrap();
            // Two holds at a time, and other work between hold and resume.
            let (one, outputs) = compute.hold(10, begin);
            let (two, _) = compute.hold(3, begin);
            assert_eq!(outputs, (0..10).map(|i| 2 * i).collect::<Vec<_>>());
            assert_eq!(compute.map(7, |i| i), (0..7).collect::<Vec<_>>());
            assert_eq!(Compute::resume(two, end).unwrap(), [0, 3, 6]);
            assert_eq!(Compute::resume(one, end).unwrap(), (0..10).map(|i| 3 * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn states_are_dropped_with_their_handle() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        for threads in [1, 3] {
            let compute = Compute::new(threads, 4, Arena::new()).unwrap();
            let num_dropped = Arc::new(AtomicUsize::new(0));
            let (held, _) = compute.hold(5, |i| (Counted(num_dropped.clone()), i));
            assert_eq!((held.num(), num_dropped.load(Ordering::SeqCst)), (5, 0));
            drop(held);
            assert_eq!(num_dropped.load(Ordering::SeqCst), 5, "{threads} threads");
        }
    }

    #[test]
    fn what_one_thread_holds_is_not_ended_by_another() {
        let (held, _) = Compute::serial(1).hold(3, begin);
        assert!(std::thread::spawn(move || Compute::resume(held, end)).join().unwrap().is_none());
        let (held, _) = Compute::serial(1).hold(3, begin);
        assert!(Compute::resume(held, |_, _: String| ()).is_none(), "states of another type");
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_survives() {
        let compute = Compute::new(3, 1, Arena::new()).unwrap();
        for phase in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let (held, _) = compute.hold(8, |i| ((), assert!(phase != 0 || i != 5, "begin")));
                compute.map(8, |i| assert!(phase != 1 || i != 2, "between"));
                Compute::resume(held, |i, ()| assert!(phase != 2 || i != 3, "end"))
            }));
            assert!(outcome.is_err());
            assert_eq!(compute.map(3, |i| i), [0, 1, 2]);
        }
    }

    /// Runs `body` on a thread of its own, so that a hang fails the test.
    fn within_a_minute<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(body()));
        receiver.recv_timeout(std::time::Duration::from_secs(60)).expect("it hangs or has panicked")
    }

    /// Sums over pieces on `outer` that use `inner` in turn, by `map` and by `hold` and `resume`.
    fn nested(outer: &Compute, inner: &Compute) -> Vec<u64> {
        let sum = |n: u64| inner.map(5, |i| n * i as u64).into_iter().sum::<u64>();
        let held = |n: u64| {
            let (held, zs) = inner.hold(3, |i| (i, sum(n + i as u64)));
            let between = sum(zs.into_iter().sum());
            Compute::resume(held, |i, state: usize| between + (i + state) as u64).unwrap().into_iter().sum::<u64>()
        };
        let mut all = outer.map(7, |i| sum(i as u64) + held(i as u64));
        let (pieces, zs) = outer.hold(4, |i| (sum(i as u64), held(i as u64)));
        all.extend(&zs);
        all.extend(Compute::resume(pieces, |i, state: u64| state + held(i as u64)).unwrap());
        all
    }

    #[test]
    fn pieces_may_compute_in_turn_on_the_same_threads_or_others() {
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
                let nested = || compute.map(4, |i| assert!(i != 2, "nested"));
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    let (held, _) = compute.hold(4, |i| ((), i));
                    Compute::resume(held, |_, ()| nested().len())
                }));
                assert!(outcome.is_err());
                // The pool still has two threads: each piece waits for the other.
                let both = std::sync::Barrier::new(2);
                compute.map(2, |_| both.wait());
            }
        });
    }

    #[test]
    fn several_threads_at_once_take_turns() {
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
