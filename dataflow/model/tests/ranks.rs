//! Two ranks with half of every batch each compute what one rank computes: to the bit, but for the hypergradient.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mlomae_model::MaskInput;
use mlomae_model::config::ModelConfig;
use mlomae_model::hypergradient::{Carried, Settings, Tangent};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::{CpuLane, Upstream};
use mlomae_model::levels::mask::{along, direction};
use mlomae_model::levels::score::score;
use mlomae_model::levels::vectors::{sum, widen};
use mlomae_model::levels::{Cpu, Labelled, finetune, pretrain};
use mlomae_model::masking::oracle::{OracleConfig, OracleMasked};
use mlomae_model::masking::{MaskRule, MaskingChoice};
use mlomae_model::parallel::arena::{Arena, Buffer};
use mlomae_model::parallel::collective::Collective;
use mlomae_model::tasks::{Targets, TaskChoice, TaskSpec};
use mlomae_model::{Compute, Level, Model, ModelError, Vector};

/// One of two ranks, which are threads here.
#[derive(Debug)]
struct Pair {
    rank: usize,
    to_other: Sender<Vec<f32>>,
    from_other: std::sync::Mutex<Receiver<Vec<f32>>>,
}

impl Pair {
    fn new() -> [Self; 2] {
        let (to_1, from_0) = channel();
        let (to_0, from_1) = channel();
        let rank = |rank, to_other, from_other| Pair { rank, to_other, from_other: std::sync::Mutex::new(from_other) };
        [rank(0, to_1, from_1), rank(1, to_0, from_0)]
    }

    fn exchange(&self, values: &[f32]) -> Result<Vec<f32>, ModelError> {
        let gone = |_| ModelError::Lane { lane: "cpu", problem: "the other rank is gone".to_owned() };
        self.to_other.send(values.to_vec()).map_err(|_| gone(()))?;
        self.from_other.lock().unwrap().recv().map_err(|_| gone(()))
    }
}

impl Collective for Pair {
    fn num_ranks(&self) -> usize {
        2
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn sum(&self, values: Buffer) -> Result<Buffer, ModelError> {
        let other = self.exchange(&values)?;
        let (left, right) = if self.rank == 0 { (&values[..], &other[..]) } else { (&other[..], &values[..]) };
        Ok(Buffer::from_vec(left.iter().zip(right).map(|(a, b)| a + b).collect()))
    }

    fn gather(&self, values: Buffer) -> Result<Buffer, ModelError> {
        let other = self.exchange(&values)?;
        let (left, right) = if self.rank == 0 { (&values[..], &other[..]) } else { (&other[..], &values[..]) };
        Ok(Buffer::from_vec([left, right].concat()))
    }
}

const RULE: MaskRule = MaskRule { seed: 5, step: 7, explore: 0.5, ..MaskRule::BY_SCORE };

/// Images of a batch, in grains of two.
const BATCH: usize = 8;
const GRAIN: usize = 2;

struct Results {
    losses: [f64; 3],
    gradients: Vec<Vec<f32>>,
    hypergradient: Vec<f32>,
}

fn draw(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    normals(&mut values, 1.0, &mut tensor_rng(4, name));
    values
}

/// An outer iteration on the images `from..to` of each batch.
fn iterate(cpu: &Cpu, from: usize, to: usize) -> Results {
    let config = &cpu.model.config;
    let values = config.image_values();
    let images = |name: &str| draw(name, BATCH * values)[from * values..to * values].to_vec();
    let targets = match config.tasks.is_empty() {
        true => Targets::Classes((0..BATCH).map(|i| (i % config.num_classes) as i32).collect()),
        false => config.example_targets(BATCH, 1),
    };
    let init = |level| cpu.model.init(level, 1);
    let (theta, c, phi) = (init(Level::Pretrain), init(Level::Finetune), init(Level::Mask));
    let (x_p, x_f, x_v) = (images("p"), images("f"), images("v"));
    let scored = score(cpu, Some(&theta), &phi, &x_p, &RULE).unwrap();
    let p = pretrain::gradient(cpu, &theta, &phi, &x_p, &scored).unwrap();
    let (f, v) = (Labelled { images: &x_f, targets: &targets }, Labelled { images: &x_v, targets: &targets });
    let level2 = finetune::gradient(cpu, &theta, &widen(&c), f, None, true).unwrap();
    let d = direction(cpu, &theta, &widen(&c), level2.recorded.unwrap(), f, v, 0.01).unwrap();
    let along_v = sum(&cpu.compute, &d.v1, &d.w);
    let hypergradient = along(cpu, &theta, &along_v, &phi, &x_p, &RULE, 0.01).unwrap().to_vec();
    let gradients = [&p.gradient, &level2.gradient, &d.v1, &d.w].map(|gradient| gradient.to_vec()).to_vec();
    Results { losses: [p.loss, level2.loss, d.loss], gradients, hypergradient }
}

#[test]
fn two_ranks_compute_what_one_computes() {
    let dense = vec![TaskSpec::of(TaskChoice::by_name("segmentation").unwrap())];
    for (masking, mask_input, tasks) in [
        ("token-mlp", MaskInput::Pixels, vec![]),
        ("token-mlp", MaskInput::Embedding, vec![]),
        ("flat-mlp", MaskInput::Embedding, vec![]),
        ("token-mlp", MaskInput::Pixels, dense),
    ] {
        let config = ModelConfig {
            image: 12,
            patch: 3,
            channels: 1,
            dim: 24,
            depth: 2,
            dec_dim: 16,
            dec_depth: 1,
            mask_ratio: 0.6,
            masking: MaskingChoice::by_name(masking).unwrap(),
            mask_input,
            mask_hidden: 20,
            num_classes: 4,
            tasks,
            ..ModelConfig::default()
        };
        let model = Arc::new(Model::new(&config).unwrap());
        let one = iterate(&Cpu::new(model.clone(), Compute::serial(GRAIN)), 0, BATCH);
        let threads = Pair::new().map(|pair| {
            let model = model.clone();
            std::thread::spawn(move || {
                let (from, to) = (pair.rank * BATCH / 2, (pair.rank + 1) * BATCH / 2);
                let compute = Compute::new(1 + pair.rank, GRAIN, Arena::new()).unwrap();
                iterate(&Cpu { collective: Arc::new(pair), ..Cpu::new(model, compute) }, from, to)
            })
        });
        for thread in threads {
            let rank = thread.join().unwrap();
            assert_eq!(rank.losses, one.losses, "{masking} {mask_input:?}");
            assert!(rank.gradients == one.gradients, "{masking} {mask_input:?}");
            // Each rank adds both ends of the finite difference before the sum over ranks: equal up to rounding, which
            // the difference amplifies.
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let pairs = || rank.hypergradient.iter().zip(&one.hypergradient);
            let error = norm(&mut pairs().map(|(a, b)| a - b)) / norm(&mut one.hypergradient.iter().copied());
            assert!(error < 1e-4, "{masking} {mask_input:?}: {error:e}");
        }
    }
}

#[test]
fn two_ranks_weigh_the_loss_by_the_objects_of_all_images() {
    let mask_oracle = OracleConfig { masked: OracleMasked::Half, object_weight: 10.0, background_weight: 0.5 };
    let config = ModelConfig {
        image: 12,
        patch: 3,
        channels: 1,
        dim: 24,
        depth: 1,
        dec_dim: 16,
        dec_depth: 1,
        mask_ratio: 0.6,
        masking: MaskingChoice::by_name("oracle").unwrap(),
        mask_oracle,
        num_classes: 4,
        ..ModelConfig::default()
    };
    let model = Arc::new(Model::new(&config).unwrap());
    // Images differ in their objects' sizes, so that ranks differ in their sums of weights.
    let objects: Vec<bool> = (0..BATCH * 16).map(|i| (i * 7) % 16 < i / 16).collect();
    let level1 = move |cpu: &Cpu, from: usize, to: usize| {
        let values = cpu.model.config.image_values();
        let images = draw("p", BATCH * values)[from * values..to * values].to_vec();
        let (theta, phi) = (cpu.model.init(Level::Pretrain, 1), cpu.model.init(Level::Mask, 1));
        let rule = MaskRule { objects: Some(objects[from * 16..to * 16].into()), ..RULE };
        let scored = score(cpu, None, &phi, &images, &rule).unwrap();
        assert!(score(cpu, None, &phi, &images, &RULE).is_err(), "objects are not guessed");
        let g = pretrain::gradient(cpu, &theta, &phi, &images, &scored).unwrap();
        (g.loss, g.gradient.to_vec())
    };
    let one = level1(&Cpu::new(model.clone(), Compute::serial(GRAIN)), 0, BATCH);
    let threads = Pair::new().map(|pair| {
        let (model, level1) = (model.clone(), level1.clone());
        std::thread::spawn(move || {
            let (from, to) = (pair.rank * BATCH / 2, (pair.rank + 1) * BATCH / 2);
            let cpu = Cpu::new(model, Compute::serial(GRAIN));
            level1(&Cpu { collective: Arc::new(pair), ..cpu }, from, to)
        })
    });
    for thread in threads {
        assert!(thread.join().unwrap() == one);
    }
}

#[test]
fn two_ranks_learn_arms_from_the_images_of_both() {
    let config = ModelConfig {
        image: 12,
        patch: 3,
        channels: 1,
        dim: 24,
        depth: 1,
        dec_dim: 16,
        dec_depth: 1,
        masking: MaskingChoice::by_name("linear").unwrap(),
        mask_input: MaskInput::Pixels,
        mask_explore_arms: vec![0.0, 0.5, 1.0],
        mask_ratio_arms: vec![0.5, 0.75],
        num_classes: 4,
        ..ModelConfig::default()
    };
    let model = Arc::new(Model::new(&config).unwrap());
    // The gradients of both arms' logits, the last five values, over three steps.
    let of_arms = |cpu: Cpu, from: usize, to: usize| -> Vec<f32> {
        let (model, mut lane) = (cpu.model.clone(), CpuLane::new(cpu));
        let values = model.config.image_values();
        let images = Vector::from(draw("p", BATCH * values)[from * values..to * values].to_vec());
        let (theta, phi) = (Vector::from(model.init(Level::Pretrain, 1)), Vector::from(model.init(Level::Mask, 1)));
        let mut v = draw("v", theta.len());
        v[model.vit.encoder_len..].fill(0.0);
        let (v, zero) = (Vector::from(v), Vector::from(vec![0.0; theta.len()]));
        let (settings, mut carried, mut all) = (Settings::default(), Carried::default(), Vec::new());
        for step in 0..3 {
            let rule = MaskRule { explore: 0.0, explore_arms: true, ratio_arms: true, step, ..RULE };
            let (estimator, want_signal) = (settings.estimator, false);
            let at = Upstream { theta: &theta, phi: &phi, images: &images, rule: &rule, estimator, want_signal };
            let along = carried.along(&Tangent, &mut lane, &at, [v.clone(), zero.clone()], &settings).unwrap();
            all.extend_from_slice(&along.gradient.to_host().unwrap()[phi.len() - 5..]);
        }
        all
    };
    let one = of_arms(Cpu::new(model.clone(), Compute::serial(GRAIN)), 0, BATCH);
    for step in one.chunks_exact(5) {
        assert!(step[..3].iter().any(|d| *d != 0.0), "exploration: {one:?}");
    }
    assert!(one[3..5] == [0.0; 2] && one[8] != 0.0, "the first reward of a ratio is its own baseline: {one:?}");
    let threads = Pair::new().map(|pair| {
        let model = model.clone();
        std::thread::spawn(move || {
            let (from, to) = (pair.rank * BATCH / 2, (pair.rank + 1) * BATCH / 2);
            let compute = Compute::new(1 + pair.rank, GRAIN, Arena::new()).unwrap();
            of_arms(Cpu { collective: Arc::new(pair), ..Cpu::new(model, compute) }, from, to)
        })
    });
    for thread in threads {
        assert_eq!(thread.join().unwrap(), one);
    }
}
