use super::*;
use crate::ops::norm::tests::{assert_act, placed, placed_act};
use crate::ops::tokens::tests::{Trial, assert_close, each};
use crate::twins::activation::{share, slope, spread, tail};
use crate::twins::{values, wide};

/// Lengths, and values before them in their blocks: whole and broken runs, several blocks, no 16-byte loads.
const LENS: [[usize; 2]; 7] = [[1, 0], [3, 0], [8, 0], [1000, 0], [1000, 1], [2049, 0], [5003, 4]];

#[test]
fn gelu_and_its_derivatives_match_their_twins() {
    assert!(
        (share(1.0) - 0.841_344_746_068_543).abs() < 1e-14
            && (tail(3.0) / 1.349_898_031_630_094_6e-3 - 1.0).abs() < 1e-12
    );
    for [len, offset] in LENS {
        each(|t| {
            let s = &t.stream;
            let (z, d) = (t.rounded(&spread(len)), t.rounded(&values(len, 2)));
            let (on_z, on_d) = (placed_act(t, &z, offset), placed_act(t, &d, offset));
            let (on_z, on_d) = (on_z.view().slice(offset..offset + len), on_d.view().slice(offset..offset + len));
            let h = t.nan_act(len);
            s.gelu(h.view(), on_z);
            let want: Vec<f64> = z.iter().map(|z| f64::from(*z) * share(f64::from(*z))).collect();
            let what = format!("{len} from {offset}");
            assert_act(t, &t.read_act(&h), &want, 1e-7, &what);
            let dz = t.nan_act(len);
            s.gelu_grad(dz.view(), on_d, on_z);
            let want: Vec<f64> = z.iter().zip(&d).map(|(z, d)| f64::from(*d) * slope(f64::from(*z))).collect();
            assert_act(t, &t.read_act(&dz), &want, 2e-5, &what);

            let (h2, dh) = (t.nan_act(len), t.nan_act(len));
            s.gelu_tangent(h2.view(), dh.view(), on_z, on_d);
            assert_act(t, &t.read_act(&dh), &want, 2e-5, &what);
            assert_eq!(t.read_act(&h2), t.read_act(&h), "{what}");
            s.gelu_grad(on_d, on_d, on_z);
            let dz = t.read_act(&dz);
            assert_eq!(read_view(t, on_d), dz, "{what}: in place");
            vec![t.read_act(&h), dz, t.read_act(&dh)]
        });
    }
}

fn read_view(t: &Trial, of: ActView<'_>) -> Vec<f32> {
    match of {
        ActView::F32(values) => t.stream.download(values).unwrap(),
        ActView::Bf16(values) => t.stream.download(values).unwrap().iter().map(|v| v.to_f32()).collect(),
    }
}

#[test]
fn gelu_of_bf16_is_right_far_out() {
    each(|t| {
        let z: Vec<f32> = [-1e30, -100.0, -14.0, -13.0, -9.0, -0.0, 0.0, 1e-30, 9.0, 100.0, 1e30].into();
        let (on_z, h) = (t.act(&z), t.nan_act(z.len()));
        t.stream.gelu(h.view(), on_z.view());
        for (got, z) in t.read_act(&h).iter().zip(t.rounded(&z)) {
            let want = if z < -38.0 { 0.0 } else { f64::from(z) * share(f64::from(z)) };
            // f32 has the share within 6e-8, so that a product far below 0 is not of any size.
            let error = (f64::from(*got) - want).abs();
            let is_rounded = error <= want.abs() / 256.0 + 1e-36;
            assert!(
                is_rounded || (t.stream.precision() == crate::Precision::F32 && error < 1e-6),
                "{z}: {got}, not {want}"
            );
        }
        vec![t.read_act(&h)]
    });
}

#[test]
fn relu_and_sigmoid_match_their_twins() {
    for [len, offset] in LENS {
        each(|t| {
            let s = &t.stream;
            let what = format!("{len} from {offset}");
            let (x, d) = (spread(len), values(len, 2));
            let vector = |values: &[f32]| placed(t, values, offset);
            let at = offset..offset + len;
            let (h, dh) = (vector(&x), vector(&d));
            s.relu(h.slice(at.clone()));
            s.relu_grad(dh.slice(at.clone()), h.slice(at.clone()));
            let read = |of: &crate::Mem<f32>| s.download(of.slice(at.clone())).unwrap();
            assert_eq!(read(&h), x.iter().map(|v| v.max(0.0)).collect::<Vec<_>>(), "{what}");
            let want: Vec<f32> = x.iter().zip(&d).map(|(x, d)| if *x > 0.0 { *d } else { 0.0 }).collect();
            assert_eq!(read(&dh), want, "{what}");

            let (p, dp) = (vector(&x), vector(&d));
            s.sigmoid(p.slice(at.clone()));
            let want: Vec<f64> = wide(&x).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            assert_close(&read(&p), &want, 2e-7, &what);
            s.sigmoid_grad(dp.slice(at.clone()), p.slice(at.clone()));
            let seen = wide(&read(&p));
            let want: Vec<f64> = wide(&d).iter().zip(&seen).map(|(d, p)| d * p * (1.0 - p)).collect();
            assert_close(&read(&dp), &want, 2e-7, &what);

            let (dd, moved) = (values(len, 3), values(len, 4));
            let (on_dd, on_ds, on_moved) = (vector(&dd), vector(&d), vector(&moved));
            let views = [&on_dd, &on_ds, &on_moved, &p].map(|v| v.slice(at.clone()));
            s.sigmoid_curvature(views[0], views[1], views[2], views[3]);
            let twin = |i: usize| f64::from(dd[i]) + f64::from(d[i]) * f64::from(moved[i]) * (1.0 - 2.0 * seen[i]);
            assert_close(&read(&on_dd), &(0..len).map(twin).collect::<Vec<_>>(), 3e-7, &what);
            vec![read(&h), read(&dh), read(&p), read(&dp), read(&on_dd)]
        });
    }
    each(|t| {
        let x = t.stream.upload(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -200.0, 200.0]);
        t.stream.sigmoid(x.view());
        let got = t.read(&x);
        assert!(got[0].is_nan() && got[1..] == [1.0, 0.0, 0.0, 1.0], "{got:?}");
        let x = t.stream.upload(&[f32::NAN]);
        t.stream.relu(x.view());
        assert!(t.read(&x)[0].is_nan());
        vec![]
    });
}

#[test]
fn casts_and_sums_are_exact() {
    for [len, offset] in LENS {
        each(|t| {
            let s = &t.stream;
            let at = offset..offset + len;
            let (x, y) = (values(len, 1), values(len, 2));
            let on_x = placed(t, &x, offset);
            let seen = t.rounded(&x);
            let narrow = t.nan_act(offset + len);
            s.narrow(narrow.view().slice(at.clone()), on_x.slice(at.clone()));
            assert_eq!(read_view(t, narrow.view().slice(at.clone())), seen);
            let wide = t.nan(len);
            s.widen(wide.view(), narrow.view().slice(at.clone()));
            assert_eq!(t.read(&wide), seen);
            let cast = s.upload(&vec![bf16::NAN; len]);
            s.cast_bf16(cast.view(), on_x.slice(at.clone()));
            assert_eq!(t.read(&cast), x.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>());

            let on_y = placed_act(t, &y, offset);
            let on_y = on_y.view().slice(at.clone());
            let out = t.nan(len);
            s.add_act(out.view(), on_x.slice(at.clone()), on_y);
            let sum: Vec<f32> = x.iter().zip(t.rounded(&y)).map(|(x, y)| x + y).collect();
            assert_eq!(t.read(&out), sum);
            s.add_into(out.view(), on_x.slice(at.clone()));
            assert_eq!(t.read(&out), sum.iter().zip(&x).map(|(s, x)| s + x).collect::<Vec<_>>());
            s.act_add(on_y, narrow.view().slice(at.clone()));
            let sum: Vec<f32> = t.rounded(&y).iter().zip(&seen).map(|(y, x)| y + x).collect();
            assert_eq!(read_view(t, on_y), t.rounded(&sum));
            vec![t.read(&out), sum]
        });
    }
    // Ties go to even, overflow to infinity, NaN stays NaN, and small values are kept.
    each(|t| {
        let x = [1.003_906_2, 1.011_718_8, -1.003_906_2, f32::MAX, f32::INFINITY, 1e-40, 3.0e-39, f32::NAN];
        let (on_x, out) = (t.stream.upload(&x), t.stream.upload(&[bf16::ZERO; 8]));
        t.stream.cast_bf16(out.view(), on_x.view());
        let got = t.read(&out);
        assert_eq!(got[..7], x.map(bf16::from_f32)[..7]);
        assert!(got[7].is_nan());
        vec![]
    });
}

#[test]
fn rows_are_summed_by_column() {
    for [rows, columns, offset] in
        [[1, 1, 0], [9, 3, 0], [300, 65, 0], [70, 132, 0], [600, 264, 0], [17, 264, 1], [5000, 8, 0], [2, 5000, 0]]
    {
        each(|t| {
            let what = format!("{rows}x{columns} from {offset}");
            let x = values(rows * columns, 1);
            let seen = wide(&t.rounded(&x));
            let on_x = placed_act(t, &x, offset);
            let view = on_x.view().slice(offset..offset + x.len());
            let mut want = vec![0.0; columns];
            for row in seen.chunks_exact(columns) {
                row.iter().zip(&mut want).for_each(|(v, sum)| *sum += v);
            }
            let tolerance = 1e-7 * (rows as f64).sqrt().max(2.0);
            let (out, more) = (t.nan(columns), values(columns, 2));
            t.stream.column_sums(out.view(), view, false);
            assert_close(&t.read(&out), &want, tolerance, &what);
            let added = t.stream.upload(&more);
            t.stream.column_sums(added.view(), view, true);
            let want: Vec<f32> = t.read(&out).iter().zip(&more).map(|(sum, more)| more + sum).collect();
            assert_eq!(t.read(&added), want, "{what}: added");
            vec![t.read(&out)]
        });
    }
    each(|t| {
        let (out, kept) = (t.nan(3), t.stream.upload(&[1.0, 2.0, 3.0]));
        t.stream.column_sums(out.view(), t.nan_act(0).view(), false);
        t.stream.column_sums(kept.view(), t.nan_act(0).view(), true);
        assert_eq!([t.read(&out), t.read(&kept)].concat(), [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
        vec![]
    });
}
