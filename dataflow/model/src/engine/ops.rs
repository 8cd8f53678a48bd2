//! The traits of an engine, and the types of their arguments and results.

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

/// Which patches of a batch are visible, and the permutation that puts them first (the shuffle of MAE).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOrder {
    /// Patches of an image.
    pub num_patches: usize,
    /// Visible patches of an image.
    pub num_visible: usize,
    /// `[batch, visible]`: the index of the patch at each place of the encoder's input (after CLS).
    pub kept: Vec<u32>,
    /// `[batch, L]`: the rank of each patch in its image, the inverse of `kept`. A patch is visible when its rank is
    /// below `num_visible`.
    pub rank: Vec<u32>,
}

/// Gradients of one backward pass: a flat vector for each parameter set that was bound with a gradient.
pub type Gradients = PerLevel<Option<Buffer>>;

/// Fused differentiable operations over row-major matrices.
///
/// A tensor is `[rows, columns]`; the tokens of a batch are its rows, image after image. Parameters are found by
/// [`Engine::bind`], which must come before the first operation that uses a weight of that level. Shapes that do not
/// fit are bugs of the caller: an engine may panic.
pub trait Engine {
    /// A value, and where it is recorded its node on the tape. Cloning shares both.
    type Tensor: Clone;
    /// A flat parameter vector.
    type Vector;
    /// Which patches of a batch are visible, as [`TokenOrder`].
    type Order;

    /// Sets the parameters of `level` for the operations that follow. With `gradient`, an engine that records also
    /// computes their gradient.
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

    /// `residual + fc2(gelu(fc1(x)))`: the MLP of a transformer block. An engine may store less for the backward pass
    /// than for the two layers one by one (recomputation).
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

    /// Layer norm over the columns, with [`NORM_EPS`].
    fn layer_norm(&mut self, x: &Self::Tensor, w: &NormWeights) -> Self::Tensor;

    /// Multi-head attention over `[batch·tokens, 3·heads·head_dim]` (q, k, v side by side) →
    /// `[batch·queries, heads·head_dim]`, for the first `shape.queries` tokens of each image.
    fn attention(&mut self, qkv: &Self::Tensor, shape: &AttentionShape) -> Self::Tensor;

    /// The encoder's input `[batch·(1+n), dim]`: CLS token, then the embeddings with positions of n patches. `patches`
    /// is `[batch·L, values]` and gets no gradient; `order` picks the n visible ones, without it n = L.
    fn tokens(
        &mut self,
        patches: &Self::Tensor,
        num_patches: usize,
        order: Option<&Self::Order>,
        w: &TokenWeights,
    ) -> Self::Tensor;

    /// The first row of every `period` rows: the CLS rows `[batch, dim]` of `[batch·tokens, dim]`.
    fn first_rows(&mut self, x: &Self::Tensor, period: usize) -> Self::Tensor;

    /// All rows but the first of every `period`: the patch rows `[batch·L, dim]` of `[batch·(1+L), dim]`.
    fn rest_rows(&mut self, x: &Self::Tensor, period: usize) -> Self::Tensor;

    /// The mean of every `period` rows: `[groups·period, columns]` → `[groups, columns]`.
    fn mean_rows(&mut self, x: &Self::Tensor, period: usize) -> Self::Tensor;

    /// The decoder's input `[batch·(1+L), dim]` from `[batch·(1+visible), dim]`: visible tokens go back to their
    /// places, the mask token fills the others, and the position embedding `[1+L, dim]` is added.
    fn unshuffle(&mut self, x: &Self::Tensor, order: &Self::Order, mask_token: &Weight, pos: &Weight) -> Self::Tensor;

    /// Mean squared error of each row against the constant `target`: `[rows, n]` → `[rows, 1]`.
    fn patch_loss(&mut self, pred: &Self::Tensor, target: &Self::Tensor) -> Self::Tensor;
}

/// Values to and from host memory.
pub trait HostIo: Engine {
    /// A constant `[rows, columns]` of row-major values; no gradient flows to it.
    fn constant(&mut self, values: Arc<Buffer>, rows: usize, columns: usize) -> Self::Tensor;

    /// The values, row-major.
    fn values<'a>(&self, x: &'a Self::Tensor) -> &'a [f32];
}

/// An autograd tape: reverse-mode differentiation of the recorded operations.
pub trait Tape: Engine {
    /// Runs the tape backward from outputs with their cotangents (`dL/d output`, of the output's shape), and returns
    /// the gradients of the parameters that were bound with one, zero where no operation used a weight. Afterwards the
    /// tape is empty, and parameters must be bound again before the next recorded pass.
    ///
    /// # Errors
    /// When an operation of the tape fails.
    fn backward(&mut self, cotangents: Vec<(Self::Tensor, Buffer)>) -> Result<Gradients, ModelError>;
}
