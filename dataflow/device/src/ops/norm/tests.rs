use super::*;
use crate::memory::{Act, Mem};
use crate::ops::tokens::tests::{Trial, assert_close, each};
use crate::stream::Precision;
use crate::twins::norm::{grad, norm, tangent};
use crate::twins::{values, wide};

/// As `assert_close`, for an activation: within bf16's rounding of each value besides, if it is bf16.
#[track_caller]
pub(in crate::ops) fn assert_act(t: &Trial, got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    let rounding = if t.stream.precision() == Precision::Bf16 { 1.001 / 256.0 } else { 0.0 };
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= rounding * w.abs() + tolerance * size, "{what}: value {i} is {g}, not {w}");
    }
}

/// A vector that begins `offset` values after a block does, so that 16-byte loads may not be used.
pub(in crate::ops) fn placed(t: &Trial, values: &[f32], offset: usize) -> Mem<f32> {
    t.stream.upload(&[&vec![f32::NAN; offset][..], values].concat())
}

pub(in crate::ops) fn placed_act(t: &Trial, values: &[f32], offset: usize) -> Act {
    t.act(&[&vec![f32::NAN; offset][..], values].concat())
}

/// Rows, width, offset: widths of each way to hold a row, more blocks of rows than are summed at once.
const SHAPES: [[usize; 3]; 11] = [
    [1, 1, 0],
    [1, 3, 0],
    [5, 17, 0],
    [2, 65, 0],
    [7, 192, 0],
    [3, 192, 1],
    [5, 516, 0],
    [2, 1024, 0],
    [3, 1028, 0],
    [2, 2052, 0],
    [600, 20, 0],
];

/// Rows of few values may be nearly constant, where the rounding of x itself is scaled up.
fn tolerance(width: usize) -> f64 {
    if width < 8 { 1e-4 } else { 1e-6 }
}

/// x, gamma, beta, dy, and directions of x, gamma and beta.
fn inputs(rows: usize, width: usize) -> [Vec<f32>; 7] {
    let x = values(rows * width, 1).iter().map(|v| v + 1.5).collect();
    let [dy, dx] = [4, 5].map(|seed| values(rows * width, seed));
    let [gamma, beta, dgamma, dbeta] = [2, 3, 6, 7].map(|seed| values(width, seed));
    [x, gamma, beta, dy, dx, dgamma, dbeta]
}

#[test]
fn the_twins_are_adjoint() {
    let [x, gamma, beta, dy, dx, dgamma, dbeta] = inputs(3, 17).map(|v| wide(&v));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let forward = dot(&dy, &tangent(&x, &gamma, &beta, [&dx, &dgamma, &dbeta]));
    let [gx, gg, gb] = grad(&x, &gamma, &dy);
    assert!((forward - dot(&gx, &dx) - dot(&gg, &dgamma) - dot(&gb, &dbeta)).abs() < 1e-8);
}

#[test]
fn rows_are_normalised() {
    for [rows, width, offset] in SHAPES {
        each(|t| {
            let s = &t.stream;
            let what = format!("{rows}x{width} from {offset}");
            let len = rows * width;
            let [x, gamma, beta, delta, ..] = inputs(rows, width);
            let [on_x, on_gamma, on_beta] = [&x, &gamma, &beta].map(|v| placed(t, v, offset));
            let (on_gamma, on_beta) = (on_gamma.slice(offset..offset + width), on_beta.slice(offset..offset + width));
            let on_x = on_x.slice(offset..offset + len);
            let check = |y: &Act, stats: &Mem<f32>, x: &[f32]| {
                let want = norm(&wide(x), &wide(&gamma), &wide(&beta));
                assert_act(t, &t.read_act(y), &want, tolerance(width), &what);
                for (stats, x) in t.read(stats).chunks_exact(2).zip(x.chunks_exact(width)) {
                    let mean = wide(x).iter().sum::<f64>() / width as f64;
                    let variance = wide(x).iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
                    let scale = 1.0 / (variance + f64::from(EPS)).sqrt();
                    assert!((f64::from(stats[0]) - mean).abs() < 1e-6, "{what}: mean {} {mean}", stats[0]);
                    assert!((f64::from(stats[1]) / scale - 1.0).abs() < 1e-6, "{what}: {} {scale}", stats[1]);
                }
            };
            let (y, stats) = (t.nan_act(len), t.nan(2 * rows));
            s.layer_norm(y.view(), stats.view(), on_x, on_gamma, on_beta);
            check(&y, &stats, &x);

            let on_delta = placed_act(t, &delta, offset);
            let on_delta = on_delta.view().slice(offset..offset + len);
            let (sum, y2, stats2) = (t.nan(len), t.nan_act(len), t.nan(2 * rows));
            s.add_layer_norm(sum.view(), y2.view(), stats2.view(), on_x, on_delta, on_gamma, on_beta);
            let want: Vec<f32> = x.iter().zip(t.rounded(&delta)).map(|(x, d)| x + d).collect();
            assert_eq!(t.read(&sum), want, "{what}");
            check(&y2, &stats2, &want);
            let y3 = t.nan_act(len);
            s.add_layer_norm(on_x, y3.view(), stats2.view(), on_x, on_delta, on_gamma, on_beta);
            assert_eq!(s.download(on_x).unwrap(), want, "{what}: in place");
            assert_eq!(t.read_act(&y3), t.read_act(&y2), "{what}: in place");
            vec![t.read_act(&y), t.read(&stats), t.read_act(&y2)]
        });
    }
}

#[test]
fn gradients_match_their_twins() {
    for [rows, width, offset] in SHAPES {
        each(|t| {
            let s = &t.stream;
            let what = format!("{rows}x{width} from {offset}");
            let len = rows * width;
            let [x, gamma, beta, dy, add, ..] = inputs(rows, width);
            let [on_x, on_gamma, on_beta] = [&x, &gamma, &beta].map(|v| placed(t, v, offset));
            let [on_gamma, on_beta] = [&on_gamma, &on_beta].map(|v| v.slice(offset..offset + width));
            let on_x = on_x.slice(offset..offset + len);
            let stats = t.nan(2 * rows);
            s.layer_norm(t.nan_act(len).view(), stats.view(), on_x, on_gamma, on_beta);

            let (dy, on_dy) = (t.rounded(&dy), t.act(&dy));
            let [dx_want, dgamma_want, dbeta_want] = grad(&wide(&x), &wide(&gamma), &wide(&dy));
            let (dx, dgamma, dbeta) = (t.nan(len), t.nan(width), t.nan(width));
            let low = s.upload(&vec![bf16::NAN; len]);
            let weights = Some((dgamma.view(), dbeta.view()));
            let (view, stats) = (on_dy.view(), stats.view());
            s.layer_norm_grad(dx.view(), Some(low.view()), None, view, on_x, stats, on_gamma, weights);
            let size = dx_want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
            assert_close(&t.read(&dx), &dx_want, tolerance(width), &what);
            let many = (rows as f64).sqrt().max(1.0);
            assert_close(&t.read(&dgamma), &dgamma_want, 1e-6 * many, &format!("{what}: dgamma"));
            assert_close(&t.read(&dbeta), &dbeta_want, 1e-6 * many, &format!("{what}: dbeta"));
            let rounded: Vec<bf16> = t.read(&dx).iter().map(|v| bf16::from_f32(*v)).collect();
            assert_eq!(t.read(&low), rounded, "{what}");

            let total = placed(t, &add, offset);
            let total = total.slice(offset..offset + len);
            s.layer_norm_grad(total, None, Some(total), view, on_x, stats, on_gamma, None);
            let got = s.download(total).unwrap();
            for (i, (got, (dx, add))) in got.iter().zip(t.read(&dx).iter().zip(&add)).enumerate() {
                let error = f64::from((got - (dx + add)).abs());
                assert!(error <= 1e-6 * size, "{what}: value {i} is {got}, not {}", dx + add);
            }
            vec![t.read(&dx), t.read(&dgamma), t.read(&dbeta), got]
        });
    }
}

#[test]
fn tangents_match_central_differences() {
    for [rows, width, offset] in SHAPES {
        if width < 3 {
            continue; // the curvature of so short a row is beyond central differences
        }
        each(|t| {
            let s = &t.stream;
            let [x, gamma, beta, _, dx, dgamma, dbeta] = inputs(rows, width);
            let on = [&gamma, &beta, &dgamma, &dbeta].map(|v| placed(t, v, offset));
            let [on_gamma, on_beta, on_dgamma, on_dbeta] =
                [0, 1, 2, 3].map(|i: usize| on[i].slice(offset..offset + width));
            let (on_x, on_dx, stats) = (s.upload(&x), s.upload(&dx), t.nan(2 * rows));
            s.layer_norm(t.nan_act(x.len()).view(), stats.view(), on_x.view(), on_gamma, on_beta);
            let mut results = Vec::new();
            for moves in [true, false] {
                let dy = t.nan_act(x.len());
                let moving = moves.then_some((on_dgamma, on_dbeta));
                s.layer_norm_tangent(dy.view(), on_dx.view(), on_x.view(), stats.view(), on_gamma, moving);
                let still = vec![0.0; width];
                let [dgamma, dbeta] = [&dgamma, &dbeta].map(|d| if moves { wide(d) } else { still.clone() });
                let want = tangent(&wide(&x), &wide(&gamma), &wide(&beta), [&wide(&dx), &dgamma, &dbeta]);
                let what = format!("{rows}x{width} from {offset}, weights move: {moves}");
                assert_act(t, &t.read_act(&dy), &want, tolerance(width), &what);
                results.push(t.read_act(&dy));
            }
            results
        });
    }
}

#[test]
fn no_rows_are_no_launch_and_zero_gradients() {
    each(|t| {
        let (empty, ones) = (t.stream.take::<f32>(0), t.stream.upload(&[1.0f32; 5]));
        let (dgamma, dbeta) = (t.nan(5), t.nan(5));
        let (y, gamma) = (t.nan_act(0), ones.view());
        t.stream.layer_norm(y.view(), empty.view(), empty.view(), gamma, gamma);
        let weights = Some((dgamma.view(), dbeta.view()));
        let (x, stats) = (empty.view(), empty.view());
        t.stream.layer_norm_grad(empty.view(), None, None, y.view(), x, stats, gamma, weights);
        assert_eq!([t.read(&dgamma), t.read(&dbeta)].concat(), [0.0; 10]);
        vec![]
    });
}
