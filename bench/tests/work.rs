//! Guards on the work of an outer iteration, by counters that do not depend on time or machine.

use std::alloc::System;
use std::sync::Mutex;

use mlomae_actors::measure::workload::{Workload, WorkloadSpec};
use mlomae_dataflow::config::Preset;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOC: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The counters are global to the process, so the tests run one at a time.
static COUNTING: Mutex<()> = Mutex::new(());

fn warm(spec: WorkloadSpec) -> Workload {
    let mut workload = Workload::new(spec).unwrap();
    for _ in 0..3 {
        workload.step().unwrap();
    }
    workload
}

fn spec(preset: Preset, batch: usize, num_threads: usize) -> WorkloadSpec {
    WorkloadSpec { batch, num_threads, micro_batch: 8, ..WorkloadSpec::new(preset) }
}

/// The number of matrix products of an outer iteration. It changes with every pass that is added or removed, which must
/// be intended.
#[test]
fn the_arithmetic_of_an_iteration_is_known() {
    let _one = COUNTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (preset, baseline, per_image) in
        [(Preset::Tiny, false, TINY), (Preset::Tiny, true, TINY_BASELINE), (Preset::Small, false, SMALL)]
    {
        let batch = 16;
        let mut workload = Workload::new(WorkloadSpec { baseline, ..spec(preset, batch, 1) }).unwrap();
        let flop = (workload.step().unwrap().gflop * 1e9).round();
        println!("{preset:?}, baseline {baseline}: {flop} operations for {batch} images");
        assert_eq!(flop, per_image * batch as f64, "{preset:?}, baseline {baseline}");
        assert_eq!((workload.step().unwrap().gflop * 1e9).round(), flop);
    }
}

/// Tensors take no memory from the system after warm-up; what else is allocated is bookkeeping: tapes, orders, small
/// vectors.
#[test]
fn nothing_is_allocated_for_tensors_after_warm_up() {
    let _one = COUNTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (preset, batch) in [(Preset::Tiny, 64), (Preset::Small, 16)] {
        let mut workload = warm(spec(preset, batch, 1));
        let taken = workload.allocated_bytes();
        let region = Region::new(ALLOC);
        for _ in 0..NUM_STEPS {
            workload.step().unwrap();
        }
        let change = region.change();
        assert_eq!(workload.allocated_bytes() - taken, 0, "{preset:?}");
        let (num, bytes) = (change.allocations / NUM_STEPS, change.bytes_allocated / NUM_STEPS);
        println!("{preset:?}: no byte for tensors, {num} small allocations of {bytes} bytes in a step");
        assert!(num < BOOKKEEPING_PIECES && bytes < BOOKKEEPING_BYTES, "{preset:?}: {change:?}");
        let kept = change.allocations as isize - change.deallocations as isize;
        assert!(kept <= 2, "{preset:?} keeps more with each step: {change:?}");
    }
}

/// On several threads the passes may coincide in new ways, but never need more than all of them at once.
#[test]
fn threads_soon_have_all_the_memory_they_need() {
    let _one = COUNTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let one = warm(spec(Preset::Tiny, 64, 1)).allocated_bytes();
    let mut workload = warm(spec(Preset::Tiny, 64, 3));
    for _ in 0..5 {
        workload.step().unwrap();
    }
    assert!(workload.allocated_bytes() < 3 * one, "{} on three threads, {one} on one", workload.allocated_bytes());
}

/// Operations for one image of each batch, by the counter of the products.
const TINY: f64 = 578_462_720.0;
const TINY_BASELINE: f64 = 186_765_312.0;
const SMALL: f64 = 3_217_136_640.0;
const NUM_STEPS: usize = 4;
/// Small allocations of a step.
const BOOKKEEPING_PIECES: usize = 10_000;
/// Their bytes.
const BOOKKEEPING_BYTES: usize = 4 << 20;
