//! Images to patches, reconstruction targets and the loss of each patch.
//!
//! Images are normalised f32 `[B, C, S, S]`, where S is `side`, cut into L patches each of `patch` x `patch` pixels.
//! The formulas are those of the CPU's `mlomae_kernels::patchify` and its neighbours.

use super::tokens::{THREADS, check, int, long, num_of, same_type, threads};
use super::vectors::sweep_grid;
use crate::memory::{ActView, View};
use crate::stream::Stream;

/// Logarithm of the number of lanes that share a row of `n` values, four each or more.
fn lanes_log2(n: usize) -> usize {
    n.div_ceil(4).next_power_of_two().min(32).ilog2() as usize
}

/// Checks sizes; returns the number of patches of all images.
fn num_patches(out: usize, images: usize, channels: usize, side: usize, patch: usize, what: &str) -> usize {
    assert!(patch > 0 && side.is_multiple_of(patch), "{what}: an image of {side} has no whole patches of {patch}");
    check(out, images, what);
    num_of(images, channels * side * side, what) * (side / patch).pow(2)
}

impl Stream {
    /// The patches `out` `[B·L, C·P·P]` of `images`, with values in the order (channel, row, column).
    pub fn patchify(&self, out: ActView<'_>, images: View<'_, f32>, channels: usize, side: usize, patch: usize) {
        if num_patches(out.len(), images.len(), channels, side, patch, "patchify") == 0 {
            return;
        }
        let args = [out.arg(), images.arg(), long(out.len()), int(channels), int(side), int(patch)];
        self.launch(&format!("patchify_{}", out.suffix()), sweep_grid(out.len(), 4), THREADS, 0, &args);
    }

    /// The reconstruction targets `out` `[B·L, P·P·C]` in the order (row, column, channel): each patch minus its mean,
    /// over √(unbiased variance + 1e-6). A patch of a single value has variance 0.
    pub fn patch_targets(&self, out: View<'_, f32>, images: View<'_, f32>, channels: usize, side: usize, patch: usize) {
        let patches = num_patches(out.len(), images.len(), channels, side, patch, "patch_targets");
        if patches == 0 {
            return;
        }
        let shift = lanes_log2(channels * patch * patch);
        let args = [out.arg(), images.arg(), long(patches), int(channels), int(side), int(patch), int(shift)];
        self.launch("patch_targets", threads(patches << shift), THREADS, 0, &args);
    }

    /// `loss` `[rows]` = the mean over n values of (pred - target)²; `pred` and `target` are `[rows, n]`.
    pub fn patch_loss(&self, loss: View<'_, f32>, pred: ActView<'_>, target: View<'_, f32>) {
        if loss.is_empty() {
            return;
        }
        let n = num_of(pred.len(), loss.len(), "patch_loss");
        check(target.len(), pred.len(), "patch_loss: target");
        let shift = lanes_log2(n);
        let args = [loss.arg(), pred.arg(), target.arg(), long(loss.len()), int(n), int(shift)];
        self.launch(&format!("patch_loss_{}", pred.suffix()), threads(loss.len() << shift), THREADS, 0, &args);
    }

    /// `dpred` = dloss · 2 (pred - target) / n, with the shapes of [`Stream::patch_loss`].
    pub fn patch_loss_grad(&self, dpred: ActView<'_>, pred: ActView<'_>, target: View<'_, f32>, dloss: View<'_, f32>) {
        if dloss.is_empty() {
            return;
        }
        let n = num_of(pred.len(), dloss.len(), "patch_loss_grad");
        check(target.len(), pred.len(), "patch_loss_grad: target");
        check(dpred.len(), pred.len(), "patch_loss_grad: dpred");
        same_type(dpred, pred, "patch_loss_grad");
        let args = [dpred.arg(), pred.arg(), target.arg(), dloss.arg(), long(pred.len()), int(n)];
        self.launch(&format!("patch_loss_grad_{}", pred.suffix()), sweep_grid(pred.len(), 4), THREADS, 0, &args);
    }

    /// The derivative `dloss` `[rows]` of [`Stream::patch_loss`] along `dpred`.
    pub fn patch_loss_tangent(
        &self,
        dloss: View<'_, f32>,
        pred: ActView<'_>,
        dpred: ActView<'_>,
        target: View<'_, f32>,
    ) {
        if dloss.is_empty() {
            return;
        }
        let n = num_of(pred.len(), dloss.len(), "patch_loss_tangent");
        check(target.len(), pred.len(), "patch_loss_tangent: target");
        check(dpred.len(), pred.len(), "patch_loss_tangent: dpred");
        same_type(dpred, pred, "patch_loss_tangent");
        let shift = lanes_log2(n);
        let args = [dloss.arg(), pred.arg(), dpred.arg(), target.arg(), long(dloss.len()), int(n), int(shift)];
        let kernel = format!("patch_loss_tangent_{}", pred.suffix());
        self.launch(&kernel, threads(dloss.len() << shift), THREADS, 0, &args);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tests::{assert_close, each};
    use crate::twins::values;

    /// B, C, S, P.
    const SHAPES: [[usize; 4]; 6] =
        [[2, 3, 8, 2], [1, 1, 6, 3], [3, 3, 4, 4], [2, 1, 3, 1], [1, 3, 24, 12], [2, 2, 10, 5]];

    #[test]
    fn patches_and_targets_hold_their_pixels_in_order() {
        for [batch, channels, side, patch] in SHAPES {
            each(|t| {
                let images: Vec<f32> = values(batch * channels * side * side, 1).iter().map(|v| 3.0 + v).collect();
                let seen = t.rounded(&images);
                let on_device = t.stream.upload(&images);
                let (out, targets) = (t.nan_act(images.len()), t.nan(images.len()));
                t.stream.patchify(out.view(), on_device.view(), channels, side, patch);
                t.stream.patch_targets(targets.view(), on_device.view(), channels, side, patch);
                let (across, len) = (side / patch, channels * patch * patch);
                let (cut, target) = (t.read_act(&out), t.read(&targets));
                for row in 0..batch * across * across {
                    let (b, py, px) = (row / (across * across), row / across % across, row % across);
                    let place = |c, y, x| ((b * channels + c) * side + py * patch + y) * side + px * patch + x;
                    let pixels = (0..len).map(|i| place(i / (patch * patch), i / patch % patch, i % patch));
                    let all: Vec<f64> = pixels.clone().map(|at| f64::from(images[at])).collect();
                    let mean = all.iter().sum::<f64>() / len as f64;
                    let var = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (len as f64 - 1.0).max(1.0);
                    for (i, at) in pixels.enumerate() {
                        let (c, y, x) = (i / (patch * patch), i / patch % patch, i % patch);
                        assert_eq!(cut[row * len + i], seen[at]);
                        let want = (all[i] - mean) / (var + 1e-6).sqrt();
                        assert_close(&[target[row * len + (y * patch + x) * channels + c]], &[want], 1e-7, "target");
                    }
                }
                vec![cut, target]
            });
        }
    }

    #[test]
    fn a_patch_of_one_colour_has_targets_of_zero() {
        each(|t| {
            let images = t.stream.upload(&[0.1f32; 3 * 8 * 8]);
            let targets = t.nan(images.len());
            t.stream.patch_targets(targets.view(), images.view(), 3, 8, 4);
            assert_eq!(t.read(&targets), [0.0; 3 * 8 * 8]);
            vec![]
        });
    }

    #[test]
    fn loss_gradient_and_tangent_match_their_twins() {
        for (rows, n) in [(1, 1), (3, 3), (19, 12), (2, 27), (4, 48), (2, 65), (3, 768), (300, 8)] {
            each(|t| {
                let (pred, dpred) = (values(rows * n, 1), values(rows * n, 2));
                let (target, dloss) = (values(rows * n, 3), values(rows, 4));
                let (on_pred, on_dpred) = (t.act(&pred), t.act(&dpred));
                let (on_target, on_dloss) = (t.stream.upload(&target), t.stream.upload(&dloss));
                let (loss, tangent, grad) = (t.nan(rows), t.nan(rows), t.nan_act(rows * n));
                let s = &t.stream;
                s.patch_loss(loss.view(), on_pred.view(), on_target.view());
                s.patch_loss_grad(grad.view(), on_pred.view(), on_target.view(), on_dloss.view());
                s.patch_loss_tangent(tangent.view(), on_pred.view(), on_dpred.view(), on_target.view());
                let (pred, dpred) = (t.rounded(&pred), t.rounded(&dpred));
                let error = |i: usize| f64::from(pred[i]) - f64::from(target[i]);
                let mean = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
                    (0..rows).map(|r| (r * n..(r + 1) * n).map(f).sum::<f64>() / n as f64).collect()
                };
                assert_close(&t.read(&loss), &mean(&|i| error(i).powi(2)), 1e-6, "patch_loss");
                let want = mean(&|i| 2.0 * error(i) * f64::from(dpred[i]));
                assert_close(&t.read(&tangent), &want, 1e-6, "patch_loss_tangent");
                let want: Vec<f64> =
                    (0..rows * n).map(|i| f64::from(dloss[i / n]) * 2.0 * error(i) / n as f64).collect();
                let rounding = if t.rounded(&[1.001]) == [1.001] { 1e-6 } else { 4e-3 };
                assert_close(&t.read_act(&grad), &want, rounding, "patch_loss_grad");
                vec![t.read(&loss), t.read(&tangent), t.read_act(&grad)]
            });
        }
    }

    #[test]
    #[should_panic(expected = "no whole patches")]
    fn patches_that_do_not_divide_panic() {
        super::num_patches(9, 9, 1, 3, 2, "patchify");
    }
}
