//! Attention of whole batches, from the output of the qkv product as it lies.
//!
//! Two sets of kernels: on tensor cores for bf16, tf32 and head dimensions of 32 and 64, in fused multiply-adds for all
//! else.

use crate::memory::{ActView, Arg, View};
use crate::stream::{Precision, Stream};

/// The sizes of one attention call. qkv is [batch·tokens, 3·heads·head_dim]: q, k and v of a token one after the other,
/// each [heads, head_dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of images.
    pub batch: usize,
    /// Tokens per image.
    pub tokens: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of a head, at most 256; scores are scaled by 1/√head_dim.
    pub head_dim: usize,
    /// The first `queries` tokens of each image are queries: `tokens`, or 1 if only the CLS token's output is needed.
    pub queries: usize,
}

/// Rows that a warp owns at a time.
const WARP_ROWS: usize = 16;

impl AttentionShape {
    fn check(&self, what: &str, qkv: &[ActView], outputs: &[ActView], lse: Option<View<f32>>) {
        let width = self.heads * self.head_dim;
        assert!(self.tokens > 0 && self.heads > 0 && (1..=256).contains(&self.head_dim), "{what}: bad shape {self:?}");
        assert!((1..=self.tokens).contains(&self.queries), "{what}: bad number of queries in {self:?}");
        assert!(self.batch * self.heads * self.tokens <= i32::MAX as usize, "{what}: too many tokens in {self:?}");
        for view in qkv {
            assert_eq!(view.len(), self.batch * self.tokens * 3 * width, "{what}: length of qkv for {self:?}");
        }
        for view in outputs {
            assert_eq!(view.len(), self.batch * self.queries * width, "{what}: length of an output for {self:?}");
        }
        if let Some(lse) = lse {
            assert_eq!(lse.len(), self.batch * self.heads * self.queries, "{what}: length of lse for {self:?}");
        }
        let suffix = qkv[0].suffix();
        assert!(qkv.iter().chain(outputs).all(|view| view.suffix() == suffix), "{what}: activations of two types");
    }

    /// Whether tensor cores can do it: their kernels load 16 bytes at once.
    fn fits_tensor_cores(&self, precision: Precision, views: &[ActView]) -> bool {
        let is_aligned = |view: &ActView| match view {
            ActView::F32(values) => precision == Precision::Tf32 && values.pointer % 16 == 0,
            ActView::Bf16(values) => values.pointer % 16 == 0,
        };
        matches!(self.head_dim, 32 | 64) && views.iter().all(is_aligned)
    }
}

/// How a kernel is launched.
struct Plan {
    kernel: String,
    grid: [u32; 3],
    warps: usize,
    shared_bytes: usize,
    /// What the kernel is told after its vectors: sizes, and how the work is cut.
    sizes: Vec<usize>,
}

/// What a block of a kernel in fused multiply-adds keeps in shared memory.
struct Tiles {
    /// Arrays of 16 rows a warp.
    own: usize,
    /// Arrays of `rows` rows that the block meets at once.
    other: usize,
    rows: usize,
    /// [16, rows] of probabilities a warp.
    probabilities: usize,
    /// Single values besides.
    values: usize,
    /// As many as registers allow two blocks of.
    max_warps: usize,
}

const FORWARD: Tiles = Tiles { own: 1, other: 2, rows: 64, probabilities: 1, values: 0, max_warps: 6 };
const GRAD: Tiles = Tiles { own: 2, other: 2, rows: 64, probabilities: 1, values: 2 * 64, max_warps: 4 };
const TANGENT: Tiles = Tiles { own: 2, other: 4, rows: 32, probabilities: 2, values: 0, max_warps: 4 };

impl Tiles {
    /// A launch in which blocks own `rows` rows of each head, evenly.
    fn plan(&self, kernel: &str, suffix: &str, shape: &AttentionShape, rows: usize, shared_limit: usize) -> Plan {
        let chunk = if suffix == "f32" && shape.head_dim <= 32 { 32 } else { 64 };
        let bytes = |warps: usize| {
            let rows = self.own * warps * WARP_ROWS + self.other * self.rows;
            let probabilities = self.probabilities * warps * WARP_ROWS * (self.rows + 8);
            size_of::<f32>() * (rows * (chunk + 4) + probabilities + self.values)
        };
        let most = (1..=self.max_warps).rev().find(|warps| bytes(*warps) <= shared_limit).unwrap_or(1);
        let tiles = rows.div_ceil(WARP_ROWS);
        let groups = tiles.div_ceil(most);
        let warps = tiles.div_ceil(groups);
        Plan {
            kernel: format!("{kernel}_c{chunk}_{suffix}"),
            grid: [(shape.batch * shape.heads * groups) as u32, shape.head_dim.div_ceil(chunk) as u32, 1],
            warps,
            shared_bytes: bytes(warps),
            sizes: vec![shape.tokens, shape.queries, shape.heads, shape.head_dim, groups],
        }
    }
}

/// What a block of a kernel on tensor cores keeps in shared memory of each row that it meets, and how many warps and
/// blocks registers allow, by its launch bounds.
struct Rows {
    /// Vectors of a head dimension each.
    arrays: usize,
    /// Single values of f32.
    floats: usize,
    /// Warps and blocks of bf16, and of f32 with head dimensions of 32.
    bounds: (usize, usize),
    /// The same of f32 with head dimensions of 64.
    wide_bounds: (usize, usize),
}

const MMA_FORWARD: Rows = Rows { arrays: 2, floats: 0, bounds: (6, 2), wide_bounds: (12, 1) };
const MMA_GRAD_OF_QUERIES: Rows = Rows { arrays: 2, floats: 0, bounds: (6, 2), wide_bounds: (8, 1) };
const MMA_GRAD_OF_KEYS: Rows = Rows { arrays: 2, floats: 2, bounds: (6, 2), wide_bounds: (8, 1) };
const MMA_TANGENT: Rows = Rows { arrays: 4, floats: 0, bounds: (12, 1), wide_bounds: (8, 1) };
/// Warps that a block has at least, as all of them load.
const MIN_WARPS: usize = 4;
/// Rows of a piece are a multiple of this, except where all rows are one piece.
const PIECE_ROWS: usize = 64;

impl Rows {
    /// A launch in which blocks own `own` rows of each head and meet `other` rows: one block a head if these fit into
    /// shared memory, else a block for as many rows as it has warps for, and pieces that leave room for other blocks.
    fn plan(&self, kernel: &str, suffix: &str, shape: &AttentionShape, [own, other]: [usize; 2], limit: usize) -> Plan {
        let (value_bytes, is_wide) = if suffix == "f32" { (4, shape.head_dim == 64) } else { (2, false) };
        let (max_warps, blocks) = if is_wide { self.wide_bounds } else { self.bounds };
        let row_bytes = self.arrays * (shape.head_dim * value_bytes + 16) + self.floats * 4;
        let all = other.next_multiple_of(WARP_ROWS);
        let is_whole = all * row_bytes <= limit;
        let piece = (limit / blocks / row_bytes / PIECE_ROWS * PIECE_ROWS).max(PIECE_ROWS);
        let tiles = own.div_ceil(WARP_ROWS);
        // The fewest idle warps in the last round, then the most warps.
        let idle = |warps: usize| tiles.next_multiple_of(warps) - tiles;
        let warps = (MIN_WARPS..=max_warps).rev().min_by_key(|warps| idle(*warps)).unwrap_or(MIN_WARPS);
        let rounds = tiles.div_ceil(warps);
        let (groups, rounds, piece) = if is_whole { (1, rounds, all) } else { (rounds, 1, piece) };
        Plan {
            kernel: format!("{kernel}_{}_{suffix}", shape.head_dim),
            grid: [(shape.batch * shape.heads * groups) as u32, 1, 1],
            warps,
            shared_bytes: piece * row_bytes,
            sizes: vec![shape.tokens, shape.queries, shape.heads, groups, rounds, piece],
        }
    }
}

impl Stream {
    fn launch_attention(&self, plan: &Plan, shape: &AttentionShape, views: &[Arg]) {
        let sizes: Vec<Arg> = plan.sizes.iter().map(|size| Arg::I32(*size as i32)).collect();
        let scale = Arg::F32(1.0 / (shape.head_dim as f32).sqrt());
        let args = [views, &sizes, &[scale]].concat();
        self.launch(&plan.kernel, plan.grid, 32 * plan.warps as u32, plan.shared_bytes as u32, &args);
    }

    /// Counts `num` products of queries by tokens for each image and head.
    fn count_attention(&self, num: usize, shape: &AttentionShape) {
        self.count_products(num * shape.batch * shape.heads, [shape.queries, shape.tokens, shape.head_dim]);
    }

    /// y = softmax(q·kᵀ/√head_dim)·v for each image and head.
    ///
    /// y [batch·queries, heads·head_dim]; lse [batch, heads, queries] receives the logs of the sums of the exponentials
    /// of the scaled scores, for the gradient.
    ///
    /// # Panics
    /// If the shape has a size of 0, `queries` exceeds `tokens`, or lengths do not fit.
    pub fn attention(&self, y: ActView, lse: View<f32>, qkv: ActView, shape: &AttentionShape) {
        shape.check("attention", &[qkv], &[y], Some(lse));
        if shape.batch == 0 {
            return;
        }
        let (suffix, queries, limit) = (qkv.suffix(), shape.queries, self.shared_limit());
        let plan = if shape.fits_tensor_cores(self.precision(), &[y, qkv]) {
            MMA_FORWARD.plan("attention_mma", suffix, shape, [queries, shape.tokens], limit)
        } else {
            FORWARD.plan("attention", suffix, shape, queries, limit)
        };
        // q·kᵀ and p·v.
        self.count_attention(2, shape);
        self.launch_attention(&plan, shape, &[y.arg(), lse.arg(), qkv.arg()]);
    }

    /// dqkv from the gradient dy of [`Stream::attention`]'s y, with its y and lse. Writes all of dqkv.
    ///
    /// # Panics
    /// As [`Stream::attention`].
    pub fn attention_grad(
        &self,
        dqkv: ActView,
        dy: ActView,
        y: ActView,
        qkv: ActView,
        lse: View<f32>,
        shape: &AttentionShape,
    ) {
        shape.check("attention_grad", &[qkv, dqkv], &[y, dy], Some(lse));
        if shape.batch == 0 {
            return;
        }
        let delta = self.take::<f32>(lse.len());
        let (delta, suffix, tokens, limit) = (delta.view(), qkv.suffix(), shape.tokens, self.shared_limit());
        let (of_queries, of_keys) = if shape.fits_tensor_cores(self.precision(), &[dqkv, dy, y, qkv]) {
            let (of_queries, of_keys) = ("attention_mma_grad_of_queries", "attention_mma_grad_of_keys");
            (
                MMA_GRAD_OF_QUERIES.plan(of_queries, suffix, shape, [tokens, tokens], limit),
                MMA_GRAD_OF_KEYS.plan(of_keys, suffix, shape, [tokens, shape.queries], limit),
            )
        } else {
            let plan = |kernel| GRAD.plan(kernel, suffix, shape, tokens, limit);
            (plan("attention_grad_of_queries"), plan("attention_grad_of_keys"))
        };
        let args = [dqkv.arg(), delta.arg(), dy.arg(), y.arg(), qkv.arg(), lse.arg()];
        // dy·vᵀ, and those for dq, dk and dv; q·kᵀ is known from before.
        self.count_attention(4, shape);
        self.launch_attention(&of_queries, shape, &args);
        self.launch_attention(&of_keys, shape, &[dqkv.arg(), delta.arg(), dy.arg(), qkv.arg(), lse.arg()]);
    }

    /// y as [`Stream::attention`], and its derivative dy along dqkv.
    ///
    /// # Panics
    /// As [`Stream::attention`].
    pub fn attention_tangent(&self, y: ActView, dy: ActView, qkv: ActView, dqkv: ActView, shape: &AttentionShape) {
        shape.check("attention_tangent", &[qkv, dqkv], &[y, dy], None);
        if shape.batch == 0 {
            return;
        }
        let (suffix, queries, limit) = (qkv.suffix(), shape.queries, self.shared_limit());
        let plan = if shape.fits_tensor_cores(self.precision(), &[y, dy, qkv, dqkv]) {
            MMA_TANGENT.plan("attention_mma_tangent", suffix, shape, [queries, shape.tokens], limit)
        } else {
            TANGENT.plan("attention_tangent", suffix, shape, queries, limit)
        };
        // Both of the forward pass, and by the product rule two for each.
        self.count_attention(6, shape);
        self.launch_attention(&plan, shape, &[y.arg(), dy.arg(), qkv.arg(), dqkv.arg()]);
    }
}

#[cfg(test)]
mod tests;
