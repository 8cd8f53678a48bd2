//! The blocked product on tiles.
//!
//! While the tile unit multiplies, the vector units pack the tiles needed next and store the previous block
//! of C (the epilogue). Both are interleaved with the TDPBF16PS, a few instructions each, because the
//! out-of-order window holds only a few hundred instructions: run next to whole steps of k, nothing would
//! overlap. Interleaved, up to one packed tile in a step of 24 products and two stored rows in every six
//! products cost next to nothing.

use super::layout::*;
use super::pack::{Contiguous, NoTile, Packing, Side, Transposed};
use super::queue::{Panels, Queue};
use super::rows::{Rows, Summed};
use super::tiles::{Interleaved, Tiles};
use crate::bf16::Factors;
use crate::product::{Place, Product, split};
use crate::scratch::with_scratch;
use crate::x86::Avx512;

/// Whether `p` should be computed here. This depends on k alone, so that the bits of a row of C do not
/// depend on m and n.
pub(crate) fn suits(p: &Product) -> bool {
    p.k >= MIN_K
}

/// Computes `p`: with one bf16 part for a factor, or with three, which hold all bits of an `f32`.
///
/// # Safety
/// As [`crate::gemm::gemm`]; [`super::is_available`] must hold, and the processor must have AVX-512 F, VL,
/// BW and DQ.
pub(crate) unsafe fn gemm(p: &Product, factors: Factors) {
    // SAFETY: multiply() of matmul.rs passes matrices that run() checked, and calls this only where isa()
    // is AMX.
    unsafe {
        match factors {
            Factors::Bf16 => gemm_in::<1>(p),
            Factors::F32 => gemm_in::<MAX_PARTS>(p),
        }
    }
}

/// [`gemm`] with a constant number of parts.
///
/// # Safety
/// As [`gemm`].
unsafe fn gemm_in<const PARTS: usize>(p: &Product) {
    let kc = split(p.k, MAX_KC, STEP);
    let mc = split(p.m, MAX_A / kc, BLOCK);
    let panel = kc / STEP * 2 * STEP_WORDS;
    let reuses_b = p.m > mc && p.n * kc <= MAX_B;
    let num_panels = p.n.div_ceil(BLOCK);
    let kept = if reuses_b { num_panels } else { num_panels.min(2 * SWEEP) };
    with_scratch((mc / BLOCK + kept) * panel + 2 * BLOCK * BLOCK + TILE_WORDS, |scratch| {
        let (a, rest) = scratch.split_at_mut(mc / BLOCK * panel);
        let (b, sums) = rest.split_at_mut(kept * panel);
        // SAFETY: gemm()'s caller guarantees AVX-512. `a` has mc / BLOCK panels, `b` has `kept`, `sums` the
        // rest, each a whole number of cache lines of scratch that begins a cache line.
        unsafe { blocks::<PARTS>(p, [mc, kc, kept], a, b, sums) };
    });
}

/// Loops over blocks of k, blocks of rows, sweeps of panels of B, panels of A, and the panels of a sweep.
///
/// # Safety
/// As [`gemm`]. `a` must have room for mc / BLOCK packed panels of kc steps, `b` for `kept` (all, or twice
/// [`SWEEP`]), `sums` for two blocks of C and a tile; all must begin a cache line.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn blocks<const PARTS: usize>(
    p: &Product,
    [mc, kc, kept]: [usize; 3],
    a: &mut [f32],
    b: &mut [f32],
    sums: &mut [f32],
) {
    // SAFETY: the target features of this function are those of the token.
    let s = unsafe { Avx512::new() };
    let unit = Tiles::configure();
    let num_panels = p.n.div_ceil(BLOCK);
    assert!(sums.len() >= 2 * BLOCK * BLOCK + TILE_WORDS);
    let (a, b, sums) = (a.as_mut_ptr(), b.as_mut_ptr(), sums.as_mut_ptr());
    let (mut rows, mut num_summed) = (Rows::new(s, p), 0);
    for pc in (0..p.k).step_by(kc) {
        let depth = pc..p.k.min(pc + kc);
        let (add, last) = (p.accumulate || pc > 0, depth.end == p.k);
        let num_steps = depth.len().div_ceil(STEP);
        for ic in (0..p.m).step_by(mc) {
            let rows_of_a = ic..p.m.min(ic + mc);
            let has_b = ic > 0 && kept == num_panels;
            let panels_a = Panels { side: Side::a(p.a), outer: rows_of_a.clone(), to: a, num_places: mc / BLOCK };
            let panels_b = Panels { side: Side::b(p.b), outer: 0..p.n, to: b, num_places: kept };
            let mut queue = Queue::new(panels_a, panels_b, depth.clone(), SWEEP, has_b);
            let num_blocks = queue.a.len();
            for first in (0..num_panels).step_by(SWEEP) {
                let sweep = first..num_panels.min(first + SWEEP);
                queue.allow(first + 2 * SWEEP, num_blocks * sweep.len() * num_steps);
                if has_b && sweep.end < num_panels {
                    let len = (num_panels - sweep.end).min(SWEEP) * queue.panel_len();
                    let num_slots = num_blocks * sweep.len() * num_steps * num_row_slots(PARTS, false);
                    rows.prefetch_later(queue.packed_b(sweep.end), len, num_slots);
                }
                for block in 0..num_blocks {
                    for panel in sweep.clone() {
                        let (i, j) = (ic + block * BLOCK, panel * BLOCK);
                        let place = Place {
                            at: i * p.ldc + j,
                            col: j,
                            rows: BLOCK.min(rows_of_a.end - i),
                            cols: BLOCK.min(p.n - j),
                        };
                        let is_half = place.rows <= TILE;
                        while queue.needs(block, panel) {
                            let Some(tile) = queue.take() else { break };
                            // SAFETY: the queue cuts tiles inside op(A) and op(B), and gives each its place
                            // in a panel of `a` or `b`.
                            unsafe { tile.pack::<PARTS>(s) };
                        }
                        let (from_a, from_b) = (queue.packed_a(block), queue.packed_b(panel));
                        rows.begin(place, num_steps * num_row_slots(PARTS, is_half));
                        // SAFETY: queue.needs() is false, so both panels are packed; asserted above, `sums`
                        // has a tile after its two blocks; the queue's tiles and the epilogue's rows lie in
                        // the matrices of `p`.
                        unsafe {
                            let dummy = sums.add(2 * BLOCK * BLOCK);
                            sum_block::<PARTS>(
                                s,
                                &unit,
                                is_half,
                                [from_a, from_b],
                                num_steps,
                                &mut queue,
                                &mut rows,
                                dummy,
                            );
                        }
                        // SAFETY: of the two blocks of `sums`, this is the one that the epilogue is done
                        // with; `place` lies in C.
                        unsafe {
                            let sums = sums.add(num_summed % 2 * BLOCK * BLOCK);
                            num_summed += 1;
                            unit.store(sums);
                            rows.hand_over(Summed { sums, place, add, last });
                        }
                    }
                }
            }
        }
    }
    // SAFETY: the last block's sums are in the scratch, and its place lies in C.
    unsafe { rows.finish() };
}

/// Sums a block of C in the accumulator tiles, interleaved with packing what the queue has due and with the
/// epilogue.
///
/// # Safety
/// Both panels must have `num_steps` packed steps, the tiles of `queue` and the places of `rows` must lie
/// in the matrices and the scratch, and `dummy` must be writable for a tile.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn sum_block<const PARTS: usize>(
    s: Avx512,
    unit: &Tiles,
    is_half: bool,
    [a, b]: [*const f32; 2],
    num_steps: usize,
    queue: &mut Queue,
    rows: &mut Rows,
    dummy: *mut f32,
) {
    unit.zero();
    for step in 0..num_steps {
        let (a, b) = (a.wrapping_add(step * 2 * STEP_WORDS), b.wrapping_add(step * 2 * STEP_WORDS));
        // SAFETY: step < num_steps, so blocks() made this step of both panels readable; it also made
        // `dummy` writable and the pointers of `queue` and `rows` valid.
        unsafe {
            if (step + 1) % (DUMMY_STORE_EVERY / num_products(PARTS, false)) == 0 {
                unit.dummy_store(dummy);
            }
            match queue.take_due() {
                Some(tile) if tile.is_whole() && !tile.side.needs_transpose() => {
                    unit.add::<PARTS>(
                        is_half,
                        a,
                        b,
                        &mut SlotWork { s, packing: Contiguous::<PARTS>::new(&tile), rows },
                    );
                }
                Some(tile) if tile.is_whole() => {
                    unit.add::<PARTS>(
                        is_half,
                        a,
                        b,
                        &mut SlotWork { s, packing: Transposed::<PARTS>::new(s, &tile), rows },
                    );
                }
                tile => {
                    unit.add::<PARTS>(is_half, a, b, &mut SlotWork { s, packing: NoTile, rows });
                    if let Some(tile) = tile {
                        tile.pack::<PARTS>(s);
                    }
                }
            }
        }
    }
}

/// What is interleaved with one step: packing of a tile, and the epilogue of the previous block.
struct SlotWork<'a, 'b, P> {
    s: Avx512,
    packing: P,
    rows: &'a mut Rows<'b>,
}

impl<P: Packing> Interleaved for SlotWork<'_, '_, P> {
    #[inline(always)]
    unsafe fn slot<const I: usize, const N: usize>(&mut self) {
        // SAFETY: sum_block() has AVX-512 and valid pointers, and calls the slots of a step in their order.
        unsafe {
            self.packing.slot::<I, N>(self.s);
            if I % ROWS_EVERY == ROWS_EVERY - 1 || I + 1 == N {
                self.rows.slot();
            }
        }
    }
}
