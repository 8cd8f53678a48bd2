//! Tokens, patches, orders and what the masking networks need beside products.

use super::trial::Trial;
use crate::error::DeviceError;
use crate::twins::{orders, sorted, values, wide};

/// B, L, n, D: odd and even widths, more images than a block sums at a time.
const SHAPES: [[usize; 4]; 3] = [[3, 5, 2, 7], [37, 4, 1, 132], [2, 6, 3, 260]];

pub(super) fn tokens(t: &Trial<'_>) -> Result<(), DeviceError> {
    for shape in SHAPES {
        rows(t, shape)?;
        assembled(t, shape)?;
        unshuffled(t, shape)?;
    }
    Ok(())
}

fn rows(t: &Trial<'_>, [batch, num_patches, num_visible, columns]: [usize; 4]) -> Result<(), DeviceError> {
    let s = t.stream;
    let (kept, _) = orders(batch, num_patches, num_visible);
    let x = values(batch * num_patches * columns, 1);
    let (on_x, on_kept, seen) = (t.act(&x), s.upload(&kept), t.rounded(&x));
    let row = |row: usize| seen[row * columns..(row + 1) * columns].to_vec();
    let out = t.nan_act(kept.len() * columns);
    s.gather_rows(out.view(), on_x.view(), on_kept.view(), num_patches);
    let source = |(i, patch): (usize, &u32)| row(i / num_visible * num_patches + *patch as usize);
    let want: Vec<f32> = kept.iter().enumerate().flat_map(source).collect();
    t.equal("gather_rows", &t.read_act(&out)?, &want);
    for first in [true, false] {
        let is_picked = |row: usize| row.is_multiple_of(num_patches) == first;
        let picked: Vec<usize> = (0..batch * num_patches).filter(|row| is_picked(*row)).collect();
        let (out, dx) = (t.nan_act(picked.len() * columns), t.nan_act(x.len()));
        s.pick_rows(out.view(), on_x.view(), columns, num_patches, first);
        let want: Vec<f32> = picked.iter().flat_map(|at| row(*at)).collect();
        t.equal("pick_rows", &t.read_act(&out)?, &want);
        s.pick_rows_grad(dx.view(), out.view(), columns, num_patches, first);
        let want = seen.iter().enumerate().map(|(i, v)| if is_picked(i / columns) { *v } else { 0.0 });
        t.equal("pick_rows_grad", &t.read_act(&dx)?, &want.collect::<Vec<_>>());
    }
    Ok(())
}

fn assembled(t: &Trial<'_>, [batch, num_patches, num_visible, columns]: [usize; 4]) -> Result<(), DeviceError> {
    let s = t.stream;
    let (kept, rank) = orders(batch, num_patches, num_visible);
    let (on_kept, on_rank) = (s.upload(&kept), s.upload(&rank));
    let (cls, pos) = (values(columns, 2), values((1 + num_patches) * columns, 3));
    let embedded = values(kept.len() * columns, 1);
    let x = t.nan(batch * (1 + num_visible) * columns);
    let (on_embedded, on_cls, on_pos) = (t.act(&embedded), s.upload(&cls), s.upload(&pos));
    let from = (on_embedded.view(), on_cls.view(), on_pos.view());
    s.assemble_tokens(x.view(), from.0, from.1, from.2, Some(on_kept.view()), num_patches);
    // The place among the positions of each token, and its row among the embedded patches.
    let places = |row: usize| {
        let (image, token) = (row / (1 + num_visible), row % (1 + num_visible));
        let patch = token.checked_sub(1).map(|token| image * num_visible + token);
        (patch.map_or(0, |patch| 1 + kept[patch] as usize), patch)
    };
    let seen = t.rounded(&embedded);
    let want = (0..x.len()).map(|i| {
        let (row, column) = (i / columns, i % columns);
        let (place, patch) = places(row);
        patch.map_or(cls[column], |patch| seen[patch * columns + column]) + pos[place * columns + column]
    });
    t.equal("assemble_tokens", &t.read(&x)?, &want.collect::<Vec<_>>());

    let dx = values(x.len(), 4);
    let (dembedded, dcls, dpos) = (t.nan_act(embedded.len()), t.nan(columns), t.nan(pos.len()));
    let (on_dx, to) = (s.upload(&dx), (dembedded.view(), dcls.view(), dpos.view()));
    s.assemble_tokens_grad(to.0, to.1, to.2, on_dx.view(), Some(on_rank.view()), num_patches, num_visible);
    let (mut sums, mut copies) = (vec![0.0; pos.len()], Vec::new());
    for (row, d) in dx.chunks_exact(columns).enumerate() {
        let (place, patch) = places(row);
        sums[place * columns..].iter_mut().zip(d).for_each(|(sum, d)| *sum += f64::from(*d));
        copies.extend(patch.iter().flat_map(|_| d));
    }
    t.equal("assemble_tokens_grad", &t.read_act(&dembedded)?, &t.rounded(&copies));
    t.close("assemble_tokens_grad", &t.read(&dpos)?, &sums, 2e-6);
    t.close("assemble_tokens_grad", &t.read(&dcls)?, &sums[..columns], 2e-6);
    Ok(())
}

fn unshuffled(t: &Trial<'_>, [batch, num_patches, num_visible, columns]: [usize; 4]) -> Result<(), DeviceError> {
    let s = t.stream;
    let (kept, rank) = orders(batch, num_patches, num_visible);
    let (on_kept, on_rank) = (s.upload(&kept), s.upload(&rank));
    let x = values(batch * (1 + num_visible) * columns, 1);
    let (token, pos) = (values(columns, 2), values((1 + num_patches) * columns, 3));
    let y = t.nan(batch * (1 + num_patches) * columns);
    let (on_x, on_token, on_pos) = (t.act(&x), s.upload(&token), s.upload(&pos));
    let from = (on_x.view(), on_rank.view(), on_token.view(), on_pos.view());
    s.unshuffle(y.view(), from.0, from.1, from.2, from.3, num_patches, num_visible);
    // The row of x at each row of y, if it has one.
    let source = |row: usize| {
        let (image, place) = (row / (1 + num_patches), row % (1 + num_patches));
        let token = if place == 0 { 0 } else { 1 + rank[image * num_patches + place - 1] as usize };
        (token <= num_visible).then_some(image * (1 + num_visible) + token)
    };
    let seen = t.rounded(&x);
    let want = (0..y.len()).map(|i| {
        let (row, column) = (i / columns, i % columns);
        let value = source(row).map_or(token[column], |from| seen[from * columns + column]);
        value + pos[row % (1 + num_patches) * columns + column]
    });
    t.equal("unshuffle", &t.read(&y)?, &want.collect::<Vec<_>>());

    let dy = values(y.len(), 4);
    let (dx, dtoken, dpos, on_dy) = (t.nan_act(x.len()), t.nan(columns), t.nan(pos.len()), s.upload(&dy));
    let (to, order) = ((dx.view(), dtoken.view(), dpos.view()), (on_kept.view(), on_rank.view()));
    s.unshuffle_grad(to.0, to.1, to.2, on_dy.view(), order.0, order.1, num_patches, num_visible);
    let (mut of_pos, mut of_token, mut copies) = (vec![0.0; pos.len()], vec![0.0; columns], vec![0.0; x.len()]);
    for (i, d) in dy.iter().enumerate() {
        let (row, column) = (i / columns, i % columns);
        of_pos[row % (1 + num_patches) * columns + column] += f64::from(*d);
        match source(row) {
            Some(from) => copies[from * columns + column] = *d,
            None => of_token[column] += f64::from(*d),
        }
    }
    t.equal("unshuffle_grad", &t.read_act(&dx)?, &t.rounded(&copies));
    t.close("unshuffle_grad", &t.read(&dpos)?, &of_pos, 2e-6);
    t.close("unshuffle_grad", &t.read(&dtoken)?, &of_token, 2e-6);
    Ok(())
}

/// Images of bytes, one of them mirrored and one cut beyond its edges.
pub(super) fn images(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for [channels, side] in [[3, 8], [1, 5]] {
        let pixels: Vec<u8> = (0..2 * channels * side * side).map(|i| (i * 37 % 256) as u8).collect();
        let windows = [0, 0, 1, (-1i32).cast_unsigned(), 2, 0];
        let scaling: Vec<f32> = (0..channels).flat_map(|c| [0.016 + 0.001 * c as f32, -1.9]).collect();
        let out = t.nan(pixels.len());
        let (on_pixels, on_windows, on_scaling) = (s.upload(&pixels), s.upload(&windows), s.upload(&scaling));
        s.pixel_values(out.view(), on_pixels.view(), on_windows.view(), on_scaling.view(), side);
        let value = |image: usize, c: usize, y: usize, x: usize| {
            let (row, column) = match image {
                0 => (Some(y), Some(side - 1 - x)),
                _ => (y.checked_sub(1), Some(x + 2).filter(|column| *column < side)),
            };
            let Some(row) = row else { return scaling[2 * c + 1] };
            let pixel = column.map_or(0, |column| pixels[((image * side + row) * side + column) * channels + c]);
            f32::from(pixel) * scaling[2 * c] + scaling[2 * c + 1]
        };
        let places = (0..pixels.len()).map(|i| (i / (side * side), i / side % side, i % side));
        let want: Vec<f32> = places.map(|(plane, y, x)| value(plane / channels, plane % channels, y, x)).collect();
        t.equal("pixel_values", &t.read(&out)?, &want);
    }
    Ok(())
}

pub(super) fn patches(t: &Trial<'_>) -> Result<(), DeviceError> {
    let s = t.stream;
    for [batch, channels, side, patch] in [[2, 3, 8, 2], [1, 1, 6, 3], [1, 3, 24, 12]] {
        let images: Vec<f32> = values(batch * channels * side * side, 1).iter().map(|v| 3.0 + v).collect();
        let (on_images, seen) = (s.upload(&images), t.rounded(&images));
        let (cut, targets) = (t.nan_act(images.len()), t.nan(images.len()));
        s.patchify(cut.view(), on_images.view(), channels, side, patch);
        s.patch_targets(targets.view(), on_images.view(), channels, side, patch);
        let (across, len) = (side / patch, channels * patch * patch);
        let (mut want_cut, mut want_targets) = (Vec::new(), vec![0.0; images.len()]);
        for row in 0..batch * across * across {
            let (b, py, px) = (row / (across * across), row / across % across, row % across);
            let place = |c, y, x| ((b * channels + c) * side + py * patch + y) * side + px * patch + x;
            let pixels: Vec<usize> =
                (0..len).map(|i| place(i / (patch * patch), i / patch % patch, i % patch)).collect();
            let mean = pixels.iter().map(|at| f64::from(images[*at])).sum::<f64>() / len as f64;
            let squares = pixels.iter().map(|at| (f64::from(images[*at]) - mean).powi(2)).sum::<f64>();
            let deviation = (squares / (len as f64 - 1.0).max(1.0) + 1e-6).sqrt();
            for (i, at) in pixels.iter().enumerate() {
                want_cut.push(seen[*at]);
                let (c, y, x) = (i / (patch * patch), i / patch % patch, i % patch);
                want_targets[row * len + (y * patch + x) * channels + c] = (f64::from(images[*at]) - mean) / deviation;
            }
        }
        t.equal("patchify", &t.read_act(&cut)?, &want_cut);
        t.close("patch_targets", &t.read(&targets)?, &want_targets, 1e-6);
    }
    for (rows, n) in [(19, 12), (2, 65), (3, 768), (300, 8)] {
        let (pred, dpred) = (values(rows * n, 1), values(rows * n, 2));
        let (target, dloss) = (values(rows * n, 3), values(rows, 4));
        let (on_pred, on_dpred) = (t.act(&pred), t.act(&dpred));
        let (on_target, on_dloss) = (s.upload(&target), s.upload(&dloss));
        let (loss, tangent, grad) = (t.nan(rows), t.nan(rows), t.nan_act(rows * n));
        s.patch_loss(loss.view(), on_pred.view(), on_target.view());
        s.patch_loss_grad(grad.view(), on_pred.view(), on_target.view(), on_dloss.view());
        s.patch_loss_tangent(tangent.view(), on_pred.view(), on_dpred.view(), on_target.view());
        let (pred, dpred) = (t.rounded(&pred), t.rounded(&dpred));
        let error = |i: usize| f64::from(pred[i]) - f64::from(target[i]);
        let mean = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..rows).map(|row| (row * n..(row + 1) * n).map(f).sum::<f64>() / n as f64).collect()
        };
        t.close("patch_loss", &t.read(&loss)?, &mean(&|i| error(i).powi(2)), 1e-6);
        t.close("patch_loss_tangent", &t.read(&tangent)?, &mean(&|i| 2.0 * error(i) * f64::from(dpred[i])), 1e-6);
        let want = (0..rows * n).map(|i| f64::from(dloss[i / n]) * 2.0 * error(i) / n as f64);
        t.close_act("patch_loss_grad", &grad, &want.collect::<Vec<_>>(), 1e-6)?;
    }
    Ok(())
}

fn orders_of(t: &Trial<'_>, [batch, num_patches, num_visible]: [usize; 3]) -> Result<(), DeviceError> {
    let s = t.stream;
    let len = batch * num_patches;
    // Some keys are equal.
    let keys: Vec<f32> = values(len, 1).iter().map(|key| (key * 64.0).round()).collect();
    let (kept, rank, on_keys) = (s.zeros(batch * num_visible), s.zeros(len), s.upload(&keys));
    s.sort_keys(kept.view(), rank.view(), on_keys.view(), num_patches, num_visible);
    let (mut want_kept, mut want_rank) = (Vec::new(), Vec::new());
    for keys in keys.chunks_exact(num_patches) {
        let (order, places) = sorted(keys);
        want_kept.extend_from_slice(&order[..num_visible]);
        want_rank.extend(places);
    }
    t.equal("sort_keys", &t.read(&kept)?, &want_kept);
    t.equal("sort_keys", &t.read(&rank)?, &want_rank);

    let (scores, losses) = (values(len, 2), values(len, 3));
    let (on_rank, on_scores, on_losses) = (s.upload(&want_rank), s.upload(&scores), s.upload(&losses));
    let is_masked = |i: usize| want_rank[i] as usize >= num_visible;
    let (weights, cotangent) = (t.nan(len), t.nan(len));
    s.loss_weights(weights.view(), on_rank.view(), Some(on_scores.view()), num_patches, num_visible);
    let want: Vec<f32> = (0..len).map(|i| if is_masked(i) { scores[i] } else { 0.0 }).collect();
    t.equal("loss_weights", &t.read(&weights)?, &want);
    let loss = s.masked_loss(on_losses.view(), weights.view(), num_patches)?;
    let want = wide(&want).iter().zip(wide(&losses)).map(|(weight, loss)| weight * loss).sum();
    t.close_wide("masked_loss", &[loss], &[want], 1e-12);
    let factor = 1.0 / 3.0;
    s.score_cotangent(cotangent.view(), on_losses.view(), on_rank.view(), num_patches, num_visible, factor);
    let want = (0..len).map(|i| if is_masked(i) { (f64::from(losses[i]) * factor) as f32 } else { 0.0 });
    t.equal("score_cotangent", &t.read(&cotangent)?, &want.collect::<Vec<_>>());
    Ok(())
}

pub(super) fn orders_and_weights(t: &Trial<'_>) -> Result<(), DeviceError> {
    [[5, 33, 8], [2, 64, 64], [3, 257, 64], [1, 4096, 1000]].into_iter().try_for_each(|shape| orders_of(t, shape))
}

pub(super) fn masking(t: &Trial<'_>) -> Result<(), DeviceError> {
    const POSITION_COLUMNS: usize = 64;
    let s = t.stream;
    for [batch, num_patches, features] in [[3, 5, 7], [2, 37, 12], [2, 64, 3]] {
        let (rows, width) = (batch * num_patches, 2 * features + POSITION_COLUMNS);
        let (input, positions) = (values(rows * features, 1), values(num_patches * POSITION_COLUMNS, 2));
        let (on_input, on_positions, out) = (s.upload(&input), s.upload(&positions), t.nan(rows * width));
        s.token_features(out.view(), on_input.view(), Some(on_positions.view()), num_patches, features);
        // The mean over an image's patches of the column `from + column` of rows that are `stride` wide.
        let mean = |x: &[f32], row: usize, stride: usize, from: usize| {
            let first = row / num_patches * num_patches;
            let of_image = (first..first + num_patches).map(|row| f64::from(x[row * stride + from]));
            of_image.sum::<f64>() / num_patches as f64
        };
        let want = (0..out.len()).map(|i| match (i / width, i % width) {
            (row, c) if c < features => f64::from(input[row * features + c]),
            (row, c) if c < 2 * features => mean(&input, row, features, c - features),
            (row, c) => f64::from(positions[row % num_patches * POSITION_COLUMNS + c - 2 * features]),
        });
        t.close("token_features", &t.read(&out)?, &want.collect::<Vec<_>>(), 1e-6);
        let du = values(rows * width, 3);
        let (on_du, dinput) = (s.upload(&du), t.nan(input.len()));
        s.token_features_grad(dinput.view(), on_du.view(), num_patches, features);
        let want = (0..input.len()).map(|i| {
            let (row, c) = (i / features, i % features);
            f64::from(du[row * width + c]) + mean(&du, row, width, features + c)
        });
        t.close("token_features_grad", &t.read(&dinput)?, &want.collect::<Vec<_>>(), 1e-6);
    }
    for (batch, len) in [(3, 7), (2, 400), (130, 36)] {
        let (x, pos) = (values(batch * len, 1), values(len, 2));
        let (on_x, on_pos, out) = (s.upload(&x), s.upload(&pos), t.nan(len));
        s.add_positions(on_x.view(), on_pos.view());
        let moved: Vec<f32> = x.iter().enumerate().map(|(i, v)| v + pos[i % len]).collect();
        t.equal("add_positions", &t.read(&on_x)?, &moved);
        let sums: Vec<f64> = (0..len).map(|c| wide(&moved).iter().skip(c).step_by(len).sum()).collect();
        s.sum_over_images(out.view(), on_x.view(), false);
        t.close("sum_over_images", &t.read(&out)?, &sums, 1e-6);
        s.sum_over_images(out.view(), on_x.view(), true);
        let twice: Vec<f64> = sums.iter().map(|sum| 2.0 * sum).collect();
        t.close("sum_over_images", &t.read(&out)?, &twice, 1e-6);
    }
    Ok(())
}
