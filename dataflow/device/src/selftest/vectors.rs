//! Sweeps over vectors of f32, and reductions.

use half::bf16;

use super::trial::Trial;
use crate::error::DeviceError;
use crate::ops::AdamWStep;
use crate::twins::activation::spread;
use crate::twins::{values, wide};

pub(super) fn sums(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for len in [3, 1000, 2049] {
        let (x, y) = (values(len, 1), values(len, 2));
        let (on_x, on_y, out) = (s.upload(&x), s.upload(&y), t.nan(len));
        let twin = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            wide(&x).iter().zip(wide(&y)).map(|(x, y)| f(*x, y)).collect()
        };
        s.combined(out.view(), 0.75, on_x.view(), -1.5, on_y.view());
        t.close("combined", &t.read(&out)?, &twin(&|x, y| 0.75 * x - 1.5 * y), 2e-7);
        s.scale_add(out.view(), on_x.view(), 0.3, on_y.view());
        t.close("scale_add", &t.read(&out)?, &twin(&|x, y| x + f64::from(0.3f32) * y), 2e-7);
        s.scaled(out.view(), on_y.view(), -3.0);
        t.equal("scaled", &t.read(&out)?, &y.iter().map(|y| -3.0 * y).collect::<Vec<_>>());
        s.add_into(out.view(), on_x.view());
        let added: Vec<f32> = x.iter().zip(&y).map(|(x, y)| -3.0 * y + x).collect();
        t.equal("add_into", &t.read(&out)?, &added);
        let squares = s.upload(&y.iter().map(|y| y * y).collect::<Vec<f32>>());
        s.preconditioned(out.view(), on_x.view(), squares.view(), 1.7, 1e-2);
        let root = |y: f64| (y * y * f64::from(1.7f32)).sqrt() + f64::from(1e-2f32);
        t.close("preconditioned", &t.read(&out)?, &twin(&|x, y| x / root(y)), 3e-6);
        let low = s.upload(&vec![bf16::NAN; len]);
        s.cast_bf16(low.view(), on_x.view());
        t.equal("cast_bf16", &t.read(&low)?, &x.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>());
        let zeros = t.nan(len);
        s.fill_zero(zeros.view());
        t.equal("fill_zero", &t.read(&zeros)?, &vec![0.0; len]);
        s.copy(zeros.view(), on_x.view());
        t.equal("copy", &t.read(&zeros)?, &x);
    }
    Ok(())
}

/// Two steps over pieces with and without decay, one of them frozen.
pub(super) fn optimizer(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    let (len, pieces) = (3001, [(0..7, 0.1), (7..1001, 0.0), (1001..1299, f64::NAN), (1299..3001, 0.01)]);
    let (lr, b1, b2, eps) = (1e-2f64, 0.9f64, 0.95f64, 1e-8f64);
    let start = values(len, 1);
    let [mut theta, mut m, mut v] = [wide(&start), vec![0.0; len], vec![0.0; len]];
    let (now, next) = (s.upload(&start), t.nan(len));
    let (on_m, on_v, on_pieces) = (s.zeros::<f32>(len), s.zeros::<f32>(len), s.adamw_pieces(&pieces));
    for (step, [from, to]) in [(1u64, [&now, &next]), (2, [&next, &now])] {
        let gradient = values(len, 10 + step);
        let on_gradient = s.upload(&gradient);
        let constants = AdamWStep { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, step };
        let vectors = (from.view(), on_gradient.view());
        s.adamw(to.view(), on_m.view(), on_v.view(), vectors.0, vectors.1, &on_pieces, &constants);
        for (range, decay) in pieces.iter().filter(|(_, decay)| !decay.is_nan()) {
            for i in range.clone() {
                let g = f64::from(gradient[i]);
                theta[i] *= 1.0 - lr * decay;
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let root = (v[i] / (1.0 - b2.powi(step as i32))).sqrt() + eps;
                theta[i] -= lr / (1.0 - b1.powi(step as i32)) * m[i] / root;
            }
        }
    }
    for (got, want) in [(&now, &theta), (&on_m, &m), (&on_v, &v)] {
        t.close("adamw", &t.read(got)?, want, 2e-6);
    }
    Ok(())
}

pub(super) fn reductions(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for len in [6, 8195, 30_001] {
        let (mut x, y) = (values(len, 1), values(len, 2));
        let (on_x, on_y) = (s.upload(&x), s.upload(&y));
        let twin = |x: &[f32], y: &[f32]| wide(x).iter().zip(wide(y)).map(|(x, y)| x * y).sum::<f64>();
        t.close_wide("dot", &[s.dot(on_x.view(), on_y.view())?], &[twin(&x, &y)], 1e-10);
        t.close_wide("sum_of_squares", &[s.sum_of_squares(on_x.view())?], &[twin(&x, &x)], 1e-10);
        t.equal("first_non_finite", &[s.first_non_finite(on_x.view())?.map(|(at, _)| at)], &[None]);
        (x[len - 1], x[len / 2]) = (f32::NAN, f32::INFINITY);
        let found = s.first_non_finite(s.upload(&x).view())?;
        t.equal("first_non_finite", &[found], &[Some((len / 2, f32::INFINITY))]);
    }
    Ok(())
}

pub(super) fn sigmoids(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for len in [3, 1000, 2049] {
        let (x, d) = (spread(len), values(len, 2));
        let [h, dh, p, dp] = [&x, &d, &x, &d].map(|v| s.upload(v));
        s.relu(h.view());
        t.equal("relu", &t.read(&h)?, &x.iter().map(|v| v.max(0.0)).collect::<Vec<_>>());
        s.relu_grad(dh.view(), h.view());
        let want: Vec<f32> = x.iter().zip(&d).map(|(x, d)| if *x > 0.0 { *d } else { 0.0 }).collect();
        t.equal("relu_grad", &t.read(&dh)?, &want);
        s.sigmoid(p.view());
        let want: Vec<f64> = wide(&x).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        t.close("sigmoid", &t.read(&p)?, &want, 5e-7);
        let seen = wide(&t.read(&p)?);
        s.sigmoid_grad(dp.view(), p.view());
        let want: Vec<f64> = wide(&d).iter().zip(&seen).map(|(d, p)| d * p * (1.0 - p)).collect();
        t.close("sigmoid_grad", &t.read(&dp)?, &want, 5e-7);
        let (dd, moved) = (values(len, 3), values(len, 4));
        let [on_dd, on_ds, on_moved] = [&dd, &d, &moved].map(|v| s.upload(v));
        s.sigmoid_curvature(on_dd.view(), on_ds.view(), on_moved.view(), p.view());
        let twin = |i: usize| f64::from(dd[i]) + f64::from(d[i]) * f64::from(moved[i]) * (1.0 - 2.0 * seen[i]);
        t.close("sigmoid_curvature", &t.read(&on_dd)?, &(0..len).map(twin).collect::<Vec<_>>(), 5e-7);
    }
    Ok(())
}
