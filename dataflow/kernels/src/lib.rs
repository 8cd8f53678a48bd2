//! The arithmetic of the networks on plain row-major `f32` slices.
//!
//! Every kernel is written once over `simd::Simd` and compiled for three instruction sets, products for a
//! fourth, with three accuracies; [`isa`] picks one at run time. Kernels are deterministic: the same inputs
//! on the same instruction set give the same bits, and a row's result does not depend on how many rows a
//! call has. Lengths that do not fit are a programming error and panic.

pub mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
mod dispatch;
pub mod elementwise;
mod gemm;
mod isa;
mod lengths;
mod math;
pub mod matmul;
pub mod norm;
mod pages;
pub mod patches;
mod peak;
mod product;
pub mod reduce;
mod scratch;
mod simd;
#[cfg(test)]
mod testing;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use adamw::{AdamWStep, adamw};
pub use attention::{AttentionShape, attention, attention_grad};
pub use elementwise::*;
pub use isa::{Isa, choose_isa, isa, with_isa};
pub use matmul::{Epilogue, Mat, flops, matmul, matmul_with};
pub use norm::{layer_norm, layer_norm_grad};
pub use pages::ask_for_huge_pages;
pub use patches::{patch_loss, patch_loss_grad, patch_targets, patchify};
pub use peak::peak_gflops;
pub use reduce::*;
pub use scratch::LINE as CACHE_LINE;
