//! One outer iteration of a preset on random images, level by level and without a pipeline around it: what benchmarks
//! time.

use std::sync::Arc;
use std::time::Instant;

use mlomae_kernels as kernels;
use mlomae_model::algorithm::{Batches, Constants, Event, State, outer_iteration};
use mlomae_model::hypergradient::{Carried, HypergradientChoice, Settings};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::cpu::Cpus;
use mlomae_model::lane::{DeviceChoice, Direction, Downstream, Engine, LabelledImages, Lane, LaneSize, Upstream};
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::masking::{self, MaskRule, MaskingChoice, Scored};
use mlomae_model::parallel::compute::whole_branch;
use mlomae_model::tasks::Targets;
use mlomae_model::{Arena, Model, ModelError, PerLevel, Precision, Vector};

use mlomae_dataflow::config::{Config, ConfigInputs, Preset, TrainConfig};
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::method::model_config;

/// Side, channels and classes of the images: those of CIFAR-10.
const IMAGE: (usize, usize, usize) = (32, 3, 10);
/// Level-1 steps of an outer iteration, as published.
const UNROLL: usize = 2;
/// Learning rates, as published.
const RATES: PerLevel<f64> = PerLevel { pretrain: 1e-4, finetune: 1e-3, mask: 1e-3 };

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
    /// Device to compute on.
    pub engine: Engine,
    /// Precision of the networks' products.
    pub precision: Precision,
    /// Form of the hypergradient.
    pub hypergradient: HypergradientChoice,
}

impl WorkloadSpec {
    /// A preset at its own batch size, on all cores of the processor, in `f32`.
    #[must_use]
    pub fn new(preset: Preset) -> Self {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            preset,
            batch: preset.values().batch,
            num_threads,
            micro_batch: 0,
            baseline: false,
            engine: Engine::Of(DeviceChoice::of(&Cpus)),
            precision: Precision::F32,
            hypergradient: HypergradientChoice::default(),
        }
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
    /// Arithmetic of all products, those of attention included, in 10⁹ operations.
    pub gflop: f64,
    /// Time for which the device was at work, by its own clock, see [`Lane::device_ns`]; none where the host computes.
    pub device_ms: Option<f64>,
}

impl Lap {
    /// The whole outer iteration.
    #[must_use]
    pub fn total_ms(&self) -> f64 {
        self.score_ms + self.pretrain_ms + self.evaluate_ms + self.policy_ms
    }
}

/// Masks at random or by the published network.
pub(super) fn strategy(baseline: bool) -> MaskingChoice {
    MaskingChoice::of(if baseline { &masking::random::Kind } else { &masking::flat::Kind })
}

/// Networks, optimizers and data of a preset, ready to be stepped.
#[derive(Debug)]
pub struct Workload {
    spec: WorkloadSpec,
    lane: Box<dyn Lane>,
    micro_batch: usize,
    state: State,
    images: Vector,
    targets: Targets,
    num_done: u64,
}

impl Workload {
    /// Makes networks and images.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(spec: WorkloadSpec) -> Result<Self, ModelError> {
        let mut config = Config::resolve(&ConfigInputs::default().preset(spec.preset))
            .map_err(|errors| ModelError::Config(format!("{errors:?}")))?;
        config.mask.strategy = strategy(spec.baseline);
        let (image, channels, num_classes) = IMAGE;
        let model = Arc::new(Model::new(&model_config(&config, image, channels, num_classes))?);
        let WorkloadSpec { batch, num_threads, micro_batch, .. } = spec;
        let mut images = vec![0.0; batch * model.config.image_values()];
        normals(&mut images, 1.0, &mut tensor_rng(0, "images"));
        let mut actors = config.actors;
        actors.stage_mut(StageName::Encoder).micro_batch = micro_batch;
        let micro_batch = actors.micro_batch(StageName::Encoder, batch, num_threads);
        let size = LaneSize { num_threads, micro_batch };
        let device = spec.engine.choose()?.device;
        let lane = device.lane(&model, &Arena::new(), spec.grain(), spec.precision, size)?;
        let adamw = PerLevel::from_fn(|level| AdamW::new(AdamWConfig::default(), model.layout(level)));
        let init = PerLevel::from_fn(|level| Vector::from(model.init(level, 1)));
        Ok(Self {
            state: State { theta: init.pretrain, c: init.finetune, phi: init.mask, adamw, carried: Carried::default() }
                .upload(&*lane)?,
            micro_batch: whole_branch(spec.grain(), micro_batch),
            images: lane.upload(&images.into())?,
            lane,
            targets: Targets::Classes((0..batch).map(|i| (i % num_classes) as i32).collect()),
            spec,
            num_done: 0,
        })
    }

    /// What is timed.
    #[must_use]
    pub const fn spec(&self) -> &WorkloadSpec {
        &self.spec
    }

    /// Images of a micro-batch.
    #[must_use]
    pub const fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Bytes that the recycled memory has ever taken from the system: constant after the first iterations.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.lane.allocated_bytes()
    }

    /// The most bytes that were taken of the device's own memory; none where the host computes.
    #[must_use]
    pub fn device_peak_bytes(&self) -> Option<u64> {
        self.lane.device_peak_bytes()
    }

    /// Masks of a batch.
    ///
    /// # Errors
    /// When the lane fails.
    pub fn score(&mut self) -> Result<Scored, ModelError> {
        self.lane.score(Some(&self.state.theta), &self.state.phi, &self.images, &MaskRule::BY_SCORE)
    }

    /// One level-1 step.
    ///
    /// # Errors
    /// When the lane fails.
    pub fn pretrain(&mut self, scored: &Scored) -> Result<(), ModelError> {
        let Self { lane, state: State { theta, phi, adamw, .. }, images, .. } = self;
        let g = lane.pretrain(theta, phi, images, scored)?;
        *theta = lane.update(&mut adamw.pretrain, theta, &g.gradient, RATES.pretrain)?;
        Ok(())
    }

    /// Level 2's step; gives v1 and w.
    ///
    /// # Errors
    /// When the lane fails.
    pub fn evaluate(&mut self) -> Result<Direction, ModelError> {
        let Self { spec, lane, state: State { theta, c, adamw, carried, .. }, images, targets, .. } = self;
        let form = spec.hypergradient;
        let data = LabelledImages { images, targets };
        let bank = &carried.bank;
        let at = Downstream { theta, c, finetune: data, validation: data, bank };
        let f = form.finetune(&mut **lane, &at, &|_| None)?;
        *c = lane.update(&mut adamw.finetune, c, &f.gradient, RATES.finetune)?;
        let at = Downstream { theta, c, finetune: data, validation: data, bank };
        form.direction(&mut **lane, &at, f, &Settings::default(), &|_| None)
    }

    /// The hypergradient along v1 + w and the policy's step.
    ///
    /// # Errors
    /// When the lane fails.
    pub fn update_policy(&mut self, v: Direction) -> Result<(), ModelError> {
        let Self { spec, lane, state: State { theta, phi, adamw, carried, .. }, images, .. } = self;
        let settings = Settings::default();
        let (rule, estimator, want_signal) = (&MaskRule::BY_SCORE, settings.estimator, false);
        let at = Upstream { theta, phi, images, rule, estimator, want_signal };
        let g = carried.along(spec.hypergradient.get(), &mut **lane, &at, [v.v1, v.w], &settings)?;
        *phi = lane.update(&mut adamw.mask, phi, &g.gradient, RATES.mask)?;
        Ok(())
    }

    /// One outer iteration as published: two level-1 steps, one of level 2, one of level 3; the baseline only
    /// the former.
    ///
    /// # Errors
    /// When the lane fails.
    pub fn step(&mut self) -> Result<Lap, ModelError> {
        let Self { spec, lane, state, images, targets, num_done, .. } = self;
        let constants = Constants {
            form: spec.hypergradient.get(),
            settings: Settings::default(),
            rates: PerLevel { pretrain: &|_| RATES.pretrain, finetune: &|_| RATES.finetune, mask: &|_| RATES.mask },
            rule: &|_| MaskRule::BY_SCORE,
            noise: &|_, _| None,
        };
        let pretrain = [(); UNROLL].map(|()| images.clone());
        let data = LabelledImages { images, targets };
        let batches = Batches { pretrain: &pretrain, finetune: data, validation: data };
        // What the lane has counted before is not of this iteration.
        let _ = (lane.flops(), lane.device_ns());
        let (mut lap, flops, mut clock) = (Lap::default(), kernels::flops(), Instant::now());
        outer_iteration(&mut **lane, &constants, state, &batches, *num_done, &mut |event| {
            let part = match event {
                Event::Scored(_) => &mut lap.score_ms,
                Event::Pretrain(_) => &mut lap.pretrain_ms,
                Event::Finetune(_) | Event::Direction(_) => &mut lap.evaluate_ms,
                Event::Search(_) | Event::Hypergradient(_) => &mut lap.policy_ms,
            };
            *part += clock.elapsed().as_secs_f64() * 1e3;
            clock = Instant::now();
        })?;
        *num_done += 1;
        lap.gflop = (kernels::flops() - flops + lane.flops().unwrap_or(0)) as f64 * 1e-9;
        lap.device_ms = lane.device_ns().map(|ns| ns as f64 * 1e-6);
        Ok(lap)
    }
}
