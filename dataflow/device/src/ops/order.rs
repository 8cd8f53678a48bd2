//! From keys to masks, and what masks weight. An image has L patches, of which the n of lowest key stay visible.

use super::tokens::{THREADS, blocks, check, int, long, num_of, threads};
use super::vectors::sweep_grid;
use crate::error::DeviceError;
use crate::memory::{Arg, View};
use crate::stream::Stream;

/// Patches that an image may have: what a block sorts in its shared memory.
const SORT_LIMIT: usize = 4096;

impl Stream {
    /// Orders the patches of each image by rising key, as [`f32::total_cmp`] compares, and by index where keys are
    /// equal: `kept` `[B, n]` are the patches of lowest key in this order, `rank` `[B, L]` is each patch's place.
    /// `keys` `[B, L]`.
    ///
    /// # Panics
    /// With more than 4,096 patches an image.
    pub fn sort_keys(
        &self,
        kept: View<'_, u32>,
        rank: View<'_, u32>,
        keys: View<'_, f32>,
        num_patches: usize,
        num_visible: usize,
    ) {
        if keys.is_empty() {
            return;
        }
        assert!(num_patches <= SORT_LIMIT, "sort_keys: {num_patches} patches are more than {SORT_LIMIT}");
        assert!(num_visible <= num_patches, "sort_keys: {num_visible} of {num_patches} patches cannot stay visible");
        let batch = num_of(keys.len(), num_patches, "sort_keys");
        check(rank.len(), keys.len(), "sort_keys: rank");
        check(kept.len(), batch * num_visible, "sort_keys: kept");
        let padded = num_patches.next_power_of_two();
        let threads = (padded as u32 / 2).clamp(32, 1024);
        let args = [kept.arg(), rank.arg(), keys.arg(), int(num_patches), int(num_visible), int(padded)];
        self.launch("sort_keys", blocks(batch), threads, 0, &args);
    }

    /// mᵢ·pᵢ `[B, L]`: the weight of each patch's loss, 0 for visible patches; p is 1 without `scores`.
    pub fn loss_weights(
        &self,
        weights: View<'_, f32>,
        rank: View<'_, u32>,
        scores: Option<View<'_, f32>>,
        num_patches: usize,
        num_visible: usize,
    ) {
        if weights.is_empty() {
            return;
        }
        num_of(weights.len(), num_patches, "loss_weights");
        check(rank.len(), weights.len(), "loss_weights: rank");
        check(scores.map_or(weights.len(), View::len), weights.len(), "loss_weights: scores");
        let args = [weights.arg(), rank.arg(), scores.into(), long(weights.len()), int(num_visible)];
        self.launch("loss_weights", sweep_grid(weights.len(), 1), THREADS, 0, &args);
    }

    /// Σ ℓ·w in f64 over `losses` and `weights` `[B, L]`; where the weight is 0 the loss may be anything. Waits.
    ///
    /// # Errors
    /// The first failure of the stream.
    pub fn masked_loss(
        &self,
        losses: View<'_, f32>,
        weights: View<'_, f32>,
        num_patches: usize,
    ) -> Result<f64, DeviceError> {
        check(weights.len(), losses.len(), "masked_loss: weights");
        let batch = num_of(losses.len(), num_patches, "masked_loss");
        let sums = self.take::<f64>(batch);
        if batch > 0 {
            let args = [sums.view().arg(), losses.arg(), weights.arg(), int(batch), int(num_patches)];
            self.launch("masked_loss", threads(batch * 32), THREADS, 0, &args);
        }
        Ok(self.download(sums.view())?.iter().fold(0.0, |sum, of_image| sum + of_image))
    }

    /// mᵢ·ℓᵢ·`factor` `[B, L]`, the product in f64.
    pub fn score_cotangent(
        &self,
        out: View<'_, f32>,
        losses: View<'_, f32>,
        rank: View<'_, u32>,
        num_patches: usize,
        num_visible: usize,
        factor: f64,
    ) {
        if out.is_empty() {
            return;
        }
        num_of(out.len(), num_patches, "score_cotangent");
        check(losses.len(), out.len(), "score_cotangent: losses");
        check(rank.len(), out.len(), "score_cotangent: rank");
        let args = [out.arg(), losses.arg(), rank.arg(), long(out.len()), int(num_visible), Arg::F64(factor)];
        self.launch("score_cotangent", sweep_grid(out.len(), 1), THREADS, 0, &args);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tests::{assert_close, each};
    use crate::twins::{orders, sorted, values};

    #[test]
    fn keys_are_sorted_in_total_order_and_ties_go_to_the_lower_patch() {
        let odd = [f32::NAN, -f32::NAN, 0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-42, -1e-42, 1.0, 1.0];
        for (batch, num_patches, num_visible) in
            [(1, 1, 1), (3, 2, 1), (2, 10, 4), (5, 33, 8), (2, 64, 64), (1, 100, 25), (3, 257, 64), (1, 4096, 1000)]
        {
            each(|t| {
                let mut keys = values(batch * num_patches, 1);
                // Every third key is special, and every fifth has twins.
                for (i, key) in keys.iter_mut().enumerate() {
                    match i {
                        _ if i % 3 == 0 => *key = odd[i / 3 % odd.len()],
                        _ if i % 5 == 0 => *key = (*key * 2.0).round(),
                        _ => {}
                    }
                }
                let (kept, rank) = (t.stream.zeros(batch * num_visible), t.stream.zeros(keys.len()));
                let on_device = t.stream.upload(&keys);
                t.stream.sort_keys(kept.view(), rank.view(), on_device.view(), num_patches, num_visible);
                let (mut want_kept, mut want_rank) = (Vec::new(), vec![0; keys.len()]);
                for (image, keys) in keys.chunks_exact(num_patches).enumerate() {
                    let (order, places) = sorted(keys);
                    want_kept.extend_from_slice(&order[..num_visible]);
                    want_rank[image * num_patches..(image + 1) * num_patches].copy_from_slice(&places);
                }
                assert_eq!(t.read(&kept), want_kept);
                assert_eq!(t.read(&rank), want_rank);
                vec![]
            });
        }
    }

    #[test]
    fn masks_weigh_losses() {
        for (batch, num_patches, num_visible) in [(1, 1, 1), (3, 5, 2), (11, 64, 16), (2, 257, 100)] {
            each(|t| {
                let len = batch * num_patches;
                let (_, rank) = orders(batch, num_patches, num_visible);
                let (scores, mut losses) = (values(len, 1), values(len, 2));
                let is_masked = |i: usize| rank[i] as usize >= num_visible;
                // What a visible patch has for a loss does not matter.
                (0..len).filter(|i| !is_masked(*i)).for_each(|i| losses[i] = f32::NAN);
                let (on_rank, on_scores) = (t.stream.upload(&rank), t.stream.upload(&scores));
                let on_losses = t.stream.upload(&losses);
                let s = &t.stream;
                let mut results = Vec::new();
                for scores_at in [Some(on_scores.view()), None] {
                    let weights = t.nan(len);
                    s.loss_weights(weights.view(), on_rank.view(), scores_at, num_patches, num_visible);
                    let score = |i: usize| if scores_at.is_some() { scores[i] } else { 1.0 };
                    let want: Vec<f32> = (0..len).map(|i| if is_masked(i) { score(i) } else { 0.0 }).collect();
                    assert_eq!(t.read(&weights), want);
                    let loss = s.masked_loss(on_losses.view(), weights.view(), num_patches).unwrap();
                    let masked = (0..len).filter(|i| is_masked(*i));
                    let want: f64 = masked.map(|i| f64::from(losses[i]) * f64::from(score(i))).sum();
                    assert!((loss - want).abs() < 1e-12, "masked_loss is {loss}, not {want}");
                    results.push(t.read(&weights));
                    results.push(vec![loss as f32, (loss - f64::from(loss as f32)) as f32]);
                }
                let cotangent = t.nan(len);
                let factor = 1.0 / 3.0;
                s.score_cotangent(cotangent.view(), on_losses.view(), on_rank.view(), num_patches, num_visible, factor);
                let want = (0..len).map(|i| if is_masked(i) { (f64::from(losses[i]) * factor) as f32 } else { 0.0 });
                assert_eq!(t.read(&cotangent), want.collect::<Vec<_>>());
                results
            });
        }
    }

    #[test]
    fn a_loss_of_no_image_is_zero() {
        each(|t| {
            let none = t.stream.upload::<f32>(&[]);
            assert_close(&[t.stream.masked_loss(none.view(), none.view(), 4).unwrap() as f32], &[0.0], 0.0, "loss");
            vec![]
        });
    }
}
