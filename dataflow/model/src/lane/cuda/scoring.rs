//! Scores and masks of a batch, and the gradient through the scores.

use std::sync::Arc;

use mlomae_device::{Matrix, Mem, Product};

use super::lane::CudaLane;
use super::network::{GpuTrace, Network};
use crate::engine::TokenOrder;
use crate::engine::gpu::GpuOrder;
use crate::error::ModelError;
use crate::masking::arms;
use crate::masking::attention::{cls_attention, rollout};
use crate::masking::loss::{covering_orders, mean_losses};
use crate::masking::{Kept, LossWeights, MaskNetwork, MaskRule, Needs, Scored, Trace};
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::tap::Tap;

/// Images of a grain of maskings that are computed on the host.
const HOST_GRAIN: usize = 8;

impl CudaLane {
    /// Patches `[batch·L, C·P·P]` in f32.
    pub(super) fn patches_f32(&self, images: &Mem<f32>) -> Mem<f32> {
        let (c, out) = (&self.model.config, self.stream.take(images.len()));
        self.stream.patchify(out.view().into(), images.view(), c.channels, c.image, c.patch);
        out
    }

    /// The encoder's patch embedding with positions, `[batch, L, dim]`, in f32 (or tf32).
    pub(super) fn embedding(&self, theta: &Mem<f32>, images: &Mem<f32>) -> Mem<f32> {
        let (c, w) = (&self.model.config, self.model.vit.token_weights());
        let patches = self.patches_f32(images);
        let rows = images.len() / c.patch_values();
        let out = self.stream.take(rows * c.dim);
        self.stream.product(&Product {
            out: out.view().into(),
            a: Matrix::of(patches.view()),
            b: Matrix::transpose(theta.slice(w.proj.weight.range())),
            shape: [rows, c.dim, w.proj.inputs],
            bias: Some(theta.slice(w.proj.bias.range()).into()),
            accumulate: false,
        });
        self.stream.add_positions(out.view(), theta.slice(w.pos.range().start + c.dim..w.pos.range().end));
        out
    }

    /// The masking network as data with its parameters; none if it is computed on the host.
    pub(super) fn network<'a>(&'a self, network: &'a MaskNetwork, phi: &'a Mem<f32>) -> Network<'a> {
        let (positions, num_patches) = (self.positions.as_ref(), self.model.config.num_patches());
        Network { stream: &self.stream, network, phi, positions, num_patches }
    }

    /// As [`Lane::score`](crate::lane::Lane::score).
    pub(super) fn scores(
        &self,
        theta: Option<&Mem<f32>>,
        phi: &Mem<f32>,
        images: &Mem<f32>,
        rule: &MaskRule,
    ) -> Result<(Scored, GpuOrder), ModelError> {
        let (masking, c) = (&self.model.masking, &self.model.config);
        let batch = images.len() / c.image_values();
        let input = match (masking.needs(), theta) {
            (needs, _) if rule.scores_nothing(needs) => None,
            (
                Needs::Nothing | Needs::Objects | Needs::Attention | Needs::Rollout | Needs::Tokens | Needs::Losses,
                _,
            ) => None,
            (Needs::Pixels, _) => Some(self.patches_f32(images)),
            (Needs::Embedding, Some(theta)) => Some(self.embedding(theta, images)),
            (Needs::Embedding, None) => {
                return Err(ModelError::Lane { lane: "cuda", problem: "scores of the embedding need θ".to_owned() });
            }
        };
        let trace = match (input, &self.network) {
            (None, _) => None,
            (Some(input), Some(network)) => {
                let kept = self.network(network, phi).forward(&input, batch);
                let scores = Arc::new(Buffer::from_vec(self.stream.download(kept.scores.view())?));
                let kept: Option<Arc<dyn Kept>> = Some(Arc::new(kept));
                Some(Trace { scores, input: Arc::default(), hidden: Vec::new(), batch, kept })
            }
            (Some(input), None) => {
                let input = Arc::new(Buffer::from_vec(self.stream.download(input.view())?));
                let phi = self.stream.download(phi.view())?;
                masking.forward(&Compute::serial(HOST_GRAIN), &phi, &input)
            }
        };
        let rule = &arms::drawn(&**masking, rule.clone(), batch, |range| self.stream.download(phi.slice(range)))?;
        rule.check_objects(masking.needs(), batch * c.num_patches(), "cuda")?;
        let (num_patches, num_visible) = (c.num_patches(), rule.num_visible.unwrap_or(c.num_visible()));
        let read = self.read_teacher(theta, images, rule, num_visible)?;
        let rule = &MaskRule { num_visible: Some(num_visible), read: read.map(Arc::from), ..rule.clone() };
        let keys = rule.keys(&**masking, batch, num_patches, trace.as_ref().map(|trace| &trace.scores[..]));
        let (kept, rank) = (self.stream.take(batch * num_visible), self.stream.take(batch * num_patches));
        let keys = self.stream.upload(&keys);
        self.stream.sort_keys(kept.view(), rank.view(), keys.view(), num_patches, num_visible);
        let order = TokenOrder {
            num_patches,
            num_visible,
            kept: self.stream.download(kept.view())?,
            rank: self.stream.download(rank.view())?,
        };
        let scored = Scored::ordered(&**masking, c.mask_weights, trace, Arc::new(order), rule);
        Ok((scored, GpuOrder { num_patches, num_visible, kept, rank }))
    }

    /// What the masking reads of the teacher, on the host; none if it reads none.
    fn read_teacher(
        &self,
        theta: Option<&Mem<f32>>,
        images: &Mem<f32>,
        rule: &MaskRule,
        num_visible: usize,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        let (needs, c) = (self.model.masking.needs(), &self.model.config);
        if !needs.reads_teacher() {
            return Ok(None);
        }
        let missing = || ModelError::Lane { lane: "cuda", problem: "masks need the weights of a teacher".to_owned() };
        let theta = theta.ok_or_else(missing)?;
        Ok(match needs {
            Needs::Attention => {
                let [queries, keys] = self.cls_queries_and_keys(theta, images)?;
                Some(cls_attention(&queries, &keys, c.num_patches(), c.heads, c.dim))
            }
            Needs::Rollout => {
                let blocks = self.queries_and_keys(theta, images)?;
                let blocks: Vec<&[f32]> = blocks.iter().map(Vec::as_slice).collect();
                Some(rollout(&blocks, c.num_patches(), c.heads, c.dim))
            }
            Needs::Tokens => {
                let tokens = self.features_of(theta, images, &[Tap::Patches]);
                let host = tokens.iter().map(|tokens| Ok(self.stream.download(tokens.view())?));
                Some(host.collect::<Result<Vec<_>, ModelError>>()?.concat())
            }
            Needs::Losses => {
                let orders = covering_orders(images.len() / c.image_values(), c.num_patches(), num_visible, rule);
                let pass = |order: Arc<TokenOrder>| {
                    let losses = self.forward_losses(theta, images, &self.order(&order));
                    Ok((order, self.stream.download(losses.view())?))
                };
                let passes = orders.into_iter().map(pass).collect::<Result<Vec<_>, ModelError>>()?;
                Some(mean_losses(&passes))
            }
            Needs::Nothing | Needs::Objects | Needs::Pixels | Needs::Embedding => None,
        })
    }

    /// The order of a batch in the device's memory.
    pub(super) fn order(&self, order: &TokenOrder) -> GpuOrder {
        GpuOrder {
            num_patches: order.num_patches,
            num_visible: order.num_visible,
            kept: self.stream.upload(&order.kept),
            rank: self.stream.upload(&order.rank),
        }
    }

    /// The weights of the patch losses on the device; none where all are 1.
    pub(super) fn weights_of(&self, scored: &Scored) -> Option<Mem<f32>> {
        let here = scored.trace.as_ref().and_then(kept);
        match (&scored.loss_weights, here) {
            (LossWeights::Scores, Some(kept)) => Some(kept.scores.clone()),
            _ => scored.weights().map(|weights| self.stream.upload(weights)),
        }
    }

    /// The masking's backward pass from ∂F/∂p: adds ∂F/∂φ to `dphi`, and returns ∂F/∂input with `want_input`.
    pub(super) fn mask_backward(
        &self,
        phi: &Mem<f32>,
        trace: &Trace,
        dscores: &Mem<f32>,
        dphi: Option<&Mem<f32>>,
        want_input: bool,
    ) -> Result<Option<Mem<f32>>, ModelError> {
        if let (Some(network), Some(kept)) = (&self.network, kept(trace)) {
            return Ok(self.network(network, phi).backward(kept, dscores, dphi, want_input));
        }
        let (compute, phi) = (Compute::serial(HOST_GRAIN), self.stream.download(phi.view())?);
        let dscores = self.stream.download(dscores.view())?;
        let mut own = dphi.map(|dphi| vec![0.0; dphi.len()]);
        let masking = &self.model.masking;
        let dinput = masking.backward(&compute, &phi, trace, &dscores, own.as_deref_mut(), want_input);
        if let (Some(dphi), Some(own)) = (dphi, own) {
            let own = self.stream.upload(&own);
            self.stream.add_into(dphi.view(), own.view());
        }
        Ok(dinput.map(|dinput| self.stream.upload(&dinput)))
    }

    /// The derivative of the masking's ∂F/∂φ, added to `ddphi`; false if the masking has none.
    pub(super) fn mask_backward_tangent(
        &self,
        phi: &Mem<f32>,
        trace: &Trace,
        dinput: &Mem<f32>,
        [dscores, ddscores]: [&Mem<f32>; 2],
        ddphi: &Mem<f32>,
    ) -> Result<bool, ModelError> {
        if let (Some(network), Some(kept)) = (&self.network, kept(trace)) {
            self.network(network, phi).backward_tangent(kept, dinput, dscores, ddscores, ddphi);
            return Ok(true);
        }
        let host = |values: &Mem<f32>| self.stream.download(values.view());
        let (compute, mut own) = (Compute::serial(HOST_GRAIN), vec![0.0; ddphi.len()]);
        let (phi, dinput, dscores, ddscores) = (host(phi)?, host(dinput)?, host(dscores)?, host(ddscores)?);
        let masking = &self.model.masking;
        let known = masking.backward_tangent(&compute, &phi, trace, &dinput, &dscores, &ddscores, &mut own);
        let own = self.stream.upload(&own);
        self.stream.add_into(ddphi.view(), own.view());
        Ok(known)
    }
}

/// What a lane of this device kept of a batch's scores.
pub(super) fn kept(trace: &Trace) -> Option<&GpuTrace> {
    trace.kept.as_ref().and_then(|kept| kept.as_any().downcast_ref())
}
