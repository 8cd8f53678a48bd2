//! The lane of a GPU: a stream with its own memory.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use mlomae_device::ops::{AdamWPieces, AdamWStep};
use mlomae_device::{Mem, Precision, Priority, Stream};

use super::device::{Cuda, home, of_device};
use super::head::Wide;
use super::levels::{Recorded, Taps};
use super::steady::{Batch, Graphs};
use super::vector::{GpuVector, Home, mem};
use crate::error::ModelError;
use crate::images::Images;
use crate::lane::{Device, Direction, Downstream, FinetuneGradient, Lane, PretrainGradient, Recording, Upstream};
use crate::levels::optimizer::{AdamW, AdamWConfig};
use crate::levels::vectors::{bias_correction, step_size};
use crate::masking::{MaskNetwork, MaskRule, NetworkRows, Scored};
use crate::model::Model;
use crate::parallel::compute::Compute;
use crate::tap::Tap;
use crate::tasks::{LinearHead, Noise, TapCotangents, Task, Want};
use crate::vector::Vector;

/// A lane of the GPU.
#[derive(Debug)]
pub struct CudaLane {
    pub(super) model: Arc<Model>,
    pub(super) stream: Stream,
    /// The masking network, if it can be computed here.
    pub(super) network: Option<MaskNetwork>,
    /// The task's head, if it is computed here.
    pub(super) linear_head: Option<LinearHead>,
    /// Positions of a masking network over patches.
    pub(super) positions: Option<Mem<f32>>,
    /// Work that repeats; none where graphs do not pay.
    pub(super) graphs: Option<RefCell<Graphs>>,
    home: Arc<Home>,
    /// Of the last optimizer step.
    pieces: Option<Pieces>,
}

/// Runs of weight decay (as bits: frozen ones are NaN) and their copy on the device.
#[derive(Debug)]
struct Pieces {
    runs: Vec<(Range<usize>, u64)>,
    copy: AdamWPieces,
}

impl CudaLane {
    pub(super) fn new(
        home: &Arc<Home>,
        model: &Arc<Model>,
        precision: Precision,
        priority: Priority,
    ) -> Result<Self, ModelError> {
        if let Some(problem) = Cuda.unfit(&model.config) {
            return Err(ModelError::Config(problem));
        }
        let stream = Stream::new(&home.gpu, precision, priority)?;
        let network = model.masking.network();
        let positions = match network.as_ref().map(|network| &network.rows) {
            Some(NetworkRows::Patches(places)) => Some(stream.upload(places)),
            Some(NetworkRows::Images) | None => None,
        };
        stream.wait()?;
        Ok(CudaLane {
            model: model.clone(),
            positions,
            graphs: Graphs::of(&stream, model.vit.layout.len)?,
            stream,
            network,
            linear_head: model.task.linear_head(),
            home: home.clone(),
            pieces: None,
        })
    }

    /// A lane of the first GPU.
    ///
    /// # Errors
    /// When the machine has none that can be used, or it fails.
    pub fn open(model: &Arc<Model>, precision: crate::Precision) -> Result<Self, ModelError> {
        Self::new(&home()?, model, of_device(precision), Priority::Normal)
    }

    /// Threads for heads.
    pub(super) fn heads(&self) -> &Compute {
        &self.home.heads
    }

    /// A result that others may read: waits for the stream.
    fn complete(&self, values: Mem<f32>) -> Result<Vector, ModelError> {
        self.stream.wait()?;
        Ok(GpuVector::shared(&self.home, values))
    }

    fn adamw_pieces(&mut self, adamw: &AdamW) -> AdamWPieces {
        let runs: Vec<_> = adamw.pieces().iter().map(|(range, decay)| (range.clone(), decay.to_bits())).collect();
        match &self.pieces {
            Some(known) if known.runs == runs => known.copy.clone(),
            _ => {
                let copy = self.stream.adamw_pieces(adamw.pieces());
                self.pieces = Some(Pieces { runs, copy: copy.clone() });
                copy
            }
        }
    }

    /// A moment that may be written: itself if nobody shares it, else a copy (a checkpoint holds the old one).
    fn moment(&self, vector: &Vector) -> Result<Mem<f32>, ModelError> {
        let values = mem(vector)?;
        if vector.is_unique() {
            return Ok(values.clone());
        }
        let copy = self.stream.take(values.len());
        self.stream.copy(copy.view(), values.view());
        Ok(copy)
    }
}

impl Lane for CudaLane {
    fn model(&self) -> &Arc<Model> {
        &self.model
    }

    fn fork(&self) -> Result<Box<dyn Lane>, ModelError> {
        Ok(Box::new(CudaLane::new(&self.home, &self.model, self.stream.precision(), Priority::Normal)?))
    }

    fn upload(&self, vector: &Vector) -> Result<Vector, ModelError> {
        if vector.device::<GpuVector>().is_some() {
            return Ok(vector.clone());
        }
        self.complete(self.stream.upload(&vector.to_host()?))
    }

    fn ingest(&self, images: &Images) -> Result<Vector, ModelError> {
        let raw = match images {
            Images::Values(values) => return self.upload(values),
            Images::Raw(raw) => raw,
        };
        let windows = raw.windows().iter();
        let windows: Vec<u32> = windows
            .flat_map(|window| [window.top.cast_unsigned(), window.left.cast_unsigned(), window.mirrored.into()])
            .collect();
        let scaling: Vec<f32> = raw.scaling().iter().flat_map(|of| [of.scale, of.shift]).collect();
        let stream = &self.stream;
        let (pixels, windows) = (stream.upload(raw.pixels()), stream.upload(&windows));
        let (values, scaling) = (stream.take(pixels.len()), stream.upload(&scaling));
        stream.pixel_values(values.view(), pixels.view(), windows.view(), scaling.view(), raw.side());
        self.complete(values)
    }

    fn score(
        &mut self,
        theta: Option<&Vector>,
        phi: &Vector,
        images: &Vector,
        rule: &MaskRule,
    ) -> Result<Scored, ModelError> {
        let theta = theta.map(mem).transpose()?;
        let (scored, _) = self.scores(theta, mem(phi)?, mem(images)?, rule)?;
        self.stream.wait()?;
        Ok(scored)
    }

    fn pretrain(
        &mut self,
        theta: &Vector,
        phi: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<PretrainGradient, ModelError> {
        let of = self.reconstruction(mem(theta)?, mem(phi)?, mem(images)?, scored)?;
        let (gradient, patch_loss) = (self.complete(of.gradient)?, self.complete(of.patch_loss)?);
        Ok(PretrainGradient { loss: of.loss, gradient, patch_loss })
    }

    fn finetune(
        &mut self,
        at: &Downstream<'_>,
        noise: Option<Noise>,
        keep: bool,
    ) -> Result<FinetuneGradient, ModelError> {
        let (theta, images) = (mem(at.theta)?, mem(at.finetune.images)?);
        let c = self.head_weights(mem(at.c)?)?;
        let want = Want { dc: true, dz: false };
        let evaluate = |taps: &Taps| self.evaluate(&c, taps, at.finetune.targets, noise, want);
        let (at, recorded) = if keep {
            let recorded = self.encode(theta, images, Batch::Finetune)?;
            (evaluate(&recorded.taps)?, Some(recorded))
        } else {
            let taps = self.features_of(theta, images, self.model.task.reads());
            (evaluate(&self.taps(taps)?)?, None)
        };
        Ok(FinetuneGradient {
            loss: at.loss,
            gradient: self.complete(self.narrowed(&at.dc))?,
            figures: at.figures,
            recorded: recorded.map(|recorded| Recording(Box::new(recorded))),
        })
    }

    fn direction(&mut self, at: &Downstream<'_>, recorded: Recording, alpha: f64) -> Result<Direction, ModelError> {
        let recorded = recorded.0.downcast::<Recorded>().map_err(|_| ModelError::Lane {
            lane: "cuda",
            problem: "a recording was made by another lane".to_owned(),
        })?;
        let (c, y_f) = (self.head_weights(mem(at.c)?)?, at.finetune.targets);
        let (images, y_v) = (mem(at.validation.images)?, at.validation.targets);
        let (at_v, w) = self.task_gradient(mem(at.theta)?, &c, images, y_v, None)?;
        let v0 = self.on_host(&at_v.dc)?;
        let dz = self.cotangent_difference(&c, (&at_v.dc, &v0), alpha, &recorded.taps, y_f)?;
        let v1 = self.end(*recorded, &dz)?;
        let (v1, w) = (self.complete(v1)?, self.complete(w)?);
        Ok(Direction { loss: at_v.loss, figures: at_v.figures, v0, v1, w, response: None, cosines: Vec::new() })
    }

    fn direction_published(
        &mut self,
        at: &Downstream<'_>,
        alpha: f64,
        noise: &dyn Fn(u64) -> Option<Noise>,
    ) -> Result<Direction, ModelError> {
        let (theta, c) = (mem(at.theta)?, self.head_weights(mem(at.c)?)?);
        let (images, y_v) = (mem(at.validation.images)?, at.validation.targets);
        let (at_v, w) = self.task_gradient(theta, &c, images, y_v, noise(1))?;
        let (images, y_f) = (mem(at.finetune.images)?, at.finetune.targets);
        let v0 = self.on_host(&at_v.dc)?;
        let ([plus, minus], epsilon) = self.both_sides(&c, (&at_v.dc, &v0), alpha)?;
        let (_, plus) = self.task_gradient(theta, &plus, images, y_f, noise(2))?;
        let (_, minus) = self.task_gradient(theta, &minus, images, y_f, noise(3))?;
        let half = (0.5 / epsilon) as f32;
        let v1 = self.stream.take(theta.len());
        self.stream.combined(v1.view(), half, minus.view(), -half, plus.view());
        let (v1, w) = (self.complete(v1)?, self.complete(w)?);
        Ok(Direction { loss: at_v.loss, figures: at_v.figures, v0, v1, w, response: None, cosines: Vec::new() })
    }

    fn pull_back(
        &mut self,
        at: &Downstream<'_>,
        recorded: Recording,
        cotangents: &mut TapCotangents<'_>,
    ) -> Result<[Vector; 2], ModelError> {
        let recorded = recorded.0.downcast::<Recorded>().map_err(|_| ModelError::Lane {
            lane: "cuda",
            problem: "a recording was made by another lane".to_owned(),
        })?;
        let of_validation = self.encode(mem(at.theta)?, mem(at.validation.images)?, Batch::Validation)?;
        let [z_f, z_v] = [self.taps_on_host(&recorded.taps)?, self.taps_on_host(&of_validation.taps)?];
        let both = cotangents(&self.tokens(&z_f), &self.tokens(&z_v))?;
        let [dz_f, dz_v] = both.map(|dz| dz.into_iter().map(|dz| self.narrowed(&Wide::Host(dz))).collect::<Vec<_>>());
        let (v1, w) = (self.end(*recorded, &dz_f)?, self.end(of_validation, &dz_v)?);
        Ok([self.complete(v1)?, self.complete(w)?])
    }

    fn preconditioned(&mut self, x: &Vector, v: &Vector, step: u64, adamw: &AdamWConfig) -> Result<Vector, ModelError> {
        let (x, v) = (mem(x)?, mem(v)?);
        let out = self.stream.take(x.len());
        self.stream.preconditioned(out.view(), x.view(), v.view(), bias_correction(step, adamw), adamw.eps as f32);
        self.complete(out)
    }

    fn patch_loss_tangents(
        &mut self,
        theta: &Vector,
        v: &Vector,
        images: &Vector,
        scored: &Scored,
    ) -> Result<Vec<f32>, ModelError> {
        let order = self.order(&scored.order);
        let [_, tangents] = self.tangents(mem(theta)?, mem(v)?, mem(images)?, &order)?;
        Ok(self.stream.download(tangents.view())?)
    }

    fn mask_gradient(&mut self, phi: &Vector, scored: &Scored, dscores: &[f32]) -> Result<Vector, ModelError> {
        let phi = mem(phi)?;
        let dphi = self.stream.zeros(phi.len());
        if let Some(trace) = &scored.trace {
            self.mask_backward(phi, trace, &self.stream.upload(dscores), Some(&dphi), false)?;
        }
        self.complete(dphi)
    }

    fn difference(&mut self, at: &Upstream<'_>, v: &Vector, alpha: f64) -> Result<Vector, ModelError> {
        let (theta, phi, images, v) = (mem(at.theta)?, mem(at.phi)?, mem(at.images)?, mem(v)?);
        let dphi = self.stream.zeros(phi.len());
        let norm = self.stream.sum_of_squares(v.view())?.sqrt();
        if norm > 0.0 || norm.is_nan() {
            let epsilon = step_size(alpha, norm);
            for sign in [-1.0, 1.0] {
                let moved = self.moved(theta, v, sign * epsilon);
                let scale = -sign / (2.0 * epsilon);
                self.add_mask_gradient(&moved, phi, images, at.rule, scale, &dphi)?;
            }
        }
        self.complete(dphi)
    }

    fn tangent(&mut self, at: &Upstream<'_>, v: &Vector) -> Result<Vector, ModelError> {
        let dphi = self.mask_tangent(mem(at.theta)?, mem(v)?, mem(at.phi)?, mem(at.images)?, at.rule)?;
        self.complete(dphi)
    }

    fn update(
        &mut self,
        adamw: &mut AdamW,
        values: &Vector,
        gradient: &Vector,
        rate: f64,
    ) -> Result<Vector, ModelError> {
        let pieces = self.adamw_pieces(adamw);
        let (m, v) = (self.moment(&adamw.m)?, self.moment(&adamw.v)?);
        let (values, gradient) = (mem(values)?, mem(gradient)?);
        let next = self.stream.take(values.len());
        let c = adamw.config;
        let step = AdamWStep {
            lr: rate as f32,
            beta1: c.beta1 as f32,
            beta2: c.beta2 as f32,
            eps: c.eps as f32,
            step: adamw.step + 1,
        };
        let (m_view, v_view) = (m.view(), v.view());
        self.stream.adamw(next.view(), m_view, v_view, values.view(), gradient.view(), &pieces, &step);
        let next = self.complete(next)?;
        adamw.step += 1;
        adamw.m = GpuVector::shared(&self.home, m);
        adamw.v = GpuVector::shared(&self.home, v);
        Ok(next)
    }

    fn patch_losses(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vector, ModelError> {
        let order = self.order(&scored.order);
        self.complete(self.forward_losses(mem(theta)?, mem(images)?, &order))
    }

    fn reconstruct(&mut self, theta: &Vector, images: &Vector, scored: &Scored) -> Result<Vec<f32>, ModelError> {
        let order = self.order(&scored.order);
        self.predicted(mem(theta)?, mem(images)?, &order)
    }

    fn features(&mut self, theta: &Vector, images: &Vector) -> Result<Vec<f32>, ModelError> {
        let images = mem(images)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = self.features_of(mem(theta)?, images, &[Tap::Cls]).pop().unwrap_or_default();
        Ok(self.stream.download(tokens.view())?)
    }

    fn read_taps(&mut self, theta: &Vector, images: &Vector, taps: &[Tap]) -> Result<Vec<Vec<f32>>, ModelError> {
        let images = mem(images)?;
        if images.is_empty() {
            return Ok(vec![Vec::new(); taps.len()]);
        }
        let tokens = self.features_of(mem(theta)?, images, taps);
        tokens.iter().map(|tokens| Ok(self.stream.download(tokens.view())?)).collect()
    }

    fn set_task(&mut self, task: &Arc<dyn Task>) {
        self.model = Arc::new(self.model.with_task(task));
        self.linear_head = task.linear_head();
    }

    fn shifted(&mut self, theta: &Vector, v: &Vector, epsilon: f64) -> Result<Vector, ModelError> {
        self.complete(self.moved(mem(theta)?, mem(v)?, epsilon))
    }

    fn combined(&mut self, a: f64, x: &Vector, b: f64, y: &Vector) -> Result<Vector, ModelError> {
        let (x, y) = (mem(x)?, mem(y)?);
        let out = self.stream.take(x.len());
        self.stream.combined(out.view(), a as f32, x.view(), b as f32, y.view());
        self.complete(out)
    }

    fn sum(&mut self, x: &Vector, y: &Vector) -> Result<Vector, ModelError> {
        let (x, y) = (mem(x)?, mem(y)?);
        let out = self.stream.take(x.len());
        self.stream.scale_add(out.view(), x.view(), 1.0, y.view());
        self.complete(out)
    }

    fn norm(&mut self, x: &Vector) -> Result<f64, ModelError> {
        Ok(self.stream.sum_of_squares(mem(x)?.view())?.sqrt())
    }

    fn cosine(&mut self, x: &Vector, y: &Vector) -> Result<f64, ModelError> {
        let (x, y) = (mem(x)?.view(), mem(y)?.view());
        let norms = (self.stream.sum_of_squares(x)? * self.stream.sum_of_squares(y)?).sqrt();
        if norms == 0.0 {
            return Ok(0.0);
        }
        Ok(self.stream.dot(x, y)? / norms)
    }

    fn values(&mut self, x: &Vector, range: Range<usize>) -> Result<Vec<f32>, ModelError> {
        Ok(self.stream.download(mem(x)?.slice(range))?)
    }

    fn first_non_finite(&mut self, x: &Vector) -> Result<Option<(usize, f32)>, ModelError> {
        Ok(self.stream.first_non_finite(mem(x)?.view())?)
    }

    fn device_ns(&mut self) -> Option<u64> {
        Some(self.stream.busy_ns())
    }

    fn flops(&mut self) -> Option<u64> {
        Some(self.stream.flops())
    }

    fn device_peak_bytes(&self) -> Option<u64> {
        Some(self.home.gpu.peak_bytes())
    }

    /// Of all pools: those of graphs are not the stream's.
    fn allocated_bytes(&self) -> u64 {
        self.home.gpu.peak_bytes()
    }
}

impl CudaLane {
    /// θ + ε·v for a v that is zero on the decoder, which is copied.
    fn moved(&self, theta: &Mem<f32>, v: &Mem<f32>, epsilon: f64) -> Mem<f32> {
        let (out, n) = (self.stream.take(theta.len()), self.model.vit.encoder_len);
        let moving = (out.slice(0..n), theta.slice(0..n), v.slice(0..n));
        self.stream.scale_add(moving.0, moving.1, epsilon as f32, moving.2);
        self.stream.copy(out.slice(n..theta.len()), theta.slice(n..theta.len()));
        out
    }
}
