//! The kernels as methods of [`Stream`](crate::Stream), by subject. Each checks the lengths of its arguments and
//! enqueues; lengths that do not fit are bugs of the caller, and panic.

mod activation;
mod attention;
mod head;
mod images;
mod masking;
mod norm;
mod order;
mod patches;
mod tokens;
mod vectors;

pub use attention::AttentionShape;
pub use head::HeadNorm;
pub use images::WINDOW_WORDS;
pub use vectors::{AdamWPieces, AdamWStep};
