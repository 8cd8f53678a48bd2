//! The tile unit: what it takes to use it, and one step of a product.

use std::arch::asm;
use std::arch::x86_64::__cpuid;
use std::sync::OnceLock;

use super::layout::TILE;

/// Whether this machine has the tile unit and its kernel lets this process use it.
pub(crate) fn is_there() -> bool {
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

/// Other work between the products of a step.
pub(super) trait Beside {
    /// Does a little in turn `I` of `N`.
    ///
    /// # Safety
    /// As the work says; the processor must have AVX-512.
    unsafe fn turn<const I: usize, const N: usize>(&mut self);
}

/// Expands a list of `load TILE PANEL BYTES`, `times C A B` and `turn NUMBER`.
macro_rules! schedule {
    ($unit:ident, $a:ident, $b:ident, $beside:ident, $num_turns:literal;) => {};
    ($unit:ident, $a:ident, $b:ident, $beside:ident, $num_turns:literal; load $tile:literal a $at:literal, $($rest:tt)*) => {
        $unit.load::<$tile, $at, false>($a);
        schedule!($unit, $a, $b, $beside, $num_turns; $($rest)*);
    };
    ($unit:ident, $a:ident, $b:ident, $beside:ident, $num_turns:literal; load $tile:literal b $at:literal, $($rest:tt)*) => {
        $unit.load::<$tile, $at, true>($b);
        schedule!($unit, $a, $b, $beside, $num_turns; $($rest)*);
    };
    ($unit:ident, $a:ident, $b:ident, $beside:ident, $num_turns:literal; times $x:literal $y:literal $z:literal, $($rest:tt)*) => {
        $unit.times::<$x, $y, $z>();
        schedule!($unit, $a, $b, $beside, $num_turns; $($rest)*);
    };
    ($unit:ident, $a:ident, $b:ident, $beside:ident, $num_turns:literal; turn $turn:literal, $($rest:tt)*) => {
        $beside.turn::<$turn, $num_turns>();
        schedule!($unit, $a, $b, $beside, $num_turns; $($rest)*);
    };
}

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

    /// Loads tile `T` from the 1,024 bytes that begin `AT` bytes behind `from`; if not `NEAR`, asks not to keep them in the first-level
    /// cache (0.98 of the time of an iteration where that is said of A).
    ///
    /// # Safety
    /// They must be readable.
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
        // SAFETY: reads what the contract allows; for the tiles see [`Tiles::zero`].
        unsafe {
            if NEAR {
                load!("tileloadd");
            } else {
                load!("tileloaddt1");
            }
        }
    }

    /// Tile `C` += tile `A` · tile `B`.
    ///
    /// Says of memory that it may be touched, though it is not: so the compiler leaves loads and stores of the chores on their side.
    #[inline(always)]
    fn times<const C: usize, const A: usize, const B: usize>(&self) {
        // SAFETY: touches nothing but tiles; see [`Tiles::zero`].
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

    /// The tiles' sums += a step of a panel of A times one of a panel of B, with turns of other work between them. Smaller
    /// products come first where loads allow it.
    ///
    /// # Safety
    /// `a` and `b` must be readable for a step.
    #[inline(always)]
    unsafe fn add_step<const PARTS: usize>(&self, a: *const f32, b: *const f32, beside: &mut impl Beside) {
        // SAFETY: reads one step of each panel, as the contract allows.
        unsafe {
            match PARTS {
                1 => {
                    schedule!(self, a, b, beside, 4;
                        load 6 b 0, load 4 a 0, times 0 4 6, turn 0, load 7 b 3072, times 1 4 7, turn 1,
                        load 5 a 3072, times 2 5 6, turn 2, times 3 5 7, turn 3,
                    );
                }
                2 => {
                    schedule!(self, a, b, beside, 12;
                        // high · middle
                        load 6 b 1024, load 4 a 0, times 0 4 6, turn 0, load 7 b 4096, times 1 4 7, turn 1,
                        load 5 a 3072, times 2 5 6, turn 2, load 6 b 0, times 3 5 7, turn 3,
                        // high · high
                        load 7 b 3072, times 0 4 6, turn 4, times 1 4 7, turn 5, load 4 a 1024, times 2 5 6, turn 6, times 3 5 7, turn 7,
                        // middle · high
                        load 5 a 4096, times 0 4 6, turn 8, times 1 4 7, turn 9, times 2 5 6, turn 10, times 3 5 7, turn 11,
                    );
                }
                _ => {
                    schedule!(self, a, b, beside, 24;
                        // high · low
                        load 6 b 2048, load 4 a 0, times 0 4 6, turn 0, load 7 b 5120, times 1 4 7, turn 1,
                        load 5 a 3072, times 2 5 6, turn 2, load 6 b 1024, times 3 5 7, turn 3,
                        // high · middle
                        load 7 b 4096, times 0 4 6, turn 4, times 2 5 6, turn 5, load 6 b 0, times 1 4 7, turn 6, times 3 5 7, turn 7,
                        // high · high
                        load 7 b 3072, times 0 4 6, turn 8, times 1 4 7, turn 9, load 4 a 1024, times 2 5 6, turn 10, times 3 5 7, turn 11,
                        // middle · high
                        load 5 a 4096, times 0 4 6, turn 12, times 1 4 7, turn 13, times 2 5 6, turn 14, load 6 b 1024, times 3 5 7, turn 15,
                        // middle · middle
                        load 7 b 4096, times 0 4 6, turn 16, times 1 4 7, turn 17, load 4 a 2048, times 2 5 6, turn 18, load 6 b 0, times 3 5 7, turn 19,
                        // low · high
                        load 5 a 5120, load 7 b 3072, times 0 4 6, turn 20, times 1 4 7, turn 21, times 2 5 6, turn 22, times 3 5 7, turn 23,
                    );
                }
            }
        }
    }

    /// As [`Tiles::add_step`] where the lower 16 rows of A are of no interest: half the products, half the turns.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn add_upper_step<const PARTS: usize>(&self, a: *const f32, b: *const f32, beside: &mut impl Beside) {
        // SAFETY: as there.
        unsafe {
            match PARTS {
                1 => {
                    schedule!(self, a, b, beside, 2;
                        load 6 b 0, load 4 a 0, times 0 4 6, turn 0, load 7 b 3072, times 1 4 7, turn 1,
                    );
                }
                2 => {
                    schedule!(self, a, b, beside, 6;
                        // high · middle
                        load 6 b 1024, load 4 a 0, times 0 4 6, turn 0, load 7 b 4096, times 1 4 7, turn 1,
                        // high · high, middle · high
                        load 6 b 0, times 0 4 6, turn 2, load 7 b 3072, times 1 4 7, turn 3,
                        load 5 a 1024, times 0 5 6, turn 4, times 1 5 7, turn 5,
                    );
                }
                _ => {
                    schedule!(self, a, b, beside, 12;
                        // high · low
                        load 6 b 2048, load 4 a 0, times 0 4 6, turn 0, load 7 b 5120, times 1 4 7, turn 1,
                        // high · middle
                        load 6 b 1024, times 0 4 6, turn 2, load 7 b 4096, times 1 4 7, turn 3,
                        // high · high
                        load 2 b 0, times 0 4 2, turn 4, load 3 b 3072, times 1 4 3, turn 5,
                        // middle · high, middle · middle
                        load 5 a 1024, times 0 5 2, turn 6, times 1 5 3, turn 7, times 0 5 6, turn 8, times 1 5 7, turn 9,
                        // low · high
                        load 4 a 2048, times 0 4 2, turn 10, times 1 4 3, turn 11,
                    );
                }
            }
        }
    }

    /// [`Tiles::add_upper_step`] or [`Tiles::add_step`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn add<const PARTS: usize>(
        &self,
        is_half: bool,
        a: *const f32,
        b: *const f32,
        beside: &mut impl Beside,
    ) {
        // SAFETY: the contract is handed on.
        unsafe {
            if is_half {
                self.add_upper_step::<PARTS>(a, b, beside);
            } else {
                self.add_step::<PARTS>(a, b, beside);
            }
        }
    }

    /// Stores a tile of no interest. The path from tiles to memory falls asleep where it was not used for the time of some 130 products,
    /// and then a store keeps the unit waiting for that of 60 (260 ns; measured on a Xeon of the fourth generation or later).
    ///
    /// # Safety
    /// `to` must be writable for a tile.
    #[inline(always)]
    pub(super) unsafe fn keep_awake(&self, to: *mut f32) {
        // SAFETY: by contract; for the tiles see [`Tiles::zero`].
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm7", to = in(reg) to, stride = in(reg) 4 * TILE, options(nostack, preserves_flags));
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
