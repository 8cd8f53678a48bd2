//! The engine of GPUs: operations are enqueued on a stream, and the backward pass is a list of closures.
//!
//! Activations that enter products have the type of the stream's precision; the residual stream, statistics, losses and
//! gradients of weights are f32. A residual that a linear layer has just added to is not summed at once: the next layer
//! norm does both in one sweep. Values are computed on the whole batch: micro-batches are the CPU's.

mod record;
mod tangent;
mod tensor;

use mlomae_device::{Act, ActView, Matrix, Mem, Precision, Product, Stream, View, bf16};

pub use record::GpuRecord;
pub use tensor::{Cotangent, GpuOrder, GpuTensor};

use crate::engine::ops::{AttentionShape, Engine, TokenWeights};
use crate::layout::{LinearWeights, NormWeights, Weight};
use crate::level::{Level, PerLevel};
use record::Backward;

/// Parameters of a level: as they are, and in the type of products.
#[derive(Clone, Debug)]
struct Bound {
    values: Mem<f32>,
    low: Option<Mem<bf16>>,
}

impl Bound {
    fn act(&self, weight: &Weight) -> ActView<'_> {
        match &self.low {
            Some(low) => low.slice(weight.range()).into(),
            None => self.values.slice(weight.range()).into(),
        }
    }

    fn full(&self, weight: &Weight) -> View<'_, f32> {
        self.values.slice(weight.range())
    }
}

/// The engine for one pass over a batch. What it records does not borrow the stream: see [`GpuTape::into_record`].
pub struct GpuTape<'s> {
    stream: &'s Stream,
    params: PerLevel<Option<Bound>>,
    /// The gradient of the bound parameters, where operations write it; only one level's.
    gradient: Option<Mem<f32>>,
    record: Option<GpuRecord>,
}

impl<'s> GpuTape<'s> {
    /// An engine that records for a backward pass.
    #[must_use]
    pub fn recording(stream: &'s Stream) -> Self {
        GpuTape { record: Some(GpuRecord::default()), ..Self::forward_only(stream) }
    }

    /// An engine that records nothing.
    #[must_use]
    pub fn forward_only(stream: &'s Stream) -> Self {
        GpuTape { stream, params: PerLevel::default(), gradient: None, record: None }
    }

    /// What was recorded, for [`GpuRecord::backward`] on the same stream.
    #[must_use]
    pub fn into_record(self) -> GpuRecord {
        let mut record = self.record.unwrap_or_default();
        record.gradient = self.gradient;
        record
    }

    /// A constant activation `[rows, columns]`.
    #[must_use]
    pub fn constant(&self, values: Act, rows: usize, columns: usize) -> GpuTensor {
        GpuTensor::activation(values, rows, columns, None)
    }

    /// A constant in f32 `[rows, columns]`.
    #[must_use]
    pub fn constant_f32(&self, values: Mem<f32>, rows: usize, columns: usize) -> GpuTensor {
        GpuTensor::residual(values, rows, columns, None)
    }

    fn bound(&self, level: Level) -> &Bound {
        self.params[level].as_ref().expect("invariant: networks bind their parameters before they run")
    }

    /// Whether an operation needs a backward pass: weights want a gradient, or a tensor it reads does.
    fn wants(&self, inputs: &[&GpuTensor], has_weights: bool) -> bool {
        let weights = has_weights && self.gradient.is_some();
        self.record.is_some() && (weights || inputs.iter().any(|x| x.slot.is_some()))
    }

    fn slot(&mut self, wanted: bool) -> Option<usize> {
        self.record.as_mut().filter(|_| wanted).map(GpuRecord::slot)
    }

    /// Records the backward step of `out`, whose gradient it gets; steps of tensors without a slot are none.
    fn push(&mut self, out: &GpuTensor, step: impl FnOnce(&mut Backward<'_>, Cotangent) + Send + 'static) {
        if let (Some(record), Some(slot)) = (&mut self.record, out.slot) {
            record.push(slot, Box::new(step));
        }
    }

    /// `x·Wᵀ + b` without a record.
    fn product(&self, x: ActView<'_>, rows: usize, w: &LinearWeights) -> Act {
        let bound = self.bound(w.weight.level);
        let out = self.stream.act(rows * w.outputs);
        self.stream.product(&Product {
            out: out.view(),
            a: Matrix::of(x),
            b: Matrix::transpose(bound.act(&w.weight)),
            shape: [rows, w.outputs, w.inputs],
            bias: Some(bound.act(&w.bias)),
            accumulate: false,
        });
        out
    }

    /// `x·Wᵀ + b`, recorded.
    fn plain(&mut self, x: &GpuTensor, w: &LinearWeights) -> GpuTensor {
        let rows = x.rows;
        let input = x.act(self.stream);
        let out = self.product(input.view(), rows, w);
        let slot = self.slot(self.wants(&[x], true));
        let out = GpuTensor::activation(out, rows, w.outputs, slot);
        let (w, bound, slot) = (*w, self.bound(w.weight.level).clone(), x.slot);
        self.push(&out, move |back, dy| {
            let dy = dy.into_act(back.stream);
            back.linear(&dy, &input, &w, &bound, rows, slot);
        });
        out
    }
}

impl Engine for GpuTape<'_> {
    type Tensor = GpuTensor;
    type Vector = Mem<f32>;
    type Order = GpuOrder;

    fn bind(&mut self, level: Level, values: &Mem<f32>, gradient: bool) {
        let low = (self.stream.precision() == Precision::Bf16).then(|| {
            let low = self.stream.take(values.len());
            self.stream.cast_bf16(low.view(), values.view());
            low
        });
        if gradient && self.record.is_some() {
            self.gradient = Some(self.stream.zeros(values.len()));
        }
        self.params[level] = Some(Bound { values: values.clone(), low });
    }

    fn num_visible(&self, order: &GpuOrder) -> usize {
        order.num_visible
    }

    fn shape(&self, x: &GpuTensor) -> (usize, usize) {
        (x.rows, x.columns)
    }

    fn linear(&mut self, x: &GpuTensor, w: &LinearWeights) -> GpuTensor {
        self.plain(x, w)
    }

    fn linear_gelu(&mut self, x: &GpuTensor, w: &LinearWeights) -> GpuTensor {
        let z = self.plain(x, w);
        let before = z.act(self.stream);
        let h = self.stream.act(before.len());
        self.stream.gelu(h.view(), before.view());
        let slot = self.slot(z.slot.is_some());
        let out = GpuTensor::activation(h, z.rows, z.columns, slot);
        let slot = z.slot;
        self.push(&out, move |back, dh| {
            let dh = dh.into_act(back.stream);
            back.stream.gelu_grad(dh.view(), dh.view(), before.view());
            back.give_act(slot, dh);
        });
        out
    }

    fn linear_add(&mut self, x: &GpuTensor, w: &LinearWeights, residual: &GpuTensor) -> GpuTensor {
        let rows = x.rows;
        let input = x.act(self.stream);
        let delta = self.product(input.view(), rows, w);
        let slot = self.slot(self.wants(&[x, residual], true));
        let out = GpuTensor::pending(residual.full(self.stream), delta, rows, w.outputs, slot);
        let (w, bound, x_slot, residual_slot) = (*w, self.bound(w.weight.level).clone(), x.slot, residual.slot);
        self.push(&out, move |back, dy| {
            let (full, low) = dy.into_residual(back.stream);
            let dy = back.products_of(&full, low);
            back.linear(&dy, &input, &w, &bound, rows, x_slot);
            back.give_residual(residual_slot, full, dy);
        });
        out
    }

    /// Keeps the layer's input and what is before the GELU; what is behind it is computed again.
    fn mlp(&mut self, x: &GpuTensor, fc1: &LinearWeights, fc2: &LinearWeights, residual: &GpuTensor) -> GpuTensor {
        let rows = x.rows;
        let input = x.act(self.stream);
        let before = self.product(input.view(), rows, fc1);
        let wanted = self.wants(&[x, residual], true);
        let h = if wanted { self.stream.act(before.len()) } else { before.clone() };
        self.stream.gelu(h.view(), before.view());
        let delta = self.product(h.view(), rows, fc2);
        drop(h);
        let slot = self.slot(wanted);
        let out = GpuTensor::pending(residual.full(self.stream), delta, rows, fc2.outputs, slot);
        let (fc1, fc2, x_slot, residual_slot) = (*fc1, *fc2, x.slot, residual.slot);
        let bound = self.bound(fc1.weight.level).clone();
        self.push(&out, move |back, dy| {
            let (full, low) = dy.into_residual(back.stream);
            let dy = back.products_of(&full, low);
            let h = back.stream.act(before.len());
            back.stream.gelu(h.view(), before.view());
            back.weights(&dy, &h, &fc2, rows);
            // The gradient of h takes its place.
            back.input(&h, &dy, &fc2, &bound, rows);
            back.stream.gelu_grad(h.view(), h.view(), before.view());
            drop(before);
            back.linear(&h, &input, &fc1, &bound, rows, x_slot);
            back.give_residual(residual_slot, full, dy);
        });
        out
    }

    fn layer_norm(&mut self, x: &GpuTensor, w: &NormWeights) -> GpuTensor {
        let bound = self.bound(w.gamma.level).clone();
        let y = self.stream.act(x.rows * x.columns);
        let (values, stats) = x.normed(self.stream, y.view(), bound.full(&w.gamma), bound.full(&w.beta));
        let slot = self.slot(self.wants(&[x], true));
        let out = GpuTensor::activation(y, x.rows, x.columns, slot);
        let (w, slot) = (*w, x.slot);
        self.push(&out, move |back, dy| {
            let dy = dy.into_act(back.stream);
            back.layer_norm(&dy, &values, &stats, &w, &bound, slot);
        });
        out
    }

    fn attention(&mut self, qkv: &GpuTensor, shape: &AttentionShape) -> GpuTensor {
        let shape = of_device(shape);
        let (rows, dim) = (shape.batch * shape.queries, shape.heads * shape.head_dim);
        let input = qkv.act(self.stream);
        let y = self.stream.act(rows * dim);
        let lse = self.stream.take(shape.batch * shape.heads * shape.queries);
        self.stream.attention(y.view(), lse.view(), input.view(), &shape);
        let slot = self.slot(self.wants(&[qkv], false));
        let out = GpuTensor::activation(y.clone(), rows, dim, slot);
        let slot = qkv.slot;
        self.push(&out, move |back, dy| {
            let dy = dy.into_act(back.stream);
            let dqkv = back.stream.act(input.len());
            back.stream.attention_grad(dqkv.view(), dy.view(), y.view(), input.view(), lse.view(), &shape);
            back.give_act(slot, dqkv);
        });
        out
    }

    fn tokens(
        &mut self,
        patches: &GpuTensor,
        num_patches: usize,
        order: Option<&GpuOrder>,
        w: &TokenWeights,
    ) -> GpuTensor {
        let (dim, batch) = (w.proj.outputs, patches.rows / num_patches);
        let num_visible = order.map_or(num_patches, |order| order.num_visible);
        let rows = batch * num_visible;
        let all = patches.act(self.stream);
        let picked = match order {
            Some(order) => {
                let picked = self.stream.act(rows * w.proj.inputs);
                self.stream.gather_rows(picked.view(), all.view(), order.kept.view(), num_patches);
                picked
            }
            None => all,
        };
        let embedded = self.product(picked.view(), rows, &w.proj);
        let bound = self.bound(w.cls.level);
        let out = self.stream.take(batch * (1 + num_visible) * dim);
        let (cls, pos) = (bound.full(&w.cls), bound.full(&w.pos));
        let kept = order.map(|order| order.kept.view());
        self.stream.assemble_tokens(out.view(), embedded.view(), cls, pos, kept, num_patches);
        let slot = self.slot(self.wants(&[], true));
        let out = GpuTensor::residual(out, batch * (1 + num_visible), dim, slot);
        let (w, order) = (*w, order.cloned());
        self.push(&out, move |back, dx| {
            let (dx, _) = dx.into_residual(back.stream);
            let dembedded = back.stream.act(rows * dim);
            let (dcls, dpos) = (back.gradient(&w.cls), back.gradient(&w.pos));
            let rank = order.as_ref().map(|order| order.rank.view());
            let (to, from) = (dembedded.view(), dx.view());
            back.stream.assemble_tokens_grad(to, dcls, dpos, from, rank, num_patches, num_visible);
            back.weights(&dembedded, &picked, &w.proj, rows);
        });
        out
    }

    fn first_rows(&mut self, x: &GpuTensor, period: usize) -> GpuTensor {
        self.pick(x, period, true)
    }

    fn rest_rows(&mut self, x: &GpuTensor, period: usize) -> GpuTensor {
        self.pick(x, period, false)
    }

    /// The mean of f32 values, which is f32.
    fn mean_rows(&mut self, x: &GpuTensor, period: usize) -> GpuTensor {
        let (groups, columns) = (x.rows / period, x.columns);
        let (values, mean) = (x.full(self.stream), self.stream.take(groups * columns));
        self.stream.mean_rows(mean.view(), values.view(), columns, period);
        let slot = self.slot(x.slot.is_some());
        let out = GpuTensor::residual(mean, groups, columns, slot);
        let slot = x.slot;
        self.push(&out, move |back, dy| {
            let (dy, _) = dy.into_residual(back.stream);
            let (share, dx) = (back.stream.take(dy.len()), back.stream.take(dy.len() * period));
            back.stream.scaled(share.view(), dy.view(), 1.0 / period as f32);
            back.stream.repeat_rows(dx.view(), share.view(), columns, period);
            back.add_residual(slot, dx);
        });
        out
    }

    fn unshuffle(&mut self, x: &GpuTensor, order: &GpuOrder, mask_token: &Weight, pos: &Weight) -> GpuTensor {
        let (num_patches, num_visible, dim) = (order.num_patches, order.num_visible, x.columns);
        let batch = x.rows / (1 + num_visible);
        let input = x.act(self.stream);
        let out = self.stream.take(batch * (1 + num_patches) * dim);
        let bound = self.bound(mask_token.level);
        let (rank, token) = (order.rank.view(), bound.full(mask_token));
        let places = bound.full(pos);
        self.stream.unshuffle(out.view(), input.view(), rank, token, places, num_patches, num_visible);
        let slot = self.slot(self.wants(&[x], true));
        let out = GpuTensor::residual(out, batch * (1 + num_patches), dim, slot);
        let (order, mask_token, pos, slot, len) = (order.clone(), *mask_token, *pos, x.slot, input.len());
        self.push(&out, move |back, dy| {
            let (dy, _) = dy.into_residual(back.stream);
            let dx = back.stream.act(len);
            let (dtoken, dpos) = (back.gradient(&mask_token), back.gradient(&pos));
            let (kept, rank) = (order.kept.view(), order.rank.view());
            back.stream.unshuffle_grad(dx.view(), dtoken, dpos, dy.view(), kept, rank, num_patches, num_visible);
            back.give_act(slot, dx);
        });
        out
    }

    fn patch_loss(&mut self, pred: &GpuTensor, target: &GpuTensor) -> GpuTensor {
        let (values, target) = (pred.act(self.stream), target.full(self.stream));
        let loss = self.stream.take(pred.rows);
        self.stream.patch_loss(loss.view(), values.view(), target.view());
        let slot = self.slot(pred.slot.is_some());
        let out = GpuTensor::residual(loss, pred.rows, 1, slot);
        let slot = pred.slot;
        self.push(&out, move |back, dloss| {
            let (dloss, _) = dloss.into_residual(back.stream);
            let dpred = back.stream.act(values.len());
            back.stream.patch_loss_grad(dpred.view(), values.view(), target.view(), dloss.view());
            back.give_act(slot, dpred);
        });
        out
    }
}

impl GpuTape<'_> {
    fn pick(&mut self, x: &GpuTensor, period: usize, first: bool) -> GpuTensor {
        let rows = x.rows / period * if first { 1 } else { period - 1 };
        let slot = self.slot(x.slot.is_some());
        let out = if x.is_residual() {
            let (values, out) = (x.full(self.stream), self.stream.take(rows * x.columns));
            self.stream.pick_rows(out.view().into(), values.view().into(), x.columns, period, first);
            GpuTensor::residual(out, rows, x.columns, slot)
        } else {
            let (values, out) = (x.act(self.stream), self.stream.act(rows * x.columns));
            self.stream.pick_rows(out.view(), values.view(), x.columns, period, first);
            GpuTensor::activation(out, rows, x.columns, slot)
        };
        let (slot, columns, len, is_residual) = (x.slot, x.columns, x.rows * x.columns, x.is_residual());
        self.push(&out, move |back, dy| {
            if is_residual {
                let (dy, _) = dy.into_residual(back.stream);
                let dx = back.stream.take(len);
                back.stream.pick_rows_grad(dx.view().into(), dy.view().into(), columns, period, first);
                back.add_residual(slot, dx);
            } else {
                let dy = dy.into_act(back.stream);
                let dx = back.stream.act(len);
                back.stream.pick_rows_grad(dx.view(), dy.view(), columns, period, first);
                back.give_act(slot, dx);
            }
        });
        out
    }
}

/// The shape as the device's kernels take it.
fn of_device(shape: &AttentionShape) -> mlomae_device::ops::AttentionShape {
    let AttentionShape { batch, tokens, heads, head_dim, queries } = *shape;
    mlomae_device::ops::AttentionShape { batch, tokens, heads, head_dim, queries }
}
