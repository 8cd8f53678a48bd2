//! Runs the cases of `tests/gpu/fake/selftest.cpp`, each in a process of its own: what the emulation must do, and bugs
//! of kernels and of their callers that it must tell.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::{Gpu, Precision, Priority, Stream};

fn program() -> PathBuf {
    let kernels = include_str!("../../../../tests/gpu/fake/selftest.cu");
    let folder =
        super::build::cached(kernels, |folder| super::build::link("selftest.cpp", &folder.join("selftest"), folder));
    folder.unwrap().join("selftest")
}

fn run(case: &str, environment: &[(&str, &str)]) -> (Output, String) {
    let output = Command::new(program()).arg(case).envs(environment.iter().copied()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

#[track_caller]
fn ends_well(case: &str, environment: &[(&str, &str)]) -> String {
    let (output, text) = run(case, environment);
    assert!(output.status.success() && text.contains("ok\n"), "{case}: {text}");
    text
}

/// Asserts that the process is ended by a signal after a line that holds all of `words`.
#[track_caller]
fn is_told(case: &str, words: &[&str]) {
    let (output, text) = run(case, &[]);
    assert_eq!(output.status.code(), None, "{case} ended by itself: {text}");
    let is_line = |line: &str| line.starts_with("emulated") && words.iter().all(|word| line.contains(word));
    assert!(text.lines().any(is_line), "{case}: {words:?} expected in {text:?}");
}

#[test]
fn kernels_run() {
    ends_well("kernels_without_barriers_are_calls", &[]);
    ends_well("warps_exchange", &[]);
    ends_well("tensor_cores_multiply", &[]);
    ends_well("limits_of_launches", &[]);
    ends_well("images_name_their_kernels", &[]);
}

#[test]
fn a_removed_barrier_changes_every_result() {
    ends_well("a_removed_barrier_is_seen", &[]);
}

#[test]
fn streams_graphs_and_copies_are_in_order() {
    ends_well("streams_run_in_any_order", &[]);
    ends_well("graphs_run_again", &[]);
    ends_well("pinned_copies_take_their_time", &[]);
    ends_well("threads_of_the_host_work_at_once", &[]);
}

#[test]
fn products_are_those_of_cublaslt() {
    ends_well("products_are_right", &[]);
    ends_well("products_are_refused", &[]);
    is_told("a_product_reads_too_far", &["reads A beyond its memory"]);
}

#[test]
fn a_missing_wait_is_named() {
    is_told("forgets_a_wait", &["a wait is missing", "add_one on stream 2 writes", "which add_one on stream"]);
    is_told("products_share_a_workspace", &["a wait is missing", "a product on stream 1 writes", "on stream 0 writes"]);
    ends_well("missing_waits_are_counted", &[("FAKE_CHECK", "count")]);
}

#[test]
fn faults_come_on_request() {
    ends_well("memory_ends", &[("FAKE_MEMORY", "10000")]);
    ends_well("the_device_is_lost", &[("FAKE_LOST_AFTER", "12")]);
    ends_well("there_is_no_device", &[("FAKE_NO_DEVICE", "1")]);
}

#[test]
fn accesses_outside_an_allocation_are_told() {
    is_told("writes_past_the_end", &["kernel write_at, block (0, 0, 0)", "byte 4000 of an allocation of 4000 bytes"]);
    is_told("writes_just_past_the_end", &["kernel write_at", "beyond the end"]);
    is_told("reads_past_the_end", &["kernel read_at", "byte 256 of an allocation of 256 bytes"]);
    is_told("reads_freed_memory", &["kernel read_at", "freed memory"]);
    is_told("gets_a_freed_pointer", &["kernel write_at", "no pointer to the device's memory"]);
    is_told("gets_a_pointer_of_the_host", &["kernel write_at", "no pointer to the device's memory"]);
    is_told("writes_past_shared_memory", &["kernel write_shared_at", "no device memory"]);
    is_told("reads_a_misaligned_vector", &["kernel read_vector", "misaligned vector"]);
    is_told("host_reads_device_memory", &["the host touches byte 256 of an allocation of 256 bytes"]);
}

#[test]
fn threads_that_do_not_meet_are_told() {
    is_told("waits_for_nobody", &["kernel stuck", "a barrier that not all of them reach"]);
    is_told("shuffles_with_absent_lanes", &["kernel shuffle_with_absent", "a lane that does not take part"]);
    is_told("diverges", &["kernel diverged", "at a vote and at a shuffle"]);
}

/// What [`child`] says in a process that finds the libraries as the program does: by the loader.
fn opened(environment: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "testing::tests::child", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", super::libraries().unwrap())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.split("says ").nth(1)).unwrap_or(&text).to_owned()
}

#[test]
#[ignore = "run by `the_loader_finds_the_libraries`"]
fn child() {
    let work = || {
        let gpu = Gpu::open()?;
        let stream = Stream::new(&gpu, Precision::F32, Priority::Normal)?;
        let x = stream.upload(&[1.0f32, -2.0]);
        stream.relu(x.view());
        Ok::<_, crate::DeviceError>(format!("{} {:?}", gpu.facts().name, stream.download(x.view())?))
    };
    println!("\nsays {}", work().unwrap_or_else(|error| error.to_string()));
}

#[test]
fn the_loader_finds_the_libraries() {
    assert_eq!(opened(&[]), "emulated GPU [1.0, 0.0]");
    assert!(opened(&[("FAKE_NO_DEVICE", "1")]).contains("CUDA_ERROR_NO_DEVICE"));
    assert_eq!(opened(&[("FAKE_CAPABILITY", "7.5")]), "emulated GPU has compute capability 7.5, 8.0 is needed");
    assert!(opened(&[("FAKE_MEMORY", "1000")]).starts_with("out of memory on the GPU: "));
    let good = (1..100).find(|num_calls| {
        let said = opened(&[("FAKE_LOST_AFTER", &num_calls.to_string())]);
        let is_lost = said.starts_with("the GPU failed in ") && said.contains("CUDA_ERROR_LAUNCH_FAILED")
            || said.starts_with("cuBLASLt refuses a product");
        assert!(is_lost || said.starts_with("emulated GPU"), "{said}");
        !is_lost
    });
    assert!(good.is_some_and(|num_calls| num_calls > 10), "{good:?}");
}
