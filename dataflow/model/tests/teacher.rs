//! What strategies read of a teacher, against PyTorch and whatever the threads are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlomae_model::choice::Choice;
use mlomae_model::hypergradient::{Clean, Hypergradient, Settings, Tangent};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::{CpuLane, Lane, Upstream};
use mlomae_model::levels::{Cpu, passes};
use mlomae_model::masking::difficulty::Difficulty;
use mlomae_model::masking::linear::PatchFeature;
use mlomae_model::masking::{MASKINGS, MaskInput, MaskRule, MaskWeights};
use mlomae_model::policy::Estimator;
use mlomae_model::{Arena, Buffer, Compute, Level, Model, ModelConfig, Params, Vector};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// The networks of a golden file with the strategy of that name, θ, and images.
fn golden(name: &str, strategy: &str) -> (Arc<Model>, Params, Buffer) {
    golden_with(name, strategy, |config| config)
}

/// As [`golden`], with more settings.
fn golden_with(name: &str, strategy: &str, set: fn(ModelConfig) -> ModelConfig) -> (Arc<Model>, Params, Buffer) {
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
    let model = Arc::new(Model::new(&set(config)).unwrap());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |name: &str| {
        let view = file.tensor(name).unwrap();
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        values.collect::<Vec<f32>>()
    };
    let layout = model.layout(Level::Pretrain);
    let mut theta = vec![0.0; layout.len];
    for entry in &layout.entries {
        let own = |k: usize| {
            let scale = if entry.name.contains("norm") && entry.name.ends_with("weight") { 1.0 } else { 0.0 };
            (scale + 0.3 * (0.7 * k as f64 + entry.name.len() as f64).sin()) as f32
        };
        let values = match entry.name.contains("_losspred") {
            // The predictor's, as in tests/fixtures/difficulty/make.py.
            true => (0..entry.len).map(own).collect(),
            false => values(&format!("init.pretrain.{}", entry.name)),
        };
        theta[entry.range()].copy_from_slice(&values);
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
    for (strategy, set) in [
        ("attention", all_features as fn(ModelConfig) -> ModelConfig),
        ("parts", all_features),
        ("loss", all_features),
        ("loss", predicted),
        ("linear", all_features),
    ] {
        let (model, theta, images) = golden_with("tiny", strategy, set);
        let mut other = theta.to_vec();
        other.iter_mut().for_each(|value| *value *= 1.1);
        let (images, phi) = (Vector::from(images), Vector::from(model.init(Level::Mask, 1)));
        let rule = MaskRule { seed: 5, step: 2, ..MaskRule::BY_SCORE };
        let of = |threads: usize, micro_batch: usize, theta: &Vector| {
            let compute = Compute::new(threads, 1, Arena::new()).unwrap().with_micro_batch(micro_batch);
            let scored =
                CpuLane::new(Cpu::new(model.clone(), compute)).score(Some(theta), &phi, &images, &rule).unwrap();
            (scored.order, scored.guide.or(scored.read))
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

/// The linear policy with every feature there is.
fn all_features(config: ModelConfig) -> ModelConfig {
    ModelConfig { mask_features: PatchFeature::ALL.to_vec(), mask_input: MaskInput::Pixels, ..config }
}

/// Each image's values less their mean, over their standard deviation.
fn standardised(values: &[f64], per_image: usize) -> Vec<f64> {
    let of_image = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / per_image as f64;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / per_image as f64).sqrt();
        values.iter().map(|v| (v - mean) / deviation).collect::<Vec<_>>()
    };
    values.chunks_exact(per_image).flat_map(of_image).collect()
}

#[test]
fn features_of_a_teacher_are_its_attention_and_its_losses() {
    for name in ["tiny", "rect"] {
        let text = std::fs::read_to_string(fixture(&format!("attention/{name}.json"))).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let only = |feature: fn() -> PatchFeature| {
            let (model, theta, images) = match feature() {
                PatchFeature::Loss => golden_with(name, "linear", |config| ModelConfig {
                    mask_features: vec![PatchFeature::Loss],
                    mask_input: MaskInput::Pixels,
                    ..config
                }),
                _ => golden_with(name, "linear", |config| ModelConfig {
                    mask_features: vec![PatchFeature::Attention],
                    mask_input: MaskInput::Pixels,
                    ..config
                }),
            };
            let phi = Vector::from(vec![1.0]);
            let rule = MaskRule { seed: 3, step: 8, ..MaskRule::BY_SCORE };
            let mut lane = CpuLane::serial(model.clone(), 2);
            let scored = lane.score(Some(&theta.into()), &phi, &images.into(), &rule).unwrap();
            let logits: Vec<f64> =
                scored.scores().unwrap().iter().map(|&p| (f64::from(p) / (1.0 - f64::from(p))).ln()).collect();
            (logits, model.config.num_patches())
        };
        let (logits, num_patches) = only(|| PatchFeature::Attention);
        for (got, expected) in logits.iter().zip(standardised(&numbers(&expected["attention"]), num_patches)) {
            assert!((got - expected).abs() < 2e-3, "{name}: {got} {expected}");
        }
        let (model, theta, images) = golden(name, "loss");
        let rule = MaskRule { seed: 3, step: 8, ..MaskRule::BY_SCORE };
        let phi = Vector::from(Vec::new());
        let losses = CpuLane::serial(model, 1).score(Some(&theta.into()), &phi, &images.into(), &rule).unwrap().guide;
        let losses: Vec<f64> = losses.unwrap().iter().map(|&loss| f64::from(loss)).collect();
        let (logits, num_patches) = only(|| PatchFeature::Loss);
        for (got, expected) in logits.iter().zip(standardised(&losses, num_patches)) {
            assert!((got - expected).abs() < 2e-3, "{name}: {got} {expected}");
        }
    }
}

#[test]
fn level_3_takes_the_features_that_level_1_has_read() {
    for mask_weights in [MaskWeights::Published, MaskWeights::Normalised] {
        let set = match mask_weights {
            MaskWeights::Published => all_features,
            _ => |config| ModelConfig { mask_weights: MaskWeights::Normalised, ..all_features(config) },
        };
        let (model, theta, images) = golden_with("tiny", "linear", set);
        let mut lane = CpuLane::serial(model.clone(), 2);
        let mut phi = model.init(Level::Mask, 1).to_vec();
        normals(&mut phi, 0.3, &mut tensor_rng(1, "phi"));
        let mut v = vec![0.0; theta.len()];
        normals(&mut v[..model.vit.encoder_len], 1.0, &mut tensor_rng(1, "v"));
        let mut teacher = theta.to_vec();
        teacher.iter_mut().for_each(|value| *value *= 1.1);
        let (theta, images, phi) = (Vector::from(theta), Vector::from(images), Vector::from(phi));
        let (v, teacher) = (Vector::from(v), Vector::from(teacher));
        let rule = MaskRule { seed: 5, step: 2, ..MaskRule::BY_SCORE };
        let scored = lane.score(Some(&teacher), &phi, &images, &rule).unwrap();
        let rule = MaskRule { read: scored.read.clone(), ..rule };
        // What was read is constant: at any θ the batch has the same scores, and θ need not be given.
        for theta in [Some(&theta), None] {
            let again = lane.score(theta, &phi, &images, &rule).unwrap();
            assert!(again.scores() == scored.scores() && again.order == scored.order);
        }
        let mut along = |form: &dyn Hypergradient, rule: &MaskRule| {
            let (theta, phi, images) = (&theta, &phi, &images);
            let at = Upstream { theta, phi, images, rule, estimator: Estimator::Weights, want_signal: false };
            let zero = lane.combined(0.0, &v, 0.0, &v).unwrap();
            let along = form.along(&mut lane, &at, zero, v.clone(), &Settings::default())?;
            Ok::<_, mlomae_model::ModelError>(along.gradient.to_host().unwrap().to_vec())
        };
        let (tangent, difference) = (along(&Tangent, &rule).unwrap(), along(&Clean, &rule).unwrap());
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let size = norm(&mut tangent.iter().map(|&value| f64::from(value)));
        let error = norm(&mut tangent.iter().zip(&difference).map(|(a, b)| f64::from(a - b)));
        assert!(size > 0.0 && error < 1e-2 * size, "{mask_weights:?}: {error} of {size}");
        // Nothing is guessed where it was not kept.
        let refused = along(&Tangent, &MaskRule { read: None, ..rule.clone() }).unwrap_err();
        assert!(refused.to_string().contains("level 3 needs what level 1's masks have read"), "{refused}");
        let short = MaskRule { read: Some([0.0; 3].into()), ..rule };
        assert!(along(&Tangent, &short).unwrap_err().to_string().ends_with("values of a teacher, got 3"));
    }
}

/// Difficulty predicted by a decoder of its own.
fn predicted(config: ModelConfig) -> ModelConfig {
    ModelConfig { mask_difficulty: Difficulty::Predicted, ..config }
}

#[test]
fn predictor_its_loss_and_its_masks_are_those_of_pytorch() {
    for name in ["tiny", "rect"] {
        let text = std::fs::read_to_string(fixture(&format!("difficulty/{name}.json"))).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (model, theta, images) = golden_with(name, "loss", predicted);
        let (theta, images) = (Vector::from(theta), Vector::from(images));
        let phi = Vector::from(Vec::new());
        let rule = MaskRule { seed: 5, step: 3, progress: 0.6, ..MaskRule::BY_SCORE };
        let mut first = None;
        for (threads, micro_batch) in [(1, 1), (2, 1), (3, 2), (1, 4)] {
            let compute = Compute::new(threads, 1, Arena::new()).unwrap().with_micro_batch(micro_batch);
            let mut lane = CpuLane::new(Cpu::new(model.clone(), compute));
            let scored = lane.score(Some(&theta), &phi, &images, &rule).unwrap();
            let guide = scored.guide.clone().unwrap();
            for (got, expected) in guide.iter().zip(numbers(&expected["difficulty"])) {
                assert!((f64::from(*got) - expected).abs() < 1e-5, "{name}: {got} {expected}");
            }
            let num_patches = model.config.num_patches();
            for (image, expected) in expected["masked"].as_array().unwrap().iter().enumerate() {
                let masked = (0..num_patches).filter(|patch| scored.order.is_masked(image * num_patches + patch));
                assert_eq!(masked.map(|patch| patch as f64).collect::<Vec<_>>(), numbers(expected), "{name}: {image}");
            }
            let g = lane.pretrain(&theta, &phi, &images, &scored).unwrap();
            let ranking_loss = g.ranking_loss.unwrap();
            for (got, expected) in [(g.loss, &expected["loss"]), (ranking_loss, &expected["ranking_loss"])] {
                assert!((got - expected.as_f64().unwrap()).abs() < 1e-6, "{name}: {got} {expected}");
            }
            let gradient = g.gradient.to_host().unwrap();
            let entries = model.layout(Level::Pretrain).entries.iter();
            for entry in entries.filter(|entry| entry.trainable) {
                let values = &gradient[entry.range()];
                let norm = values.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
                let along: f64 = values.iter().enumerate().map(|(k, &d)| (0.3 * k as f64).cos() * f64::from(d)).sum();
                let expected = numbers(&expected["gradient"][&entry.name]);
                // The sum with the cosine has the rounding of as many values as the tensor has.
                let limit = 2e-5 * expected[0] * (entry.len as f64).sqrt() + 1e-7;
                assert!((norm - expected[0]).abs() < limit, "{name} {}: {norm} {expected:?}", entry.name);
                assert!((along - expected[1]).abs() < limit, "{name} {}: {along} {expected:?}", entry.name);
            }
            let bits = (ranking_loss.to_bits(), gradient.iter().map(|d| d.to_bits()).collect::<Vec<_>>());
            assert!(*first.get_or_insert(bits.clone()) == bits, "{name}: {threads} threads, {micro_batch} images");
        }
    }
}

#[test]
fn only_predicted_difficulty_has_a_predictor_and_a_loss_of_it() {
    let mixture = |config| ModelConfig { mask_mixture: [("loss".to_owned(), 1.0)].into(), ..predicted(config) };
    for (strategy, set, has) in [
        ("loss", (|config| config) as fn(ModelConfig) -> ModelConfig, false),
        ("loss", predicted, true),
        ("random", predicted, false),
        ("mixture", mixture, true),
    ] {
        let (model, theta, images) = golden_with("tiny", strategy, set);
        assert_eq!(model.config.has_predictor(), has);
        let names = &model.layout(Level::Pretrain).entries;
        assert_eq!(names.iter().any(|entry| entry.name == "decoder_pred_losspred.weight"), has, "{strategy}");
        let (theta, images, phi) = (theta.into(), Vector::from(images), Vector::from(Vec::new()));
        let mut lane = CpuLane::serial(model, 2);
        let scored = lane.score(Some(&theta), &phi, &images, &MaskRule::BY_SCORE).unwrap();
        let g = lane.pretrain(&theta, &phi, &images, &scored).unwrap();
        assert_eq!(g.ranking_loss.is_some(), has, "{strategy}");
    }
}
