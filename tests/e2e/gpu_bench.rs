//! Measurements on the emulated GPU. Its times say nothing; what is counted is what a GPU would do.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::gpu::succeed;
use crate::place::Place;

/// Options of a measurement of few seconds on the emulated GPU.
const SHORT: [&str; 8] = ["bench", "--preset", "tiny", "--batch", "2", "--rounds", "1", "--no-pipeline"];

fn bench(place: &Place, args: &[&str]) -> Value {
    let all = [&SHORT[..], &["--json"], args].concat();
    serde_json::from_str(&succeed(place, &[], &all).out).expect("one JSON object")
}

#[test]
fn bench_counts_the_same_arithmetic_on_both_engines() {
    let place = Place::new();
    for settings in [&[][..], &["--set", "compute.precision=bf16"]] {
        let [on_gpu, on_cpu] = ["cuda", "cpu"].map(|engine| bench(&place, &[&["--engine", engine], settings].concat()));
        let number = |report: &Value, key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key}: {report}"));
        assert_eq!((&on_gpu["engine"], &on_cpu["engine"]), (&"cuda".into(), &"cpu".into()));
        let [of_gpu, of_cpu] = [&on_gpu, &on_cpu].map(|report| number(report, "gflop_outer"));
        assert!(of_gpu > 0.0 && of_gpu == of_cpu, "{of_gpu} {of_cpu}");
        // The workspace of a lane alone has 32 MiB.
        assert!(number(&on_gpu, "device_peak_bytes") > 32e6 && on_gpu["device_busy"].is_number(), "{on_gpu}");
        assert!(on_cpu["device_peak_bytes"].is_null() && on_cpu["device_busy"].is_null(), "{on_cpu}");
        // The processor's peak is no measure of another device.
        assert!(on_gpu["peak_gflops"].is_null() && on_gpu["peak_percent"].is_null(), "{on_gpu}");
        let precision = if settings.is_empty() { "f32" } else { "bf16" };
        assert_eq!(on_gpu["arithmetic"], precision);
    }
}

#[test]
fn bench_tells_of_the_device_and_of_a_peer_on_it() {
    let place = Place::new();
    // In place of a Python with torch.
    let peer = r#"#!/bin/sh
shift 2
echo "$*" >arguments
echo '{"about": "a stand-in"}'
while read -r word; do
    case $word in step) echo '{"ms": 5}' ;; *) echo '{"peak_bytes": 1000}' ;; esac
done
"#;
    place.write("peer", peer.as_bytes());
    std::fs::set_permissions(place.path("peer"), PermissionsExt::from_mode(0o755)).expect("permissions");
    let of_peer = ["--engine", "cuda", "--set", "compute.precision=tf32", "--peer", "./peer", "--peer-savings"];
    let report = bench(&place, &of_peer);
    let (ours, ratio) = (report["device_peak_bytes"].as_f64(), report["peer"]["memory_ratio"].as_f64());
    assert!(ours.is_some() && ours.map(|bytes| bytes / 1000.0) == ratio, "in the memory of the device: {report}");
    let arguments = std::fs::read_to_string(place.path("arguments")).expect("the peer's arguments");
    assert!(arguments.ends_with("--device cuda --precision tf32 --savings\n"), "{arguments}");
    let text = succeed(&place, &[], &[&SHORT[..], &of_peer].concat()).out;
    assert!(text.starts_with("tiny, batch 2, learned masks, tf32 on cuda ("), "{text}");
    for words in ["GFLOP/s; ", "% of the time at work", "device memory", "a stand-in"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("measured peak") && !text.contains("threads"), "of the processor alone: {text}");
    let message = place.fail_usage(&["bench", "--peer-savings"]);
    assert!(message.contains("--peer <PYTHON>"), "{message}");
}

#[test]
fn products_of_an_outer_iteration_are_timed_one_by_one() {
    let place = Place::new();
    let args = ["gpu", "products", "--preset", "tiny", "--batch", "2", "--ms", "1", "--peak", "64"];
    let ended = succeed(&place, &[], &[&args[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&ended.out).expect("JSON");
    let rows = report["products"].as_array().expect("products");
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key}: {of}"));
    let sum = |f: &dyn Fn(&Value) -> f64| rows.iter().map(f).sum::<f64>();
    let gflop = |row: &Value| 2e-9 * ["m", "n", "k", "calls"].map(|key| number(row, key)).iter().product::<f64>();
    assert!((sum(&gflop) / number(&report, "gflop_outer") - 1.0).abs() < 1e-9, "{report}");
    assert!((sum(&|row| number(row, "percent_of_time")) - 100.0).abs() < 1e-6, "{report}");
    // All but attention is products.
    let all = number(&bench(&place, &["--engine", "cuda", "--set", "compute.precision=bf16"]), "gflop_outer");
    assert!(number(&report, "gflop_outer") < all && number(&report, "gflop_outer") > 0.5 * all, "{all} {report}");
    assert!(rows.iter().all(|row| number(row, "percent_of_peak") > 0.0), "{report}");
    let text = succeed(&place, &[], &args).out;
    assert!(text.lines().count() == 2 + rows.len() && text.contains("bf16 to f32"), "{text}");
}

#[test]
fn tune_varies_what_a_gpu_has_no_part_in() {
    let place = Place::new();
    let args = ["tune", "tiny.toml", "--engine", "cuda", "--budget", "5", "--out", "tuned.toml"];
    let ended = succeed(&place, &[], &args);
    assert!(ended.out.contains("as configured") && ended.out.contains("bottleneck: "), "{ended:#?}");
    assert!(!ended.out.contains("micro_batch") && !ended.out.contains("encoder workers"), "{ended:#?}");
    assert!(place.path("tuned.toml").exists());
}

#[test]
fn the_start_and_the_course_of_a_run_tell_of_the_device() {
    let place = Place::new();
    let args = ["train", "tiny.toml", "--run-dir", "run", "--set", "engine=cuda", "--set", "pipeline.lag=1"];
    let ended = succeed(&place, &[], &[&args[..], &["--set", "compute.precision=tf32"]].concat());
    assert!(ended.err.contains("in tf32; hypergradient "), "no instructions of the processor: {}", ended.err);
    let timeline: Value = serde_json::from_str(&place.succeed(&["timeline", "run", "--json"])).expect("JSON");
    assert!(timeline["overlap"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{timeline}");
    assert!(timeline["device"].as_f64().is_some_and(|share| share > 0.0), "{timeline}");
    assert_eq!(timeline["lag"], 1);
}
