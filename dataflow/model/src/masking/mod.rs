//! Masking: which patches of an image are masked, by a learned network or by a strategy without one.
//!
//! Whatever a [`Masking`] is, it ends in keys, one a patch: the patches of the lowest keys stay visible ([`order`]). A learned one also has
//! a parameter set φ, scores p in (0, 1) that weigh the patch losses, and a backward pass. One without φ makes levels 2 and 3 rest.
//!
//! A masking is a file here with its `mod` line, and an entry of [`MASKINGS`].

pub mod flat;
mod kind;
mod linear;
mod list;
pub mod order;
pub mod random;
pub mod token;

pub use kind::{MaskInput, MaskRule, Masking, MaskingFacts, MaskingKind, Needs, Scored, Trace};
pub use list::{MASKINGS, MaskingChoice};
