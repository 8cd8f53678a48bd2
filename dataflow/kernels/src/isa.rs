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
    /// AVX-512, with products on the tile unit of AMX.
    Amx,
}

impl Isa {
    /// All of them, the slowest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2Fma, Isa::Avx512, Isa::Amx];

    /// Its name in reports and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2Fma => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// Whether this machine has it.
    #[must_use]
    pub fn is_here(self) -> bool {
        self <= detect()
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
