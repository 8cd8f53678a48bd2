//! What strategies read of a teacher, against PyTorch and whatever the threads are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlomae_model::choice::Choice;
use mlomae_model::lane::{CpuLane, Lane};
use mlomae_model::levels::{Cpu, passes};
use mlomae_model::masking::{MASKINGS, MaskRule};
use mlomae_model::{Arena, Buffer, Compute, Level, Model, ModelConfig, Params, Vector};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// The networks of a golden file with the strategy of that name, θ, and images.
fn golden(name: &str, strategy: &str) -> (Arc<Model>, Params, Buffer) {
    let bytes = std::fs::read(fixture(&format!("golden/{name}.safetensors"))).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let config: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let config = ModelConfig {
        image: number("image"),
        patch: number("patch"),
        channels: number("channels"),
        dim: number("dim"),
        depth: number("depth"),
        heads: number("heads"),
        dec_dim: number("dec_dim"),
        dec_depth: number("dec_depth"),
        dec_heads: number("dec_heads"),
        masking: Choice::of(*MASKINGS.iter().find(|kind| kind.name() == strategy).unwrap()),
        ..ModelConfig::default()
    };
    let model = Arc::new(Model::new(&config).unwrap());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |name: &str| {
        let view = file.tensor(name).unwrap();
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        values.collect::<Vec<f32>>()
    };
    let layout = model.layout(Level::Pretrain);
    let mut theta = vec![0.0; layout.len];
    for entry in &layout.entries {
        theta[entry.range()].copy_from_slice(&values(&format!("init.pretrain.{}", entry.name)));
    }
    let images = values("batch.pretrain0.x");
    (model, Arc::new(Buffer::from_vec(theta)), Buffer::from_vec(images))
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value.as_array() {
        Some(items) => items.iter().flat_map(numbers).collect(),
        None => vec![value.as_f64().unwrap()],
    }
}

#[test]
fn attention_and_tokens_are_those_of_pytorch() {
    for name in ["tiny", "rect"] {
        let text = std::fs::read_to_string(fixture(&format!("attention/{name}.json"))).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (model, theta, images) = golden(name, "attention");
        let cpu = Cpu::new(model.clone(), Compute::new(3, 2, Arena::new()).unwrap());
        let rollout = passes::attention_rollout(&cpu, &theta, &images);
        let expected_rollout = numbers(&expected["rollout"]);
        assert_eq!(rollout.len(), expected_rollout.len());
        for (got, expected) in rollout.iter().zip(expected_rollout) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{name}: {got} {expected}");
        }
        let tokens = passes::patch_tokens(&cpu, &theta, &images);
        let sums = tokens.chunks_exact(model.config.dim).flat_map(|token| {
            [token.iter().map(|&v| f64::from(v)).sum::<f64>(), token.iter().map(|&v| f64::from(v).abs()).sum()]
        });
        for (got, expected) in sums.zip(numbers(&expected["token_sums"])) {
            assert!((got - expected).abs() < 1e-4, "{name}: {got} {expected}");
        }
        let mut lane = CpuLane::serial(model.clone(), 2);
        let (theta, images): (Vector, Vector) = (theta.into(), images.into());
        let phi = Vector::from(model.init(Level::Mask, 1));
        let scored = lane.score(Some(&theta), &phi, &images, &MaskRule::BY_SCORE).unwrap();
        let (guide, expected) = (scored.guide.unwrap(), numbers(&expected["attention"]));
        assert_eq!(guide.len(), expected.len());
        for (got, expected) in guide.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{name}: {got} {expected}");
        }
        // Without a teacher it is an error, not a guess.
        assert!(lane.score(None, &phi, &images, &MaskRule::BY_SCORE).is_err());
    }
}

#[test]
fn what_is_read_depends_on_no_thread_and_on_the_weights() {
    for strategy in ["attention", "parts", "loss"] {
        let (model, theta, images) = golden("tiny", strategy);
        let mut other = theta.to_vec();
        other.iter_mut().for_each(|value| *value *= 1.1);
        let (images, phi) = (Vector::from(images), Vector::from(model.init(Level::Mask, 1)));
        let rule = MaskRule { seed: 5, step: 2, ..MaskRule::BY_SCORE };
        let of = |threads: usize, micro_batch: usize, theta: &Vector| {
            let compute = Compute::new(threads, 1, Arena::new()).unwrap().with_micro_batch(micro_batch);
            let scored =
                CpuLane::new(Cpu::new(model.clone(), compute)).score(Some(theta), &phi, &images, &rule).unwrap();
            (scored.order, scored.guide)
        };
        let (other, theta) = (Vector::from(Arc::new(Buffer::from_vec(other))), Vector::from(theta));
        let expected = of(1, 1, &theta);
        for (threads, micro_batch) in [(2, 1), (3, 2), (1, 4)] {
            let found = of(threads, micro_batch, &theta);
            assert!(found.0 == expected.0 && found.1 == expected.1, "{strategy}: {threads} threads");
        }
        let found = of(1, 1, &other);
        assert!(found.0 != expected.0 || found.1 != expected.1, "{strategy} does not read the weights");
        assert_eq!(expected.1.is_some(), strategy != "parts");
    }
}
