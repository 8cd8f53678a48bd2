//! Errors of the model crate.

/// What can go wrong in networks and levels.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor operation of dfdx failed.
    #[error("dfdx operation failed: {0}")]
    Dfdx(String),
    /// A value that must be finite is not.
    #[error("{what} of level {level} is not finite: {value}")]
    NonFinite {
        /// The level: pretrain, finetune or mask.
        level: &'static str,
        /// The quantity, with the tensor's name where known.
        what: String,
        /// The offending value.
        value: f64,
    },
    /// The shapes of a configuration cannot be built.
    #[error("model configuration: {0}")]
    Config(String),
    /// The system starts no more threads.
    #[error("cannot start {num_threads} compute threads: {cause}")]
    Threads {
        /// How many were wanted.
        num_threads: usize,
        /// The system's words.
        cause: String,
    },
    /// A tensor is missing or has another shape than the network needs.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<dfdx::tensor::CpuError> for ModelError {
    fn from(error: dfdx::tensor::CpuError) -> Self {
        ModelError::Dfdx(error.to_string())
    }
}
