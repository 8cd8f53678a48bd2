//! Derivatives along a direction, for [`Tangent`](crate::engine::tangent::Tangent).

use mlomae_device::{Matrix, Product};

use super::tensor::GpuTensor;
use super::{GpuTape, of_device};
use crate::engine::ops::AttentionShape;
use crate::engine::tangent::Derivatives;
use crate::layout::{LinearWeights, NormWeights};

impl Derivatives for GpuTape<'_> {
    fn linear_tangent(
        &mut self,
        moving: Option<&Self>,
        x: &GpuTensor,
        dx: &GpuTensor,
        w: &LinearWeights,
        residual: Option<&GpuTensor>,
    ) -> GpuTensor {
        let rows = x.rows;
        let (dx, out) = (dx.act(self.stream), self.stream.act(rows * w.outputs));
        let bound = self.bound(w.weight.level);
        let moving = moving.map(|moving| moving.bound(w.weight.level));
        let shape = [rows, w.outputs, w.inputs];
        self.stream.product(&Product {
            out: out.view(),
            a: Matrix::of(dx.view()),
            b: Matrix::transpose(bound.act(&w.weight)),
            shape,
            bias: moving.map(|moving| moving.act(&w.bias)),
            accumulate: false,
        });
        if let Some(moving) = moving {
            let x = x.act(self.stream);
            self.stream.product(&Product {
                out: out.view(),
                a: Matrix::of(x.view()),
                b: Matrix::transpose(moving.act(&w.weight)),
                shape,
                bias: None,
                accumulate: true,
            });
        }
        match residual {
            Some(residual) => GpuTensor::pending(residual.full(self.stream), out, rows, w.outputs, None),
            None => GpuTensor::activation(out, rows, w.outputs, None),
        }
    }

    fn gelu_tangent(&mut self, z: &GpuTensor, dz: &GpuTensor) -> (GpuTensor, GpuTensor) {
        let (before, dbefore) = (z.act(self.stream), dz.act(self.stream));
        let (h, dh) = (self.stream.act(before.len()), self.stream.act(before.len()));
        self.stream.gelu_tangent(h.view(), dh.view(), before.view(), dbefore.view());
        let tensor = |values| GpuTensor::activation(values, z.rows, z.columns, None);
        (tensor(h), tensor(dh))
    }

    fn layer_norm_tangent(
        &mut self,
        moving: Option<&Self>,
        x: &GpuTensor,
        dx: &GpuTensor,
        w: &NormWeights,
    ) -> GpuTensor {
        let bound = self.bound(w.gamma.level);
        let values = x.full(self.stream);
        let stats = x.stats().unwrap_or_else(|| {
            let unused = self.stream.act(values.len());
            x.normed(self.stream, unused.view(), bound.full(&w.gamma), bound.full(&w.beta)).1
        });
        let (dx, dy) = (dx.full(self.stream), self.stream.act(values.len()));
        let moving = moving.map(|moving| moving.bound(w.gamma.level));
        let moving = moving.map(|moving| (moving.full(&w.gamma), moving.full(&w.beta)));
        let gamma = bound.full(&w.gamma);
        self.stream.layer_norm_tangent(dy.view(), dx.view(), values.view(), stats.view(), gamma, moving);
        GpuTensor::activation(dy, x.rows, x.columns, None)
    }

    fn attention_tangent(
        &mut self,
        qkv: &GpuTensor,
        dqkv: &GpuTensor,
        shape: &AttentionShape,
    ) -> (GpuTensor, GpuTensor) {
        let (rows, dim) = (shape.batch * shape.queries, shape.heads * shape.head_dim);
        let (input, dinput) = (qkv.act(self.stream), dqkv.act(self.stream));
        let (y, dy) = (self.stream.act(rows * dim), self.stream.act(rows * dim));
        let shape = of_device(shape);
        self.stream.attention_tangent(y.view(), dy.view(), input.view(), dinput.view(), &shape);
        let tensor = |values| GpuTensor::activation(values, rows, dim, None);
        (tensor(y), tensor(dy))
    }

    fn patch_loss_tangent(&mut self, pred: &GpuTensor, dpred: &GpuTensor, target: &GpuTensor) -> GpuTensor {
        let (values, dvalues) = (pred.act(self.stream), dpred.act(self.stream));
        let (target, dloss) = (target.full(self.stream), self.stream.take(pred.rows));
        self.stream.patch_loss_tangent(dloss.view(), values.view(), dvalues.view(), target.view());
        GpuTensor::residual(dloss, pred.rows, 1, None)
    }
}
