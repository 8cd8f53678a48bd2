//! The operations of an engine, and what goes in and comes out of it.

use std::sync::Arc;

use crate::error::ModelError;
use crate::layout::{LinearWeights, NormWeights, Weight};
use crate::level::{Level, PerLevel};
use crate::parallel::arena::Buffer;

pub use mlomae_kernels::AttentionShape;

/// Epsilon of every layer norm (MAE/timm).
pub const NORM_EPS: f32 = 1e-6;

/// Weights of [`Engine::tokens`].
#[derive(Clone, Copy, Debug)]
pub struct TokenWeights {
    /// Patch embedding, a linear layer over `[channel, row, column]`.
    pub proj: LinearWeights,
    /// CLS token `[dim]`.
    pub cls: Weight,
    /// Position embedding `[1 + L, dim]`, CLS row first.
    pub pos: Weight,
}

/// Which patches of a batch are visible, and where each patch went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOrder {
    /// Patches of an image.
    pub num_patches: usize,
    /// Visible patches of an image.
    pub num_visible: usize,
    /// `[batch, visible]`: the patch at each place of the encoder's input.
    pub kept: Vec<u32>,
    /// `[batch, L]`: a patch's rank in its image; the patch is visible when the rank is below `num_visible`.
    pub rank: Vec<u32>,
}

/// Gradients of one backward pass: a flat vector for each parameter set that asked for one.
pub type Gradients = PerLevel<Option<Buffer>>;

/// Fused differentiable operations over row-major matrices.
///
/// A tensor is `[rows, columns]`; tokens of a batch are rows in the order image, token.
pub trait Engine {
    /// A value, with its place on the record where there is one.
    type Tensor: Clone;
    /// A flat parameter vector.
    type Vector;
    /// Which patches of a batch are visible.
    type Order;

    /// Makes the parameters of `level` known; their gradient is computed when `gradient` is set.
    fn bind(&mut self, level: Level, values: &Self::Vector, gradient: bool);

    /// Visible patches of an image under `order`.
    fn num_visible(&self, order: &Self::Order) -> usize;

    /// Shape `[rows, columns]`.
    fn shape(&self, x: &Self::Tensor) -> (usize, usize);

    /// `x·Wᵀ + b`: `[rows, inputs]` → `[rows, outputs]`.
    fn linear(&mut self, x: &Self::Tensor, w: &LinearWeights) -> Self::Tensor;

    /// `gelu(x·Wᵀ + b)` with the exact (erf) GELU.
    fn linear_gelu(&mut self, x: &Self::Tensor, w: &LinearWeights) -> Self::Tensor;

    /// `residual + x·Wᵀ + b`.
    fn linear_add(&mut self, x: &Self::Tensor, w: &LinearWeights, residual: &Self::Tensor) -> Self::Tensor;

    /// `residual + fc2(gelu(fc1(x)))`: the MLP of a block. An engine may keep less than for its parts.
    fn mlp(
        &mut self,
        x: &Self::Tensor,
        fc1: &LinearWeights,
        fc2: &LinearWeights,
        residual: &Self::Tensor,
    ) -> Self::Tensor {
        let hidden = self.linear_gelu(x, fc1);
        self.linear_add(&hidden, fc2, residual)
    }

    /// Layer norm over the columns, eps 1e-6.
    fn layer_norm(&mut self, x: &Self::Tensor, w: &NormWeights) -> Self::Tensor;

    /// Multi-head attention over `[batch·tokens, 3·heads·head_dim]` → `[batch·queries, heads·head_dim]`.
    fn attention(&mut self, qkv: &Self::Tensor, shape: &AttentionShape) -> Self::Tensor;

    /// The encoder's input `[batch·(1+n), dim]`: CLS token, then the embeddings with positions of the given patches
    /// (`patches` is `[batch·L, values]`; `order` picks the n visible ones, all L of them without it).
    fn tokens(
        &mut self,
        patches: &Self::Tensor,
        num_patches: usize,
        order: Option<&Self::Order>,
        w: &TokenWeights,
    ) -> Self::Tensor;

    /// Every `period`-th row, beginning with the first: the CLS rows of `[batch·tokens, dim]`.
    fn first_rows(&mut self, x: &Self::Tensor, period: usize) -> Self::Tensor;

    /// All rows but every `period`-th: the patch rows of `[batch·(1+L), dim]`.
    fn rest_rows(&mut self, x: &Self::Tensor, period: usize) -> Self::Tensor;

    /// The decoder's input `[batch·(1+L), dim]` from `[batch·(1+visible), dim]`: visible tokens go back to their places, the mask
    /// token fills the others, and the position embedding `[1+L, dim]` is added.
    fn unshuffle(&mut self, x: &Self::Tensor, order: &Self::Order, mask_token: &Weight, pos: &Weight) -> Self::Tensor;

    /// Mean squared error of each row against the constant `target`: `[rows, n]` → `[rows, 1]`.
    fn patch_loss(&mut self, pred: &Self::Tensor, target: &Self::Tensor) -> Self::Tensor;
}

/// Values from and to host memory.
pub trait HostIo: Engine {
    /// A constant `[rows, columns]`.
    fn constant(&mut self, values: Arc<Buffer>, rows: usize, columns: usize) -> Self::Tensor;

    /// The values, row-major.
    fn values<'a>(&self, x: &'a Self::Tensor) -> &'a [f32];
}

/// A record of what was computed, which turns cotangents of outputs into gradients of the bound parameters.
pub trait Tape: Engine {
    /// Runs the record backward from the given cotangents, and forgets it.
    ///
    /// # Errors
    /// When the tape fails.
    fn backward(&mut self, cotangents: Vec<(Self::Tensor, Buffer)>) -> Result<Gradients, ModelError>;
}
