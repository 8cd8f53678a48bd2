//! Rectangular blocks of masked patches, as BEiT draws them (arXiv 2106.08254, algorithm 1): larger pieces of an image
//! are missing than with single patches.
//!
//! While m patches remain to be masked, a block is drawn: its area from U(4, m), the logarithm of its aspect ratio from
//! U(ln 0.3, -ln 0.3), and its place. It is taken if it is smaller than the image in both directions and masks at least
//! one new patch and at most m. After ten blocks in a row that were not, or when m is 0, the drawing ends. What is
//! missing then is drawn uniformly, as every image of a batch needs the same number.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use crate::choice::Named;
use crate::rng::{below, uniform};

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "block"
    }
    fn summary(&self) -> &'static str {
        "Rectangular blocks of masked patches, as in BEiT (arXiv 2106.08254), and a loss without scores: levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(Block { grid: facts.grid, num_masked: facts.num_patches() - facts.num_visible })
    }
}

/// Masks of blocks.
#[derive(Clone, Debug)]
pub struct Block {
    grid: usize,
    num_masked: usize,
}

/// Patches of the smallest block that is asked for, while so many remain.
const MIN_AREA: f64 = 4.0;
/// The least ratio of height to width; the greatest is its inverse.
const MIN_ASPECT: f64 = 0.3;
const NUM_ATTEMPTS: usize = 10;

impl Block {
    /// Masks one more block in `masked` [L], of at most `remaining` new patches, and returns how many it masked: 0 if
    /// none fitted.
    fn add_block(&self, masked: &mut [bool], remaining: usize, rng: &mut ChaCha8Rng) -> usize {
        for _ in 0..NUM_ATTEMPTS {
            let area = MIN_AREA + (remaining as f64 - MIN_AREA) * uniform(rng);
            let log_aspect = MIN_ASPECT.ln() * (1.0 - 2.0 * uniform(rng));
            let aspect = log_aspect.exp();
            let (height, width) = ((area * aspect).sqrt().round() as usize, (area / aspect).sqrt().round() as usize);
            if height >= self.grid || width >= self.grid {
                continue;
            }
            let top = below(rng, (self.grid - height) as u64 + 1) as usize;
            let left = below(rng, (self.grid - width) as u64 + 1) as usize;
            let patches = || (top..top + height).flat_map(|y| (left..left + width).map(move |x| y * self.grid + x));
            let num_new = patches().filter(|patch| !masked[*patch]).count();
            if (1..=remaining).contains(&num_new) {
                patches().for_each(|patch| masked[patch] = true);
                return num_new;
            }
        }
        0
    }

    /// Masks `num` of the patches that are not masked yet, drawn uniformly.
    fn add_single(masked: &mut [bool], num: usize, rng: &mut ChaCha8Rng) {
        let mut visible: Vec<usize> = (0..masked.len()).filter(|patch| !masked[*patch]).collect();
        for place in 0..num.min(visible.len()) {
            let other = place + below(rng, (visible.len() - place) as u64) as usize;
            visible.swap(place, other);
            masked[visible[place]] = true;
        }
    }

    /// Which `num_masked` patches are masked, [L].
    fn mask(&self, num_masked: usize, rng: &mut ChaCha8Rng) -> Vec<bool> {
        let mut masked = vec![false; self.grid * self.grid];
        let mut remaining = num_masked;
        while remaining > 0 {
            match self.add_block(&mut masked, remaining, rng) {
                0 => break,
                num_new => remaining -= num_new,
            }
        }
        Self::add_single(&mut masked, remaining, rng);
        masked
    }
}

impl Masking for Block {
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// 1 for masked patches and 0 for others.
    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        let num_masked = rule.num_visible.map_or(self.num_masked, |num| self.grid * self.grid - num);
        let masks = (0..num_images).flat_map(|image| self.mask(num_masked, &mut rule.rng(image)));
        masks.map(|is_masked| f32::from(u8::from(is_masked))).collect()
    }
}
