//! Masking: which patches of an image are masked, by a learned network or by a strategy without one.
//!
//! Every [`Masking`] gives each patch a key: the patches with the lowest keys stay visible ([`order`]). A learned one
//! also has a parameter set φ, scores p in [0, 1] that weigh the patch losses, and a backward pass. Without φ a run has
//! level 1 alone: levels 2 and 3 are not computed.
//!
//! To add a masking, implement [`Masking`] and [`MaskingKind`] in a file here, and add it to [`MASKINGS`].

pub mod arms;
pub mod attention;
pub mod block;
#[cfg(test)]
mod fixed_tests;
pub mod flat;
pub mod grid;
mod kind;
mod layers;
pub mod linear;
mod list;
pub mod loss;
pub mod mixture;
pub mod noise;
pub mod oracle;
pub mod order;
pub mod parts;
pub mod random;
pub mod scales;
pub mod schedule;
pub mod shuffle;
pub mod token;
pub mod weights;

pub use kind::{
    Kept, MaskInput, MaskNetwork, MaskNoise, MaskRule, MaskSelect, Masking, MaskingFacts, MaskingKind, Needs,
    NetworkRows, Scored, Trace,
};
pub use list::{MASKINGS, MaskingChoice};
pub use weights::{LossWeights, MaskWeights};
