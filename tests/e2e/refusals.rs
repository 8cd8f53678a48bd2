//! Bad input is refused with one clear line and a specific exit code.

use crate::place::{Place, file_names, fixture, read};

#[test]
fn unknown_keys_are_refused_with_what_was_meant() {
    let place = Place::new();
    let lines = place.fail(78, &["train", "tiny.toml", "--set", "pretrain.warmup_step=3"]);
    assert!(lines[0].starts_with("pretrain.warmup_step: unknown key"), "{lines:?}");
    assert!(lines[0].contains("did you mean") && lines[0].contains("warmup_steps"), "{lines:?}");
    assert!(!place.path("runs").exists(), "nothing was begun");
}

#[test]
fn all_errors_of_a_configuration_come_at_once() {
    let place = Place::new();
    let args = ["--set", "mask.ratio=2", "--set", "model.heads=5", "--set", "actors.loud.workers=1"];
    for command in ["train", "check"] {
        let mut all = vec![command, "tiny.toml"];
        all.extend(args);
        let lines = place.fail(78, &all);
        for key in ["mask.ratio", "model.heads", "actors.loud"] {
            assert_eq!(lines.iter().filter(|line| line.contains(key)).count(), 1, "{key}: {lines:?}");
        }
    }
}

#[test]
fn broken_toml_is_refused_with_line_and_column() {
    let place = Place::new();
    place.write("broken.toml", b"seed = 1\n[data\nformat = 3\n");
    let lines = place.fail(78, &["train", "broken.toml"]);
    assert!(lines[0].starts_with("broken.toml:2:"), "{lines:?}");
}

#[test]
fn what_is_not_there_is_no_input() {
    let place = Place::new();
    let data = ["--set", "data.format=auto", "--set", "data.path=no/such/data"];
    for command in ["train", "check"] {
        let mut args = vec![command, "tiny.toml"];
        args.extend(data);
        let lines = place.fail(66, &args);
        assert!(lines.len() == 1 && lines[0].contains("no/such/data"), "{lines:?}");
    }
    for args in [
        &["train", "no/such.toml"][..],
        &["train", "--resume", "no/such"],
        &["inspect", "no/such"],
        &["verify", "no/such"],
        &["visualize", "no/such"],
        &["logs", "tail", "no/such"],
        &["logs", "export", "no/such"],
        &["data", "info", "no/such"],
    ] {
        let lines = place.fail(66, args);
        assert!(lines.len() == 1 && lines[0].contains("no/such"), "{args:?}: {lines:?}");
    }
}

#[test]
fn corrupt_data_is_bad_data_and_named() {
    let place = Place::new();
    place.succeed(&["data", "synthetic", "shapes", "--num-train=40", "--num-test=16", "--image=16", "--channels=1"]);
    let file = place.path("shapes/train-00000-of-00001.parquet");
    let whole = read(&file);
    std::fs::write(&file, &whole[..whole.len() / 2]).expect("write");
    std::fs::create_dir(place.path("cifar")).expect("folder");
    for name in file_names(&fixture("readers/cifar10-bin")) {
        let mut bytes = read(&fixture("readers/cifar10-bin").join(&name));
        if name == "data_batch_3.bin" {
            bytes.pop();
        }
        place.write(&format!("cifar/{name}"), &bytes);
    }
    for (path, format, culprit) in
        [("shapes", "hf-parquet", "train-00000-of-00001.parquet"), ("cifar", "cifar-bin", "data_batch_3.bin")]
    {
        let keys = [format!("data.path={path}"), format!("data.format={format}")];
        for args in [
            &["train", "tiny.toml", "--set", &keys[0], "--set", &keys[1]][..],
            &["data", "info", path, "--format", format],
        ] {
            let lines = place.fail(65, args);
            assert!(lines.len() == 1 && lines[0].contains(culprit), "{args:?}: {lines:?}");
        }
    }
}

#[test]
fn a_file_in_the_place_of_the_runs_is_an_io_error() {
    let place = Place::new();
    place.write("taken", b"");
    let lines = place.fail(74, &["train", "tiny.toml", "--set", "run.root=taken"]);
    assert!(lines[0].contains("taken"), "{lines:?}");
}

#[test]
fn numbers_that_are_not_finite_end_the_run_with_the_last_good_checkpoint() {
    let place = Place::new();
    // A decay that multiplies all weights by -9 at each step.
    let args = ["train", "tiny.toml", "--run-dir=run", "--max-outer=2000", "--set", "checkpoint.every_steps=10"];
    let decay = ["policy.lr=10", "policy.weight_decay=1", "policy.schedule=constant"].map(|key| ["--set", key]);
    let lines = place.fail(70, &[&args[..], decay.as_flattened()].concat());
    assert!(lines.len() == 1 && lines[0].contains("not finite at step"), "{lines:?}");
    let record = place.run_record("run");
    assert_eq!((&record["status"], &record["exit_code"]), (&"failed".into(), &70.into()));
    assert_eq!(record["error"], lines[0]);
    assert_eq!(place.live_streams("run"), Vec::<String>::new(), "the logs are sealed");
    let inspected = place.succeed(&["inspect", "run", "--tensors"]);
    assert!(!inspected.contains("NaN") && !inspected.contains("inf"), "{inspected}");
    // It happens again at the same step.
    assert_eq!(place.fail(70, &["train", "--resume", "run", "--quiet"]), lines);
}

#[test]
fn check_decodes_the_images_and_names_the_bad_ones() {
    let place = Place::new();
    assert!(place.succeed(&["check", "tiny.toml"]).contains("images     all 106 decoded"));
    for split in ["train", "test"] {
        for class in ["ant", "bee"] {
            std::fs::create_dir_all(place.path(&format!("data/{split}/{class}"))).expect("folder");
            for number in 0..40u8 {
                let image = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([number + (x * y) as u8]));
                image.save(place.path(&format!("data/{split}/{class}/{number:02}.png"))).expect("saved");
            }
        }
    }
    let args = ["check", "tiny.toml", "--set", "data.path=data", "--set", "data.format=image-folder"];
    let normalised = ["--set", "data.mean=[0.5]", "--set", "data.std=[0.25]"];
    assert!(place.succeed(&args).contains("images     all 160 decoded"));
    let bad = ["data/train/ant/07.png", "data/train/bee/31.png", "data/test/bee/20.png"];
    for name in bad {
        let bytes = read(&place.path(name));
        place.write(name, &bytes[..bytes.len() - 20]);
    }
    for settings in [&[][..], &normalised] {
        let lines = place.fail(65, &[&args[..], settings].concat());
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(bad.iter().all(|name| lines.iter().any(|line| line.contains(name))), "{lines:?}");
    }
}

#[test]
fn a_precision_that_the_processor_lacks_is_refused_and_a_doubtful_form_is_told() {
    let place = Place::new();
    for command in ["train", "check"] {
        let lines = place.fail(78, &[command, "tiny.toml", "--set", "compute.precision=tf32"]);
        assert!(lines.len() == 1 && lines[0].contains("compute.precision tf32"), "{lines:?}");
        assert!(lines[0].contains("it has f32 and bf16"), "{lines:?}");
    }
    let bf16 = ["check", "tiny.toml", "--set", "compute.precision=bf16"];
    let told = place.succeed(&bf16);
    assert!(told.contains("bf16") && told.contains("tangent") && !told.contains("mostly rounding"), "{told}");
    let told = place.succeed(&[&bf16[..], &["--set", "method.hypergradient=clean"]].concat());
    assert!(told.contains("mostly rounding"), "{told}");
    for former in ["amx-bf16", "amx-bf16x2"] {
        let lines = place.fail(2, &["check", "tiny.toml", "--isa", former]);
        assert!(lines[0].contains("--set compute.precision=bf16"), "{lines:?}");
    }
}
