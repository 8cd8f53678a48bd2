//! The order in which panels are packed.

use std::ops::Range;

use super::layout::{BLOCK, STEP, STEP_WORDS, TILE};
use super::pack::{Side, Tile};

/// The packed panels of one factor over a block of k. A panel has [`BLOCK`] rows of op(A) or columns of
/// op(B); for each step of k it holds a tile a part for its first 16, then for the others (but for A only
/// if it has others).
pub(super) struct Panels {
    pub(super) side: Side,
    /// All rows of op(A) or columns of op(B) that have panels.
    pub(super) outer: Range<usize>,
    pub(super) to: *mut f32,
    /// How many panels have room at `to`; panel i lies at place i modulo this.
    pub(super) num_places: usize,
}

impl Panels {
    pub(super) fn len(&self) -> usize {
        self.outer.len().div_ceil(BLOCK)
    }
}

/// The panels of one block of A and of all of B in the order of their use: the first of each, the others of
/// A, the others of B. A panel has a number in that order.
///
/// Fields are read with the width they were written with, so that store-to-load forwarding works. A wider
/// load waits until the store buffer has drained, and that drains after the tile stores.
pub(super) struct Queue {
    pub(super) a: Panels,
    pub(super) b: Panels,
    depth: Range<usize>,
    num_steps: usize,
    /// Panels of B before the second of A; 0 if B is packed already.
    num_first: usize,
    has_b: bool,
    /// The number after that of the last panel that may be packed by now.
    limit: usize,
    /// Tiles to pack, spread evenly over this many steps.
    num_tiles: usize,
    in_steps: usize,
    /// Tiles due, times `in_steps` (as Bresenham's line does).
    owed: usize,
    /// The panel that is being packed.
    number: usize,
    // Of that panel:
    side: Side,
    num_outer: usize,
    num_halves: usize,
    start: *const f32,
    to: *mut f32,
    // The next tile:
    half: usize,
    step: usize,
}

impl Queue {
    /// `sweep` panels of B are used with each panel of A; `has_b`: all of B is packed already.
    pub(super) fn new(a: Panels, b: Panels, depth: Range<usize>, sweep: usize, has_b: bool) -> Self {
        let num_first = if has_b { 0 } else { sweep.min(b.len()) };
        let (side, start, to) = (a.side, std::ptr::null(), std::ptr::null_mut());
        let num_steps = depth.len().div_ceil(STEP);
        let (limit, number, num_outer, num_halves, half, step) = (0, 0, 0, 0, 0, 0);
        let mut queue = Queue {
            a,
            b,
            depth,
            num_steps,
            num_first,
            has_b,
            limit,
            num_tiles: 0,
            in_steps: 0,
            owed: 0,
            number,
            side,
            num_outer,
            num_halves,
            start,
            to,
            half,
            step,
        };
        queue.begin();
        queue
    }

    /// `f32` places of a packed panel.
    pub(super) fn panel_len(&self) -> usize {
        self.num_steps * 2 * STEP_WORDS
    }

    /// Allows the first `num_panels_of_b` panels of B to be packed, spread evenly over the next `num_steps`
    /// steps.
    pub(super) fn allow(&mut self, num_panels_of_b: usize, num_steps: usize) {
        self.limit = self.a.len() + if self.has_b { 0 } else { num_panels_of_b.min(self.b.len()) };
        let num_tiles = self.limit.saturating_sub(self.number) * 2 * self.num_steps;
        (self.num_tiles, self.in_steps, self.owed) = (num_tiles, num_steps, 0);
    }

    /// The next tile, if one is due in this step.
    #[inline(always)]
    pub(super) fn take_due(&mut self) -> Option<Tile> {
        self.owed += self.num_tiles;
        if self.owed < self.in_steps {
            return None;
        }
        self.owed -= self.in_steps;
        self.take()
    }

    /// The place of a packed panel of A.
    pub(super) fn packed_a(&self, panel: usize) -> *const f32 {
        self.a.to.wrapping_add(panel % self.a.num_places * self.panel_len())
    }

    /// The place of a packed panel of B.
    pub(super) fn packed_b(&self, panel: usize) -> *const f32 {
        self.b.to.wrapping_add(panel % self.b.num_places * self.panel_len())
    }

    /// Whether panel `a` of A or panel `b` of B still lacks tiles.
    pub(super) fn needs(&self, a: usize, b: usize) -> bool {
        let number_of_a = if a == 0 { 0 } else { self.num_first + a };
        let number_of_b = if b < self.num_first { 1 + b } else { self.a.len() + b };
        self.number <= number_of_a || (!self.has_b && self.number <= number_of_b)
    }

    /// The next tile, if one may be packed by now.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<Tile> {
        if self.number >= self.limit {
            return None;
        }
        let (side, half, step, num_steps) = (self.side, self.half, self.step, self.num_steps);
        let (i, k) = (half * TILE, step * STEP);
        let at = self.start.wrapping_add(i * side.outer + k * side.depth);
        // Tiles follow the stored rows, so that memory is read in order; the prefetch is two tiles ahead.
        let (next_half, next_step, ahead) = if side.depth == 1 {
            let ahead = at.wrapping_add(2 * STEP);
            let over = TILE * side.outer;
            let ahead =
                if step + 2 < num_steps { ahead } else { ahead.wrapping_add(over).wrapping_sub(num_steps * STEP) };
            if step + 1 < num_steps { (half, step + 1, ahead) } else { (half + 1, 0, ahead) }
        } else {
            let ahead = if step + 1 < num_steps {
                at.wrapping_add(STEP * side.depth)
            } else {
                self.start.wrapping_add(BLOCK + i)
            };
            if half + 1 < self.num_halves { (half + 1, step, ahead) } else { (0, step + 1, ahead) }
        };
        let tile = Tile {
            side,
            at,
            ahead,
            num_outer: self.num_outer.saturating_sub(i).min(TILE),
            num_deep: [k, k + TILE].map(|k| self.depth.len().saturating_sub(k).min(TILE)),
            to: self.to.wrapping_add(step * 2 * STEP_WORDS + half * STEP_WORDS),
        };
        (self.half, self.step) = (next_half, next_step);
        if next_half == self.num_halves || next_step == num_steps {
            self.number += 1;
            self.begin();
        }
        Some(tile)
    }

    /// Sets the fields of panel `number`, if there is one.
    #[cold]
    #[inline(never)]
    fn begin(&mut self) {
        (self.half, self.step) = (0, 0);
        let (num_first, num_a) = (self.num_first, self.a.len());
        let (panels, panel) = match self.number {
            0 => (&self.a, 0),
            number if number <= num_first => (&self.b, number - 1),
            number if number < num_first + num_a => (&self.a, number - num_first),
            number => (&self.b, number - num_a),
        };
        if panel >= panels.len() {
            return;
        }
        let side = panels.side;
        let first = panels.outer.start + panel * BLOCK;
        self.side = side;
        self.num_outer = (panels.outer.end - first).min(BLOCK);
        self.num_halves = if side.rows_are_deep || self.num_outer > TILE { 2 } else { 1 };
        self.start = side.ptr.wrapping_add(first * side.outer + self.depth.start * side.depth);
        self.to = panels.to.wrapping_add(panel % panels.num_places * self.panel_len());
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::SWEEP;
    use super::*;
    use std::collections::{HashMap, HashSet};

    /// Takes tiles in the order of a product of `m` by `n` and returns how many. None may come too late,
    /// come twice, or overwrite a panel in use.
    fn take_all(m: usize, n: usize, k: usize, num_places: usize, has_b: bool) -> usize {
        let side = |rows_are_deep| Side { ptr: std::ptr::null(), outer: k, depth: 1, rows_are_deep };
        let (at_a, at_b) = (std::ptr::null_mut(), std::ptr::without_provenance_mut(1 << 40));
        let (num_blocks, num_panels) = (m.div_ceil(BLOCK), n.div_ceil(BLOCK));
        let a = Panels { side: side(false), outer: 0..m, to: at_a, num_places: num_blocks };
        let b = Panels { side: side(true), outer: 0..n, to: at_b, num_places };
        let mut queue = Queue::new(a, b, 0..k, SWEEP, has_b);
        let num_steps = k.div_ceil(STEP);
        // The place of a tile and the source of what it holds now.
        let mut held = HashMap::new();
        let mut sources = HashSet::new();
        for first in (0..num_panels).step_by(SWEEP) {
            let sweep = first..num_panels.min(first + SWEEP);
            queue.allow(first + 2 * SWEEP, num_blocks * sweep.len() * num_steps);
            for block in 0..num_blocks {
                for panel in sweep.clone() {
                    let mut take = |tile: Tile| {
                        assert!(sources.insert((tile.side.rows_are_deep, tile.at)), "a tile came twice");
                        held.insert(tile.to, (tile.side.rows_are_deep, tile.at));
                    };
                    while queue.needs(block, panel) {
                        take(queue.take().expect("what is needed may be packed"));
                    }
                    (0..num_steps).filter_map(|_| queue.take_due()).for_each(take);
                    // A half panel of A has no second half.
                    let halves = if m - block * BLOCK > TILE { 2 } else { 1 };
                    let used = [(false, queue.packed_a(block), block, halves), (true, queue.packed_b(panel), panel, 2)];
                    for (is_b, packed, number, halves) in used.into_iter().take(if has_b { 1 } else { 2 }) {
                        for (half, step) in (0..halves).flat_map(|half| (0..num_steps).map(move |step| (half, step))) {
                            let to = packed.wrapping_add((2 * step + half) * STEP_WORDS).cast_mut();
                            let i = number * BLOCK + half * TILE;
                            let source = side(is_b).ptr.wrapping_add(i * k + step * STEP);
                            assert_eq!(held.get(&to), Some(&(is_b, source)), "{m}x{n}x{k}: panel {number} of {is_b}");
                        }
                    }
                }
            }
        }
        assert!(queue.take().is_none());
        sources.len()
    }

    #[test]
    fn every_tile_is_packed_once_and_in_time() {
        for (m, n) in [(1_usize, 1_usize), (16, 32), (33, 500), (520, 192), (70, 96), (300, 97), (17, 1000)] {
            for k in [1_usize, 32, 33, 130] {
                let steps = k.div_ceil(STEP);
                let of_a = m.div_ceil(TILE) * steps;
                let of_b = 2 * n.div_ceil(BLOCK) * steps;
                let panels = n.div_ceil(BLOCK);
                assert_eq!(take_all(m, n, k, panels.min(2 * SWEEP), false), of_a + of_b);
                assert_eq!(take_all(m, n, k, panels, false), of_a + of_b);
                assert_eq!(take_all(m, n, k, panels, true), of_a);
            }
        }
    }
}
