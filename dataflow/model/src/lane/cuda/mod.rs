//! NVIDIA GPUs as a device: a lane is a stream with its own memory pool.
//!
//! Each call enqueues a level and waits for its stream at the end, where it reads a loss or a norm anyway. So vectors
//! that other lanes see are complete, and no events go between lanes: lanes run concurrently because each stage has
//! its own host thread and stream. A batch is computed at once; micro-batches and grains are the CPU's.
//!
//! Heads are computed in f64: here if they are a [`LinearHead`](crate::tasks::LinearHead), else on the host from the
//! encoder's tokens, so that every task runs. Masking networks of another form than
//! [`MaskNetwork`](crate::masking::MaskNetwork) are the host's too.

mod device;
mod head;
mod lane;
mod levels;
mod memory;
mod network;
mod predictor;
mod scoring;
mod steady;
mod vector;

pub use device::Cuda;
pub use lane::CudaLane;
