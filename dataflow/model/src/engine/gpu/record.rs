//! The record of a pass: backward steps, run from the last to the first.

use mlomae_device::{Act, ActView, Matrix, Mem, Precision, Product, Stream, View, bf16};

use super::Bound;
use super::tensor::{Cotangent, GpuTensor};
use crate::layout::{LinearWeights, NormWeights, Weight};

type Step = Box<dyn FnOnce(&mut Backward<'_>, Cotangent) + Send>;

/// What a pass has recorded; it owns the activations, and may be kept until the cotangents are known.
#[derive(Default)]
pub struct GpuRecord {
    num_slots: usize,
    /// Each step with the slot of the tensor whose gradient it takes.
    steps: Vec<(usize, Step)>,
    pub(super) gradient: Option<Mem<f32>>,
}

impl std::fmt::Debug for GpuRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuRecord({} steps)", self.steps.len())
    }
}

impl GpuRecord {
    pub(super) fn slot(&mut self) -> usize {
        self.num_slots += 1;
        self.num_slots - 1
    }

    pub(super) fn push(&mut self, slot: usize, step: Step) {
        self.steps.push((slot, step));
    }

    /// Enqueues the backward pass from outputs with their cotangents. The gradient of the bound parameters, zero where
    /// no operation used a weight; empty if they were bound without one.
    pub fn backward(self, stream: &Stream, cotangents: Vec<(GpuTensor, Cotangent)>) -> Mem<f32> {
        let GpuRecord { num_slots, mut steps, gradient } = self;
        let gradient = gradient.unwrap_or_default();
        let mut back = Backward { stream, slots: (0..num_slots).map(|_| None).collect(), gradient: &gradient };
        for (output, cotangent) in cotangents {
            match cotangent {
                Cotangent::Act(values) => back.give_act(output.slot, values),
                Cotangent::Residual(full, _) => back.add_residual(output.slot, full),
            }
        }
        while let Some((slot, step)) = steps.pop() {
            if let Some(cotangent) = back.slots[slot].take() {
                step(&mut back, cotangent);
            }
        }
        gradient
    }
}

/// A backward pass at work.
pub(super) struct Backward<'a> {
    pub(super) stream: &'a Stream,
    slots: Vec<Option<Cotangent>>,
    gradient: &'a Mem<f32>,
}

impl<'a> Backward<'a> {
    /// Where a weight's gradient goes.
    pub(super) fn gradient(&self, weight: &Weight) -> View<'a, f32> {
        self.gradient.slice(weight.range())
    }

    /// The gradient of the residual stream as products read it.
    pub(super) fn products_of(&self, full: &Mem<f32>, low: Option<Mem<bf16>>) -> Act {
        Cotangent::Residual(full.clone(), low).into_act(self.stream)
    }

    /// Adds to the gradient of an activation.
    pub(super) fn give_act(&mut self, slot: Option<usize>, values: Act) {
        let Some(slot) = slot else { return };
        let total = match self.slots[slot].take() {
            None => Cotangent::Act(values),
            Some(Cotangent::Act(total)) => {
                self.stream.act_add(total.view(), values.view());
                Cotangent::Act(total)
            }
            Some(Cotangent::Residual(total, _)) => {
                self.stream.add_act(total.view(), total.view(), values.view());
                Cotangent::Residual(total, None)
            }
        };
        self.slots[slot] = Some(total);
    }

    /// Hands a residual's gradient on, with its copy for products if that is still the same.
    pub(super) fn give_residual(&mut self, slot: Option<usize>, full: Mem<f32>, products: Act) {
        let Some(at) = slot else { return };
        if self.slots[at].is_some() {
            self.add_residual(slot, full);
            return;
        }
        let low = match products {
            Act::Bf16(low) => Some(low),
            Act::F32(_) => None,
        };
        self.slots[at] = Some(Cotangent::Residual(full, low));
    }

    /// Adds to the gradient of a residual.
    pub(super) fn add_residual(&mut self, slot: Option<usize>, full: Mem<f32>) {
        let Some(slot) = slot else { return };
        let total = match self.slots[slot].take() {
            None => full,
            Some(total) => {
                let (total, _) = total.into_residual(self.stream);
                self.stream.add_into(total.view(), full.view());
                total
            }
        };
        self.slots[slot] = Some(Cotangent::Residual(total, None));
    }

    /// dW = dyᵀ·x and db = the column sums of dy.
    pub(super) fn weights(&self, dy: &Act, x: &Act, w: &LinearWeights, rows: usize) {
        if self.gradient.is_empty() {
            return;
        }
        self.stream.product(&Product {
            out: self.gradient(&w.weight).into(),
            a: Matrix::transpose(dy.view()),
            b: Matrix::of(x.view()),
            shape: [w.outputs, w.inputs, rows],
            bias: None,
            accumulate: false,
        });
        self.stream.column_sums(self.gradient(&w.bias), dy.view(), false);
    }

    /// dx = dy·W.
    pub(super) fn input(&self, dx: &Act, dy: &Act, w: &LinearWeights, bound: &Bound, rows: usize) {
        self.stream.product(&Product {
            out: dx.view(),
            a: Matrix::of(dy.view()),
            b: Matrix::of(bound.act(&w.weight)),
            shape: [rows, w.inputs, w.outputs],
            bias: None,
            accumulate: false,
        });
    }

    /// The backward pass of a linear layer.
    pub(super) fn linear(
        &mut self,
        dy: &Act,
        x: &Act,
        w: &LinearWeights,
        bound: &Bound,
        rows: usize,
        slot: Option<usize>,
    ) {
        self.weights(dy, x, w, rows);
        if slot.is_some() {
            let dx = self.stream.act(rows * w.inputs);
            self.input(&dx, dy, w, bound, rows);
            self.give_act(slot, dx);
        }
    }

    /// The backward pass of a layer norm; adds to the residual's gradient in the same sweep.
    pub(super) fn layer_norm(
        &mut self,
        dy: &Act,
        x: &Mem<f32>,
        stats: &Mem<f32>,
        w: &NormWeights,
        bound: &Bound,
        slot: Option<usize>,
    ) {
        let before = slot.and_then(|slot| self.slots[slot].take());
        let add = before.map(|before| before.into_residual(self.stream).0);
        let dx = add.clone().unwrap_or_else(|| self.stream.take(x.len()));
        let is_low = self.stream.precision() == Precision::Bf16 && slot.is_some();
        let low: Option<Mem<bf16>> = is_low.then(|| self.stream.take(x.len()));
        let weights = (!self.gradient.is_empty()).then(|| (self.gradient(&w.gamma), self.gradient(&w.beta)));
        let gamma = bound.full(&w.gamma);
        let (low_view, add) = (low.as_ref().map(Mem::view), add.as_ref().map(Mem::view));
        let dy: ActView<'_> = dy.view();
        self.stream.layer_norm_grad(dx.view(), low_view, add, dy, x.view(), stats.view(), gamma, weights);
        if let Some(slot) = slot {
            self.slots[slot] = Some(Cotangent::Residual(dx, low));
        }
    }
}
