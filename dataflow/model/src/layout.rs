//! Names, shapes and offsets of the tensors in a flat parameter vector.
//!
//! Every parameter set (θ encoder and decoder, c head, φ masking network) is one flat `f32` vector, and a tensor is a
//! range of it. So an optimizer step, a perturbation, a norm or a snapshot is a single sweep.

use std::sync::Arc;

use crate::level::Level;

/// One named tensor of a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name under the MAE/timm convention, for example `blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape, outermost dimension first (row-major).
    pub shape: Vec<usize>,
    /// First value in the flat vector.
    pub offset: usize,
    /// Number of values.
    pub len: usize,
    /// False for frozen tensors: the optimizer leaves them, and gradients are zero there (frozen position embeddings).
    pub trainable: bool,
}

impl Entry {
    /// The tensor's range in the flat vector.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }

    /// Whether the tensor is a matrix of a linear layer, as opposed to a bias, a norm's gain, a token or a position
    /// embedding.
    #[must_use]
    pub fn is_matrix(&self) -> bool {
        self.name.ends_with(".weight") && self.shape.len() >= 2
    }
}

/// A handle to a tensor of a layout, for the networks: cheap to copy, and enough to find the values.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// The level whose parameter set it belongs to.
    pub level: Level,
    /// Index of its entry in the set's layout.
    pub entry: usize,
    /// First value in the flat vector.
    pub offset: usize,
    /// Number of values.
    pub len: usize,
}

impl Weight {
    /// The tensor's range in the flat vector.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }
}

impl LinearWeights {
    /// The layer for a range of its outputs alone.
    #[must_use]
    pub fn outputs(&self, range: std::ops::Range<usize>) -> Self {
        let part = |of: &Weight, width: usize| Weight {
            offset: of.offset + range.start * width,
            len: range.len() * width,
            ..*of
        };
        let (weight, bias) = (part(&self.weight, self.inputs), part(&self.bias, 1));
        LinearWeights { weight, bias, inputs: self.inputs, outputs: range.len() }
    }
}

/// A linear layer's weight `[outputs, inputs]` and bias `[outputs]`.
#[derive(Clone, Copy, Debug)]
pub struct LinearWeights {
    /// `[outputs, inputs]`, row-major.
    pub weight: Weight,
    /// `[outputs]`.
    pub bias: Weight,
    /// Input width.
    pub inputs: usize,
    /// Output width.
    pub outputs: usize,
}

/// A layer norm's gain and bias, both `[dim]`.
#[derive(Clone, Copy, Debug)]
pub struct NormWeights {
    /// Gain γ.
    pub gamma: Weight,
    /// Bias β.
    pub beta: Weight,
    /// Width.
    pub dim: usize,
}

/// The tensors of one parameter set in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The level whose parameters they are.
    pub level: Level,
    /// The tensors, by rising offset.
    pub entries: Vec<Entry>,
    /// Length of the flat vector.
    pub len: usize,
}

impl Layout {
    /// An empty layout for the parameters of `level`, to be filled with [`Layout::add`].
    #[must_use]
    pub fn new(level: Level) -> Self {
        Layout { level, entries: Vec::new(), len: 0 }
    }

    /// Appends a tensor.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize]) -> Weight {
        let len = shape.iter().product();
        let weight = Weight { level: self.level, entry: self.entries.len(), offset: self.len, len };
        self.entries.push(Entry { name: name.into(), shape: shape.to_vec(), offset: self.len, len, trainable: true });
        self.len += len;
        weight
    }

    /// Appends a frozen tensor, see [`Entry::trainable`].
    pub fn add_frozen(&mut self, name: impl Into<String>, shape: &[usize]) -> Weight {
        let weight = self.add(name, shape);
        self.entries[weight.entry].trainable = false;
        weight
    }

    /// Appends `NAME.weight` and `NAME.bias` of a linear layer. `shape` is the weight's shape in files, `[outputs,
    /// …inputs]`: a patch embedding is a convolution there, `[dim, C, P, P]`.
    pub fn linear(&mut self, name: &str, shape: &[usize]) -> LinearWeights {
        let outputs = shape[0];
        let inputs = shape[1..].iter().product();
        LinearWeights {
            weight: self.add(format!("{name}.weight"), shape),
            bias: self.add(format!("{name}.bias"), &[outputs]),
            inputs,
            outputs,
        }
    }

    /// Appends `NAME.weight` and `NAME.bias` of a layer norm.
    pub fn norm(&mut self, name: &str, dim: usize) -> NormWeights {
        NormWeights {
            gamma: self.add(format!("{name}.weight"), &[dim]),
            beta: self.add(format!("{name}.bias"), &[dim]),
            dim,
        }
    }

    /// The entry called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// Sets a gradient to zero on frozen tensors.
    pub fn zero_frozen(&self, gradient: &mut [f32]) {
        for entry in self.entries.iter().filter(|e| !e.trainable) {
            gradient[entry.range()].fill(0.0);
        }
    }

    /// The tensor of the value at `position` of the flat vector, and the value's index within it.
    #[must_use]
    pub fn locate(&self, position: usize) -> Option<(&str, usize)> {
        let entry = self.entries.iter().find(|e| e.range().contains(&position))?;
        Some((&entry.name, position - entry.offset))
    }
}

/// Layouts are shared by networks, optimizers and checkpoints.
pub type SharedLayout = Arc<Layout>;
