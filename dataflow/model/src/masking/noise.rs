//! Masks of filtered noise, as in ColorMAE (arXiv 2407.13036): the visible patches are those where it is highest.
//!
//! With white noise W and the Gaussian G_σ, red noise is G_σ∗W (large connected pieces are visible or masked), blue W -
//! G_σ∗W (visible patches keep apart from each other), green G_σ1∗W - G_σ2∗W (pieces of a middle size), and purple W
//! less such a band (single patches and large pieces). The paper's program comes with stored noise, but says no σ; these
//! are ours, in patches: 2 for red, 1 for blue, 1 and 2 for green, 0.5 and 1 for purple, whose low frequencies would
//! hardly show beside its high ones with the band of green.
//!
//! The paper cuts a random window out of a stored noise image, mirrors it at random, and divides it by its maximum. Here
//! every image has noise of its own, as large as the filters reach. White noise is the same in distribution wherever the
//! window lies and however it is mirrored, and a division keeps the order, so none of these is drawn or done.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::kind::{MaskNoise, MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use crate::choice::Named;
use crate::rng::uniform;

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "noise"
    }
    fn summary(&self) -> &'static str {
        "Visible where filtered noise is highest, as in ColorMAE (arXiv 2407.13036), by mask.noise, and a loss without \
         scores: levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(Noise::new(facts.noise, facts.grid))
    }
}

/// A Gaussian filter, cut off at three standard deviations; its weights add up to 1.
#[derive(Clone, Debug)]
struct Gaussian {
    /// From the middle outward; index i is the weight at a distance of i.
    weights: Vec<f64>,
}

impl Gaussian {
    /// `sigma` in patches.
    fn new(sigma: f64) -> Self {
        let reach = (3.0 * sigma).ceil() as usize;
        let mut weights: Vec<f64> = (0..=reach).map(|i| (-0.5 * (i as f64 / sigma).powi(2)).exp()).collect();
        let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        Self { weights }
    }

    fn reach(&self) -> usize {
        self.weights.len() - 1
    }

    /// The filter's value around place `at` of values that lie `stride` apart.
    fn along(&self, values: &[f64], at: usize, stride: usize) -> f64 {
        let pairs = self.weights.iter().enumerate().skip(1);
        pairs.fold(self.weights[0] * values[at], |sum, (i, weight)| {
            sum + weight * (values[at - i * stride] + values[at + i * stride])
        })
    }

    /// G∗W over the window of `grid` x `grid` in the middle of `noise` `[grid + 2 * margin]²`; `margin` is no less than
    /// the reach.
    fn over_window(&self, noise: &[f64], grid: usize, margin: usize) -> Vec<f64> {
        let side = grid + 2 * margin;
        // Along rows first, for all rows that the columns read.
        let rows: Vec<f64> = (0..side)
            .flat_map(|y| (0..grid).map(move |x| y * side + margin + x))
            .map(|at| self.along(noise, at, 1))
            .collect();
        (0..grid * grid).map(|patch| self.along(&rows, margin * grid + patch, grid)).collect()
    }
}

/// Masks of noise.
#[derive(Clone, Debug)]
pub struct Noise {
    colour: MaskNoise,
    /// Patches along one side.
    grid: usize,
    /// The filter of red and blue noise, the narrow one of the others.
    narrow: Gaussian,
    /// The wide filter of green and purple noise.
    wide: Option<Gaussian>,
}

impl Noise {
    fn new(colour: MaskNoise, grid: usize) -> Self {
        let (narrow, wide) = match colour {
            MaskNoise::Red => (2.0, None),
            MaskNoise::Blue => (1.0, None),
            MaskNoise::Green => (1.0, Some(2.0)),
            MaskNoise::Purple => (0.5, Some(1.0)),
        };
        Self { colour, grid, narrow: Gaussian::new(narrow), wide: wide.map(Gaussian::new) }
    }

    /// Coloured noise over the patches, [L]: of white noise from U(0, 1), row by row, with a margin as wide as the wider
    /// filter reaches.
    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let margin = self.wide.as_ref().unwrap_or(&self.narrow).reach();
        let side = self.grid + 2 * margin;
        let white: Vec<f64> = (0..side * side).map(|_| uniform(rng)).collect();
        let mut band = self.narrow.over_window(&white, self.grid, margin);
        if let Some(wide) = &self.wide {
            let low = wide.over_window(&white, self.grid, margin);
            band.iter_mut().zip(low).for_each(|(value, low)| *value -= low);
        }
        if matches!(self.colour, MaskNoise::Blue | MaskNoise::Purple) {
            for (patch, value) in band.iter_mut().enumerate() {
                let (y, x) = (patch / self.grid + margin, patch % self.grid + margin);
                *value = white[y * side + x] - *value;
            }
        }
        band
    }
}

impl Masking for Noise {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// The noise with its sign turned.
    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        (0..num_images).flat_map(|image| self.draw(&mut rule.rng(image))).map(|value| -value as f32).collect()
    }
}
