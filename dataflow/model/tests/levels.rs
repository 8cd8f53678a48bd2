//! Properties of the three levels that the golden files do not cover: every masking network of the list, any number of
//! threads, and the two forms of the hypergradient.

use std::sync::Arc;

use mlomae_model::MaskInput;
use mlomae_model::algorithm::{Batches, Constants, State, outer_iteration};
use mlomae_model::config::{ModelConfig, PosEmbed};
use mlomae_model::engine::dfdx_cpu::DfdxCpu;
use mlomae_model::engine::{Engine, HostIo};
use mlomae_model::hypergradient::{Carried, FORMS, Hypergradient, Settings};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::{CpuLane, LabelledImages};
use mlomae_model::levels::finetune::{self, task_gradient};
use mlomae_model::levels::mask::{self, along, direction, direction_published};
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::levels::passes::{cls, features};
use mlomae_model::levels::score::{embedding, patches, score};
use mlomae_model::levels::vectors::{sum, widen};
use mlomae_model::levels::{Cpu, Labelled, pretrain};
use mlomae_model::masking::{MASKINGS, MaskRule, MaskSelect, MaskWeights, MaskingChoice, Needs};
use mlomae_model::parallel::arena::{Arena, Buffer, Params};
use mlomae_model::policy::Estimator;
use mlomae_model::tasks::{Noise, Targets};
use mlomae_model::{Compute, Layout, Level, Model, PerLevel, Precision, Vector};

fn config(masking: &str, mask_input: MaskInput, pos_embed: PosEmbed) -> ModelConfig {
    ModelConfig {
        image: 12,
        patch: 3,
        channels: 1,
        dim: 24,
        depth: 2,
        heads: 3,
        dec_dim: 16,
        dec_depth: 1,
        dec_heads: 2,
        pos_embed,
        mask_ratio: 0.6,
        masking: MaskingChoice::by_name(masking).unwrap(),
        mask_input,
        mask_hidden: 20,
        num_classes: 4,
        ..ModelConfig::default()
    }
}

fn all_forms() -> Vec<ModelConfig> {
    let mut forms = Vec::new();
    for net in MASKINGS.iter().filter(|net| net.is_learned()) {
        for input in [MaskInput::Embedding, MaskInput::Pixels] {
            let pos_embed = if forms.len() % 2 == 0 { PosEmbed::Trained } else { PosEmbed::Frozen };
            let config = config(net.name(), input, pos_embed);
            let reads = if input == MaskInput::Embedding { Needs::Embedding } else { Needs::Pixels };
            // Some read the pixels whatever the input.
            if Model::new(&config).unwrap().masking.needs() == reads {
                forms.push(config);
            }
        }
    }
    forms
}

fn draw(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    normals(&mut values, 1.0, &mut tensor_rng(9, name));
    values
}

struct World {
    model: Arc<Model>,
    theta: Params,
    head: Params,
    phi: Params,
    x: [Vec<f32>; 3],
    y: [Targets; 2],
}

const BATCH: usize = 6;

/// Smaller than the published 0.01, which leaves an O(ε²) error of 1e-3 on these small random networks, and small
/// enough that no mask flips between θ − εv and θ + εv: there L_m jumps, and no finite difference converges.
fn alpha(config: &ModelConfig) -> f64 {
    match (config.masking.name(), config.mask_input) {
        ("token-mlp", MaskInput::Embedding) => 0.001,
        _ => 0.003,
    }
}

fn world(config: &ModelConfig) -> World {
    let model = Arc::new(Model::new(config).unwrap());
    let images = |name: &str| draw(name, BATCH * config.image_values());
    let targets =
        |shift: usize| Targets::Classes((0..BATCH).map(|i| ((i + shift) % config.num_classes) as i32).collect());
    World {
        theta: model.init(Level::Pretrain, 1),
        head: model.init(Level::Finetune, 1),
        phi: model.init(Level::Mask, 1),
        x: [images("p"), images("f"), images("v")],
        y: [targets(0), targets(1)],
        model,
    }
}

impl World {
    fn cpu(&self, compute: Compute) -> Cpu {
        Cpu::new(self.model.clone(), compute)
    }
}

fn rule(explore: f64) -> MaskRule {
    MaskRule { seed: 77, step: 3, explore, ..MaskRule::BY_SCORE }
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |v: Vec<f64>| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect());
    difference / norm(b.iter().map(|&b| f64::from(b)).collect())
}

/// The results of one outer iteration: level-1 gradient, [v1, w], and the hypergradient by the clean and the published
/// passes.
fn iterate(world: &World, cpu: &Cpu, explore: f64) -> (Buffer, [Buffer; 2], [Vec<f32>; 2]) {
    let World { model, theta, head, phi, x, y } = world;
    let alpha = alpha(&model.config);
    let rule = rule(explore);
    let scored = score(cpu, Some(theta), phi, &x[0], &rule).unwrap();
    let level1 = pretrain::gradient(cpu, theta, phi, &x[0], &scored).unwrap();
    let f = Labelled { images: &x[1], targets: &y[0] };
    let v = Labelled { images: &x[2], targets: &y[1] };
    let level2 = |keep| finetune::gradient(cpu, theta, &widen(head), f, None, keep).unwrap();
    let kept = level2(true);
    assert_eq!(kept.gradient[..], level2(false).gradient[..]);
    let c: Vec<f32> = head.iter().zip(kept.gradient.iter()).map(|(c, g)| c - 0.1 * g).collect();
    let c = widen(&c);
    let clean = direction(cpu, theta, &c, kept.recorded.unwrap(), f, v, alpha).unwrap();
    let published = direction_published(cpu, theta, &c, f, v, alpha, &|_| None).unwrap();
    assert_eq!((clean.loss, &clean.figures, &clean.v0), (published.loss, &published.figures, &published.v0));
    assert!(relative(&clean.v1, &published.v1) < 1e-3, "v1 {}", relative(&clean.v1, &published.v1));
    assert!(relative(&clean.w, &published.w) < 1e-5);
    let along = |v: &[f32]| along(cpu, theta, v, phi, &x[0], &rule, alpha).unwrap();
    let summed = along(&sum(&cpu.compute, &clean.v1, &clean.w)).to_vec();
    let (direct, indirect) = (along(&published.w), along(&published.v1));
    let both = direct.iter().zip(indirect.iter()).map(|(a, b)| a + b).collect();
    let mask::Direction { v1, w, .. } = clean;
    (level1.gradient, [v1, w], [summed, both])
}

#[test]
fn clean_equals_published_without_dropout_in_every_form() {
    for (i, config) in all_forms().iter().enumerate() {
        let world = world(config);
        let cpu = world.cpu(Compute::serial(4));
        let (_, _, [clean, published]) = iterate(&world, &cpu, if i == 3 { 0.25 } else { 0.0 });
        let error = relative(&clean, &published);
        println!("{} {:?}: {error:.1e}", config.masking, config.mask_input);
        assert!(error < 1e-3, "{} {:?}: {error:e}", config.masking, config.mask_input);
        assert!(clean.iter().any(|&v| v != 0.0));
    }
}

/// The forward-mode derivative is the limit of the difference, for every masking network and input.
#[test]
fn the_tangent_is_what_the_difference_tends_to() {
    for (i, config) in all_forms().iter().enumerate() {
        let world = world(config);
        let cpu = world.cpu(Compute::serial(4));
        let World { model, theta, phi, x, .. } = &world;
        // Zero on the decoder and on frozen weights, as v1 + w is.
        let mut v = draw("direction", theta.len());
        v[model.vit.encoder_len..].fill(0.0);
        model.vit.layout.zero_frozen(&mut v);
        let v: Params = Arc::new(Buffer::from_vec(v));
        let rule = MaskRule { shuffle_scores: i % 2 == 1, ..rule(if i == 3 { 0.25 } else { 0.0 }) };
        let tangent = mask::tangent(&cpu, theta, &v, phi, &x[0], &rule).unwrap();
        // The error of the difference falls with ε, until rounding takes over.
        let error = [1.0, 0.3, 0.1]
            .map(|factor| along(&cpu, theta, &v, phi, &x[0], &rule, factor * alpha(config)).unwrap())
            .map(|difference| relative(&difference, &tangent))
            .into_iter()
            .fold(f64::INFINITY, f64::min);
        println!("{} {:?}: {error:.1e}", config.masking, config.mask_input);
        assert!(error < 5e-3, "{} {:?}: {error:e}", config.masking, config.mask_input);
        let threaded = world.cpu(Compute::new(3, 4, Arena::new()).unwrap());
        assert_eq!(mask::tangent(&threaded, theta, &v, phi, &x[0], &rule).unwrap()[..], tangent[..]);
    }
}

#[test]
fn any_number_of_threads_and_any_micro_batch_gives_the_same_bits() {
    for config in all_forms() {
        let world = world(&config);
        let (gradient, vs, hyper) = iterate(&world, &world.cpu(Compute::serial(1)), 0.25);
        for (threads, micro_batch) in [(1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (3, 4), (5, 1)] {
            let compute = Compute::new(threads, 1, Arena::new()).unwrap().with_micro_batch(micro_batch);
            // Twice, so that the second run gets recycled buffers with stale contents.
            for _ in 0..2 {
                let (g, v, h) = iterate(&world, &world.cpu(compute.clone()), 0.25);
                assert_eq!(g[..], gradient[..]);
                assert_eq!((&v[0][..], &v[1][..]), (&vs[0][..], &vs[1][..]));
                assert_eq!(h, hyper);
            }
        }
    }
}

/// Three outer iterations of each form in each precision, on any threads and micro-batches.
#[test]
fn the_algorithm_gives_the_same_bits_on_any_threads() {
    let state_after =
        |world: &World, form: &'static dyn Hypergradient, settings, select, precision, compute: Compute| {
            let World { model, theta, head, phi, x, y } = world;
            let adamw = PerLevel::from_fn(|level| AdamW::new(AdamWConfig::default(), model.layout(level)));
            let [theta, c, phi] = [theta, head, phi].map(|values| Vector::from(values.clone()));
            let mut state = State { theta, c, phi, adamw, carried: Carried::default() };
            let [x_p, x_f, x_v] = [0, 1, 2].map(|i| Vector::from(x[i].clone()));
            let constants = Constants {
                form,
                settings,
                rates: PerLevel { pretrain: &|_| 1e-3, finetune: &|_| 1e-2, mask: &|_| 1e-2 },
                rule: &|step| MaskRule { step, select, ..rule(0.25) },
                noise: &|outer, pass| Some(Noise { rate: 0.2, seed: 1, outer, pass, first_image: 0 }),
            };
            let batches = Batches {
                pretrain: &[x_p.clone(), x_p],
                finetune: LabelledImages { images: &x_f, targets: &y[0] },
                validation: LabelledImages { images: &x_v, targets: &y[1] },
            };
            let mut lane = CpuLane::new(world.cpu(compute).with_precision(precision));
            for outer in 0..3 {
                outer_iteration(&mut lane, &constants, &mut state, &batches, outer, &mut |_| {}).unwrap();
            }
            [state.theta, state.c, state.phi].map(|vector| vector.to_host().unwrap().to_vec())
        };
    for config in all_forms() {
        let as_published = Settings { alpha: alpha(&config), ..Settings::default() };
        let others = Settings {
            estimator: Estimator::Both,
            precondition: true,
            average: 2,
            ridge_bank: 2,
            cg_steps: 3,
            ..as_published
        };
        let mut variants = vec![(MaskWeights::Published, as_published, MaskSelect::Score)];
        if config.mask_input == MaskInput::Pixels {
            variants.push((MaskWeights::Normalised, others, MaskSelect::Sample));
            variants.push((MaskWeights::None, others, MaskSelect::Sample));
            let weights = Settings { estimator: Estimator::Weights, ..others };
            variants.push((MaskWeights::Normalised, weights, MaskSelect::Random));
        }
        for (form, (mask_weights, settings, select)) in
            FORMS.iter().flat_map(|form| variants.iter().map(move |variant| (form, *variant)))
        {
            let world = world(&ModelConfig { mask_weights, ..config.clone() });
            for precision in [Precision::F32, Precision::Bf16] {
                let one = state_after(&world, *form, settings, select, precision, Compute::serial(1));
                assert!(one.iter().flatten().all(|value| value.is_finite()));
                for (threads, micro_batch) in [(1, 4), (2, 1), (3, 2)] {
                    let compute = Compute::new(threads, 1, Arena::new()).unwrap().with_micro_batch(micro_batch);
                    let other = state_after(&world, *form, settings, select, precision, compute);
                    let name = form.name();
                    assert!(one == other, "{name} {precision} {config:?}: {threads} threads, {micro_batch} images");
                }
            }
        }
    }
}

#[test]
fn level_one_gradient_is_the_derivative_of_its_loss() {
    let shuffled = MaskRule { seed: 5, shuffle_scores: true, ..MaskRule::BY_SCORE };
    for (config, rule) in all_forms()
        .into_iter()
        .flat_map(|config| [MaskRule::BY_SCORE, shuffled.clone()].map(|rule| (config.clone(), rule)))
    {
        let world = world(&config);
        let cpu = world.cpu(Compute::serial(4));
        let World { model, theta, phi, x, .. } = &world;
        let fixed = score(&cpu, Some(theta), phi, &x[0], &rule).unwrap();
        let gradient = pretrain::gradient(&cpu, theta, phi, &x[0], &fixed).unwrap().gradient;
        let direction: Vec<f32> = model
            .vit
            .layout
            .entries
            .iter()
            .flat_map(|e| if e.trainable { draw(&e.name, e.len) } else { vec![0.0; e.len] })
            .collect();
        // Masks are fixed; the scores depend on θ where the masking network reads the embedding.
        let loss = |h: f32| {
            let moved: Params =
                Arc::new(Buffer::from_vec(theta.iter().zip(&direction).map(|(t, d)| t + h * d).collect()));
            let mut scored = score(&cpu, Some(&moved), phi, &x[0], &rule).unwrap();
            scored.order = fixed.order.clone();
            let losses = pretrain::patch_losses(&cpu, &moved, &x[0], &fixed.order);
            pretrain::masked_loss(&losses, &pretrain::loss_weights(&cpu, &scored), BATCH * fixed.order.num_masked())
        };
        let h = 3e-4;
        let measured = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
        let predicted: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        assert!((measured - predicted).abs() < 1e-2 * predicted.abs(), "{config:?}: {measured} {predicted}");
    }
}

/// F = Σ aᵢqᵢ of the scores q that mask and weigh, by central differences over φ: with shuffled scores the gradient is that
/// of the patch each score was computed of.
#[test]
fn the_gradient_through_shuffled_scores_goes_to_the_patches_that_they_are_of() {
    for config in all_forms() {
        let world = world(&config);
        let cpu = world.cpu(Compute::serial(4));
        let World { theta, phi, x, .. } = &world;
        let weights = draw("weights", BATCH * config.num_patches());
        let direction: Vec<f32> = draw("dp", phi.len()).iter().map(|v| 0.02 * v).collect();
        let mut predictions = Vec::new();
        for shuffle_scores in [false, true] {
            let rule = MaskRule { shuffle_scores, ..rule(0.0) };
            let at = |h: f32| {
                let moved: Vec<f32> = phi.iter().zip(&direction).map(|(p, d)| p + h * d).collect();
                score(&cpu, Some(theta), &Arc::new(Buffer::from_vec(moved)), &x[0], &rule).unwrap()
            };
            let value = |h: f32| -> f64 {
                let scored = at(h);
                let scores = scored.scores().unwrap();
                scores.iter().zip(&weights).map(|(q, a)| f64::from(*q) * f64::from(*a)).sum()
            };
            let gradient = mask::score_gradient(&cpu, phi, &at(0.0), &weights).unwrap();
            let predicted: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            // A ReLU whose input is nearly 0 bends within the larger step; rounding takes its share of the smaller.
            let error = |h: f32| ((value(h) - value(-h)) / (2.0 * f64::from(h)) - predicted).abs();
            let error = error(1e-3).min(error(1e-4));
            assert!(error < 2e-2 * predicted.abs().max(1.0), "{config:?}: {error} of {predicted}");
            predictions.push(predicted);
        }
        assert!((predictions[0] - predictions[1]).abs() > 0.1 * predictions[0].abs(), "another place: {predictions:?}");
    }
}

#[test]
fn masking_networks_have_right_gradients() {
    for config in all_forms() {
        let world = world(&config);
        let cpu = world.cpu(Compute::serial(4));
        let World { model, theta, phi, x, .. } = &world;
        let (net, compute) = (&model.masking, &cpu.compute);
        let input = match config.mask_input {
            MaskInput::Embedding => embedding(&cpu, theta, &x[0]),
            MaskInput::Pixels => patches(&cpu, &x[0]),
        };
        let cotangent = draw("cotangent", BATCH * config.num_patches());
        let trace = net.forward(compute, phi, &input, &[]).unwrap();
        assert!(trace.scores.iter().all(|p| (0.0..=1.0).contains(p)));
        let kept = trace.scores.len() + trace.input.len() + trace.hidden.iter().map(|h| h.len()).sum::<usize>();
        assert_eq!(kept, BATCH * net.trace_values(), "what queues count");
        let mut dphi = vec![0.0; phi.len()];
        let dinput = net.backward(compute, phi, &trace, &cotangent, Some(&mut dphi), true);
        // One that reads pixels alone need not have a gradient for them.
        assert!(dinput.is_some() || config.mask_input == MaskInput::Pixels);
        let dinput = dinput.unwrap_or_default();
        let small = |name, len| draw(name, len).iter().map(|v| 0.02 * v).collect::<Vec<f32>>();
        let (dir_phi, dir_input) = (small("dp", phi.len()), small("di", input.len()));
        let value = |h: f32| {
            let phi: Vec<f32> = phi.iter().zip(&dir_phi).map(|(p, d)| p + h * d).collect();
            let input: Vec<f32> = input.iter().zip(&dir_input).map(|(p, d)| p + h * d).collect();
            let trace = net.forward(compute, &phi, &Arc::new(Buffer::from_vec(input)), &[]).unwrap();
            trace.scores.iter().zip(&cotangent).map(|(s, c)| f64::from(*s) * f64::from(*c)).sum::<f64>()
        };
        let h = 1e-3;
        let measured = (value(h) - value(-h)) / (2.0 * f64::from(h));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let predicted = dot(&dphi, &dir_phi) + dot(&dinput, &dir_input);
        assert!((measured - predicted).abs() < 2e-2 * predicted.abs().max(1.0), "{config:?}: {measured} {predicted}");
    }
}

#[test]
fn features_are_the_cls_row_of_the_whole_encoder() {
    let config = config("flat-mlp", MaskInput::Embedding, PosEmbed::Trained);
    let world = world(&config);
    let cpu = world.cpu(Compute::serial(2));
    let World { model, theta, x, .. } = &world;
    let z = cls(&cpu, theta, &x[0]).unwrap();
    assert_eq!(features(&cpu, theta, &x[0]).unwrap().tokens()[0].values, z);
    let mut e = DfdxCpu::forward_only(cpu.arena());
    e.bind(Level::Pretrain, theta, false);
    let input = e.constant(patches(&cpu, &x[0]), BATCH * config.num_patches(), config.patch_values());
    let all = model.vit.encode(&mut e, &input, None);
    let rows: Vec<f32> =
        e.values(&all).chunks_exact(17 * config.dim).flat_map(|image| image[..config.dim].to_vec()).collect();
    assert!(relative(&z, &rows) < 1e-6);
}

/// A head that reads patch tokens too gets the same CLS features, and its cotangents reach θ.
#[test]
fn taps_have_the_tokens_of_the_whole_encoder_and_their_gradients() {
    use mlomae_model::engine::Tape;
    use mlomae_model::tap::Tap;
    let config = config("flat-mlp", MaskInput::Embedding, PosEmbed::Trained);
    let world = world(&config);
    let cpu = world.cpu(Compute::serial(2));
    let World { model, theta, x, .. } = &world;
    let (rows, values) = (BATCH * config.num_patches(), config.patch_values());
    let weights = draw("cotangent", (BATCH + rows) * config.dim);
    let value = |theta: &Params| {
        let mut e = DfdxCpu::recording(cpu.arena(), BATCH, BATCH);
        e.bind(Level::Pretrain, theta, true);
        let input = e.constant(patches(&cpu, &x[0]), rows, values);
        let taps = model.vit.taps(&mut e, &input, &[Tap::Cls, Tap::Patches]);
        let all = taps.iter().flat_map(|tap| e.values(tap)).zip(&weights);
        let value = all.map(|(z, w)| f64::from(*z) * f64::from(*w)).sum::<f64>();
        let cls = e.values(&taps[0]).to_vec();
        let (of_cls, of_patches) = weights.split_at(BATCH * config.dim);
        let cotangents = [of_cls, of_patches].map(|part| Buffer::from_vec(part.to_vec()));
        let gradient = e.backward(taps.into_iter().zip(cotangents).collect()).unwrap().pretrain.unwrap();
        (value, cls, gradient)
    };
    let (_, z, gradient) = value(theta);
    assert!(relative(&z, &cls(&cpu, theta, &x[0]).unwrap()) < 1e-6);
    let direction = draw("direction", theta.len());
    let moved = |h: f32| Arc::new(Buffer::from_vec(theta.iter().zip(&direction).map(|(t, d)| t + h * d).collect()));
    let h = 1e-3;
    let measured = (value(&moved(h)).0 - value(&moved(-h)).0) / (2.0 * f64::from(h));
    let predicted: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
    assert!((measured - predicted).abs() < 1e-2 * predicted.abs(), "{measured} {predicted}");
}

#[test]
fn random_masks_have_the_right_ratio_and_no_weights() {
    let config = config("random", MaskInput::Embedding, PosEmbed::Trained);
    let world = world(&config);
    let cpu = world.cpu(Compute::serial(4));
    let World { model, theta, phi, x, .. } = &world;
    assert!(!model.is_learned() && phi.is_empty() && model.layout(Level::Mask).entries.is_empty());
    let masked = |rule| score(&cpu, None, phi, &x[0], &rule).unwrap();
    let scored = masked(rule(0.0));
    assert!(scored.weights().is_none());
    assert_eq!(scored.order.num_masked(), 16 - 6);
    let step = pretrain::gradient(&cpu, theta, phi, &x[0], &scored).unwrap();
    let plain: f64 =
        (0..BATCH * 16).filter(|&i| scored.order.is_masked(i)).map(|i| f64::from(step.patch_loss[i])).sum();
    assert!((step.loss - plain / (BATCH * 10) as f64).abs() < 1e-9);
    assert_ne!(masked(MaskRule { step: 4, ..rule(0.0) }).order, scored.order);
}

#[test]
fn targets_that_are_no_class_are_refused() {
    let world = world(&config("flat-mlp", MaskInput::Pixels, PosEmbed::Trained));
    let cpu = world.cpu(Compute::serial(4));
    for class in [-1, 4, i32::MAX] {
        let targets = Targets::Classes((0..BATCH as i32).map(|i| if i == 2 { class } else { 0 }).collect());
        let batch = Labelled { images: &world.x[1], targets: &targets };
        let error = task_gradient(&cpu, &world.theta, &widen(&world.head), batch, None).unwrap_err();
        assert_eq!(error.to_string(), format!("downstream task: a class must be in 0..4, got {class}"));
    }
}

#[test]
fn adamw_is_dfdxs_adamw() {
    use dfdx::optim::{Adam, AdamConfig, Optimizer, WeightDecay};
    use dfdx::prelude::*;
    let compute = Compute::serial(4);
    let mut layout = Layout::new(Level::Mask);
    layout.add("bias", &[64]);
    let phi: Params = Arc::new(Buffer::from_vec(draw("phi", 64)));
    let mut ours = phi.clone();
    let mut adamw = AdamW::new(AdamWConfig::default(), &Arc::new(layout));
    let dev = Cpu::default();
    let bias: Tensor<Rank1<64>, f32, Cpu> = dev.tensor(phi.to_vec());
    let mut theirs = dfdx::nn::modules::Bias2D { bias };
    let settings =
        AdamConfig { lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: Some(WeightDecay::Decoupled(0.01)) };
    let mut stock = Adam::new(&theirs, settings);
    for step in 0..5 {
        let gradient = draw(&format!("g{step}"), phi.len());
        ours = adamw.update(&compute, &ours, &gradient, 1e-3).unwrap();
        let fixed: Tensor<Rank1<64>, f32, Cpu> = dev.tensor(gradient);
        let grads = (theirs.bias.leaky_trace() * fixed).sum::<Rank0, _>().backward();
        stock.update(&mut theirs, &grads).unwrap();
    }
    let moved = |v: &[f32]| v.iter().zip(phi.iter()).map(|(a, b)| a - b).collect::<Vec<f32>>();
    let error = relative(&moved(&ours), &moved(&theirs.bias.as_vec()));
    assert!(error < 1e-4, "{error:e}");
}
