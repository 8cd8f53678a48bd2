//! `verify` on golden files of the reference implementation, intact and damaged.

use serde_json::Value;

use crate::place::{Place, fixture, read};

const FILES: [&str; 2] = ["tiny.safetensors", "rect.safetensors"];

/// Changes the first value of a tensor in the bytes of a safetensors file.
fn change(bytes: &mut [u8], tensor: &str, change: impl Fn(f32) -> f32) {
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    let data = 8 + usize::try_from(header_len).expect("length");
    let header: Value = serde_json::from_slice(&bytes[8..data]).expect("header");
    assert_eq!(header[tensor]["dtype"], "F32", "{tensor}");
    let offset = header[tensor]["data_offsets"][0].as_u64().expect("offset");
    let begin = data + usize::try_from(offset).expect("offset");
    let value = &mut bytes[begin..begin + 4];
    let changed = change(f32::from_le_bytes(value.try_into().expect("4 bytes")));
    value.copy_from_slice(&changed.to_le_bytes());
}

#[test]
fn both_golden_files_are_met() {
    let place = Place::new();
    for file in FILES {
        let path = fixture("golden").join(file);
        let path = path.to_str().expect("UTF-8");
        let table = place.succeed(&["verify", path]);
        assert!(table.lines().count() > 10 && !table.contains("FAILED"), "{table}");
        // Any number of threads gives the same bits, so the same errors.
        let one = place.succeed(&["verify", path, "--json"]);
        assert_eq!(one, place.succeed(&["verify", path, "--json", "--threads", "3"]));
        let report: Value = serde_json::from_str(&one).expect("JSON");
        assert_eq!(report["ok"], true);
        for check in report["checks"].as_array().expect("checks") {
            assert_eq!(check["ok"], true, "{check}");
            assert!(check["error"].as_f64() <= check["limit"].as_f64(), "{check}");
        }
    }
}

#[test]
fn a_precision_and_a_form_may_be_chosen() {
    let place = Place::new();
    let path = fixture("golden").join(FILES[0]);
    let path = path.to_str().expect("UTF-8");
    for form in ["clean", "published", "tangent"] {
        let table = place.succeed(&["verify", path, "--hypergradient", form]);
        assert!(table.contains(&format!("({form})")) && table.matches('(').count() == 1, "{table}");
    }
    let table = place.succeed(&["verify", path, "--precision", "bf16"]);
    assert!(table.contains("mask.hypergrad_exact (tangent)"), "{table}");
    let ended = place.run(&["verify", path, "--precision", "bf16", "--hypergradient", "clean"]);
    assert_eq!(ended.code, Some(1), "a finite difference in bf16 is noise: {ended:#?}");
    let lines = place.fail(2, &["verify", path, "--precision", "tf32"]);
    assert!(lines.iter().any(|line| line.contains("it has f32 and bf16")), "{lines:?}");
}

#[test]
fn trajectories_are_those_of_the_reference() {
    let place = Place::new();
    for file in FILES {
        let path = fixture("golden").join(file);
        let text = read(&path.with_extension("trajectory.txt"));
        let expected = std::str::from_utf8(&text).expect("UTF-8").lines().filter(|line| !line.starts_with('#'));
        let out = place.succeed(&["verify", path.to_str().expect("UTF-8"), "--outer", "40"]);
        assert_eq!(out.lines().count(), 40, "{out}");
        for (number, (line, expected)) in out.lines().zip(expected).enumerate() {
            let lap: Value = serde_json::from_str(line).expect("a line of JSON");
            assert_eq!(lap["outer"], number);
            let ours = [
                &lap["pretrain_losses"][0],
                &lap["mean_scores"][0],
                &lap["pretrain_losses"][1],
                &lap["mean_scores"][1],
                &lap["finetune_loss"],
                &lap["mask_loss"],
                &lap["hypergradient_norm"],
            ];
            for (ours, expected) in ours.iter().zip(expected.split(' ')) {
                let (ours, expected) = (ours.as_f64().expect("a number"), expected.parse::<f64>().expect("a number"));
                assert!((ours - expected).abs() < 1e-3 * expected, "{file} {number}: {ours} {expected}");
            }
        }
    }
}

#[test]
fn one_wrong_value_is_found_and_named() {
    let place = Place::new();
    let whole = read(&fixture("golden/tiny.safetensors"));
    type Change = fn(f32) -> f32;
    let wrong: [(&str, Change, &str); 4] = [
        ("expect.pretrain1.loss", |loss| loss * 1.001, "pretrain1.loss"),
        ("expect.pretrain0.mask", |mask| 1.0 - mask, "pretrain0.mask"),
        ("expect.mask.loss", |_| f32::NAN, "mask.loss"),
        ("batch.mask.x", |pixel| pixel + 3.0, "mask."),
    ];
    for (tensor, by, named) in wrong {
        let mut bytes = whole.clone();
        change(&mut bytes, tensor, by);
        place.write("wrong.safetensors", &bytes);
        let ended = place.run(&["verify", "wrong.safetensors"]);
        assert_eq!(ended.code, Some(1), "{tensor}: {ended:#?}");
        let mut failed = ended.out.lines().filter(|line| line.ends_with("FAILED"));
        assert!(failed.any(|line| line.starts_with(named)), "{tensor}: {}", ended.out);
        let ended = place.run(&["verify", "wrong.safetensors", "--json"]);
        assert_eq!(ended.code, Some(1), "{tensor}");
        let report: Value = serde_json::from_str(&ended.out).expect("JSON");
        assert_eq!(report["ok"], false, "{tensor}");
    }
}

#[test]
fn a_torn_golden_file_is_bad_data() {
    let place = Place::new();
    let whole = read(&fixture("golden/tiny.safetensors"));
    for length in [0, 7, 100, whole.len() - 1] {
        place.write("torn.safetensors", &whole[..length]);
        let lines = place.fail(65, &["verify", "torn.safetensors"]);
        assert!(lines.len() == 1 && lines[0].contains("torn.safetensors"), "{length}: {lines:?}");
    }
}

#[test]
fn shapes_that_the_file_cannot_be_about_are_bad_data() {
    let place = Place::new();
    let whole = read(&fixture("golden/tiny.safetensors"));
    let header_len = usize::try_from(u64::from_le_bytes(whole[..8].try_into().expect("8 bytes"))).expect("length");
    let header: Value = serde_json::from_slice(&whole[8..8 + header_len]).expect("header");
    let config: Value = serde_json::from_str(header["__metadata__"]["config"].as_str().expect("text")).expect("JSON");
    let encoder = ["image", "patch", "channels", "dim", "depth", "heads", "batch"];
    for name in encoder.into_iter().chain(["dec_dim", "dec_depth", "dec_heads", "mask_hidden", "classes"]) {
        assert!(config[name].is_u64(), "{name}");
        for value in [0u64, 1_000_000_000, u64::MAX] {
            let (mut header, mut config) = (header.clone(), config.clone());
            config[name] = value.into();
            header["__metadata__"]["config"] = config.to_string().into();
            let header = header.to_string().into_bytes();
            let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &whole[8 + header_len..]].concat();
            place.write("wrong.safetensors", &bytes);
            let lines = place.fail(65, &["verify", "wrong.safetensors"]);
            assert_eq!(lines.len(), 1, "{name} = {value}: {lines:?}");
        }
    }
}
