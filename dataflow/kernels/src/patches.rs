//! Images to patches, reconstruction targets and the per-patch loss.

use super::dispatch::dispatch;
use super::lengths::{num_rows, same_len};
use super::simd::{Simd, sweep};

/// Checks sizes; returns the number of images and of patches per side.
fn grid(out: usize, images: usize, channels: usize, image: usize, patch: usize, what: &str) -> (usize, usize) {
    assert!(patch > 0 && image.is_multiple_of(patch), "{what}: an image of {image} has no whole patches of {patch}");
    same_len(out, images, what);
    (num_rows(images, channels * image * image, what), image / patch)
}

/// Cuts square images [batch, C, H, W], H = W = `image`, into patches: out [batch·L, C·P·P], where L is the
/// number of patches of an image, P is `patch`, and values have the order (channel, row, column).
///
/// # Panics
/// If patches do not divide the image, or lengths do not fit.
pub fn patchify(out: &mut [f32], images: &[f32], channels: usize, image: usize, patch: usize) {
    let (batch, side) = grid(out.len(), images.len(), channels, image, patch, "patchify");
    let mut rows = out.chunks_exact_mut(patch);
    for b in 0..batch {
        for py in 0..side {
            for px in 0..side {
                for c in 0..channels {
                    for y in 0..patch {
                        let at = ((b * channels + c) * image + py * patch + y) * image + px * patch;
                        let row = rows.next().expect("invariant: as many pixels out as in");
                        row.copy_from_slice(&images[at..at + patch]);
                    }
                }
            }
        }
    }
}

/// Added to a patch's variance in its reconstruction target.
pub const TARGET_EPS: f64 = 1e-6;

/// The reconstruction targets: out [batch·L, P·P·C] in the order (row, column, channel), each patch minus
/// its mean, over √(unbiased variance + [`TARGET_EPS`]). A patch of a single value has variance 0. Shapes are those
/// of [`patchify`].
///
/// # Panics
/// As [`patchify`].
pub fn patch_targets(out: &mut [f32], images: &[f32], channels: usize, image: usize, patch: usize) {
    let (batch, side) = grid(out.len(), images.len(), channels, image, patch, "patch_targets");
    let len = patch * patch * channels;
    let mut rows = out.chunks_exact_mut(len);
    for b in 0..batch {
        for py in 0..side {
            for px in 0..side {
                let row = rows.next().expect("invariant: as many pixels out as in");
                for c in 0..channels {
                    for y in 0..patch {
                        let at = ((b * channels + c) * image + py * patch + y) * image + px * patch;
                        for (x, value) in images[at..at + patch].iter().enumerate() {
                            row[(y * patch + x) * channels + c] = *value;
                        }
                    }
                }
                normalise(row);
            }
        }
    }
}

/// row = (row - mean) / √(unbiased variance + 1e-6).
fn normalise(row: &mut [f32]) {
    let n = row.len() as f64;
    let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let squares: f64 = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum();
    let scale = 1.0 / (squares / (n - 1.0).max(1.0) + TARGET_EPS).sqrt();
    for v in row {
        *v = ((f64::from(*v) - mean) * scale) as f32;
    }
}

/// loss \[rows] = the mean over n values of (pred - target)²; pred and target [rows, n].
///
/// # Panics
/// If lengths do not fit.
pub fn patch_loss(loss: &mut [f32], pred: &[f32], target: &[f32], n: usize) {
    same_len(pred.len(), target.len(), "patch_loss");
    same_len(loss.len(), num_rows(pred.len(), n, "patch_loss"), "patch_loss rows");
    dispatch!(patch_loss_on(loss: &mut [f32], pred: &[f32], target: &[f32], n: usize))
}
#[inline(always)]
fn patch_loss_on<S: Simd>(s: S, loss: &mut [f32], pred: &[f32], target: &[f32], n: usize) {
    for ((loss, pred), target) in loss.iter_mut().zip(pred.chunks_exact(n)).zip(target.chunks_exact(n)) {
        let mut acc = s.splat(0.0);
        sweep!(S, n, |i, w| {
            // SAFETY: i + w <= n, the length of both rows.
            let d = unsafe { s.sub(s.load_n(pred.as_ptr().add(i), w), s.load_n(target.as_ptr().add(i), w)) };
            acc = s.fma(d, d, acc);
        });
        *loss = s.sum(acc) / n as f32;
    }
}

/// dpred = cotangent · 2 (pred - target) / n; pred, target and dpred [rows, n], cotangent \[rows].
///
/// # Panics
/// If lengths do not fit.
pub fn patch_loss_grad(dpred: &mut [f32], pred: &[f32], target: &[f32], cotangent: &[f32], n: usize) {
    same_len(pred.len(), target.len(), "patch_loss_grad");
    same_len(pred.len(), dpred.len(), "patch_loss_grad");
    same_len(cotangent.len(), num_rows(pred.len(), n, "patch_loss_grad"), "patch_loss_grad rows");
    dispatch!(patch_loss_grad_on(dpred: &mut [f32], pred: &[f32], target: &[f32], cotangent: &[f32], n: usize))
}
#[inline(always)]
fn patch_loss_grad_on<S: Simd>(s: S, dpred: &mut [f32], pred: &[f32], target: &[f32], cotangent: &[f32], n: usize) {
    let rows = dpred.chunks_exact_mut(n).zip(pred.chunks_exact(n)).zip(target.chunks_exact(n));
    for (((dpred, pred), target), cotangent) in rows.zip(cotangent) {
        let scale = s.splat(cotangent * 2.0 / n as f32);
        sweep!(S, n, |i, w| {
            // SAFETY: i + w <= n, the length of the three rows.
            unsafe {
                let d = s.sub(s.load_n(pred.as_ptr().add(i), w), s.load_n(target.as_ptr().add(i), w));
                s.store_n(dpred.as_mut_ptr().add(i), w, s.mul(scale, d));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, central_differences, each_isa, values, wide};

    const GRIDS: [(usize, usize, usize, usize); 4] = [(2, 3, 8, 2), (1, 1, 6, 3), (3, 3, 4, 4), (2, 1, 3, 1)];

    #[test]
    fn patches_hold_their_pixels_in_order() {
        for (batch, channels, image, patch) in GRIDS {
            let images = values(batch * channels * image * image, 1);
            let (mut cut, mut targets) = (vec![0.0; images.len()], vec![0.0; images.len()]);
            patchify(&mut cut, &images, channels, image, patch);
            patch_targets(&mut targets, &images, channels, image, patch);
            let (side, len) = (image / patch, channels * patch * patch);
            for row in 0..batch * side * side {
                let (b, py, px) = (row / (side * side), row / side % side, row % side);
                let pixel = |c, y, x| images[((b * channels + c) * image + py * patch + y) * image + px * patch + x];
                let all: Vec<f64> = wide(&cut[row * len..][..len]);
                let mean = all.iter().sum::<f64>() / len as f64;
                let var = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (len as f64 - 1.0).max(1.0);
                for i in 0..len {
                    let (c, y, x) = (i / (patch * patch), i / patch % patch, i % patch);
                    assert_eq!(cut[row * len + i], pixel(c, y, x));
                    let want = (f64::from(pixel(c, y, x)) - mean) / (var + 1e-6).sqrt();
                    let got = targets[row * len + (y * patch + x) * channels + c];
                    assert!((f64::from(got) - want).abs() < 1e-5, "target {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn loss_and_gradient_match_their_twins() {
        for (rows, n) in [(1, 1), (3, 3), (2, 27), (4, 48), (2, 65)] {
            let (pred, target, cotangent) = (values(rows * n, 1), values(rows * n, 2), values(rows, 3));
            let twin = |pred: &[f64]| -> Vec<f64> {
                let row = |r: usize| {
                    (0..n).map(|i| (pred[r * n + i] - f64::from(target[r * n + i])).powi(2)).sum::<f64>() / n as f64
                };
                (0..rows).map(row).collect()
            };
            let grad = central_differences(&wide(&pred), |p| crate::testing::dot(&twin(p), &wide(&cotangent)));
            each_isa(|isa| {
                let (mut loss, mut dpred) = (vec![f32::NAN; rows], vec![f32::NAN; rows * n]);
                patch_loss(&mut loss, &pred, &target, n);
                patch_loss_grad(&mut dpred, &pred, &target, &cotangent, n);
                assert_close(&loss, &twin(&wide(&pred)), 1e-6, &format!("patch_loss {rows}x{n} {isa:?}"));
                assert_close(&dpred, &grad, 1e-6, &format!("patch_loss_grad {rows}x{n} {isa:?}"));
            });
        }
    }

    #[test]
    #[should_panic(expected = "no whole patches")]
    fn patches_that_do_not_divide_panic() {
        patchify(&mut [0.0; 9], &[0.0; 9], 1, 3, 2);
    }
}
