//! The instruction sets: their names, which of them this machine has, and which one kernels use.

use std::cell::Cell;
use std::sync::OnceLock;

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any processor.
    Portable,
    /// x86-64 with AVX2 and FMA: 8 lanes.
    Avx2Fma,
    /// x86-64 with AVX-512 F, VL, BW and DQ: 16 lanes.
    Avx512,
    /// AVX-512, with products on the tile unit of AMX, in the accuracy of `f32`.
    Amx,
    /// As [`Isa::Amx`], but the factors of products keep 16 bits of their 24: half the tile products.
    AmxBf16x2,
    /// As [`Isa::Amx`], but the factors of products are rounded to bf16, 8 bits: a sixth of the tile
    /// products. Sums stay in `f32`.
    AmxBf16,
}

impl Isa {
    /// Those that compute in the accuracy of `f32`, the slowest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2Fma, Isa::Avx512, Isa::Amx];
    /// Those that round the factors of products: never the default, only by [`choose_isa`] or [`with_isa`].
    pub const ROUNDED: [Isa; 2] = [Isa::AmxBf16x2, Isa::AmxBf16];

    /// Its name in reports and on the command line.
    #[must_use]
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
    #[must_use]
    pub fn is_here(self) -> bool {
        self.without_rounding() <= detect()
    }

    /// The same instructions in the accuracy of `f32`: [`Isa::Amx`] for those of [`Isa::ROUNDED`].
    #[must_use]
    pub fn without_rounding(self) -> Isa {
        if Isa::ROUNDED.contains(&self) { Isa::Amx } else { self }
    }

    /// The number of bf16 parts of a factor, if products are computed on the tile unit.
    pub(crate) fn num_parts(self) -> Option<usize> {
        match self {
            Isa::Amx => Some(3),
            Isa::AmxBf16x2 => Some(2),
            Isa::AmxBf16 => Some(1),
            _ => None,
        }
    }

    /// The arithmetic in words, for reports.
    #[must_use]
    pub fn arithmetic(self) -> &'static str {
        match self.num_parts() {
            Some(2) => "f32 with products in two parts of bf16",
            Some(1) => "f32 with products in bf16",
            _ => "f32",
        }
    }
}

static CHOSEN: OnceLock<Isa> = OnceLock::new();

/// Makes the whole process use `isa` instead of the best one, for example to get the same bits as on
/// another machine. Returns false and changes nothing if this machine lacks it, or if a kernel has run or
/// one was chosen already.
pub fn choose_isa(isa: Isa) -> bool {
    isa.is_here() && CHOSEN.set(isa).is_ok()
}

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set that kernels use on this thread: the best of this machine, unless [`choose_isa`] or
/// [`with_isa`] chose another.
#[inline]
#[must_use]
pub fn isa() -> Isa {
    match FORCED.get() {
        Some(isa) => isa,
        None => *CHOSEN.get_or_init(detect),
    }
}

/// Calls `f` with the instruction set of the calling thread forced to `isa`. Threads that `f` starts do not
/// inherit it. The previous one is restored after the call, even if `f` panics. Returns `None` without a
/// call if this machine lacks `isa`.
pub fn with_isa<T>(isa: Isa, f: impl FnOnce() -> T) -> Option<T> {
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    if !isa.is_here() {
        return None;
    }
    let _restore = Restore(FORCED.replace(Some(isa)));
    Some(f())
}

fn detect() -> Isa {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        return match (wide, super::amx::is_available()) {
            (true, true) => Isa::Amx,
            (true, false) => Isa::Avx512,
            _ => Isa::Avx2Fma,
        };
    }
    Isa::Portable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_instruction_set_ends_with_its_scope() {
        let before = isa();
        with_isa(Isa::Portable, || {
            assert_eq!(isa(), Isa::Portable);
            assert_eq!(std::thread::spawn(isa).join().unwrap(), before, "another thread's choice");
            with_isa(before, || assert_eq!(isa(), before)).unwrap();
            assert_eq!(isa(), Isa::Portable, "after an inner scope");
        })
        .unwrap();
        assert_eq!(isa(), before);
        let panics = std::panic::catch_unwind(|| with_isa(Isa::Portable, || panic!("in the scope")));
        assert!(panics.is_err() && isa() == before, "after a panic");
    }
}
