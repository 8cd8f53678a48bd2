//! The GPU's lane on the emulated device, against the CPU's.

use std::sync::Arc;

use mlomae_model::algorithm::{Batches, Constants, Event, State, outer_iteration};
use mlomae_model::choice::Named;
use mlomae_model::config::PosEmbed;
use mlomae_model::hypergradient::{Carried, Cg, Clean, Hypergradient, Published, Ridge, Settings, Tangent};
use mlomae_model::images::{Scaling, Window};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::cuda::CudaLane;
use mlomae_model::lane::{CpuLane, Downstream, LabelledImages, Lane};
use mlomae_model::layout::SharedLayout;
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig, DecayGroup};
use mlomae_model::masking::attention::{AttentionConfig, AttentionMap};
use mlomae_model::masking::{MASKINGS, MaskInput, MaskRule, MaskSelect, MaskWeights, MaskingChoice};
use mlomae_model::parallel::arena::Buffer;
use mlomae_model::policy::Estimator;
use mlomae_model::rng::{Purpose, below, keyed};
use mlomae_model::tap::Tap;
use mlomae_model::tasks::metrics::Metrics;
use mlomae_model::tasks::ridge::Bank;
use mlomae_model::tasks::{
    At, Balance, Figure, Noise, Predictions, Share, TASKS, Targets, Task, TaskChoice, TaskSpec, Tokens, Total, Want,
};
use mlomae_model::{Images, Level, Model, ModelConfig, ModelError, PerLevel, Precision, RawImages, Vector};

const BATCH: usize = 5;

fn config(masking: &str, input: MaskInput) -> ModelConfig {
    let masking = MASKINGS.iter().find(|kind| kind.name() == masking).map(|kind| MaskingChoice::of(*kind)).unwrap();
    ModelConfig {
        image: 12,
        patch: 4,
        channels: 1,
        dim: 24,
        depth: 2,
        heads: 3,
        dec_dim: 16,
        dec_depth: 1,
        dec_heads: 2,
        pos_embed: PosEmbed::Trained,
        mask_ratio: 0.6,
        masking,
        mask_input: input,
        mask_hidden: 20,
        num_classes: 4,
        ..ModelConfig::default()
    }
}

fn images(config: &ModelConfig, name: &str) -> Vector {
    let mut images = vec![0.0; BATCH * config.image_values()];
    normals(&mut images, 1.0, &mut tensor_rng(3, name));
    images.into()
}

/// All that three outer iterations compute, by name: graphs are captured in the second and replayed in the third.
fn results(
    lane: &mut dyn Lane,
    form: &dyn Hypergradient,
    settings: Settings,
    select: MaskSelect,
) -> Vec<(String, Vec<f64>)> {
    let model = lane.model().clone();
    let config = &model.config;
    let up = |lane: &dyn Lane, vector: Vector| lane.upload(&vector).unwrap();
    let init = |level| up(lane, Vector::from(model.init(level, 1)));
    let options = AdamWConfig { decay_group: DecayGroup::Matrices, weight_decay: 0.1, ..AdamWConfig::default() };
    let adamw = PerLevel::from_fn(|level| {
        let adamw = AdamW::new(options, model.layout(level));
        let (m, v) = (up(lane, adamw.m.clone()), up(lane, adamw.v.clone()));
        adamw.with_moments(m, v)
    });
    let [theta, c, phi] = Level::ALL.map(init);
    let mut state = State { theta, c, phi, adamw, carried: Carried::default() };
    let pretrain = [up(lane, images(config, "a")), up(lane, images(config, "b"))];
    let (f, v) = (up(lane, images(config, "f")), up(lane, images(config, "v")));
    let (y_f, y_v) = if config.tasks.is_empty() {
        (Targets::Classes([0, 1, 2, 3, 1].into()), Targets::Classes([3, 1, 2, 0, 2].into()))
    } else {
        (config.example_targets(5, 1), config.example_targets(5, 11))
    };
    let finetune = LabelledImages { images: &f, targets: &y_f };
    let validation = LabelledImages { images: &v, targets: &y_v };
    let constants = Constants {
        form,
        settings,
        rates: PerLevel { pretrain: &|_| 1e-3, finetune: &|_| 1e-2, mask: &|_| 1e-3 },
        rule: &|step| {
            // A graph is captured, replaced by one for more patches, and replaced again.
            let num_visible = config.mask_ratio_end.map(|_| 2 + (step / 2 % 2) as usize);
            MaskRule {
                seed: 7,
                step,
                num_visible,
                explore: 0.2,
                explore_arms: true,
                ratio_arms: true,
                select,
                ..MaskRule::BY_SCORE
            }
        },
        noise: &|outer, pass| Some(Noise { rate: 0.1, seed: 7, outer, pass, first_image: 0 }),
    };
    let mut all = Vec::new();
    let wide = |values: &Vector| values.to_host().unwrap().iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    for outer in 0..3 {
        let batches = Batches { pretrain: &pretrain, finetune, validation };
        let mut step = 0;
        outer_iteration(lane, &constants, &mut state, &batches, outer, &mut |event| {
            let mut push = |name: &str, values: Vec<f64>| all.push((format!("{outer} {name}"), values));
            match event {
                Event::Scored(scored) => {
                    let order = &scored.order;
                    push("rank", order.rank.iter().map(|&rank| f64::from(rank)).collect());
                    push("kept", order.kept.iter().map(|&patch| f64::from(patch)).collect());
                    push("guide", scored.guide.iter().flat_map(|g| g.iter()).map(|&g| f64::from(g)).collect());
                    push("scores", scored.scores().unwrap_or_default().iter().map(|&p| f64::from(p)).collect());
                }
                Event::Pretrain(g) => {
                    push(&format!("pretrain {step} loss"), vec![g.loss]);
                    push(&format!("pretrain {step} patch loss"), wide(&g.patch_loss));
                    push(&format!("pretrain {step} gradient"), wide(&g.gradient));
                    step += 1;
                }
                Event::Finetune(g) => {
                    push("finetune loss", vec![g.loss]);
                    push("finetune accuracy", g.figures.clone());
                    push("finetune gradient", wide(&g.gradient));
                }
                Event::Direction(v) => {
                    push("mask loss", vec![v.loss]);
                    push("mask accuracy", v.figures.clone());
                    push("v0", v.v0.clone());
                    push("v1", wide(&v.v1));
                    push("w", wide(&v.w));
                }
                Event::Hypergradient(g) => push("hypergradient", wide(&g.gradient)),
            }
        })
        .unwrap();
    }
    for (name, vector) in [("theta", &state.theta), ("c", &state.c), ("phi", &state.phi)] {
        all.push((name.to_owned(), wide(vector)));
    }
    all
}

/// ‖a − b‖/‖b‖.
fn error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let norm = b.iter().map(|b| b.powi(2)).sum::<f64>().sqrt();
    if difference == 0.0 { 0.0 } else { difference / norm.max(1e-12) }
}

/// Compares a GPU's results with those of the CPU in f32; `limit` is for everything but finite differences and what
/// comes after them, which differ by their own noise.
fn compare(masking: &str, input: MaskInput, form: &dyn Hypergradient, precision: Precision, limit: f64) {
    compare_policy(&config(masking, input), form, (Settings::default(), MaskSelect::Score), precision, limit);
}

/// As [`compare`], with other weights, settings and masks than the published.
fn compare_policy(
    config: &ModelConfig,
    form: &dyn Hypergradient,
    (settings, select): (Settings, MaskSelect),
    precision: Precision,
    limit: f64,
) {
    let (masking, input) = (config.masking, config.mask_input);
    let model = Arc::new(Model::new(config).unwrap());
    let mut gpu = CudaLane::open(&model, precision).unwrap();
    let of = |lane: &mut dyn Lane| results(lane, form, settings, select);
    let (ours, cpu) = (of(&mut gpu), of(&mut CpuLane::serial(model, 2)));
    assert_eq!(ours.len(), cpu.len());
    let is_derivative = ![Clean.name(), Published.name()].contains(&form.name());
    // Later iterations start from weights that noise has moved.
    let is_exact = is_derivative && precision == Precision::F32;
    let comparable = ours.iter().zip(&cpu).take_while(|((name, _), _)| is_exact || name.starts_with('0'));
    for ((name, a), (_, b)) in comparable {
        let (error, limit) =
            (error(a, b), if name.ends_with("hypergradient") && !is_derivative { 2e-2 } else { limit });
        println!("{masking} {input:?} {} {precision} {name:26} {error:.1e}", form.name());
        assert!(error <= limit, "{masking} {input:?} {} {precision} {name}: {error}", form.name());
    }
}

const NETWORKS: [(&str, MaskInput); 6] = [
    ("flat-mlp", MaskInput::Embedding),
    ("flat-mlp", MaskInput::Pixels),
    ("token-mlp", MaskInput::Embedding),
    ("token-mlp", MaskInput::Pixels),
    ("random", MaskInput::Pixels),
    ("noise", MaskInput::Pixels),
];

#[test]
fn a_gpu_computes_what_the_cpu_does() {
    drop(mlomae_device::testing::gpu());
    for (masking, input) in NETWORKS {
        compare(masking, input, &Tangent, Precision::F32, 1e-4);
    }
    compare("flat-mlp", MaskInput::Embedding, &Clean, Precision::F32, 1e-4);
    compare("token-mlp", MaskInput::Pixels, &Published, Precision::F32, 1e-4);
}

/// A task whose head no device knows.
#[derive(Debug)]
struct Unknown(Arc<dyn Task>);

impl Task for Unknown {
    fn reads(&self) -> &[Tap] {
        self.0.reads()
    }
    fn layout(&self) -> &SharedLayout {
        self.0.layout()
    }
    fn init(&self, seed: u64) -> Buffer {
        self.0.init(seed)
    }
    fn loss_unit(&self) -> &'static str {
        self.0.loss_unit()
    }
    fn figures(&self) -> &[Figure] {
        self.0.figures()
    }
    fn total(&self, y: &Targets) -> Total {
        self.0.total(y)
    }
    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        self.0.evaluate(at, want)
    }
    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        self.0.predict(c, z)
    }
    fn metrics(&self) -> Box<dyn Metrics> {
        self.0.metrics()
    }
}

/// Both lanes compute the same tokens, so that only the rounding of f64 and, of what becomes f32, that of f32 differs.
#[test]
fn a_head_on_the_device_is_that_on_the_host() {
    drop(mlomae_device::testing::gpu());
    let here = Arc::new(Model::new(&config("flat-mlp", MaskInput::Embedding)).unwrap());
    assert!(here.task.linear_head().is_some());
    let mut elsewhere = (*here).clone();
    elsewhere.task = Arc::new(Unknown(elsewhere.task));
    let elsewhere = Arc::new(elsewhere);
    for (form, precision) in [(&Tangent as &dyn Hypergradient, Precision::F32), (&Published, Precision::Bf16)] {
        let [ours, host] = [&here, &elsewhere].map(|model| {
            let mut lane = CudaLane::open(model, precision).unwrap();
            results(&mut lane, form, Settings::default(), MaskSelect::Score)
        });
        assert_eq!(ours.len(), host.len());
        // What follows of the first head's gradient: bf16 makes a step of its last place out of a bit of f32.
        let first = ours.iter().zip(&host).take_while(|((name, _), _)| name.starts_with('0'));
        for ((name, a), (_, b)) in first {
            let what = &name[2..];
            let limit = match what {
                "finetune loss" | "finetune accuracy" => 1e-13,
                "mask loss" | "mask accuracy" | "v0" => 1e-7,
                "v1" | "w" | "hypergradient" if precision == Precision::Bf16 => 2e-2,
                _ => 1e-5,
            };
            let error = error(a, b);
            println!("{} {precision} {name:26} {error:.1e}", form.name());
            assert!(error <= limit, "{} {precision} {name}: {error}", form.name());
        }
    }
}

#[test]
fn a_gpu_learns_every_task_as_the_cpu_does() {
    drop(mlomae_device::testing::gpu());
    let spec = |kind: &str| TaskSpec::of(TaskChoice::by_name(kind).unwrap());
    let named = |spec: TaskSpec, name: &str| TaskSpec { name: Some(name.to_owned()), ..spec };
    let policy = (Settings { cg_steps: 2, ..Settings::default() }, MaskSelect::Score);
    let mut tasks: Vec<Vec<TaskSpec>> = TASKS.iter().map(|kind| vec![TaskSpec::of(TaskChoice::of(*kind))]).collect();
    tasks.extend([
        vec![spec("class").with("tap", "mean")],
        vec![spec("segmentation").with("head", "linear")],
        vec![spec("class"), spec("segmentation"), named(spec("class").with("tap", "mean"), "other")],
    ]);
    for tasks in tasks {
        for (form, task_balance) in [(&Tangent as &dyn Hypergradient, Balance::Sum), (&Cg, Balance::Normalised)] {
            println!("{tasks:?}");
            let config = ModelConfig { tasks: tasks.clone(), task_balance, ..config("token-mlp", MaskInput::Pixels) };
            compare_policy(&config, form, policy, Precision::F32, 2e-4);
        }
    }
}

/// The gradient for θ of a function of every tap, on both devices.
#[test]
fn taps_on_a_gpu_are_those_of_the_cpu_with_their_gradients() {
    drop(mlomae_device::testing::gpu());
    let all = [Tap::Layer(0), Tap::Mean, Tap::Patches, Tap::Cls, Tap::Layer(1)];
    for taps in [&all[..], &all[..1], &all[1..2], &all[3..]] {
        let mut model = Model::new(&config("random", MaskInput::Pixels)).unwrap();
        model.task = Arc::new(Reading(model.task, taps.to_vec()));
        let model = Arc::new(model);
        let of = |lane: &mut dyn Lane| {
            let up = |values: Vector| lane.upload(&values).unwrap();
            let [theta, c] = [Level::Pretrain, Level::Finetune].map(|level| up(Vector::from(model.init(level, 1))));
            let [f, v] = ["f", "v"].map(|name| up(images(&model.config, name)));
            let targets = &Targets::Classes([0; BATCH].into());
            let finetune = LabelledImages { images: &f, targets };
            let validation = LabelledImages { images: &v, targets };
            let at = Downstream { theta: &theta, c: &c, finetune, validation, bank: &Bank::default() };
            let mut results = lane.read_taps(&theta, &f, taps).unwrap();
            for _ in 0..3 {
                let recorded = lane.finetune(&at, None, true).unwrap().recorded.unwrap();
                let weighted = |z: &[Tokens<'_>]| -> Vec<Vec<f64>> {
                    z.iter().map(|z| (0..z.values.len()).map(|i| ((i * 7 % 11) as f64 - 5.0) * 0.1).collect()).collect()
                };
                let both = lane.pull_back(&at, recorded, &mut |f, v| Ok([weighted(f), weighted(v)])).unwrap();
                results.extend(both.map(|gradient| gradient.to_host().unwrap().to_vec()));
            }
            results
        };
        let gpu = of(&mut CudaLane::open(&model, Precision::F32).unwrap());
        let cpu = of(&mut CpuLane::serial(model.clone(), 2));
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        for (gpu, cpu) in gpu.iter().zip(&cpu) {
            assert!(cpu.iter().any(|v| *v != 0.0));
            assert!(error(&wide(gpu), &wide(cpu)) < 1e-5, "{taps:?} {}", error(&wide(gpu), &wide(cpu)));
        }
    }
}

/// A task that says that it reads certain taps, and computes nothing.
#[derive(Debug)]
struct Reading(Arc<dyn Task>, Vec<Tap>);

impl Task for Reading {
    fn reads(&self) -> &[Tap] {
        &self.1
    }
    fn layout(&self) -> &SharedLayout {
        self.0.layout()
    }
    fn init(&self, seed: u64) -> Buffer {
        self.0.init(seed)
    }
    fn loss_unit(&self) -> &'static str {
        self.0.loss_unit()
    }
    fn figures(&self) -> &[Figure] {
        &[]
    }
    fn total(&self, y: &Targets) -> Total {
        self.0.total(y)
    }
    fn evaluate(&self, _: &At<'_>, _: Want) -> Result<Share, ModelError> {
        Ok(Share { dc: vec![0.0; self.layout().len], ..Share::default() })
    }
    fn predict(&self, _: &[f64], _: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        Ok(Predictions::Boxes(Vec::new()))
    }
    fn metrics(&self) -> Box<dyn Metrics> {
        self.0.metrics()
    }
}

#[test]
fn a_class_that_the_head_does_not_know_is_refused_on_the_device_too() {
    drop(mlomae_device::testing::gpu());
    let model = Arc::new(Model::new(&config("flat-mlp", MaskInput::Embedding)).unwrap());
    let mut lane = CudaLane::open(&model, Precision::F32).unwrap();
    let up = |values: Vector| lane.upload(&values).unwrap();
    let [theta, c] = [Level::Pretrain, Level::Finetune].map(|level| up(Vector::from(model.init(level, 1))));
    let pixels = up(images(&model.config, "f"));
    let none = up(Vector::from(vec![0.0; 0]));
    for (classes, problem) in [([0, 1, 4, 3, 1], "a class must be in 0..4, got 4"), ([0, -1, 0, 0, 0], "got -1")] {
        let targets = Targets::Classes(classes.into());
        let finetune = LabelledImages { images: &pixels, targets: &targets };
        let at = Downstream {
            theta: &theta,
            c: &c,
            finetune,
            validation: LabelledImages { images: &none, ..finetune },
            bank: &Bank::default(),
        };
        let error = lane.finetune(&at, None, false).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_gpu_learns_policies_as_the_cpu_does() {
    drop(mlomae_device::testing::gpu());
    let settings = Settings { ridge_bank: 1, cg_steps: 4, precondition: true, average: 2, ..Settings::default() };
    let both = Settings { estimator: Estimator::Both, ..settings };
    let mask_weights = MaskWeights::Normalised;
    for (masking, form, mask_weights, policy) in [
        ("linear", &Ridge as &dyn Hypergradient, mask_weights, (settings, MaskSelect::Random)),
        ("token-mlp", &Ridge, mask_weights, (both, MaskSelect::Sample)),
        ("flat-mlp", &Cg, MaskWeights::None, (both, MaskSelect::Sample)),
        ("token-mlp", &Clean, mask_weights, (settings, MaskSelect::Score)),
    ] {
        let config = ModelConfig { mask_weights, ..config(masking, MaskInput::Pixels) };
        compare_policy(&config, form, policy, Precision::F32, 2e-4);
    }
    for (masking, mask_scales, arms) in [
        ("token-mlp", vec![1, 2], vec![0.0, 0.5, 1.0]),
        ("linear", vec![1, 3], vec![]),
        ("flat-mlp", vec![], vec![0.1, 0.9]),
    ] {
        let config = ModelConfig { mask_scales, mask_explore_arms: arms, ..config(masking, MaskInput::Pixels) };
        compare_policy(&config, &Ridge, (settings, MaskSelect::Sample), Precision::F32, 2e-4);
    }
    for (masking, input) in [NETWORKS[0], NETWORKS[3]] {
        let config = ModelConfig { mask_ratio_arms: vec![0.5, 0.7], ..config(masking, input) };
        compare_policy(&config, &Tangent, (Settings::default(), MaskSelect::Score), Precision::F32, 2e-4);
    }
}

#[test]
fn the_mask_ratio_may_change_from_batch_to_batch() {
    drop(mlomae_device::testing::gpu());
    for (masking, input) in [NETWORKS[0], NETWORKS[4]] {
        let config = ModelConfig { mask_ratio_end: Some(0.7), ..config(masking, input) };
        compare_policy(&config, &Tangent, (Settings::default(), MaskSelect::Score), Precision::F32, 2e-4);
    }
}

#[test]
fn strategies_that_read_a_teacher_read_the_same_on_a_gpu() {
    drop(mlomae_device::testing::gpu());
    for strategy in ["attention", "parts", "loss", "mixture"] {
        let mask_mixture = [("random".to_owned(), 1.0), ("attention".to_owned(), 1.0)].into();
        let config = ModelConfig { mask_mixture, ..config(strategy, MaskInput::Pixels) };
        compare_policy(&config, &Tangent, (Settings::default(), MaskSelect::Score), Precision::F32, 1e-4);
    }
    let mask_attention = AttentionConfig { map: AttentionMap::Rollout, ..AttentionConfig::default() };
    let config = ModelConfig { mask_attention, ..config("attention", MaskInput::Pixels) };
    compare_policy(&config, &Tangent, (Settings::default(), MaskSelect::Score), Precision::F32, 1e-4);
}

#[test]
fn lower_precisions_round_products_alone() {
    drop(mlomae_device::testing::gpu());
    for (masking, input) in [NETWORKS[0], NETWORKS[3]] {
        compare(masking, input, &Tangent, Precision::Tf32, 1e-2);
        compare(masking, input, &Tangent, Precision::Bf16, 6e-2);
    }
}

#[test]
fn pixels_become_on_a_gpu_the_values_that_the_host_computes_to_the_bit() {
    drop(mlomae_device::testing::gpu());
    let model = Arc::new(Model::new(&config("random", MaskInput::Pixels)).unwrap());
    let lane = CudaLane::open(&model, Precision::Bf16).unwrap();
    for case in 0..40 {
        let mut rng = keyed(case, Purpose::Panel, 0, 0);
        let mut number = |below_: usize| below(&mut rng, below_ as u64) as usize;
        let (side, channels, num) = (1 + number(20), 1 + 2 * number(2), number(9));
        // Of a mean of 0 is a shift of -0, which rows of padding keep.
        let means = [0.0, 0.4914, 0.4822];
        let scaling =
            means[..channels].iter().map(|mean| Scaling::normalising(*mean, 0.1 + number(100) as f32 / 300.0));
        let mut raw = RawImages::with_room(num, side, scaling.collect());
        for _ in 0..num {
            let pixels: Vec<u8> = (0..side * side * channels).map(|_| number(256) as u8).collect();
            let mut offset = || number(2 * side + 3) as i32 - side as i32 - 1;
            let (top, left) = (offset(), offset());
            raw.push(&pixels, Window { top, left, mirrored: number(2) == 1 });
        }
        let images = Images::from(raw);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let on_gpu = lane.ingest(&images).unwrap();
        assert!(on_gpu.host().is_none(), "in the device's memory");
        assert_eq!(bits(&on_gpu.to_host().unwrap()), bits(&images.to_values().unwrap()), "case {case}");
        let values = lane.ingest(&Images::Values(images.to_values().unwrap().into())).unwrap();
        assert_eq!(bits(&values.to_host().unwrap()), bits(&images.to_values().unwrap()), "case {case}");
    }
}
