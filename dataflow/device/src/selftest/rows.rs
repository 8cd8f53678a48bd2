//! Layer norms, activations, casts.

use super::trial::Trial;
use crate::error::DeviceError;
use crate::twins::activation::{share, slope, spread};
use crate::twins::norm::{grad, norm, tangent};
use crate::twins::{values, wide};

/// Rows and width: rows of a warp in registers and of any width, and blocks of rows.
const ROWS: [[usize; 2]; 4] = [[5, 17], [7, 192], [3, 1028], [600, 20]];

pub(super) fn norms(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for [rows, width] in ROWS {
        let len = rows * width;
        let x: Vec<f32> = values(len, 1).iter().map(|v| v + 1.5).collect();
        let [gamma, beta, dgamma, dbeta] = [2, 3, 6, 7].map(|seed| values(width, seed));
        let [dy, dx, delta] = [4, 5, 8].map(|seed| values(len, seed));
        let [on_x, on_gamma, on_beta, on_dx] = [&x, &gamma, &beta, &dx].map(|v| s.upload(v));
        let [on_dgamma, on_dbeta] = [&dgamma, &dbeta].map(|v| s.upload(v));
        let (y, stats) = (t.nan_act(len), t.nan(2 * rows));
        s.layer_norm(y.view(), stats.view(), on_x.view(), on_gamma.view(), on_beta.view());
        t.close_act("layer_norm", &y, &norm(&wide(&x), &wide(&gamma), &wide(&beta)), 1e-6)?;

        let (sum, y2, stats2, on_delta) = (t.nan(len), t.nan_act(len), t.nan(2 * rows), t.act(&delta));
        let (to, at) = ((sum.view(), y2.view(), stats2.view()), on_delta.view());
        s.add_layer_norm(to.0, to.1, to.2, on_x.view(), at, on_gamma.view(), on_beta.view());
        let want: Vec<f32> = x.iter().zip(t.rounded(&delta)).map(|(x, delta)| x + delta).collect();
        t.close("add_layer_norm", &t.read(&sum)?, &wide(&want), 0.0);
        t.close_act("add_layer_norm", &y2, &norm(&wide(&want), &wide(&gamma), &wide(&beta)), 1e-6)?;

        let on_dy = t.act(&dy);
        let (out, to_gamma, to_beta) = (t.nan(len), t.nan(width), t.nan(width));
        let (from, weights) = ((on_dy.view(), on_x.view(), stats.view()), (to_gamma.view(), to_beta.view()));
        s.layer_norm_grad(out.view(), None, None, from.0, from.1, from.2, on_gamma.view(), Some(weights));
        let [want, of_gamma, of_beta] = grad(&wide(&x), &wide(&gamma), &wide(&t.rounded(&dy)));
        t.close("layer_norm_grad", &t.read(&out)?, &want, 1e-5);
        t.close("layer_norm_grad", &t.read(&to_gamma)?, &of_gamma, 1e-5);
        t.close("layer_norm_grad", &t.read(&to_beta)?, &of_beta, 1e-5);

        let moved = t.nan_act(len);
        let moving = Some((on_dgamma.view(), on_dbeta.view()));
        s.layer_norm_tangent(moved.view(), on_dx.view(), on_x.view(), stats.view(), on_gamma.view(), moving);
        let along = [&dx, &dgamma, &dbeta].map(|v| wide(v));
        let want = tangent(&wide(&x), &wide(&gamma), &wide(&beta), [&along[0], &along[1], &along[2]]);
        t.close_act("layer_norm_tangent", &moved, &want, 1e-5)?;
    }
    Ok(())
}

/// Whole and broken runs, several blocks.
const LENS: [usize; 3] = [3, 1000, 5003];

pub(super) fn activations(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for len in LENS {
        let (z, d) = (t.rounded(&spread(len)), t.rounded(&values(len, 2)));
        let (on_z, on_d) = (t.act(&z), t.act(&d));
        let [h, dz, h2, dh] = [0; 4].map(|_| t.nan_act(len));
        s.gelu(h.view(), on_z.view());
        s.gelu_grad(dz.view(), on_d.view(), on_z.view());
        s.gelu_tangent(h2.view(), dh.view(), on_z.view(), on_d.view());
        let value: Vec<f64> = wide(&z).iter().map(|z| z * share(*z)).collect();
        let moved: Vec<f64> = wide(&z).iter().zip(wide(&d)).map(|(z, d)| d * slope(*z)).collect();
        t.close_act("gelu", &h, &value, 3e-7)?;
        t.close_act("gelu_grad", &dz, &moved, 2e-5)?;
        t.close_act("gelu_tangent", &dh, &moved, 2e-5)?;
        t.close_act("gelu_tangent", &h2, &value, 3e-7)?;
    }
    Ok(())
}

pub(super) fn casts(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for len in LENS {
        let (x, y) = (values(len, 1), values(len, 2));
        let (on_x, on_y, narrow, wider, sum) = (s.upload(&x), t.act(&y), t.nan_act(len), t.nan(len), t.nan(len));
        s.narrow(narrow.view(), on_x.view());
        t.equal("narrow", &t.read_act(&narrow)?, &t.rounded(&x));
        s.widen(wider.view(), on_y.view());
        t.equal("widen", &t.read(&wider)?, &t.rounded(&y));
        let added: Vec<f32> = x.iter().zip(t.rounded(&y)).map(|(x, y)| x + y).collect();
        s.add_act(sum.view(), on_x.view(), on_y.view());
        t.equal("add_act", &t.read(&sum)?, &added);
        s.act_add(on_y.view(), narrow.view());
        let added: Vec<f32> = t.rounded(&x).iter().zip(t.rounded(&y)).map(|(x, y)| y + x).collect();
        t.equal("act_add", &t.read_act(&on_y)?, &t.rounded(&added));
    }
    for [rows, columns] in [[9, 3], [300, 65], [5000, 8]] {
        let x = values(rows * columns, 1);
        let (on_x, out) = (t.act(&x), t.nan(columns));
        s.column_sums(out.view(), on_x.view(), false);
        let seen = wide(&t.rounded(&x));
        let want: Vec<f64> = (0..columns).map(|c| seen.iter().skip(c).step_by(columns).sum()).collect();
        t.close("column_sums", &t.read(&out)?, &want, 1e-5);
    }
    Ok(())
}
