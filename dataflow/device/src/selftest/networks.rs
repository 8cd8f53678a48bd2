//! Products of cuBLASLt, attention, heads, and graphs.

use super::trial::Trial;
use crate::error::DeviceError;
use crate::graph::Graph;
use crate::memory::{Act, Mem};
use crate::ops::{AttentionShape, HeadNorm};
use crate::product::{Matrix, Product};
use crate::stream::Precision;
use crate::twins::attention::twin;
use crate::twins::head::{cross_entropy, normed};
use crate::twins::{norm, product, values, wide};

/// The largest share by which sums of rounded factors may differ, for products and attention.
const fn rounding(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2e-6,
        Precision::Tf32 => 1.5e-3,
        Precision::Bf16 => 8e-3,
    }
}

/// Every way in which the networks call a product: a layer, the gradient of its input and that of its weight, which is
/// f32; with odd sizes, of which cuBLASLt has other kernels.
pub(super) fn products(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for shape @ [m, n, k] in [[3, 5, 7], [64, 48, 96], [257, 192, 768], [100, 10, 33]] {
        let [a, b, bias] = [(m * k, 1), (k * n, 2), (n, 3)].map(|(len, seed)| values(len, seed));
        let (on_a, on_b, on_bias) = (t.act(&a), t.act(&b), t.act(&bias));
        let [seen_a, seen_b, seen_bias] = [&a, &b, &bias].map(|v| wide(&t.rounded(v)));
        for (operation, transposed, with_bias) in [
            ("product", [false, true], true),
            ("product of an input's gradient", [false, false], false),
            ("product of a weight's gradient", [true, false], false),
        ] {
            let is_weight = transposed[0];
            let out = if is_weight { Act::F32(t.nan(m * n)) } else { t.nan_act(m * n) };
            let a = Matrix { values: on_a.view(), transposed: transposed[0] };
            let b = Matrix { values: on_b.view(), transposed: transposed[1] };
            let bias = with_bias.then(|| on_bias.view());
            let mut work = Product { out: out.view(), a, b, shape, bias, accumulate: false };
            s.product(&work);
            let mut want = product([&seen_a, &seen_b], transposed, shape, with_bias.then_some(&seen_bias));
            let limit = rounding(s.precision());
            t.near(operation, &t.read_act(&out)?, &want, limit);
            if is_weight {
                work.accumulate = true;
                s.product(&work);
                want.iter_mut().for_each(|value| *value *= 2.0);
                t.near("product that is added", &t.read_act(&out)?, &want, limit);
            }
        }
    }
    Ok(())
}

/// Heads of every kernel: those of tensor cores, of widths that have kernels of their own, and of any width.
pub(super) fn attention(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for (tokens, heads, head_dim) in [(17, 1, 8), (65, 2, 32), (65, 3, 64), (33, 1, 80), (2, 2, 136)] {
        for queries in [1, tokens] {
            let shape = AttentionShape { batch: 2, tokens, heads, head_dim, queries };
            let width = heads * head_dim;
            let (len, out_len) = (2 * tokens * 3 * width, 2 * queries * width);
            let [qkv, along, dy] = [(len, 1), (len, 2), (out_len, 3)].map(|(len, seed)| t.rounded(&values(len, seed)));
            let [on_qkv, on_along, on_dy] = [&qkv, &along, &dy].map(|v| t.act(v));
            let [y, again, tangent] = [0; 3].map(|_| t.nan_act(out_len));
            let (dqkv, lse) = (t.nan_act(len), t.nan(2 * heads * queries));
            s.attention(y.view(), lse.view(), on_qkv.view(), &shape);
            s.attention_grad(dqkv.view(), on_dy.view(), y.view(), on_qkv.view(), lse.view(), &shape);
            s.attention_tangent(again.view(), tangent.view(), on_qkv.view(), on_along.view(), &shape);
            let want = twin(&shape, &wide(&qkv), &wide(&dy), &wide(&along));
            let limit = rounding(s.precision());
            t.near("attention", &t.read_act(&y)?, &want.y, limit);
            t.near("attention", &t.read(&lse)?, &want.lse, if limit == 1.5e-3 { limit } else { 2e-6 });
            t.near("attention_grad", &t.read_act(&dqkv)?, &want.dqkv, limit);
            t.near("attention_tangent", &t.read_act(&again)?, &want.y, limit);
            t.near("attention_tangent", &t.read_act(&tangent)?, &want.tangent, limit);
        }
    }
    Ok(())
}

/// A piece of work as it is, captured and replayed: the same bits.
pub(super) fn graphs(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    let (x, weight) = (values(64 * 96, 1), values(96 * 96, 2));
    let work = |input: &Mem<f32>, weight: &Act| -> Vec<Mem<f32>> {
        let (low, out, sum) = (s.act(input.len()), s.act(input.len()), s.take(input.len()));
        s.narrow(low.view(), input.view());
        s.product(&Product {
            out: out.view(),
            a: Matrix::of(low.view()),
            b: Matrix::transpose(weight.view()),
            shape: [64, 96, 96],
            bias: None,
            accumulate: false,
        });
        s.gelu(out.view(), out.view());
        s.add_act(sum.view(), input.view(), out.view());
        vec![sum]
    };
    let on_weight = t.act(&weight);
    let mut graph = Graph::new(s.graph_pool());
    for round in 0..4 {
        let on_x = s.upload(&x.iter().map(|v| v * (1.0 + round as f32)).collect::<Vec<_>>());
        let (replayed, _) = s.steady(&mut graph, &[(&on_x).into()], |inputs| work(inputs[0].f32(), &on_weight));
        let enqueued = work(&on_x, &on_weight);
        let mut read = Vec::new();
        for vectors in [&replayed, &enqueued] {
            let values = vectors.iter().map(|values| t.read(values)).collect::<Result<Vec<_>, _>>()?;
            read.push(values.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
        // A failure has left no outputs.
        s.wait()?;
        t.equal("graphs", &read[0], &read[1]);
    }
    Ok(())
}

pub(super) fn heads(t: &Trial<'_>) -> Result<(), DeviceError> {
    const LIMIT: f64 = 1e-12;
    let s = t.stream;
    for [images, width, classes] in [[5, 32, 10], [37, 33, 3], [3, 700, 100]] {
        let (z, len) = (values(images * width, 1), images * width);
        let [gamma, beta, dy] = [(width, 2), (width, 3), (len, 4)].map(|(len, seed)| wide(&values(len, seed)));
        let factors: Vec<f32> = values(len, 5).iter().map(|v| if *v < -0.5 { 0.0 } else { 1.25 }).collect();
        let (on_z, on_factors, on_gamma, on_beta) =
            (s.upload(&z), s.upload(&factors), s.upload(&gamma), s.upload(&beta));
        let w = HeadNorm { gamma: on_gamma.view(), beta: on_beta.view(), factors: Some(on_factors.view()) };
        let [y, kept, dz] = [0; 3].map(|_| t.nan_wide(len));
        let (scale, on_dy) = (t.nan_wide(images), s.upload(&dy));
        s.head_norm(y.view(), kept.view(), scale.view(), on_z.view(), &w);
        let [want_normed, want_scale] = normed(&wide(&z), width);
        let out = |i: usize| (want_normed[i] * gamma[i % width] + beta[i % width]) * f64::from(factors[i]);
        t.close_wide("head_norm", &t.read(&kept)?, &want_normed, LIMIT);
        t.close_wide("head_norm", &t.read(&scale)?, &want_scale, LIMIT);
        t.close_wide("head_norm", &t.read(&y)?, &(0..len).map(out).collect::<Vec<_>>(), LIMIT);
        s.head_norm_grad(Some(dz.view()), on_dy.view(), kept.view(), scale.view(), &w);
        let before: Vec<f64> = dy.iter().zip(&factors).map(|(dy, factor)| dy * f64::from(*factor)).collect();
        t.close_wide("head_norm_grad", &t.read(&on_dy)?, &before, LIMIT);
        t.close_wide("head_norm_grad", &t.read(&dz)?, &norm::grad(&wide(&z), &gamma, &before)[0], LIMIT);

        let (weight, bias) = (wide(&values(classes * width, 6)), wide(&values(classes, 7)));
        let (on_weight, on_bias, logits) = (s.upload(&weight), s.upload(&bias), t.nan_wide(images * classes));
        let shape = [images, classes, width];
        s.product_f64(logits.view(), [y.view(), on_weight.view()], [false, true], shape, Some(on_bias.view()));
        let features = t.read(&y)?;
        let want = product([&features, &weight], [false, true], shape, Some(&bias));
        t.close_wide("product_f64", &t.read(&logits)?, &want, LIMIT);
        let labels: Vec<u32> = (0..images).map(|image| (5 * image % classes) as u32).collect();
        let (loss, right, on_labels) = (t.nan_wide(images), t.nan_wide(images), s.upload(&labels));
        let small: Vec<f64> = want.iter().map(|logit| logit / 8.0).collect();
        let logits = s.upload(&small);
        s.cross_entropy_f64(loss.view(), right.view(), logits.view(), on_labels.view(), 7.0);
        let wants = cross_entropy(&small, &labels, classes, 7.0);
        for (got, want) in [&loss, &right, &logits].into_iter().zip(&wants) {
            t.close_wide("cross_entropy_f64", &t.read(got)?, want, LIMIT);
        }
        let [of_weight, of_bias] = [classes * width, classes].map(|len| t.nan_wide(len));
        let factors = [logits.view(), y.view()];
        s.product_f64(of_weight.view(), factors, [true, false], [classes, width, images], None);
        let want = product([&wants[2], &features], [true, false], [classes, width, images], None);
        t.close_wide("product_f64", &t.read(&of_weight)?, &want, LIMIT);
        s.column_sums_f64(of_bias.view(), logits.view(), Some(logits.view()));
        let squares = |class: usize| wants[2].iter().skip(class).step_by(classes).map(|v| v * v).sum();
        t.close_wide("column_sums_f64", &t.read(&of_bias)?, &(0..classes).map(squares).collect::<Vec<_>>(), LIMIT);

        let (wider, moved, narrow) = (t.nan_wide(len), t.nan_wide(len), t.nan(len));
        s.widen_f64(wider.view(), on_z.view());
        t.equal("widen_f64", &t.read(&wider)?, &wide(&z));
        let on_v = s.upload(&dy);
        s.scale_add_f64(moved.view(), wider.view(), 1e-9, on_v.view());
        let want: Vec<f64> = wide(&z).iter().zip(&dy).map(|(z, v)| z + 1e-9 * v).collect();
        t.close_wide("scale_add_f64", &t.read(&moved)?, &want, 1e-15);
        s.narrow_difference_f64(narrow.view(), moved.view(), Some(wider.view()), 1e-9);
        t.close("narrow_difference_f64", &t.read(&narrow)?, &dy, 1e-6);
    }
    Ok(())
}
