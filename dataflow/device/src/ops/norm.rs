//! Layer norm, its gradient and its tangent: a warp or block a row, rows of usual widths in registers.

use half::bf16;

use crate::memory::{ActView, Arg, View};
use crate::stream::Stream;

/// Added to the variance, as in timm's vision transformers.
const EPS: f32 = 1e-6;
/// Rows of a block, and its threads, where a warp has a row.
const ROWS_OF_BLOCK: usize = 4;
const WARP: usize = 32;

/// Number of rows of a tensor of `len` values, for a grid with a warp a row.
fn rows_of(len: usize, width: usize, what: &str) -> usize {
    assert!(width > 0 && len.is_multiple_of(width), "{what}: {len} values in rows of {width}");
    len / width
}

fn same_len(got: usize, wanted: usize, what: &str) {
    assert_eq!(got, wanted, "{what}");
}

fn warp_grid(rows: usize) -> [u32; 3] {
    [rows.div_ceil(ROWS_OF_BLOCK) as u32, 1, 1]
}

impl Stream {
    /// y = norm(x)·gamma + beta on every row, with eps = 10⁻⁶ and the biased variance.
    ///
    /// x and y [rows, width], gamma and beta \[width]; stats [rows, 2] receives each row's mean and 1/√(variance +
    /// eps).
    pub fn layer_norm(
        &self,
        y: ActView<'_>,
        stats: View<'_, f32>,
        x: View<'_, f32>,
        gamma: View<'_, f32>,
        beta: View<'_, f32>,
    ) {
        let width = gamma.len();
        let rows = rows_of(x.len(), width, "layer_norm: x");
        same_len(y.len(), x.len(), "layer_norm: y");
        same_len(stats.len(), 2 * rows, "layer_norm: stats");
        same_len(beta.len(), width, "layer_norm: beta");
        if rows == 0 {
            return;
        }
        let tensors = [y.arg(), stats.arg(), x.arg(), gamma.arg(), beta.arg()];
        let args = [&tensors[..], &[(rows as i64).into(), (width as i32).into(), EPS.into()]].concat();
        let threads = (ROWS_OF_BLOCK * WARP) as u32;
        self.launch(&format!("layer_norm_{}", y.suffix()), warp_grid(rows), threads, 0, &args);
    }

    /// sum = x + delta and y = norm(sum)·gamma + beta in one sweep; as [`Stream::layer_norm`]. sum may be x.
    #[expect(clippy::too_many_arguments, reason = "two operations in one sweep")]
    pub fn add_layer_norm(
        &self,
        sum: View<'_, f32>,
        y: ActView<'_>,
        stats: View<'_, f32>,
        x: View<'_, f32>,
        delta: ActView<'_>,
        gamma: View<'_, f32>,
        beta: View<'_, f32>,
    ) {
        let width = gamma.len();
        let rows = rows_of(x.len(), width, "add_layer_norm: x");
        same_len(sum.len(), x.len(), "add_layer_norm: sum");
        same_len(y.len(), x.len(), "add_layer_norm: y");
        same_len(delta.len(), x.len(), "add_layer_norm: delta");
        same_len(stats.len(), 2 * rows, "add_layer_norm: stats");
        same_len(beta.len(), width, "add_layer_norm: beta");
        assert_eq!(y.suffix(), delta.suffix(), "add_layer_norm: types of y and delta");
        if rows == 0 {
            return;
        }
        let tensors = [sum.arg(), y.arg(), stats.arg(), x.arg(), delta.arg(), gamma.arg(), beta.arg()];
        let args = [&tensors[..], &[(rows as i64).into(), (width as i32).into(), EPS.into()]].concat();
        let threads = (ROWS_OF_BLOCK * WARP) as u32;
        self.launch(&format!("add_layer_norm_{}", y.suffix()), warp_grid(rows), threads, 0, &args);
    }

    /// The gradient of [`Stream::layer_norm`] from its x, stats and gamma: dx = add + that of x.
    ///
    /// dx, add, low, dy and x [rows, width]; dx may be add. low receives dx in bf16. weights = (dgamma, dbeta), each
    /// \[width], are overwritten: sums over blocks of rows, of a size that the shape alone decides, are added in order.
    #[expect(clippy::too_many_arguments, reason = "one sweep for all that follows from dy")]
    pub fn layer_norm_grad(
        &self,
        dx: View<'_, f32>,
        low: Option<View<'_, bf16>>,
        add: Option<View<'_, f32>>,
        dy: ActView<'_>,
        x: View<'_, f32>,
        stats: View<'_, f32>,
        gamma: View<'_, f32>,
        weights: Option<(View<'_, f32>, View<'_, f32>)>,
    ) {
        let width = gamma.len();
        let rows = rows_of(x.len(), width, "layer_norm_grad: x");
        same_len(dx.len(), x.len(), "layer_norm_grad: dx");
        same_len(dy.len(), x.len(), "layer_norm_grad: dy");
        same_len(low.map_or(x.len(), View::len), x.len(), "layer_norm_grad: low");
        same_len(add.map_or(x.len(), View::len), x.len(), "layer_norm_grad: add");
        same_len(stats.len(), 2 * rows, "layer_norm_grad: stats");
        if let Some((dgamma, dbeta)) = weights {
            same_len(dgamma.len(), width, "layer_norm_grad: dgamma");
            same_len(dbeta.len(), width, "layer_norm_grad: dbeta");
            if rows == 0 {
                self.fill_zero(dgamma);
                self.fill_zero(dbeta);
            }
        }
        if rows == 0 {
            return;
        }
        let rows_of_part = match weights {
            Some(_) => rows.div_ceil(most_parts(width)).max(4),
            None => rows.div_ceil(2048).min(8),
        };
        let parts = rows.div_ceil(rows_of_part);
        let partials = weights.map(|_| self.take::<f32>(parts * 2 * width));
        let tensors = [dx.arg(), low.into(), add.into(), dy.arg(), x.arg(), stats.arg(), gamma.arg()];
        let sums = partials.as_ref().map_or(Arg::NONE, |partials| partials.view().arg());
        let sizes = [sums, (rows as i64).into(), (rows_of_part as i32).into(), (width as i32).into()];
        // Four columns a thread.
        let threads = width.div_ceil(4).next_multiple_of(WARP).min(512) as u32;
        let kernel = format!("layer_norm_grad_{}", dy.suffix());
        self.launch(&kernel, [parts as u32, 1, 1], threads, 0, &[&tensors[..], &sizes].concat());
        if let (Some((dgamma, dbeta)), Some(partials)) = (weights, partials) {
            self.finish_sums(dgamma, dbeta, partials.view(), false);
        }
    }

    /// The derivative of [`Stream::layer_norm`]'s y along dx, and along `moving` = (that of gamma, that of beta).
    ///
    /// dy, dx and x [rows, width].
    pub fn layer_norm_tangent(
        &self,
        dy: ActView<'_>,
        dx: View<'_, f32>,
        x: View<'_, f32>,
        stats: View<'_, f32>,
        gamma: View<'_, f32>,
        moving: Option<(View<'_, f32>, View<'_, f32>)>,
    ) {
        let width = gamma.len();
        let rows = rows_of(x.len(), width, "layer_norm_tangent: x");
        same_len(dy.len(), x.len(), "layer_norm_tangent: dy");
        same_len(dx.len(), x.len(), "layer_norm_tangent: dx");
        same_len(stats.len(), 2 * rows, "layer_norm_tangent: stats");
        let (dgamma, dbeta) = moving.unzip();
        same_len(dgamma.map_or(width, View::len), width, "layer_norm_tangent: dgamma");
        same_len(dbeta.map_or(width, View::len), width, "layer_norm_tangent: dbeta");
        if rows == 0 {
            return;
        }
        let tensors = [dy.arg(), dx.arg(), x.arg(), stats.arg(), gamma.arg(), dgamma.into(), dbeta.into()];
        let args = [&tensors[..], &[(rows as i64).into(), (width as i32).into()]].concat();
        let threads = (ROWS_OF_BLOCK * WARP) as u32;
        self.launch(&format!("layer_norm_tangent_{}", dy.suffix()), warp_grid(rows), threads, 0, &args);
    }

    /// The sums of partials [parts, first.len() + second.len()] over parts, in a fixed order: the first columns to
    /// `first`, the others to `second`, which are overwritten or, with `accumulate`, added to.
    pub(super) fn finish_sums(
        &self,
        first: View<'_, f32>,
        second: View<'_, f32>,
        partials: View<'_, f32>,
        accumulate: bool,
    ) {
        let columns = first.len() + second.len();
        let parts = rows_of(partials.len(), columns, "finish_sums: partials");
        let sizes = [parts, columns, first.len(), usize::from(accumulate)].map(|size| Arg::I32(size as i32));
        let args = [&[first.arg(), second.arg(), partials.arg()][..], &sizes].concat();
        self.launch("finish_sums", [columns.div_ceil(WARP) as u32, 1, 1], 1024, 0, &args);
    }
}

/// Blocks of rows that the gradient of the weights is summed in: enough to fill a device, and so few that partial sums
/// of this width stay a small part of what is read.
fn most_parts(width: usize) -> usize {
    (786_432 / width).clamp(64, 2048)
}

#[cfg(test)]
pub(super) mod tests;
