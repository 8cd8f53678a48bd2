//! The published masking network (arXiv 2402.18128): Linear(L·D, hidden) → ReLU → Linear(hidden, L) → sigmoid, over the
//! flattened patches.
//!
//! It runs on whole batches, not on micro-batches: at paper scale its first layer has a hundred million weights, which
//! are then read once a batch. Threads share the layer by hidden units (tensor parallelism).

use std::sync::Arc;

use mlomae_kernels as kernels;

use super::kind::init_linear_layers;
use super::kind::{MaskNetwork, MaskRule, Masking, MaskingFacts, MaskingKind, Needs, NetworkRows, Trace};
use super::layers::{Trunk, linear, linear_input_gradient, linear_weight_gradient};
use super::layers::{wide_input_gradient, wide_linear_relu, wide_weight_gradient};
use super::order::explored_keys;
use crate::choice::Named;
use crate::layout::{Layout, LinearWeights, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "flat-mlp"
    }
    fn summary(&self) -> &'static str {
        "As published: one linear layer over all patches at once, ReLU, one linear layer"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        true
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(FlatMlp::new(facts))
    }
}

/// The network over all patches at once.
#[derive(Clone, Debug)]
pub struct FlatMlp {
    layout: SharedLayout,
    facts: MaskingFacts,
    hidden: LinearWeights,
    output: LinearWeights,
}

impl FlatMlp {
    /// Lays the weights out.
    #[must_use]
    pub fn new(facts: &MaskingFacts) -> Self {
        let num_patches = facts.num_patches();
        let mut layout = Layout::new(Level::Mask);
        let hidden = layout.linear("first_hidden_layer.fc", &[facts.hidden, num_patches * facts.features()]);
        let output = layout.linear("output_layer", &[num_patches, facts.hidden]);
        FlatMlp { layout: Arc::new(layout), facts: facts.clone(), hidden, output }
    }
}

impl Masking for FlatMlp {
    fn needs(&self) -> Needs {
        self.facts.needs()
    }

    fn keys(&self, _: usize, scores: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        explored_keys(scores.unwrap_or_default(), self.facts.num_patches(), rule)
    }

    fn layout(&self) -> Option<&SharedLayout> {
        Some(&self.layout)
    }

    fn network(&self) -> Option<MaskNetwork> {
        Some(MaskNetwork { rows: NetworkRows::Images, layers: vec![self.hidden, self.output] })
    }

    fn init(&self, seed: u64) -> Buffer {
        init_linear_layers(&self.layout, seed)
    }

    fn trace_values(&self) -> usize {
        self.facts.num_patches() * (1 + self.facts.features()) + self.facts.hidden
    }

    fn forward(&self, compute: &Compute, phi: &[f32], input: &Arc<Buffer>) -> Option<Trace> {
        let batch = input.len() / self.hidden.inputs;
        let h = wide_linear_relu(compute, phi, &self.hidden, input, batch);
        let mut scores = linear(compute, phi, &self.output, &h, batch);
        kernels::bias_sigmoid(&mut scores, &phi[self.output.bias.range()]);
        Some(Trace {
            scores: Arc::new(scores),
            input: input.clone(),
            hidden: vec![Arc::new(h)],
            batch,
            kept: None,
            shuffle: None,
        })
    }

    fn backward(
        &self,
        compute: &Compute,
        phi: &[f32],
        trace: &Trace,
        dscores: &[f32],
        dphi: Option<&mut [f32]>,
        want_input: bool,
    ) -> Option<Buffer> {
        let mut ds = compute.arena.copy_of(dscores);
        kernels::sigmoid_grad(&mut ds, &trace.scores);
        let h = &trace.hidden[0];
        let mut dh = linear_input_gradient(compute, phi, &self.output, &ds, trace.batch);
        kernels::relu_grad(&mut dh, h);
        if let Some(dphi) = dphi {
            linear_weight_gradient(dphi, &self.output, &ds, h, trace.batch);
            wide_weight_gradient(compute, dphi, &self.hidden, &dh, &trace.input, trace.batch);
        }
        want_input.then(|| wide_input_gradient(compute, phi, &self.hidden, &dh, trace.batch))
    }

    fn backward_tangent(
        &self,
        compute: &Compute,
        phi: &[f32],
        trace: &Trace,
        dinput: &[f32],
        dscores: &[f32],
        ddscores: &[f32],
        ddphi: &mut [f32],
    ) -> bool {
        let trunk = Trunk {
            phi,
            layers: &[self.hidden, self.output],
            activations: &[&trace.input, &trace.hidden[0]],
            scores: &trace.scores,
        };
        trunk.weight_gradient_tangent(compute, dinput, dscores, ddscores, ddphi);
        true
    }
}
