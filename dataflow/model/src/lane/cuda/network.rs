//! Masking networks on the GPU, in f32 (or tf32) at every precision: rounded scores would put patches into other masks.

use std::any::Any;

use mlomae_device::{Matrix, Mem, Product, Stream, View};

use crate::layout::LinearWeights;
use crate::masking::{Kept, MaskNetwork, NetworkRows};

/// What the backward pass needs of a batch's scores.
#[derive(Clone, Debug)]
pub(super) struct GpuTrace {
    /// The input of each layer, `[rows, inputs]`; the first is what the network reads.
    activations: Vec<Mem<f32>>,
    /// p `[batch, L]`.
    pub(super) scores: Mem<f32>,
}

impl GpuTrace {
    pub(super) fn new(activations: Vec<Mem<f32>>, scores: Mem<f32>) -> Self {
        GpuTrace { activations, scores }
    }

    pub(super) fn activations(&self) -> &[Mem<f32>] {
        &self.activations
    }
}

impl Kept for GpuTrace {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A masking network with its parameters on a stream.
pub(super) struct Network<'a> {
    pub(super) stream: &'a Stream,
    pub(super) network: &'a MaskNetwork,
    pub(super) phi: &'a Mem<f32>,
    /// Positions `[L, width]` of a network over patches.
    pub(super) positions: Option<&'a Mem<f32>>,
    /// L.
    pub(super) num_patches: usize,
}

impl Network<'_> {
    /// Values of a patch in the network's input.
    fn num_features(&self, batch: usize, input: usize) -> usize {
        input / (batch * self.num_patches)
    }

    fn rows(&self, batch: usize) -> usize {
        match self.network.rows {
            NetworkRows::Images => batch,
            NetworkRows::Patches(_) => batch * self.num_patches,
        }
    }

    /// `x·Wᵀ`, with the bias if `bias`.
    fn linear(&self, x: View<'_, f32>, w: &LinearWeights, bias: bool) -> Mem<f32> {
        let rows = x.len() / w.inputs;
        let out = self.stream.take(rows * w.outputs);
        self.stream.product(&Product {
            out: out.view().into(),
            a: Matrix::of(x),
            b: Matrix::transpose(self.phi.slice(w.weight.range())),
            shape: [rows, w.outputs, w.inputs],
            bias: bias.then(|| self.phi.slice(w.bias.range()).into()),
            accumulate: false,
        });
        out
    }

    /// dy·W.
    fn input_gradient(&self, dy: View<'_, f32>, w: &LinearWeights) -> Mem<f32> {
        let rows = dy.len() / w.outputs;
        let out = self.stream.take(rows * w.inputs);
        self.stream.product(&Product {
            out: out.view().into(),
            a: Matrix::of(dy),
            b: Matrix::of(self.phi.slice(w.weight.range())),
            shape: [rows, w.inputs, w.outputs],
            bias: None,
            accumulate: false,
        });
        out
    }

    /// Adds dyᵀ·x to the weight's gradient.
    fn add_weight(&self, dphi: &Mem<f32>, dy: View<'_, f32>, x: View<'_, f32>, w: &LinearWeights) {
        self.stream.product(&Product {
            out: dphi.slice(w.weight.range()).into(),
            a: Matrix::transpose(dy),
            b: Matrix::of(x),
            shape: [w.outputs, w.inputs, dy.len() / w.outputs],
            bias: None,
            accumulate: true,
        });
    }

    fn add_bias(&self, dphi: &Mem<f32>, dy: View<'_, f32>, w: &LinearWeights) {
        self.stream.column_sums(dphi.slice(w.bias.range()), dy.into(), true);
    }

    /// The first layer's input from the patches' features `[batch, L, features]`; `positions` stand still in a
    /// derivative.
    fn features(&self, input: &Mem<f32>, batch: usize, positions: bool) -> Mem<f32> {
        let Some(places) = self.positions else { return input.clone() };
        let out = self.stream.take(self.rows(batch) * self.network.layers[0].inputs);
        let features = self.num_features(batch, input.len());
        let places = positions.then(|| places.view());
        self.stream.token_features(out.view(), input.view(), places, self.num_patches, features);
        out
    }

    /// Scores of a batch's features `[batch, L, features]`.
    pub(super) fn forward(&self, input: &Mem<f32>, batch: usize) -> GpuTrace {
        let mut activations = vec![self.features(input, batch, true)];
        for (i, layer) in self.network.layers.iter().enumerate() {
            let next = self.linear(activations[i].view(), layer, true);
            if i + 1 < self.network.layers.len() {
                self.stream.relu(next.view());
            } else {
                self.stream.sigmoid(next.view());
            }
            activations.push(next);
        }
        let scores = activations.pop().unwrap_or_default();
        GpuTrace { activations, scores }
    }

    /// The backward pass from ∂F/∂p `[batch, L]`: adds ∂F/∂φ to `dphi`, and returns ∂F/∂input with `want_input`.
    pub(super) fn backward(
        &self,
        trace: &GpuTrace,
        dscores: &Mem<f32>,
        dphi: Option<&Mem<f32>>,
        want_input: bool,
    ) -> Option<Mem<f32>> {
        let batch = trace.scores.len() / self.num_patches;
        let mut d = self.stream.take(dscores.len());
        self.stream.copy(d.view(), dscores.view());
        self.stream.sigmoid_grad(d.view(), trace.scores.view());
        for (i, layer) in self.network.layers.iter().enumerate().rev() {
            if let Some(dphi) = dphi {
                self.add_weight(dphi, d.view(), trace.activations[i].view(), layer);
                self.add_bias(dphi, d.view(), layer);
            }
            if i == 0 && !want_input {
                return None;
            }
            d = self.input_gradient(d.view(), layer);
            if i > 0 {
                self.stream.relu_grad(d.view(), trace.activations[i].view());
            }
        }
        let Some(places) = self.positions else { return Some(d) };
        let width = places.len() / self.num_patches;
        let features = (self.network.layers[0].inputs - width) / 2;
        let dinput = self.stream.take(batch * self.num_patches * features);
        self.stream.token_features_grad(dinput.view(), d.view(), self.num_patches, features);
        Some(dinput)
    }

    /// The derivative of [`Network::backward`]'s ∂F/∂φ where the input moves along `dinput` and ∂F/∂p along `ddscores`
    /// (forward over reverse); added to `ddphi`.
    pub(super) fn backward_tangent(
        &self,
        trace: &GpuTrace,
        dinput: &Mem<f32>,
        dscores: &Mem<f32>,
        ddscores: &Mem<f32>,
        ddphi: &Mem<f32>,
    ) {
        let stream = self.stream;
        let batch = trace.scores.len() / self.num_patches;
        let layers = &self.network.layers;
        let mut tangents = vec![self.features(dinput, batch, false)];
        for (i, layer) in layers.iter().enumerate() {
            let next = self.linear(tangents[i].view(), layer, false);
            match trace.activations.get(i + 1) {
                Some(activation) => stream.relu_grad(next.view(), activation.view()),
                None => stream.sigmoid_grad(next.view(), trace.scores.view()),
            }
            tangents.push(next);
        }
        let dp = tangents.pop().unwrap_or_default();
        let copy_of = |values: &Mem<f32>| {
            let copy = stream.take(values.len());
            stream.copy(copy.view(), values.view());
            stream.sigmoid_grad(copy.view(), trace.scores.view());
            copy
        };
        let (mut d, mut dd) = (copy_of(dscores), copy_of(ddscores));
        stream.sigmoid_curvature(dd.view(), dscores.view(), dp.view(), trace.scores.view());
        for (i, layer) in layers.iter().enumerate().rev() {
            let activation = trace.activations[i].view();
            self.add_weight(ddphi, dd.view(), activation, layer);
            self.add_bias(ddphi, dd.view(), layer);
            self.add_weight(ddphi, d.view(), tangents[i].view(), layer);
            if i > 0 {
                d = self.input_gradient(d.view(), layer);
                dd = self.input_gradient(dd.view(), layer);
                stream.relu_grad(d.view(), activation);
                stream.relu_grad(dd.view(), activation);
            }
        }
    }
}
