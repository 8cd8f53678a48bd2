//! The blocked product on tiles.

use super::layout::*;
use super::pack::{Across, Along, Nothing, Packing, Side};
use super::queue::{Panels, Queue};
use super::rows::{Rows, Summed};
use super::tiles::{Beside, Tiles};
use crate::product::{Place, Product, split};
use crate::scratch::with_scratch;
use crate::x86::Avx512;

/// Whether `p` should be computed here; depends on k alone, as its bits may depend on nothing else.
pub(crate) fn suits(p: &Product) -> bool {
    p.k >= MIN_K
}

/// Computes `p` with factors in so many parts, 1 to 3.
///
/// # Safety
/// As [`crate::gemm::gemm`]; [`super::is_there`] must hold.
pub(crate) unsafe fn gemm(p: &Product, num_parts: usize) {
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
