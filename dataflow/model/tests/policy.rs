//! The forms and estimators of the policy's gradient beside derivatives taken numerically.

use std::sync::Arc;

use mlomae_model::hypergradient::{Carried, Cg, Clean, Hypergradient, Ridge, Settings, Tangent};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::{CpuLane, Direction, Downstream, LabelledImages, Lane, Upstream};
use mlomae_model::levels::optimizer::AdamWConfig;
use mlomae_model::masking::{MaskRule, MaskSelect, MaskWeights, MaskingChoice};
use mlomae_model::policy::Estimator;
use mlomae_model::tasks::Targets;
use mlomae_model::tasks::ridge::{Bank, Rows, respond};
use mlomae_model::{Level, MaskInput, Model, ModelConfig, Vector};

const CLASSES: usize = 3;
const BATCH: usize = 24;

fn draw(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    normals(&mut values, 1.0, &mut tensor_rng(2, name));
    values
}

struct World {
    lane: CpuLane,
    theta: Vector,
    c: Vector,
    phi: Vector,
    images: [Vector; 3],
    targets: [Targets; 2],
}

fn world(masking: &str, mask_weights: MaskWeights) -> World {
    world_of(ModelConfig { masking: MaskingChoice::by_name(masking).unwrap(), mask_weights, ..config() })
}

fn config() -> ModelConfig {
    ModelConfig {
        image: 8,
        patch: 2,
        channels: 1,
        dim: 12,
        depth: 1,
        heads: 2,
        dec_dim: 8,
        dec_depth: 1,
        dec_heads: 2,
        mask_input: MaskInput::Pixels,
        mask_hidden: 8,
        num_classes: CLASSES,
        ..ModelConfig::default()
    }
}

fn world_of(config: ModelConfig) -> World {
    let model = Arc::new(Model::new(&config).unwrap());
    let images = ["p", "f", "v"].map(|name| Vector::from(draw(name, BATCH * config.image_values())));
    let classes = |shift: usize| Targets::Classes((0..BATCH).map(|i| ((i * i + shift) % CLASSES) as i32).collect());
    let init = |level| Vector::from(model.init(level, 1));
    World {
        theta: init(Level::Pretrain),
        c: init(Level::Finetune),
        phi: init(Level::Mask),
        images,
        targets: [classes(0), classes(1)],
        lane: CpuLane::serial(model, 4),
    }
}

impl World {
    fn direction(&mut self, form: &dyn Hypergradient, settings: &Settings) -> Direction {
        let [_, f, v] = &self.images;
        let at = Downstream {
            theta: &self.theta,
            c: &self.c,
            finetune: LabelledImages { images: f, targets: &self.targets[0] },
            validation: LabelledImages { images: v, targets: &self.targets[1] },
            bank: &Bank::default(),
        };
        let finetune = form.finetune(&mut self.lane, &at, &|_| None).unwrap();
        form.direction(&mut self.lane, &at, finetune, settings, &|_| None).unwrap()
    }

    /// The best head's squared error at θ + step·d, from features in f32.
    fn ridge_loss(&mut self, d: &Vector, step: f64, penalty: f64) -> f64 {
        let theta = self.lane.shifted(&self.theta, d, step).unwrap();
        let task = self.lane.model().task.clone();
        let [f, v] = [1, 2].map(|batch| {
            let features = self.lane.features(&theta, &self.images[batch]).unwrap();
            let (_, targets) = task.regression(&self.targets[batch - 1]).unwrap().unwrap();
            Rows { features: features.iter().map(|&v| f64::from(v)).collect(), targets, num_rows: BATCH }
        });
        respond(&f, &v, self.lane.model().config.dim, CLASSES, penalty).unwrap().loss
    }

    fn along(&mut self, form: &dyn Hypergradient, v: &Vector, rule: &MaskRule, settings: &Settings) -> Vec<f32> {
        let (estimator, want_signal) = (settings.estimator, true);
        let (theta, phi) = (&self.theta, &self.phi);
        let at = Upstream { theta, phi, images: &self.images[0], rule, estimator, want_signal };
        let zero = self.lane.combined(0.0, v, 0.0, v).unwrap();
        let along = form.along(&mut self.lane, &at, zero, v.clone(), settings).unwrap();
        if let Some(signal) = along.signal {
            assert!((-1.0..=1.0 + 1e-9).contains(&signal.halves_cosine), "{signal:?}");
            assert!((0.0..=1.0).contains(&signal.positive_share), "{signal:?}");
        }
        along.gradient.to_host().unwrap().to_vec()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (dot(&difference, &difference) / dot(b, b)).sqrt()
}

#[test]
fn ridge_is_the_derivative_of_the_best_heads_error() {
    let mut world = world("linear", MaskWeights::Published);
    let settings = Settings { ridge_penalty: 0.1, ..Settings::default() };
    let direction = world.direction(&Ridge, &settings);
    let response = direction.response.as_ref().unwrap();
    let zero = Vector::from(vec![0.0; world.theta.len()]);
    assert!((response.loss - world.ridge_loss(&zero, 0.0, 0.1)).abs() < 1e-9);
    let sum = world.lane.sum(&direction.v1, &direction.w).unwrap().to_host().unwrap();
    // Along the gradient and along random directions of the encoder.
    let model = world.lane.model().clone();
    let mut d = draw("d", world.theta.len());
    d[model.vit.encoder_len..].fill(0.0);
    model.vit.layout.zero_frozen(&mut d);
    for d in [d, sum.to_vec()] {
        let norm = dot(&d, &d).sqrt() as f32;
        let d: Vec<f32> = d.iter().map(|v| v / norm).collect();
        let d_vector = Vector::from(d.clone());
        let mut central =
            |h: f64| (world.ridge_loss(&d_vector, h, 0.1) - world.ridge_loss(&d_vector, -h, 0.1)) / (2.0 * h);
        // Richardson: the error of the central difference is of fourth order.
        let measured = (4.0 * central(1e-3) - central(2e-3)) / 3.0;
        let predicted = dot(&sum, &d);
        assert!(
            (measured - predicted).abs() < 2e-3 * predicted.abs().max(0.1 * dot(&sum, &sum).sqrt()),
            "{measured} {predicted}"
        );
    }
}

#[test]
fn conjugate_gradients_without_steps_are_the_identity_and_with_them_solve() {
    let mut world = world("linear", MaskWeights::Published);
    let none = Settings { cg_steps: 0, ..Settings::default() };
    let (identity, clean) = (world.direction(&Cg, &none), world.direction(&Clean, &none));
    let host = |vector: &Vector| vector.to_host().unwrap().to_vec();
    assert!(relative(&host(&identity.v1), &host(&clean.v1)) < 1e-5);
    assert!(relative(&host(&identity.w), &host(&clean.w)) < 1e-5);
    // A large damping is the identity, scaled.
    let damped = world.direction(&Cg, &Settings { cg_damping: 1e3, cg_steps: 5, ..none });
    let scaled: Vec<f32> = host(&damped.v1).iter().map(|v| v * 1e3).collect();
    assert!(relative(&scaled, &host(&clean.v1)) < 2e-2, "{}", relative(&scaled, &host(&clean.v1)));
    let solved = world.direction(&Cg, &Settings { cg_damping: 1e-3, cg_steps: 30, ..none });
    assert!(relative(&host(&solved.v1), &host(&clean.v1)) > 0.5, "the Hessian makes a difference");
}

#[test]
fn utilities_give_what_the_derivative_of_the_loss_gives() {
    let scaled: &[usize] = &[1, 2, 4];
    let maskings: [(&str, &[usize]); 5] =
        [("linear", &[]), ("token-mlp", &[]), ("flat-mlp", &[]), ("linear", scaled), ("token-mlp", scaled)];
    for (masking, scales) in maskings {
        for weights in [MaskWeights::Published, MaskWeights::Normalised] {
            let masking = MaskingChoice::by_name(masking).unwrap();
            let mask_scales = scales.to_vec();
            let mut world = world_of(ModelConfig { masking, mask_weights: weights, mask_scales, ..config() });
            let direction = world.direction(&Ridge, &Settings::default());
            let v = world.lane.sum(&direction.v1, &direction.w).unwrap();
            let settings = Settings { alpha: 0.001, ..Settings::default() };
            let rule = MaskRule { select: MaskSelect::Random, seed: 4, ..MaskRule::BY_SCORE };
            let tangent = world.along(&Tangent, &v, &rule, &settings);
            // With the same masks at both ends: the difference of the gradients of L_m for φ.
            let at = |world: &mut World, sign: f64| {
                let norm = world.lane.norm(&v).unwrap();
                let theta = world.lane.shifted(&world.theta, &v, sign * 0.001 / norm).unwrap();
                let scored = world.lane.score(Some(&theta), &world.phi, &world.images[0], &rule).unwrap();
                let losses = world.lane.patch_losses(&theta, &world.images[0], &scored).unwrap().to_host().unwrap();
                let num_masked = BATCH * scored.order.num_masked();
                let scores = scored.scores().unwrap().to_vec();
                let scale = -sign / (2.0 * 0.001 / norm);
                let dscores = weights.cotangent(&losses, &scores, &scored.order, num_masked, scale);
                world.lane.mask_gradient(&world.phi, &scored, &dscores).unwrap().to_host().unwrap().to_vec()
            };
            let (plus, minus) = (at(&mut world, 1.0), at(&mut world, -1.0));
            let difference: Vec<f32> = plus.iter().zip(&minus).map(|(a, b)| a + b).collect();
            assert!(
                relative(&tangent, &difference) < 1e-2,
                "{masking} {weights:?}: {}",
                relative(&tangent, &difference)
            );
            let by_difference = world.along(&Clean, &v, &rule, &settings);
            assert!(relative(&by_difference, &tangent) < 1e-2, "{masking} {weights:?}");
        }
    }
}

#[test]
fn both_estimators_add_up_and_differ() {
    let mut world = world("token-mlp", MaskWeights::Normalised);
    let direction = world.direction(&Ridge, &Settings::default());
    let rule = MaskRule { select: MaskSelect::Sample, seed: 4, ..MaskRule::BY_SCORE };
    let mut of = |estimator| {
        let settings = Settings { estimator, ..Settings::default() };
        world.along(&Tangent, &direction.w, &rule, &settings)
    };
    let (weights, score, both) = (of(Estimator::Weights), of(Estimator::Score), of(Estimator::Both));
    let sum: Vec<f32> = weights.iter().zip(&score).map(|(a, b)| a + b).collect();
    assert!(relative(&both, &sum) < 1e-4, "{}", relative(&both, &sum));
    assert!(relative(&score, &weights) > 0.1);
}

#[test]
fn arms_of_exploration_have_the_score_functions_gradient_and_leave_the_rest_alone() {
    let shares = [0.0, 0.4, 1.0];
    let psi = [0.5f32, -0.4, 0.2];
    for weights in [MaskWeights::Published, MaskWeights::Normalised, MaskWeights::None] {
        let mut plain = world("token-mlp", weights);
        let with_arms = ModelConfig { mask_explore_arms: shares.to_vec(), ..plain.lane.model().config.clone() };
        let mut world = world_of(with_arms);
        let (direction, settings) = (world.direction(&Ridge, &Settings::default()), Settings::default());
        let v = world.lane.sum(&direction.v1, &direction.w).unwrap();
        let mut phi = plain.phi.to_host().unwrap().to_vec();
        let num = phi.len();
        assert_eq!(world.phi.to_host().unwrap()[..], [&phi[..], &[0.0; 3]].concat(), "all arms have the same chance");
        phi.extend(psi);
        world.phi = phi.into();
        let rule = MaskRule { seed: 4, step: 11, explore_arms: true, ..MaskRule::BY_SCORE };
        let got = world.along(&Tangent, &v, &rule, &settings);

        // The arms that the images have, from their masks: 16 patches, of which 6 or all take random places.
        let model = world.lane.model().clone();
        let arms = model.masking.explore_arms().unwrap();
        let drawn = arms.draw(&psi, &rule, BATCH);
        assert!((0..3).all(|arm| drawn.contains(&arm)), "{drawn:?}");
        let given = drawn.iter().map(|&arm| shares[arm]).collect();
        let given = MaskRule { explore_arms: false, explored: Some(given), ..rule.clone() };
        let scored = world.lane.score(None, &world.phi, &world.images[0], &rule).unwrap();
        let of_given = plain.lane.score(None, &plain.phi, &plain.images[0], &given).unwrap();
        assert_eq!(scored.order, of_given.order);
        // The masking network's own gradient is that under masks which are given.
        assert_eq!(got[..num], plain.along(&Tangent, &v, &given, &settings)[..], "{weights:?}");

        // Rewards by differences of each image's loss, in f64 from there on.
        let mut loss = |sign: f64| -> Vec<f64> {
            let step = 2e-3 / world.lane.norm(&v).unwrap();
            let theta = world.lane.shifted(&world.theta, &v, sign * step).unwrap();
            let losses = world.lane.patch_losses(&theta, &world.images[0], &scored).unwrap().to_host().unwrap();
            let weight = |i: usize| scored.weights().map_or(1.0, |weights| f64::from(weights[i]));
            let masked = |image: usize| (image * 16..(image + 1) * 16).filter(|&i| scored.order.is_masked(i));
            let of_image = |image| masked(image).map(|i| weight(i) * f64::from(losses[i])).sum::<f64>() / (2.0 * step);
            (0..BATCH).map(|image| of_image(image) / scored.order.num_masked() as f64).collect()
        };
        let rewards: Vec<f64> = loss(1.0).iter().zip(loss(-1.0)).map(|(plus, minus)| plus - minus).collect();
        let (sum, exps) = (rewards.iter().sum::<f64>(), psi.map(|psi| f64::from(psi).exp()));
        for arm in 0..3 {
            let probability = exps[arm] / exps.iter().sum::<f64>();
            let of_image = |(reward, &drawn): (&f64, &usize)| {
                let others = (sum - reward) / (BATCH - 1) as f64;
                -(reward - others) * (f64::from(u8::from(drawn == arm)) - probability) / BATCH as f64
            };
            let expected: f64 = rewards.iter().zip(&drawn).map(of_image).sum();
            let deviation = rewards.iter().map(|r| (r - sum / BATCH as f64).powi(2)).sum::<f64>().sqrt() / BATCH as f64;
            let got = f64::from(got[num + arm]);
            assert!((got - expected).abs() < 2e-2 * deviation, "{weights:?} {arm}: {got} {expected}");
        }
    }
}

#[test]
fn arms_of_the_mask_ratio_are_rewarded_by_the_cosine_of_v_and_level_1s_gradient() {
    let (ratios, rho) = ([0.5, 0.75], [0.3f32, -0.2]);
    for (input, form, ratio_per_flop) in
        [(MaskInput::Pixels, &Ridge as &dyn Hypergradient, false), (MaskInput::Embedding, &Clean, true)]
    {
        let masking = MaskingChoice::by_name("token-mlp").unwrap();
        let plain = ModelConfig { masking, mask_input: input, ..config() };
        let mut plain = world_of(plain);
        let with_arms = ModelConfig { mask_ratio_arms: ratios.to_vec(), ..plain.lane.model().config.clone() };
        let mut world = world_of(with_arms);
        let settings = Settings { ratio_per_flop, ..Settings::default() };
        let direction = world.direction(form, &settings);
        let v = world.lane.sum(&direction.v1, &direction.w).unwrap();
        let num = plain.phi.len();
        let phi = [&plain.phi.to_host().unwrap()[..], &rho].concat();
        world.phi = phi.into();
        let exps = rho.map(|rho| f64::from(rho).exp());
        let (mut carried, mut baseline, mut drawn) = (Carried::default(), None, [0; 2]);
        for step in 0..8 {
            let rule = MaskRule { seed: 4, step, ratio_arms: true, ..MaskRule::BY_SCORE };
            let (theta, estimator, want_signal) = (&world.theta, settings.estimator, false);
            let [images, ..] = &world.images;
            let at = Upstream { theta, phi: &world.phi, images, rule: &rule, estimator, want_signal };
            let both = [direction.v1.clone(), direction.w.clone()];
            let along = carried.along(form, &mut world.lane, &at, both, &settings).unwrap();
            let got = along.gradient.to_host().unwrap();

            // Of the other world, with that number of visible patches given.
            let scored = world.lane.score(Some(theta), &world.phi, images, &rule).unwrap();
            let num_visible = scored.order.num_visible;
            let arm = usize::from(num_visible == 4);
            assert_eq!(num_visible, [8, 4][arm]);
            drawn[arm] += 1;
            let given = MaskRule { num_visible: Some(num_visible), ratio_arms: false, ..rule.clone() };
            let at = Upstream { phi: &plain.phi, rule: &given, ..at };
            let of_given = plain.lane.score(Some(theta), &plain.phi, images, &given).unwrap();
            assert_eq!(scored.order, of_given.order);
            let of_rest =
                form.along(&mut plain.lane, &at, direction.v1.clone(), direction.w.clone(), &settings).unwrap();
            assert_eq!(got[..num], of_rest.gradient.to_host().unwrap()[..]);
            let gradient = plain.lane.pretrain(theta, &plain.phi, images, &of_given).unwrap().gradient;
            let (gradient, v) = (gradient.to_host().unwrap(), v.to_host().unwrap());
            let c = &plain.lane.model().config;
            let costs = [8, 4].map(|num_visible| c.pass_flops(num_visible) as f64 / c.pass_flops(4) as f64);
            assert!(costs[0] > 1.1);
            let cost = if ratio_per_flop { costs[arm] } else { 1.0 };
            let reward = dot(&v, &gradient) / (dot(&v, &v) * dot(&gradient, &gradient)).sqrt() / cost;
            let before = *baseline.get_or_insert(reward);
            for other in 0..2 {
                let probability = exps[other] / (exps[0] + exps[1]);
                let expected = -(reward - before) * (f64::from(u8::from(other == arm)) - probability);
                assert!((f64::from(got[num + other]) - expected).abs() < 1e-5, "{step} {other}: {got:?} {expected}");
            }
            assert!((f64::from(along.ratio_reward.unwrap()) - reward).abs() < 1e-5);
            baseline = Some(0.9 * before + 0.1 * reward);
        }
        assert!(drawn[0] > 0 && drawn[1] > 0, "{drawn:?}");
    }
}

#[test]
fn a_direction_in_the_metric_of_adamw_is_divided_by_the_root_of_its_moment() {
    let World { mut lane, .. } = world("linear", MaskWeights::Published);
    let (x, v) = (Vector::from(vec![1.0, -2.0, 0.0]), Vector::from(vec![0.04, 0.01, 0.0]));
    let adamw = AdamWConfig { beta2: 0.5, eps: 0.1, ..AdamWConfig::default() };
    let got = lane.preconditioned(&x, &v, 2, &adamw).unwrap().to_host().unwrap();
    let expected = |x: f64, v: f64| x / ((v / 0.75).sqrt() + 0.1);
    for (got, expected) in got.iter().zip([expected(1.0, 0.04), expected(-2.0, 0.01), 0.0]) {
        assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} {expected}");
    }
}
