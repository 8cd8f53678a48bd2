//! One outer iteration of a preset on random images, level by level and without a pipeline around it: what benchmarks
//! time.

use std::time::Instant;

use mlomae_kernels as kernels;
use mlomae_model::levels::downstream::{Labelled, evaluate_clean};
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::levels::scoring::{Masker, Scored, random, score};
use mlomae_model::levels::{Model, hypergradient, pretrain};
use mlomae_model::nets::init::{normals, tensor_rng};
use mlomae_model::{Arena, Buffer, Compute, ModelError, ParamSet, Params};

use mlomae_dataflow::config::{Config, ConfigInputs, Preset, TrainConfig};
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::method::model_config;

/// Side, channels and classes of the images: those of CIFAR-10.
const IMAGE: (usize, usize, usize) = (32, 3, 10);
/// Level-1 steps of an outer iteration, as published.
const UNROLL: usize = 2;
/// α of the finite difference, as published.
const ALPHA: f64 = 0.01;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadSpec {
    /// Shape of the networks.
    pub preset: Preset,
    /// Images of each level's batch.
    pub batch: usize,
    /// Compute threads.
    pub num_threads: usize,
    /// Images of a micro-batch. 0: automatic.
    pub micro_batch: usize,
    /// Random masks; levels 2 and 3 rest.
    pub baseline: bool,
}

impl WorkloadSpec {
    /// A preset at its own batch size, on all cores.
    #[must_use]
    pub fn new(preset: Preset) -> Self {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { preset, batch: preset.values().batch, num_threads, micro_batch: 0, baseline: false }
    }

    /// Images of a grain: the default, but a batch of few images is cut for two threads at least.
    #[must_use]
    pub fn grain(&self) -> usize {
        TrainConfig::default().grain.min(self.batch.div_ceil(2))
    }
}

/// Milliseconds of one outer iteration by level.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lap {
    /// Scoring both level-1 batches.
    pub score_ms: f64,
    /// Both level-1 steps.
    pub pretrain_ms: f64,
    /// Level 2's step, v1 and w.
    pub evaluate_ms: f64,
    /// The hypergradient and the policy's step.
    pub policy_ms: f64,
    /// Arithmetic of all products, in 10⁹ operations.
    pub gflop: f64,
}

impl Lap {
    /// The whole outer iteration.
    #[must_use]
    pub fn total_ms(&self) -> f64 {
        self.score_ms + self.pretrain_ms + self.evaluate_ms + self.policy_ms
    }
}

/// Networks, optimizers and data of a preset, ready to be stepped.
pub struct Workload {
    spec: WorkloadSpec,
    model: Model,
    compute: Compute,
    values: [Params; 3],
    optimizers: [AdamW; 3],
    images: Vec<f32>,
    labels: Vec<i32>,
    masker: Masker,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Workload {
    /// Makes networks and images.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(spec: WorkloadSpec) -> Result<Self, ModelError> {
        let inputs = ConfigInputs::default().preset(spec.preset);
        let config = Config::resolve(&inputs).map_err(|errors| ModelError::Config(format!("{errors:?}")))?;
        let (image, channels, num_classes) = IMAGE;
        let model = Model::new(&model_config(&config, image, channels, num_classes))?;
        let WorkloadSpec { batch, num_threads, micro_batch, .. } = spec;
        let mut images = vec![0.0; batch * model.config.image_values()];
        normals(&mut images, 1.0, &mut tensor_rng(0, "images"));
        let grain = spec.grain();
        let compute = Compute::new(num_threads, grain, Arena::new())?;
        let mut actors = config.actors;
        actors.stage_mut(StageName::Encoder).micro_batch = micro_batch;
        let num_images = actors.micro_batch(StageName::Encoder, batch, num_threads);
        Ok(Self {
            values: ParamSet::ALL.map(|set| model.init(set, 1)),
            optimizers: ParamSet::ALL.map(|set| AdamW::new(AdamWConfig::default(), model.layout(set))),
            compute: compute.with_micro_batch(num_images),
            images,
            labels: (0..batch).map(|i| (i % num_classes) as i32).collect(),
            masker: Masker::by_score(),
            spec,
            model,
        })
    }

    /// What is timed.
    #[must_use]
    pub const fn spec(&self) -> &WorkloadSpec {
        &self.spec
    }

    /// Images of a micro-batch.
    #[must_use]
    pub fn micro_batch(&self) -> usize {
        self.compute.micro_batch()
    }

    /// Bytes that the recycled memory has ever taken from the system: constant after the first iterations.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.compute.arena.allocated_bytes()
    }

    /// Masks of a batch.
    #[must_use]
    pub fn score(&mut self) -> Scored {
        let [theta, _, phi] = &self.values;
        if self.spec.baseline {
            random(&self.model, self.spec.batch, &self.masker)
        } else {
            score(&self.compute, &self.model, theta, phi, &self.images, &self.masker)
        }
    }

    /// One level-1 step.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn pretrain(&mut self, scored: &Scored) -> Result<(), ModelError> {
        let Self { model, compute, values: [theta, _, phi], optimizers, images, .. } = self;
        let step = pretrain::gradient(compute, model, theta, phi, images, scored)?;
        *theta = optimizers[0].update(compute, theta, &step.gradient, 1e-4);
        Ok(())
    }

    /// Level 2's step; gives v1 + w.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn evaluate(&mut self) -> Result<Buffer, ModelError> {
        let Self { model, compute, values: [theta, head, _], optimizers: [_, optimizer, _], images, labels, .. } = self;
        let data = Labelled { images, labels };
        let step = |c: &Params, gradient: &[f64]| {
            let gradient: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
            optimizer.update(&Compute::serial(1), c, &gradient, 1e-3)
        };
        let result = evaluate_clean(compute, model, theta, head, data, data, ALPHA, None, step)?;
        *head = result.head.clone();
        Ok(result.direction(compute))
    }

    /// The hypergradient along `v` and the policy's step.
    pub fn update_policy(&mut self, v: &[f32]) {
        let Self { model, compute, values: [theta, _, phi], optimizers: [.., optimizer], images, masker, .. } = self;
        let gradient = hypergradient::along(compute, model, theta, v, phi, images, masker, ALPHA);
        *phi = optimizer.update(compute, phi, &gradient, 1e-3);
    }

    /// One outer iteration as published, `clean`: two level-1 steps, one of level 2, one of level 3; the baseline only
    /// the former.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn step(&mut self) -> Result<Lap, ModelError> {
        let (mut lap, flops, mut clock) = (Lap::default(), kernels::flops(), Instant::now());
        let mut note = |part: &mut f64| {
            *part += clock.elapsed().as_secs_f64() * 1e3;
            clock = Instant::now();
        };
        for _ in 0..UNROLL {
            let scored = self.score();
            note(&mut lap.score_ms);
            self.pretrain(&scored)?;
            note(&mut lap.pretrain_ms);
        }
        if !self.spec.baseline {
            let v = self.evaluate()?;
            note(&mut lap.evaluate_ms);
            self.update_policy(&v);
            note(&mut lap.policy_ms);
        }
        lap.gflop = (kernels::flops() - flops) as f64 * 1e-9;
        Ok(lap)
    }
}
