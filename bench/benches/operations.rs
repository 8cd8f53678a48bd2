//! Every operation of an encoder block on one thread: `cargo bench -p mlomae-bench --bench operations -- [FILTER]`.
//!
//! Products are in units of arithmetic (items are operations), sweeps in bytes read and written.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use mlomae_bench::{BLOCKS, BlockShape, values};
use mlomae_kernels::{self as kernels, AdamWStep, Epilogue, Mat};

fn main() {
    divan::main();
}

const fn plain(data: &[f32], ld: usize) -> Mat<'_> {
    Mat { data, ld, trans: false }
}

const fn transposed(data: &[f32], ld: usize) -> Mat<'_> {
    Mat { data, ld, trans: true }
}

/// The first layer of the MLP forward: x·Wᵀ + b, and gelu of it.
#[divan::bench(args = BLOCKS)]
fn linear_gelu(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let (m, n, k) = (block.rows(), 4 * block.dim, block.dim);
    let (x, w, bias) = (values(m * k), values(n * k), values(n));
    let (mut y, mut pre) = (values(m * n), values(m * n));
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let epilogue = Epilogue::BiasGeluKeep { bias: &bias, out: &mut y };
        kernels::matmul_with(kernels::Factors::F32, &mut pre, n, plain(&x, k), transposed(&w, k), m, n, k, epilogue);
    });
}

/// The second layer of the MLP forward: x·Wᵀ + b + residual.
#[divan::bench(args = BLOCKS)]
fn linear_add(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let (m, n, k) = (block.rows(), block.dim, 4 * block.dim);
    let (x, w, bias, residual, mut y) = (values(m * k), values(n * k), values(n), values(m * n), values(m * n));
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        let epilogue = Epilogue::BiasResidual { bias: &bias, residual: &residual };
        kernels::matmul_with(kernels::Factors::F32, &mut y, n, plain(&x, k), transposed(&w, k), m, n, k, epilogue);
    });
}

/// The input gradient of the first layer: dy·W.
#[divan::bench(args = BLOCKS)]
fn linear_input_gradient(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let (m, n, k) = (block.rows(), block.dim, 4 * block.dim);
    let (dy, w, mut dx) = (values(m * k), values(n * k), values(m * n));
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        kernels::matmul(&mut dx, n, plain(&dy, k), plain(&w, n), m, n, k, false);
    });
}

/// The weight gradient of the first layer over a grain of eight images: dyᵀ·x.
#[divan::bench(args = BLOCKS)]
fn linear_weight_gradient(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let (m, n, k) = (4 * block.dim, block.dim, block.rows() / 2);
    let (dy, x, mut dw) = (values(m * k), values(n * k), values(m * n));
    bencher.counter(ItemsCount::new(2 * m * n * k)).bench_local(|| {
        kernels::matmul(&mut dw, n, transposed(&dy, m), plain(&x, n), m, n, k, false);
    });
}

#[divan::bench(args = BLOCKS)]
fn attention(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let shape = block.attention();
    let (qkv, mut out) = (values(3 * block.rows() * block.dim), values(block.rows() * block.dim));
    let mut probs = values(block.images * block.heads * block.tokens * block.tokens);
    bencher.counter(ItemsCount::new(4 * block.rows() * block.tokens * block.dim)).bench_local(|| {
        kernels::attention(&mut out, Some(&mut probs), &qkv, &shape);
    });
}

#[divan::bench(args = BLOCKS)]
fn attention_gradient(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let shape = block.attention();
    let (qkv, mut dqkv) = (values(3 * block.rows() * block.dim), values(3 * block.rows() * block.dim));
    let (mut out, dout) = (values(block.rows() * block.dim), values(block.rows() * block.dim));
    let mut probs = values(block.images * block.heads * block.tokens * block.tokens);
    kernels::attention(&mut out, Some(&mut probs), &qkv, &shape);
    bencher.counter(ItemsCount::new(8 * block.rows() * block.tokens * block.dim)).bench_local(|| {
        kernels::attention_grad(&mut dqkv, &dout, &qkv, &probs, &out, &shape);
    });
}

#[divan::bench(args = BLOCKS)]
fn layer_norm(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let (rows, n) = (block.rows(), block.dim);
    let (x, gamma, beta) = (values(rows * n), values(n), values(n));
    let (mut y, mut stats) = (values(rows * n), values(2 * rows));
    bencher.counter(BytesCount::new(8 * rows * n)).bench_local(|| {
        kernels::layer_norm(&mut y, &mut stats, &x, &gamma, &beta, 1e-6);
    });
}

#[divan::bench(args = BLOCKS)]
fn layer_norm_gradient(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let (rows, n) = (block.rows(), block.dim);
    let (x, dy, gamma, beta) = (values(rows * n), values(rows * n), values(n), values(n));
    let (mut y, mut stats, mut dx) = (values(rows * n), values(2 * rows), values(rows * n));
    let (mut dgamma, mut dbeta) = (values(n), values(n));
    kernels::layer_norm(&mut y, &mut stats, &x, &gamma, &beta, 1e-6);
    bencher.counter(BytesCount::new(16 * rows * n)).bench_local(|| {
        kernels::layer_norm_grad(&mut dx, true, Some((&mut dgamma, &mut dbeta)), &dy, &x, &stats, &gamma);
    });
}

#[divan::bench(args = BLOCKS)]
fn gelu_gradient(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let len = 4 * block.rows() * block.dim;
    let (pre, mut dy) = (values(len), values(len));
    bencher.counter(BytesCount::new(12 * len)).bench_local(|| kernels::gelu_grad(&mut dy, &pre));
}

#[divan::bench(args = BLOCKS)]
fn bias_gradient(bencher: Bencher<'_, '_>, block: &BlockShape) {
    let n = 4 * block.dim;
    let (dy, mut db) = (values(block.rows() * n), values(n));
    bencher.counter(BytesCount::new(4 * block.rows() * n)).bench_local(|| kernels::bias_grad(&mut db, &dy, false));
}

#[divan::bench(args = [100_000, 3_000_000])]
fn adamw(bencher: Bencher<'_, '_>, len: usize) {
    let (theta, grad) = (values(len), values(len));
    let (mut next, mut m, mut v) = (values(len), values(len), vec![0.1; len]);
    let step = AdamWStep { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, step: 3 };
    bencher.counter(BytesCount::new(28 * len)).bench_local(|| {
        kernels::adamw(&mut next, &theta, &grad, &mut m, &mut v, &step);
    });
}

#[divan::bench]
fn patch_targets(bencher: Bencher<'_, '_>) {
    let images = values(16 * 3 * 32 * 32);
    let mut targets = values(images.len());
    bencher.counter(BytesCount::new(8 * images.len())).bench_local(|| {
        kernels::patch_targets(&mut targets, &images, 3, 32, 4);
    });
}

#[divan::bench]
fn patch_loss(bencher: Bencher<'_, '_>) {
    let (rows, n) = (16 * 64, 48);
    let (pred, target, mut loss) = (values(rows * n), values(rows * n), values(rows));
    bencher.counter(BytesCount::new(8 * rows * n)).bench_local(|| kernels::patch_loss(&mut loss, &pred, &target, n));
}
