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
/// Longest block of k: a panel of B, 96 KiB, and the block of A share a second-level cache of 2 MiB.
const MAX_KC: usize = 512;
/// Rows of A that meet all panels of B in turn.
const MAX_MC: usize = 256;
/// Columns of B that are packed at a time.
const MAX_NC: usize = 2048;

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
    let nc = split(p.n, MAX_NC, BLOCK);
    let mc = split(p.m, MAX_MC, BLOCK);
    let panel = kc / STEP * 2 * STEP_WORDS;
    let (len_a, len_b) = (mc / BLOCK * panel, nc / BLOCK * panel);
    with_scratch(len_a + len_b + 2 * BLOCK * BLOCK, |scratch| {
        let (a, rest) = scratch.split_at_mut(len_a);
        let (b, sums) = rest.split_at_mut(len_b);
        // SAFETY: is_there() comes with AVX-512, and the pieces of scratch have the lengths that blocks() wants.
        unsafe { blocks(p, [mc, nc, kc], a, b, sums) };
    });
}

/// # Safety
/// As [`gemm`]; `a` and `b` must hold a block of A and of B, and `sums` two blocks of C.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn blocks(p: &Product, [mc, nc, kc]: [usize; 3], a: &mut [f32], b: &mut [f32], sums: &mut [f32]) {
    // SAFETY: the features of the token are those of this function.
    let s = unsafe { Avx512::new() };
    let _tiles = Tiles::configure();
    for pc in (0..p.k).step_by(kc) {
        let depth = pc..p.k.min(pc + kc);
        let (add, last) = (p.accumulate || pc > 0, depth.end == p.k);
        let num_steps = depth.len().div_ceil(STEP);
        let panel = num_steps * 2 * STEP_WORDS;
        for jc in (0..p.n).step_by(nc) {
            let cols = jc..p.n.min(jc + nc);
            // SAFETY: columns and depth lie in op(B), and b holds nc · kc values in parts.
            unsafe { pack(s, Side::b(p.b), cols.clone(), depth.clone(), b) };
            for ic in (0..p.m).step_by(mc) {
                let rows = ic..p.m.min(ic + mc);
                // SAFETY: as above, for op(A).
                unsafe { pack(s, Side::a(p.a), rows.clone(), depth.clone(), a) };
                for j in cols.clone().step_by(BLOCK) {
                    let b = &b[(j - jc) / BLOCK * panel..][..panel];
                    let mut before = None;
                    for (block, i) in rows.clone().step_by(BLOCK).enumerate() {
                        let a = &a[block * panel..][..panel];
                        let sums = &mut sums[block % 2 * BLOCK * BLOCK..][..BLOCK * BLOCK];
                        // SAFETY: both factors have these steps, and sums a block.
                        unsafe { multiply(a.as_ptr(), b.as_ptr(), num_steps, sums.as_mut_ptr()) };
                        let place = Place {
                            at: i * p.ldc + j,
                            col: j,
                            rows: BLOCK.min(rows.end - i),
                            cols: BLOCK.min(cols.end - j),
                        };
                        prefetch(s, p, place, place.rows, place.cols);
                        // The tiles are still at work on this block while the one before is stored.
                        if let Some((sums, place)) = before.replace((sums.as_ptr(), place)) {
                            // SAFETY: sums has a block, and the place lies in C.
                            unsafe { store_sums(s, sums, add, last, p, place) };
                        }
                    }
                    if let Some((sums, place)) = before {
                        // SAFETY: as above.
                        unsafe { store_sums(s, sums, add, last, p, place) };
                    }
                }
            }
        }
    }
}

/// Writes a block of sums to its place in C, with what `p` asks for.
///
/// # Safety
/// `sums` must be readable for a block, and the place must lie in C.
#[inline(always)]
unsafe fn store_sums(s: Avx512, sums: *const f32, add: bool, last: bool, p: &Product, place: Place) {
    const ROWS: usize = 4;
    // SAFETY: the contract is handed on, for some rows at a time.
    unsafe {
        if place.cols < BLOCK || !place.rows.is_multiple_of(ROWS) || (last && p.finish.is_long()) {
            store_any(s, sums, BLOCK, add, last, p, place);
            return;
        }
        for r in (0..place.rows).step_by(ROWS) {
            let mut rows = [[s.splat(0.0); 2]; ROWS];
            for (i, row) in rows.iter_mut().enumerate() {
                let from = sums.add((r + i) * BLOCK);
                *row = [s.load(from), s.load(from.add(TILE))];
            }
            store_whole(s, rows, add, last, p, Place { at: place.at + r * p.ldc, rows: ROWS, ..place });
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

/// sums [32, 32] = a panel of A times a panel of B over `num_steps` steps of k. Smaller products come first where loads allow it.
///
/// # Safety
/// `a` and `b` must be readable for a panel of `num_steps` > 0 steps, `sums` writable for 32 · 32 values; tiles must be configured.
#[inline(always)]
unsafe fn multiply(a: *const f32, b: *const f32, num_steps: usize, sums: *mut f32) {
    // SAFETY: the loop reads both panels step by step; 32 rows of 128 bytes are written after it, all within the contract.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
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
            "add {a}, 6144",
            "add {b}, 6144",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {stride} * 2], tmm0",
            "tilestored [{sums} + {stride} * 2 + 64], tmm1",
            "tilestored [{sums} + {stride} * 2 + 2048], tmm2",
            "tilestored [{sums} + {stride} * 2 + 2112], tmm3",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            steps = inout(reg) num_steps => _,
            stride = in(reg) 4 * TILE,
            sums = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Packs rows of op(A) or columns of op(B) over a stretch of k as panels of 32: for each step of 32, one tile a part for the first
/// half and for the second. What lies outside is zero.
///
/// # Safety
/// All elements must be readable; `to` must hold them, in whole blocks, in parts.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
#[inline]
unsafe fn pack(s: Avx512, side: Side, outer: Range<usize>, depth: Range<usize>, to: &mut [f32]) {
    let (num_halves, num_steps) = (outer.len().div_ceil(BLOCK) * 2, depth.len().div_ceil(STEP));
    assert!(to.len() >= num_halves * num_steps * STEP_WORDS);
    let to = to.as_mut_ptr();
    let whole = (outer.len() / TILE, depth.len() / STEP);
    let num_tiles = num_halves * num_steps;
    let mut turned = Turned([0.0; 2 * TILE_WORDS]);
    for number in 0..num_tiles {
        // Along the rows of what is stored, so that it is read in order.
        let (half, step) = if side.depth == 1 {
            (number / num_steps, number % num_steps)
        } else {
            (number % num_halves, number / num_halves)
        };
        let (i, k) = (half * TILE, step * STEP);
        // SAFETY: the tile lies in `to`; whole ones are readable, others as far as their counts say.
        unsafe {
            let at = side.ptr.wrapping_add((outer.start + i) * side.outer + (depth.start + k) * side.depth);
            let to = to.add((half / 2 * num_steps + step) * 2 * STEP_WORDS + half % 2 * STEP_WORDS);
            if half < whole.0 && step < whole.1 {
                pack_whole_tile(s, side, at, &mut turned, to);
            } else {
                let num_outer = outer.len().saturating_sub(i).min(TILE);
                let num_deep = [k, k + TILE].map(|k| depth.len().saturating_sub(k).min(TILE));
                pack_tile(s, side, at, num_outer, num_deep, &mut turned, to);
            }
        }
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
