//! Lanes: the seam to devices.
//!
//! A [`Lane`] is one stage's way to the arithmetic. It computes whole levels, not single operations: grains, threads and host reductions
//! are the CPU's own business, on a GPU a level is one enqueue. Vectors are opaque ([`Vector`]): whoever holds a lane neither knows nor
//! asks where they lie. So stages, payloads, checkpoints and the algorithm are written once.
//!
//! A device is a file here with its `mod` line, and an entry of [`DEVICES`]. Nothing else names one.

pub mod cpu;
mod list;
mod seam;

pub use cpu::CpuLane;
pub use list::{DEVICES, DeviceChoice};
pub use seam::{
    Device, Direction, Downstream, FinetuneGradient, LabelledImages, Lane, LaneSize, Lanes, LanesSpec,
    PretrainGradient, Recording, Upstream,
};
