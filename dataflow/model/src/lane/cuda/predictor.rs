//! Level 1 with a predictor of difficulty, and what that says of images.

use mlomae_device::Mem;

use super::lane::CudaLane;
use super::levels::Reconstruction;
use crate::engine::gpu::{Cotangent, GpuOrder, GpuTape};
use crate::engine::{Engine, TokenOrder};
use crate::error::ModelError;
use crate::level::Level;
use crate::masking::Scored;
use crate::masking::difficulty::{ranking, ranking_loss};

impl CudaLane {
    /// L_m and L_pred with the gradient of their sum for θ, for maskings that learn nothing. The pairs of patches are
    /// the host's work, which no graph can call.
    pub(super) fn reconstruction_and_ranking(
        &self,
        theta: &Mem<f32>,
        images: &Mem<f32>,
        scored: &Scored,
        order: &GpuOrder,
    ) -> Result<Reconstruction, ModelError> {
        let stream = &self.stream;
        let mut e = GpuTape::recording(stream);
        e.bind(Level::Pretrain, theta, true);
        let (input, target) = (self.input(&e, images), self.target(&e, images));
        let (pred, predicted) = self.model.vit.reconstruct_and_predict(&mut e, &input, order);
        let loss = e.patch_loss(&pred, &target);
        let patch_loss = loss.full(stream);
        let (weights, cotangent) = self.loss_cotangent(order, self.weights_of(scored).as_ref());
        let mut outputs = vec![(loss, Cotangent::Residual(cotangent, None))];
        let mut of_ranking = None;
        if let Some(predicted) = predicted {
            let losses = stream.download(patch_loss.view())?;
            let of_patches = stream.download(predicted.full(stream).view())?;
            let ranking = ranking(&of_patches, &losses, &scored.order, scored.order.batch());
            outputs.push((predicted, Cotangent::Residual(stream.upload(&ranking.cotangent), None)));
            of_ranking = Some(ranking_loss(&ranking.of_images));
        }
        let gradient = e.into_record().backward(stream, outputs);
        self.zero_frozen(&gradient);
        let total = stream.masked_loss(patch_loss.view(), weights.view(), order.num_patches)?;
        Ok(Reconstruction {
            loss: total / Self::num_masked(order) as f64,
            ranking_loss: of_ranking,
            gradient,
            patch_loss,
        })
    }

    /// The difficulty of each patch that the predictor sees in the whole image, `[images, L]`, on the host; empty
    /// without a predictor.
    pub(super) fn difficulty(&self, theta: &Mem<f32>, images: &Mem<f32>) -> Result<Vec<f32>, ModelError> {
        let (stream, c) = (&self.stream, &self.model.config);
        let mut e = GpuTape::forward_only(stream);
        e.bind(Level::Pretrain, theta, false);
        let input = self.input(&e, images);
        let order = self.order(&TokenOrder::all_visible(images.len() / c.image_values(), c.num_patches()));
        let Some(predicted) = self.model.vit.difficulty(&mut e, &input, &order) else { return Ok(Vec::new()) };
        Ok(stream.download(predicted.full(stream).view())?)
    }
}
