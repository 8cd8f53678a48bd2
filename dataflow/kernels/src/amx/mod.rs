//! Products on the tile unit of newer Intel processors (AMX), in the accuracy of `f32` or, where that is asked for, of fewer bits.
//!
//! The unit multiplies bf16 and adds in `f32`, sixteen times as fast as fused additions of `f32` on the same core. A value of `f32` is
//! the sum of three bf16 values (8 bits of its 24 each), so a product of two is the sum of nine products of bf16, of which the three
//! smallest lie below 2⁻²⁵ of the whole, less than the rounding of one `f32`, and are left out. What six remain are summed in `f32`.
//! Values of more than 3.389·10³⁸ (half a bf16 step below the largest `f32`) and infinite ones become NaN, and parts below 2⁻¹²⁶
//! become zero. With two parts a factor has 16 bits and three products remain, with one part it is rounded to bf16.
//!
//! An element of C is a chain of additions in the order of k and of the six products, by blocks that depend on k alone: its bits depend
//! neither on m and n nor on its place.

use super::gemm::{Place, Product, split};
use super::scratch::with_scratch;
use super::x86::Avx512;
use pack::{Across, Along, Nothing, Packing, Side};
use queue::{Panels, Queue};
use rows::{Rows, Summed};
use tiles::{Beside, Tiles};

mod pack;
mod queue;
mod rows;
mod tiles;

pub(super) use tiles::is_there;

/// Rows of a tile; also its columns in values of 32 bits, which are pairs of bf16.
const TILE: usize = 16;
/// Steps of k that one tile holds.
const STEP: usize = 2 * TILE;
/// Rows and columns of C that are summed at a time: two by two tiles.
const BLOCK: usize = 2 * TILE;
/// bf16 parts of an `f32`, for which packed tiles have room; products may use fewer.
const MAX_PARTS: usize = 3;
/// `f32` places that a packed tile takes.
const TILE_WORDS: usize = TILE * TILE;
/// `f32` places that the parts of one step take for 16 rows or columns.
const STEP_WORDS: usize = MAX_PARTS * TILE_WORDS;
/// Shortest sum that is worth a tile.
const MIN_K: usize = 16;
/// Longest block of k: two sweeps of panels of B, up to 96 KiB each, and the block of A share a second-level cache of 2 MiB.
const MAX_KC: usize = 512;
/// Values of a block of A, whose rows meet all panels of B in turn: 576 KiB in parts.
const MAX_A: usize = 96 << 10;
/// Panels of B that meet a panel of A in turn.
const SWEEP: usize = 3;
/// Products between two turns of what is done for the rows of C.
const ROWS_EVERY: usize = 6;
/// Products between two stores that keep the way from the tiles awake.
const AWAKE_EVERY: usize = 96;
/// Values of panels of B that are kept for further blocks of A: 12 MiB in parts. More are packed again.
const MAX_B: usize = 1 << 21;

/// Products of tiles in a step of two by two tiles (`is_half`: of one by two), of values in so many parts.
const fn num_products(parts: usize, is_half: bool) -> usize {
    // Parts i and j, from 0, where i + j is less than their number.
    let pairs = parts * (parts + 1) / 2;
    if is_half { 2 * pairs } else { 4 * pairs }
}

/// Turns in a step of what is done for the rows of C.
const fn num_row_turns(parts: usize, is_half: bool) -> usize {
    num_products(parts, is_half).div_ceil(ROWS_EVERY)
}

/// Whether `p` should be computed here; depends on k alone, as its bits may depend on nothing else.
pub(super) fn suits(p: &Product) -> bool {
    p.k >= MIN_K
}

/// Computes `p` with factors in so many parts, 1 to 3.
///
/// # Safety
/// As [`super::gemm::gemm`]; [`is_there`] must hold.
pub(super) unsafe fn gemm(p: &Product, num_parts: usize) {
    // SAFETY: the contract is handed on.
    unsafe {
        match num_parts {
            1 => gemm_in::<1>(p),
            2 => gemm_in::<2>(p),
            _ => gemm_in::<MAX_PARTS>(p),
        }
    }
}

/// # Safety
/// As [`gemm`].
unsafe fn gemm_in<const PARTS: usize>(p: &Product) {
    let kc = split(p.k, MAX_KC, STEP);
    let mc = split(p.m, MAX_A / kc, BLOCK);
    let panel = kc / STEP * 2 * STEP_WORDS;
    let is_met_again = p.m > mc && p.n * kc <= MAX_B;
    let num_panels = p.n.div_ceil(BLOCK);
    let kept = if is_met_again { num_panels } else { num_panels.min(2 * SWEEP) };
    with_scratch((mc / BLOCK + kept) * panel + 2 * BLOCK * BLOCK + TILE_WORDS, |scratch| {
        let (a, rest) = scratch.split_at_mut(mc / BLOCK * panel);
        let (b, sums) = rest.split_at_mut(kept * panel);
        // SAFETY: is_there() comes with AVX-512, and the pieces of scratch have the lengths that blocks() wants.
        unsafe { blocks::<PARTS>(p, [mc, kc, kept], a, b, sums) };
    });
}

/// The tiles take their time over each product, in which the processor's other units pack what comes next and store the block of C before
/// this one. They do so a few instructions at a time between the single products, as the processor looks only some hundred instructions
/// ahead: up to one tile packed in a step of 24 products, and two rows stored in six of them, cost next to nothing so, while beside whole
/// steps nothing is hidden. [`SWEEP`] panels of B meet the rows of A together, so that A is not packed faster than that.
///
/// # Safety
/// As [`gemm`]; `a` must hold a block of A, `b` the `kept` panels of B (all or twice [`SWEEP`]), and `sums` two blocks of C and a tile.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn blocks<const PARTS: usize>(
    p: &Product,
    [mc, kc, kept]: [usize; 3],
    a: &mut [f32],
    b: &mut [f32],
    sums: &mut [f32],
) {
    // SAFETY: the features of the token are those of this function.
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
            let of_a = ic..p.m.min(ic + mc);
            let has_b = ic > 0 && kept == num_panels;
            let panels_a = Panels { side: Side::a(p.a), outer: of_a.clone(), to: a, num_places: mc / BLOCK };
            let panels_b = Panels { side: Side::b(p.b), outer: 0..p.n, to: b, num_places: kept };
            let mut queue = Queue::new(panels_a, panels_b, depth.clone(), SWEEP, has_b);
            let num_blocks = queue.a.len();
            for first in (0..num_panels).step_by(SWEEP) {
                let sweep = first..num_panels.min(first + SWEEP);
                queue.allow(first + 2 * SWEEP, num_blocks * sweep.len() * num_steps);
                if has_b && sweep.end < num_panels {
                    let len = (num_panels - sweep.end).min(SWEEP) * queue.panel_len();
                    let num_turns = num_blocks * sweep.len() * num_steps * num_row_turns(PARTS, false);
                    rows.ask_again(queue.packed_b(sweep.end), len, num_turns);
                }
                for block in 0..num_blocks {
                    for panel in sweep.clone() {
                        let (i, j) = (ic + block * BLOCK, panel * BLOCK);
                        let place = Place {
                            at: i * p.ldc + j,
                            col: j,
                            rows: BLOCK.min(of_a.end - i),
                            cols: BLOCK.min(p.n - j),
                        };
                        let is_half = place.rows <= TILE;
                        while queue.needs(block, panel) {
                            let Some(tile) = queue.take() else { break };
                            // SAFETY: tiles lie in the factors and in the scratch.
                            unsafe { tile.pack::<PARTS>(s) };
                        }
                        let (from_a, from_b) = (queue.packed_a(block), queue.packed_b(panel));
                        rows.begin(place, num_steps * num_row_turns(PARTS, is_half));
                        // SAFETY: both panels are packed; `sums` has room for a tile behind its two blocks.
                        unsafe {
                            let awake = sums.add(2 * BLOCK * BLOCK);
                            sum::<PARTS>(s, &unit, is_half, [from_a, from_b], num_steps, &mut queue, &mut rows, awake);
                        }
                        // SAFETY: as above; `sums` has two blocks.
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
    // SAFETY: as above.
    unsafe { rows.finish() };
}

/// Sums a block of C in the tiles, and packs what is next in the queue beside it.
///
/// # Safety
/// Both panels must have `num_steps` steps, the places of `queue` and `rows` must be accessible, and `awake` writable for a tile.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn sum<const PARTS: usize>(
    s: Avx512,
    unit: &Tiles,
    is_half: bool,
    [a, b]: [*const f32; 2],
    num_steps: usize,
    queue: &mut Queue,
    rows: &mut Rows,
    awake: *mut f32,
) {
    unit.zero();
    for step in 0..num_steps {
        let (a, b) = (a.wrapping_add(step * 2 * STEP_WORDS), b.wrapping_add(step * 2 * STEP_WORDS));
        // SAFETY: by contract.
        unsafe {
            if (step + 1) % (AWAKE_EVERY / num_products(PARTS, false)) == 0 {
                unit.keep_awake(awake);
            }
            match queue.take_due() {
                Some(tile) if tile.is_whole() && !tile.side.lies_across() => {
                    unit.add::<PARTS>(is_half, a, b, &mut Chores { s, packing: Along::<PARTS>::new(&tile), rows });
                }
                Some(tile) if tile.is_whole() => {
                    unit.add::<PARTS>(is_half, a, b, &mut Chores { s, packing: Across::<PARTS>::new(s, &tile), rows });
                }
                tile => {
                    unit.add::<PARTS>(is_half, a, b, &mut Chores { s, packing: Nothing, rows });
                    if let Some(tile) = tile {
                        tile.pack::<PARTS>(s);
                    }
                }
            }
        }
    }
}

/// What is done beside a step.
struct Chores<'a, 'b, P> {
    s: Avx512,
    packing: P,
    rows: &'a mut Rows<'b>,
}

impl<P: Packing> Beside for Chores<'_, '_, P> {
    #[inline(always)]
    unsafe fn turn<const I: usize, const N: usize>(&mut self) {
        // SAFETY: by contract.
        unsafe {
            self.packing.turn::<I, N>(self.s);
            if I % ROWS_EVERY == ROWS_EVERY - 1 || I + 1 == N {
                self.rows.turn();
            }
        }
    }
}
