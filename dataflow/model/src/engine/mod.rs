//! The engine: a small set of fused differentiable operations in which encoder and decoder are written once.
//! (Masking networks and heads have gradients written by hand instead.)
//!
//! [`Engine`] has the operations alone, over tensors, parameter vectors and token orders of its own, in whatever
//! memory. [`HostIo`] moves values to and from host memory, and [`Tape`] is reverse-mode differentiation. They are
//! separate traits so that the same network code can run on another autograd tape, on a device whose values never visit
//! the host, or in forward mode (dual numbers).
//!
//! A linear layer forward and backward on the CPU:
//!
//! ```
//! use std::sync::Arc;
//!
//! use mlomae_model::engine::dfdx_cpu::DfdxCpu;
//! use mlomae_model::engine::{Engine, HostIo, Tape};
//! use mlomae_model::{Arena, Buffer, Layout, Level};
//!
//! # fn main() -> Result<(), mlomae_model::ModelError> {
//! let mut layout = Layout::new(Level::Pretrain);
//! let fc = layout.linear("fc", &[1, 2]); // weight [1, 2], then bias [1]
//! let params = Arc::new(Buffer::from_vec(vec![3.0, -1.0, 0.5]));
//!
//! let mut e = DfdxCpu::recording(&Arena::new(), 1, 1);
//! e.bind(Level::Pretrain, &params, true);
//! let x = e.constant(Arc::new(Buffer::from_vec(vec![2.0, 4.0])), 1, 2);
//! let y = e.linear(&x, &fc);
//! assert_eq!(e.values(&y), [3.0 * 2.0 - 4.0 + 0.5]);
//!
//! let gradients = e.backward(vec![(y, Buffer::from_vec(vec![1.0]))])?; // cotangent dL/dy = 1
//! assert_eq!(gradients.pretrain.unwrap()[..], [2.0, 4.0, 1.0]); // dL/dW = x, dL/db = 1
//! # Ok(())
//! # }
//! ```

pub mod dfdx_cpu;
pub mod gpu;
mod ops;
pub mod tangent;

pub use ops::{AttentionShape, Engine, Gradients, HostIo, NORM_EPS, Tape, TokenOrder, TokenWeights};
