//! The arithmetic of the networks on plain row-major `f32` slices.
//!
//! Every kernel is written once over `simd::Simd` and compiled for three instruction sets, products for a fourth, with three accuracies;
//! [`isa`] picks one at run time. Kernels are deterministic: the same inputs on the same instruction set give the same bits, and a row's
//! result does not depend on how many rows a call has. Lengths that do not fit are a programming error and panic.

use std::cell::Cell;
use std::sync::OnceLock;

pub mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod elementwise;
mod gemm;
mod math;
pub mod matmul;
pub mod norm;
mod pages;
pub mod patches;
mod peak;
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
pub use matmul::{Epilogue, Mat, flops, matmul, matmul_with};
pub use norm::{layer_norm, layer_norm_grad};
pub use pages::ask_for_huge_pages;
pub use patches::{TARGET_EPS, patch_loss, patch_loss_grad, patch_targets, patchify};
pub use peak::peak_gflops;
pub use reduce::*;
pub use scratch::LINE as CACHE_LINE;

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any processor.
    Portable,
    /// x86-64 with AVX2 and FMA: 8 lanes.
    Avx2Fma,
    /// x86-64 with AVX-512 F, VL, BW and DQ: 16 lanes.
    Avx512,
    /// AVX-512, and products on the tile unit of AMX in the accuracy of `f32`.
    Amx,
    /// As [`Isa::Amx`], but the factors of products keep 16 bits of their 24: half the work of the tile unit.
    AmxBf16x2,
    /// As [`Isa::Amx`], but the factors of products are rounded to bf16, 8 bits: a sixth of the work. Sums stay in `f32`.
    AmxBf16,
}

impl Isa {
    /// All that compute in the accuracy of `f32`, the plainest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2Fma, Isa::Avx512, Isa::Amx];
    /// Those that round the factors of products, which are used only where they are asked for.
    pub const ROUNDED: [Isa; 2] = [Isa::AmxBf16x2, Isa::AmxBf16];

    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2Fma => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::AmxBf16x2 => "amx-bf16x2",
            Isa::AmxBf16 => "amx-bf16",
        }
    }

    /// Whether this machine has it.
    pub fn is_here(self) -> bool {
        self.without_rounding() <= detect()
    }

    /// The same instructions in the accuracy of `f32`.
    pub fn without_rounding(self) -> Isa {
        if Isa::ROUNDED.contains(&self) { Isa::Amx } else { self }
    }

    /// Parts of bf16 that stand for a factor of a product, where the tile unit computes it.
    fn num_parts(self) -> Option<usize> {
        match self {
            Isa::Amx => Some(3),
            Isa::AmxBf16x2 => Some(2),
            Isa::AmxBf16 => Some(1),
            _ => None,
        }
    }

    /// What products are computed in.
    pub fn arithmetic(self) -> &'static str {
        match self.num_parts() {
            Some(2) => "f32 with products in two parts of bf16",
            Some(1) => "f32 with products in bf16",
            _ => "f32",
        }
    }
}

static CHOSEN: OnceLock<Isa> = OnceLock::new();

/// Makes the whole process use `isa` instead of the best one, so that its results have the same bits as on a machine that has no
/// better one. Returns false and changes nothing if this machine lacks it, or if kernels have run already.
pub fn choose_isa(isa: Isa) -> bool {
    isa.is_here() && CHOSEN.set(isa).is_ok()
}

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set that kernels use: the best one this machine has, unless the process or this thread chose another.
#[inline]
pub fn isa() -> Isa {
    match FORCED.get() {
        Some(isa) => isa,
        None => *CHOSEN.get_or_init(detect),
    }
}

/// Makes the calling thread use `isa` (`None`: the best again), for tests and benchmarks. Returns false and changes nothing if this
/// machine lacks it.
pub fn set_isa_for_tests(isa: Option<Isa>) -> bool {
    if isa.is_some_and(|isa| !isa.is_here()) {
        return false;
    }
    FORCED.set(isa);
    true
}

fn detect() -> Isa {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        return match (wide, amx::is_there()) {
            (true, true) => Isa::Amx,
            (true, false) => Isa::Avx512,
            _ => Isa::Avx2Fma,
        };
    }
    Isa::Portable
}
