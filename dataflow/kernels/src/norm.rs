//! Layer norm over the last dimension.

use super::dispatch::dispatch;
use super::lengths::{num_rows, same_len};
use super::reduce::add_into;
use super::scratch::with_scratch;
use super::simd::{Simd, sweep};

/// y = (x - mean) · rstd · gamma + beta on every row.
///
/// x and y [rows, n], gamma and beta \[n]. stats [rows, 2] receives mean and rstd = 1/√(var + eps), with
/// the biased variance, computed after the mean in a second pass.
///
/// # Panics
/// If lengths do not fit.
pub fn layer_norm(y: &mut [f32], stats: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) {
    let rows = num_rows(x.len(), gamma.len(), "layer_norm");
    same_len(y.len(), x.len(), "layer_norm");
    same_len(gamma.len(), beta.len(), "layer_norm parameters");
    same_len(stats.len(), 2 * rows, "layer_norm stats");
    dispatch!(layer_norm_on(y: &mut [f32], stats: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32], eps: f32))
}

/// Σ of a term over `0..n` in four chains of additions. `$term` is the vector of `$w` lanes from `$i`, with
/// zeros after them.
macro_rules! row_sum {
    ($s:ident, $n:expr, |$i:ident, $w:ident| $term:expr) => {{
        let n: usize = $n;
        let mut acc = [$s.splat(0.0); 4];
        let mut base = 0;
        while base + 4 * S::LANES <= n {
            for (c, acc) in acc.iter_mut().enumerate() {
                let ($i, $w) = (base + c * S::LANES, S::LANES);
                *acc = $s.add(*acc, $term);
            }
            base += 4 * S::LANES;
        }
        sweep!(S, n - base, |j, $w| {
            let $i = base + j;
            acc[0] = $s.add(acc[0], $term);
        });
        $s.sum($s.add($s.add(acc[0], acc[1]), $s.add(acc[2], acc[3])))
    }};
}

#[inline(always)]
fn layer_norm_on<S: Simd>(s: S, y: &mut [f32], stats: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) {
    let n = gamma.len();
    assert!(beta.len() == n);
    let inv_n = 1.0 / n as f32;
    for ((y, x), stats) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(stats.chunks_exact_mut(2)) {
        let at = x.as_ptr();
        // SAFETY: i + w <= n, the length of x.
        let mean = row_sum!(s, n, |i, w| unsafe { s.load_n(at.add(i), w) }) * inv_n;
        let centre = s.splat(mean);
        let var = row_sum!(s, n, |i, w| {
            // SAFETY: i + w <= n, the length of x. keep() zeroes the lanes after the row's end.
            let d = s.keep(s.sub(unsafe { s.load_n(at.add(i), w) }, centre), w);
            s.mul(d, d)
        }) * inv_n;
        let rstd = 1.0 / (var + eps).sqrt();
        (stats[0], stats[1]) = (mean, rstd);
        let scale = s.splat(rstd);
        sweep!(S, n, |i, w| {
            // SAFETY: i + w <= n, the length of x, y, gamma and beta.
            unsafe {
                let xhat = s.mul(s.sub(s.load_n(at.add(i), w), centre), scale);
                let v = s.fma(xhat, s.load_n(gamma.as_ptr().add(i), w), s.load_n(beta.as_ptr().add(i), w));
                s.store_n(y.as_mut_ptr().add(i), w, v);
            }
        });
    }
}

/// The gradient of [`layer_norm`] from the same x, stats and gamma.
///
/// dx [rows, n] is overwritten, or added to with `accumulate_dx`. `params` = (dgamma, dbeta), each \[n],
/// are added to, in blocks of 128 rows.
///
/// # Panics
/// If lengths do not fit.
pub fn layer_norm_grad(
    dx: &mut [f32],
    accumulate_dx: bool,
    params: Option<(&mut [f32], &mut [f32])>,
    dy: &[f32],
    x: &[f32],
    stats: &[f32],
    gamma: &[f32],
) {
    let n = gamma.len();
    let rows = num_rows(x.len(), n, "layer_norm_grad");
    same_len(dx.len(), x.len(), "layer_norm_grad");
    same_len(dy.len(), x.len(), "layer_norm_grad");
    same_len(stats.len(), 2 * rows, "layer_norm_grad stats");
    with_scratch(2 * n, |block| {
        let io = Grad { dx, dy, x, stats, gamma, accumulate_dx };
        let (block_gamma, block_beta) = block.split_at_mut(n);
        match params {
            None => dispatch!(without_params(io: Grad<'_>)),
            Some((dgamma, dbeta)) => {
                same_len(dgamma.len(), n, "layer_norm_grad dgamma");
                same_len(dbeta.len(), n, "layer_norm_grad dbeta");
                let sums = Sums { dgamma, dbeta, block_gamma, block_beta };
                dispatch!(with_params(io: Grad<'_>, sums: Sums<'_>))
            }
        }
    });
}

struct Grad<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
    stats: &'a [f32],
    gamma: &'a [f32],
    accumulate_dx: bool,
}

/// The gradients of the parameters and their sums over a block of rows, all \[n].
struct Sums<'a> {
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
    block_gamma: &'a mut [f32],
    block_beta: &'a mut [f32],
}

/// Rows whose parameter gradients are summed before they join the total: bounds the length of a chain of
/// additions.
const BLOCK_ROWS: usize = 128;

#[inline(always)]
fn without_params<S: Simd>(s: S, mut io: Grad<'_>) {
    for r in 0..io.stats.len() / 2 {
        io.row::<S, false>(s, r, &mut [], &mut []);
    }
}

#[inline(always)]
fn with_params<S: Simd>(s: S, mut io: Grad<'_>, sums: Sums<'_>) {
    let rows = io.stats.len() / 2;
    for first in (0..rows).step_by(BLOCK_ROWS) {
        sums.block_gamma.fill(0.0);
        sums.block_beta.fill(0.0);
        for r in first..rows.min(first + BLOCK_ROWS) {
            io.row::<S, true>(s, r, sums.block_gamma, sums.block_beta);
        }
        add_into(s, sums.dgamma, sums.block_gamma);
        add_into(s, sums.dbeta, sums.block_beta);
    }
}

impl Grad<'_> {
    /// Row `r`: dx (+)= rstd (g - mean(g) - x̂ mean(g x̂)) with g = dy·gamma; with `PARAMS`, dgamma +=
    /// dy·x̂ and dbeta += dy.
    #[inline(always)]
    fn row<S: Simd, const PARAMS: bool>(&mut self, s: S, r: usize, dgamma: &mut [f32], dbeta: &mut [f32]) {
        let gamma = self.gamma;
        let n = gamma.len();
        let at = r * n..(r + 1) * n;
        let (dx, dy, x) = (&mut self.dx[at.clone()], &self.dy[at.clone()], &self.x[at]);
        let (mean, rstd, accumulate) = (self.stats[2 * r], self.stats[2 * r + 1], self.accumulate_dx);
        assert!(!PARAMS || (dgamma.len() == n && dbeta.len() == n));
        let (mut sum_g, mut sum_gx) = ([s.splat(0.0); 2], [s.splat(0.0); 2]);
        let (centre, scale) = (s.splat(mean), s.splat(rstd));
        let mut base = 0;
        while base + 2 * S::LANES <= n {
            for c in 0..2 {
                let i = base + c * S::LANES;
                // SAFETY: i + LANES <= n, the length of dy, gamma and x.
                unsafe {
                    let g = s.mul(s.load(dy.as_ptr().add(i)), s.load(gamma.as_ptr().add(i)));
                    let d = s.sub(s.load(x.as_ptr().add(i)), centre);
                    sum_g[c] = s.add(sum_g[c], g);
                    sum_gx[c] = s.fma(g, d, sum_gx[c]);
                }
            }
            base += 2 * S::LANES;
        }
        sweep!(S, n - base, |j, w| {
            // SAFETY: base + j + w <= n. g is zero after the row's end.
            unsafe {
                let i = base + j;
                let g = s.mul(s.load_n(dy.as_ptr().add(i), w), s.load_n(gamma.as_ptr().add(i), w));
                let d = s.sub(s.load_n(x.as_ptr().add(i), w), centre);
                sum_g[0] = s.add(sum_g[0], g);
                sum_gx[0] = s.fma(g, d, sum_gx[0]);
            }
        });
        let inv_n = 1.0 / n as f32;
        let mean_g = s.splat(s.sum(s.add(sum_g[0], sum_g[1])) * inv_n);
        let mean_gx = s.splat(s.sum(s.add(sum_gx[0], sum_gx[1])) * rstd * inv_n);
        sweep!(S, n, |i, w| {
            // SAFETY: i + w <= n, the length of all slices (with PARAMS, of dgamma and dbeta too).
            unsafe {
                let dy = s.load_n(dy.as_ptr().add(i), w);
                let xhat = s.mul(s.sub(s.load_n(x.as_ptr().add(i), w), centre), scale);
                let g = s.mul(dy, s.load_n(gamma.as_ptr().add(i), w));
                let mut d = s.mul(scale, s.sub(s.sub(g, mean_g), s.mul(xhat, mean_gx)));
                let p = dx.as_mut_ptr().add(i);
                if accumulate {
                    d = s.add(d, s.load_n(p, w));
                }
                s.store_n(p, w, d);
                if PARAMS {
                    let (p, q) = (dgamma.as_mut_ptr().add(i), dbeta.as_mut_ptr().add(i));
                    s.store_n(p, w, s.fma(dy, xhat, s.load_n(p, w)));
                    s.store_n(q, w, s.add(dy, s.load_n(q, w)));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, central_differences, dot, each_isa, values, wide};

    const EPS: f32 = 1e-6;
    const SIZES: [(usize, usize); 6] = [(1, 3), (2, 17), (3, 27), (2, 65), (5, 192), (300, 20)];

    fn twin(x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
        let n = gamma.len();
        let row = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / n as f64;
            let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            let rstd = 1.0 / (var + f64::from(EPS)).sqrt();
            x.iter().zip(gamma.iter().zip(beta)).map(|(v, (g, b))| (v - mean) * rstd * g + b).collect::<Vec<_>>()
        };
        x.chunks_exact(n).flat_map(row).collect()
    }

    fn inputs(rows: usize, n: usize) -> [Vec<f32>; 4] {
        let x = values(rows * n, 1).iter().map(|v| v + 3.0).collect();
        [x, values(n, 2), values(n, 3), values(rows * n, 4)]
    }

    #[test]
    fn forward_matches_its_twin() {
        for (rows, n) in SIZES {
            let [x, gamma, beta, _] = inputs(rows, n);
            let want = twin(&wide(&x), &wide(&gamma), &wide(&beta));
            each_isa(|isa| {
                let (mut y, mut stats) = (vec![f32::NAN; rows * n], vec![f32::NAN; 2 * rows]);
                layer_norm(&mut y, &mut stats, &x, &gamma, &beta, EPS);
                assert_close(&y, &want, 1e-6, &format!("layer_norm {rows}x{n} {isa:?}"));
                let (mut one, mut one_stats) = (vec![0.0; n], [0.0; 2]);
                layer_norm(&mut one, &mut one_stats, &x[(rows - 1) * n..], &gamma, &beta, EPS);
                assert_eq!(one, y[(rows - 1) * n..], "a row depends on the number of rows");
                assert_eq!(one_stats, stats[2 * rows - 2..]);
            });
        }
    }

    #[test]
    fn a_constant_row_gives_beta() {
        each_isa(|_| {
            let (mut y, mut stats) = ([0.0; 19], [0.0; 2]);
            layer_norm(&mut y, &mut stats, &[7.0; 19], &[2.0; 19], &[0.5; 19], EPS);
            assert!(y.iter().all(|v| (v - 0.5).abs() < 2e-3), "{y:?}");
        });
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (rows, n) in SIZES {
            let [x, gamma, beta, dy] = inputs(rows, n);
            let (wx, wg, wb, wd) = (wide(&x), wide(&gamma), wide(&beta), wide(&dy));
            // A row's loss depends on that row of x alone.
            let row = |r: usize| r * n..(r + 1) * n;
            let dx_want: Vec<f64> = (0..rows)
                .flat_map(|r| central_differences(&wx[row(r)], |x| dot(&twin(x, &wg, &wb), &wd[row(r)])))
                .collect();
            let dg_want = central_differences(&wg, |g| dot(&twin(&wx, g, &wb), &wd));
            let db_want = central_differences(&wb, |b| dot(&twin(&wx, &wg, b), &wd));
            each_isa(|isa| {
                let what = format!("layer_norm_grad {rows}x{n} {isa:?}");
                let (mut y, mut stats) = (vec![0.0; rows * n], vec![0.0; 2 * rows]);
                layer_norm(&mut y, &mut stats, &x, &gamma, &beta, EPS);
                let (mut dx, mut dg, mut db) = (vec![f32::NAN; rows * n], vec![1.0; n], vec![2.0; n]);
                layer_norm_grad(&mut dx, false, Some((&mut dg, &mut db)), &dy, &x, &stats, &gamma);
                assert_close(&dx, &dx_want, 3e-6, &what);
                let plus = |v: &[f64], by: f64| v.iter().map(|v| v + by).collect::<Vec<_>>();
                assert_close(&dg, &plus(&dg_want, 1.0), 2e-6, &format!("{what} dgamma"));
                assert_close(&db, &plus(&db_want, 2.0), 2e-6, &format!("{what} dbeta"));
                let mut twice = dx.clone();
                layer_norm_grad(&mut twice, true, None, &dy, &x, &stats, &gamma);
                assert!(twice.iter().zip(&dx).all(|(t, d)| *t == 2.0 * d), "{what}: accumulated");
            });
        }
    }
}
