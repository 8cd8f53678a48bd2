//! Each level of an outer iteration, and the whole of it: `cargo bench -p mlomae-bench --bench levels -- [FILTER]`.
//!
//! The allocations shown are those of one call after warm-up; tensors are recycled and make none.

use divan::Bencher;
use mlomae_actors::measure::workload::{Workload, WorkloadSpec};
use mlomae_dataflow::config::Preset;

#[global_allocator]
static ALLOC: divan::AllocProfiler = divan::AllocProfiler::system();

const PRESETS: [Preset; 2] = [Preset::Tiny, Preset::Small];

fn main() {
    divan::main();
}

fn warm(preset: Preset) -> Workload {
    let mut workload = Workload::new(WorkloadSpec::new(preset)).expect("threads can be started");
    for _ in 0..2 {
        workload.step().expect("computes");
    }
    workload
}

#[divan::bench(args = PRESETS, sample_count = 10, sample_size = 1)]
fn score(bencher: Bencher<'_, '_>, preset: Preset) {
    let mut workload = warm(preset);
    bencher.bench_local(|| workload.score().expect("computes"));
}

#[divan::bench(args = PRESETS, sample_count = 10, sample_size = 1)]
fn pretrain(bencher: Bencher<'_, '_>, preset: Preset) {
    let mut workload = warm(preset);
    let scored = workload.score().expect("computes");
    bencher.bench_local(|| workload.pretrain(&scored).expect("computes"));
}

#[divan::bench(args = PRESETS, sample_count = 10, sample_size = 1)]
fn evaluate(bencher: Bencher<'_, '_>, preset: Preset) {
    let mut workload = warm(preset);
    bencher.bench_local(|| workload.evaluate().expect("computes"));
}

#[divan::bench(args = PRESETS, sample_count = 10, sample_size = 1)]
fn policy(bencher: Bencher<'_, '_>, preset: Preset) {
    let mut workload = warm(preset);
    let v = workload.evaluate().expect("computes");
    bencher.bench_local(|| workload.update_policy(v.clone()).expect("computes"));
}

#[divan::bench(args = PRESETS, sample_count = 10, sample_size = 1)]
fn outer_iteration(bencher: Bencher<'_, '_>, preset: Preset) {
    let mut workload = warm(preset);
    bencher.bench_local(|| workload.step().expect("computes"));
}
