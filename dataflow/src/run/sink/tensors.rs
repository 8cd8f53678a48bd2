//! Tensors of checkpoints by their names, on the way to files and back.

use std::ops::Range;

use mlomae_model::{ModelError, Params};
use mlomae_storage::checkpoint::{Checkpoint, NamedTensor, TensorRef};

use crate::record::{CheckpointFile, FlatTensors};
use crate::run::state::{TensorSource, TensorView};

/// Tensors of a file with their full names.
pub(super) struct Named<'a> {
    names: Vec<String>,
    /// Shape, host values of the whole flat vector, and the tensor's place in them.
    parts: Vec<(&'a [usize], Params, Range<usize>)>,
}

impl<'a> Named<'a> {
    pub(super) fn of(file: CheckpointFile, tensors: impl Iterator<Item = &'a FlatTensors>) -> Result<Self, ModelError> {
        let (mut names, mut parts) = (Vec::new(), Vec::new());
        for flat in tensors.filter(|flat| flat.file == file) {
            let values = flat.values.to_host()?;
            for entry in &flat.layout.entries {
                names.push(format!("{}{}", flat.prefix, entry.name));
                parts.push((&entry.shape[..], values.clone(), entry.range()));
            }
        }
        Ok(Self { names, parts })
    }

    pub(super) fn refs(&self) -> Vec<TensorRef<'_>> {
        let refs = self.names.iter().zip(&self.parts);
        refs.map(|(name, (shape, values, place))| TensorRef { name, shape, values: &values[place.clone()] }).collect()
    }
}

/// The tensors of a checkpoint that was read.
#[derive(Debug)]
pub struct CheckpointTensors<'a>(pub &'a Checkpoint);

impl TensorSource for CheckpointTensors<'_> {
    fn tensor(&self, file: CheckpointFile, name: &str) -> Option<TensorView<'_>> {
        let tensors: &[NamedTensor] = match file {
            CheckpointFile::Model => &self.0.model,
            CheckpointFile::Head => &self.0.head,
            CheckpointFile::Mask => &self.0.mask,
            CheckpointFile::Optimizer => &self.0.optimizer,
        };
        let tensor = tensors.iter().find(|tensor| tensor.name == name)?;
        Some((&tensor.shape, &tensor.values))
    }
}
