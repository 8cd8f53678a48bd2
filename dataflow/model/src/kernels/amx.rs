//! Products on the tile unit of newer Intel processors (AMX), in the accuracy of `f32`.
//!
//! The unit multiplies bf16 and adds in `f32`, sixteen times as fast as fused additions of `f32` on the same core. A value of `f32` is
//! the sum of three bf16 values (8 bits of its 24 each), so a product of two is the sum of nine products of bf16, of which the three
//! smallest lie below 2⁻²⁵ of the whole, less than the rounding of one `f32`, and are left out. What six remain are summed in `f32`.
//! Values of more than 3.389·10³⁸ (half a bf16 step below the largest `f32`) and infinite ones become NaN, and parts below 2⁻¹²⁶
//! become zero.
//!
//! An element of C is a chain of additions in the order of k and of the six products, by blocks that depend on k alone: its bits depend
//! neither on m and n nor on its place.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use super::gemm::{Operand, Place, Product, prefetch, split, store_any, store_whole};
use super::scratch::with_scratch;
use super::simd::Simd;
use super::x86::Avx512;

/// Rows of a tile; also its columns in values of 32 bits, which are pairs of bf16.
const TILE: usize = 16;
/// Steps of k that one tile holds.
const STEP: usize = 2 * TILE;
/// Rows and columns of C that are summed at a time: two by two tiles.
const BLOCK: usize = 2 * TILE;
/// bf16 parts of an `f32`.
const PARTS: usize = 3;
/// `f32` places that a packed tile takes.
const TILE_WORDS: usize = TILE * TILE;
/// `f32` places that the parts of one step take for 16 rows or columns.
const STEP_WORDS: usize = PARTS * TILE_WORDS;
/// Shortest sum that is worth a tile.
const MIN_K: usize = 16;
/// Longest block of k: two panels of B, 96 KiB each, and the block of A share a second-level cache of 2 MiB.
const MAX_KC: usize = 512;
/// Values of a block of A, whose rows meet all panels of B in turn: 768 KiB in parts.
const MAX_A: usize = 1 << 17;
/// Values of panels of B that are kept for further blocks of A: 12 MiB in parts. More are packed again.
const MAX_B: usize = 1 << 21;

/// Whether this machine has the tile unit and its kernel lets this process use it.
pub(super) fn is_there() -> bool {
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
    const SYS_ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILE_DATA: u64 = 18;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: this system call takes two numbers and touches no memory; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}

/// Whether `p` should be computed here; depends on k alone, as its bits may depend on nothing else.
pub(super) fn suits(p: &Product) -> bool {
    p.k >= MIN_K
}

/// One factor as its tiles see it: element (i, k) is at `ptr + i * outer + k * depth`, with i a row of op(A) or a column of op(B).
#[derive(Clone, Copy)]
struct Side {
    ptr: *const f32,
    outer: usize,
    depth: usize,
    /// Whether the rows of a tile go along k (B), or its lanes (A).
    rows_are_deep: bool,
}

impl Side {
    fn a(a: Operand) -> Self {
        Side { ptr: a.ptr, outer: a.row, depth: a.col, rows_are_deep: false }
    }

    fn b(b: Operand) -> Self {
        Side { ptr: b.ptr, outer: b.col, depth: b.row, rows_are_deep: true }
    }

    /// Asks for the values of a tile.
    #[inline(always)]
    fn fetch_tile(&self, s: Avx512, at: *const f32) {
        let (rows, row_step, second) = if self.outer == 1 { (STEP, self.depth, 0) } else { (TILE, self.outer, TILE) };
        for r in 0..rows {
            s.prefetch(at.wrapping_add(r * row_step));
            if second > 0 {
                s.prefetch(at.wrapping_add(r * row_step + second));
            }
        }
    }

    /// The step between the rows of what is stored where they are the lanes of a tile.
    fn lies_across(&self) -> Option<usize> {
        let (lanes_adjoin, step) =
            if self.rows_are_deep { (self.outer == 1, self.outer) } else { (self.depth == 1, self.depth) };
        (!lanes_adjoin).then_some(step)
    }
}

/// Computes `p`.
///
/// # Safety
/// As [`super::gemm::gemm`]; [`is_there`] must hold.
pub(super) unsafe fn gemm(p: &Product) {
    let kc = split(p.k, MAX_KC, STEP);
    let mc = split(p.m, MAX_A / kc, BLOCK);
    let panel = kc / STEP * 2 * STEP_WORDS;
    let is_met_again = p.m > mc && p.n * kc <= MAX_B;
    let kept = if is_met_again { p.n.div_ceil(BLOCK).max(2) } else { 2 };
    with_scratch((mc / BLOCK + kept) * panel + 2 * BLOCK * BLOCK, |scratch| {
        let (a, rest) = scratch.split_at_mut(mc / BLOCK * panel);
        let (b, sums) = rest.split_at_mut(kept * panel);
        // SAFETY: is_there() comes with AVX-512, and the pieces of scratch have the lengths that blocks() wants.
        unsafe { blocks(p, [mc, kc, kept], a, b, sums) };
    });
}

/// The tiles take their time over each step of k, in which the processor's other units do chores: they pack the panel of B behind this
/// one, and with the first panel the rows of A behind these, and store the block of C before this one. Chores stand between the steps,
/// few at a time, as the processor looks only some hundred instructions ahead. Epilogues cost next to nothing so (with gelu, 260 instead
/// of 200 GFLOP/s), packing not much less than by itself; but panels that are packed when they are needed leave the cache to others.
///
/// # Safety
/// As [`gemm`]; `a` must hold a block of A, `b` the `kept` panels of B, two or all of them, and `sums` two blocks of C.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn blocks(p: &Product, [mc, kc, kept]: [usize; 3], a: &mut [f32], b: &mut [f32], sums: &mut [f32]) {
    // SAFETY: the features of the token are those of this function.
    let s = unsafe { Avx512::new() };
    let _tiles = Tiles::configure();
    let mut turned = Turned([0.0; 2 * TILE_WORDS]);
    let num_panels = p.n.div_ceil(BLOCK);
    let (mut before, mut num_summed): (Option<Summed>, usize) = (None, 0);
    for pc in (0..p.k).step_by(kc) {
        let depth = pc..p.k.min(pc + kc);
        let (add, last) = (p.accumulate || pc > 0, depth.end == p.k);
        let num_steps = depth.len().div_ceil(STEP);
        let len = num_steps * 2 * STEP_WORDS;
        for ic in (0..p.m).step_by(mc) {
            let rows = ic..p.m.min(ic + mc);
            let num_blocks = rows.len().div_ceil(BLOCK);
            let mut pack_a = Packer { side: Side::a(p.a), outer: rows.clone(), depth: depth.clone(), to: &mut *a };
            let mut pack_b = Packer { side: Side::b(p.b), outer: 0..p.n, depth: depth.clone(), to: &mut *b };
            let is_b_packed = ic > 0 && kept >= num_panels;
            // SAFETY: rows, columns and depth lie in the factors.
            unsafe {
                pack_a.pack(s, 0, 0, 0..2 * num_steps, &mut turned);
                if !is_b_packed {
                    pack_b.pack(s, 0, 0, 0..2 * num_steps, &mut turned);
                }
            }
            for panel in 0..num_panels {
                for block in 0..num_blocks {
                    let (i, j) = (ic + block * BLOCK, panel * BLOCK);
                    let place =
                        Place { at: i * p.ldc + j, col: j, rows: BLOCK.min(rows.end - i), cols: BLOCK.min(p.n - j) };
                    let next = (panel + 1) % kept;
                    zero_tiles();
                    for step in 0..num_steps {
                        let at = step * 2 * STEP_WORDS;
                        let from_a = &pack_a.to[block * len + at..][..2 * STEP_WORDS];
                        let from_b = &pack_b.to[panel % kept * len + at..][..2 * STEP_WORDS];
                        // SAFETY: both factors have a step there.
                        unsafe {
                            if place.rows > TILE {
                                add_step(from_a.as_ptr(), from_b.as_ptr());
                            } else {
                                add_upper_step(from_a.as_ptr(), from_b.as_ptr());
                            }
                        }
                        // SAFETY: as above; the places lie in C.
                        unsafe {
                            if panel == 0 && block + 1 < num_blocks {
                                pack_a.pack(s, block + 1, block + 1, 2 * step..2 * step + 2, &mut turned);
                            }
                            if panel + 1 < num_panels {
                                let turn = block * num_steps + step;
                                if is_b_packed {
                                    fetch(&pack_b.to[next * len..][..len], turn, num_blocks * num_steps);
                                } else {
                                    let tiles = share(2 * num_steps, turn, num_blocks * num_steps);
                                    pack_b.pack(s, panel + 1, next, tiles, &mut turned);
                                }
                            }
                            if let Some(before) = &before {
                                before.store(s, p, share(BLOCK / ROWS, step, num_steps));
                            }
                        }
                        let rows = share(place.rows, step, num_steps);
                        let at = place.at + rows.start * p.ldc;
                        prefetch(s, p, Place { at, ..place }, rows.len(), place.cols);
                    }
                    let sums = &mut sums[num_summed % 2 * BLOCK * BLOCK..][..BLOCK * BLOCK];
                    num_summed += 1;
                    // SAFETY: sums has a block.
                    unsafe { store_tiles(sums.as_mut_ptr()) };
                    before = Some(Summed { sums: sums.as_ptr(), place, add, last });
                }
            }
        }
    }
    if let Some(before) = before {
        // SAFETY: as above.
        unsafe { before.store(s, p, 0..BLOCK / ROWS) };
    }
}

/// The share of `turn` in `num_turns` of `len` things.
#[inline(always)]
fn share(len: usize, turn: usize, num_turns: usize) -> Range<usize> {
    len * turn / num_turns..len * (turn + 1) / num_turns
}

/// Asks for the share of `turn` in `num_turns` of a panel that was packed a while ago.
#[inline(always)]
fn fetch(panel: &[f32], turn: usize, num_turns: usize) {
    for line in share(panel.len() / TILE, turn, num_turns) {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(panel.as_ptr().wrapping_add(line * TILE).cast()) };
    }
}

/// Panels of one factor over a stretch of k, packed little by little.
struct Packer<'a> {
    side: Side,
    /// All rows of op(A) or columns of op(B) that have panels.
    outer: Range<usize>,
    depth: Range<usize>,
    to: &'a mut [f32],
}

impl Packer<'_> {
    /// Packs some of the tiles of the panel with number `panel` as the one at `place`: 32 rows of op(A) or columns of op(B), for each
    /// step of 32 along k one tile a part for the first half and for the second (not of A if that is empty). What lies outside is zero.
    ///
    /// # Safety
    /// All elements must be readable.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    unsafe fn pack(&mut self, s: Avx512, panel: usize, place: usize, tiles: Range<usize>, turned: &mut Turned) {
        let (side, num_steps) = (self.side, self.depth.len().div_ceil(STEP));
        let first = self.outer.start + panel * BLOCK;
        let num_outer = (self.outer.end - first).min(BLOCK);
        let len = num_steps * 2 * STEP_WORDS;
        let to = self.to[place * len..][..len].as_mut_ptr();
        for number in tiles {
            // Along the rows of what is stored, so that it is read in order.
            let place = |number: usize| {
                let (half, step) =
                    if side.depth == 1 { (number / num_steps, number % num_steps) } else { (number % 2, number / 2) };
                let (i, k) = (first + half * TILE, self.depth.start + step * STEP);
                (half, step, side.ptr.wrapping_add(i * side.outer + k * side.depth))
            };
            let (half, step, at) = place(number);
            let (i, k) = (half * TILE, step * STEP);
            if number + 1 < 2 * num_steps {
                side.fetch_tile(s, place(number + 1).2);
            }
            if i >= num_outer && !side.rows_are_deep {
                // Rows of A that `add_upper_step` does not read.
                continue;
            }
            // SAFETY: the tile lies in its panel; whole ones are readable, others as far as their counts say.
            unsafe {
                let to = to.add(step * 2 * STEP_WORDS + half * STEP_WORDS);
                if i + TILE <= num_outer && k + STEP <= self.depth.len() {
                    pack_whole_tile(s, side, at, turned, to);
                } else {
                    let num_outer = num_outer.saturating_sub(i).min(TILE);
                    let num_deep = [k, k + TILE].map(|k| self.depth.len().saturating_sub(k).min(TILE));
                    pack_tile(s, side, at, num_outer, num_deep, turned, to);
                }
            }
        }
    }
}

/// Rows of C that are stored at a time.
const ROWS: usize = 4;

/// A block of sums on its way to C.
#[derive(Clone, Copy)]
struct Summed {
    sums: *const f32,
    place: Place,
    add: bool,
    last: bool,
}

impl Summed {
    /// Writes some groups of [`ROWS`] rows to their place in C, with what `p` asks for.
    ///
    /// # Safety
    /// `sums` must be readable for a block, and the place must lie in C.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
    #[inline]
    unsafe fn store(&self, s: Avx512, p: &Product, groups: Range<usize>) {
        let Summed { sums, place, add, last } = *self;
        for group in groups {
            let r = group * ROWS;
            let num_rows = place.rows.saturating_sub(r).min(ROWS);
            let place = Place { at: place.at + r * p.ldc, rows: num_rows, ..place };
            // SAFETY: the contract is handed on, for some rows at a time.
            unsafe {
                let sums = sums.add(r * BLOCK);
                if place.cols < BLOCK || num_rows < ROWS || (last && p.finish.is_long()) {
                    store_any(s, sums, BLOCK, add, last, p, place);
                    continue;
                }
                let mut rows = [[s.splat(0.0); 2]; ROWS];
                for (i, row) in rows.iter_mut().enumerate() {
                    let from = sums.add(i * BLOCK);
                    *row = [s.load(from), s.load(from.add(TILE))];
                }
                store_whole(s, rows, add, last, p, place);
            }
        }
    }
}

/// The tile unit of this thread, set up; gives its state up in the end, so that no switch of threads has to save it.
struct Tiles(());

impl Tiles {
    /// Eight tiles of 16 rows of 64 bytes. Call only where [`is_there`] holds.
    fn configure() -> Self {
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
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: touches nothing but the state of the tiles, which nobody reads after this.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Begins sums of zero in the four tiles that [`add_step`] adds to.
#[inline(always)]
fn zero_tiles() {
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
/// `a` and `b` must be readable for a step; tiles must be configured.
#[inline(always)]
unsafe fn add_step(a: *const f32, b: *const f32) {
    // SAFETY: reads one step of each panel, as the contract allows; for the tiles see `zero_tiles`.
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

/// As [`add_step`] where the lower 16 rows of A are of no interest.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn add_upper_step(a: *const f32, b: *const f32) {
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
/// `sums` must be writable for 32 · 32 values; tiles must be configured.
#[inline(always)]
unsafe fn store_tiles(sums: *mut f32) {
    // SAFETY: writes 32 rows of 128 bytes, as the contract allows; for the tiles see `zero_tiles`.
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

/// Two squares of 16 by 16, turned.
#[repr(C, align(64))]
struct Turned([f32; 2 * TILE_WORDS]);

/// Packs the parts of one tile: row r holds pairs of the values at r of two squares of 16 by 16, the second 16 steps of k behind the
/// first. Which of k's steps make a pair does not matter, as both factors have the same.
///
/// # Safety
/// From `at`, 16 by 32 values must be readable; `to` must be writable for [`STEP_WORDS`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
#[inline]
unsafe fn pack_whole_tile(s: Avx512, side: Side, at: *const f32, turned: &mut Turned, to: *mut f32) {
    let second = TILE * side.depth;
    // SAFETY: by contract.
    unsafe {
        let (from, second, row_step) = match side.lies_across() {
            None => (at, second, if side.rows_are_deep { side.depth } else { side.outer }),
            Some(step) => {
                let square = turned.0.as_mut_ptr();
                s.transpose(at, step, TILE - 1, square, TILE);
                s.transpose(at.add(second), step, TILE - 1, square.add(TILE_WORDS), TILE);
                (square.cast_const(), TILE_WORDS, TILE)
            }
        };
        for r in 0..TILE {
            let row = from.add(r * row_step);
            store_pairs(s.load(row), s.load(row.add(second)), to.add(r * TILE));
        }
    }
}

/// As [`pack_whole_tile`] where only `num_outer` by `num_deep` values are there; zeros stand for the others.
///
/// # Safety
/// From `at`, these values must be readable; `to` must be writable for [`STEP_WORDS`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
#[inline(never)]
unsafe fn pack_tile(
    s: Avx512,
    side: Side,
    at: *const f32,
    num_outer: usize,
    num_deep: [usize; 2],
    turned: &mut Turned,
    to: *mut f32,
) {
    let squares = [at, at.wrapping_add(TILE * side.depth)];
    let (rows, lanes) = if side.rows_are_deep { (num_deep, [num_outer; 2]) } else { ([num_outer; 2], num_deep) };
    let (row_step, lane_step) = if side.rows_are_deep { (side.depth, side.outer) } else { (side.outer, side.depth) };
    // SAFETY: only elements inside the counts are read; rows 0..16 of each part are written.
    unsafe {
        turned.0.fill(0.0);
        let turned = turned.0.as_mut_ptr();
        for i in 0..2 {
            let turned = turned.add(i * TILE_WORDS);
            if side.lies_across().is_none() {
                for r in 0..rows[i] {
                    s.store(turned.add(r * TILE), s.load_n(squares[i].add(r * row_step), lanes[i]));
                }
            } else if rows[i] == TILE && lanes[i] > 0 {
                s.transpose(squares[i], lane_step, lanes[i] - 1, turned, TILE);
                for r in 0..TILE {
                    s.store(turned.add(r * TILE), s.keep(s.load(turned.add(r * TILE)), lanes[i]));
                }
            } else {
                for r in 0..rows[i] {
                    for l in 0..lanes[i] {
                        *turned.add(r * TILE + l) = *squares[i].add(r * row_step + l * lane_step);
                    }
                }
            }
        }
        for r in 0..TILE {
            store_pairs(s.load(turned.add(r * TILE)), s.load(turned.add(TILE_WORDS + r * TILE)), to.add(r * TILE));
        }
    }
}

/// Writes one row of each part's tile: pairs of the parts of `x` (low half) and `y`.
///
/// # Safety
/// `to` must be writable for a vector at each part's tile.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
#[inline]
unsafe fn store_pairs(x: __m512, y: __m512, to: *mut f32) {
    // SAFETY: the caller's token stands for these instructions.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let half = _mm512_set1_epi32(0x8000);
        // The nearest bf16 in the upper half, whatever in the lower.
        let nearest = |x: __m512| _mm512_add_epi32(_mm512_castps_si512(x), half);
        let rest = |x: __m512, high: __m512i| _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(high, upper)));
        // low | high & upper
        let pair = |x: __m512i, y: __m512i| _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(x), y, upper);
        let (x_high, y_high) = (nearest(x), nearest(y));
        _mm512_store_si512(to.cast(), pair(x_high, y_high));
        let (x, y) = (rest(x, x_high), rest(y, y_high));
        let (x_middle, y_middle) = (nearest(x), nearest(y));
        _mm512_store_si512(to.add(TILE_WORDS).cast(), pair(x_middle, y_middle));
        // What is left has 8 bits.
        let (x, y) = (rest(x, x_middle), rest(y, y_middle));
        _mm512_store_si512(to.add(2 * TILE_WORDS).cast(), pair(_mm512_castps_si512(x), _mm512_castps_si512(y)));
    }
}
