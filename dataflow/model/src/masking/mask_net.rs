//! The masking network T_φ: one score in (0, 1) per patch.
//!
//! It runs on whole batches, not on micro-batches: its first layer at paper scale has a hundred million weights, which are read once a
//! batch and cut by hidden units, so that neither the weights nor their gradient are ever held twice.

use std::sync::Arc;

use crate::config::{MaskInput, MaskNetKind, ModelConfig};
use crate::layout::{Layout, LinearWeights, ParamSet, SharedLayout};
use crate::nets::init;
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;
use crate::parallel::sum::OrderedSum;
use mlomae_kernels::{self as kernels, Mat};

/// Hidden units that one piece of the wide first layer covers.
const UNITS_PER_PIECE: usize = 64;
/// Width of the fixed position features of the token network.
const POSITION_DIM: usize = 64;

/// The masking network φ.
#[derive(Clone, Debug)]
pub struct MaskNet {
    /// Names and places of the weights.
    pub layout: SharedLayout,
    num_patches: usize,
    features: usize,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Flat { hidden: LinearWeights, output: LinearWeights },
    Token { first: LinearWeights, hidden: LinearWeights, output: LinearWeights, positions: Arc<Vec<f32>> },
}

/// What a forward pass leaves for the backward pass.
#[derive(Clone, Debug)]
pub struct MaskTrace {
    /// p `[batch, L]`.
    pub scores: Arc<Buffer>,
    input: Arc<Buffer>,
    hidden: Vec<Arc<Buffer>>,
    batch: usize,
}

impl MaskNet {
    /// Lays the weights out for `config`.
    pub fn new(config: &ModelConfig) -> Self {
        let num_patches = config.num_patches();
        let features = match config.mask_input {
            MaskInput::Embedding => config.dim,
            MaskInput::Pixels => config.patch_values(),
        };
        let mut layout = Layout::new(ParamSet::Mask);
        let form = match config.mask_net {
            MaskNetKind::FlatMlp => Form::Flat {
                hidden: layout.linear("first_hidden_layer.fc", &[config.mask_hidden, num_patches * features]),
                output: layout.linear("output_layer", &[num_patches, config.mask_hidden]),
            },
            MaskNetKind::TokenMlp => {
                let mut positions = vec![0.0; (1 + num_patches) * POSITION_DIM];
                init::sincos_2d(&mut positions, POSITION_DIM, config.grid());
                positions.drain(..POSITION_DIM);
                Form::Token {
                    first: layout.linear("first_hidden_layer.fc", &[config.mask_hidden, 2 * features + POSITION_DIM]),
                    hidden: layout.linear("second_hidden_layer.fc", &[config.mask_hidden, config.mask_hidden]),
                    output: layout.linear("output_layer", &[1, config.mask_hidden]),
                    positions: Arc::new(positions),
                }
            }
        };
        MaskNet { layout: Arc::new(layout), num_patches, features, form }
    }

    /// Initial values: U(±1/√inputs) for every linear layer.
    pub fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        let mut bound = 0.0;
        for entry in &self.layout.entries {
            if entry.shape.len() == 2 {
                bound = 1.0 / (entry.shape[1] as f64).sqrt();
            }
            init::symmetric(&mut values[entry.range()], bound, &mut init::tensor_rng(seed, &entry.name));
        }
        Buffer::from_vec(values)
    }

    /// Values that the network reads of one image.
    pub fn input_len(&self) -> usize {
        self.num_patches * self.features
    }

    /// Scores of `input` `[batch, L, features]` at `params`.
    pub fn forward(&self, compute: &Compute, params: &[f32], input: &Arc<Buffer>) -> MaskTrace {
        let batch = input.len() / self.input_len();
        let (scores, hidden) = match &self.form {
            Form::Flat { hidden, output } => {
                let h = wide_linear_relu(compute, params, hidden, input, batch);
                let mut scores = linear(compute, params, output, &h, batch);
                kernels::bias_sigmoid(&mut scores, &params[output.bias.range()]);
                (scores, vec![Arc::new(h)])
            }
            Form::Token { first, hidden, output, .. } => {
                // What is kept goes from stage to stage, whose micro-batches may differ.
                let pieces = compute.grains(batch);
                let results = compute.map(pieces.len(), |i| {
                    let rows = pieces[i].len() * self.num_patches;
                    let u = self.token_features(compute, input, &pieces[i]);
                    let mut h1 = linear(compute, params, first, &u, rows);
                    kernels::bias_relu(&mut h1, &params[first.bias.range()]);
                    let mut h2 = linear(compute, params, hidden, &h1, rows);
                    kernels::bias_relu(&mut h2, &params[hidden.bias.range()]);
                    let mut scores = linear(compute, params, output, &h2, rows);
                    kernels::bias_sigmoid(&mut scores, &params[output.bias.range()]);
                    (scores, h1, h2)
                });
                let mut all = compute.arena.take(batch * self.num_patches);
                for (piece, (scores, ..)) in pieces.iter().zip(&results) {
                    all[piece.start * self.num_patches..piece.end * self.num_patches].copy_from_slice(scores);
                }
                (all, results.into_iter().flat_map(|(_, h1, h2)| [Arc::new(h1), Arc::new(h2)]).collect())
            }
        };
        MaskTrace { scores: Arc::new(scores), input: input.clone(), hidden, batch }
    }

    /// Carries `dscores` = ∂F/∂p `[batch, L]` back: adds to `dparams` where given, and returns ∂F/∂input where wanted.
    pub fn backward(
        &self,
        compute: &Compute,
        params: &[f32],
        trace: &MaskTrace,
        dscores: &[f32],
        dparams: Option<&mut [f32]>,
        want_input: bool,
    ) -> Option<Buffer> {
        let mut ds = compute.arena.copy_of(dscores);
        kernels::sigmoid_grad(&mut ds, &trace.scores);
        match &self.form {
            Form::Flat { hidden, output } => {
                let h = &trace.hidden[0];
                let mut dh = linear_input_gradient(compute, params, output, &ds, trace.batch);
                kernels::relu_grad(&mut dh, h);
                if let Some(dparams) = dparams {
                    linear_weight_gradient(dparams, output, &ds, h, trace.batch);
                    wide_weight_gradient(compute, dparams, hidden, &dh, &trace.input, trace.batch);
                }
                want_input.then(|| wide_input_gradient(compute, params, hidden, &dh, trace.batch))
            }
            Form::Token { first, hidden, output, .. } => {
                let pieces = compute.grains(trace.batch);
                let sum = OrderedSum::new(&compute.arena, pieces.len(), self.layout.len);
                let want_params = dparams.is_some();
                let inputs = compute.map(pieces.len(), |i| {
                    let rows = pieces[i].len() * self.num_patches;
                    let (h1, h2) = (&trace.hidden[2 * i], &trace.hidden[2 * i + 1]);
                    let ds = &ds[pieces[i].start * self.num_patches..pieces[i].end * self.num_patches];
                    let mut dh2 = linear_input_gradient(compute, params, output, ds, rows);
                    kernels::relu_grad(&mut dh2, h2);
                    let mut dh1 = linear_input_gradient(compute, params, hidden, &dh2, rows);
                    kernels::relu_grad(&mut dh1, h1);
                    if want_params {
                        let mut gradient = compute.arena.zeros(self.layout.len);
                        let u = self.token_features(compute, &trace.input, &pieces[i]);
                        linear_weight_gradient(&mut gradient, output, ds, h2, rows);
                        linear_weight_gradient(&mut gradient, hidden, &dh2, h1, rows);
                        linear_weight_gradient(&mut gradient, first, &dh1, &u, rows);
                        sum.add(i, 0..self.layout.len, gradient);
                    }
                    want_input.then(|| {
                        let du = linear_input_gradient(compute, params, first, &dh1, rows);
                        self.token_features_gradient(compute, &du, pieces[i].len())
                    })
                });
                if let (Some(dparams), Some(sum)) = (dparams, sum.finish()) {
                    kernels::add(dparams, &sum);
                }
                want_input.then(|| {
                    let mut all = compute.arena.take(trace.input.len());
                    for (piece, input) in pieces.iter().zip(inputs.into_iter().flatten()) {
                        all[piece.start * self.input_len()..piece.end * self.input_len()].copy_from_slice(&input);
                    }
                    all
                })
            }
        }
    }

    /// `[images·L, 2·features + POSITION_DIM]`: each patch's features, the image's mean features, the position.
    fn token_features(&self, compute: &Compute, input: &[f32], images: &std::ops::Range<usize>) -> Buffer {
        let Form::Token { positions, .. } = &self.form else { return Buffer::default() };
        let (n, f) = (self.num_patches, self.features);
        let width = 2 * f + POSITION_DIM;
        let mut out = compute.arena.take(images.len() * n * width);
        for (image, rows) in images.clone().zip(out.chunks_exact_mut(n * width)) {
            let patches = &input[image * n * f..(image + 1) * n * f];
            let mut mean = vec![0f32; f];
            patches.chunks_exact(f).for_each(|patch| kernels::add(&mut mean, patch));
            mean.iter_mut().for_each(|m| *m /= n as f32);
            for ((row, patch), position) in
                rows.chunks_exact_mut(width).zip(patches.chunks_exact(f)).zip(positions.chunks_exact(POSITION_DIM))
            {
                row[..f].copy_from_slice(patch);
                row[f..2 * f].copy_from_slice(&mean);
                row[2 * f..].copy_from_slice(position);
            }
        }
        out
    }

    fn token_features_gradient(&self, compute: &Compute, du: &[f32], num_images: usize) -> Buffer {
        let (n, f) = (self.num_patches, self.features);
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

/// `x·Wᵀ` without bias.
fn linear(compute: &Compute, params: &[f32], w: &LinearWeights, x: &[f32], rows: usize) -> Buffer {
    let mut y = compute.arena.take(rows * w.outputs);
    let a = Mat { data: x, ld: w.inputs, trans: false };
    let b = Mat { data: &params[w.weight.range()], ld: w.inputs, trans: true };
    kernels::matmul(&mut y, w.outputs, a, b, rows, w.outputs, w.inputs, false);
    y
}

/// `dy·W`.
fn linear_input_gradient(compute: &Compute, params: &[f32], w: &LinearWeights, dy: &[f32], rows: usize) -> Buffer {
    let mut dx = compute.arena.take(rows * w.inputs);
    let a = Mat { data: dy, ld: w.outputs, trans: false };
    let b = Mat { data: &params[w.weight.range()], ld: w.inputs, trans: false };
    kernels::matmul(&mut dx, w.inputs, a, b, rows, w.inputs, w.outputs, false);
    dx
}

/// Adds `dyᵀ·x` and the column sums of `dy` to a flat gradient.
fn linear_weight_gradient(dparams: &mut [f32], w: &LinearWeights, dy: &[f32], x: &[f32], rows: usize) {
    let a = Mat { data: dy, ld: w.outputs, trans: true };
    let b = Mat { data: x, ld: w.inputs, trans: false };
    kernels::matmul(&mut dparams[w.weight.range()], w.inputs, a, b, w.outputs, w.inputs, rows, true);
    kernels::bias_grad(&mut dparams[w.bias.range()], dy, true);
}

/// `relu(x·Wᵀ + b)` cut by hidden units.
fn wide_linear_relu(compute: &Compute, params: &[f32], w: &LinearWeights, x: &[f32], rows: usize) -> Buffer {
    let pieces = w.outputs.div_ceil(UNITS_PER_PIECE);
    let units = |i: usize| i * UNITS_PER_PIECE..((i + 1) * UNITS_PER_PIECE).min(w.outputs);
    let parts = compute.map(pieces, |i| {
        let units = units(i);
        let mut part = compute.arena.take(rows * units.len());
        let weight = &params[w.weight.range()][units.start * w.inputs..units.end * w.inputs];
        let a = Mat { data: x, ld: w.inputs, trans: false };
        let b = Mat { data: weight, ld: w.inputs, trans: true };
        kernels::matmul(&mut part, units.len(), a, b, rows, units.len(), w.inputs, false);
        kernels::bias_relu(&mut part, &params[w.bias.range()][units]);
        part
    });
    let mut y = compute.arena.take(rows * w.outputs);
    for (i, part) in parts.iter().enumerate() {
        let units = units(i);
        for (row, values) in y.chunks_exact_mut(w.outputs).zip(part.chunks_exact(units.len())) {
            row[units.clone()].copy_from_slice(values);
        }
    }
    y
}

/// Adds `dyᵀ·x` cut by hidden units, which are rows of the weight.
fn wide_weight_gradient(compute: &Compute, dparams: &mut [f32], w: &LinearWeights, dy: &[f32], x: &[f32], rows: usize) {
    kernels::bias_grad(&mut dparams[w.bias.range()], dy, true);
    let spans: Vec<_> = (0..w.outputs)
        .step_by(UNITS_PER_PIECE)
        .map(|unit| unit * w.inputs..(unit + UNITS_PER_PIECE).min(w.outputs) * w.inputs)
        .collect();
    compute.map_slices(&mut dparams[w.weight.range()], &spans, |i, piece| {
        let first_unit = i * UNITS_PER_PIECE;
        let a = Mat { data: &dy[first_unit..], ld: w.outputs, trans: true };
        let b = Mat { data: x, ld: w.inputs, trans: false };
        kernels::matmul(piece, w.inputs, a, b, piece.len() / w.inputs, w.inputs, rows, true);
    });
}

/// `dy·W` cut by inputs.
fn wide_input_gradient(compute: &Compute, params: &[f32], w: &LinearWeights, dy: &[f32], rows: usize) -> Buffer {
    let piece = w.inputs.div_ceil(8).next_multiple_of(16);
    let spans: Vec<_> = (0..w.inputs).step_by(piece).map(|start| start..(start + piece).min(w.inputs)).collect();
    let weight = &params[w.weight.range()];
    let parts = compute.map(spans.len(), |i| {
        let mut part = compute.arena.take(rows * spans[i].len());
        let a = Mat { data: dy, ld: w.outputs, trans: false };
        let b = Mat { data: &weight[spans[i].start..], ld: w.inputs, trans: false };
        kernels::matmul(&mut part, spans[i].len(), a, b, rows, spans[i].len(), w.outputs, false);
        part
    });
    let mut dx = compute.arena.take(rows * w.inputs);
    for (span, part) in spans.iter().zip(&parts) {
        for (row, values) in dx.chunks_exact_mut(w.inputs).zip(part.chunks_exact(span.len())) {
            row[span.clone()].copy_from_slice(values);
        }
    }
    dx
}
