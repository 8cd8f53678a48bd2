use super::*;
use crate::ops::norm::tests::placed;
use crate::ops::tokens::tests::{assert_close, each};
use crate::twins::{values, wide};

#[test]
fn adamw_follows_the_definition() {
    // Pieces whose ends fall into runs of four, one after another of the same decay, one of a single weight, one
    // frozen.
    let cuts = [0, 5, 6, 7, 90, 1001, 1001, 1299, 3001];
    let decays = [0.1, 0.0, f64::NAN, 0.1, 0.1, 5.0, f64::NAN, 0.01];
    let pieces: Vec<_> = (0..8).map(|i| (cuts[i]..cuts[i + 1], decays[i])).collect();
    let len = 3001;
    let decay_of = |i: usize| pieces.iter().find(|(range, _)| range.contains(&i)).unwrap().1;
    let (lr, b1, b2, eps) = (1e-2f64, 0.9f64, 0.95f64, 1e-8f64);
    let start = values(len, 1);
    let (mut theta, mut m, mut v) = (wide(&start), vec![0.0; len], vec![0.0; len]);
    for step in 1..=5u64 {
        let grad = wide(&values(len, 10 + step));
        for i in (0..len).filter(|i| !decay_of(*i).is_nan()) {
            theta[i] *= 1.0 - lr * decay_of(i);
            m[i] = b1 * m[i] + (1.0 - b1) * grad[i];
            v[i] = b2 * v[i] + (1.0 - b2) * grad[i] * grad[i];
            let denom = (v[i] / (1.0 - b2.powi(step as i32))).sqrt() + eps;
            theta[i] -= lr / (1.0 - b1.powi(step as i32)) * m[i] / denom;
        }
    }
    for offset in [0, 1, 4] {
        each(|t| {
            let s = &t.stream;
            let on_pieces = s.adamw_pieces(&pieces);
            let at = offset..offset + len;
            let (mut now, mut next) = (placed(t, &start, offset), s.take::<f32>(offset + len));
            let (on_m, on_v) = (s.zeros::<f32>(offset + len), s.zeros::<f32>(offset + len));
            for step in 1..=5 {
                let grad = placed(t, &values(len, 10 + step), offset);
                let constants = AdamWStep { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, step };
                let views = [&next, &on_m, &on_v, &now, &grad].map(|x| x.slice(at.clone()));
                s.adamw(views[0], views[1], views[2], views[3], views[4], &on_pieces, &constants);
                std::mem::swap(&mut now, &mut next);
            }
            let got = [&now, &on_m, &on_v].map(|x| s.download(x.slice(at.clone())).unwrap());
            for (got, (want, what)) in got.iter().zip([(&theta, "theta"), (&m, "m"), (&v, "v")]) {
                assert_close(got, want, 2e-6, what);
            }
            for i in (0..len).filter(|i| decay_of(*i).is_nan()) {
                assert_eq!([got[0][i], got[1][i], got[2][i]], [start[i], 0.0, 0.0], "weight {i} is frozen");
            }
            got.into()
        });
    }
}

#[test]
#[should_panic(expected = "ranges with a gap")]
fn pieces_leave_no_gap() {
    let stream = Stream::new(&crate::testing::gpu(), crate::Precision::F32, crate::Priority::Normal).unwrap();
    drop(stream.adamw_pieces(&[(0..3, 0.0), (4..5, 0.0)]));
}

#[test]
fn sums_of_vectors_match_their_twins() {
    for [len, offset] in [[0, 0], [1, 0], [3, 0], [1000, 0], [1000, 1], [2049, 0]] {
        each(|t| {
            let s = &t.stream;
            let at = offset..offset + len;
            let (x, y) = (values(len, 1), values(len, 2));
            let (on_x, on_y, out) = (placed(t, &x, offset), placed(t, &y, offset), t.nan(offset + len));
            let (on_x, on_y, out) = (on_x.slice(at.clone()), on_y.slice(at.clone()), out.slice(at.clone()));
            let twin = |f: &dyn Fn(f64, f64) -> f64| {
                x.iter().zip(&y).map(|(x, y)| f(f64::from(*x), f64::from(*y))).collect::<Vec<_>>()
            };
            s.combined(out, 0.75, on_x, -1.5, on_y);
            let first = s.download(out).unwrap();
            assert_close(&first, &twin(&|x, y| 0.75 * x - 1.5 * y), 2e-7, "combined");
            s.scale_add(out, on_x, 0.3, on_y);
            let second = s.download(out).unwrap();
            assert_close(&second, &twin(&|x, y| x + f64::from(0.3f32) * y), 2e-7, "scale_add");
            s.scale_add(on_x, on_x, 0.3, on_y);
            assert_eq!(s.download(on_x).unwrap(), second, "scale_add in place");
            s.scaled(out, on_y, -3.0);
            assert_eq!(s.download(out).unwrap(), y.iter().map(|y| -3.0 * y).collect::<Vec<_>>());
            let squares: Vec<f32> = y.iter().map(|y| y * y).collect();
            let on_squares = s.upload(&squares);
            s.preconditioned(out, s.upload(&x).view(), on_squares.view(), 1.7, 1e-2);
            let third = s.download(out).unwrap();
            let root = |y: f64| (y * y * f64::from(1.7f32)).sqrt() + f64::from(1e-2f32);
            assert_close(&third, &twin(&|x, y| x / root(y)), 3e-6, "preconditioned");
            vec![first, second, third]
        });
    }
}

#[test]
fn reductions_match_their_twins() {
    for [len, offset] in [[0, 0], [1, 0], [6, 0], [1000, 1], [8192, 0], [8195, 0], [30_001, 4]] {
        each(|t| {
            let s = &t.stream;
            let at = offset..offset + len;
            let (x, y) = (values(len, 1), values(len, 2));
            let (on_x, on_y) = (placed(t, &x, offset), placed(t, &y, offset));
            let (on_x, on_y) = (on_x.slice(at.clone()), on_y.slice(at.clone()));
            let twin = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            let (dot, squares) = (s.dot(on_x, on_y).unwrap(), s.sum_of_squares(on_x).unwrap());
            let size = len.max(1) as f64;
            assert!((dot - twin(&x, &y)).abs() <= 1e-13 * size, "{len}: {dot}");
            assert!((squares - twin(&x, &x)).abs() <= 1e-13 * size, "{len}: {squares}");
            // The bits of an f64 as two of f32.
            [dot, squares]
                .map(|v| [v.to_bits(), v.to_bits() >> 32].map(|half| f32::from_bits(half as u32)).to_vec())
                .into()
        });
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_found() {
    each(|t| {
        let (s, len) = (&t.stream, 20_003);
        let found = |bad: &[(usize, f32)]| {
            let mut x = values(len, 1);
            bad.iter().for_each(|(at, value)| x[*at] = *value);
            s.first_non_finite(s.upload(&x).view()).unwrap().map(|(at, value)| (at, value.to_bits()))
        };
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(found(&[]), None);
        for bad in [
            [(0, nan), (5, inf)],
            [(20_002, -inf), (20_002, inf)],
            [(8192, inf), (8193, nan)],
            [(300, nan), (9000, inf)],
        ] {
            let (at, value) = if bad[0].0 == bad[1].0 { bad[1] } else { bad[0] };
            assert_eq!(found(&bad), Some((at, value.to_bits())));
        }
        assert_eq!(s.first_non_finite(s.take::<f32>(0).view()).unwrap(), None);
        vec![]
    });
}
