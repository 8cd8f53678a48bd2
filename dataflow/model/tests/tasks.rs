//! Downstream tasks beside PyTorch, derivatives taken numerically, and themselves on other threads.

use std::sync::Arc;

use mlomae_model::algorithm::{Batches, Constants, State, outer_iteration};
use mlomae_model::balance;
use mlomae_model::config::ModelConfig;
use mlomae_model::engine::NORM_EPS;
use mlomae_model::hypergradient::{Carried, Cg, Clean, FORMS, Hypergradient, Published, Ridge, Settings, Tangent};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::{CpuLane, Direction, Downstream, LabelledImages, Lane, Upstream};
use mlomae_model::levels::Cpu;
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::masking::{MaskRule, MaskingChoice};
use mlomae_model::policy::Estimator;
use mlomae_model::tap::Tap;
use mlomae_model::tasks::batch::Batch;
use mlomae_model::tasks::metrics::{Metrics, RegressionErrors};
use mlomae_model::tasks::plain::dfdx::prelude::*;
use mlomae_model::tasks::plain::{
    Init, Leaf, Leaves, ParamSpec, Plain, PlainTask, TapShape, Taped, each_row, targets_matrix,
};
use mlomae_model::tasks::ridge::Bank;
use mlomae_model::tasks::{
    At, Balance, Noise, Predictions, Targets, Task, TaskChoice, TaskFacts, TaskSpec, Tokens, Total, Want,
};
use mlomae_model::{Arena, Compute, Level, MaskInput, Model, ModelError, PerLevel, Vector};

const BATCH: usize = 6;
const GRAIN: usize = 2;

fn config(tasks: Vec<TaskSpec>) -> ModelConfig {
    ModelConfig {
        image: 16,
        patch: 4,
        channels: 1,
        dim: 24,
        depth: 2,
        heads: 3,
        dec_dim: 16,
        dec_depth: 1,
        dec_heads: 2,
        mask_ratio: 0.6,
        masking: MaskingChoice::by_name("token-mlp").unwrap(),
        mask_input: MaskInput::Pixels,
        mask_hidden: 20,
        num_classes: 4,
        tasks,
        ..ModelConfig::default()
    }
}

fn spec(kind: &str) -> TaskSpec {
    TaskSpec::of(TaskChoice::by_name(kind).unwrap())
}

fn named(spec: TaskSpec, name: &str, weight: f64) -> TaskSpec {
    TaskSpec { name: Some(name.to_owned()), weight, ..spec }
}

/// Every kind of task and head, and several at once.
fn all_tasks() -> Vec<Vec<TaskSpec>> {
    let linear = spec("segmentation").with("head", "linear");
    vec![
        vec![spec("class").with("tap", "mean")],
        vec![spec("multi-label")],
        vec![spec("regression")],
        vec![spec("regression").with("loss", "mse").with("tap", "mean")],
        vec![linear.clone()],
        vec![spec("segmentation")],
        vec![spec("segmentation").with("head", "up")],
        vec![spec("detection")],
        vec![spec("detection").with("upsample", 2)],
        vec![
            named(spec("class"), "what", 0.5),
            named(linear, "where", 2.0),
            named(spec("regression").with("tap", "mean"), "how-much", 1.0),
        ],
    ]
}

/// A hidden layer on everything that can be read, by a user.
#[derive(Debug)]
struct Everything {
    dim: usize,
    num: usize,
}

/// Wide enough that a product of a grain would be given to several threads.
const HIDDEN: usize = 1024;

impl Everything {
    fn outputs<T: dfdx::tensor::Tape<f64, Cpu_>>(
        &self,
        c: &Leaves<'_, T>,
        z: Vec<dfdx::tensor::Tensor<TapShape, f64, Cpu_, T>>,
    ) -> Result<dfdx::tensor::Tensor<(usize, usize), f64, Cpu_, T>, ModelError> {
        let mut sum = None;
        for (i, z) in z.into_iter().enumerate() {
            let (images, tokens, dim) = *z.shape();
            let rows = z.reshape_like(&(images * tokens, dim));
            let hidden = (rows.matmul(c.matrix(&format!("fc{i}.weight"))?)
                + each_row(c.vector("fc.bias")?, images * tokens))
            .tanh();
            let out = hidden.matmul(c.matrix("head.weight")?).reshape_like(&(images, tokens, self.num));
            let mean = out.mean::<_, Axis<1>>();
            sum = Some(match sum {
                None => mean,
                Some(sum) => sum + mean,
            });
        }
        sum.ok_or_else(|| self.wrong("a tap"))
    }
}

type Cpu_ = dfdx::tensor::Cpu;

impl PlainTask for Everything {
    fn reads(&self) -> Vec<Tap> {
        vec![Tap::Layer(0), Tap::Mean, Tap::Patches, Tap::Cls, Tap::Layer(1)]
    }
    fn params(&self, p: &mut ParamSpec) {
        for i in 0..5 {
            p.add(&format!("fc{i}.weight"), &[self.dim, HIDDEN], Init::Xavier);
        }
        p.add("fc.bias", &[HIDDEN], Init::Uniform(0.3));
        p.add("head.weight", &[HIDDEN, self.num], Init::Normal(0.05));
    }
    fn total(&self, y: &Targets) -> Total {
        [y.len().max(1) as f64, 1.0]
    }
    fn loss(&self, c: &Leaves<'_>, z: Vec<Taped<TapShape>>, y: &Targets, n: Total) -> Result<Taped<Rank0>, ModelError> {
        Ok((self.outputs(c, z)? - targets_matrix(y)?).square().sum::<Rank0, _>() / n[0])
    }
    fn predict(&self, c: &Leaves<'_, NoneTape>, z: Vec<Leaf<TapShape>>) -> Result<Predictions, ModelError> {
        let values = self.outputs(c, z)?.as_vec().iter().map(|v| *v as f32).collect();
        Ok(Predictions::Values { num: self.num, values })
    }
    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(RegressionErrors::new(self.num))
    }
}

struct World {
    model: Arc<Model>,
    theta: Vector,
    c: Vector,
    phi: Vector,
    x: [Vector; 3],
    y: [Targets; 2],
}

fn draw(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    normals(&mut values, 1.0, &mut tensor_rng(9, name));
    values
}

fn world_of(model: Model, y: [Targets; 2]) -> World {
    let config = &model.config;
    let x = ["p", "f", "v"].map(|name| Vector::from(draw(name, BATCH * config.image_values())));
    let init = |level| Vector::from(model.init(level, 1));
    World { theta: init(Level::Pretrain), c: init(Level::Finetune), phi: init(Level::Mask), x, y, model: model.into() }
}

fn world(config: &ModelConfig) -> World {
    world_of(Model::new(config).unwrap(), [2, 3].map(|seed| config.example_targets(BATCH, seed)))
}

/// The world of [`Everything`].
fn world_of_everything() -> World {
    let config = config(Vec::new());
    let task: Arc<dyn Task> = Arc::new(Plain::new(Everything { dim: config.dim, num: 3 }).unwrap());
    let values = |name| Targets::Values { num: 3, values: draw(name, 3 * BATCH).into() };
    world_of(Model::new(&config).unwrap().with_task(&task), [values("y f"), values("y v")])
}

fn worlds() -> Vec<(String, World)> {
    let mut all: Vec<_> = all_tasks().into_iter().map(|tasks| (format!("{tasks:?}"), world(&config(tasks)))).collect();
    all.push(("everything".to_owned(), world_of_everything()));
    all
}

impl World {
    fn lane(&self) -> CpuLane {
        CpuLane::serial(self.model.clone(), GRAIN)
    }

    fn at<'a>(&'a self, bank: &'a Bank) -> Downstream<'a> {
        Downstream {
            theta: &self.theta,
            c: &self.c,
            finetune: LabelledImages { images: &self.x[1], targets: &self.y[0] },
            validation: LabelledImages { images: &self.x[2], targets: &self.y[1] },
            bank,
        }
    }

    fn direction(&self, form: &dyn Hypergradient, settings: &Settings) -> Result<Direction, ModelError> {
        let (mut lane, bank) = (self.lane(), Bank::default());
        let at = self.at(&bank);
        let finetune = form.finetune(&mut lane, &at, &|_| None)?;
        balance::direction(form, &mut lane, &at, finetune, settings, &|_| None)
    }

    fn c_wide(&self) -> Vec<f64> {
        self.c.to_host().unwrap().iter().map(|v| f64::from(*v)).collect()
    }

    /// The task on a batch's tokens at `theta`, evaluated at once.
    fn at_once(&self, theta: &Vector, batch: usize, c: &[f64], want: Want) -> mlomae_model::tasks::Share {
        let task = &self.model.task;
        let taps = self.lane().read_taps(theta, &self.x[batch], task.reads()).unwrap();
        let z = tokens(&self.model, &taps);
        let y = &self.y[batch - 1];
        task.evaluate(&At { c, z: &z, y, totals: &task.totals(y), noise: None }, want).unwrap()
    }
}

fn tokens<'a>(model: &Model, taps: &'a [Vec<f32>]) -> Vec<Tokens<'a>> {
    let c = &model.config;
    let reads = model.task.reads().iter().zip(taps);
    reads.map(|(tap, values)| Tokens { per_image: tap.tokens(c.num_patches()), dim: c.dim, values }).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn wide(v: &Vector) -> Vec<f64> {
    v.to_host().unwrap().iter().map(|v| f64::from(*v)).collect()
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (dot(&difference, &difference) / dot(b, b)).sqrt()
}

/// w and v1 beside the derivatives of L_v and of −(∂L_f/∂c)·v0 along directions of the encoder, by differences.
#[test]
fn directions_are_the_derivatives_of_the_losses() {
    for (name, world) in worlds() {
        let settings = Settings { alpha: 1e-3, ..Settings::default() };
        let direction = world.direction(&Clean, &settings).unwrap();
        let (v1, w) = (wide(&direction.v1), wide(&direction.w));
        let (model, c) = (&world.model, world.c_wide());
        let at_c = world.at_once(&world.theta, 2, &c, Want::BOTH);
        assert!((direction.loss - at_c.loss).abs() < 1e-9 * at_c.loss, "{name}");
        assert!(relative(&direction.v0, &at_c.dc) < 1e-9, "{name}");
        let mut random = draw("d", world.theta.len());
        random[model.vit.encoder_len..].fill(0.0);
        model.vit.layout.zero_frozen(&mut random);
        let mut lane = world.lane();
        for d in [Vector::from(random), direction.w.clone(), direction.v1.clone()] {
            let d = lane.combined(1.0 / lane.clone().norm(&d).unwrap(), &d, 0.0, &d).unwrap();
            // Richardson: the error of the central difference is of fourth order.
            let mut derivative = |value: &dyn Fn(&Vector) -> f64| {
                let mut central = |h: f64| {
                    let [plus, minus] = [h, -h].map(|h| value(&lane.shifted(&world.theta, &d, h).unwrap()));
                    (plus - minus) / (2.0 * h)
                };
                (4.0 * central(1e-3) - central(2e-3)) / 3.0
            };
            let of_v = derivative(&|theta| world.at_once(theta, 2, &c, Want::LOSS).loss);
            let of_f =
                derivative(&|theta| -dot(&world.at_once(theta, 1, &c, Want { dc: true, dz: false }).dc, &direction.v0));
            for (what, measured, gradient) in [("w", of_v, &w), ("v1", of_f, &v1)] {
                let predicted = dot(gradient, &wide(&d));
                let scale = predicted.abs().max(0.1 * dot(gradient, gradient).sqrt());
                println!("{what} {:.1e} {name}", (measured - predicted).abs() / scale);
                assert!((measured - predicted).abs() < 2e-3 * scale, "{name} {what}: {measured} {predicted}");
            }
        }
    }
}

/// The head's part alone, in f64: by grains as at once, and v1's cotangents as the derivative itself.
#[test]
fn heads_are_exact_by_grains() {
    for (name, world) in worlds() {
        let (task, c, y) = (&*world.model.task, world.c_wide(), &world.y[0]);
        let taps = world.lane().read_taps(&world.theta, &world.x[1], task.reads()).unwrap();
        let (z, totals) = (tokens(&world.model, &taps), task.totals(y));
        let batch = Batch { task, y, totals: &totals, noise: None, grain: GRAIN };
        let once = task.evaluate(&At { c: &c, z: &z, y, totals: &totals, noise: None }, Want::BOTH).unwrap();
        let grains = batch.evaluate(&Compute::serial(GRAIN), &c, &z, Want::BOTH).unwrap();
        assert!((once.loss - grains.loss).abs() < 1e-12 * once.loss, "{name}");
        assert!(relative(&grains.dc, &once.dc) < 1e-12, "{name}");
        assert!(relative(&grains.dz.concat(), &once.dz.concat()) < 1e-12, "{name}");
        let noise = Some(Noise { rate: 0.3, seed: 1, outer: 2, pass: 0, first_image: 0 });
        let dropped = Batch { noise, ..batch }.evaluate(&Compute::serial(GRAIN), &c, &z, Want::BOTH).unwrap();
        let whole = task.evaluate(&At { c: &c, z: &z, y, totals: &totals, noise }, Want::BOTH).unwrap();
        assert!(relative(&dropped.dz.concat(), &whole.dz.concat()) < 1e-12, "{name}");
        assert!(relative(&dropped.dc, &once.dc) > 1e-3, "{name}: dropout does something");

        // dc along a direction, by a difference of losses with an error of fourth order.
        let v: Vec<f64> = draw("v", c.len()).iter().map(|v| f64::from(*v)).collect();
        let moved = |h: f64| c.iter().zip(&v).map(|(c, v)| c + h * v).collect::<Vec<f64>>();
        let loss = |h: f64| batch.evaluate(&Compute::serial(GRAIN), &moved(h), &z, Want::LOSS).unwrap().loss;
        let central = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
        let measured = (4.0 * central(1e-4) - central(2e-4)) / 3.0;
        let predicted = dot(&once.dc, &v);
        assert!((measured - predicted).abs() < 1e-9 * dot(&once.dc, &once.dc).sqrt() * dot(&v, &v).sqrt(), "{name}");

        // The cotangents of v1: of grains as at once, and as a step a thousand times smaller has them.
        let difference = |epsilon: f64, by_grains: bool| {
            let (plus, minus) = (moved(epsilon), moved(-epsilon));
            if by_grains {
                return batch.difference([&plus, &minus], epsilon, &z, 0..BATCH).unwrap().concat();
            }
            let of = |c: &[f64]| {
                let at = At { c, z: &z, y, totals: &totals, noise: None };
                task.evaluate(&at, Want { dc: false, dz: true }).unwrap().dz.concat()
            };
            let (plus, minus) = (of(&plus), of(&minus));
            plus.iter().zip(minus).map(|(plus, minus)| (minus - plus) / (2.0 * epsilon)).collect()
        };
        let epsilon = 0.01 / dot(&v, &v).sqrt();
        assert!(relative(&difference(epsilon, true), &difference(epsilon, false)) < 1e-9, "{name}");
        assert!(relative(&difference(epsilon, true), &difference(1e-3 * epsilon, true)) < 1e-3, "{name}");
    }
}

#[test]
fn clean_is_published_without_dropout_and_the_tangent_its_limit() {
    for (name, world) in worlds() {
        let settings = Settings { alpha: 0.003, ..Settings::default() };
        let (clean, published) =
            (world.direction(&Clean, &settings).unwrap(), world.direction(&Published, &settings).unwrap());
        assert!(relative(&wide(&clean.v1), &wide(&published.v1)) < 1e-3, "{name}");
        assert!(relative(&wide(&clean.w), &wide(&published.w)) < 1e-5, "{name}");
        let rule = &MaskRule { seed: 77, step: 3, ..MaskRule::BY_SCORE };
        let (theta, phi) = (&world.theta, &world.phi);
        let estimator = Estimator::Weights;
        let at = Upstream { theta, phi, images: &world.x[0], rule, estimator, want_signal: false };
        let along = |form: &dyn Hypergradient| {
            let of = form.along(&mut world.lane(), &at, clean.v1.clone(), clean.w.clone(), &settings).unwrap();
            wide(&of.gradient)
        };
        let error = relative(&along(&Clean), &along(&Tangent));
        println!("{error:.1e} {name}");
        assert!(error < 1e-2, "{name}: {error}");
    }
}

fn state_after(world: &World, form: &'static dyn Hypergradient, compute: Compute) -> Vec<Vec<f32>> {
    let World { model, theta, c, phi, x, y } = world;
    let adamw = PerLevel::from_fn(|level| AdamW::new(AdamWConfig::default(), model.layout(level)));
    let (theta, c, phi) = (theta.clone(), c.clone(), phi.clone());
    let mut state = State { theta, c, phi, adamw, carried: Carried::default() };
    let constants = Constants {
        form,
        settings: Settings { cg_steps: 2, ..Settings::default() },
        rates: PerLevel { pretrain: &|_| 1e-3, finetune: &|_| 1e-2, mask: &|_| 1e-2 },
        rule: &|step| MaskRule { seed: 77, step, explore: 0.25, ..MaskRule::BY_SCORE },
        noise: &|outer, pass| Some(Noise { rate: 0.2, seed: 1, outer, pass, first_image: 0 }),
    };
    let batches = Batches {
        pretrain: &[x[0].clone()],
        finetune: LabelledImages { images: &x[1], targets: &y[0] },
        validation: LabelledImages { images: &x[2], targets: &y[1] },
    };
    let mut lane = CpuLane::new(Cpu::new(model.clone(), compute));
    for outer in 0..2 {
        outer_iteration(&mut lane, &constants, &mut state, &batches, outer, &mut |_| {}).unwrap();
    }
    [state.theta, state.c, state.phi].map(|vector| vector.to_host().unwrap().to_vec()).into()
}

#[test]
fn any_threads_and_micro_batches_give_the_same_bits() {
    let mut all = worlds();
    let several = ModelConfig { task_balance: Balance::Normalised, ..config(all_tasks().pop().unwrap()) };
    all.push(("normalised".to_owned(), world(&several)));
    // Labels and values that are all known, for the best head.
    all.iter_mut().for_each(|(_, world)| world.y = world.y.clone().map(known));
    for (name, world) in &all {
        for form in FORMS.iter().filter(|form| form.refuses(&*world.model.task).is_none()) {
            let one = state_after(world, *form, Compute::serial(1));
            assert!(one.iter().flatten().all(|value| value.is_finite()), "{name}");
            for (threads, micro_batch) in [(1, 4), (3, 1), (2, 2)] {
                let compute = Compute::new(threads, 1, Arena::new()).unwrap().with_micro_batch(micro_batch);
                let other = state_after(world, *form, compute);
                assert!(one == other, "{name} {}: {threads} threads, {micro_batch} images", form.name());
            }
        }
    }
}

fn known(y: Targets) -> Targets {
    match y {
        Targets::Labels { num, values } => Targets::Labels { num, values: values.iter().map(|v| v.abs()).collect() },
        Targets::Values { num, values } => {
            Targets::Values { num, values: values.iter().map(|v| if v.is_nan() { 0.5 } else { *v }).collect() }
        }
        other => other,
    }
}

#[test]
fn the_mean_is_of_the_last_blocks_patches_and_blocks_are_before_the_norm() {
    let world = world(&config(Vec::new()));
    let taps = [Tap::Layer(1), Tap::Mean, Tap::Cls, Tap::Patches, Tap::Layer(0)];
    let all = world.lane().read_taps(&world.theta, &world.x[0], &taps).unwrap();
    let dim = 24;
    let (layer, mean, normed) = (&all[0], &all[1], [&all[2], &all[3]]);
    assert_eq!([layer.len(), mean.len(), normed[0].len(), all[4].len()], [17, 1, 1, 17].map(|n| n * BATCH * dim));
    let norm = |token: &[f32]| -> Vec<f32> {
        // The encoder's norm begins as γ = 1, β = 0.
        let mean = token.iter().map(|v| f64::from(*v)).sum::<f64>() / dim as f64;
        let var = token.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / dim as f64;
        token.iter().map(|v| ((f64::from(*v) - mean) / (var + f64::from(NORM_EPS)).sqrt()) as f32).collect()
    };
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    for image in 0..BATCH {
        let tokens = &layer[image * 17 * dim..(image + 1) * 17 * dim];
        let averaged: Vec<f32> = (0..dim)
            .map(|i| tokens[dim..].chunks_exact(dim).map(|t| f64::from(t[i])).sum::<f64>() as f32 / 16.0)
            .collect();
        assert!(close(&mean[image * dim..(image + 1) * dim], &averaged));
        assert!(close(&normed[0][image * dim..(image + 1) * dim], &norm(&tokens[..dim])));
        for (place, token) in tokens[dim..].chunks_exact(dim).enumerate() {
            let at = (image * 16 + place) * dim;
            assert!(close(&normed[1][at..at + dim], &norm(token)));
        }
    }
    // Each alone is what it is beside others; of a block below, the ones above are not computed.
    for (tap, together) in taps.iter().zip(&all) {
        let alone = world.lane().read_taps(&world.theta, &world.x[0], &[*tap]).unwrap();
        assert!(close(&alone[0], together), "{tap}");
    }
    let problem = Model::new(&config(vec![spec("class").with("tap", "layer")])).unwrap_err().to_string();
    assert!(problem.contains("tap must be one of cls, mean"), "{problem}");
}

#[test]
fn several_tasks_are_the_weighted_sum_of_each() {
    let tasks = all_tasks().pop().unwrap();
    let joint = world(&config(tasks.clone()));
    let settings = Settings { alpha: 1e-4, ..Settings::default() };
    let sum = joint.direction(&Clean, &settings).unwrap();
    assert!(sum.cosines.is_empty());
    let balanced = ModelConfig { task_balance: Balance::Normalised, ..config(tasks.clone()) };
    let normalised = world(&balanced).direction(&Clean, &settings).unwrap();
    let mut each = Vec::new();
    for (i, spec) in tasks.iter().enumerate() {
        let alone = config(vec![TaskSpec { weight: 1.0, ..spec.clone() }]);
        let mut alone = world(&alone);
        let own = |y: &Targets| match y {
            Targets::Several(all) => all[i].clone(),
            _ => unreachable!("targets of several tasks"),
        };
        alone.y = [own(&joint.y[0]), own(&joint.y[1])];
        let direction = alone.direction(&Clean, &settings).unwrap();
        each.push((spec.weight, direction.loss, wide(&direction.v1), wide(&direction.w)));
    }
    let total = |of: &dyn Fn(&(f64, f64, Vec<f64>, Vec<f64>)) -> Vec<f64>| -> Vec<f64> {
        let all: Vec<Vec<f64>> = each.iter().map(of).collect();
        (0..all[0].len()).map(|i| all.iter().map(|v| v[i]).sum()).collect()
    };
    let loss: f64 = each.iter().map(|(weight, loss, ..)| weight * loss).sum();
    for direction in [&sum, &normalised] {
        assert!((direction.loss - loss).abs() < 1e-12 * loss);
        assert_eq!(direction.figures.len(), joint.model.task.figures().len());
        // Each task's own loss is among the figures.
        for (name, (_, loss, ..)) in ["what", "where", "how-much"].iter().zip(&each) {
            let figures = joint.model.task.figures();
            let place = figures.iter().position(|figure| figure.name == format!("{name}.loss")).unwrap();
            assert!((direction.figures[place] - loss).abs() < 1e-12, "{name}");
        }
    }
    let scaled = |v: &[f64], factor: f64| v.iter().map(|v| v * factor).collect::<Vec<f64>>();
    // w is linear in the tasks; v1 has λ twice, in v0 and in L_f.
    assert!(relative(&wide(&sum.w), &total(&|(weight, _, _, w)| scaled(w, *weight))) < 1e-5);
    assert!(relative(&wide(&sum.v1), &total(&|(weight, _, v1, _)| scaled(v1, weight * weight))) < 1e-4);
    let both = |v1: &[f64], w: &[f64]| v1.iter().zip(w).map(|(a, b)| a + b).collect::<Vec<f64>>();
    let norm = |v: &[f64]| dot(v, v).sqrt();
    let of_v = |v1: &[f64], w: &[f64], weight: f64| weight / norm(&both(v1, w));
    assert!(relative(&wide(&normalised.w), &total(&|(l, _, v1, w)| scaled(w, of_v(v1, w, *l)))) < 1e-4);
    assert!(relative(&wide(&normalised.v1), &total(&|(l, _, v1, w)| scaled(v1, of_v(v1, w, *l)))) < 1e-4);
    let v: Vec<Vec<f64>> = each.iter().map(|(_, _, v1, w)| both(v1, w)).collect();
    let cosines =
        [(0, 1), (0, 2), (1, 2)].map(|(a, b): (usize, usize)| dot(&v[a], &v[b]) / (norm(&v[a]) * norm(&v[b])));
    assert_eq!(normalised.cosines.len(), 3);
    assert!(normalised.cosines.iter().zip(cosines).all(|(a, b)| (a - b).abs() < 1e-4), "{:?}", normalised.cosines);
}

#[test]
fn forms_say_which_tasks_they_are_not_defined_for() {
    for tasks in all_tasks() {
        let mut world = world(&config(tasks.clone()));
        world.y = world.y.clone().map(known);
        let is_linear =
            tasks.len() == 1 && ["class", "multi-label", "regression"].contains(&tasks[0].kind.get().name());
        let settings = Settings { cg_steps: 2, ..Settings::default() };
        match world.direction(&Ridge, &settings) {
            Ok(direction) => {
                let response = direction.response.unwrap();
                assert!(is_linear && response.loss.is_finite());
                assert_eq!(response.accuracy.is_some(), tasks[0].kind.get().name() == "class");
            }
            Err(error) => {
                let error = error.to_string();
                assert!(!is_linear && error.contains("method.hypergradient = \"ridge\""), "{error}");
            }
        }
        assert!(world.direction(&Cg, &settings).unwrap().v1.to_host().unwrap().iter().any(|v| *v != 0.0));
    }
    let unknown = world(&config(vec![spec("multi-label")]));
    let error = unknown.direction(&Ridge, &Settings::default()).unwrap_err().to_string();
    assert!(error.contains("needs every label"), "{error}");
    // A head with more weights than a Hessian is inverted for.
    let facts = TaskFacts { dim: 768, depth: 1, grid: 2, patch: 16, num_classes: 8 };
    let large = spec("segmentation").build(&facts).unwrap();
    assert!(Cg.refuses(&*large).is_some_and(|line| line.contains("\"cg\"") && line.contains("1576448")));
}

/// `tests/python/task_losses.py` has the same formulas in PyTorch.
#[test]
fn losses_and_gradients_are_pytorchs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tasks/losses.json");
    let all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let count = |name: &str| all["facts"][name].as_u64().unwrap() as usize;
    let (images, dim, grid, patch, num) = (count("images"), count("dim"), count("grid"), count("patch"), count("num"));
    let facts = TaskFacts { dim, depth: 1, grid, patch, num_classes: num };
    let list = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect()
    };
    let cases = all["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let spec: TaskSpec = serde_json::from_value(case["spec"].clone()).unwrap();
        let task = spec.build(&facts).unwrap();
        let flat = |of: &serde_json::Value| -> Vec<f64> {
            task.layout().entries.iter().flat_map(|entry| list(&of[&entry.name])).collect()
        };
        let y = &case["targets"];
        let y = if y["classes"].is_array() {
            Targets::Classes(list(&y["classes"]).iter().map(|v| *v as i32).collect())
        } else if y["labels"].is_array() {
            Targets::Labels { num, values: list(&y["labels"]).iter().map(|v| *v as i8).collect() }
        } else if y["values"].is_array() {
            Targets::Values { num, values: list(&y["values"]).iter().map(|v| *v as f32).collect() }
        } else {
            let classes = list(&y["map"]).iter().map(|v| *v as u16).collect();
            Targets::Maps { side: facts.side(), classes }
        };
        let values: Vec<f32> = list(&case["tokens"]).iter().map(|v| *v as f32).collect();
        let z = [Tokens { per_image: values.len() / images / dim, dim, values: &values }];
        let c = flat(&case["c"]);
        let at = At { c: &c, z: &z, y: &y, totals: &task.totals(&y), noise: None };
        let share = task.evaluate(&at, Want::BOTH).unwrap();
        let name = &case["spec"];
        assert!((share.loss - case["loss"].as_f64().unwrap()).abs() < 1e-12, "{name}: {}", share.loss);
        let figures = list(&case["figures"]);
        assert_eq!(share.figures.len(), figures.len(), "{name}");
        assert!(share.figures.iter().zip(figures).all(|(a, b)| (a - b).abs() < 1e-12), "{name}: {:?}", share.figures);
        assert!(relative(&share.dc, &flat(&case["dc"])) < 1e-12, "{name}");
        assert!(relative(&share.dz[0], &list(&case["dz"])) < 1e-12, "{name}");
        let said: Vec<f64> = match task.predict(&c, &z).unwrap() {
            Predictions::Scores { values, .. } | Predictions::Values { values, .. } => {
                values.iter().map(|v| f64::from(*v)).collect()
            }
            Predictions::Maps { classes, .. } => classes.iter().map(|class| f64::from(*class)).collect(),
            other => panic!("{}", other.kind()),
        };
        assert!(relative(&said, &list(&case["outputs"])) < 1e-6, "{name}");
    }
}
