//! The engine: a small set of fused differentiable operations in which every network is written once.
//!
//! [`Engine`] has the operations alone, over tensors, parameter vectors and token orders of its own, wherever they lie. What moves values
//! from and to host memory is [`HostIo`], and what runs a record backward is [`Tape`]: so the same network code runs on another tape, on a
//! device whose values never visit the host, or in a pass that carries pairs of a value and a derivative.

pub mod dfdx_cpu;
mod ops;

pub use ops::{AttentionShape, Engine, Gradients, HostIo, NORM_EPS, Tape, TokenOrder, TokenWeights};
