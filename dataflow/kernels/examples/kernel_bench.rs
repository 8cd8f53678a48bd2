//! Speed of the kernels on one thread: `cargo run --release -p mlomae-kernels --example kernel_bench [name]`.
//!
//! Products print GFLOP/s of ours and of the `gemm` crate, sweeps GB/s of reads and writes. Rounds of
//! compared programs are interleaved.

use mlomae_kernels::attention::{AttentionShape, attention, attention_grad, attention_grad_in, attention_in};
use mlomae_kernels::matmul::{Epilogue, Mat, matmul, matmul_with};
use mlomae_kernels::{CACHE_LINE, Factors, adamw, elementwise as el, norm, patches, reduce};
use std::time::Instant;

/// Values aligned to a cache line, as those of training are.
struct Buffer {
    storage: Vec<f32>,
    start: usize,
}

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.storage[self.start..]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.start..]
    }
}

fn buffer(len: usize, value: impl Fn(usize) -> f32) -> Buffer {
    let mut storage = vec![0.0; len + CACHE_LINE];
    let start = storage.as_ptr().align_offset(4 * CACHE_LINE).min(CACHE_LINE);
    storage.truncate(start + len);
    let mut values = Buffer { storage, start };
    values.iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
    values
}

fn values(len: usize) -> Buffer {
    buffer(len, |i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5)
}

fn zeros(len: usize) -> Buffer {
    buffer(len, |_| 0.0)
}

/// The seconds of each program: the first quartile over interleaved rounds, as other load only ever adds
/// time.
fn race(programs: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    const ROUNDS: usize = 41;
    let mut repeats = vec![1usize; programs.len()];
    for (program, repeats) in programs.iter_mut().zip(&mut repeats) {
        program();
        let start = Instant::now();
        program();
        *repeats = (0.003 / start.elapsed().as_secs_f64().max(1e-7)).ceil() as usize;
    }
    let mut times = vec![Vec::new(); programs.len()];
    for _ in 0..ROUNDS {
        for (i, program) in programs.iter_mut().enumerate() {
            let start = Instant::now();
            (0..repeats[i]).for_each(|_| program());
            times[i].push(start.elapsed().as_secs_f64() / repeats[i] as f64);
        }
    }
    times
        .into_iter()
        .map(|mut t| {
            t.sort_by(f64::total_cmp);
            t[ROUNDS / 4]
        })
        .collect()
}

fn crate_product(c: &mut [f32], a: Mat<'_>, b: Mat<'_>, [m, n, k]: [usize; 3], add: bool) {
    let steps = |x: &Mat<'_>| if x.trans { (1, x.ld as isize) } else { (x.ld as isize, 1) };
    let ((ar, ac), (br, bc)) = (steps(&a), steps(&b));
    assert!(c.len() >= m * n && a.data.len() >= m * k && b.data.len() >= n * k);
    // SAFETY: the three matrices are dense and as long as asserted.
    unsafe {
        let (c, a, b) = (c.as_mut_ptr(), a.data.as_ptr(), b.data.as_ptr());
        let none = gemm::Parallelism::None;
        gemm::gemm(m, n, k, c, 1, n as isize, add, a, ac, ar, b, bc, br, 1.0f32, 1.0f32, false, false, false, none);
    }
}

fn products() {
    println!("GFLOP/s; ratio = ours over the gemm crate's, with the same sweep after it where an epilogue is fused");
    println!(
        "{:<30}{:>8}{:>8}{:>7} {:>8}{:>7} {:>9}{:>7}",
        "m x n x k", "ours", "gemm", "ratio", "+gelu", "ratio", "+residual", "ratio"
    );
    for (m, n, k) in [
        (1088, 576, 192),
        (1088, 192, 192),
        (1088, 768, 192),
        (1088, 192, 768),
        (4160, 384, 384),
        (4160, 1152, 384),
        (4160, 1536, 384),
        (4160, 384, 1536),
        (520, 1152, 384),
        (520, 384, 1536),
        (272, 192, 192),
        (2056, 2304, 768),
        (2056, 3072, 768),
        (2056, 768, 3072),
        (4160, 128, 64),
        (64, 512, 12480),
    ] {
        let (x, w, dy) = (values(m * k), values(n * k), values(m * n));
        let (bias, residual, gflop) = (values(n), values(m * n), 2e-9 * (m * n * k) as f64);
        let [mut y, mut y2, mut y3, mut y4, mut y5, mut y6, mut out, mut out2] = [(); 8].map(|()| zeros(m * n));
        let mat = |data, ld, trans| Mat { data, ld, trans };
        let (xm, wt) = (mat(&x, k, false), mat(&w, k, true));
        let size = [m, n, k];
        let t = race(&mut [
            &mut || matmul(&mut y, n, xm, wt, m, n, k, false),
            &mut || crate_product(&mut y2, xm, wt, size, false),
            &mut || {
                matmul_with(
                    Factors::F32,
                    &mut y3,
                    n,
                    xm,
                    wt,
                    m,
                    n,
                    k,
                    Epilogue::BiasGeluKeep { bias: &bias, out: &mut out },
                )
            },
            &mut || {
                crate_product(&mut y4, xm, wt, size, false);
                el::bias_gelu(&mut y4, &mut out2, &bias);
            },
            &mut || {
                matmul_with(
                    Factors::F32,
                    &mut y5,
                    n,
                    xm,
                    wt,
                    m,
                    n,
                    k,
                    Epilogue::BiasResidual { bias: &bias, residual: &residual },
                );
            },
            &mut || {
                crate_product(&mut y6, xm, wt, size, false);
                el::add_bias_residual(&mut y6, &bias, &residual);
            },
        ]);
        let g: Vec<f64> = t.iter().map(|t| gflop / t).collect();
        let ratio = |i: usize| t[i + 1] / t[i];
        println!(
            "{:<30}{:>8.1}{:>8.1}{:>7.2} {:>8.1}{:>7.2} {:>9.1}{:>7.2}",
            format!("x w^T {m} x {n} x {k}"),
            g[0],
            g[1],
            ratio(0),
            g[2],
            ratio(2),
            g[4],
            ratio(4)
        );
        let (mut dx, mut dx2, mut dw, mut dw2) = (zeros(m * k), zeros(m * k), zeros(n * k), zeros(n * k));
        let (dym, wm, dyt, xk) = (mat(&dy, n, false), mat(&w, k, false), mat(&dy, n, true), mat(&x, k, false));
        let t = race(&mut [
            &mut || matmul(&mut dx, k, dym, wm, m, k, n, false),
            &mut || crate_product(&mut dx2, dym, wm, [m, k, n], false),
            &mut || matmul(&mut dw, k, dyt, xk, n, k, m, true),
            &mut || crate_product(&mut dw2, dyt, xk, [n, k, m], true),
        ]);
        let g: Vec<f64> = t.iter().map(|t| gflop / t).collect();
        println!("{:<30}{:>8.1}{:>8.1}{:>7.2}", "   dy w", g[0], g[1], g[0] / g[1]);
        println!("{:<30}{:>8.1}{:>8.1}{:>7.2}", "   dw += dy^T x", g[2], g[3], g[2] / g[3]);
    }
}

/// Rows (of a micro-batch of 16 images), outputs and inputs of the linear layers of the presets, and a gradient's over
/// a grain of 8.
const LAYERS: [[usize; 3]; 12] = [
    [272, 288, 96],
    [272, 384, 96],
    [272, 96, 384],
    [272, 576, 192],
    [272, 768, 192],
    [272, 192, 768],
    [1040, 384, 128],
    [1040, 512, 128],
    [1040, 128, 512],
    [520, 2304, 768],
    [520, 3072, 768],
    [520, 768, 3072],
];

/// Products of bf16 beside those of f32, in turns.
fn rounded() {
    use mlomae_kernels::{Bf16Unit, matmul_in};
    println!("GFLOP/s of products of bf16 ({}) and of f32, and their ratio", Bf16Unit::here().name());
    println!("{:<30}{:>28}{:>28}{:>28}{:>28}", "rows x outputs x inputs", "x w^T", "+gelu", "dy w", "dw = dy^T x");
    for [m, n, k] in LAYERS {
        let (x, w, dy, bias) = (values(m * k), values(n * k), values(m * n), values(n));
        let mat = |data, ld, trans| Mat { data, ld, trans };
        let (xm, wt, dym, wm) = (mat(&x, k, false), mat(&w, k, true), mat(&dy, n, false), mat(&w, k, false));
        let (dyt, xk) = (mat(&dy, n, true), mat(&x, k, false));
        let both = [Factors::Bf16, Factors::F32];
        let [mut y, mut y2, mut pre, mut pre2, mut out, mut out2] = [(); 6].map(|()| zeros(m * n));
        let [mut dx, mut dx2] = [(); 2].map(|()| zeros(m * k));
        let [mut dw, mut dw2] = [(); 2].map(|()| zeros(n * k));
        let t = race(&mut [
            &mut || matmul_in(both[0], &mut y, n, xm, wt, m, n, k, false),
            &mut || matmul_in(both[1], &mut y2, n, xm, wt, m, n, k, false),
            &mut || {
                let epilogue = Epilogue::BiasGeluKeep { bias: &bias, out: &mut out };
                matmul_with(both[0], &mut pre, n, xm, wt, m, n, k, epilogue);
            },
            &mut || {
                let epilogue = Epilogue::BiasGeluKeep { bias: &bias, out: &mut out2 };
                matmul_with(both[1], &mut pre2, n, xm, wt, m, n, k, epilogue);
            },
            &mut || matmul_in(both[0], &mut dx, k, dym, wm, m, k, n, false),
            &mut || matmul_in(both[1], &mut dx2, k, dym, wm, m, k, n, false),
            &mut || matmul_in(both[0], &mut dw, k, dyt, xk, n, k, m / 2, false),
            &mut || matmul_in(both[1], &mut dw2, k, dyt, xk, n, k, m / 2, false),
        ]);
        let gflop = 2e-9 * (m * n * k) as f64;
        print!("{:<30}", format!("{m} x {n} x {k}"));
        for (pair, flop) in t.chunks_exact(2).zip([gflop, gflop, gflop, gflop / 2.0]) {
            print!("{:>12.1}{:>8.1}{:>8.2}", flop / pair[0], flop / pair[1], pair[1] / pair[0]);
        }
        println!();
    }
}

/// The obvious attention, as a baseline: two products of the `gemm` crate for each head, and softmax in a
/// plain loop.
fn crate_attention(out: &mut [f32], qkv: &[f32], s: &AttentionShape, scores: &mut [f32]) {
    let (t, d, width) = (s.tokens, s.head_dim, s.heads * s.head_dim);
    let none = gemm::Parallelism::None;
    let step = 3 * width as isize;
    for b in 0..s.batch {
        for h in 0..s.heads {
            let q = qkv[b * t * 3 * width + h * d..].as_ptr();
            let o = out[b * t * width + h * d..].as_mut_ptr();
            let p = scores.as_mut_ptr();
            // SAFETY: a head's rows and columns lie in qkv and out by the shape; scores hold tokens².
            unsafe {
                let scale = 1.0 / (d as f32).sqrt();
                gemm::gemm(
                    t,
                    t,
                    d,
                    p,
                    1,
                    t as isize,
                    false,
                    q,
                    1,
                    step,
                    q.add(width),
                    step,
                    1,
                    0.0,
                    scale,
                    false,
                    false,
                    false,
                    none,
                );
                for row in scores.chunks_exact_mut(t) {
                    let top = row.iter().copied().fold(f32::MIN, f32::max);
                    row.iter_mut().for_each(|v| *v = (*v - top).exp());
                    let total: f32 = row.iter().sum();
                    row.iter_mut().for_each(|v| *v /= total);
                }
                gemm::gemm(
                    t,
                    d,
                    t,
                    o,
                    1,
                    width as isize,
                    false,
                    p,
                    1,
                    t as isize,
                    q.add(2 * width),
                    1,
                    step,
                    0.0,
                    1.0f32,
                    false,
                    false,
                    false,
                    none,
                );
            }
        }
    }
}

fn attentions() {
    println!(
        "{:<34}{:>10}{:>10}{:>8}{:>10}{:>10}{:>8}{:>10}{:>8}",
        "attention (tokens, heads x dim)",
        "forward",
        "by gemm",
        "ratio",
        "backward",
        "in bf16",
        "ratio",
        "backward",
        "ratio"
    );
    for (batch, tokens, heads, head_dim) in [
        (8, 17, 3, 64),
        (8, 17, 6, 32),
        (8, 65, 3, 64),
        (64, 65, 6, 64),
        (8, 65, 4, 48),
        (8, 65, 16, 32),
        (8, 257, 12, 64),
        (8, 257, 16, 32),
    ] {
        let shape = AttentionShape { batch, tokens, heads, head_dim, queries: tokens };
        let width = heads * head_dim;
        let qkv = values(batch * tokens * 3 * width);
        let (mut out, mut probs) = (zeros(batch * tokens * width), zeros(batch * heads * tokens * tokens));
        attention(&mut out, Some(&mut probs), &qkv, &shape);
        let (mut kept_out, mut kept) = (zeros(out.len()), zeros(probs.len()));
        kept_out.copy_from_slice(&out);
        kept.copy_from_slice(&probs);
        let (mut dqkv, dout, mut scores) = (values(qkv.len()), values(out.len()), zeros(tokens * tokens));
        let (mut out2, mut out3, mut probs3, mut dqkv3) =
            (zeros(out.len()), zeros(out.len()), zeros(probs.len()), zeros(qkv.len()));
        let bf16 = Factors::Bf16;
        let t = race(&mut [
            &mut || attention(&mut out, Some(&mut probs), &qkv, &shape),
            &mut || crate_attention(&mut out2, &qkv, &shape, &mut scores),
            &mut || attention_grad(&mut dqkv, &dout, &qkv, &kept, &kept_out, &shape),
            &mut || attention_in(bf16, &mut out3, Some(&mut probs3), &qkv, &shape),
            &mut || attention_grad_in(bf16, &mut dqkv3, &dout, &qkv, &kept, &kept_out, &shape),
        ]);
        let gflop = 4e-9 * (batch * heads * tokens * tokens * head_dim) as f64;
        let name = format!("{batch} x {tokens}, {heads} x {head_dim}");
        println!(
            "{name:<34}{:>10.1}{:>10.1}{:>8.2}{:>10.1}{:>10.1}{:>8.2}{:>10.1}{:>8.2}",
            gflop / t[0],
            gflop / t[1],
            t[1] / t[0],
            2.0 * gflop / t[2],
            gflop / t[3],
            t[0] / t[3],
            2.0 * gflop / t[4],
            t[2] / t[4]
        );
    }
}

fn sweeps() {
    println!("{:<34}{:>10}{:>12}   (GB/s read + written)", "sweep", "L2 sized", "DRAM sized");
    const N: usize = 384;
    type Sweep<'a> = (&'a str, f64, Box<dyn FnMut(usize)>);
    let big = 32_000 * N;
    let buffers = || (values(big), values(big), values(big));
    let mut list: Vec<Sweep<'_>> = Vec::new();
    let (bias, gamma) = (values(N), values(N));
    let (mut a, mut b, c) = buffers();
    let bias2 = values(N);
    list.push(("bias_gelu", 12.0, Box::new(move |l| el::bias_gelu(&mut a[..l], &mut b[..l], &bias2))));
    let (mut a, mut b, _) = buffers();
    let c2 = buffer(big, |_| 0.751_8); // where the slope is 1, as dy is multiplied over and over
    list.push(("gelu_grad", 12.0, Box::new(move |l| el::gelu_grad(&mut a[..l], &c2[..l]))));
    list.push(("add_bias_residual", 12.0, Box::new(move |l| el::add_bias_residual(&mut b[..l], &bias, &c[..l]))));
    let (mut y, mut stats, x) = (values(big), values(2 * big / N), values(big));
    let g2 = values(N);
    list.push((
        "layer_norm",
        8.0,
        Box::new(move |l| norm::layer_norm(&mut y[..l], &mut stats[..2 * l / N], &x[..l], &g2, &g2, 1e-6)),
    ));
    let (mut dx, dy, x) = buffers();
    let (stats, mut dg, mut db) = (values(2 * big / N), values(N), values(N));
    list.push((
        "layer_norm_grad",
        12.0,
        Box::new(move |l| {
            norm::layer_norm_grad(
                &mut dx[..l],
                false,
                Some((&mut dg, &mut db)),
                &dy[..l],
                &x[..l],
                &stats[..2 * l / N],
                &gamma,
            )
        }),
    ));
    let (dy, mut db) = (values(big), values(N));
    list.push(("bias_grad", 4.0, Box::new(move |l| reduce::bias_grad(&mut db, &dy[..l], false))));
    let (mut next, theta, grad) = buffers();
    let (mut m, mut v) = (values(big), zeros(big));
    let step = adamw::AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05, step: 3 };
    list.push((
        "adamw",
        28.0,
        Box::new(move |l| adamw::adamw(&mut next[..l], &theta[..l], &grad[..l], &mut m[..l], &mut v[..l], &step)),
    ));
    let (mut out, x, v) = buffers();
    list.push(("scale_add", 12.0, Box::new(move |l| el::scale_add(&mut out[..l], &x[..l], 0.1, &v[..l]))));
    let x = values(big);
    list.push(("sum_sq", 4.0, Box::new(move |l| assert!(reduce::sum_sq(&x[..l]) > 0.0))));
    let (mut out, x) = (values(3 * 64 * 64 * 64), values(3 * 64 * 64 * 64));
    list.push((
        "patchify (3x64x64, patch 8)",
        8.0,
        Box::new(move |l| {
            let l = (l / (3 * 64 * 64)).min(64) * 3 * 64 * 64;
            patches::patchify(&mut out[..l], &x[..l], 3, 64, 8)
        }),
    ));
    let (mut out, x) = (values(3 * 64 * 64 * 64), values(3 * 64 * 64 * 64));
    list.push((
        "patch_targets (3x64x64, patch 8)",
        8.0,
        Box::new(move |l| {
            let l = (l / (3 * 64 * 64)).min(64) * 3 * 64 * 64;
            patches::patch_targets(&mut out[..l], &x[..l], 3, 64, 8)
        }),
    ));
    for (name, bytes, mut f) in list {
        let is_patch = name.starts_with("patch");
        let rate = |len: usize, f: &mut dyn FnMut(usize)| {
            let done = if is_patch { (len / 12288).min(64) * 12288 } else { len };
            1e-9 * bytes * done as f64 / race(&mut [&mut || f(len)])[0]
        };
        let (small, large) = (rate(96 * N, &mut f), rate(big, &mut f));
        println!("{name:<34}{small:>10.1}{large:>12.1}");
    }
}

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    println!("one thread, {:?}", mlomae_kernels::isa());
    for (section, run) in
        [("products", products as fn()), ("rounded", rounded), ("attention", attentions), ("sweeps", sweeps)]
    {
        if section.starts_with(&name) {
            run();
        }
    }
}
