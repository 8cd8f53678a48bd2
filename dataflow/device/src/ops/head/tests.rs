//! Heads against plain loops.

use super::*;
use crate::ops::tokens::tests::{Trial, each};
use crate::twins::head::{cross_entropy, normed};
use crate::twins::{product, values, wide};

/// |got − want| ≤ 10⁻¹²·max(1, largest |want|): what is left of f64 after sums in another order.
#[track_caller]
fn assert_wide(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-12 * size, "{what}: value {i} is {g}, not {w}");
    }
}

/// Both halves of the bits, as the schedules compare them.
fn bits(values: &[f64]) -> Vec<f32> {
    values.iter().flat_map(|v| [v.to_bits() as u32, (v.to_bits() >> 32) as u32]).map(f32::from_bits).collect()
}

fn up(t: &Trial, values: &[f64]) -> crate::Mem<f64> {
    t.stream.upload(values)
}

fn nan(t: &Trial, len: usize) -> crate::Mem<f64> {
    up(t, &vec![f64::NAN; len])
}

/// Images, width: a part of a warp, parts of a block, more columns than it has threads.
const SHAPES: [[usize; 2]; 6] = [[1, 1], [3, 7], [5, 32], [2, 192], [37, 33], [2, 700]];

#[test]
fn norms_and_their_gradients_match_their_twins() {
    for [images, width] in SHAPES {
        each(|t| {
            let s = &t.stream;
            let what = |of: &str| format!("{of} of {images}x{width}");
            let z: Vec<f32> = values(images * width, 1).iter().map(|v| v + 0.5).collect();
            let [gamma, beta, dy] =
                [(width, 2), (width, 3), (images * width, 4)].map(|(n, seed)| wide(&values(n, seed)));
            let factors: Vec<f32> =
                values(images * width, 5).iter().map(|v| if *v < -0.5 { 0.0 } else { 1.25 }).collect();
            let (on_z, on_factors) = (s.upload(&z), s.upload(&factors));
            let (on_gamma, on_beta) = (up(t, &gamma), up(t, &beta));
            let [want_normed, want_scale] = normed(&wide(&z), width);
            let mut results = Vec::new();
            for kept in [None, Some(on_factors.view())] {
                let w = HeadNorm { gamma: on_gamma.view(), beta: on_beta.view(), factors: kept };
                let factor = |i: usize| if kept.is_some() { f64::from(factors[i]) } else { 1.0 };
                let [y, norm, dz] = [0; 3].map(|_| nan(t, z.len()));
                let scale = nan(t, images);
                s.head_norm(y.view(), norm.view(), scale.view(), on_z.view(), &w);
                assert_wide(&t.read(&norm), &want_normed, &what("normed"));
                assert_wide(&t.read(&scale), &want_scale, &what("scale"));
                let want = (0..z.len()).map(|i| (want_normed[i] * gamma[i % width] + beta[i % width]) * factor(i));
                assert_wide(&t.read(&y), &want.collect::<Vec<_>>(), &what("y"));
                let (on_dy, alone) = (up(t, &dy), up(t, &dy));
                s.head_norm_grad(Some(dz.view()), on_dy.view(), norm.view(), scale.view(), &w);
                s.head_norm_grad(None, alone.view(), norm.view(), scale.view(), &w);
                let before: Vec<f64> = (0..z.len()).map(|i| dy[i] * factor(i)).collect();
                assert_wide(&t.read(&on_dy), &before, &what("dy"));
                assert_eq!(t.read(&alone), t.read(&on_dy), "{}", what("dy alone"));
                let [want, ..] = crate::twins::norm::grad(&wide(&z), &gamma, &before);
                assert_wide(&t.read(&dz), &want, &what("dz"));
                results.extend([&y, &norm, &dz, &scale].map(|v| bits(&t.read(v))));
            }
            results
        });
    }
}

#[test]
fn products_and_sums_match_their_twins() {
    for shape @ [m, n, k] in [[1, 1, 1], [3, 5, 7], [32, 32, 16], [33, 65, 17], [2, 100, 192], [70, 3, 40], [5, 4, 0]] {
        each(|t| {
            let [a, b, bias] = [(m * k, 1), (k * n, 2), (n, 3)].map(|(len, seed)| wide(&values(len, seed)));
            let (on_a, on_b, on_bias) = (up(t, &a), up(t, &b), up(t, &bias));
            let mut results = Vec::new();
            for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                for with_bias in [false, true] {
                    let out = nan(t, m * n);
                    let factors = [on_a.view(), on_b.view()];
                    t.stream.product_f64(out.view(), factors, transposed, shape, with_bias.then_some(on_bias.view()));
                    let want = product([&a, &b], transposed, shape, with_bias.then_some(&bias));
                    assert_wide(&t.read(&out), &want, &format!("product {shape:?} {transposed:?}"));
                    results.push(bits(&t.read(&out)));
                }
            }
            results
        });
    }
    for [rows, columns] in [[1, 1], [0, 3], [5, 7], [31, 32], [100, 33], [3, 200]] {
        each(|t| {
            let [x, y] = [1, 2].map(|seed| wide(&values(rows * columns, seed)));
            let (on_x, on_y) = (up(t, &x), up(t, &y));
            let mut results = Vec::new();
            for with_y in [false, true] {
                let out = nan(t, columns);
                t.stream.column_sums_f64(out.view(), on_x.view(), with_y.then_some(on_y.view()));
                let term = |i: usize| if with_y { x[i] * y[i] } else { x[i] };
                let sum = |column: usize| (0..rows).map(|row| term(row * columns + column)).sum();
                assert_wide(&t.read(&out), &(0..columns).map(sum).collect::<Vec<_>>(), "column sums");
                results.push(bits(&t.read(&out)));
            }
            results
        });
    }
}

#[test]
fn cross_entropies_match_their_twins() {
    for [images, classes] in [[1, 1], [1, 2], [5, 10], [9, 33], [3, 100], [130, 3]] {
        each(|t| {
            let mut logits: Vec<f64> = wide(&values(images * classes, 1)).iter().map(|v| 3.0 * v).collect();
            // The largest of the first image is there twice: the first of them counts.
            if classes > 2 {
                (logits[1], logits[classes - 1]) = (20.0, 20.0);
            }
            let labels: Vec<u32> = (0..images).map(|i| ((5 * i + 1) % classes) as u32).collect();
            let (on_logits, on_labels) = (up(t, &logits), t.stream.upload(&labels));
            let [loss, right] = [0; 2].map(|_| nan(t, images));
            t.stream.cross_entropy_f64(loss.view(), right.view(), on_logits.view(), on_labels.view(), 7.0);
            let got = [&loss, &right, &on_logits].map(|v| t.read(v));
            let want = cross_entropy(&logits, &labels, classes, 7.0);
            for ((got, want), what) in got.iter().zip(&want).zip(["loss", "right", "cotangents"]) {
                assert_wide(got, want, &format!("{what} of {images}x{classes}"));
            }
            assert!(got[1][0] == 1.0, "the first of two largest");
            got.iter().map(|v| bits(v)).collect()
        });
    }
    // Logits whose exponentials are infinite.
    each(|t| {
        let (logits, labels) = (up(t, &[5000.0, 4000.0, -5000.0, 0.0]), t.stream.upload(&[1u32, 1]));
        let [loss, right] = [0; 2].map(|_| nan(t, 2));
        t.stream.cross_entropy_f64(loss.view(), right.view(), logits.view(), labels.view(), 1.0);
        assert_eq!((t.read(&loss), t.read(&right)), (vec![1000.0, 0.0], vec![0.0, 1.0]));
        assert_eq!(t.read(&logits), [1.0, -1.0, 0.0, 0.0]);
        vec![]
    });
}

#[test]
fn vectors_become_wider_moved_and_narrower() {
    for len in [1, 3, 700] {
        each(|t| {
            let s = &t.stream;
            let x = values(len, 1);
            let v = wide(&values(len, 2));
            let (on_x, on_v, wider, moved, narrow) = (s.upload(&x), up(t, &v), nan(t, len), nan(t, len), t.nan(len));
            s.widen_f64(wider.view(), on_x.view());
            assert_eq!(t.read(&wider), wide(&x));
            s.scale_add_f64(moved.view(), wider.view(), 1e-9, on_v.view());
            let want: Vec<f64> = wide(&x).iter().zip(&v).map(|(x, v)| x + 1e-9 * v).collect();
            assert_wide(&t.read(&moved), &want, "moved");
            // What f32 would not see.
            s.narrow_difference_f64(narrow.view(), moved.view(), Some(wider.view()), 1e-9);
            for (got, v) in t.read(&narrow).iter().zip(&v) {
                assert!((f64::from(*got) - v).abs() < 1e-6, "{got}, not {v}");
            }
            let difference = t.read(&narrow);
            s.narrow_difference_f64(narrow.view(), wider.view(), None, 2.0);
            assert_eq!(t.read(&narrow), x.iter().map(|x| x / 2.0).collect::<Vec<_>>());
            vec![difference, bits(&t.read(&moved))]
        });
    }
}
