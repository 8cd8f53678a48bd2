//! The measured peak rate of arithmetic, to which benchmarks compare.

use std::hint::black_box;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Instant;

use super::bf16::{Bf16Unit, Factors};
use super::dispatch::dispatch;
#[cfg(target_arch = "x86_64")]
use super::dots;
use super::isa::{isa, with_isa};
use super::simd::Simd;

/// Independent FMA chains: enough to hide the latency of an FMA, few enough to stay in registers.
const NUM_CHAINS: usize = 12;
/// Steps of all chains from one reading of the clock to the next.
const STEPS: usize = 20_000;

/// Locks `mutex`, even if it is poisoned: it guards a single bool.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rate of `f32` fused multiply-adds in registers, in 10⁹ operations a second (an FMA is two), of
/// `num_threads` threads that compute for `seconds` at the same time; with [`Factors::Bf16`] that of dot products of
/// bf16, where vector registers have them.
///
/// # Errors
/// If a thread cannot be started.
pub fn peak_gflops(factors: Factors, num_threads: usize, seconds: f64) -> io::Result<f64> {
    let isa = isa();
    // Locked until all threads have started. A barrier would wait forever if one cannot start.
    let gate = Mutex::new(true);
    let rate = || {
        if !*lock(&gate) {
            return 0.0;
        }
        let (begin, mut flop) = (Instant::now(), 0.0);
        loop {
            flop += match (factors, Bf16Unit::here()) {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the unit is here.
                (Factors::Bf16, Bf16Unit::Dots) => unsafe { dots::chains::<NUM_CHAINS>(STEPS) },
                _ => dispatch!(chains() -> f64),
            };
            let elapsed = begin.elapsed().as_secs_f64();
            if elapsed >= seconds {
                return flop / elapsed * 1e-9;
            }
        }
    };
    // A new thread does not inherit what this one was forced to.
    let rate = || with_isa(isa, rate).expect("invariant: isa() names only what this machine has");
    std::thread::scope(|scope| {
        let mut is_open = lock(&gate);
        let spawn = |_| Builder::new().spawn_scoped(scope, rate);
        let threads = (0..num_threads).map(spawn).collect::<io::Result<Vec<_>>>();
        *is_open = threads.is_ok();
        drop(is_open);
        Ok(threads?.into_iter().filter_map(|thread| thread.join().ok()).sum())
    })
}

/// Runs all chains for [`STEPS`] and returns the number of operations.
#[inline(always)]
fn chains<S: Simd>(s: S) -> f64 {
    // Values stay finite and normal: x → 0.5 x + 0.25 tends to 0.5.
    let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
    let mut acc = [s.splat(black_box(1.0)); NUM_CHAINS];
    for _ in 0..STEPS {
        for acc in &mut acc {
            *acc = s.fma(*acc, a, b);
        }
    }
    black_box(acc.into_iter().fold(s.splat(0.0), |sum, acc| s.add(sum, acc)));
    2.0 * (STEPS * NUM_CHAINS * S::LANES) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::each_isa;

    #[test]
    fn every_instruction_set_has_a_rate() {
        each_isa(|isa| {
            for factors in [Factors::F32, Factors::Bf16] {
                let peak = peak_gflops(factors, 1, 0.02).unwrap();
                assert!(peak.is_finite() && peak > 0.1, "{isa:?}: {peak}");
            }
        });
    }
}
