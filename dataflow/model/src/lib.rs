//! The mathematics of mlomae: the three levels of MLO-MAE (Guo et al., TMLR 2025, arXiv 2402.18128).
//!
//! Start at [`algorithm`]: one outer iteration, to be read from top to bottom. It calls the forms of the
//! [`hypergradient`], the device interface ([`lane`]) and, on the CPU, the three [`levels`]. Those are built on the
//! [`tasks`] and [`masking`] strategies that a configuration picks by name, the networks ([`nets`]) over an [`engine`]
//! of fused differentiable operations, and threads and memory ([`parallel`]). Nothing here knows a channel or an actor.

#![forbid(unsafe_code)]

pub mod algorithm;
pub mod choice;
pub mod config;
pub mod engine;
pub mod error;
pub mod golden;
pub mod hypergradient;
pub mod images;
pub mod init;
pub mod lane;
pub mod layout;
pub mod level;
pub mod levels;
pub mod masking;
pub mod model;
pub mod nets;
pub mod parallel;
pub mod policy;
pub mod precision;
pub mod rng;
pub mod search;
pub mod tap;
pub mod tasks;
pub mod trained;
pub mod vector;

pub use config::{ModelConfig, PosEmbed};
pub use error::ModelError;
pub use images::{Images, RawImages};
pub use lane::Lane;
pub use layout::Layout;
pub use level::{Level, PerLevel};
pub use masking::MaskInput;
pub use model::Model;
pub use parallel::arena::{Arena, Buffer, Params};
pub use parallel::compute::Compute;
pub use precision::Precision;
pub use trained::Trained;
pub use vector::Vector;
