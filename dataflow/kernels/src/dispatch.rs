//! The choice of an instruction set at run time.

/// Calls a function that is generic over its instruction set (`fn f<S: Simd>(s: S, ..)`, `#[inline(always)]`) for the one of [`isa()`](crate::isa()).
macro_rules! dispatch {
    ($f:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
        #[allow(clippy::too_many_arguments)]
        fn wide($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the features of the token are those of this function.
            $f(unsafe { $crate::x86::Avx512::new() }, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        #[allow(clippy::too_many_arguments)]
        fn narrow($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the features of the token are those of this function.
            $f(unsafe { $crate::x86::Avx2Fma::new() }, $($arg),*)
        }
        match $crate::isa::isa().without_rounding() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: isa() names only instruction sets that this machine has.
            $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => unsafe { wide($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Isa::Avx2Fma => unsafe { narrow($($arg),*) },
            _ => $f($crate::simd::Portable, $($arg),*),
        }
    }};
}
pub(crate) use dispatch;
