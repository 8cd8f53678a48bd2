//! Layers of heads in f64, each with its backward pass.
//!
//! They work on the rows of one image at a time, so that a product has the same shape, and with it the same bits,
//! whatever batch the image is in.

pub mod activation;
pub mod convolution;
pub mod linear;
pub mod norm;
