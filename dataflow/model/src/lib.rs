//! The mathematics of mlomae: an engine of fused differentiable operations, the networks written over it, and the three levels of
//! MLO-MAE (Guo et al., TMLR 2025, arXiv 2402.18128) as plain functions of tensors.
//!
//! Nothing here knows a channel, a file or an actor. See [`levels`] for the algorithm, [`engine`] for the seam to other devices.

pub mod config;
pub mod engine;
pub mod error;
pub mod golden;
pub mod layout;
pub mod levels;
pub mod masking;
pub mod nets;
pub mod parallel;
pub mod tasks;

pub use config::{MaskInput, MaskNetKind, ModelConfig, PosEmbed};
pub use error::ModelError;
pub use layout::{Layout, ParamSet};
pub use levels::Model;
pub use parallel::arena::{Arena, Buffer, Params};
pub use parallel::compute::Compute;
