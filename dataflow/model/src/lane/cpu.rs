//! The CPU as a device: a lane is a pool of threads with recycled memory, which runs [`levels`](crate::levels).

use std::ops::Range;
use std::sync::Arc;

use mlomae_kernels as kernels;

use super::seam::{
    Device, Direction, Downstream, FinetuneGradient, LabelledImages, Lane, LaneSize, Lanes, LanesSpec,
    PretrainGradient, Recording, Upstream,
};
use crate::choice::Named;
use crate::error::ModelError;
use crate::levels::optimizer::{AdamW, AdamWConfig};
use crate::levels::passes::{self, Recorded};
use crate::levels::vectors::{self, widen};
use crate::levels::{Cpu, Labelled, finetune, mask, pretrain, score};
use crate::masking::{MaskRule, Needs, Scored};
use crate::model::Model;
use crate::parallel::arena::{Arena, Buffer, Params};
use crate::parallel::compute::Compute;
use crate::precision::Precision;
use crate::tap::Tap;
use crate::tasks::{Noise, TapCotangents, Task};
use crate::vector::Vector;

/// A lane of the CPU. Cloning shares its threads and memory.
#[derive(Clone, Debug)]
pub struct CpuLane {
    cpu: Cpu,
}

impl CpuLane {
    /// A lane over the threads of `cpu`.
    #[must_use]
    pub const fn new(cpu: Cpu) -> Self {
        CpuLane { cpu }
    }

    /// A lane that computes on the calling thread with an arena of its own, for tests, examples and small jobs.
    #[must_use]
    pub fn serial(model: Arc<Model>, grain: usize) -> Self {
        CpuLane { cpu: Cpu::new(model, Compute::serial(grain)) }
    }

    /// The arguments for the functions of [`levels`](crate::levels).
    #[must_use]
    pub const fn cpu(&self) -> &Cpu {
        &self.cpu
    }
}

/// The values of a vector, which must be in host memory.
fn host(vector: &Vector) -> Result<&Params, ModelError> {
    let elsewhere = || ModelError::Lane { lane: "cpu", problem: "a vector is not in host memory".to_owned() };
    vector.host().ok_or_else(elsewhere)
}

/// A recording of this device.
fn recorded_here(recording: Recording) -> Result<Recorded, ModelError> {
    let other = |_| ModelError::Lane { lane: "cpu", problem: "a recording was made by another lane".to_owned() };
    recording.0.downcast::<Recorded>().map(|recorded| *recorded).map_err(other)
}

fn labelled<'a>(batch: &LabelledImages<'a>) -> Result<Labelled<'a>, ModelError> {
    Ok(Labelled { images: host(batch.images)?, targets: batch.targets })
}

fn direction(of: mask::Direction) -> Direction {
    let (v1, w) = (of.v1.into(), of.w.into());
    Direction { loss: of.loss, figures: of.figures, v0: of.v0, v1, w, response: None, cosines: Vec::new() }
}

impl Lane for CpuLane {
    fn model(&self) -> &Arc<Model> {
        &self.cpu.model
    }

    fn fork(&self) -> Result<Box<dyn Lane>, ModelError> {
        Ok(Box::new(self.clone()))
    }

    fn upload(&self, vector: &Vector) -> Result<Vector, ModelError> {
        Ok(vector.to_host()?.into())
    }

    fn score(
        &mut self,
        theta: Option<&Vector>,
        phi: &Vector,
        images: &Vector,
        rule: &MaskRule,
    ) -> Result<Scored, ModelError> {
        let theta = theta.map(host).transpose()?;
        score::score(&self.cpu, theta, host(phi)?, host(images)?, rule)
    }

    fn pretrain(
        &mut self,
        theta: &Vector,
        phi: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<PretrainGradient, ModelError> {
        let g = pretrain::gradient(&self.cpu, host(theta)?, host(phi)?, host(images)?, scored)?;
        Ok(PretrainGradient { loss: g.loss, gradient: g.gradient.into(), patch_loss: g.patch_loss.into() })
    }

    fn finetune(
        &mut self,
        at: &Downstream<'_>,
        noise: Option<Noise>,
        keep: bool,
    ) -> Result<FinetuneGradient, ModelError> {
        let c = widen(host(at.c)?);
        let g = finetune::gradient(&self.cpu, host(at.theta)?, &c, labelled(&at.finetune)?, noise, keep)?;
        Ok(FinetuneGradient {
            loss: g.loss,
            figures: g.figures,
            gradient: g.gradient.into(),
            recorded: g.recorded.map(|recorded| Recording(Box::new(recorded))),
        })
    }

    fn direction(&mut self, at: &Downstream<'_>, recorded: Recording, alpha: f64) -> Result<Direction, ModelError> {
        let recorded = recorded_here(recorded)?;
        let c = widen(host(at.c)?);
        let (f, v) = (labelled(&at.finetune)?, labelled(&at.validation)?);
        mask::direction(&self.cpu, host(at.theta)?, &c, recorded, f, v, alpha).map(direction)
    }

    fn direction_published(
        &mut self,
        at: &Downstream<'_>,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        let c = widen(host(at.c)?);
        let (f, v) = (labelled(&at.finetune)?, labelled(&at.validation)?);
        mask::direction_published(&self.cpu, host(at.theta)?, &c, f, v, alpha, noise).map(direction)
    }

    fn pull_back(
        &mut self,
        at: &Downstream<'_>,
        recorded: Recording,
        cotangents: &mut TapCotangents<'_>,
    ) -> Result<[Vector; 2], ModelError> {
        let recorded = recorded_here(recorded)?;
        let validation = labelled(&at.validation)?;
        mask::pull_back(&self.cpu, host(at.theta)?, recorded, validation, cotangents).map(|both| both.map(Vector::from))
    }

    fn preconditioned(&mut self, x: &Vector, v: &Vector, step: u64, adamw: &AdamWConfig) -> Result<Vector, ModelError> {
        Ok(vectors::preconditioned(&self.cpu.compute, host(x)?, host(v)?, step, adamw).into())
    }

    fn patch_loss_tangents(
        &mut self,
        theta: &Vector,
        v: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<Vec<f32>, ModelError> {
        let (theta, v, images) = (host(theta)?, host(v)?, host(images)?);
        let (_, tangents) = pretrain::patch_loss_tangents(&self.cpu, theta, v, images, &scored.order);
        Ok(tangents.to_vec())
    }

    fn mask_gradient(&mut self, phi: &Vector, scored: &Scored, dscores: &[f32]) -> Result<Vector, ModelError> {
        mask::score_gradient(&self.cpu, host(phi)?, scored, dscores).map(Vector::from)
    }

    fn rank(&self) -> usize {
        self.cpu.collective.rank()
    }

    fn num_ranks(&self) -> usize {
        self.cpu.collective.num_ranks()
    }

    fn gather(&mut self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(self.cpu.collective.gather(Buffer::from_vec(values))?.to_vec())
    }

    fn difference(&mut self, at: &Upstream<'_>, v: &Vector, alpha: f64) -> Result<Vector, ModelError> {
        let (theta, phi, images) = (host(at.theta)?, host(at.phi)?, host(at.images)?);
        mask::along(&self.cpu, theta, host(v)?, phi, images, at.rule, alpha).map(Vector::from)
    }

    fn tangent(&mut self, at: &Upstream<'_>, v: &Vector) -> Result<Vector, ModelError> {
        let (theta, phi, images) = (host(at.theta)?, host(at.phi)?, host(at.images)?);
        mask::tangent(&self.cpu, theta, host(v)?, phi, images, at.rule).map(Vector::from)
    }

    fn update(
        &mut self,
        adamw: &mut AdamW,
        values: &Vector,
        gradient: &Vector,
        rate: f64,
    ) -> Result<Vector, ModelError> {
        adamw.update(&self.cpu.compute, host(values)?, host(gradient)?, rate).map(Vector::from)
    }

    fn patch_losses(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vector, ModelError> {
        Ok(pretrain::patch_losses(&self.cpu, host(theta)?, host(images)?, &scored.order).into())
    }

    fn reconstruct(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vec<f32>, ModelError> {
        Ok(pretrain::reconstruct(&self.cpu, host(theta)?, host(images)?, &scored.order))
    }

    fn features(&mut self, theta: &Vector, images: &Vector) -> Result<Vec<f32>, ModelError> {
        passes::cls(&self.cpu, host(theta)?, host(images)?)
    }

    fn read_taps(&mut self, theta: &Vector, images: &Vector, taps: &[Tap]) -> Result<Vec<Vec<f32>>, ModelError> {
        passes::taps(&self.cpu, host(theta)?, host(images)?, taps)
    }

    fn set_task(&mut self, task: &Arc<dyn Task>) {
        self.cpu.model = Arc::new(self.cpu.model.with_task(task));
    }

    fn shifted(&mut self, theta: &Vector, v: &Vector, epsilon: f64) -> Result<Vector, ModelError> {
        let num_moving = self.cpu.model.vit.encoder_len;
        Ok(vectors::shifted(&self.cpu.compute, host(theta)?, host(v)?, epsilon, num_moving).into())
    }

    fn combined(&mut self, a: f64, x: &Vector, b: f64, y: &Vector) -> Result<Vector, ModelError> {
        let (x, y) = (host(x)?, host(y)?);
        let mut out = self.cpu.arena().zeros(x.len());
        kernels::axpy(&mut out, a as f32, x);
        kernels::axpy(&mut out, b as f32, y);
        Ok(out.into())
    }

    fn sum(&mut self, x: &Vector, y: &Vector) -> Result<Vector, ModelError> {
        Ok(vectors::sum(&self.cpu.compute, host(x)?, host(y)?).into())
    }

    fn norm(&mut self, x: &Vector) -> Result<f64, ModelError> {
        Ok(vectors::norm(&self.cpu.compute, host(x)?))
    }

    fn cosine(&mut self, x: &Vector, y: &Vector) -> Result<f64, ModelError> {
        Ok(vectors::cosine(&self.cpu.compute, host(x)?, host(y)?))
    }

    fn values(&mut self, x: &Vector, range: Range<usize>) -> Result<Vec<f32>, ModelError> {
        Ok(host(x)?[range].to_vec())
    }

    fn first_non_finite(&mut self, x: &Vector) -> Result<Option<(usize, f32)>, ModelError> {
        let values = host(x)?;
        Ok(kernels::first_non_finite(values).map(|place| (place, values[place])))
    }

    fn allocated_bytes(&self) -> u64 {
        self.cpu.arena().allocated_bytes()
    }
}

/// The CPU's entry of [`super::DEVICES`].
#[derive(Debug)]
pub struct Cpus;

impl Named for Cpus {
    fn name(&self) -> &'static str {
        "cpu"
    }
    fn summary(&self) -> &'static str {
        "The processor, with the threads of each stage"
    }
}

impl Device for Cpus {
    fn problem(&self) -> Option<String> {
        None
    }

    fn is_host(&self) -> bool {
        true
    }

    fn refuses(&self, precision: Precision) -> Option<String> {
        (precision == Precision::Tf32).then(|| "the processor has no tf32; it has f32 and bf16".to_owned())
    }

    /// Where the levels take turns they share one thread pool, as large as the largest; otherwise each has its own.
    /// Level 1 waits for scores that read the newest θ or a teacher, so the scorer shares its pool; other scores run
    /// ahead on one thread. Results depend on neither.
    fn lanes(&self, spec: &LanesSpec) -> Result<Lanes, ModelError> {
        let compute = |num_threads: usize| Compute::new(num_threads, spec.grain, spec.arena.clone());
        let sizes = [spec.pretrain, spec.finetune, spec.mask];
        let [pretrain, finetune, mask] = if spec.take_turns {
            let shared = compute(sizes.iter().map(|size| size.num_threads).max().unwrap_or(1))?;
            [shared.clone(), shared.clone(), shared]
        } else {
            let [pretrain, finetune, mask] = sizes;
            [compute(pretrain.num_threads)?, compute(finetune.num_threads)?, compute(mask.num_threads)?]
        };
        let score = match spec.model.masking.needs() {
            Needs::Embedding | Needs::Attention | Needs::Rollout | Needs::Tokens | Needs::Losses => pretrain.clone(),
            Needs::Pixels | Needs::Nothing | Needs::Objects => compute(1)?,
        };
        let lane = |compute: &Compute, size: LaneSize| -> Box<dyn Lane> {
            let cpu = Cpu::new(spec.model.clone(), compute.with_micro_batch(size.micro_batch));
            Box::new(CpuLane::new(cpu.with_precision(spec.precision)))
        };
        Ok(Lanes {
            score: lane(&score, spec.score),
            pretrain: lane(&pretrain, spec.pretrain),
            finetune: lane(&finetune, spec.finetune),
            mask: lane(&mask, spec.mask),
        })
    }

    fn lane(
        &self,
        model: &Arc<Model>,
        arena: &Arena,
        grain: usize,
        precision: Precision,
        size: LaneSize,
    ) -> Result<Box<dyn Lane>, ModelError> {
        let compute = Compute::new(size.num_threads, grain, arena.clone())?.with_micro_batch(size.micro_batch);
        Ok(Box::new(CpuLane::new(Cpu::new(model.clone(), compute).with_precision(precision))))
    }
}
