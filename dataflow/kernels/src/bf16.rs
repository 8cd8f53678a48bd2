//! Rounding to bf16: the upper 16 bits of an `f32`.

use super::isa::{Isa, isa};

/// What the factors of a product are rounded to before they are multiplied. Sums, epilogues and results are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Factors {
    /// Nothing: all 24 bits count.
    #[default]
    F32,
    /// The nearest bf16 (8 bits), ties to even. What is below 2⁻¹²⁶ may become zero.
    Bf16,
}

/// `x` rounded to the nearest bf16, ties to even; NaN stays.
#[inline(always)]
#[must_use]
pub fn round(x: f32) -> f32 {
    if x.is_nan() {
        return f32::NAN;
    }
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// What computes products of bf16 factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Unit {
    /// Factors are rounded, then multiplied as `f32`.
    Rounding,
    /// The dot products of AVX512_BF16 (`vdpbf16ps`).
    Dots,
    /// The tile unit of AMX (`tdpbf16ps`).
    Tiles,
}

impl Bf16Unit {
    /// The unit of the instruction set [`isa()`](crate::isa()) on this machine.
    #[must_use]
    pub fn here() -> Self {
        match isa() {
            Isa::Amx => Bf16Unit::Tiles,
            Isa::Avx512 if has_dots() => Bf16Unit::Dots,
            _ => Bf16Unit::Rounding,
        }
    }

    /// Whether dot products of bf16 may be used on this thread, beside tiles or without.
    #[must_use]
    pub(crate) fn has_vectors() -> bool {
        isa() >= Isa::Avx512 && has_dots()
    }

    /// It in words, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Bf16Unit::Rounding => "f32 instructions",
            Bf16Unit::Dots => "vdpbf16ps",
            Bf16Unit::Tiles => "tdpbf16ps",
        }
    }
}

/// Whether this machine has AVX512_BF16.
#[cfg(target_arch = "x86_64")]
fn has_dots() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// Whether this machine has AVX512_BF16.
#[cfg(not(target_arch = "x86_64"))]
fn has_dots() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::dispatch;
    use crate::simd::{Simd, sweep};
    use crate::testing::{each_isa, values};

    #[inline(always)]
    fn rounded<S: Simd>(s: S, x: &mut [f32]) {
        sweep!(S, x.len(), |i, w| {
            // SAFETY: i + w <= the length.
            unsafe { s.store_n(x.as_mut_ptr().add(i), w, s.bf16(s.load_n(x.as_ptr().add(i), w))) };
        });
    }

    #[test]
    fn rounding_is_to_the_nearest_and_ties_go_to_even() {
        let tie = |bits: u32| f32::from_bits(bits);
        for (x, to) in [
            (0x3f80_8000, 0x3f80_0000), // ties
            (0x3f81_8000, 0x3f82_0000),
            (0xbf81_8000, 0xbf82_0000),
            (0x3f80_8001, 0x3f81_0000),
            (0x3f81_7fff, 0x3f81_0000),
            (0x7f7f_ffff, 0x7f80_0000), // above the largest bf16 by more than half a step
            (0x7f7f_7fff, 0x7f7f_0000),
            (0xff80_0000, 0xff80_0000),
            (0x8000_0000, 0x8000_0000),
        ] {
            assert_eq!(round(tie(x)).to_bits(), to, "{x:x}");
        }
        assert!([0x7f80_0001, 0x7fff_ffff, 0xffff_ffff].into_iter().all(|bits| round(tie(bits)).is_nan()));
    }

    #[test]
    fn every_instruction_set_rounds_alike() {
        let mut x = values(77, 3);
        x.extend([0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0xff80_0000, 0x7fff_ffff].map(f32::from_bits));
        let want: Vec<u32> = x.iter().map(|x| round(*x).to_bits()).collect();
        each_isa(|isa| {
            let mut got = x.clone();
            let got = &mut got[..];
            dispatch!(rounded(got: &mut [f32]));
            assert_eq!(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), want, "{isa:?}");
        });
    }
}
