//! The levels on the GPU: passes of the autoencoder and of the encoder over whole batches.

use mlomae_device::{Held, Matrix, Mem, Product, Run};

use super::head::{Evaluated, Wide};
use super::lane::CudaLane;
use super::network::GpuTrace;
use super::scoring::kept;
use super::steady::Batch;
use crate::engine::Engine;
use crate::engine::gpu::{Cotangent, GpuOrder, GpuRecord, GpuTape, GpuTensor};
use crate::engine::tangent::Tangent;
use crate::error::ModelError;
use crate::level::Level;
use crate::masking::{MaskRule, Needs, Scored};
use crate::tap::Tap;
use crate::tasks::{Noise, Targets, Want};

/// A batch whose encoder pass has run forward and is recorded until its cotangents are known.
#[derive(Debug)]
pub(super) struct Recorded {
    /// None where the pass was replayed as a graph, and runs backward as one.
    record: Option<(GpuRecord, Vec<GpuTensor>)>,
    how: (Batch, Run, u64),
    /// What the head reads.
    pub(super) taps: Taps,
}

/// The tokens of each tap that a head reads, where it is computed.
#[derive(Debug)]
pub(super) enum Taps {
    Host(Vec<Vec<f32>>),
    Device(Vec<Mem<f32>>),
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
        let order = self.order(&scored.order);
        let trace = scored.trace.as_ref().and_then(kept);
        let scores = self.weights_of(scored);
        let through_scores = scored.trace.is_some() && self.model.masking.needs() == Needs::Embedding;
        let is_shuffled = scored.trace.as_ref().is_some_and(|trace| trace.shuffle.is_some());
        let [gradient, patch_loss, weights] = if through_scores && (trace.is_none() || is_shuffled) {
            // The masking network is the host's, or its scores are shuffled there, which no graph can call.
            let [gradient, patch_loss, weights] = self.autoencoder(theta, images, &order, scores.as_ref());
            if let Some(trace) = &scored.trace {
                let dscores = self.score_cotangent(&patch_loss, &order, 1.0);
                if let Some(dembedding) = self.mask_backward(phi, trace, &dscores, None, true)? {
                    self.add_embedding_gradient(&gradient, images, &dembedding);
                }
            }
            self.zero_frozen(&gradient);
            [gradient, patch_loss, weights]
        } else {
            let mut inputs: Vec<Held> = vec![theta.into(), images.into(), (&order.kept).into(), (&order.rank).into()];
            inputs.extend(scores.as_ref().map(Held::from));
            let trace = trace.filter(|_| through_scores);
            if let Some(trace) = trace {
                inputs.push(phi.into());
                inputs.extend(trace.activations().iter().map(Held::from));
            }
            let (patches, visible) = (order.num_patches, order.num_visible);
            let outputs = self.steady(
                |graphs| &mut graphs.pretrain,
                &inputs,
                |inputs| {
                    let (theta, images) = (inputs[0].f32(), inputs[1].f32());
                    let (kept, rank) = (inputs[2].u32().clone(), inputs[3].u32().clone());
                    let order = GpuOrder { num_patches: patches, num_visible: visible, kept, rank };
                    let scores = scores.as_ref().map(|_| inputs[4].f32());
                    let [gradient, patch_loss, weights] = self.autoencoder(theta, images, &order, scores);
                    if let (Some(_), Some(scores), Some(network)) = (trace, scores, &self.network) {
                        let activations = inputs[6..].iter().map(|input| input.f32().clone()).collect();
                        let trace = GpuTrace::new(activations, scores.clone());
                        let dscores = self.score_cotangent(&patch_loss, &order, 1.0);
                        let network = self.network(network, inputs[5].f32());
                        if let Some(dembedding) = network.backward(&trace, &dscores, None, true) {
                            self.add_embedding_gradient(&gradient, images, &dembedding);
                        }
                    }
                    self.zero_frozen(&gradient);
                    vec![gradient, patch_loss, weights]
                },
            );
            self.array(outputs)?
        };
        let total = self.stream.masked_loss(patch_loss.view(), weights.view(), order.num_patches)?;
        Ok(Reconstruction { loss: total / Self::num_masked(&order) as f64, gradient, patch_loss })
    }

    /// The outputs of a graph; a failure has left none.
    fn array<const N: usize>(&self, outputs: Vec<Mem<f32>>) -> Result<[Mem<f32>; N], ModelError> {
        match outputs.try_into() {
            Ok(outputs) => Ok(outputs),
            Err(_) => {
                self.stream.wait()?;
                Err(ModelError::Lane { lane: "cuda", problem: "a graph has lost its outputs".to_owned() })
            }
        }
    }

    /// ∂L_m/∂θ for fixed scores, ℓ, and the weight of each patch.
    fn autoencoder(
        &self,
        theta: &Mem<f32>,
        images: &Mem<f32>,
        order: &GpuOrder,
        scores: Option<&Mem<f32>>,
    ) -> [Mem<f32>; 3] {
        let stream = &self.stream;
        let weights = stream.take(order.rank.len());
        let (rank, patches, visible) = (order.rank.view(), order.num_patches, order.num_visible);
        stream.loss_weights(weights.view(), rank, scores.map(Mem::view), patches, visible);
        let mut e = GpuTape::recording(stream);
        e.bind(Level::Pretrain, theta, true);
        let loss = self.losses(&mut e, images, order);
        let patch_loss = loss.full(stream);
        let cotangent = stream.take(weights.len());
        stream.scaled(cotangent.view(), weights.view(), 1.0 / Self::num_masked(order) as f32);
        let gradient = e.into_record().backward(stream, vec![(loss, Cotangent::Residual(cotangent, None))]);
        [gradient, patch_loss, weights]
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

    /// The encoder's taps of images, by a forward pass alone.
    pub(super) fn features_of(&self, theta: &Mem<f32>, images: &Mem<f32>, taps: &[Tap]) -> Vec<Mem<f32>> {
        let stream = &self.stream;
        let mut e = GpuTape::forward_only(stream);
        e.bind(Level::Pretrain, theta, false);
        let input = self.input(&e, images);
        let z = self.model.vit.taps(&mut e, &input, taps);
        z.iter().map(|z| z.full(stream)).collect()
    }

    /// What CLS looks at in the last block, on the host, see [`Vit::cls_queries_and_keys`](crate::nets::Vit).
    pub(super) fn cls_queries_and_keys(
        &self,
        theta: &Mem<f32>,
        images: &Mem<f32>,
    ) -> Result<[Vec<f32>; 2], ModelError> {
        let stream = &self.stream;
        let mut e = GpuTape::forward_only(stream);
        e.bind(Level::Pretrain, theta, false);
        let input = self.input(&e, images);
        let [queries, keys] = self.model.vit.cls_queries_and_keys(&mut e, &input);
        let host = |of: &GpuTensor| stream.download(of.full(stream).view());
        Ok([host(&queries)?, host(&keys)?])
    }

    /// Queries and keys of all blocks, on the host, see [`Vit::queries_and_keys`](crate::nets::Vit).
    pub(super) fn queries_and_keys(&self, theta: &Mem<f32>, images: &Mem<f32>) -> Result<Vec<Vec<f32>>, ModelError> {
        let stream = &self.stream;
        let mut e = GpuTape::forward_only(stream);
        e.bind(Level::Pretrain, theta, false);
        let input = self.input(&e, images);
        let blocks = self.model.vit.queries_and_keys(&mut e, &input);
        blocks.iter().map(|block| Ok(stream.download(block.full(stream).view())?)).collect()
    }

    /// The taps that the task reads, recorded for [`CudaLane::end`].
    pub(super) fn encode(&self, theta: &Mem<f32>, images: &Mem<f32>, batch: Batch) -> Result<Recorded, ModelError> {
        let stream = &self.stream;
        let mut record = None;
        let (outputs, run, generation) = self.steady_forward(batch, &[theta.into(), images.into()], |inputs| {
            let mut e = GpuTape::recording(stream);
            e.bind(Level::Pretrain, inputs[0].f32(), true);
            let input = self.input(&e, inputs[1].f32());
            let z = self.model.vit.taps(&mut e, &input, self.model.task.reads());
            let values = z.iter().map(|z| z.full(stream)).collect();
            record = Some((e.into_record(), z));
            values
        });
        Ok(Recorded { record, how: (batch, run, generation), taps: self.taps(outputs)? })
    }

    /// The gradient for θ, zero on the decoder and on frozen weights, from the cotangents of the taps.
    ///
    /// # Errors
    /// When a later pass over such a batch has overwritten this one.
    pub(super) fn end(&self, recorded: Recorded, dz: &[Mem<f32>]) -> Result<Mem<f32>, ModelError> {
        let stream = &self.stream;
        let inputs: Vec<Held> = dz.iter().map(Held::from).collect();
        let Recorded { record, how, .. } = recorded;
        let outputs = self.steady_backward(how, &inputs, |inputs| {
            let Some((record, z)) = record else { return Vec::new() };
            let cotangents = z.into_iter().zip(inputs);
            let cotangents = cotangents.map(|(z, dz)| (z, Cotangent::Residual(dz.f32().clone(), None))).collect();
            let gradient = record.backward(stream, cotangents);
            self.zero_frozen(&gradient);
            vec![gradient]
        });
        let overtaken = || ModelError::Lane { lane: "cuda", problem: "a recording was overwritten".to_owned() };
        let [gradient] = self.array(outputs.ok_or_else(overtaken)?)?;
        Ok(gradient)
    }

    /// The task's loss on one batch with its gradients for c and for θ.
    pub(super) fn task_gradient(
        &self,
        theta: &Mem<f32>,
        c: &Wide,
        images: &Mem<f32>,
        y: &Targets,
        noise: Option<Noise>,
    ) -> Result<(Evaluated, Mem<f32>), ModelError> {
        let recorded = self.encode(theta, images, Batch::Validation)?;
        let at = self.evaluate(c, &recorded.taps, y, noise, Want::BOTH)?;
        let dz: Vec<Mem<f32>> = at.dz.iter().map(|dz| self.narrowed(dz)).collect();
        let gradient = self.end(recorded, &dz)?;
        Ok((at, gradient))
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
        let [losses, tangents] = self.tangents(theta, v, images, &order)?;
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

    /// As [`Self::loss_tangents`], as a graph once it repeats.
    pub(super) fn tangents(
        &self,
        theta: &Mem<f32>,
        v: &Mem<f32>,
        images: &Mem<f32>,
        order: &GpuOrder,
    ) -> Result<[Mem<f32>; 2], ModelError> {
        let (patches, visible) = (order.num_patches, order.num_visible);
        let inputs: [Held; 5] = [theta.into(), v.into(), images.into(), (&order.kept).into(), (&order.rank).into()];
        let outputs = self.steady(
            |graphs| &mut graphs.tangent,
            &inputs,
            |inputs| {
                let (kept, rank) = (inputs[3].u32().clone(), inputs[4].u32().clone());
                let order = GpuOrder { num_patches: patches, num_visible: visible, kept, rank };
                self.loss_tangents(inputs[0].f32(), inputs[1].f32(), inputs[2].f32(), &order).into()
            },
        );
        self.array(outputs)
    }

    /// ℓ `[images, L]` and their derivatives along v, which is zero on the decoder.
    fn loss_tangents(&self, theta: &Mem<f32>, v: &Mem<f32>, images: &Mem<f32>, order: &GpuOrder) -> [Mem<f32>; 2] {
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
        [loss.value.full(stream), tangent]
    }
}
