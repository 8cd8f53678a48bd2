//! The levels on the GPU: passes of the autoencoder and of the encoder over whole batches.

use mlomae_device::{Matrix, Mem, Product};

use super::lane::CudaLane;
use crate::engine::Engine;
use crate::engine::gpu::{Cotangent, GpuOrder, GpuRecord, GpuTape, GpuTensor};
use crate::engine::tangent::Tangent;
use crate::error::ModelError;
use crate::level::Level;
use crate::masking::{MaskRule, Needs, Scored};
use crate::tap::Tap;
use crate::tasks::{At, Noise, Share, Targets, Tokens, Want};

/// A batch whose encoder pass has run forward and is recorded until its cotangents are known.
#[derive(Debug)]
pub(super) struct Recorded {
    record: GpuRecord,
    z: Vec<GpuTensor>,
    /// What the head reads, on the host.
    pub(super) taps: Vec<Vec<f32>>,
}

/// A level-1 batch.
pub(super) struct Reconstruction {
    pub(super) loss: f64,
    pub(super) gradient: Mem<f32>,
    pub(super) patch_loss: Mem<f32>,
}

impl CudaLane {
    /// Σ m of a batch.
    fn num_masked(order: &GpuOrder) -> usize {
        order.rank.len() / order.num_patches * (order.num_patches - order.num_visible)
    }

    /// The patches as the encoder reads them.
    fn input(&self, e: &GpuTape<'_>, images: &Mem<f32>) -> GpuTensor {
        let (c, patches) = (&self.model.config, self.stream.act(images.len()));
        self.stream.patchify(patches.view(), images.view(), c.channels, c.image, c.patch);
        e.constant(patches, images.len() / c.patch_values(), c.patch_values())
    }

    fn target(&self, e: &GpuTape<'_>, images: &Mem<f32>) -> GpuTensor {
        let (c, target) = (&self.model.config, self.stream.take(images.len()));
        self.stream.patch_targets(target.view(), images.view(), c.channels, c.image, c.patch);
        e.constant_f32(target, images.len() / c.patch_values(), c.patch_values())
    }

    /// ℓ `[images·L, 1]`, by a pass of `e`.
    fn losses(&self, e: &mut GpuTape<'_>, images: &Mem<f32>, order: &GpuOrder) -> GpuTensor {
        let (input, target) = (self.input(e, images), self.target(e, images));
        let pred = self.model.vit.reconstruct(e, &input, order);
        e.patch_loss(&pred, &target)
    }

    /// mᵢ·ℓᵢ·scale/Σ m.
    fn score_cotangent(&self, losses: &Mem<f32>, order: &GpuOrder, scale: f64) -> Mem<f32> {
        let (factor, out) = (scale / Self::num_masked(order) as f64, self.stream.take(losses.len()));
        let (patches, visible) = (order.num_patches, order.num_visible);
        self.stream.score_cotangent(out.view(), losses.view(), order.rank.view(), patches, visible, factor);
        out
    }

    /// Sets a gradient over θ to zero on frozen tensors.
    fn zero_frozen(&self, gradient: &Mem<f32>) {
        for entry in self.model.vit.layout.entries.iter().filter(|entry| !entry.trainable) {
            self.stream.fill_zero(gradient.slice(entry.range()));
        }
    }

    /// L_m with its gradient for θ.
    pub(super) fn reconstruction(
        &self,
        theta: &Mem<f32>,
        phi: &Mem<f32>,
        images: &Mem<f32>,
        scored: &Scored,
    ) -> Result<Reconstruction, ModelError> {
        if images.is_empty() {
            return Err(ModelError::Config("a level-1 batch must hold at least one image".into()));
        }
        let stream = &self.stream;
        let order = self.order(&scored.order);
        let (num_masked, num_patches) = (Self::num_masked(&order), order.num_patches);
        let weights = stream.take(order.rank.len());
        let scores = self.weights_of(scored);
        let (rank, visible) = (order.rank.view(), order.num_visible);
        stream.loss_weights(weights.view(), rank, scores.as_ref().map(Mem::view), num_patches, visible);
        let mut e = GpuTape::recording(stream);
        e.bind(Level::Pretrain, theta, true);
        let loss = self.losses(&mut e, images, &order);
        let patch_loss = loss.full(stream);
        let cotangent = stream.take(weights.len());
        stream.scaled(cotangent.view(), weights.view(), 1.0 / num_masked as f32);
        let gradient = e.into_record().backward(stream, vec![(loss, Cotangent::Residual(cotangent, None))]);
        if let (Some(trace), Needs::Embedding) = (&scored.trace, self.model.masking.needs()) {
            let dscores = self.score_cotangent(&patch_loss, &order, 1.0);
            if let Some(dembedding) = self.mask_backward(phi, trace, &dscores, None, true)? {
                self.add_embedding_gradient(&gradient, images, &dembedding);
            }
        }
        self.zero_frozen(&gradient);
        let total = stream.masked_loss(patch_loss.view(), weights.view(), num_patches)?;
        Ok(Reconstruction { loss: total / num_masked as f64, gradient, patch_loss })
    }

    /// Adds the gradients of patch embedding and positions from the cotangent `[batch·L, dim]` of the embedding.
    fn add_embedding_gradient(&self, gradient: &Mem<f32>, images: &Mem<f32>, dembedding: &Mem<f32>) {
        let (dim, w) = (self.model.config.dim, self.model.vit.token_weights());
        let patches = self.patches_f32(images);
        self.stream.product(&Product {
            out: gradient.slice(w.proj.weight.range()).into(),
            a: Matrix::transpose(dembedding.view()),
            b: Matrix::of(patches.view()),
            shape: [dim, w.proj.inputs, dembedding.len() / dim],
            bias: None,
            accumulate: true,
        });
        self.stream.column_sums(gradient.slice(w.proj.bias.range()), dembedding.view().into(), true);
        let pos = w.pos.range();
        self.stream.sum_over_images(gradient.slice(pos.start + dim..pos.end), dembedding.view(), true);
    }

    /// ℓ `[images, L]`, by a forward pass alone.
    pub(super) fn forward_losses(&self, theta: &Mem<f32>, images: &Mem<f32>, order: &GpuOrder) -> Mem<f32> {
        let mut e = GpuTape::forward_only(&self.stream);
        e.bind(Level::Pretrain, theta, false);
        self.losses(&mut e, images, order).full(&self.stream)
    }

    /// Predicted patches on the host.
    pub(super) fn predicted(
        &self,
        theta: &Mem<f32>,
        images: &Mem<f32>,
        order: &GpuOrder,
    ) -> Result<Vec<f32>, ModelError> {
        let mut e = GpuTape::forward_only(&self.stream);
        e.bind(Level::Pretrain, theta, false);
        let input = self.input(&e, images);
        let pred = self.model.vit.reconstruct(&mut e, &input, order);
        Ok(self.stream.download(pred.full(&self.stream).view())?)
    }

    /// The encoder's taps of images, on the host; recorded with `record`.
    pub(super) fn encode(
        &self,
        theta: &Mem<f32>,
        images: &Mem<f32>,
        taps: &[Tap],
        record: bool,
    ) -> Result<Recorded, ModelError> {
        let stream = &self.stream;
        let mut e = if record { GpuTape::recording(stream) } else { GpuTape::forward_only(stream) };
        e.bind(Level::Pretrain, theta, record);
        let input = self.input(&e, images);
        let z = self.model.vit.taps(&mut e, &input, taps);
        let values: Result<_, _> = z.iter().map(|z| stream.download(z.full(stream).view())).collect();
        Ok(Recorded { record: e.into_record(), z, taps: values? })
    }

    /// The gradient for θ, zero on the decoder and on frozen weights, from the cotangents of the taps.
    pub(super) fn end(&self, recorded: Recorded, dz: &[Vec<f64>]) -> Mem<f32> {
        let stream = &self.stream;
        let cotangents = recorded.z.into_iter().zip(dz).map(|(z, dz)| {
            let dz: Vec<f32> = dz.iter().map(|&d| d as f32).collect();
            (z, Cotangent::Residual(stream.upload(&dz), None))
        });
        let cotangents = cotangents.collect();
        let gradient = recorded.record.backward(stream, cotangents);
        self.zero_frozen(&gradient);
        gradient
    }

    /// The taps as the task reads them.
    fn tokens<'a>(&self, taps: &'a [Vec<f32>]) -> Vec<Tokens<'a>> {
        let c = &self.model.config;
        let of =
            |(tap, values): (&Tap, &'a Vec<f32>)| Tokens { per_image: tap.tokens(c.num_patches()), dim: c.dim, values };
        self.model.task.reads().iter().zip(taps).map(of).collect()
    }

    /// The task on a batch's taps.
    pub(super) fn evaluate(
        &self,
        c: &[f64],
        taps: &[Vec<f32>],
        y: &Targets,
        noise: Option<Noise>,
        want: Want,
    ) -> Result<Share, ModelError> {
        let task = &self.model.task;
        task.evaluate(&At { c, z: &self.tokens(taps), y, total: task.total(y), noise }, want)
    }

    /// The task's loss on one batch with its gradients for c and for θ.
    pub(super) fn task_gradient(
        &self,
        theta: &Mem<f32>,
        c: &[f64],
        images: &Mem<f32>,
        y: &Targets,
        noise: Option<Noise>,
    ) -> Result<(Share, Mem<f32>), ModelError> {
        let recorded = self.encode(theta, images, self.model.task.reads(), true)?;
        let share = self.evaluate(c, &recorded.taps, y, noise, Want::BOTH)?;
        let gradient = self.end(recorded, &share.dz);
        Ok((share, gradient))
    }

    /// Adds `−sign/2ε`·∂L_m/∂φ at `theta`, which is scored and masked anew, to `dphi`.
    pub(super) fn add_mask_gradient(
        &self,
        theta: &Mem<f32>,
        phi: &Mem<f32>,
        images: &Mem<f32>,
        rule: &MaskRule,
        scale: f64,
        dphi: &Mem<f32>,
    ) -> Result<(), ModelError> {
        let (scored, order) = self.scores(Some(theta), phi, images, rule)?;
        let losses = self.forward_losses(theta, images, &order);
        let dscores = self.score_cotangent(&losses, &order, scale);
        if let Some(trace) = &scored.trace {
            self.mask_backward(phi, trace, &dscores, Some(dphi), false)?;
        }
        Ok(())
    }

    /// −d(∂L_m/∂φ)/dv by forward-mode differentiation, with the masks of θ.
    pub(super) fn mask_tangent(
        &self,
        theta: &Mem<f32>,
        v: &Mem<f32>,
        phi: &Mem<f32>,
        images: &Mem<f32>,
        rule: &MaskRule,
    ) -> Result<Mem<f32>, ModelError> {
        let stream = &self.stream;
        let dphi = stream.zeros(phi.len());
        let (scored, order) = self.scores(Some(theta), phi, images, rule)?;
        let Some(trace) = &scored.trace else { return Ok(dphi) };
        let (losses, tangents) = self.loss_tangents(theta, v, images, &order);
        let ddscores = self.score_cotangent(&tangents, &order, -1.0);
        if self.model.masking.needs() == Needs::Embedding {
            let dinput = self.embedding(v, images);
            let dscores = self.score_cotangent(&losses, &order, -1.0);
            if !self.mask_backward_tangent(phi, trace, &dinput, [&dscores, &ddscores], &dphi)? {
                let problem = "this masking has no derivative along its input; read the pixels, or take another form";
                return Err(ModelError::Lane { lane: "cuda", problem: problem.to_owned() });
            }
        } else {
            self.mask_backward(phi, trace, &ddscores, Some(&dphi), false)?;
        }
        Ok(dphi)
    }

    /// ℓ `[images, L]` and their derivatives along v, which is zero on the decoder.
    fn loss_tangents(
        &self,
        theta: &Mem<f32>,
        v: &Mem<f32>,
        images: &Mem<f32>,
        order: &GpuOrder,
    ) -> (Mem<f32>, Mem<f32>) {
        use crate::engine::tangent::Pair;
        let stream = &self.stream;
        let mut moving = GpuTape::forward_only(stream);
        moving.bind(Level::Pretrain, v, false);
        let at = GpuTape::forward_only(stream);
        let (input, target) = (self.input(&at, images), self.target(&at, images));
        let mut e = Tangent::new(at, moving, self.model.vit.encoder_len);
        e.bind(Level::Pretrain, theta, false);
        let pred = self.model.vit.reconstruct(&mut e, &Pair { value: input, tangent: None }, order);
        let loss = e.patch_loss(&pred, &Pair { value: target, tangent: None });
        let tangent = loss.tangent.map(|tangent| tangent.full(stream)).unwrap_or_default();
        (loss.value.full(stream), tangent)
    }
}
