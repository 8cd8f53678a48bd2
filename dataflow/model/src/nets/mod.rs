//! The encoder and decoder, written once over the [`Engine`](crate::engine::Engine).

pub mod vit;

pub use vit::Vit;
