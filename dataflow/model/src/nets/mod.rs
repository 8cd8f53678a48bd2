//! The networks, each written once over the [`Engine`](crate::engine::Engine).

pub mod head;
pub mod init;
pub mod mask_net;
pub mod masking;
pub mod vit;

pub use head::Head;
pub use mask_net::MaskNet;
pub use vit::Vit;
