//! The list of maskings.

use super::kind::MaskingKind;
use super::{attention, block, flat, grid, linear, loss, mixture, noise, oracle, parts, random, token};
use crate::choice::{Choice, Registry};

/// Every masking; the first is the default.
pub static MASKINGS: &[&dyn MaskingKind] = &[
    &flat::Kind,
    &token::Kind,
    &linear::Kind,
    &random::Kind,
    &block::Kind,
    &grid::Kind,
    &noise::Kind,
    &attention::Kind,
    &parts::Kind,
    &loss::Kind,
    &mixture::Kind,
    &oracle::Kind,
];

impl Registry for dyn MaskingKind {
    const WHAT: &'static str = "masking strategy";
    fn entries() -> &'static [&'static Self] {
        MASKINGS
    }
}

/// A masking that was chosen by name.
pub type MaskingChoice = Choice<dyn MaskingKind>;
