//! AVX-512 and AVX2 with FMA.

// SAFETY, of every block in this file: a token exists only where its instructions do, as the caller of
// `new` guarantees; the caller of a `Simd` method makes its pointers accessible for the lanes that the
// method names. No load or store needs alignment.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::simd::Simd;
use std::arch::x86_64::*;

/// AVX-512 F, VL, BW, DQ: 16 lanes, 32 registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

/// AVX2 and FMA: 8 lanes, 16 registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2Fma(());

impl Avx512 {
    /// # Safety
    /// The processor must have AVX-512 F, VL, BW, DQ, AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Avx2Fma {
    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// The methods of [`Simd`] that differ between the two instruction sets in the names of intrinsics alone. The
/// last ones are one instruction each: `name(arguments) = intrinsic`.
macro_rules! shared_methods {
    (
        lanes = $LANES:literal; vector = $V:ty; doubles = $D:ty;
        splat = $splat:ident; load = $load:ident; store = $store:ident;
        zero64 = $zero64:ident; store64 = $store64:ident;
        $($name:ident($($arg:ident),+) = $instruction:ident;)+
    ) => {
        const LANES: usize = $LANES;
        const FUSED: bool = true;
        type V = $V;
        type D = ($D, $D);

        #[inline(always)]
        fn splat(self, x: f32) -> $V {
            unsafe { $splat(x) }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> $V {
            unsafe { $load(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: $V) {
            unsafe { $store(p, v) }
        }
        #[inline(always)]
        fn zero64(self) -> ($D, $D) {
            unsafe { ($zero64(), $zero64()) }
        }
        #[inline(always)]
        fn sum64(self, acc: ($D, $D)) -> f64 {
            let mut lanes = [0.0f64; $LANES];
            unsafe {
                $store64(lanes.as_mut_ptr(), acc.0);
                $store64(lanes.as_mut_ptr().add($LANES / 2), acc.1);
            }
            lanes.iter().sum()
        }
        #[inline(always)]
        fn prefetch(self, p: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        $(
            #[inline(always)]
            fn $name(self, $($arg: $V),+) -> $V {
                unsafe { $instruction($($arg),+) }
            }
        )+
    };
}

#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl Simd for Avx512 {
    const WIDE: bool = true;

    shared_methods! {
        lanes = 16; vector = __m512; doubles = __m512d;
        splat = _mm512_set1_ps; load = _mm512_loadu_ps; store = _mm512_storeu_ps;
        zero64 = _mm512_setzero_pd; store64 = _mm512_storeu_pd;
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        sqrt(a) = _mm512_sqrt_ps;
    }

    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m512 {
        if n == 16 {
            return unsafe { _mm512_loadu_ps(p) };
        }
        unsafe { _mm512_maskz_loadu_ps(mask16(n), p) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, n: usize, v: __m512) {
        if n == 16 {
            return unsafe { _mm512_storeu_ps(p, v) };
        }
        unsafe { _mm512_mask_storeu_ps(p, mask16(n), v) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn pow2(self, a: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), a) }
    }
    #[inline(always)]
    fn keep(self, a: __m512, n: usize) -> __m512 {
        if n == 16 {
            return a;
        }
        unsafe { _mm512_maskz_mov_ps(mask16(n), a) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        unsafe {
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b1110>(a, a));
            sum8(_mm256_add_ps(_mm512_castps512_ps256(a), high))
        }
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn bf16(self, a: __m512) -> __m512 {
        unsafe {
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let rounded = _mm512_and_si512(nearest, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            _mm512_mask_blend_ps(is_nan, _mm512_castsi512_ps(rounded), _mm512_set1_ps(f32::NAN))
        }
    }
    #[inline(always)]
    fn any_non_finite(self, a: __m512) -> bool {
        // Classes: quiet NaN, +inf, -inf, signalling NaN.
        unsafe { _mm512_fpclass_ps_mask::<0b1001_1001>(a) != 0 }
    }
    #[inline(always)]
    fn fma64(self, a: __m512, b: __m512, acc: (__m512d, __m512d)) -> (__m512d, __m512d) {
        unsafe {
            let upper = |v: __m512| _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v));
            let lower = |v: __m512| _mm512_cvtps_pd(_mm512_castps512_ps256(v));
            (_mm512_fmadd_pd(lower(a), lower(b), acc.0), _mm512_fmadd_pd(upper(a), upper(b), acc.1))
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, lds: usize, last: usize, dst: *mut f32, ldd: usize) {
        unsafe {
            let zero = _mm512_setzero_ps();
            let mut r = [zero; 16];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(src.add(i.min(last) * lds));
            }
            // Pairs of rows, then fours within the 128-bit quarters, then the quarters themselves.
            let mut t = [zero; 16];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                for j in 0..2 {
                    let a = _mm512_castps_pd(t[4 * i + j]);
                    let b = _mm512_castps_pd(t[4 * i + 2 + j]);
                    r[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    r[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            for j in 0..4 {
                let even01 = _mm512_shuffle_f32x4::<0x88>(r[j], r[4 + j]);
                let odd01 = _mm512_shuffle_f32x4::<0xdd>(r[j], r[4 + j]);
                let even23 = _mm512_shuffle_f32x4::<0x88>(r[8 + j], r[12 + j]);
                let odd23 = _mm512_shuffle_f32x4::<0xdd>(r[8 + j], r[12 + j]);
                t[j] = _mm512_shuffle_f32x4::<0x88>(even01, even23);
                t[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd01, odd23);
                t[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even01, even23);
                t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd01, odd23);
            }
            for (c, row) in t.iter().enumerate() {
                _mm512_storeu_ps(dst.add(c * ldd), *row);
            }
        }
    }
}

#[inline(always)]
unsafe fn sum8(a: __m256) -> f32 {
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[inline(always)]
unsafe fn mask8(n: usize) -> __m256i {
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

impl Simd for Avx2Fma {
    const WIDE: bool = false;

    shared_methods! {
        lanes = 8; vector = __m256; doubles = __m256d;
        splat = _mm256_set1_ps; load = _mm256_loadu_ps; store = _mm256_storeu_ps;
        zero64 = _mm256_setzero_pd; store64 = _mm256_storeu_pd;
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
        sqrt(a) = _mm256_sqrt_ps;
    }

    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m256 {
        if n == 8 {
            return unsafe { _mm256_loadu_ps(p) };
        }
        unsafe { _mm256_maskload_ps(p, mask8(n)) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, n: usize, v: __m256) {
        if n == 8 {
            return unsafe { _mm256_storeu_ps(p, v) };
        }
        unsafe { _mm256_maskstore_ps(p, mask8(n), v) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn pow2(self, a: __m256) -> __m256 {
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn keep(self, a: __m256, n: usize) -> __m256 {
        if n == 8 {
            return a;
        }
        unsafe { _mm256_and_ps(a, _mm256_castsi256_ps(mask8(n))) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        unsafe { sum8(a) }
    }
    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn bf16(self, a: __m256) -> __m256 {
        unsafe {
            let bits = _mm256_castps_si256(a);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let rounded = _mm256_and_si256(nearest, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a);
            _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_set1_ps(f32::NAN), is_nan)
        }
    }
    #[inline(always)]
    fn any_non_finite(self, a: __m256) -> bool {
        unsafe {
            let exponent = _mm256_set1_epi32(0x7f80_0000);
            let bits = _mm256_and_si256(_mm256_castps_si256(a), exponent);
            _mm256_movemask_epi8(_mm256_cmpeq_epi32(bits, exponent)) != 0
        }
    }
    #[inline(always)]
    fn fma64(self, a: __m256, b: __m256, acc: (__m256d, __m256d)) -> (__m256d, __m256d) {
        unsafe {
            let (a0, a1) = (_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(a)));
            let (b0, b1) = (_mm256_cvtps_pd(_mm256_castps256_ps128(b)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(b)));
            (_mm256_fmadd_pd(a0, b0, acc.0), _mm256_fmadd_pd(a1, b1, acc.1))
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, lds: usize, last: usize, dst: *mut f32, ldd: usize) {
        unsafe {
            let zero = _mm256_setzero_ps();
            let (mut r, mut t) = ([zero; 8], [zero; 8]);
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(src.add(i.min(last) * lds));
            }
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                for j in 0..2 {
                    let a = _mm256_castps_pd(t[4 * i + j]);
                    let b = _mm256_castps_pd(t[4 * i + 2 + j]);
                    r[4 * i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    r[4 * i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                }
            }
            for j in 0..4 {
                t[j] = _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]);
                t[4 + j] = _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]);
            }
            for (c, row) in t.iter().enumerate() {
                _mm256_storeu_ps(dst.add(c * ldd), *row);
            }
        }
    }
}
