//! Errors of the model crate.

/// What can go wrong in networks and levels.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor operation of dfdx failed.
    #[error("dfdx operation failed: {0}")]
    Dfdx(String),
    /// Targets or features are not those that a task reads.
    #[error("downstream task: {problem}")]
    Targets {
        /// What is wrong.
        problem: String,
    },
    /// A vector lies where the lane cannot read it, or a pass was begun elsewhere.
    #[error("lane {lane}: {problem}")]
    Lane {
        /// The lane's device.
        lane: &'static str,
        /// What is wrong.
        problem: String,
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
    /// A checkpoint cannot be opened.
    #[error("checkpoint {path}: {problem}")]
    Checkpoint {
        /// Its path.
        path: String,
        /// What is wrong.
        problem: String,
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
