//! The golden files, at one and at several threads.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use mlomae_model::Precision;
use mlomae_model::choice::Choice;
use mlomae_model::golden::{Golden, GoldenTensor, How};
use mlomae_model::hypergradient::FORMS;
use mlomae_model::lane::cpu::Cpus;
use safetensors::{Dtype, SafeTensors};

fn load(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name);
    let bytes = std::fs::read(&path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let config = Golden::parse_config(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let values = match view.dtype() {
            Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I64 => {
                view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect()
            }
            other => panic!("unexpected type {other:?}"),
        };
        tensors.insert(name, GoldenTensor { shape: view.shape().to_vec(), values });
    }
    Golden { config, tensors }
}

#[test]
fn golden_files_are_met() {
    for name in ["tiny.safetensors", "rect.safetensors"] {
        let golden = load(name);
        let checks = golden.verify(1, How::default()).unwrap();
        for check in &checks {
            println!("{name} {:60} {:9.2e} limit {:.0e} {}", check.quantity, check.error, check.limit, check.ok);
        }
        assert!(checks.iter().all(|c| c.ok), "{name}: {:#?}", checks.iter().filter(|c| !c.ok).collect::<Vec<_>>());
        assert!(checks.len() > 20);
        let threaded = golden.verify(3, How::default()).unwrap();
        for (a, b) in checks.iter().zip(&threaded) {
            assert_eq!(a.error.to_bits(), b.error.to_bits(), "{} differs between 1 and 3 threads", a.quantity);
        }
    }
}

#[test]
fn a_changed_weight_or_expectation_is_noticed() {
    for (tensor, quantity) in [
        ("init.pretrain.blocks.0.attn.qkv.weight", "pretrain0.loss"),
        ("expect.mask.hypergrad.output_layer.bias", "mask.hypergrad (clean)"),
        ("expect.mask.v_encoder.blocks.0.norm1.bias", "mask.v_encoder"),
    ] {
        let mut golden = load("rect.safetensors");
        golden.tensors.get_mut(tensor).unwrap().values.iter_mut().for_each(|v| *v *= 1.01);
        let checks = golden.verify(1, How::default()).unwrap();
        let hit = checks.iter().find(|c| c.quantity.starts_with(quantity)).unwrap();
        assert!(!hit.ok, "{tensor}: {hit:?}");
    }
}

/// One line for each outer iteration, all on the file's batches, by float64 PyTorch: pretrain0 loss, mean score,
/// pretrain1 loss, mean score, finetune loss, mask loss, norm of the hypergradient.
fn expected_trajectory(name: &str) -> Vec<Vec<f64>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(' ').map(|number| number.parse().unwrap()).collect()).collect()
}

#[test]
fn trajectories_of_forty_outer_iterations_are_met() {
    for name in ["tiny", "rect"] {
        let expected = expected_trajectory(&format!("{name}.trajectory.txt"));
        assert_eq!(expected.len(), 40);
        let mut laps = Vec::new();
        let golden = load(&format!("{name}.safetensors"));
        golden
            .trajectory(&Cpus, 2, How::default(), 40, &mut |lap| {
                laps.push(lap.clone());
                true
            })
            .unwrap();
        let mut worst: f64 = 0.0;
        for (lap, expected) in laps.iter().zip(&expected) {
            let ours = [
                lap.pretrain_losses[0],
                lap.mean_scores[0],
                lap.pretrain_losses[1],
                lap.mean_scores[1],
                lap.finetune_loss,
                lap.mask_loss,
                lap.hypergradient_norm,
            ];
            for (ours, expected) in ours.iter().zip(expected) {
                worst = worst.max((ours - expected).abs() / expected);
            }
            assert!(worst < 1e-3, "{name} {}: {worst:e}\n{ours:?}\n{expected:?}", lap.outer);
        }
        println!("{name}: {worst:.1e}");
        assert_eq!(laps.len(), 40);
    }
}

/// A golden file with a head of more than 2^18 values, so that AdamW's sweep over it is split among threads.
fn with_a_wide_head() -> Golden {
    const NUM_CLASSES: usize = 9_000;
    let mut golden = load("tiny.safetensors");
    let num_before = std::mem::replace(&mut golden.config.classes, NUM_CLASSES);
    for (name, tensor) in &mut golden.tensors {
        if name.ends_with(".head.weight") || name.ends_with(".head.bias") {
            assert_eq!(tensor.shape[0], num_before, "{name}");
            tensor.shape[0] = NUM_CLASSES;
            let len = tensor.shape.iter().product();
            tensor.values = tensor.values.iter().copied().cycle().take(len).collect();
        }
    }
    golden
}

#[test]
fn a_wide_head_is_verified_on_any_number_of_threads() {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let golden = with_a_wide_head();
        for num_threads in [1, 2, 3] {
            let checks = golden.verify(num_threads, How::default()).unwrap();
            let errors: Vec<_> = checks.into_iter().map(|check| (check.quantity, check.error.to_bits())).collect();
            // The receiver is gone if the test timed out.
            let _ = sender.send(errors);
        }
    });
    let next = || receiver.recv_timeout(Duration::from_secs(120)).expect("it hangs or has failed");
    let (one, two, three) = (next(), next(), next());
    assert!(one.len() > 20, "{one:?}");
    assert!(one == two && one == three, "the number of threads changes nothing");
}

/// bf16 is held to wider limits, and still gives the same bits on any number of threads. Finite differences are noise
/// there.
#[test]
fn golden_files_are_met_in_bf16() {
    for name in ["tiny.safetensors", "rect.safetensors"] {
        let golden = load(name);
        let how = How { precision: Precision::Bf16, form: None };
        let checks = golden.verify(1, how).unwrap();
        for check in &checks {
            println!("{name} {:60} {:9.2e} limit {:.0e} {}", check.quantity, check.error, check.limit, check.ok);
        }
        assert!(checks.iter().all(|c| c.ok), "{name}: {:#?}", checks.iter().filter(|c| !c.ok).collect::<Vec<_>>());
        let threaded = golden.verify(3, how).unwrap();
        for (a, b) in checks.iter().zip(&threaded) {
            assert_eq!(a.error.to_bits(), b.error.to_bits(), "{} differs between 1 and 3 threads", a.quantity);
        }
        for form in FORMS {
            let checks = golden.verify(2, How { form: Some(Choice::of(*form)), ..how }).unwrap();
            for check in checks.iter().filter(|check| check.quantity.contains("hypergrad")) {
                println!("{name} {:60} {:9.2e}", check.quantity, check.error);
                assert_eq!(check.ok, form.name() == "tangent", "{name}: {check:?}");
            }
        }
    }
}
