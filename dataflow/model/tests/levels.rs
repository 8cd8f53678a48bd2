//! Properties of the three levels that the golden files do not cover: every form of the masking network, any number of threads, and
//! the two forms of the hypergradient.

use std::sync::Arc;

use mlomae_model::config::{MaskInput, MaskNetKind, ModelConfig, PosEmbed};
use mlomae_model::engine::Engine;
use mlomae_model::engine::dfdx_cpu::DfdxCpu;
use mlomae_model::levels::downstream::{Labelled, evaluate_clean, evaluate_published, features};
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::levels::scoring::{Masker, mask_input, patches, random, score};
use mlomae_model::levels::{Model, hypergradient, pretrain};
use mlomae_model::nets::init::{normals, tensor_rng};
use mlomae_model::parallel::arena::{Arena, Buffer, Params};
use mlomae_model::{Compute, Layout, ParamSet};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

fn config(mask_net: MaskNetKind, mask_input: MaskInput, pos_embed: PosEmbed) -> ModelConfig {
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
        mask_net,
        mask_input,
        mask_hidden: 20,
        num_classes: 4,
    }
}

fn all_forms() -> Vec<ModelConfig> {
    let mut forms = Vec::new();
    for net in [MaskNetKind::FlatMlp, MaskNetKind::TokenMlp] {
        for input in [MaskInput::Embedding, MaskInput::Pixels] {
            forms.push(config(net, input, if forms.len() % 2 == 0 { PosEmbed::Trained } else { PosEmbed::Frozen }));
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
    model: Model,
    theta: Params,
    head: Params,
    phi: Params,
    x: [Vec<f32>; 3],
    y: [Vec<i32>; 2],
}

const BATCH: usize = 6;

/// Smaller than the published 0.01, whose O(ε²) remainder is 1e-3 on these small random networks, and small enough that no mask flips
/// between θ − εv and θ + εv, where L_m jumps and no difference converges.
fn alpha(config: &ModelConfig) -> f64 {
    match (config.mask_net, config.mask_input) {
        (MaskNetKind::TokenMlp, MaskInput::Embedding) => 0.001,
        _ => 0.003,
    }
}

fn world(config: &ModelConfig) -> World {
    let model = Model::new(config).unwrap();
    let images = |name: &str| draw(name, BATCH * config.image_values());
    let labels = |shift: usize| (0..BATCH).map(|i| ((i + shift) % config.num_classes) as i32).collect();
    World {
        theta: model.init(ParamSet::Pretrain, 1),
        head: model.init(ParamSet::Head, 1),
        phi: model.init(ParamSet::Mask, 1),
        x: [images("p"), images("f"), images("v")],
        y: [labels(0), labels(1)],
        model,
    }
}

fn masker(explore: f64) -> Masker {
    Masker { explore, image_rng: Arc::new(|i| ChaCha8Rng::seed_from_u64(77 + i as u64)) }
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |v: Vec<f64>| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect());
    difference / norm(b.iter().map(|&b| f64::from(b)).collect())
}

/// One outer iteration's quantities: level-1 gradient, v1, w, hypergradient by the clean and by the published passes.
fn iterate(world: &World, compute: &Compute, explore: f64) -> (Buffer, [Buffer; 2], [Vec<f32>; 2]) {
    let World { model, theta, head, phi, x, y } = world;
    let alpha = alpha(&model.config);
    let masker = masker(explore);
    let scored = score(compute, model, theta, phi, &x[0], &masker);
    let level1 = pretrain::gradient(compute, model, theta, phi, &x[0], &scored).unwrap();
    let finetune = Labelled { images: &x[1], labels: &y[0] };
    let validation = Labelled { images: &x[2], labels: &y[1] };
    let step = |c: &Params, g: &[f64]| -> Params {
        Arc::new(Buffer::from_vec(c.iter().zip(g).map(|(c, g)| c - 0.1 * *g as f32).collect()))
    };
    let clean = evaluate_clean(compute, model, theta, head, finetune, validation, alpha, None, step).unwrap();
    let published =
        evaluate_published(compute, model, theta, head, finetune, validation, alpha, |_| None, step).unwrap();
    assert!(relative(&clean.v1, &published.v1) < 1e-3, "v1 {}", relative(&clean.v1, &published.v1));
    assert!(relative(&clean.w, &published.w) < 1e-5);
    let along = |v: &[f32]| hypergradient::along(compute, model, theta, v, phi, &x[0], &masker, alpha);
    let summed = along(&clean.direction(compute)).to_vec();
    let (direct, indirect) = (along(&published.w), along(&published.v1));
    let both = direct.iter().zip(indirect.iter()).map(|(a, b)| a + b).collect();
    (level1.gradient, [clean.v1, clean.w], [summed, both])
}

#[test]
fn clean_equals_published_without_dropout_in_every_form() {
    for (i, config) in all_forms().iter().enumerate() {
        let (_, _, [clean, published]) = iterate(&world(config), &Compute::serial(4), if i == 3 { 0.25 } else { 0.0 });
        let error = relative(&clean, &published);
        println!("{:?} {:?}: {error:.1e}", config.mask_net, config.mask_input);
        assert!(error < 1e-3, "{:?} {:?}: {error:e}", config.mask_net, config.mask_input);
        assert!(clean.iter().any(|&v| v != 0.0));
    }
}

#[test]
fn any_number_of_threads_and_any_micro_batch_gives_the_same_bits() {
    for config in all_forms() {
        let world = world(&config);
        let (gradient, vs, hyper) = iterate(&world, &Compute::serial(1), 0.25);
        for (threads, micro_batch) in [(1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (3, 4), (5, 1)] {
            let compute = Compute::new(threads, 1, Arena::new()).unwrap().with_micro_batch(micro_batch);
            // Twice, so that recycled memory with stale contents is part of it.
            for _ in 0..2 {
                let (g, v, h) = iterate(&world, &compute, 0.25);
                assert_eq!(g[..], gradient[..]);
                assert_eq!((&v[0][..], &v[1][..]), (&vs[0][..], &vs[1][..]));
                assert_eq!(h, hyper);
            }
        }
    }
}

#[test]
fn level_one_gradient_is_the_derivative_of_its_loss() {
    for config in all_forms() {
        let World { model, theta, phi, x, .. } = world(&config);
        let compute = Compute::serial(4);
        let fixed = score(&compute, &model, &theta, &phi, &x[0], &Masker::by_score());
        let gradient = pretrain::gradient(&compute, &model, &theta, &phi, &x[0], &fixed).unwrap().gradient;
        let direction: Vec<f32> = model
            .vit
            .layout
            .entries
            .iter()
            .flat_map(|e| if e.trainable { draw(&e.name, e.len) } else { vec![0.0; e.len] })
            .collect();
        // Masks stay as they are; scores follow θ where the masking network reads the embedding.
        let loss = |h: f32| {
            let moved: Params =
                Arc::new(Buffer::from_vec(theta.iter().zip(&direction).map(|(t, d)| t + h * d).collect()));
            let input = mask_input(&compute, &model, &moved, &x[0]);
            let scores = model.mask_net.forward(&compute, &phi, &input).scores;
            let losses = pretrain::patch_losses(&compute, &model, &moved, &x[0], &fixed.order);
            pretrain::masked_loss(&losses, Some(&scores), &fixed.order)
        };
        let h = 1e-3;
        let measured = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
        let predicted: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        assert!((measured - predicted).abs() < 1e-2 * predicted.abs(), "{config:?}: {measured} {predicted}");
    }
}

#[test]
fn masking_networks_have_right_gradients() {
    for config in all_forms() {
        let World { model, theta, phi, x, .. } = world(&config);
        let compute = Compute::serial(4);
        let net = &model.mask_net;
        let input = mask_input(&compute, &model, &theta, &x[0]);
        let cotangent = draw("cotangent", BATCH * config.num_patches());
        let trace = net.forward(&compute, &phi, &input);
        assert!(trace.scores.iter().all(|p| (0.0..=1.0).contains(p)));
        let mut dphi = vec![0.0; phi.len()];
        let dinput = net.backward(&compute, &phi, &trace, &cotangent, Some(&mut dphi), true).unwrap();
        let small = |name, len| draw(name, len).iter().map(|v| 0.02 * v).collect::<Vec<f32>>();
        let (dir_phi, dir_input) = (small("dp", phi.len()), small("di", input.len()));
        let value = |h: f32| {
            let phi: Vec<f32> = phi.iter().zip(&dir_phi).map(|(p, d)| p + h * d).collect();
            let input: Vec<f32> = input.iter().zip(&dir_input).map(|(p, d)| p + h * d).collect();
            let trace = net.forward(&compute, &phi, &Arc::new(Buffer::from_vec(input)));
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
    let config = config(MaskNetKind::FlatMlp, MaskInput::Embedding, PosEmbed::Trained);
    let World { model, theta, x, .. } = world(&config);
    let compute = Compute::serial(2);
    let z = features(&compute, &model, &theta, &x[0]);
    let mut e = DfdxCpu::forward_only(&compute.arena);
    e.bind(ParamSet::Pretrain, &theta, false);
    let input = e.constant(patches(&compute, &model, &x[0]), BATCH * config.num_patches(), config.patch_values());
    let all = model.vit.encode(&mut e, &input, None);
    let cls: Vec<f32> =
        e.values(&all).chunks_exact(17 * config.dim).flat_map(|image| image[..config.dim].to_vec()).collect();
    assert!(relative(&z, &cls) < 1e-6);
}

#[test]
fn the_baseline_has_random_masks_of_the_right_ratio_and_no_weights() {
    let config = config(MaskNetKind::FlatMlp, MaskInput::Embedding, PosEmbed::Trained);
    let World { model, theta, phi, x, .. } = world(&config);
    let compute = Compute::serial(4);
    let scored = random(&model, BATCH, &masker(0.0));
    assert!(scored.weights().is_none());
    assert_eq!(scored.order.num_masked(), 16 - 6);
    let step = pretrain::gradient(&compute, &model, &theta, &phi, &x[0], &scored).unwrap();
    let plain: f64 =
        (0..BATCH * 16).filter(|&i| scored.order.is_masked(i)).map(|i| f64::from(step.patch_loss[i])).sum();
    assert!((step.loss - plain / (BATCH * 10) as f64).abs() < 1e-9);
    assert_ne!(random(&model, BATCH, &Masker::by_score()).order, scored.order);
}

#[test]
fn adamw_is_dfdxs_adamw() {
    use dfdx::optim::{Adam, AdamConfig, Optimizer, WeightDecay};
    use dfdx::prelude::*;
    let compute = Compute::serial(4);
    let mut layout = Layout::new(ParamSet::Mask);
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
        ours = adamw.update(&compute, &ours, &gradient, 1e-3);
        let fixed: Tensor<Rank1<64>, f32, Cpu> = dev.tensor(gradient);
        let grads = (theirs.bias.leaky_trace() * fixed).sum::<Rank0, _>().backward();
        stock.update(&mut theirs, &grads).unwrap();
    }
    let moved = |v: &[f32]| v.iter().zip(phi.iter()).map(|(a, b)| a - b).collect::<Vec<f32>>();
    let error = relative(&moved(&ours), &moved(&theirs.bias.as_vec()));
    assert!(error < 1e-4, "{error:e}");
}
