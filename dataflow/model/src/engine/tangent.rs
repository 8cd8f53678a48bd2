//! Forward-mode differentiation: a pass that carries pairs of a value and its derivative along a direction v in the
//! parameters, through the same network code.

use super::ops::{AttentionShape, Engine, HostIo, TokenWeights};
use crate::layout::{LinearWeights, NormWeights, Weight};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use std::sync::Arc;

/// What a pass of pairs needs of an engine besides its operations. `self` is bound to the parameters; `moving` to v,
/// where v moves the weights of the operation.
pub trait Derivatives: Engine + Sized {
    /// d(x·Wᵀ + b) = dx·Wᵀ + x·Ẇᵀ + ḃ, plus `residual`.
    fn linear_tangent(
        &mut self,
        moving: Option<&Self>,
        x: &Self::Tensor,
        dx: &Self::Tensor,
        w: &LinearWeights,
        residual: Option<&Self::Tensor>,
    ) -> Self::Tensor;

    /// gelu(z) and gelu'(z)·dz.
    fn gelu_tangent(&mut self, z: &Self::Tensor, dz: &Self::Tensor) -> (Self::Tensor, Self::Tensor);

    /// d layer_norm(x).
    fn layer_norm_tangent(
        &mut self,
        moving: Option<&Self>,
        x: &Self::Tensor,
        dx: &Self::Tensor,
        w: &NormWeights,
    ) -> Self::Tensor;

    /// attention(qkv) and its derivative.
    fn attention_tangent(
        &mut self,
        qkv: &Self::Tensor,
        dqkv: &Self::Tensor,
        shape: &AttentionShape,
    ) -> (Self::Tensor, Self::Tensor);

    /// d patch_loss(pred): `[rows, 1]`.
    fn patch_loss_tangent(&mut self, pred: &Self::Tensor, dpred: &Self::Tensor, target: &Self::Tensor) -> Self::Tensor;
}

/// A value and its derivative along v; none for constants.
#[derive(Clone)]
pub struct Pair<T> {
    /// The value.
    pub value: T,
    /// Its derivative.
    pub tangent: Option<T>,
}

/// The direction v: zero from the value `len` of the flat vector on.
struct Moving<E> {
    engine: E,
    len: usize,
}

impl<E> Moving<E> {
    /// The moving parameters, for an operation whose first weight is `weight`.
    fn of(&self, weight: &Weight) -> Option<&E> {
        (weight.offset < self.len).then_some(&self.engine)
    }
}

/// An engine whose tensors are pairs.
pub struct Tangent<E> {
    at: E,
    moving: Moving<E>,
}

impl<E: Derivatives> Tangent<E> {
    /// Pairs on the engine `at`, bound to the parameters, along v, to which `moving` is bound. v is zero from the value
    /// `num_moving` of the flat vector on: these weights stand still and cost no product.
    #[must_use]
    pub fn new(at: E, moving: E, num_moving: usize) -> Self {
        Tangent { at, moving: Moving { engine: moving, len: num_moving } }
    }

    /// The derivative of a tensor that the parameters have an influence on.
    fn tangent_of(x: &Pair<E::Tensor>) -> &E::Tensor {
        x.tangent.as_ref().expect("invariant: only images and targets are constants, which tokens and patch_loss read")
    }

    fn linear_pair(
        &mut self,
        x: &Pair<E::Tensor>,
        w: &LinearWeights,
        residual: Option<&Pair<E::Tensor>>,
    ) -> Pair<E::Tensor> {
        let value = match residual {
            Some(residual) => self.at.linear_add(&x.value, w, &residual.value),
            None => self.at.linear(&x.value, w),
        };
        let residual = residual.map(Self::tangent_of);
        let tangent = self.at.linear_tangent(self.moving.of(&w.weight), &x.value, Self::tangent_of(x), w, residual);
        Pair { value, tangent: Some(tangent) }
    }

    fn rows(&mut self, x: &Pair<E::Tensor>, pick: impl Fn(&mut E, &E::Tensor) -> E::Tensor) -> Pair<E::Tensor> {
        let value = pick(&mut self.at, &x.value);
        let tangent = x.tangent.as_ref().map(|tangent| pick(&mut self.at, tangent));
        Pair { value, tangent }
    }
}

impl<E: Derivatives> Engine for Tangent<E> {
    type Tensor = Pair<E::Tensor>;
    type Vector = E::Vector;
    type Order = E::Order;

    fn bind(&mut self, level: Level, values: &E::Vector, _: bool) {
        self.at.bind(level, values, false);
    }

    fn num_visible(&self, order: &E::Order) -> usize {
        self.at.num_visible(order)
    }

    fn shape(&self, x: &Pair<E::Tensor>) -> (usize, usize) {
        self.at.shape(&x.value)
    }

    fn linear(&mut self, x: &Pair<E::Tensor>, w: &LinearWeights) -> Pair<E::Tensor> {
        self.linear_pair(x, w, None)
    }

    fn linear_gelu(&mut self, x: &Pair<E::Tensor>, w: &LinearWeights) -> Pair<E::Tensor> {
        let z = self.linear_pair(x, w, None);
        let (value, tangent) = self.at.gelu_tangent(&z.value, Self::tangent_of(&z));
        Pair { value, tangent: Some(tangent) }
    }

    fn linear_add(&mut self, x: &Pair<E::Tensor>, w: &LinearWeights, residual: &Pair<E::Tensor>) -> Pair<E::Tensor> {
        self.linear_pair(x, w, Some(residual))
    }

    fn layer_norm(&mut self, x: &Pair<E::Tensor>, w: &NormWeights) -> Pair<E::Tensor> {
        let value = self.at.layer_norm(&x.value, w);
        let tangent = self.at.layer_norm_tangent(self.moving.of(&w.gamma), &x.value, Self::tangent_of(x), w);
        Pair { value, tangent: Some(tangent) }
    }

    fn attention(&mut self, qkv: &Pair<E::Tensor>, shape: &AttentionShape) -> Pair<E::Tensor> {
        let (value, tangent) = self.at.attention_tangent(&qkv.value, Self::tangent_of(qkv), shape);
        Pair { value, tangent: Some(tangent) }
    }

    /// Linear in the parameters: the derivative is the same operation on v.
    fn tokens(
        &mut self,
        patches: &Pair<E::Tensor>,
        num_patches: usize,
        order: Option<&E::Order>,
        w: &TokenWeights,
    ) -> Pair<E::Tensor> {
        let value = self.at.tokens(&patches.value, num_patches, order, w);
        Pair { value, tangent: Some(self.moving.engine.tokens(&patches.value, num_patches, order, w)) }
    }

    fn first_rows(&mut self, x: &Pair<E::Tensor>, period: usize) -> Pair<E::Tensor> {
        self.rows(x, |e, x| e.first_rows(x, period))
    }

    fn rest_rows(&mut self, x: &Pair<E::Tensor>, period: usize) -> Pair<E::Tensor> {
        self.rows(x, |e, x| e.rest_rows(x, period))
    }

    fn mean_rows(&mut self, x: &Pair<E::Tensor>, period: usize) -> Pair<E::Tensor> {
        self.rows(x, |e, x| e.mean_rows(x, period))
    }

    /// Linear in tokens and parameters: on v, whose mask token and positions of the decoder are zero.
    fn unshuffle(
        &mut self,
        x: &Pair<E::Tensor>,
        order: &E::Order,
        mask_token: &Weight,
        pos: &Weight,
    ) -> Pair<E::Tensor> {
        debug_assert!(self.moving.of(mask_token).is_none() && self.moving.of(pos).is_none(), "only the encoder moves");
        let value = self.at.unshuffle(&x.value, order, mask_token, pos);
        Pair { value, tangent: Some(self.moving.engine.unshuffle(Self::tangent_of(x), order, mask_token, pos)) }
    }

    fn patch_loss(&mut self, pred: &Pair<E::Tensor>, target: &Pair<E::Tensor>) -> Pair<E::Tensor> {
        let value = self.at.patch_loss(&pred.value, &target.value);
        let tangent = self.at.patch_loss_tangent(&pred.value, Self::tangent_of(pred), &target.value);
        Pair { value, tangent: Some(tangent) }
    }
}

impl<E: Derivatives + HostIo> HostIo for Tangent<E> {
    fn constant(&mut self, values: Arc<Buffer>, rows: usize, columns: usize) -> Pair<E::Tensor> {
        Pair { value: self.at.constant(values, rows, columns), tangent: None }
    }

    fn values<'a>(&self, x: &'a Pair<E::Tensor>) -> &'a [f32] {
        self.at.values(&x.value)
    }
}
