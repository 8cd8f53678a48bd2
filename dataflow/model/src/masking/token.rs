//! A masking network that does not depend on the resolution: one MLP, applied to each patch, over the patch's features,
//! the image's mean features and the patch's position. It has about a million weights at paper scale.

use std::ops::Range;
use std::sync::Arc;

use mlomae_kernels as kernels;

use super::kind::init_linear_layers;
use super::kind::{MaskNetwork, MaskRule, Masking, MaskingFacts, MaskingKind, Needs, NetworkRows, Trace};
use super::layers::{Trunk, linear, linear_input_gradient, linear_weight_gradient};
use super::order::explored_keys;
use super::scales::Scales;
use crate::choice::Named;
use crate::init;
use crate::layout::{Layout, LinearWeights, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::parallel::sum::OrderedSum;

/// Width of the sin-cos position features.
const POSITION_DIM: usize = 64;

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "token-mlp"
    }
    fn summary(&self) -> &'static str {
        "A shared MLP over each patch with its position and the image's context; independent of resolution"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        true
    }
    fn mixes_scales(&self) -> bool {
        true
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(TokenMlp::new(facts))
    }
}

/// The network over each patch.
#[derive(Clone, Debug)]
pub struct TokenMlp {
    layout: SharedLayout,
    facts: MaskingFacts,
    first: LinearWeights,
    hidden: LinearWeights,
    output: LinearWeights,
    positions: Arc<Vec<f32>>,
    scales: Option<Scales>,
}

impl TokenMlp {
    /// Lays the weights out.
    #[must_use]
    pub fn new(facts: &MaskingFacts) -> Self {
        let mut positions = vec![0.0; (1 + facts.num_patches()) * POSITION_DIM];
        init::sincos_2d(&mut positions, POSITION_DIM, facts.grid);
        positions.drain(..POSITION_DIM);
        let mut layout = Layout::new(Level::Mask);
        let width = 2 * facts.features() + POSITION_DIM;
        let first = layout.linear("first_hidden_layer.fc", &[facts.hidden, width]);
        let hidden = layout.linear("second_hidden_layer.fc", &[facts.hidden, facts.hidden]);
        let output = layout.linear("output_layer", &[1, facts.hidden]);
        let scales = Scales::add_to(&mut layout, &facts.scales, facts.grid);
        let (layout, facts, positions) = (Arc::new(layout), facts.clone(), Arc::new(positions));
        TokenMlp { layout, facts, first, hidden, output, positions, scales }
    }

    /// The MLP's input for `images`, `[images·L, 2·features + POSITION_DIM]`: each patch's features, the image's mean
    /// features, the position.
    fn features(&self, compute: &Compute, input: &[f32], images: &Range<usize>) -> Buffer {
        let (n, f) = (self.facts.num_patches(), self.facts.features());
        let width = 2 * f + POSITION_DIM;
        let mut out = compute.arena.take(images.len() * n * width);
        for (image, rows) in images.clone().zip(out.chunks_exact_mut(n * width)) {
            let patches = &input[image * n * f..(image + 1) * n * f];
            let mut mean = vec![0f32; f];
            patches.chunks_exact(f).for_each(|patch| kernels::add(&mut mean, patch));
            mean.iter_mut().for_each(|m| *m /= n as f32);
            let places = patches.chunks_exact(f).zip(self.positions.chunks_exact(POSITION_DIM));
            for (row, (patch, position)) in rows.chunks_exact_mut(width).zip(places) {
                row[..f].copy_from_slice(patch);
                row[f..2 * f].copy_from_slice(&mean);
                row[2 * f..].copy_from_slice(position);
            }
        }
        out
    }

    /// ∂F/∂input `[images·L, features]` from the cotangent of [`TokenMlp::features`].
    fn features_gradient(&self, compute: &Compute, du: &[f32], num_images: usize) -> Buffer {
        let (n, f) = (self.facts.num_patches(), self.facts.features());
        let width = 2 * f + POSITION_DIM;
        let mut out = compute.arena.take(num_images * n * f);
        for (rows, patches) in du.chunks_exact(n * width).zip(out.chunks_exact_mut(n * f)) {
            let mut mean = vec![0f32; f];
            rows.chunks_exact(width).for_each(|row| kernels::add(&mut mean, &row[f..2 * f]));
            for (row, patch) in rows.chunks_exact(width).zip(patches.chunks_exact_mut(f)) {
                patch.iter_mut().zip(&row[..f]).zip(&mean).for_each(|((d, own), mean)| *d = own + mean / n as f32);
            }
        }
        out
    }
}

impl Masking for TokenMlp {
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
        if self.scales.is_some() {
            return None;
        }
        let rows = NetworkRows::Patches(self.positions.clone());
        Some(MaskNetwork { rows, layers: vec![self.first, self.hidden, self.output] })
    }

    fn scales(&self) -> Option<&Scales> {
        self.scales.as_ref()
    }

    fn init(&self, seed: u64) -> Buffer {
        let mut values = init_linear_layers(&self.layout, seed);
        if let Some(scales) = &self.scales {
            values[scales.gates().range()].fill(0.0);
        }
        values
    }

    fn trace_values(&self) -> usize {
        let logits = usize::from(self.scales.is_some());
        self.facts.num_patches() * (1 + logits + self.facts.features() + 2 * self.facts.hidden)
    }

    fn forward(&self, compute: &Compute, phi: &[f32], input: &Arc<Buffer>) -> Option<Trace> {
        let num_patches = self.facts.num_patches();
        let batch = input.len() / (num_patches * self.facts.features());
        let pieces = compute.grains(batch);
        let results = compute.map(pieces.len(), |i| {
            let rows = pieces[i].len() * num_patches;
            let u = self.features(compute, input, &pieces[i]);
            let mut h1 = linear(compute, phi, &self.first, &u, rows);
            kernels::bias_relu(&mut h1, &phi[self.first.bias.range()]);
            let mut h2 = linear(compute, phi, &self.hidden, &h1, rows);
            kernels::bias_relu(&mut h2, &phi[self.hidden.bias.range()]);
            let mut scores = linear(compute, phi, &self.output, &h2, rows);
            let bias = &phi[self.output.bias.range()];
            if self.scales.is_some() {
                kernels::add_bias(&mut scores, bias);
            } else {
                kernels::bias_sigmoid(&mut scores, bias);
            }
            (scores, h1, h2)
        });
        let mut scores = compute.arena.take(batch * num_patches);
        for (piece, (part, ..)) in pieces.iter().zip(&results) {
            scores[piece.start * num_patches..piece.end * num_patches].copy_from_slice(part);
        }
        let mut hidden: Vec<_> = results.into_iter().flat_map(|(_, h1, h2)| [Arc::new(h1), Arc::new(h2)]).collect();
        if let Some(scales) = &self.scales {
            // So far they are the network's logits, which the backward pass needs.
            let mut mixed = Buffer::from_vec(scales.mix(phi, &scores));
            kernels::bias_sigmoid(&mut mixed, &[0.0]);
            hidden.push(Arc::new(std::mem::replace(&mut scores, mixed)));
        }
        Some(Trace { scores: Arc::new(scores), input: input.clone(), hidden, batch, kept: None, shuffle: None })
    }

    fn backward(
        &self,
        compute: &Compute,
        phi: &[f32],
        trace: &Trace,
        dscores: &[f32],
        mut dphi: Option<&mut [f32]>,
        want_input: bool,
    ) -> Option<Buffer> {
        let num_patches = self.facts.num_patches();
        let mut ds = compute.arena.copy_of(dscores);
        kernels::sigmoid_grad(&mut ds, &trace.scores);
        if let (Some(scales), Some(logits)) = (&self.scales, trace.hidden.last()) {
            ds = Buffer::from_vec(scales.backward(phi, logits, &ds, dphi.as_deref_mut()));
        }
        let pieces = compute.grains(trace.batch);
        let sum = OrderedSum::new(&compute.arena, pieces.len(), self.layout.len);
        let want_phi = dphi.is_some();
        let inputs = compute.map(pieces.len(), |i| {
            let rows = pieces[i].len() * num_patches;
            let (h1, h2) = (&trace.hidden[2 * i], &trace.hidden[2 * i + 1]);
            let ds = &ds[pieces[i].start * num_patches..pieces[i].end * num_patches];
            let mut dh2 = linear_input_gradient(compute, phi, &self.output, ds, rows);
            kernels::relu_grad(&mut dh2, h2);
            let mut dh1 = linear_input_gradient(compute, phi, &self.hidden, &dh2, rows);
            kernels::relu_grad(&mut dh1, h1);
            if want_phi {
                let mut gradient = compute.arena.zeros(self.layout.len);
                let u = self.features(compute, &trace.input, &pieces[i]);
                linear_weight_gradient(&mut gradient, &self.output, ds, h2, rows);
                linear_weight_gradient(&mut gradient, &self.hidden, &dh2, h1, rows);
                linear_weight_gradient(&mut gradient, &self.first, &dh1, &u, rows);
                sum.add(i, 0..self.layout.len, gradient);
            }
            want_input.then(|| {
                let du = linear_input_gradient(compute, phi, &self.first, &dh1, rows);
                self.features_gradient(compute, &du, pieces[i].len())
            })
        });
        if let (Some(dphi), Some(sum)) = (dphi, sum.finish()) {
            kernels::add(dphi, &sum);
        }
        want_input.then(|| {
            let per_image = num_patches * self.facts.features();
            let mut all = compute.arena.take(trace.input.len());
            for (piece, input) in pieces.iter().zip(inputs.into_iter().flatten()) {
                all[piece.start * per_image..piece.end * per_image].copy_from_slice(&input);
            }
            all
        })
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
        if self.scales.is_some() {
            return false;
        }
        let num_patches = self.facts.num_patches();
        let pieces = compute.grains(trace.batch);
        let sum = OrderedSum::new(&compute.arena, pieces.len(), self.layout.len);
        compute.map(pieces.len(), |i| {
            let place = pieces[i].start * num_patches..pieces[i].end * num_patches;
            let u = self.features(compute, &trace.input, &pieces[i]);
            let mut du = self.features(compute, dinput, &pieces[i]);
            // Positions stand still.
            let width = self.first.inputs;
            du.chunks_exact_mut(width).for_each(|row| row[width - POSITION_DIM..].fill(0.0));
            let trunk = Trunk {
                phi,
                layers: &[self.first, self.hidden, self.output],
                activations: &[&u, &trace.hidden[2 * i], &trace.hidden[2 * i + 1]],
                scores: &trace.scores[place.clone()],
            };
            let mut gradient = compute.arena.zeros(self.layout.len);
            let (dscores, ddscores) = (&dscores[place.clone()], &ddscores[place]);
            trunk.weight_gradient_tangent(compute, &du, dscores, ddscores, &mut gradient);
            sum.add(i, 0..self.layout.len, gradient);
        });
        if let Some(sum) = sum.finish() {
            kernels::add(ddphi, &sum);
        }
        true
    }
}
