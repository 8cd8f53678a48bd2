//! Products on the tile unit of newer Intel processors (AMX), in the accuracy of `f32` or with factors
//! rounded to bf16.
//!
//! The unit multiplies bf16 and adds in `f32`, sixteen times as fast as fused multiply-adds of `f32` on the
//! same core. An `f32` is the sum of three bf16 values (8 bits of its 24 each), so a product of two is the
//! sum of nine products of bf16. The three smallest lie below 2⁻²⁵ of the whole, less than one rounding of
//! `f32`, and are left out; the other six are summed in `f32`. Values above 3.389·10³⁸ (half a bf16 step
//! below the largest `f32`) and infinities become NaN; parts below 2⁻¹²⁶ become zero. For products of bf16 a
//! factor is rounded to one part.
//!
//! An element of C is a chain of additions in the order of k and of the six products, in blocks that depend
//! on k alone: its bits depend neither on m and n nor on its place.
//!
//! From the bottom up: [`layout`] has the sizes, [`tiles`] the instructions and their schedule, [`pack`]
//! cuts factors into bf16 tiles, [`queue`] orders the packing, [`rows`] is the epilogue, [`blocks`] loops
//! over them all.

mod blocks;
mod layout;
mod pack;
mod queue;
mod rows;
mod tiles;

pub(crate) use blocks::{gemm, suits};
pub(crate) use tiles::is_available;
