//! Deterministic sums of floats: their bits do not depend on which thread adds, or when.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use crate::parallel::arena::{Arena, Buffer};
use crate::parallel::compute::lock;
use mlomae_kernels as kernels;

/// The fixed order of addition (pairwise summation): the sum of n > 1 parts is the sum of the first 2ᵏ parts, for the k
/// with 2ᵏ < n ≤ 2ᵏ⁺¹, plus the sum of the rest.
///
/// Aligned groups of 2ᵏ parts are branches of this tree: so sums within micro-batches, followed by a sum over
/// micro-batches, add in the same order as one sum over all parts.
#[derive(Clone, Copy, Debug)]
pub struct Tree;

impl Tree {
    /// Writes the sum of the parts `0..num` to `out`. `part(i, target)` must overwrite `target` with part i; it is
    /// called once for each part, in order.
    pub fn sum(arena: &Arena, out: &mut [f32], num: usize, mut part: impl FnMut(usize, &mut [f32])) {
        Self::branch(arena, out, 0..num, &mut part);
    }

    fn branch(arena: &Arena, out: &mut [f32], parts: Range<usize>, part: &mut impl FnMut(usize, &mut [f32])) {
        match parts.len() {
            0 => out.fill(0.0),
            1 => part(parts.start, out),
            num => {
                let middle = parts.start + (num.next_power_of_two() >> 1);
                Self::branch(arena, out, parts.start..middle, part);
                let mut rest = arena.take(out.len());
                Self::branch(arena, &mut rest, middle..parts.end, part);
                kernels::add(out, &rest);
            }
        }
    }
}

/// The sum along the [`Tree`] of parts of any type, which arrive in any order and from any thread. Memory holds the parts
/// whose other half of a branch has not arrived.
#[derive(Debug)]
pub struct TreeSum<T> {
    num: usize,
    /// Sums of branches, by level and place.
    waiting: Mutex<HashMap<(u32, usize), T>>,
    total: Mutex<Option<T>>,
}

impl<T> TreeSum<T> {
    /// A sum of `num` parts.
    #[must_use]
    pub fn new(num: usize) -> Self {
        TreeSum { num, waiting: Mutex::default(), total: Mutex::new(None) }
    }

    /// Adds part `index`, each once; `merge` adds its second argument, which comes later in the batch, to its first.
    pub fn add(&self, index: usize, mut part: T, merge: impl Fn(&mut T, T)) {
        debug_assert!(index < self.num);
        let (mut level, mut place) = (0, index);
        while place != 0 || 1 << level < self.num {
            let sibling = place ^ 1;
            if sibling << level < self.num {
                let mut waiting = lock(&self.waiting);
                let Some(other) = waiting.remove(&(level, sibling)) else {
                    waiting.insert((level, place), part);
                    return;
                };
                drop(waiting);
                let [mut left, right] = if place % 2 == 1 { [other, part] } else { [part, other] };
                merge(&mut left, right);
                part = left;
            }
            (level, place) = (level + 1, place / 2);
        }
        *lock(&self.total) = Some(part);
    }

    /// The sum, after the last [`TreeSum::add`]; none if a part is missing.
    pub fn finish(&self) -> Option<T> {
        lock(&self.total).take()
    }
}

/// The sum of several flat vectors (the gradients of micro-batches) along the [`Tree`], range by range (weight by
/// weight), where ranges arrive in any order and from any thread.
///
/// Two halves of a branch are merged as soon as both are there, which frees a buffer: so only what one thread is ahead
/// of another stays in memory. The threads that are ahead do the merging: a call whose values must wait for their other
/// half merges a branch that another call has completed.
#[derive(Debug)]
pub struct OrderedSum {
    arena: Arena,
    num: usize,
    len: usize,
    branches: Mutex<Branches>,
    /// The whole vector, with the sums of the ranges that are complete; empty before the first.
    total: Mutex<Buffer>,
}

#[derive(Debug, Default)]
struct Branches {
    /// Sums of branches whose sibling has not arrived.
    waiting: HashMap<Branch, Buffer>,
    /// Branches of which both halves have arrived, to be merged.
    ready: Vec<(Branch, [Buffer; 2])>,
    /// Ranges that are complete in the total.
    whole: Vec<Range<usize>>,
}

/// A node of the tree: of the range that begins at `start`, vectors `place << level..(place + 1) << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Branch {
    start: usize,
    level: u32,
    place: usize,
}

impl Branch {
    /// The branch of which this one is a half, and whether it is the right half.
    fn parent(self) -> (Branch, bool) {
        (Branch { level: self.level + 1, place: self.place / 2, ..self }, self.place % 2 == 1)
    }
}

impl OrderedSum {
    /// A sum of `num` vectors of `len` values.
    #[must_use]
    pub fn new(arena: &Arena, num: usize, len: usize) -> Self {
        let (branches, total) = (Mutex::default(), Mutex::default());
        OrderedSum { arena: arena.clone(), num, len, branches, total }
    }

    /// Values of each vector.
    pub fn num_values(&self) -> usize {
        self.len
    }

    /// Adds the values that vector `index` has at `range`. All vectors must be cut into the same ranges, each added
    /// once; ranges that are not added for any vector are zero in the sum.
    pub fn add(&self, index: usize, range: Range<usize>, values: Buffer) {
        debug_assert!(index < self.num && range.end <= self.len && values.len() == range.len());
        let has_completed = self.arrive(Branch { start: range.start, level: 0, place: index }, values);
        let mut branches = lock(&self.branches);
        if branches.ready.len() > usize::from(has_completed)
            && let Some((branch, halves)) = branches.ready.pop()
        {
            drop(branches);
            self.merge(branch, halves);
        }
    }

    /// Whether `branch` covers all vectors.
    fn is_whole(&self, branch: Branch) -> bool {
        branch.place == 0 && 1 << branch.level >= self.num
    }

    /// Stores the sum of a branch, or makes its parent ready if the sibling is there. Returns whether it did the
    /// latter.
    fn arrive(&self, mut branch: Branch, values: Buffer) -> bool {
        loop {
            if self.is_whole(branch) {
                self.put(branch.start, values.len(), |total| total.copy_from_slice(&values));
                return false;
            }
            let sibling = Branch { place: branch.place ^ 1, ..branch };
            let (parent, is_right) = branch.parent();
            // A sibling that would begin after the last vector does not exist: then the parent is this branch alone.
            if sibling.place << sibling.level < self.num {
                let mut branches = lock(&self.branches);
                let Some(other) = branches.waiting.remove(&sibling) else {
                    branches.waiting.insert(branch, values);
                    return false;
                };
                branches.ready.push((parent, if is_right { [other, values] } else { [values, other] }));
                return true;
            }
            branch = parent;
        }
    }

    /// Adds the two halves of a branch, left plus right.
    fn merge(&self, branch: Branch, [mut left, right]: [Buffer; 2]) {
        if self.is_whole(branch) {
            self.put(branch.start, left.len(), |total| kernels::scale_add(total, &left, 1.0, &right));
        } else {
            kernels::add(&mut left, &right);
            drop(right);
            self.arrive(branch, left);
        }
    }

    /// Has `write` overwrite a range of the total with its complete sum.
    fn put(&self, start: usize, len: usize, write: impl FnOnce(&mut [f32])) {
        let mut total = lock(&self.total);
        if total.is_empty() {
            *total = self.arena.take(self.len);
        }
        write(&mut total[start..start + len]);
        drop(total);
        lock(&self.branches).whole.push(start..start + len);
    }

    /// The sum, after the last [`OrderedSum::add`]; none if a range was not added for all vectors, or nothing was
    /// added.
    pub fn finish(&self) -> Option<Buffer> {
        loop {
            let next = lock(&self.branches).ready.pop();
            let Some((branch, halves)) = next else { break };
            self.merge(branch, halves);
        }
        let Branches { waiting, mut whole, .. } = std::mem::take(&mut *lock(&self.branches));
        let mut total = std::mem::take(&mut *lock(&self.total));
        if !waiting.is_empty() || whole.is_empty() {
            return None;
        }
        whole.sort_by_key(|range| range.start);
        let mut end = 0;
        for range in whole {
            total[end..range.start].fill(0.0);
            end = range.end;
        }
        total[end..].fill(0.0);
        Some(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(num: usize) -> Vec<Vec<f32>> {
        (0..num).map(|i| vec![0.1 * 10f32.powi(i as i32 % 7), 1e-3, -7.0 / (i as f32 + 1.0)]).collect()
    }

    #[test]
    fn sums_do_not_depend_on_arrival() {
        for num in 1..=9 {
            let parts = parts(num);
            let sum = |order: &mut dyn Iterator<Item = usize>| {
                let s = OrderedSum::new(&Arena::new(), num, 3);
                order.for_each(|i| s.add(i, 0..3, Buffer::from_vec(parts[i].clone())));
                s.finish().unwrap().to_vec()
            };
            let straight = sum(&mut (0..num));
            assert_eq!(straight, sum(&mut (0..num).rev()), "{num}");
            assert_eq!(straight, sum(&mut (0..num).step_by(2).chain((1..num).step_by(2))), "{num}");
        }
    }

    #[test]
    fn parts_of_any_type_are_added_as_vectors_are() {
        for num in 1..=19 {
            let parts = parts(num);
            let mut whole = [0.0; 3];
            Tree::sum(&Arena::new(), &mut whole, num, |i, out| out.copy_from_slice(&parts[i]));
            for step in [1, 2, 5] {
                let sum = TreeSum::new(num);
                for i in (0..step).flat_map(|first| (first..num).rev().filter(move |i| i % step == first % step)) {
                    assert!(sum.finish().is_none());
                    sum.add(i, parts[i].clone(), |all, part| all.iter_mut().zip(part).for_each(|(all, v)| *all += v));
                }
                assert_eq!(sum.finish().unwrap(), whole, "{num} {step}");
            }
        }
    }

    #[test]
    fn branches_of_any_size_make_the_same_sum() {
        let arena = Arena::new();
        for num in 1..=23 {
            let parts = parts(num);
            let mut whole = [0.0; 3];
            Tree::sum(&arena, &mut whole, num, |i, out| out.copy_from_slice(&parts[i]));
            for size in [1, 2, 4, 8, 16] {
                let pieces: Vec<Range<usize>> = (0..num).step_by(size).map(|i| i..(i + size).min(num)).collect();
                let sum = OrderedSum::new(&arena, pieces.len(), 3);
                for (i, piece) in pieces.into_iter().enumerate().rev() {
                    let mut branch = arena.take(3);
                    Tree::sum(&arena, &mut branch, piece.len(), |j, out| out.copy_from_slice(&parts[piece.start + j]));
                    sum.add(i, 0..3, branch);
                }
                assert_eq!(sum.finish().unwrap()[..], whole, "{num} parts in pieces of {size}");
            }
        }
    }

    /// Seven vectors in two ranges, with gaps before, between and after them, from several threads.
    #[test]
    fn ranges_are_summed_each_for_itself() {
        let (num, ranges) = (7, [2..5, 6..9]);
        let parts = parts(num);
        let arena = Arena::new();
        let mut want = [0.0; 3];
        Tree::sum(&arena, &mut want, num, |i, out| out.copy_from_slice(&parts[i]));
        for _ in 0..20 {
            let sum = OrderedSum::new(&arena, num, 11);
            arena.take(11).fill(f32::NAN);
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (sum, parts, ranges, arena) = (&sum, &parts, &ranges, &arena);
                    scope.spawn(move || {
                        for i in (thread..num).step_by(3) {
                            ranges.iter().for_each(|range| sum.add(i, range.clone(), arena.copy_of(&parts[i])));
                        }
                    });
                }
            });
            let sum = sum.finish().unwrap();
            assert!(ranges.iter().all(|range| sum[range.clone()] == want));
            assert!([0, 1, 5, 9, 10].iter().all(|&gap| sum[gap] == 0.0));
        }
    }

    #[test]
    fn a_sum_with_a_piece_missing_is_none() {
        for came in [&[][..], &[0], &[0, 2], &[0, 1], &[2]] {
            let sum = OrderedSum::new(&Arena::new(), 3, 1);
            came.iter().for_each(|&i| sum.add(i, 0..1, Buffer::from_vec(vec![1.0])));
            assert!(sum.finish().is_none(), "{came:?}");
        }
    }
}
