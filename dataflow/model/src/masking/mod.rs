//! Which patches are masked: the masking networks, and how scores become masks.

pub mod mask_net;
pub mod order;

pub use mask_net::MaskNet;
