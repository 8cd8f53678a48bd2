//! The AMX tile unit: permission to use it, its instructions, and one step of a product.

use std::arch::asm;
use std::arch::x86_64::__cpuid;
use std::sync::OnceLock;

use super::layout::TILE;

/// Whether this processor has AMX with bf16 and the operating system lets this process use it.
pub(crate) fn is_available() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let (low, high) = (__cpuid(0), __cpuid(7));
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        low.eax >= 7 && high.edx & BF16_AND_TILES == BF16_AND_TILES && request_permission()
    })
}

/// Requests permission from Linux to use tile data, for all threads of this process. Linux grants it on
/// request only, as the 8 KiB of tile state would overflow small signal stacks.
#[cfg(target_os = "linux")]
fn request_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILE_DATA: libc::c_ulong = 18;
    // SAFETY: this system call takes two numbers and touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn request_permission() -> bool {
    false
}

/// The configured tile unit of this thread. Dropping it releases the tiles, so that context switches do not
/// save them.
pub(super) struct Tiles(());

/// Vector instructions interleaved with the TDPBF16PS of one step of k: packing and the epilogue, a few at
/// a time ([`super::blocks`] has the reason).
pub(super) trait Interleaved {
    /// Does the share of slot `I` of `N`, after the `I`-th product of a step.
    ///
    /// # Safety
    /// The processor must have AVX-512, and the pointers of the implementing type must be valid (each says
    /// for what).
    unsafe fn slot<const I: usize, const N: usize>(&mut self);
}

/// Expands a list of `load TILE FACTOR BYTES`, `times C A B` and `slot NUMBER`, in that order of
/// instructions.
macro_rules! schedule {
    ($unit:ident, $a:ident, $b:ident, $work:ident, $num_slots:literal;) => {};
    (
        $unit:ident, $a:ident, $b:ident, $work:ident, $num_slots:literal;
        load $tile:literal a $at:literal, $($rest:tt)*
    ) => {
        $unit.load::<$tile, $at, false>($a);
        schedule!($unit, $a, $b, $work, $num_slots; $($rest)*);
    };
    (
        $unit:ident, $a:ident, $b:ident, $work:ident, $num_slots:literal;
        load $tile:literal b $at:literal, $($rest:tt)*
    ) => {
        $unit.load::<$tile, $at, true>($b);
        schedule!($unit, $a, $b, $work, $num_slots; $($rest)*);
    };
    (
        $unit:ident, $a:ident, $b:ident, $work:ident, $num_slots:literal;
        times $x:literal $y:literal $z:literal, $($rest:tt)*
    ) => {
        $unit.times::<$x, $y, $z>();
        schedule!($unit, $a, $b, $work, $num_slots; $($rest)*);
    };
    ($unit:ident, $a:ident, $b:ident, $work:ident, $num_slots:literal; slot $slot:literal, $($rest:tt)*) => {
        $work.slot::<$slot, $num_slots>();
        schedule!($unit, $a, $b, $work, $num_slots; $($rest)*);
    };
}

impl Tiles {
    /// Configures eight tiles of 16 rows of 64 bytes. Call only where [`is_available`] holds.
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
        // SAFETY: reads the 64 bytes of `palette`. blocks::gemm() requires is_available(), so the
        // instruction exists.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const palette, options(nostack, readonly, preserves_flags)) };
        Tiles(())
    }

    /// Zeroes the four accumulator tiles, tmm0 to tmm3.
    #[inline(always)]
    pub(super) fn zero(&self) {
        // SAFETY: changes tile registers alone. The compiler never allocates them, so they keep their
        // values from one asm! to the next.
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

    /// Loads tile `T` from the 1,024 bytes at byte offset `AT` of `from`. Without `NEAR`, TILELOADDT1 hints
    /// that they need not stay in the first-level cache (0.98 of the time of an iteration with that hint
    /// for A).
    ///
    /// # Safety
    /// Those bytes must be readable.
    #[inline(always)]
    unsafe fn load<const T: usize, const AT: usize, const NEAR: bool>(&self, from: *const f32) {
        macro_rules! load {
            ($name:literal) => {
                asm!(
                    concat!($name, " tmm{t}, [{from} + {stride} + {at}]"),
                    t = const T,
                    at = const AT,
                    from = in(reg) from,
                    stride = in(reg) 4 * TILE,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, preserves_flags),
                )
            };
        }
        // SAFETY: the caller makes the 1,024 bytes readable; tile registers are free to change (see
        // [`Tiles::zero`]).
        unsafe {
            if NEAR {
                load!("tileloadd");
            } else {
                load!("tileloaddt1");
            }
        }
    }

    /// Tile `C` += tile `A` · tile `B` (TDPBF16PS).
    ///
    /// No `nomem`, though no memory is touched: so the asm! is a compiler barrier, which keeps the
    /// interleaved loads and stores of the epilogue and of packing in their slots.
    #[inline(always)]
    fn times<const C: usize, const A: usize, const B: usize>(&self) {
        // SAFETY: changes tile registers alone, which are free to change (see [`Tiles::zero`]).
        unsafe {
            asm!(
                "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                c = const C,
                a = const A,
                b = const B,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Adds one step of k, of a packed panel of A times one of B, to the accumulator tiles, with a slot of
    /// interleaved work after each product. Smaller products come first where the loads allow it.
    ///
    /// # Safety
    /// `a` and `b` must be readable for one step of a packed panel (2 · STEP_WORDS values); as
    /// [`Interleaved::slot`].
    #[inline(always)]
    unsafe fn add_step<const PARTS: usize>(&self, a: *const f32, b: *const f32, work: &mut impl Interleaved) {
        // SAFETY: the offsets lie within one step of each panel, which sum() of blocks.rs makes readable.
        unsafe {
            match PARTS {
                1 => {
                    schedule!(self, a, b, work, 4;
                        load 6 b 0, load 4 a 0, times 0 4 6, slot 0, load 7 b 3072, times 1 4 7, slot 1,
                        load 5 a 3072, times 2 5 6, slot 2, times 3 5 7, slot 3,
                    );
                }
                _ => {
                    schedule!(self, a, b, work, 24;
                        // high · low
                        load 6 b 2048, load 4 a 0, times 0 4 6, slot 0, load 7 b 5120, times 1 4 7, slot 1,
                        load 5 a 3072, times 2 5 6, slot 2, load 6 b 1024, times 3 5 7, slot 3,
                        // high · middle
                        load 7 b 4096, times 0 4 6, slot 4, times 2 5 6, slot 5,
                        load 6 b 0, times 1 4 7, slot 6, times 3 5 7, slot 7,
                        // high · high
                        load 7 b 3072, times 0 4 6, slot 8, times 1 4 7, slot 9,
                        load 4 a 1024, times 2 5 6, slot 10, times 3 5 7, slot 11,
                        // middle · high
                        load 5 a 4096, times 0 4 6, slot 12, times 1 4 7, slot 13,
                        times 2 5 6, slot 14, load 6 b 1024, times 3 5 7, slot 15,
                        // middle · middle
                        load 7 b 4096, times 0 4 6, slot 16, times 1 4 7, slot 17,
                        load 4 a 2048, times 2 5 6, slot 18, load 6 b 0, times 3 5 7, slot 19,
                        // low · high
                        load 5 a 5120, load 7 b 3072, times 0 4 6, slot 20,
                        times 1 4 7, slot 21, times 2 5 6, slot 22, times 3 5 7, slot 23,
                    );
                }
            }
        }
    }

    /// As [`Tiles::add_step`], for a block of at most 16 rows of C: half the products, half the slots.
    ///
    /// # Safety
    /// As [`Tiles::add_step`]; of `a`, the first half of each step suffices.
    #[inline(always)]
    unsafe fn add_upper_step<const PARTS: usize>(&self, a: *const f32, b: *const f32, work: &mut impl Interleaved) {
        // SAFETY: the offsets lie within one step of each panel, which sum() of blocks.rs makes readable.
        unsafe {
            match PARTS {
                1 => {
                    schedule!(self, a, b, work, 2;
                        load 6 b 0, load 4 a 0, times 0 4 6, slot 0, load 7 b 3072, times 1 4 7, slot 1,
                    );
                }
                _ => {
                    schedule!(self, a, b, work, 12;
                        // high · low
                        load 6 b 2048, load 4 a 0, times 0 4 6, slot 0, load 7 b 5120, times 1 4 7, slot 1,
                        // high · middle
                        load 6 b 1024, times 0 4 6, slot 2, load 7 b 4096, times 1 4 7, slot 3,
                        // high · high
                        load 2 b 0, times 0 4 2, slot 4, load 3 b 3072, times 1 4 3, slot 5,
                        // middle · high, middle · middle
                        load 5 a 1024, times 0 5 2, slot 6, times 1 5 3, slot 7,
                        times 0 5 6, slot 8, times 1 5 7, slot 9,
                        // low · high
                        load 4 a 2048, times 0 4 2, slot 10, times 1 4 3, slot 11,
                    );
                }
            }
        }
    }

    /// [`Tiles::add_upper_step`] if `is_half`, else [`Tiles::add_step`].
    ///
    /// # Safety
    /// As [`Tiles::add_step`].
    #[inline(always)]
    pub(super) unsafe fn add<const PARTS: usize>(
        &self,
        is_half: bool,
        a: *const f32,
        b: *const f32,
        work: &mut impl Interleaved,
    ) {
        // SAFETY: the caller makes both panels readable for this step, and the work's pointers valid.
        unsafe {
            if is_half {
                self.add_upper_step::<PARTS>(a, b, work);
            } else {
                self.add_step::<PARTS>(a, b, work);
            }
        }
    }

    /// A dummy TILESTORED, whose values nobody reads; see [`super::layout::DUMMY_STORE_EVERY`].
    ///
    /// # Safety
    /// `to` must be writable for a tile (TILE_WORDS values).
    #[inline(always)]
    pub(super) unsafe fn dummy_store(&self, to: *mut f32) {
        // SAFETY: blocks() reserves a tile of scratch for `to`; no tile register changes.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}], tmm7",
                to = in(reg) to,
                stride = in(reg) 4 * TILE,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Stores the accumulator tiles to sums [32, 32].
    ///
    /// # Safety
    /// `sums` must be writable for 32 · 32 values.
    #[inline(always)]
    pub(super) unsafe fn store(&self, sums: *mut f32) {
        // SAFETY: the caller makes 32 rows of 128 bytes writable; no tile register changes.
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
        // SAFETY: clears the tile registers, which nobody reads after this.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
