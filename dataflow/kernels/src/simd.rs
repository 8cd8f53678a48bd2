//! The vector operations that every kernel is written in, once for all instruction sets, and their portable
//! implementation.
//!
//! A value of a [`Simd`] type is a token: it exists only where its instructions do, so arithmetic on its
//! vectors is safe. Loads and stores take pointers and are `unsafe`. Everything is `#[inline(always)]`, as
//! the instructions may only be emitted inside the `#[target_feature]` functions that [`super::dispatch`]
//! makes.

/// Vectors of `f32` of one instruction set.
pub(crate) trait Simd: Copy {
    /// Lanes of one vector.
    const LANES: usize;
    /// Whether there are 32 vector registers instead of 16, which decides the sizes of register tiles.
    const WIDE: bool;
    /// Whether a vector is one register and `fma` one instruction.
    const FUSED: bool;
    /// A vector of `LANES` values.
    type V: Copy;
    /// `LANES` accumulators in `f64`.
    type D: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Lanes from `p[..LANES]`.
    ///
    /// # Safety
    /// `p` must be readable for `LANES` values; no alignment is needed.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Writes all lanes to `p[..LANES]`.
    ///
    /// # Safety
    /// `p` must be writable for `LANES` values.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Lanes from `p[..n]`, zeros after them; `n <= LANES`.
    ///
    /// # Safety
    /// `p` must be readable for `n` values.
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::V;
    /// Writes the first `n <= LANES` lanes.
    ///
    /// # Safety
    /// `p` must be writable for `n` values.
    unsafe fn store_n(self, p: *mut f32, n: usize, v: Self::V);
    /// a + b
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, with one rounding where the hardware has it.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a > b ? a : b, so that a NaN in `b` stays.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// a < b ? a : b, so that a NaN in `b` stays.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square roots.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Nearest integers, ties to even; |a| < 2^22.
    fn round(self, a: Self::V) -> Self::V;
    /// 2^a for integral a in [-126, 127].
    fn pow2(self, a: Self::V) -> Self::V;
    /// The first `n <= LANES` lanes, zeros after them.
    fn keep(self, a: Self::V, n: usize) -> Self::V;
    /// a < b ? x : y by lane (false for NaN).
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// The sum of the lanes, as a tree: the upper half is added to the lower, and so on.
    fn sum(self, a: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::V) -> f32;
    /// Each lane rounded to the nearest bf16, ties to even; NaN stays.
    fn bf16(self, a: Self::V) -> Self::V;
    /// Whether any lane is infinite or NaN.
    fn any_non_finite(self, a: Self::V) -> bool;
    /// Zero accumulators.
    fn zero64(self) -> Self::D;
    /// acc + a·b by lane in `f64`.
    fn fma64(self, a: Self::V, b: Self::V, acc: Self::D) -> Self::D;
    /// The sum of the accumulators in lane order.
    fn sum64(self, acc: Self::D) -> f64;
    /// Prefetches the cache line of `p` into the first level; any address is allowed.
    fn prefetch(self, p: *const f32);
    /// `dst[c * ldd + r] = src[min(r, last) * lds + c]` for r, c < LANES. Rows of `dst` are written in the
    /// order of c, so they may overlap each other.
    ///
    /// # Safety
    /// LANES values of source rows 0..=last must be readable, those of the destination rows writable, and
    /// the two may not overlap.
    unsafe fn transpose(self, src: *const f32, lds: usize, last: usize, dst: *mut f32, ldd: usize);
}

/// Eight lanes of plain Rust: the fallback on any processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

const L: usize = 8;

#[inline(always)]
fn map2(a: [f32; L], b: [f32; L], f: impl Fn(f32, f32) -> f32) -> [f32; L] {
    let mut out = a;
    for i in 0..L {
        out[i] = f(a[i], b[i]);
    }
    out
}

impl Simd for Portable {
    const LANES: usize = L;
    const WIDE: bool = false;
    const FUSED: bool = false;
    type V = [f32; L];
    type D = [f64; L];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; L] {
        [x; L]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; L] {
        // SAFETY: the caller makes p readable for LANES values.
        unsafe { p.cast::<[f32; L]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; L]) {
        // SAFETY: the caller makes p writable for LANES values.
        unsafe { p.cast::<[f32; L]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> [f32; L] {
        if n == L {
            // SAFETY: the caller makes p readable for n = LANES values.
            return unsafe { self.load(p) };
        }
        let mut v = [0.0; L];
        for (i, lane) in v.iter_mut().enumerate().take(n) {
            // SAFETY: i < n; the caller makes p readable for n values.
            *lane = unsafe { *p.add(i) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, n: usize, v: [f32; L]) {
        if n == L {
            // SAFETY: the caller makes p writable for n = LANES values.
            return unsafe { self.store(p, v) };
        }
        for (i, lane) in v.iter().enumerate().take(n) {
            // SAFETY: i < n; the caller makes p writable for n values.
            unsafe { *p.add(i) = *lane };
        }
    }
    #[inline(always)]
    fn add(self, a: [f32; L], b: [f32; L]) -> [f32; L] {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; L], b: [f32; L]) -> [f32; L] {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; L], b: [f32; L]) -> [f32; L] {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; L], b: [f32; L]) -> [f32; L] {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; L], b: [f32; L], c: [f32; L]) -> [f32; L] {
        // Two roundings: without the FMA instruction, a fused multiply-add is a slow library call.
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: [f32; L], b: [f32; L]) -> [f32; L] {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; L], b: [f32; L]) -> [f32; L] {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; L]) -> [f32; L] {
        map2(a, a, |a, _| a.sqrt())
    }
    #[inline(always)]
    fn round(self, a: [f32; L]) -> [f32; L] {
        // The sum with 1.5 * 2^23 has no bits left for a fraction.
        const BIG: f32 = 12_582_912.0;
        map2(a, a, |a, _| (a + BIG) - BIG)
    }
    #[inline(always)]
    fn pow2(self, a: [f32; L]) -> [f32; L] {
        map2(a, a, |a, _| f32::from_bits(((a as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn keep(self, mut a: [f32; L], n: usize) -> [f32; L] {
        for lane in a.iter_mut().skip(n) {
            *lane = 0.0;
        }
        a
    }
    #[inline(always)]
    fn select_lt(self, a: [f32; L], b: [f32; L], x: [f32; L], y: [f32; L]) -> [f32; L] {
        let mut out = y;
        for i in 0..L {
            out[i] = if a[i] < b[i] { x[i] } else { y[i] };
        }
        out
    }
    #[inline(always)]
    fn sum(self, a: [f32; L]) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    fn largest(self, a: [f32; L]) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn bf16(self, a: [f32; L]) -> [f32; L] {
        map2(a, a, |a, _| super::bf16::round(a))
    }
    #[inline(always)]
    fn any_non_finite(self, a: [f32; L]) -> bool {
        a.iter().any(|x| !x.is_finite())
    }
    #[inline(always)]
    fn zero64(self) -> [f64; L] {
        [0.0; L]
    }
    #[inline(always)]
    fn fma64(self, a: [f32; L], b: [f32; L], mut acc: [f64; L]) -> [f64; L] {
        for i in 0..L {
            acc[i] += f64::from(a[i]) * f64::from(b[i]);
        }
        acc
    }
    #[inline(always)]
    fn sum64(self, acc: [f64; L]) -> f64 {
        acc.iter().sum()
    }
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, lds: usize, last: usize, dst: *mut f32, ldd: usize) {
        for c in 0..L {
            for r in 0..L {
                // SAFETY: r, c < LANES; the caller makes both squares accessible.
                unsafe { *dst.add(c * ldd + r) = *src.add(r.min(last) * lds + c) };
            }
        }
    }
}

/// Runs a body over `0..len` by vectors: `i` is the start, `w` the number of lanes (a constant except in
/// the tail).
macro_rules! sweep {
    ($S:ty, $len:expr, |$i:ident, $w:ident| $body:block) => {{
        let len: usize = $len;
        let full = len - len % <$S>::LANES;
        let mut $i = 0usize;
        while $i < full {
            {
                let $w = <$S>::LANES;
                $body
            }
            $i += <$S>::LANES;
        }
        if $i < len {
            let $w = len - $i;
            $body
        }
    }};
}
pub(crate) use sweep;
