//! Checkpoints: folders of safetensors files that are whole or absent.
//!
//! ```text
//! checkpoints/step-00001200/{model,head,mask,optimizer}.safetensors + state.json
//! checkpoints/latest -> step-00001200
//! ```
//! A checkpoint is written as `.tmp-step-…`, each file and the folder brought to the disk, then renamed; `latest` is
//! replaced by rename after that. `state.json` names each file's length and CRC-32, and carries its own, so that a
//! truncated or altered file is refused by name.
//!
//! ```
//! use mlomae_storage::checkpoint::{self, CheckpointRef, TensorRef};
//!
//! let run = tempfile::tempdir()?;
//! let state = serde_json::json!({ "epoch": 3 });
//! let weight = TensorRef { name: "head.weight", shape: &[2, 3], values: &[0.5; 6] };
//! let checkpoint =
//!     CheckpointRef { model: vec![], head: vec![weight], mask: vec![], optimizer: vec![], state: &state, keep: 2 };
//! let folder = checkpoint::save(run.path(), 1200, &checkpoint)?;
//! assert!(folder.ends_with("checkpoints/step-00001200"));
//!
//! // The latest of the run; every file is checked against its sum.
//! let read = checkpoint::load(run.path())?;
//! assert_eq!((read.step, read.state["epoch"].as_i64()), (1200, Some(3)));
//! assert_eq!((read.head[0].name.as_str(), read.head[0].values.as_slice()), ("head.weight", &[0.5; 6][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod safetensors_io;
mod state;
mod store;

#[cfg(test)]
mod tests;

pub use error::CheckpointError;
pub use safetensors_io::{NamedTensorAny, TensorData, read_safetensors};
pub use store::{clean, go_back, list, load, older_whole, resolve, save, step_of};

use serde_json::Value;

/// A tensor of a checkpoint that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Its name, e.g. `blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

impl NamedTensor {
    /// The same tensor, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> TensorRef<'_> {
        TensorRef { name: &self.name, shape: &self.shape, values: &self.values }
    }
}

/// A tensor to be written, e.g. a piece of a flat parameter vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorRef<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape; empty for a scalar.
    pub shape: &'a [usize],
    /// Its values, row-major; as many as the shape says.
    pub values: &'a [f32],
}

/// A checkpoint to be written.
#[derive(Debug, Clone)]
pub struct CheckpointRef<'a> {
    /// Encoder and decoder, timm and MAE names.
    pub model: Vec<TensorRef<'a>>,
    /// The classification head.
    pub head: Vec<TensorRef<'a>>,
    /// The masking network, all versions that are still to be used.
    pub mask: Vec<TensorRef<'a>>,
    /// Moments and counters of all optimizers.
    pub optimizer: Vec<TensorRef<'a>>,
    /// Everything else, an object: seed, iteration, epoch, schedules, model config, data fingerprint, class names.
    /// Floats read back to the same bits; JSON has no NaN and no infinity, so put those into tensors.
    pub state: &'a Value,
    /// Checkpoints to keep, this one included; at least 1.
    pub keep: usize,
}

/// A checkpoint that was read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Level-1 steps done, from its name and its state.
    pub step: u64,
    /// Version of the program that wrote it.
    pub program_version: String,
    /// Encoder and decoder.
    pub model: Vec<NamedTensor>,
    /// The classification head.
    pub head: Vec<NamedTensor>,
    /// The masking network.
    pub mask: Vec<NamedTensor>,
    /// Moments and counters of all optimizers.
    pub optimizer: Vec<NamedTensor>,
    /// The state as it was saved.
    pub state: Value,
}
