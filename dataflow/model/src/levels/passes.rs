//! Encoder passes over a batch for the downstream task. They are recorded: the cotangents at their outputs depend on
//! the whole batch, so all micro-batches run forward before the first runs backward.

use std::ops::Range;
use std::sync::Arc;

use super::Cpu;
use super::score::patches;
use crate::engine::dfdx_cpu::{CpuTensor, DfdxCpu};
use crate::engine::{Engine, HostIo, Tape};
use crate::error::ModelError;
use crate::level::Level;
use crate::masking::attention::{cls_attention, rollout};
use crate::parallel::arena::{Buffer, Params};
use crate::parallel::compute::{Compute, Held};
use crate::parallel::sum::OrderedSum;
use crate::tap::Tap;
use crate::tasks::Tokens;

/// What a head reads of the encoder on a batch: the tokens of each tap, `[images, per_image, dim]`.
#[derive(Clone, Debug)]
pub struct Taps {
    dim: usize,
    per_image: Vec<usize>,
    values: Vec<Vec<f32>>,
}

impl Taps {
    /// The taps of the whole batch, from those of this rank's micro-batches and of all other ranks. `parts` is by
    /// micro-batch, then by tap.
    fn joined(cpu: &Cpu, parts: Vec<Vec<Vec<f32>>>) -> Result<Self, ModelError> {
        let c = &cpu.model.config;
        let taps = cpu.model.task.reads();
        let values = (0..taps.len()).map(|tap| {
            let local: Vec<f32> = parts.iter().flat_map(|part| part[tap].iter().copied()).collect();
            Ok(cpu.collective.gather(Buffer::from_vec(local))?.to_vec())
        });
        let per_image = taps.iter().map(|tap| tap.tokens(c.num_patches())).collect();
        Ok(Taps { dim: c.dim, per_image, values: values.collect::<Result<_, ModelError>>()? })
    }

    /// The tokens of each tap.
    #[must_use]
    pub fn tokens(&self) -> Vec<Tokens<'_>> {
        let taps = self.per_image.iter().zip(&self.values);
        taps.map(|(&per_image, values)| Tokens { per_image, dim: self.dim, values }).collect()
    }
}

/// The tokens of some images at each tap that the task reads.
#[must_use]
pub fn tokens<'a>(cpu: &Cpu, taps: &'a [Vec<f32>]) -> Vec<Tokens<'a>> {
    let c = &cpu.model.config;
    let reads = cpu.model.task.reads().iter().zip(taps);
    reads.map(|(tap, values)| Tokens { per_image: tap.tokens(c.num_patches()), dim: c.dim, values }).collect()
}

/// The taps that the task reads of images `[images, C, H, W]`, by a forward pass without a tape.
///
/// # Errors
/// When another rank is gone.
pub fn features(cpu: &Cpu, theta: &Params, images: &[f32]) -> Result<Taps, ModelError> {
    let (compute, values) = (&cpu.compute, cpu.model.config.image_values());
    let pieces = compute.micro_batches(images.len() / values);
    let parts = compute.map(pieces.len(), |i| {
        let part = &images[pieces[i].start * values..pieces[i].end * values];
        let mut e = cpu.forward_only();
        let z = forward(cpu, &mut e, theta, part, false, cpu.model.task.reads());
        z.iter().map(|z| e.values(z).to_vec()).collect()
    });
    Taps::joined(cpu, parts)
}

/// CLS tokens after the encoder's final norm, `[images, dim]`, of images `[images, C, H, W]`, whatever the task reads.
///
/// # Errors
/// When another rank is gone.
pub fn cls(cpu: &Cpu, theta: &Params, images: &[f32]) -> Result<Vec<f32>, ModelError> {
    Ok(taps(cpu, theta, images, &[Tap::Cls])?.pop().unwrap_or_default())
}

/// The tokens of images `[images, C, H, W]` at each of `taps`, `[images, tokens, dim]`, by a forward pass without a tape.
///
/// # Errors
/// When another rank is gone.
pub fn taps(cpu: &Cpu, theta: &Params, images: &[f32], taps: &[Tap]) -> Result<Vec<Vec<f32>>, ModelError> {
    let (compute, values) = (&cpu.compute, cpu.model.config.image_values());
    let pieces = compute.micro_batches(images.len() / values);
    let parts: Vec<Vec<Vec<f32>>> = compute.map(pieces.len(), |i| {
        let part = &images[pieces[i].start * values..pieces[i].end * values];
        let mut e = cpu.forward_only();
        let z = forward(cpu, &mut e, theta, part, false, taps);
        z.iter().map(|z| e.values(z).to_vec()).collect()
    });
    let joined = (0..taps.len()).map(|tap| {
        let local: Vec<f32> = parts.iter().flat_map(|part| part[tap].iter().copied()).collect();
        Ok(cpu.collective.gather(Buffer::from_vec(local))?.to_vec())
    });
    joined.collect()
}

/// What CLS attends to in the last block, `[images, L]` as [`cls_attention`] has it, of images `[images, C, H, W]` of
/// this rank.
#[must_use]
pub fn attention(cpu: &Cpu, theta: &Params, images: &[f32]) -> Vec<f32> {
    let c = &cpu.model.config;
    of_pieces(cpu, images, |images| {
        let mut e = cpu.forward_only();
        e.bind(Level::Pretrain, theta, false);
        let input = e.constant(patches(cpu, images), images.len() / c.patch_values(), c.patch_values());
        let [queries, keys] = cpu.model.vit.cls_queries_and_keys(&mut e, &input);
        cls_attention(e.values(&queries), e.values(&keys), c.num_patches(), c.heads, c.dim)
    })
}

/// What CLS attends to through all blocks, `[images, L]` as [`rollout`] has it, of images `[images, C, H, W]` of this
/// rank.
#[must_use]
pub fn attention_rollout(cpu: &Cpu, theta: &Params, images: &[f32]) -> Vec<f32> {
    let c = &cpu.model.config;
    of_pieces(cpu, images, |images| {
        let mut e = cpu.forward_only();
        e.bind(Level::Pretrain, theta, false);
        let input = e.constant(patches(cpu, images), images.len() / c.patch_values(), c.patch_values());
        let blocks = cpu.model.vit.queries_and_keys(&mut e, &input);
        let blocks: Vec<&[f32]> = blocks.iter().map(|block| e.values(block)).collect();
        rollout(&blocks, c.num_patches(), c.heads, c.dim)
    })
}

/// Patch tokens after the encoder's final norm, `[images, L, dim]`, of images `[images, C, H, W]` of this rank.
#[must_use]
pub fn patch_tokens(cpu: &Cpu, theta: &Params, images: &[f32]) -> Vec<f32> {
    of_pieces(cpu, images, |images| {
        let mut e = cpu.forward_only();
        let z = forward(cpu, &mut e, theta, images, false, &[Tap::Patches]);
        e.values(&z[0]).to_vec()
    })
}

/// Values of images `[images, C, H, W]`, from a pass over each micro-batch.
fn of_pieces(cpu: &Cpu, images: &[f32], pass: impl Fn(&[f32]) -> Vec<f32> + Sync) -> Vec<f32> {
    let values = cpu.model.config.image_values();
    let pieces = cpu.compute.micro_batches(images.len() / values);
    cpu.compute.map(pieces.len(), |i| pass(&images[pieces[i].start * values..pieces[i].end * values])).concat()
}

fn forward(
    cpu: &Cpu,
    e: &mut DfdxCpu,
    theta: &Params,
    images: &[f32],
    want_gradient: bool,
    taps: &[Tap],
) -> Vec<CpuTensor> {
    let (c, model) = (&cpu.model.config, &cpu.model);
    e.bind(Level::Pretrain, theta, want_gradient);
    let input = e.constant(patches(cpu, images), images.len() / c.patch_values(), c.patch_values());
    model.vit.taps(e, &input, taps)
}

/// A recorded pass over a micro-batch. It stays on the thread that recorded it: dfdx's tape is not `Send`.
pub struct Pass {
    engine: DfdxCpu,
    z: Vec<CpuTensor>,
}

/// The encoder passes over one batch, and the sum of their gradients for θ.
#[derive(Clone, Debug)]
pub struct Passes {
    cpu: Cpu,
    /// The images of each micro-batch, as ranges of this rank's images.
    pub pieces: Vec<Range<usize>>,
    num_images: usize,
    sum: Arc<OrderedSum>,
}

/// A batch whose encoder passes have run forward and are recorded until their cotangents are known.
#[derive(Debug)]
pub struct Recorded {
    passes: Passes,
    held: Held,
    /// What the head reads of the whole batch.
    pub z: Taps,
}

impl Passes {
    /// Passes over images `[images, C, H, W]`; nothing is computed yet.
    #[must_use]
    pub fn new(cpu: &Cpu, theta: &Params, images: &[f32]) -> Self {
        let num_images = images.len() / cpu.model.config.image_values();
        let pieces = cpu.compute.micro_batches(num_images);
        let sum = Arc::new(OrderedSum::new(&cpu.compute.arena, pieces.len(), theta.len()));
        Passes { cpu: cpu.clone(), pieces, num_images, sum }
    }

    /// The images of micro-batch `i`, as a range of the images of all ranks.
    #[must_use]
    pub fn place(&self, i: usize) -> Range<usize> {
        let first = self.cpu.collective.rank() * self.num_images;
        first + self.pieces[i].start..first + self.pieces[i].end
    }

    /// Runs micro-batch `i` forward: the recorded pass, and the values of each tap.
    #[must_use]
    pub fn forward(&self, theta: &Params, images: &[f32], i: usize) -> (Pass, Vec<Vec<f32>>) {
        let (cpu, piece) = (&self.cpu, &self.pieces[i]);
        let values = cpu.model.config.image_values();
        let images = &images[piece.start * values..piece.end * values];
        let mut engine = cpu.recording(piece.len());
        engine.sum_into(Level::Pretrain, &self.sum, i);
        let z = forward(cpu, &mut engine, theta, images, true, cpu.model.task.reads());
        let taps = z.iter().map(|z| engine.values(z).to_vec()).collect();
        (Pass { engine, z }, taps)
    }

    /// Runs a micro-batch backward from the cotangents of its taps, and adds its gradient to the sum.
    ///
    /// # Errors
    /// When the tape fails.
    pub fn backward(&self, mut pass: Pass, dz: &[&[f64]]) -> Result<(), ModelError> {
        let cotangents = pass.z.into_iter().zip(dz).map(|(z, dz)| {
            let mut cotangent = self.cpu.compute.arena.take(dz.len());
            cotangent.iter_mut().zip(*dz).for_each(|(d, &s)| *d = s as f32);
            (z, cotangent)
        });
        pass.engine.backward(cotangents.collect()).map(drop)
    }

    /// The sum of the gradients of all micro-batches and ranks, flat over θ, zero on the decoder and on frozen weights;
    /// empty for a batch without images.
    ///
    /// # Errors
    /// When another rank is gone.
    pub fn finish(self) -> Result<Buffer, ModelError> {
        let mut gradient = self.cpu.collective.sum(self.sum.finish().unwrap_or_default())?;
        if !gradient.is_empty() {
            self.cpu.model.vit.layout.zero_frozen(&mut gradient);
        }
        Ok(gradient)
    }

    /// The taps of the whole batch over all ranks, from the values that [`Passes::forward`] returned for each
    /// micro-batch.
    ///
    /// # Errors
    /// When another rank is gone.
    pub fn joined(&self, parts: Vec<Vec<Vec<f32>>>) -> Result<Taps, ModelError> {
        Taps::joined(&self.cpu, parts)
    }

    /// Runs the whole batch forward; each micro-batch's tape stays on its thread until [`Recorded::backward`].
    ///
    /// # Errors
    /// When another rank is gone.
    pub fn record(self, theta: &Params, images: &[f32]) -> Result<Recorded, ModelError> {
        let (held, parts) = self.cpu.compute.hold(self.pieces.len(), |i| self.forward(theta, images, i));
        let z = Taps::joined(&self.cpu, parts)?;
        Ok(Recorded { passes: self, held, z })
    }
}

impl Recorded {
    /// The gradient for θ, as [`Passes::finish`], from the cotangents of the taps of the whole batch, each
    /// `[images, per_image, dim]`.
    ///
    /// # Errors
    /// When the tape fails, another rank is gone, or (without a thread pool) this is not the thread that called
    /// [`Passes::record`].
    pub fn backward(self, dz: &[Vec<f64>]) -> Result<Buffer, ModelError> {
        self.backward_each(|passes, z, place, pass| {
            let parts = dz.iter().zip(&z.per_image).map(|(dz, per_image)| {
                let per_image = per_image * z.dim;
                &dz[place.start * per_image..place.end * per_image]
            });
            passes.backward(pass, &parts.collect::<Vec<_>>())
        })
    }

    /// As [`Recorded::backward`], from the cotangents that `cotangents` gives for the tokens of some images and their
    /// place in the batch. It is called on the threads that hold these images' passes.
    ///
    /// # Errors
    /// As [`Recorded::backward`], and those of `cotangents`.
    pub fn backward_from(
        self,
        cotangents: impl Fn(&[Tokens<'_>], Range<usize>) -> Result<Vec<Vec<f64>>, ModelError> + Sync,
    ) -> Result<Buffer, ModelError> {
        self.backward_each(|passes, z, place, pass| {
            let tokens: Vec<Tokens<'_>> = z.tokens().iter().map(|z| z.slice(place.clone())).collect();
            let dz = cotangents(&tokens, place)?;
            passes.backward(pass, &dz.iter().map(Vec::as_slice).collect::<Vec<_>>())
        })
    }

    fn backward_each(
        self,
        backward: impl Fn(&Passes, &Taps, Range<usize>, Pass) -> Result<(), ModelError> + Sync,
    ) -> Result<Buffer, ModelError> {
        let Recorded { passes, held, z } = self;
        let outcomes = Compute::resume(held, |i, pass: Pass| backward(&passes, &z, passes.place(i), pass));
        let outcomes = outcomes.ok_or_else(|| ModelError::Lane {
            lane: "cpu",
            problem: "a pass must be ended on the thread that began it".to_owned(),
        })?;
        outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
        passes.finish()
    }
}
