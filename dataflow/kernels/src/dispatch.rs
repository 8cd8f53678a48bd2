//! Dispatch to an instruction set at run time.

/// Calls a function that is generic over its instruction set, for that of [`isa()`](crate::isa()). The
/// function has the form `#[inline(always)] fn f<S: Simd>(s: S, ..)`, and the macro repeats the types of
/// its other arguments.
macro_rules! dispatch {
    ($f:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
        #[allow(clippy::too_many_arguments)]
        fn wide($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the target features of this function are those of the token.
            $f(unsafe { $crate::x86::Avx512::new() }, $($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        #[allow(clippy::too_many_arguments)]
        fn narrow($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the target features of this function are those of the token.
            $f(unsafe { $crate::x86::Avx2Fma::new() }, $($arg),*)
        }
        match $crate::isa::isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: isa() returns only instruction sets of this machine, so the features of wide() are
            // there.
            $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => unsafe { wide($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: isa() returns only instruction sets of this machine, so the features of narrow() are
            // there.
            $crate::isa::Isa::Avx2Fma => unsafe { narrow($($arg),*) },
            _ => $f($crate::simd::Portable, $($arg),*),
        }
    }};
}
pub(crate) use dispatch;
