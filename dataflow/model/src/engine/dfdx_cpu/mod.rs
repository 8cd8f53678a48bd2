//! The default engine: dfdx's autograd tape on the CPU, with fused operations of our own registered from outside.
//!
//! dfdx's tape keeps one gradient for each tensor id and would allocate and zero it. Our tensors are on its tape with
//! length zero, and our operations swap the storage in and out themselves (`Slot`): the first cotangent that arrives
//! becomes the gradient as it is, later ones are added, and the storage comes from the arena. So no gradient is zeroed
//! first, while dfdx's order of execution, merging of tapes and its own operations stay as they are.

mod linear;
mod tangent;
mod tape;
mod tokens;

use std::ops::Range;
use std::sync::Arc;

use dfdx::tensor::Cpu;

use crate::engine::ops::{AttentionShape, Engine, Gradients, HostIo, NORM_EPS, Tape, TokenOrder, TokenWeights};
use crate::error::ModelError;
use crate::layout::{LinearWeights, NormWeights, Weight};
use crate::level::{Level, PerLevel};
use crate::parallel::arena::{Arena, Buffer, Params};
use crate::parallel::sum::{OrderedSum, Tree};
use mlomae_kernels::{self as kernels, Factors};

use tape::{Record, SharedSink, Sink, Slot};

/// A tensor of [`DfdxCpu`], `[rows, columns]`, row-major.
#[derive(Clone)]
pub struct CpuTensor {
    values: Arc<Buffer>,
    rows: usize,
    columns: usize,
    /// Where its gradient is on the tape; none if no gradient flows through it.
    slot: Option<Slot>,
}

impl CpuTensor {
    /// The values `[rows, columns]`, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<Buffer> {
        self.values.clone()
    }
}

/// The engine for one pass over a micro-batch, on one thread: dfdx's tape is not `Send`.
pub struct DfdxCpu {
    device: Cpu,
    arena: Arena,
    params: PerLevel<Option<Params>>,
    sinks: PerLevel<Option<SharedSink>>,
    /// Where [`DfdxCpu::sum_into`] sends gradients.
    sums: PerLevel<Option<(Arc<OrderedSum>, usize)>>,
    /// The tape; none in a pass without gradients.
    record: Option<Record>,
    grains: Grains,
    /// What the factors of products are rounded to.
    factors: Factors,
}

/// The grains of a micro-batch. Gradients of weights are summed within each grain first, then over grains by [`Tree`].
#[derive(Clone, Copy, Debug)]
struct Grains {
    num_images: usize,
    grain: usize,
}

impl Grains {
    fn num(self) -> usize {
        self.num_images.div_ceil(self.grain)
    }

    /// The rows of a grain, where the micro-batch has `rows` rows, equally many for each image.
    fn rows(self, grain: usize, rows: usize) -> Range<usize> {
        let per_image = rows / self.num_images;
        let start = grain * self.grain;
        start * per_image..(start + self.grain).min(self.num_images) * per_image
    }

    /// As [`Grains::rows`], in values of a matrix with `columns` columns.
    fn values(self, grain: usize, rows: usize, columns: usize) -> Range<usize> {
        let rows = self.rows(grain, rows);
        rows.start * columns..rows.end * columns
    }
}

thread_local! {
    /// One dfdx device a thread, for the thread's life: threads that share one would contend for the lock of its
    /// allocation cache, and dropping one leaks that cache.
    static DEVICE: Cpu = Cpu::default();
}

impl DfdxCpu {
    /// An engine that records for a backward pass over `num_images` images; gradients of weights are summed over grains
    /// of `grain` images first.
    #[must_use]
    pub fn recording(arena: &Arena, num_images: usize, grain: usize) -> Self {
        let mut engine = Self::forward_only(arena);
        engine.record = Some(Record::default());
        engine.grains = Grains { num_images: num_images.max(1), grain: grain.max(1) };
        engine
    }

    /// An engine that records nothing and frees every intermediate value as early as it can.
    #[must_use]
    pub fn forward_only(arena: &Arena) -> Self {
        DfdxCpu {
            device: DEVICE.with(Cpu::clone),
            arena: arena.clone(),
            params: PerLevel::default(),
            sinks: PerLevel::default(),
            sums: PerLevel::default(),
            record: None,
            grains: Grains { num_images: 1, grain: 1 },
            factors: Factors::F32,
        }
    }

    /// The same with the factors of products rounded.
    #[must_use]
    pub fn with_factors(self, factors: Factors) -> Self {
        DfdxCpu { factors, ..self }
    }

    fn params_of(&self, level: Level) -> &Params {
        self.params[level].as_ref().expect("invariant: networks bind their parameters before they run")
    }

    /// Adds the gradient for the parameters of `level` to `sum` as its vector `index`, weight by weight and as soon as
    /// each is complete, instead of returning it from [`Tape::backward`]. Must come before [`Engine::bind`] of that
    /// level.
    pub fn sum_into(&mut self, level: Level, sum: &Arc<OrderedSum>, index: usize) {
        self.sums[level] = Some((sum.clone(), index));
    }

    /// Where an operation adds the gradients of `weights`, all of one level; none if they need none. The calling
    /// operation must add to each of them exactly once in its backward pass, see [`Sink::expect`].
    fn sink(&self, weights: &[&Weight]) -> Option<SharedSink> {
        let sink = self.sinks[weights.first()?.level].clone()?;
        weights.iter().for_each(|weight| sink.borrow_mut().expect(weight));
        Some(sink)
    }

    /// The output of an operation; with `wanted` it gets a slot, so that a gradient flows back through it.
    fn output(&self, values: Buffer, rows: usize, columns: usize, wanted: bool) -> CpuTensor {
        debug_assert_eq!(values.len(), rows * columns);
        let slot = (wanted && self.record.is_some()).then(|| Slot::new(&self.device, rows * columns));
        CpuTensor { values: Arc::new(values), rows, columns, slot }
    }
}

impl Engine for DfdxCpu {
    type Tensor = CpuTensor;
    type Vector = Params;
    type Order = Arc<TokenOrder>;

    fn bind(&mut self, level: Level, values: &Params, gradient: bool) {
        let sum = self.sums[level].clone();
        self.sinks[level] = (gradient && self.record.is_some()).then(|| Sink::shared(&self.arena, values.len(), sum));
        self.params[level] = Some(values.clone());
    }

    fn num_visible(&self, order: &Arc<TokenOrder>) -> usize {
        order.num_visible
    }

    fn shape(&self, x: &CpuTensor) -> (usize, usize) {
        (x.rows, x.columns)
    }

    fn linear(&mut self, x: &CpuTensor, w: &LinearWeights) -> CpuTensor {
        self.linear_plain(x, w)
    }

    fn linear_gelu(&mut self, x: &CpuTensor, w: &LinearWeights) -> CpuTensor {
        self.linear_then_gelu(x, w)
    }

    fn linear_add(&mut self, x: &CpuTensor, w: &LinearWeights, residual: &CpuTensor) -> CpuTensor {
        self.linear_then_add(x, w, residual)
    }

    fn mlp(&mut self, x: &CpuTensor, fc1: &LinearWeights, fc2: &LinearWeights, residual: &CpuTensor) -> CpuTensor {
        self.fused_mlp(x, fc1, fc2, residual)
    }

    fn layer_norm(&mut self, x: &CpuTensor, w: &NormWeights) -> CpuTensor {
        let params = self.params_of(w.gamma.level).clone();
        let mut y = self.arena.take(x.values.len());
        let mut stats = self.arena.take(2 * x.rows);
        kernels::layer_norm(&mut y, &mut stats, &x.values, &params[w.gamma.range()], &params[w.beta.range()], NORM_EPS);
        let sink = self.sink(&[&w.gamma, &w.beta]);
        let out = self.output(y, x.rows, x.columns, x.slot.is_some() || sink.is_some());
        let (x, w, arena, grains) = (x.clone(), *w, self.arena.clone(), self.grains);
        self.push(&out, move |grads, dy| {
            let gamma = &params[w.gamma.range()];
            let backward = |dx: &mut [f32], accumulate: bool| {
                let Some(sink) = &sink else {
                    kernels::layer_norm_grad(dx, accumulate, None, &dy, &x.values, &stats, gamma);
                    return;
                };
                let mut own = arena.take(2 * w.dim);
                Tree::sum(&arena, &mut own, grains.num(), |grain, own| {
                    own.fill(0.0);
                    let (at, rows) = (grains.values(grain, x.rows, x.columns), grains.values(grain, x.rows, 2));
                    let (dx, dy, x) = (&mut dx[at.clone()], &dy[at.clone()], &x.values[at]);
                    kernels::layer_norm_grad(dx, accumulate, Some(own.split_at_mut(w.dim)), dy, x, &stats[rows], gamma);
                });
                let mut sink = sink.borrow_mut();
                sink.add(&w.gamma, arena.copy_of(&own[..w.dim]));
                sink.add(&w.beta, arena.copy_of(&own[w.dim..]));
            };
            match &x.slot {
                Some(slot) => slot.accumulate(grads, &arena, backward)?,
                None => backward(&mut arena.take(dy.len()), false),
            }
            Ok(())
        });
        out
    }

    fn attention(&mut self, qkv: &CpuTensor, shape: &AttentionShape) -> CpuTensor {
        let dim = shape.heads * shape.head_dim;
        let rows = shape.batch * shape.queries;
        let mut y = self.arena.take(rows * dim);
        let wanted = qkv.slot.is_some() && self.record.is_some();
        let mut probs = wanted.then(|| self.arena.take(shape.batch * shape.heads * shape.queries * shape.tokens));
        let factors = self.factors;
        kernels::attention_in(factors, &mut y, probs.as_deref_mut(), &qkv.values, shape);
        let out = self.output(y, rows, dim, wanted);
        if let (Some(slot), Some(probs)) = (qkv.slot.clone(), probs) {
            let (values, qkv, shape, arena) = (out.values.clone(), qkv.values.clone(), *shape, self.arena.clone());
            self.push(&out, move |grads, dy| {
                let mut dqkv = arena.take(qkv.len());
                kernels::attention_grad_in(factors, &mut dqkv, &dy, &qkv, &probs, &values, &shape);
                slot.give(grads, &arena, dqkv)
            });
        }
        out
    }

    fn tokens(
        &mut self,
        patches: &CpuTensor,
        num_patches: usize,
        order: Option<&Arc<TokenOrder>>,
        w: &TokenWeights,
    ) -> CpuTensor {
        self.embed_tokens(patches, num_patches, order, w)
    }

    fn first_rows(&mut self, x: &CpuTensor, period: usize) -> CpuTensor {
        self.pick_rows(x, period, 0..1)
    }

    fn rest_rows(&mut self, x: &CpuTensor, period: usize) -> CpuTensor {
        self.pick_rows(x, period, 1..period)
    }

    fn mean_rows(&mut self, x: &CpuTensor, period: usize) -> CpuTensor {
        self.average_rows(x, period)
    }

    fn unshuffle(&mut self, x: &CpuTensor, order: &Arc<TokenOrder>, mask_token: &Weight, pos: &Weight) -> CpuTensor {
        self.restore_tokens(x, order, mask_token, pos)
    }

    fn patch_loss(&mut self, pred: &CpuTensor, target: &CpuTensor) -> CpuTensor {
        let mut loss = self.arena.take(pred.rows);
        let target = target.values.clone();
        kernels::patch_loss(&mut loss, &pred.values, &target, pred.columns);
        let out = self.output(loss, pred.rows, 1, pred.slot.is_some());
        if let Some(slot) = pred.slot.clone() {
            let (pred, arena) = (pred.clone(), self.arena.clone());
            self.push(&out, move |grads, dloss| {
                let mut dpred = arena.take(pred.values.len());
                kernels::patch_loss_grad(&mut dpred, &pred.values, &target, &dloss, pred.columns);
                slot.give(grads, &arena, dpred)
            });
        }
        out
    }
}

impl HostIo for DfdxCpu {
    fn constant(&mut self, values: Arc<Buffer>, rows: usize, columns: usize) -> CpuTensor {
        debug_assert_eq!(values.len(), rows * columns);
        CpuTensor { values, rows, columns, slot: None }
    }

    fn values<'a>(&self, x: &'a CpuTensor) -> &'a [f32] {
        &x.values
    }
}

impl Tape for DfdxCpu {
    fn backward(&mut self, cotangents: Vec<(CpuTensor, Buffer)>) -> Result<Gradients, ModelError> {
        self.run_backward(cotangents)
    }
}
