//! What the masking networks need beside products: the input of the network over each patch, positions, sums over
//! images.

use super::tokens::{RowSum, THREADS, check, int, long, num_of};
use super::vectors::sweep_grid;
use crate::memory::View;
use crate::stream::Stream;

/// Width of the position features.
const POSITION_COLUMNS: usize = 64;

impl Stream {
    /// The input of the network over each patch, `out` `[B·L, 2f + 64]`: the patch's features of `input` `[B, L, f]`,
    /// the mean features of its image, and its position of `positions` `[L, 64]`, or zeros without them.
    pub fn token_features(
        &self,
        out: View<'_, f32>,
        input: View<'_, f32>,
        positions: Option<View<'_, f32>>,
        num_patches: usize,
        features: usize,
    ) {
        if input.is_empty() {
            return;
        }
        let batch = num_of(input.len(), num_patches * features, "token_features");
        check(out.len(), batch * num_patches * (2 * features + POSITION_COLUMNS), "token_features: out");
        let places = num_patches * POSITION_COLUMNS;
        check(positions.map_or(places, View::len), places, "token_features: positions");
        let mean = self.take::<f32>(batch * features);
        self.sum_rows(mean.view(), input, num_patches, [features; 2], RowSum::Mean);
        let args = [out.arg(), input.arg(), mean.view().arg(), positions.into()];
        let sizes = [long(out.len()), int(num_patches), int(features)];
        self.launch("token_features", sweep_grid(out.len(), 4), THREADS, 0, &[&args[..], &sizes].concat());
    }

    /// The cotangent `dinput` `[B, L, f]` of [`Stream::token_features`]'s input from that of its output, `du`.
    pub fn token_features_grad(&self, dinput: View<'_, f32>, du: View<'_, f32>, num_patches: usize, features: usize) {
        if dinput.is_empty() {
            return;
        }
        let batch = num_of(dinput.len(), num_patches * features, "token_features_grad");
        let width = 2 * features + POSITION_COLUMNS;
        check(du.len(), batch * num_patches * width, "token_features_grad: du");
        let mean = self.take::<f32>(batch * features);
        let read = du.slice(features..du.len());
        self.sum_rows(mean.view(), read, num_patches, [features, width], RowSum::Mean);
        let args = [dinput.arg(), du.arg(), mean.view().arg()];
        let sizes = [long(dinput.len()), int(num_patches), int(features)];
        self.launch("token_features_grad", sweep_grid(dinput.len(), 4), THREADS, 0, &[&args[..], &sizes].concat());
    }

    /// Adds `pos` `[L·D]` to each image of `x` `[B, L·D]`.
    pub fn add_positions(&self, x: View<'_, f32>, pos: View<'_, f32>) {
        if x.is_empty() {
            return;
        }
        num_of(x.len(), pos.len(), "add_positions");
        let args = [x.arg(), pos.arg(), long(x.len()), int(pos.len())];
        self.launch("add_positions", sweep_grid(x.len(), 4), THREADS, 0, &args);
    }

    /// The sum over images, `out` `[n]` of `x` `[B, n]`; with `accumulate` it is added to `out`.
    pub fn sum_over_images(&self, out: View<'_, f32>, x: View<'_, f32>, accumulate: bool) {
        if out.is_empty() {
            return;
        }
        let batch = num_of(x.len(), out.len(), "sum_over_images");
        let sum = if accumulate { RowSum::Add } else { RowSum::Set };
        self.sum_rows(out, x, batch, [out.len(); 2], sum);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tests::{assert_close, each};
    use super::POSITION_COLUMNS;
    use crate::twins::values;

    /// B, L, f.
    const SHAPES: [[usize; 3]; 5] = [[1, 1, 1], [3, 5, 7], [2, 37, 12], [4, 9, 136], [2, 64, 3]];

    #[test]
    fn features_hold_patch_mean_and_position() {
        for [batch, num_patches, features] in SHAPES {
            let width = 2 * features + POSITION_COLUMNS;
            each(|t| {
                let input = values(batch * num_patches * features, 1);
                let positions = values(num_patches * POSITION_COLUMNS, 2);
                let (on_input, on_positions) = (t.stream.upload(&input), t.stream.upload(&positions));
                let mut results = Vec::new();
                for places in [Some(on_positions.view()), None] {
                    let out = t.nan(batch * num_patches * width);
                    t.stream.token_features(out.view(), on_input.view(), places, num_patches, features);
                    let out = t.read(&out);
                    for (row, got) in out.chunks_exact(width).enumerate() {
                        let (image, patch) = (row / num_patches, row % num_patches);
                        assert_eq!(got[..features], input[row * features..(row + 1) * features]);
                        let of_image = &input[image * num_patches * features..(image + 1) * num_patches * features];
                        let mean = |c: usize| {
                            let sum: f64 = of_image.iter().skip(c).step_by(features).map(|v| f64::from(*v)).sum();
                            sum / num_patches as f64
                        };
                        let mean: Vec<f64> = (0..features).map(mean).collect();
                        assert_close(&got[features..2 * features], &mean, 1e-6, "mean");
                        let place = &positions[patch * POSITION_COLUMNS..(patch + 1) * POSITION_COLUMNS];
                        assert_eq!(
                            got[2 * features..],
                            *if places.is_some() { place } else { &[0.0; POSITION_COLUMNS] }
                        );
                    }
                    results.push(out);
                }
                let du = values(batch * num_patches * width, 3);
                let (on_du, dinput) = (t.stream.upload(&du), t.nan(input.len()));
                t.stream.token_features_grad(dinput.view(), on_du.view(), num_patches, features);
                let want: Vec<f64> = (0..input.len())
                    .map(|i| {
                        let (row, c) = (i / features, i % features);
                        let first = row / num_patches * num_patches;
                        let of_mean = (first..first + num_patches).map(|r| f64::from(du[r * width + features + c]));
                        f64::from(du[row * width + c]) + of_mean.sum::<f64>() / num_patches as f64
                    })
                    .collect();
                assert_close(&t.read(&dinput), &want, 1e-6, "dinput");
                results.push(t.read(&dinput));
                results
            });
        }
    }

    #[test]
    fn positions_are_added_and_images_summed() {
        for (batch, len) in [(1, 1), (3, 7), (45, 12), (2, 400), (130, 36)] {
            each(|t| {
                let (x, pos) = (values(batch * len, 1), values(len, 2));
                let (on_x, on_pos) = (t.stream.upload(&x), t.stream.upload(&pos));
                t.stream.add_positions(on_x.view(), on_pos.view());
                let moved: Vec<f32> = x.iter().enumerate().map(|(i, v)| v + pos[i % len]).collect();
                assert_eq!(t.read(&on_x), moved);
                let sums: Vec<f64> =
                    (0..len).map(|c| moved.iter().skip(c).step_by(len).map(|v| f64::from(*v)).sum()).collect();
                let out = t.nan(len);
                t.stream.sum_over_images(out.view(), on_x.view(), false);
                assert_close(&t.read(&out), &sums, 1e-6, "sum");
                t.stream.sum_over_images(out.view(), on_x.view(), true);
                let twice: Vec<f64> = sums.iter().map(|v| 2.0 * v).collect();
                assert_close(&t.read(&out), &twice, 1e-6, "sum on a sum");
                vec![t.read(&on_x), t.read(&out)]
            });
        }
    }
}
