//! Sweeps over whole parameter vectors: AdamW, sums of two, and reductions whose partial sums the host adds in order.

use std::ops::Range;

use crate::error::DeviceError;
use crate::memory::{Arg, Mem, View};
use crate::stream::Stream;

/// Threads of a block.
const THREADS: u32 = 256;
/// Blocks of a sweep at most; they go on where they end.
const MOST_BLOCKS: usize = 1 << 20;

/// Which weights have which weight decay, on the device: [`Stream::adamw_pieces`].
#[derive(Clone, Debug)]
pub struct AdamWPieces {
    /// Where each piece begins, and the end of the last: [pieces + 1].
    starts: Mem<u32>,
    /// Weight decay, NaN for a piece that is frozen: \[pieces].
    decay: Mem<f32>,
    len: usize,
}

/// The constants of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// This step's number, from 1.
    pub step: u64,
}

/// The grid of a sweep over `len` values, `values_of_thread` of them a thread.
pub(super) fn sweep_grid(len: usize, values_of_thread: usize) -> [u32; 3] {
    [len.div_ceil(THREADS as usize * values_of_thread).min(MOST_BLOCKS) as u32, 1, 1]
}

fn same_len(lens: &[usize], what: &str) -> usize {
    assert!(lens.iter().all(|len| *len == lens[0]), "{what}: lengths {lens:?}");
    lens[0]
}

impl Stream {
    /// Consecutive ranges of weights from 0 on, with the weight decay of each. NaN: the range is frozen.
    ///
    /// # Panics
    /// If a range does not begin where the last one ends, or there are more than 2³² − 1 weights.
    #[must_use]
    pub fn adamw_pieces(&self, pieces: &[(Range<usize>, f64)]) -> AdamWPieces {
        let (mut starts, mut decays, mut len) = (Vec::new(), Vec::<f32>::new(), 0);
        for (range, decay) in pieces.iter().filter(|(range, _)| !range.is_empty()) {
            assert_eq!(range.start, len, "adamw_pieces: ranges with a gap");
            let decay = *decay as f32;
            if decays.last().is_none_or(|last| last.to_bits() != decay.to_bits()) {
                starts.push(range.start as u32);
                decays.push(decay);
            }
            len = range.end;
        }
        starts.push(u32::try_from(len).expect("adamw_pieces: more than 2^32 - 1 weights"));
        AdamWPieces { starts: self.upload(&starts), decay: self.upload(&decays), len }
    }

    /// One step of AdamW as PyTorch defines it, in one launch: `next` receives the new values, m and v are updated in
    /// place. `next` may be `values`.
    ///
    /// θ' = θ (1 − lr·wd) − lr/(1 − β1ᵗ) · m / (√v / √(1 − β2ᵗ) + eps), with m and v updated first. Frozen pieces are
    /// copied and their moments left alone. Bias corrections are computed in f64.
    #[expect(clippy::too_many_arguments, reason = "the vectors of one sweep")]
    pub fn adamw(
        &self,
        next: View<'_, f32>,
        m: View<'_, f32>,
        v: View<'_, f32>,
        values: View<'_, f32>,
        gradient: View<'_, f32>,
        pieces: &AdamWPieces,
        step: &AdamWStep,
    ) {
        let vectors = [next, m, v, values, gradient];
        let len = same_len(&vectors.map(View::len), "adamw");
        assert_eq!(pieces.len, len, "adamw: weights in pieces");
        assert!(step.step > 0, "adamw: steps count from 1");
        if len == 0 {
            return;
        }
        let power = |beta: f32| f64::from(beta).powf(step.step as f64);
        let lerp = |beta: f32| (1.0 - f64::from(beta)) as f32;
        let root_scale = (1.0 / (1.0 - power(step.beta2)).sqrt()) as f32;
        let rate = (-f64::from(step.lr) / (1.0 - power(step.beta1))) as f32;
        let mut args: Vec<Arg> = vectors.iter().map(|vector| vector.arg()).collect();
        args.extend([pieces.starts.view().arg(), pieces.decay.view().arg(), (pieces.decay.len() as i32).into()]);
        args.extend([Arg::I64(len as i64), f64::from(step.lr).into(), lerp(step.beta1).into(), step.beta2.into()]);
        args.extend([lerp(step.beta2), root_scale, step.eps, rate].map(Arg::F32));
        self.launch("adamw", sweep_grid(len, 4), THREADS, 0, &args);
    }

    /// out = a·x + b·y. out may be x or y.
    pub fn combined(&self, out: View<'_, f32>, a: f32, x: View<'_, f32>, b: f32, y: View<'_, f32>) {
        let len = same_len(&[out.len(), x.len(), y.len()], "combined");
        self.sweep_len("combined", len, &[out.arg(), a.into(), x.arg(), b.into(), y.arg()]);
    }

    /// out = x + alpha·v. out may be x or v.
    pub fn scale_add(&self, out: View<'_, f32>, x: View<'_, f32>, alpha: f32, v: View<'_, f32>) {
        let len = same_len(&[out.len(), x.len(), v.len()], "scale_add");
        self.sweep_len("scale_add", len, &[out.arg(), x.arg(), alpha.into(), v.arg()]);
    }

    /// out = alpha·x. out may be x.
    pub fn scaled(&self, out: View<'_, f32>, x: View<'_, f32>, alpha: f32) {
        let len = same_len(&[out.len(), x.len()], "scaled");
        self.sweep_len("scaled", len, &[out.arg(), x.arg(), alpha.into()]);
    }

    /// out = x / (√(v·correction) + eps). out may be x.
    pub fn preconditioned(&self, out: View<'_, f32>, x: View<'_, f32>, v: View<'_, f32>, correction: f32, eps: f32) {
        let len = same_len(&[out.len(), x.len(), v.len()], "preconditioned");
        self.sweep_len("preconditioned", len, &[out.arg(), x.arg(), v.arg(), correction.into(), eps.into()]);
    }

    fn sweep_len(&self, kernel: &str, len: usize, args: &[Arg]) {
        if len > 0 {
            self.launch(kernel, sweep_grid(len, 4), THREADS, 0, &[args, &[Arg::I64(len as i64)]].concat());
        }
    }

    /// Σ x², in f64 and a fixed order; waits for the stream.
    ///
    /// # Errors
    /// The first failure of the stream.
    pub fn sum_of_squares(&self, x: View<'_, f32>) -> Result<f64, DeviceError> {
        self.dot(x, x)
    }

    /// Σ x·y, in f64 and a fixed order; waits for the stream.
    ///
    /// # Errors
    /// The first failure of the stream.
    pub fn dot(&self, x: View<'_, f32>, y: View<'_, f32>) -> Result<f64, DeviceError> {
        let len = same_len(&[x.len(), y.len()], "dot");
        let (parts, len_of_part) = parts_of(len);
        let partials = self.take::<f64>(parts);
        if parts > 0 {
            let args = [partials.view().arg(), x.arg(), y.arg(), (len as i64).into(), (len_of_part as i32).into()];
            self.launch("dot", [parts as u32, 1, 1], THREADS, 0, &args);
        }
        Ok(self.download(partials.view())?.iter().sum())
    }

    /// The first infinite or NaN value and its place; waits for the stream.
    ///
    /// # Errors
    /// The first failure of the stream.
    pub fn first_non_finite(&self, x: View<'_, f32>) -> Result<Option<(usize, f32)>, DeviceError> {
        let (parts, len_of_part) = parts_of(x.len());
        let partials = self.take::<u32>(parts);
        if parts > 0 {
            let args = [partials.view().arg(), x.arg(), (x.len() as i64).into(), (len_of_part as i32).into()];
            self.launch("first_non_finite", [parts as u32, 1, 1], THREADS, 0, &args);
        }
        let places = self.download(partials.view())?;
        let Some((part, place)) = places.iter().enumerate().find(|(_, place)| **place != u32::MAX) else {
            return Ok(None);
        };
        let at = part * len_of_part + *place as usize;
        Ok(self.download(x.slice(at..at + 1))?.first().map(|value| (at, *value)))
    }
}

/// Number and length of the ranges that a reduction cuts `len` values into; the length alone decides.
fn parts_of(len: usize) -> (usize, usize) {
    const LEAST: usize = 1 << 13;
    const MOST_PARTS: usize = 1 << 10;
    let len_of_part = len.div_ceil(MOST_PARTS).max(LEAST).next_multiple_of(4);
    (len.div_ceil(len_of_part), len_of_part)
}

#[cfg(test)]
mod tests;
