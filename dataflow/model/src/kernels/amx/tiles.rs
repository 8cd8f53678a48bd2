//! The tile unit: what it takes to use it, and one step of a product.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::TILE;

/// Whether this machine has the tile unit and its kernel lets this process use it.
pub(in super::super) fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let (low, high) = (__cpuid(0), __cpuid(7));
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        low.eax >= 7 && high.edx & BF16_AND_TILES == BF16_AND_TILES && ask_for_tiles()
    })
}

/// Asks Linux for the right to use tiles, for all threads of this process, as their state is larger than a signal's stack may expect.
#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILE_DATA: libc::c_ulong = 18;
    // SAFETY: this system call takes two numbers and touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}

/// The tile unit of this thread, set up; gives its state up in the end, so that no switch of threads has to save it.
pub(super) struct Tiles(());

impl Tiles {
    /// Eight tiles of 16 rows of 64 bytes. Call only where [`is_there`] holds.
    pub(super) fn configure() -> Self {
        #[repr(C, align(64))]
        struct Palette {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes_a_row: [u16; 16],
            rows: [u8; 16],
        }
        let mut palette = Palette { palette: 1, start_row: 0, reserved: [0; 14], bytes_a_row: [0; 16], rows: [0; 16] };
        palette.bytes_a_row[..8].fill(4 * TILE as u16);
        palette.rows[..8].fill(TILE as u8);
        // SAFETY: reads the 64 bytes of `palette`; the processor has the instruction, as the caller promises.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const palette, options(nostack, readonly, preserves_flags)) };
        Tiles(())
    }

    /// Begins sums of zero in the four tiles that [`Tiles::add_step`] adds to.
    #[inline(always)]
    pub(super) fn zero(&self) {
        // SAFETY: touches nothing but tiles, which the compiler never uses: they keep their values from one of these blocks to the next.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }

    /// The tiles' sums += a step of a panel of A times one of a panel of B. Smaller products come first where loads allow it.
    ///
    /// # Safety
    /// `a` and `b` must be readable for a step.
    #[inline(always)]
    pub(super) unsafe fn add_step(&self, a: *const f32, b: *const f32) {
        // SAFETY: reads one step of each panel, as the contract allows; for the tiles see [`Tiles::zero`].
        unsafe {
            asm!(
                // high · low
                "tileloadd tmm6, [{b} + {stride} + 2048]",
                "tileloadd tmm4, [{a} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {stride} + 5120]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {stride} + 3072]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm6, [{b} + {stride} + 1024]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // high · middle
                "tileloadd tmm7, [{b} + {stride} + 4096]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm6, [{b} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // high · high
                "tileloadd tmm7, [{b} + {stride} + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm4, [{a} + {stride} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // middle · high
                "tileloadd tmm5, [{a} + {stride} + 4096]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm6, [{b} + {stride} + 1024]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // middle · middle
                "tileloadd tmm7, [{b} + {stride} + 4096]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm4, [{a} + {stride} + 2048]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm6, [{b} + {stride}]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // low · high
                "tileloadd tmm5, [{a} + {stride} + 5120]",
                "tileloadd tmm7, [{b} + {stride} + 3072]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                a = in(reg) a,
                b = in(reg) b,
                stride = in(reg) 4 * TILE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    /// As [`Tiles::add_step`] where the lower 16 rows of A are of no interest.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn add_upper_step(&self, a: *const f32, b: *const f32) {
        // SAFETY: as there.
        unsafe {
            asm!(
                // high · low
                "tileloadd tmm6, [{b} + {stride} + 2048]",
                "tileloadd tmm4, [{a} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {stride} + 5120]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                // high · middle
                "tileloadd tmm6, [{b} + {stride} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {stride} + 4096]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                // high · high
                "tileloadd tmm2, [{b} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm2",
                "tileloadd tmm3, [{b} + {stride} + 3072]",
                "tdpbf16ps tmm1, tmm4, tmm3",
                // middle · high, middle · middle
                "tileloadd tmm5, [{a} + {stride} + 1024]",
                "tdpbf16ps tmm0, tmm5, tmm2",
                "tdpbf16ps tmm1, tmm5, tmm3",
                "tdpbf16ps tmm0, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm5, tmm7",
                // low · high
                "tileloadd tmm4, [{a} + {stride} + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm2",
                "tdpbf16ps tmm1, tmm4, tmm3",
                a = in(reg) a,
                b = in(reg) b,
                stride = in(reg) 4 * TILE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    /// sums [32, 32] = those of the tiles.
    ///
    /// # Safety
    /// `sums` must be writable for 32 · 32 values.
    #[inline(always)]
    pub(super) unsafe fn store(&self, sums: *mut f32) {
        // SAFETY: writes 32 rows of 128 bytes, as the contract allows; for the tiles see [`Tiles::zero`].
        unsafe {
            asm!(
                "tilestored [{sums} + {stride} * 2], tmm0",
                "tilestored [{sums} + {stride} * 2 + 64], tmm1",
                "tilestored [{sums} + {stride} * 2 + 2048], tmm2",
                "tilestored [{sums} + {stride} * 2 + 2112], tmm3",
                sums = in(reg) sums,
                stride = in(reg) 4 * TILE,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: touches nothing but the state of the tiles, which nobody reads after this.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
