//! The encoder and decoder, written once over the [`Engine`](crate::engine::Engine), and initial values.

pub mod init;
pub mod tap;
pub mod vit;

pub use tap::Tap;
pub use vit::Vit;
