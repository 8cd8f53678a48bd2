//! The arithmetic of the networks on plain row-major `f32` slices. Its `unsafe` code is the only one on the processor.
//!
//! ```
//! use mlomae_kernels::{Isa, Mat, add_bias, matmul, with_isa};
//!
//! // y [2, 2] = x [2, 3] · wᵀ + bias, with w stored as [2, 3].
//! let (x, w) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
//! let mut y = [0.0; 4];
//! let (x, w) = (Mat { data: &x, ld: 3, trans: false }, Mat { data: &w, ld: 3, trans: true });
//! matmul(&mut y, 2, x, w, 2, 2, 3, false);
//! add_bias(&mut y, &[10.0, 20.0]);
//! assert_eq!(y, [11.0, 25.0, 14.0, 31.0]);
//!
//! // The same on a chosen instruction set, on this thread only.
//! with_isa(Isa::Portable, || matmul(&mut y, 2, x, w, 2, 2, 3, true));
//! assert_eq!(y, [12.0, 30.0, 18.0, 42.0]);
//! ```
//!
//! Kernels are deterministic: the same inputs on the same instruction set give the same bits, and the
//! result of a row does not depend on how many rows a call has. They run on the calling thread. Lengths
//! that do not fit are a programming error and panic. Each kernel is tested against a plain twin in `f64`
//! on every instruction set of the machine.
//!
//! # Files, from the bottom up
//!
//! | file | what it has |
//! | --- | --- |
//! | `lengths` | checks of the lengths of slices |
//! | `pages`, `scratch` | huge pages; one scratch buffer a thread |
//! | `simd` | the trait `Simd`, vectors of one instruction set, and its portable implementation; `sweep!` |
//! | `x86` | its implementations for AVX2 with FMA and for AVX-512 |
//! | `math` | exp, erf, GELU and sigmoid on vectors |
//! | `tile` | register tiles, small products and packing, generic over `Simd` |
//! | `product` | the description of a matrix product, and its epilogue |
//! | `amx` | products on AMX tiles |
//! | `bf16` | rounding to bf16, and which unit has products of it |
//! | `dots`, `attention_dots` | products of bf16 by AVX512_BF16, and attention with them |
//! | `isa` | the list of instruction sets, their detection, and which one a thread uses |
//! | `dispatch` | `dispatch!`, from `isa()` to a function for one `Simd` |
//! | `gemm` | products in vector registers |
//! | [`matmul`](mod@matmul) | products as others call them; chooses between `gemm`, `dots` and `amx` |
//! | [`attention`](mod@attention), [`norm`], [`patches`], [`adamw`](mod@adamw) | the kernels they name |
//! | `wide` | products in `f64` |
//! | [`elementwise`], [`reduce`] | sweeps over activations and gradients, and sums |
//! | `peak` | the measured peak rate of arithmetic |
//!
//! # Dispatch
//!
//! A kernel is a public function that checks lengths, and a generic one,
//! `#[inline(always)] fn f<S: Simd>(s: S, ..)`. `dispatch!(f(..))` compiles `f` once for each
//! implementation of `Simd`, inside a function with the matching `#[target_feature]`, and calls the one of
//! [`isa()`]. That is the best instruction set of the machine, unless [`choose_isa`] chose another for the
//! process or [`with_isa`] one for the calling thread. The AMX sets share all code of AVX-512 but the
//! products.
//!
//! # A new instruction set
//!
//! 1. A token type that implements `Simd`, in a file of its own if it is another architecture. Its `new` is
//!    `unsafe`, as the caller vouches for the processor.
//! 2. A variant of [`Isa`] with its name, an entry in [`Isa::ALL`], and its detection in `isa`. Variants are in
//!    the order of speed, and a machine has all below its best ([`Isa::is_here`]); those of another
//!    architecture need a check of their own there.
//! 3. An arm of `dispatch!` with a function for its target features.
//! 4. In `gemm`, the size of its register tile, if neither 12 × 2 nor 6 × 2 vectors fit its registers.
//!
//! Tests take it up from [`Isa::ALL`]. An instruction set that only multiplies matrices, as AMX does, needs
//! a module next to `amx` and a branch in `matmul` instead of 1 and 3.

pub mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_dots;
mod bf16;
mod dispatch;
#[cfg(target_arch = "x86_64")]
mod dots;
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
mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use adamw::{AdamWStep, adamw};
pub use attention::{AttentionShape, attention, attention_grad, attention_grad_in, attention_in};
pub use bf16::{Bf16Unit, Factors, round as bf16};
pub use elementwise::*;
pub use isa::{Isa, choose_isa, isa, with_isa};
pub use matmul::{Epilogue, Mat, flops, matmul, matmul_in, matmul_with};
pub use norm::{layer_norm, layer_norm_grad};
pub use pages::ask_for_huge_pages;
pub use patches::{TARGET_EPS, patch_loss, patch_loss_grad, patch_targets, patchify};
pub use peak::peak_gflops;
pub use reduce::*;
pub use scratch::LINE as CACHE_LINE;
pub use wide::{WideMat, add_product_wide};
