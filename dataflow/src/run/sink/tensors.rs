//! Tensors of checkpoints by their names, on the way to files and back.

use mlomae_storage::checkpoint::{Checkpoint, NamedTensor, TensorRef};

use crate::record::{CheckpointFile, FlatTensors};
use crate::run::state::{TensorSource, TensorView};

/// Tensors of a file with their full names.
pub(super) struct Named<'a> {
    names: Vec<String>,
    parts: Vec<(&'a [usize], &'a [f32])>,
}

impl<'a> Named<'a> {
    pub(super) fn of(file: CheckpointFile, tensors: impl Iterator<Item = &'a FlatTensors>) -> Self {
        let (mut names, mut parts) = (Vec::new(), Vec::new());
        for flat in tensors.filter(|flat| flat.file == file) {
            for entry in &flat.layout.entries {
                names.push(format!("{}{}", flat.prefix, entry.name));
                parts.push((&entry.shape[..], &flat.values[entry.range()]));
            }
        }
        Self { names, parts }
    }

    pub(super) fn refs(&self) -> Vec<TensorRef<'_>> {
        let refs = self.names.iter().zip(&self.parts);
        refs.map(|(name, (shape, values))| TensorRef { name, shape, values }).collect()
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
