//! Errors of the model crate.

/// What can go wrong in networks and levels.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor operation of dfdx failed.
    #[error("dfdx operation failed: {0}")]
    Dfdx(String),
    /// Targets or features are not of the kind that the task takes.
    #[error("downstream task: {problem}")]
    Targets {
        /// What is wrong.
        problem: String,
    },
    /// A lane was given what it cannot use: a vector in memory of another device or of a wrong length, or a recording
    /// of another lane or thread.
    #[error("lane {lane}: {problem}")]
    Lane {
        /// The lane's device.
        lane: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A device that is asked for cannot be used on this machine.
    #[error("engine = {engine:?}: {problem} (usable here: {usable})")]
    Engine {
        /// The value of the key `engine`.
        engine: &'static str,
        /// What is missing.
        problem: String,
        /// The values that can be used.
        usable: String,
    },
    /// The shapes of a configuration cannot be built.
    #[error("model configuration: {0}")]
    Config(String),
    /// The operating system refused to start threads.
    #[error("cannot start {num_threads} compute threads: {cause}")]
    Threads {
        /// How many were wanted.
        num_threads: usize,
        /// The operating system's message.
        cause: String,
    },
    /// A checkpoint cannot be read or is incomplete.
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

impl From<mlomae_device::DeviceError> for ModelError {
    fn from(error: mlomae_device::DeviceError) -> Self {
        ModelError::Lane { lane: "cuda", problem: error.to_string() }
    }
}

impl ModelError {
    /// The message, of a configuration without saying that it is one: for messages that name the key.
    #[must_use]
    pub fn reason(self) -> String {
        match self {
            ModelError::Config(problem) => problem,
            error => error.to_string(),
        }
    }
}
