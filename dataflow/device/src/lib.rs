//! NVIDIA GPUs for mlomae: memory, streams, products of cuBLASLt, and our own kernels, compiled by NVRTC for the device
//! found. No toolkit is needed to build it; driver, libnvrtc and libcublasLt are looked for when it runs ([`survey`]).
//!
//! It knows no network: a caller takes vectors from a [`Stream`], enqueues [`ops`] and waits.
//!
//! | file | what it has |
//! | --- | --- |
//! | `libraries` | which libraries and devices the machine has |
//! | `image` | the kernels' source and its compiled image, cached on disk |
//! | `gpu` | an opened device |
//! | `memory` | pools, vectors, views, arguments of kernels |
//! | `stream` | work in order |
//! | `product` | products by cuBLASLt |
//! | `graph` | work that repeats, launched as a whole |
//! | `timing` | which products are computed, and how long they take |
//! | `ops` | the kernels as methods of a stream |
//! | `selftest` | every operation beside plain f64 on the host, whose formulas are in `twins` |

mod error;
mod gpu;
mod graph;
mod image;
mod libraries;
mod memory;
pub mod ops;
mod product;
mod selftest;
mod stream;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
mod timing;
mod twins;

pub use error::DeviceError;
pub use gpu::{Gpu, free_bytes};
pub use graph::{Graph, GraphPool, Held, Run};
pub use half::bf16;
pub use image::{OPTIONS, SOURCES, source};
pub use libraries::{DeviceFacts, Library, Survey, survey};
pub use memory::{Act, ActView, Element, Mem, View};
pub use product::{Matrix, Product};
pub use selftest::{Outcome, selftest};
pub use stream::{Precision, Priority, Stream};
pub use timing::{ProductKind, recorded, time_products};
