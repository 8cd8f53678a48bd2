//! Workloads that the benchmarks time: one outer iteration of a preset on random images, level by level.

use std::time::Instant;

use mlomae_dataflow::config::{Config, ConfigInputs, Preset};
use mlomae_dataflow::method::model_config;
use mlomae_model::arena::{Arena, Params};
use mlomae_model::levels::downstream::{Labelled, evaluate_clean};
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::levels::scoring::{Masker, score};
use mlomae_model::levels::{Model, hypergradient, pretrain};
use mlomae_model::nets::init::{normals, tensor_rng};
use mlomae_model::{Compute, ModelError, ParamSet, kernels};

/// Side and channels of the images, and their classes.
const IMAGE: (usize, usize, usize) = (32, 3, 10);
/// Level-1 steps of an outer iteration.
const UNROLL: usize = 2;
/// α of the finite difference.
const ALPHA: f64 = 0.01;

/// Milliseconds of one outer iteration by level.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lap {
    /// Scoring both level-1 batches.
    pub score_ms: f64,
    /// Both level-1 steps.
    pub pretrain_ms: f64,
    /// Level 2, v1 and w.
    pub evaluate_ms: f64,
    /// The hypergradient and the policy's step.
    pub policy_ms: f64,
    /// Arithmetic of all products.
    pub gflop: f64,
}

impl Lap {
    /// The whole outer iteration.
    pub fn total_ms(&self) -> f64 {
        self.score_ms + self.pretrain_ms + self.evaluate_ms + self.policy_ms
    }
}

/// Networks, optimizers and data of a preset, ready to be stepped.
pub struct Workload {
    model: Model,
    compute: Compute,
    values: [Params; 3],
    optimizers: [AdamW; 3],
    images: Vec<f32>,
    labels: Vec<i32>,
    /// Images of each batch.
    pub batch: usize,
}

impl Workload {
    /// A preset at its batch size (or `batch`), with `num_threads` threads and micro-batches of `micro_batch` images.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(
        preset: Preset,
        batch: Option<usize>,
        num_threads: usize,
        micro_batch: usize,
    ) -> Result<Self, ModelError> {
        let name = format!("{preset:?}").to_lowercase();
        let inputs = ConfigInputs::default().set(&format!("model.preset={name}"));
        let config = Config::resolve(&inputs).map_err(|errors| ModelError::Config(format!("{errors:?}")))?;
        let (image, channels, num_classes) = IMAGE;
        let model = Model::new(&model_config(&config, image, channels, num_classes))?;
        let batch = batch.unwrap_or(preset.values().batch);
        let mut images = vec![0.0; batch * model.config.image_values()];
        normals(&mut images, 1.0, &mut tensor_rng(0, "images"));
        Ok(Workload {
            values: ParamSet::ALL.map(|set| model.init(set, 1)),
            optimizers: ParamSet::ALL.map(|set| AdamW::new(AdamWConfig::default(), model.layout(set))),
            compute: Compute::new(num_threads, micro_batch, Arena::new())?,
            images,
            labels: (0..batch).map(|i| (i % num_classes) as i32).collect(),
            batch,
            model,
        })
    }

    /// Bytes that the recycled memory has ever taken from the system: constant after the first iterations.
    pub fn allocated_bytes(&self) -> u64 {
        self.compute.arena.allocated_bytes()
    }

    /// One outer iteration as published, `clean`: two level-1 steps, one of level 2, one of level 3.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn step(&mut self) -> Result<Lap, ModelError> {
        let Workload { model, compute, values, optimizers, images, labels, .. } = self;
        let [theta, head, phi] = values;
        let [pretrain_optimizer, head_optimizer, policy_optimizer] = optimizers;
        let (masker, data) = (Masker::by_score(), Labelled { images, labels });
        let (mut lap, flops, mut clock) = (Lap::default(), kernels::flops(), Instant::now());
        let mut note = |part: &mut f64| {
            *part += clock.elapsed().as_secs_f64() * 1e3;
            clock = Instant::now();
        };
        for _ in 0..UNROLL {
            let scored = score(compute, model, theta, phi, images, &masker);
            note(&mut lap.score_ms);
            let step = pretrain::gradient(compute, model, theta, phi, images, &scored)?;
            *theta = pretrain_optimizer.update(compute, theta, &step.gradient, 1e-4);
            note(&mut lap.pretrain_ms);
        }
        let head_step = |c: &Params, gradient: &[f64]| {
            let gradient: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
            head_optimizer.update(&Compute::serial(1), c, &gradient, 1e-3)
        };
        let result = evaluate_clean(compute, model, theta, head, data, data, ALPHA, None, head_step)?;
        *head = result.head.clone();
        note(&mut lap.evaluate_ms);
        let v = result.direction(&compute.arena);
        let gradient = hypergradient::along(compute, model, theta, &v, phi, images, &masker, ALPHA);
        *phi = policy_optimizer.update(compute, phi, &gradient, 1e-3);
        note(&mut lap.policy_ms);
        lap.gflop = (kernels::flops() - flops) as f64 * 1e-9;
        Ok(lap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_allocated_after_warm_up_and_the_work_is_known() {
        let mut workload = Workload::new(Preset::Tiny, Some(8), 2, 4).unwrap();
        for _ in 0..3 {
            workload.step().unwrap();
        }
        let (bytes, gflop) = (workload.allocated_bytes(), workload.step().unwrap().gflop);
        for _ in 0..3 {
            assert_eq!(workload.step().unwrap().gflop, gflop);
        }
        // Two threads may need one more piece when their peaks first coincide; a leak would grow by a step's worth each time.
        assert!(workload.allocated_bytes() <= bytes + bytes / 4, "{bytes} {}", workload.allocated_bytes());
        // 37.0 GFLOP at batch 64 (the counter of the products), so an eighth of it here.
        assert!((gflop - 37.0 / 8.0).abs() < 0.1, "{gflop}");
    }
}
