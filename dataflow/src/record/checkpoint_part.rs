//! Parts of checkpoints on their way to the log stage.

use mlomae_model::layout::SharedLayout;
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::{Level, Vector};

use crate::counts::{Outer, Step};

/// The stages whose states make a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartOf {
    /// θ and its optimizer.
    Encoder,
    /// The head c and its optimizer.
    Evaluator,
    /// φ, its versions in flight and its optimizer.
    Policy,
}

impl PartOf {
    /// Every part of a checkpoint.
    pub const ALL: [Self; 3] = [Self::Encoder, Self::Evaluator, Self::Policy];

    /// The part with the state of `level`.
    #[must_use]
    pub const fn of(level: Level) -> Self {
        match level {
            Level::Pretrain => Self::Encoder,
            Level::Finetune => Self::Evaluator,
            Level::Mask => Self::Policy,
        }
    }

    /// The part's key in `state.json`, and its name in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Evaluator => "evaluator",
            Self::Policy => "policy",
        }
    }
}

/// What the names of a level's moments begin with in `optimizer.safetensors`.
#[must_use]
pub const fn optimizer_prefix(level: Level) -> &'static str {
    match level {
        Level::Pretrain => "pretrain",
        Level::Finetune => "finetune",
        Level::Mask => "policy",
    }
}

/// The file of a checkpoint that tensors go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckpointFile {
    /// `model.safetensors`.
    Model,
    /// `head.safetensors`.
    Head,
    /// `mask.safetensors`.
    Mask,
    /// `optimizer.safetensors`.
    Optimizer,
}

/// The tensors of one flat vector, shared with the stage: making a part copies no weights.
#[derive(Debug, Clone)]
pub struct FlatTensors {
    /// The file.
    pub file: CheckpointFile,
    /// Put before each tensor's name.
    pub prefix: String,
    /// Names, shapes and places.
    pub layout: SharedLayout,
    /// The values.
    pub values: Vector,
}

impl FlatTensors {
    /// `values` laid out as `layout`, for `file`.
    #[must_use]
    pub fn new(file: CheckpointFile, prefix: impl Into<String>, layout: &SharedLayout, values: Vector) -> Self {
        Self { file, prefix: prefix.into(), layout: layout.clone(), values }
    }

    /// Both moments of a level's optimizer. They are shared: its next step is written to a copy, unless they are on
    /// disk by then.
    #[must_use]
    pub fn moments(level: Level, layout: &SharedLayout, optimizer: &AdamW) -> [Self; 2] {
        [("m", &optimizer.m), ("v", &optimizer.v)].map(|(moment, values)| {
            let prefix = format!("{}.{moment}.", optimizer_prefix(level));
            Self::new(CheckpointFile::Optimizer, prefix, layout, values.clone())
        })
    }
}

/// One stage's part of the checkpoint after `outer` outer iterations.
#[derive(Debug, Clone)]
pub struct CheckpointPart {
    /// Outer iterations done.
    pub outer: Outer,
    /// Level-1 steps done.
    pub step: Step,
    /// Whose state it is.
    pub part: PartOf,
    /// Tensors.
    pub tensors: Vec<FlatTensors>,
    /// What else the stage needs to go on: an object.
    pub state: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_keys_are_those_of_written_checkpoints() {
        assert_eq!(PartOf::ALL.map(PartOf::as_str), ["encoder", "evaluator", "policy"]);
    }
}
