//! Sweeps over activations: GELU, ReLU and sigmoid with their derivatives, casts, sums, and sums over rows.

use half::bf16;

use super::vectors::sweep_grid;
use crate::memory::{ActView, Arg, View};
use crate::stream::Stream;

/// Threads of a block.
const THREADS: u32 = 256;
/// Columns that a block of `column_sums` sums, by the type.
const COLUMNS_OF_BLOCK: [usize; 2] = [32 * 4, 32 * 8];

impl Stream {
    /// A kernel that reads and writes vectors of equal lengths, element by element; all of type `first`, if that is
    /// bf16.
    fn sweep(&self, kernel: &str, vectors: &[(Arg, usize)], values_of_thread: usize) {
        let len = vectors[0].1;
        assert!(vectors.iter().all(|(_, other)| *other == len), "{kernel}: lengths {:?}", lens(vectors));
        if len == 0 {
            return;
        }
        let args: Vec<Arg> = vectors.iter().map(|(vector, _)| *vector).chain([Arg::I64(len as i64)]).collect();
        self.launch(kernel, sweep_grid(len, values_of_thread), THREADS, 0, &args);
    }

    fn sweep_act(&self, kernel: &str, vectors: &[ActView<'_>]) {
        let suffix = vectors[0].suffix();
        assert!(vectors.iter().all(|vector| vector.suffix() == suffix), "{kernel}: types differ");
        let vectors: Vec<(Arg, usize)> = vectors.iter().map(|vector| (vector.arg(), vector.len())).collect();
        self.sweep(&format!("{kernel}_{suffix}"), &vectors, if suffix == "bf16" { 8 } else { 4 });
    }

    fn sweep_f32(&self, kernel: &str, vectors: &[View<'_, f32>]) {
        let vectors: Vec<(Arg, usize)> = vectors.iter().map(|vector| (vector.arg(), vector.len())).collect();
        self.sweep(kernel, &vectors, 4);
    }

    /// h = gelu(z), the exact form with erf. h may be z.
    pub fn gelu(&self, h: ActView<'_>, z: ActView<'_>) {
        self.sweep_act("gelu", &[h, z]);
    }

    /// dz = dh·gelu'(z). dz may be dh.
    pub fn gelu_grad(&self, dz: ActView<'_>, dh: ActView<'_>, z: ActView<'_>) {
        self.sweep_act("gelu_grad", &[dz, dh, z]);
    }

    /// h = gelu(z) and dh = gelu'(z)·dz. h may be z, dh may be dz.
    pub fn gelu_tangent(&self, h: ActView<'_>, dh: ActView<'_>, z: ActView<'_>, dz: ActView<'_>) {
        self.sweep_act("gelu_tangent", &[h, dh, z, dz]);
    }

    /// x = max(x, 0).
    pub fn relu(&self, x: View<'_, f32>) {
        self.sweep_f32("relu", &[x]);
    }

    /// d = 0 where h, the output of [`Stream::relu`], is not positive.
    pub fn relu_grad(&self, d: View<'_, f32>, h: View<'_, f32>) {
        self.sweep_f32("relu_grad", &[d, h]);
    }

    /// x = 1 / (1 + e⁻ˣ).
    pub fn sigmoid(&self, x: View<'_, f32>) {
        self.sweep_f32("sigmoid", &[x]);
    }

    /// d *= p (1 − p), where p is the output of [`Stream::sigmoid`].
    pub fn sigmoid_grad(&self, d: View<'_, f32>, p: View<'_, f32>) {
        self.sweep_f32("sigmoid_grad", &[d, p]);
    }

    /// dd += ds·dp·(1 − 2p): what the motion dp of p adds to the derivative of ds·p·(1 − p).
    pub fn sigmoid_curvature(&self, dd: View<'_, f32>, ds: View<'_, f32>, dp: View<'_, f32>, p: View<'_, f32>) {
        self.sweep_f32("sigmoid_curvature", &[dd, ds, dp, p]);
    }

    /// out = the sums of x [rows, columns] over rows, where columns = out.len(); added to out with `accumulate`.
    ///
    /// Sums over blocks of rows, of a size that the shape alone decides, are added in order.
    pub fn column_sums(&self, out: View<'_, f32>, x: ActView<'_>, accumulate: bool) {
        let columns = out.len();
        if columns == 0 || x.is_empty() {
            assert!(x.is_empty(), "column_sums: {} values in no columns", x.len());
            if !accumulate {
                self.fill_zero(out);
            }
            return;
        }
        assert!(x.len().is_multiple_of(columns), "column_sums: {} values in {columns} columns", x.len());
        let rows = x.len() / columns;
        let blocks = columns.div_ceil(COLUMNS_OF_BLOCK[usize::from(x.suffix() == "bf16")]);
        // Enough blocks to fill a device, of whole turns of eight rows.
        let rows_of_part = rows.div_ceil((2048 / blocks).clamp(16, 512)).next_multiple_of(8);
        let parts = rows.div_ceil(rows_of_part);
        let partials = self.take::<f32>(parts * columns);
        let sizes = [Arg::I64(rows as i64), Arg::I32(rows_of_part as i32), Arg::I32(columns as i32)];
        let args = [&[partials.view().arg(), x.arg()][..], &sizes].concat();
        self.launch(&format!("column_sums_{}", x.suffix()), [blocks as u32, parts as u32, 1], THREADS, 0, &args);
        self.finish_sums(out, out.slice(columns..columns), partials.view(), accumulate);
    }

    /// out = x, rounded to bf16.
    pub fn cast_bf16(&self, out: View<'_, bf16>, x: View<'_, f32>) {
        self.sweep("narrow_bf16", &[(out.arg(), out.len()), (x.arg(), x.len())], 4);
    }

    /// out = x in f32.
    pub fn widen(&self, out: View<'_, f32>, x: ActView<'_>) {
        match x {
            ActView::F32(x) => self.copy(out, x),
            ActView::Bf16(x) => self.sweep("widen_bf16", &[(out.arg(), out.len()), (x.arg(), x.len())], 4),
        }
    }

    /// out = x in the type of an activation.
    pub fn narrow(&self, out: ActView<'_>, x: View<'_, f32>) {
        match out {
            ActView::F32(out) => self.copy(out, x),
            ActView::Bf16(out) => self.cast_bf16(out, x),
        }
    }

    /// out = x + delta. out may be x.
    pub fn add_act(&self, out: View<'_, f32>, x: View<'_, f32>, delta: ActView<'_>) {
        let kernel = format!("add_act_{}", delta.suffix());
        self.sweep(&kernel, &[(out.arg(), out.len()), (x.arg(), x.len()), (delta.arg(), delta.len())], 4);
    }

    /// x += y.
    pub fn add_into(&self, x: View<'_, f32>, y: View<'_, f32>) {
        self.add_act(x, x, ActView::F32(y));
    }

    /// x += y, rounded to their type.
    pub fn act_add(&self, x: ActView<'_>, y: ActView<'_>) {
        match (x, y) {
            (ActView::F32(x), ActView::F32(y)) => self.add_into(x, y),
            _ => self.sweep_act("act_add", &[x, y]),
        }
    }
}

fn lens(vectors: &[(Arg, usize)]) -> Vec<usize> {
    vectors.iter().map(|(_, len)| *len).collect()
}

#[cfg(test)]
mod tests;
