//! Operations on rows of tokens: B images of L patches, of which n are visible, D columns.
//!
//! `kept` `[B, n]` names each image's visible patches in the order of their tokens, `rank` `[B, L]` the place of each
//! patch in the order of all; a patch is visible if its rank is below n. Sums over a batch are added in an order that
//! depends on the shape alone.

use super::vectors::sweep_grid;
use crate::memory::{ActView, Arg, View};
use crate::stream::Stream;

/// Threads of a block.
pub(super) const THREADS: u32 = 256;

/// Columns that a block sums.
const SUM_COLUMNS: usize = 128;

/// A size that a kernel takes as a 32-bit integer.
pub(super) fn int(size: usize) -> Arg {
    Arg::I32(i32::try_from(size).unwrap_or_else(|_| panic!("a size of {size} does not fit 32 bits")))
}

/// A size that a kernel takes as a 64-bit integer.
pub(super) const fn long(size: usize) -> Arg {
    Arg::I64(size as i64)
}

/// A grid of that many blocks.
pub(super) fn blocks(num: usize) -> [u32; 3] {
    [u32::try_from(num).unwrap_or_else(|_| panic!("a grid of {num} blocks is too large")), 1, 1]
}

/// The grid of `threads` threads.
pub(super) fn threads(num: usize) -> [u32; 3] {
    blocks(num.div_ceil(THREADS as usize))
}

/// `len` / `unit`, which must be whole.
#[track_caller]
pub(super) fn num_of(len: usize, unit: usize, what: &str) -> usize {
    assert!(unit > 0 && len.is_multiple_of(unit), "{what}: {len} values are no whole rows of {unit}");
    len / unit
}

/// Asserts a length.
#[track_caller]
pub(super) fn check(len: usize, wanted: usize, what: &str) {
    assert_eq!(len, wanted, "{what}: wrong length");
}

/// Asserts one type.
#[track_caller]
pub(super) fn same_type(a: ActView<'_>, b: ActView<'_>, what: &str) {
    assert_eq!(a.suffix(), b.suffix(), "{what}: two types of activations");
}

/// Values of 16 bytes.
fn values_of_16_bytes(x: ActView<'_>) -> usize {
    match x {
        ActView::F32(_) => 4,
        ActView::Bf16(_) => 8,
    }
}

/// What becomes of the sum of some rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum RowSum {
    /// It is the result.
    Set,
    /// It is added to what is there.
    Add,
    /// It is divided by the number of rows.
    Mean,
}

impl Stream {
    /// The visible rows: `out` `[B·n, w]` of `x` `[B·L, w]`, where `kept` `[B, n]` names them.
    pub fn gather_rows(&self, out: ActView<'_>, x: ActView<'_>, kept: View<'_, u32>, num_patches: usize) {
        if out.is_empty() {
            return;
        }
        let columns = num_of(out.len(), kept.len(), "gather_rows");
        let batch = num_of(x.len(), num_patches * columns, "gather_rows");
        let num_visible = num_of(kept.len(), batch, "gather_rows");
        same_type(out, x, "gather_rows");
        let args = [out.arg(), x.arg(), kept.arg(), long(out.len()), int(columns), int(num_patches), int(num_visible)];
        let kernel = format!("gather_rows_{}", out.suffix());
        self.launch(&kernel, sweep_grid(out.len(), values_of_16_bytes(out)), THREADS, 0, &args);
    }

    /// `out` `[B(1+n), D]`: for each image `cls` + the first row of `pos`, then its `embedded` patches `[B·n, D]`, each
    /// with its position. `pos` is `[1+L, D]`; without `kept` n = L.
    pub fn assemble_tokens(
        &self,
        out: View<'_, f32>,
        embedded: ActView<'_>,
        cls: View<'_, f32>,
        pos: View<'_, f32>,
        kept: Option<View<'_, u32>>,
        num_patches: usize,
    ) {
        if out.is_empty() {
            return;
        }
        let columns = cls.len();
        let rows = num_of(embedded.len(), columns, "assemble_tokens");
        let batch = num_of(out.len(), columns, "assemble_tokens").saturating_sub(rows);
        let num_visible = num_of(rows, batch, "assemble_tokens");
        check(pos.len(), (1 + num_patches) * columns, "assemble_tokens: pos");
        check(kept.map_or(num_patches * batch, View::len), rows, "assemble_tokens: kept");
        let args = [out.arg(), embedded.arg(), cls.arg(), pos.arg(), kept.into()];
        let sizes = [long(out.len()), int(columns), int(num_visible)];
        let kernel = format!("assemble_tokens_{}", embedded.suffix());
        self.launch(&kernel, sweep_grid(out.len(), 4), THREADS, 0, &[&args[..], &sizes].concat());
    }

    /// From the cotangent `dx` `[B(1+n), D]` of [`Stream::assemble_tokens`] those of its inputs, all overwritten.
    /// `rank` `[B, L]`; without it n = L.
    #[allow(clippy::too_many_arguments)]
    pub fn assemble_tokens_grad(
        &self,
        dembedded: ActView<'_>,
        dcls: View<'_, f32>,
        dpos: View<'_, f32>,
        dx: View<'_, f32>,
        rank: Option<View<'_, u32>>,
        num_patches: usize,
        num_visible: usize,
    ) {
        let columns = dcls.len();
        if columns == 0 {
            return;
        }
        let batch = num_of(dx.len(), (1 + num_visible) * columns, "assemble_tokens_grad");
        check(dembedded.len(), batch * num_visible * columns, "assemble_tokens_grad: dembedded");
        check(dpos.len(), (1 + num_patches) * columns, "assemble_tokens_grad: dpos");
        check(rank.map_or(batch * num_visible, View::len), batch * num_patches, "assemble_tokens_grad: rank");
        let args = [dembedded.arg(), dcls.arg(), dpos.arg(), dx.arg(), rank.into()];
        let sizes = [int(batch), int(columns), int(num_patches), int(num_visible)];
        let kernel = format!("assemble_tokens_grad_{}", dembedded.suffix());
        let grid = blocks((1 + num_patches) * columns.div_ceil(SUM_COLUMNS));
        self.launch(&kernel, grid, THREADS, 0, &[&args[..], &sizes].concat());
    }

    /// `out` = the first row of every `period` rows of `x`, or all but it; rows have `columns` columns.
    pub fn pick_rows(&self, out: ActView<'_>, x: ActView<'_>, columns: usize, period: usize, first: bool) {
        self.picked("pick_rows", out, x, [out.len(), x.len()], [columns, period], first);
    }

    /// The cotangent `dx` of all rows from `dy` of the rows that [`Stream::pick_rows`] picks; zero in the others.
    pub fn pick_rows_grad(&self, dx: ActView<'_>, dy: ActView<'_>, columns: usize, period: usize, first: bool) {
        self.picked("pick_rows_grad", dx, dy, [dy.len(), dx.len()], [columns, period], first);
    }

    /// A copy from or to the picked rows; `lens` are the number of picked values and of all.
    fn picked(
        &self,
        name: &str,
        to: ActView<'_>,
        from: ActView<'_>,
        lens: [usize; 2],
        [columns, period]: [usize; 2],
        first: bool,
    ) {
        let groups = num_of(lens[1], columns * period, name);
        check(lens[0], groups * columns * if first { 1 } else { period - 1 }, name);
        same_type(to, from, name);
        if to.is_empty() {
            return;
        }
        let sizes = [long(to.len()), int(columns), int(period), int(usize::from(first))];
        let kernel = format!("{name}_{}", to.suffix());
        let grid = sweep_grid(to.len(), values_of_16_bytes(to));
        self.launch(&kernel, grid, THREADS, 0, &[&[to.arg(), from.arg()][..], &sizes].concat());
    }

    /// The decoder's input `out` `[B(1+L), D]`: the CLS token of `x` `[B(1+n), D]`, then at each patch its token where
    /// it is visible, else `mask_token` `[D]`; to all of them is added `pos` `[1+L, D]`.
    #[allow(clippy::too_many_arguments)]
    pub fn unshuffle(
        &self,
        out: View<'_, f32>,
        x: ActView<'_>,
        rank: View<'_, u32>,
        mask_token: View<'_, f32>,
        pos: View<'_, f32>,
        num_patches: usize,
        num_visible: usize,
    ) {
        if out.is_empty() {
            return;
        }
        let columns = mask_token.len();
        let batch = num_of(out.len(), (1 + num_patches) * columns, "unshuffle");
        check(x.len(), batch * (1 + num_visible) * columns, "unshuffle: x");
        check(rank.len(), batch * num_patches, "unshuffle: rank");
        check(pos.len(), (1 + num_patches) * columns, "unshuffle: pos");
        let args = [out.arg(), x.arg(), rank.arg(), mask_token.arg(), pos.arg()];
        let sizes = [long(out.len()), int(columns), int(num_patches), int(num_visible)];
        let kernel = format!("unshuffle_{}", x.suffix());
        self.launch(&kernel, sweep_grid(out.len(), 4), THREADS, 0, &[&args[..], &sizes].concat());
    }

    /// From the cotangent `dy` `[B(1+L), D]` of [`Stream::unshuffle`] those of its inputs, all overwritten. `kept`
    /// `[B, n]` and `rank` `[B, L]` are of the same order.
    #[allow(clippy::too_many_arguments)]
    pub fn unshuffle_grad(
        &self,
        dx: ActView<'_>,
        dmask_token: View<'_, f32>,
        dpos: View<'_, f32>,
        dy: View<'_, f32>,
        kept: View<'_, u32>,
        rank: View<'_, u32>,
        num_patches: usize,
        num_visible: usize,
    ) {
        let columns = dmask_token.len();
        if columns == 0 {
            return;
        }
        let batch = num_of(dy.len(), (1 + num_patches) * columns, "unshuffle_grad");
        check(dx.len(), batch * (1 + num_visible) * columns, "unshuffle_grad: dx");
        check(kept.len(), batch * num_visible, "unshuffle_grad: kept");
        check(rank.len(), batch * num_patches, "unshuffle_grad: rank");
        check(dpos.len(), (1 + num_patches) * columns, "unshuffle_grad: dpos");
        let masked = self.take::<f32>(num_patches * columns);
        let args = [dx.arg(), masked.view().arg(), dpos.arg(), dy.arg(), rank.arg()];
        let sizes = [int(batch), int(columns), int(num_patches), int(num_visible)];
        let kernel = format!("unshuffle_grad_{}", dx.suffix());
        let grid = blocks((1 + num_patches) * columns.div_ceil(SUM_COLUMNS));
        self.launch(&kernel, grid, THREADS, 0, &[&args[..], &sizes].concat());
        self.sum_rows(dmask_token, masked.view(), num_patches, [columns; 2], RowSum::Set);
    }

    /// The mean `[groups, columns]` of every `period` rows of `x` `[groups·period, columns]`.
    pub fn mean_rows(&self, out: View<'_, f32>, x: View<'_, f32>, columns: usize, period: usize) {
        check(x.len(), out.len() * period, "mean_rows");
        self.sum_rows(out, x, period, [columns; 2], RowSum::Mean);
    }

    /// Each row of `x` `[rows, columns]` `period` times: `[rows·period, columns]`.
    pub fn repeat_rows(&self, out: View<'_, f32>, x: View<'_, f32>, columns: usize, period: usize) {
        check(out.len(), x.len() * period, "repeat_rows");
        // Of groups of one row, the first.
        let first = self.zeros::<u32>(num_of(out.len(), columns, "repeat_rows"));
        self.gather_rows(out.into(), x.into(), first.view(), 1);
    }

    /// `out` `[groups, columns]` = a sum of each group of `rows` rows of `x`, whose rows are `stride` apart. `x` may
    /// begin within a row, and end with the last value that is read.
    pub(super) fn sum_rows(
        &self,
        out: View<'_, f32>,
        x: View<'_, f32>,
        rows: usize,
        [columns, stride]: [usize; 2],
        sum: RowSum,
    ) {
        if out.is_empty() {
            return;
        }
        let groups = num_of(out.len(), columns, "sum_rows");
        let wanted = (groups * rows * stride + columns).saturating_sub(stride);
        assert!(columns <= stride && x.len() >= wanted, "sum_rows: {} values, not {wanted}", x.len());
        let mode = match sum {
            RowSum::Set => 0,
            RowSum::Add => 1,
            RowSum::Mean => 2,
        };
        let args = [out.arg(), x.arg(), int(rows), long(stride), long(columns), Arg::I32(mode)];
        self.launch("sum_rows", blocks(groups * columns.div_ceil(SUM_COLUMNS)), THREADS, 0, &args);
    }
}

#[cfg(test)]
pub(super) mod tests;
