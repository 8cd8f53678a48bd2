//! Lanes: the interface to devices.
//!
//! A [`Lane`] is one stage's handle to a device, like a stream of a GPU. It computes whole levels, not single
//! operations, so that grains, threads and host reductions stay details of the CPU, and a GPU may enqueue a level at
//! once. Vectors are opaque ([`Vector`](crate::Vector)): the caller does not know in which memory they are. So pipeline
//! stages, messages, checkpoints and the algorithm are written once for all devices.
//!
//! To add a device, implement [`Lane`] and [`Device`] in a file here, and add it to [`DEVICES`].

pub mod cpu;
pub mod cuda;
mod engine;
mod list;
mod seam;

pub use cpu::CpuLane;
pub use engine::{Chosen, Engine};
pub use list::{DEVICES, DeviceChoice};
pub use seam::{
    Device, DeviceMemoryBound, Direction, Downstream, FinetuneGradient, LabelledImages, Lane, LaneSize, Lanes,
    LanesSpec, MemorySpec, PretrainGradient, Recording, Response, Upstream,
};
