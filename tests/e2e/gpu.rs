//! The program on an emulated GPU: the same binary and kernels below an emulated driver (`tests/gpu/fake`).

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use crate::place::{Ended, Place};

/// Folder of the emulated libraries.
fn libraries() -> &'static Path {
    static LIBRARIES: OnceLock<std::path::PathBuf> = OnceLock::new();
    LIBRARIES.get_or_init(|| mlomae_device::testing::libraries().expect("the emulated GPU"))
}

/// Runs the program to its end on the emulated GPU, with these variables.
fn emulated(place: &Place, variables: &[(&str, &str)], args: &[&str]) -> Ended {
    let mut command = place.command(args);
    command
        .env("LD_LIBRARY_PATH", libraries())
        .env("MLOMAE_KERNEL_CACHE", place.path("kernels"))
        .env("MLOMAE_GPU_CAREFUL", "1");
    command.envs(variables.iter().copied());
    let ended = Ended::of(command.output().expect("program starts"));
    assert!(!ended.err.contains("panicked"), "{args:?}: {ended:#?}");
    ended
}

pub(crate) fn succeed(place: &Place, variables: &[(&str, &str)], args: &[&str]) -> Ended {
    let ended = emulated(place, variables, args);
    assert_eq!(ended.code, Some(0), "{args:?} {variables:?}: {ended:#?}");
    ended
}

/// Trains `tiny.toml` for four outer iterations: graphs are captured in the second, and replayed from the third on.
fn train(place: &Place, run: &str, variables: &[(&str, &str)], args: &[&str]) -> Ended {
    let all = [&["train", "tiny.toml", "--run-dir", run, "--set", "engine=cuda", "--max-outer", "4"], args].concat();
    succeed(place, variables, &all)
}

#[test]
fn a_gpu_is_found_told_and_taken() {
    let place = Place::new();
    let report: Value = serde_json::from_str(&succeed(&place, &[], &["gpu", "info", "--json"]).out).expect("JSON");
    assert_eq!((&report["usable"], &report["problem"]), (&true.into(), &Value::Null), "{report}");
    assert!(report["devices"].as_array().is_some_and(|devices| devices.len() == 1), "{report}");
    let ended = succeed(&place, &[], &["check", "tiny.toml", "--set", "engine=auto"]);
    assert!(ended.out.contains("engine     cuda: ") && ended.out.contains("libcublasLt"), "{}", ended.out);
    for (variables, line) in [
        (&[("FAKE_NO_DEVICE", "1")][..], "engine = \"cuda\": "),
        (&[("FAKE_CAPABILITY", "7.5")][..], "compute capability 7.5, 8.0 is needed"),
        (&[("FAKE_DRIVER", "12040")][..], "the driver speaks 12.4; update it, or install nvidia-cuda-nvrtc-cu12"),
    ] {
        let ended = emulated(&place, variables, &["check", "tiny.toml", "--set", "engine=cuda"]);
        assert!(ended.code == Some(78) && ended.err.contains(line) && ended.err.lines().count() == 1, "{ended:#?}");
    }
}

#[test]
fn the_self_test_runs_every_operation_and_names_what_is_wrong() {
    let place = Place::new();
    let ended = succeed(&place, &[], &["gpu", "selftest"]);
    assert!(ended.err.is_empty() && ended.out.lines().all(|line| line.contains(" ok ")), "{ended:#?}");
    for operation in ["layer_norm_grad", "attention_tangent", "product", "graphs", "cross_entropy_f64", "adamw"] {
        let named = ended.out.lines().filter(|line| line.split("  ").next() == Some(operation));
        assert!(named.count() >= 1, "{operation}: {}", ended.out);
    }
    // A device whose kernels leave their results as they are, or whose products do.
    for (skipped, wrong) in [("gelu_grad_bf16", "gelu_grad (bf16)"), ("product", "product (tf32)")] {
        let ended = emulated(&place, &[("FAKE_SKIP", skipped)], &["gpu", "selftest", "--json"]);
        let report: Value = serde_json::from_str(&ended.out).expect("JSON");
        assert_eq!((ended.code, &report["ok"]), (Some(1), &false.into()), "{ended:#?}");
        assert!(ended.err.contains(wrong) && ended.err.lines().count() == 1, "{ended:#?}");
        let operations = report["operations"].as_array().expect("operations");
        let num_wrong = operations.iter().filter(|operation| operation["ok"] == false).count();
        assert!(num_wrong >= 1 && num_wrong < operations.len() / 4, "{num_wrong} of {}", operations.len());
        if skipped != "product" {
            assert_eq!(num_wrong, 1, "{report}");
        }
    }
    let ended = emulated(&place, &[("FAKE_LOST_AFTER", "3000")], &["gpu", "selftest"]);
    let line = &ended.err;
    assert!(ended.code == Some(70) && line.contains("the GPU failed in") && line.contains(", after "), "{ended:#?}");
    let ended = emulated(&place, &[("FAKE_NO_DEVICE", "1")], &["gpu", "selftest"]);
    assert!(ended.code == Some(78) && ended.err.contains("no GPU can be used: "), "{ended:#?}");
}

#[test]
fn graphs_are_on_off_or_refused() {
    let place = Place::new();
    let args = ["train", "tiny.toml", "--run-dir", "run", "--set", "engine=cuda", "--max-outer", "1", "--quiet"];
    let ended = emulated(&place, &[("MLOMAE_CUDA_GRAPHS", "off")], &args);
    let line = "MLOMAE_CUDA_GRAPHS must be 0 (no graphs) or 1 (graphs at any size), got off";
    assert!(ended.code == Some(78) && ended.err.contains(line) && ended.err.lines().count() == 1, "{ended:#?}");
}

#[test]
fn a_library_that_cannot_be_loaded_is_told_from_one_that_is_missing() {
    let place = Place::new();
    let folder = place.path("damaged");
    std::fs::create_dir(&folder).expect("folder");
    for name in ["libcuda.so", "libcuda.so.1", "libnvrtc.so"] {
        std::os::unix::fs::symlink(libraries().join(name), folder.join(name)).expect("link");
    }
    std::fs::write(folder.join("libcublasLt.so"), b"no library").expect("write");
    let folder = folder.to_string_lossy().into_owned();
    let only = [("LD_LIBRARY_PATH", &*folder), ("HOME", "/nowhere"), ("PATH", ""), ("VIRTUAL_ENV", "")];
    let ended = emulated(&place, &only, &["gpu", "info"]);
    if ended.code != Some(0) {
        assert!(
            ended.out.contains("libcublasLt cannot be loaded: ") && ended.out.contains("libcublasLt.so ("),
            "{ended:#?}"
        );
    }
}

#[test]
fn a_forecast_of_cores_is_refused_for_a_run_on_a_gpu() {
    let place = Place::new();
    train(&place, "run", &[], &["--quiet"]);
    let ended = emulated(&place, &[], &["simulate", "run", "--cores", "2,8"]);
    assert!(ended.code == Some(66) && ended.err.contains("computed on another device: cuda"), "{ended:#?}");
}

#[test]
fn networks_that_it_cannot_compute_are_refused_on_a_line() {
    let place = Place::new();
    let wide = ["--set", "model.dim=512", "--set", "model.heads=1"];
    let ended = emulated(&place, &[], &[&["train", "tiny.toml", "--set", "engine=cuda"], &wide[..]].concat());
    let refused = ended.code == Some(78) && ended.err.contains("attention heads up to 256 wide");
    assert!(refused && ended.err.lines().count() == 1, "{ended:#?}");
}

#[test]
fn a_missing_library_is_named_with_what_to_install() {
    let place = Place::new();
    for (missing, remedy) in [("libnvrtc", "nvidia-cuda-nvrtc"), ("libcublasLt", "nvidia-cublas")] {
        let folder = place.path(missing);
        std::fs::create_dir(&folder).expect("folder");
        for entry in std::fs::read_dir(libraries()).expect("libraries").flatten() {
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with(missing) && name.to_string_lossy().contains(".so") {
                std::os::unix::fs::symlink(entry.path(), folder.join(&name)).expect("link");
            }
        }
        let folder = folder.to_string_lossy().into_owned();
        let only = [("LD_LIBRARY_PATH", &*folder), ("HOME", "/nowhere"), ("VIRTUAL_ENV", ""), ("CONDA_PREFIX", "")];
        let ended = emulated(&place, &only, &["gpu", "info"]);
        if ended.code == Some(0) {
            continue; // This machine has the real one.
        }
        assert!(ended.out.contains(missing) && ended.out.contains(remedy), "{ended:#?}");
        let ended = emulated(&place, &only, &["train", "tiny.toml", "--set", "engine=cuda"]);
        assert!(ended.code == Some(78) && ended.err.contains(remedy) && ended.err.lines().count() == 1, "{ended:#?}");
        let ended = emulated(&place, &only, &["check", "tiny.toml", "--set", "engine=auto"]);
        assert!(ended.code == Some(0) && ended.out.contains("engine     cpu: "), "{ended:#?}");
    }
}

#[test]
fn golden_files_hold_in_every_precision() {
    let place = Place::new();
    for name in ["tiny", "rect"] {
        let file = format!("{}/fixtures/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        for precision in ["f32", "tf32", "bf16"] {
            let args = ["verify", &file, "--engine", "cuda", "--precision", precision, "--json"];
            let ended = emulated(&place, &[], &args);
            let report: Value = serde_json::from_str(&ended.out).expect("JSON");
            assert!(ended.code == Some(0) && report["engine"] == "cuda", "{name} {precision}: {}", ended.out);
        }
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_graphs_nor_on_the_order_of_streams_blocks_and_threads() {
    let place = Place::new();
    for (lag, precision, num_orders) in [("0", "f32", 10), ("1", "bf16", 40)] {
        let (lag, precision) = (format!("pipeline.lag={lag}"), format!("compute.precision={precision}"));
        let settings = ["--set", &lag, "--set", &precision, "--restart", "--quiet"];
        train(&place, "serial", &[("MLOMAE_CUDA_GRAPHS", "0")], &[&settings[..], &["--serial"]].concat());
        for order in 0..num_orders {
            let (seed, graphs) = ((2 + order).to_string(), (order % 3).min(1).to_string());
            train(&place, "threaded", &[("FAKE_SEED", &seed), ("MLOMAE_CUDA_GRAPHS", &graphs)], &settings);
            place.assert_same_end("serial", "threaded");
        }
    }
    let host = &place.run_record("threaded")["host"];
    assert!(host["engine"] == "cuda" && host["device"].as_str().is_some_and(|text| text.contains("driver")), "{host}");
}

#[test]
fn values_of_images_that_a_gpu_computes_are_those_of_the_host() {
    let place = Place::new();
    let (on_gpu, on_host) = (&[][..], &[("MLOMAE_CUDA_RAW_IMAGES", "0")][..]);
    for (crop, lag) in [("padded", 0), ("resized", 1)] {
        let (crop, lag) = (format!("data.augment.crop={crop}"), format!("pipeline.lag={lag}"));
        let sets = ["--set", &crop, "--set", &lag, "--set", "data.channels=3", "--set", "data.image=12"];
        let args = [&sets[..], &["--restart", "--quiet"]].concat();
        train(&place, "bytes", on_gpu, &args);
        train(&place, "values", on_host, &args);
        place.assert_same_end("bytes", "values");
    }
    // The same features too, and queues of a quarter of the bytes.
    let said = |variables, args: &[&str]| succeed(&place, variables, &[args, &["--set", "engine=cuda"]].concat()).out;
    let knn = ["eval", "knn", "bytes", "--json"];
    let accuracy = |variables| {
        let report: Value = serde_json::from_str(&said(variables, &knn)).expect("JSON");
        report["accuracy"].as_f64().expect("an accuracy")
    };
    assert_eq!(accuracy(on_gpu), accuracy(on_host));
    let queue = |variables| -> String {
        let said = said(variables, &["check", "tiny.toml"]);
        said.lines().find(|line| line.contains("load->score")).expect("the queue").to_owned()
    };
    // Six images of 16 x 16 pixels: with a window each, or four bytes a value.
    let (bytes, values) = (queue(on_gpu), queue(on_host));
    assert!(bytes.ends_with("each about 1.6 KiB") && values.ends_with("each about 6.1 KiB"), "{bytes} {values}");
}

#[test]
fn a_run_goes_on_after_its_gpu_was_lost_to_the_same_bits_and_on_another_engine() {
    let place = Place::new();
    let begin = |run: &'static str| ["train", "tiny.toml", "--run-dir", run, "--set", "engine=cuda", "--quiet"];
    succeed(&place, &[], &begin("straight"));
    // The later the device is lost, the more is done; a checkpoint is written after three of seven iterations.
    let lost = (6..40).find(|part| {
        let calls = (500 * part).to_string();
        let ended = emulated(&place, &[("FAKE_LOST_AFTER", &calls)], &[&begin("lost")[..], &["--restart"]].concat());
        assert!(ended.code != Some(0) && ended.err.contains("the GPU failed in"), "{ended:#?}");
        place.path("lost/checkpoints/latest").exists()
    });
    assert!(lost.is_some(), "no checkpoint before the device was lost");
    place.copy("lost", "elsewhere");
    succeed(&place, &[("FAKE_SEED", "9")], &["train", "--resume", "lost", "--quiet"]);
    place.assert_same_end("straight", "lost");
    let args = ["train", "--resume", "elsewhere", "--set", "engine=cpu", "--quiet"];
    let ended = succeed(&place, &[], &args);
    assert!(ended.err.contains("the run computed on cuda (") && ended.err.contains("goes on on cpu"), "{ended:#?}");
    let args = ["train", "--resume", "elsewhere", "--set", "engine=cuda", "--max-outer", "8", "--quiet"];
    let ended = succeed(&place, &[], &args);
    assert!(ended.err.contains("the run computed on cpu and goes on on cuda ("), "{ended:#?}");
    let ended = succeed(&place, &[], &["eval", "knn", "straight", "--set", "engine=cuda"]);
    assert!(ended.out.contains('%'), "{ended:#?}");
    succeed(&place, &[], &["visualize", "straight", "--set", "engine=cuda"]);
}

#[test]
fn a_gpu_that_is_too_small_or_lost_ends_a_run_with_a_line() {
    let place = Place::new();
    let args = ["train", "tiny.toml", "--run-dir", "small", "--set", "engine=cuda", "--quiet"];
    let ended = emulated(&place, &[("FAKE_MEMORY", "100000000")], &args);
    assert!(ended.code == Some(78) && ended.err.contains("cuda"), "refused before it begins: {ended:#?}");
    let forced = [&args[..], &["--restart", "--set", "run.memory_check=warn"]].concat();
    let ended = emulated(&place, &[("FAKE_MEMORY", "100000000")], &forced);
    assert!(ended.code.is_some_and(|code| code != 0) && ended.err.contains("out of memory on the GPU"), "{ended:#?}");
    let args = ["train", "tiny.toml", "--run-dir", "lost", "--set", "engine=cuda", "--quiet", "--restart"];
    for calls in ["300", "1500"] {
        let ended = emulated(&place, &[("FAKE_LOST_AFTER", calls)], &args);
        assert!(ended.code.is_some_and(|code| code != 0) && ended.err.contains("the GPU failed in"), "{ended:#?}");
    }
}
