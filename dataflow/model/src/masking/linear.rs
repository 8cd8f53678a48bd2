//! A policy that can be read: a patch's logit is linear in a few features of the image's pixels, plus a value for its
//! position.

use std::sync::Arc;

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs, Trace};
use super::order::explored_keys;
use super::scales::Scales;
use crate::choice::Named;
use crate::init;
use crate::layout::{Layout, SharedLayout, Weight};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::parallel::compute::Compute;

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn summary(&self) -> &'static str {
        "A weight each for a patch's contrast and the brightness of its channels, and one for each position; readable"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        true
    }
    fn mixes_scales(&self) -> bool {
        true
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(Linear::new(facts))
    }
}

/// Standard deviation of the initial weights: enough that no two scores are equal.
const INITIAL: f64 = 1e-3;

/// The linear policy. The features of a patch are its contrast (the standard deviation of its pixels, mean of the
/// channels) and the mean of each channel, each less its mean over the image's patches and divided by its standard
/// deviation over them: what tells a patch from the rest of its image.
#[derive(Clone, Debug)]
pub struct Linear {
    layout: SharedLayout,
    facts: MaskingFacts,
    weight: Weight,
    position: Weight,
    scales: Option<Scales>,
}

impl Linear {
    /// Lays the weights out: `features.weight` `[1, 1 + C]`, in the order contrast, channels; `position.bias` `[L]`;
    /// the gates of the scales, where there are several.
    #[must_use]
    pub fn new(facts: &MaskingFacts) -> Self {
        let mut layout = Layout::new(Level::Mask);
        let weight = layout.add("features.weight", &[1, 1 + facts.channels]);
        let position = layout.add("position.bias", &[facts.num_patches()]);
        let scales = Scales::add_to(&mut layout, &facts.scales, facts.grid);
        Linear { layout: Arc::new(layout), facts: facts.clone(), weight, position, scales }
    }

    /// Features `[batch·L, 1 + C]` of patches `[batch·L, C·P·P]`.
    fn features(&self, patches: &[f32]) -> Vec<f32> {
        let (channels, num_patches) = (self.facts.channels, self.facts.num_patches());
        let (pixels, width) = (self.facts.patch_values / channels, 1 + channels);
        let mut out = Vec::with_capacity(patches.len() / self.facts.patch_values * width);
        for patch in patches.chunks_exact(self.facts.patch_values) {
            let place = out.len();
            out.push(0.0);
            let mut contrast = 0.0;
            for channel in patch.chunks_exact(pixels) {
                let mean = channel.iter().map(|&v| f64::from(v)).sum::<f64>() / pixels as f64;
                let var = channel.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / pixels as f64;
                contrast += var.sqrt();
                out.push(mean as f32);
            }
            out[place] = (contrast / channels as f64) as f32;
        }
        for image in out.chunks_exact_mut(num_patches * width) {
            for feature in 0..width {
                let of = |image: &[f32], i: usize| f64::from(image[i * width + feature]);
                let mean = (0..num_patches).map(|i| of(image, i)).sum::<f64>() / num_patches as f64;
                let var = (0..num_patches).map(|i| (of(image, i) - mean).powi(2)).sum::<f64>() / num_patches as f64;
                let inverse = 1.0 / (var.sqrt() + 1e-6);
                for i in 0..num_patches {
                    image[i * width + feature] = ((of(image, i) - mean) * inverse) as f32;
                }
            }
        }
        out
    }
}

impl Masking for Linear {
    fn needs(&self) -> Needs {
        Needs::Pixels
    }

    fn keys(&self, _: usize, scores: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        explored_keys(scores.unwrap_or_default(), self.facts.num_patches(), rule)
    }

    fn layout(&self) -> Option<&SharedLayout> {
        Some(&self.layout)
    }

    fn scales(&self) -> Option<&Scales> {
        self.scales.as_ref()
    }

    fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        for entry in &self.layout.entries {
            init::normals(&mut values[entry.range()], INITIAL, &mut init::tensor_rng(seed, &entry.name));
        }
        if let Some(scales) = &self.scales {
            values[scales.gates().range()].fill(0.0);
        }
        Buffer::from_vec(values)
    }

    fn trace_values(&self) -> usize {
        let logits = usize::from(self.scales.is_some());
        self.facts.num_patches() * (2 + self.facts.channels + self.facts.patch_values + logits)
    }

    fn forward(&self, _: &Compute, phi: &[f32], input: &Arc<Buffer>) -> Option<Trace> {
        let (num_patches, width) = (self.facts.num_patches(), 1 + self.facts.channels);
        let features = self.features(input);
        let (weight, position) = (&phi[self.weight.range()], &phi[self.position.range()]);
        let logit = |(i, features): (usize, &[f32])| {
            let weighted = features.iter().zip(weight).map(|(&f, &w)| f64::from(f) * f64::from(w)).sum::<f64>();
            weighted + f64::from(position[i % num_patches])
        };
        let logits = features.chunks_exact(width).enumerate().map(logit);
        let score = |logit: f64| (1.0 / (1.0 + (-logit).exp())) as f32;
        let (scores, logits): (Vec<f32>, Option<Vec<f32>>) = match &self.scales {
            None => (logits.map(score).collect(), None),
            Some(scales) => {
                let logits: Vec<f32> = logits.map(|logit| logit as f32).collect();
                let mixed = scales.mix(phi, &logits);
                (mixed.into_iter().map(|logit| score(f64::from(logit))).collect(), Some(logits))
            }
        };
        let batch = scores.len() / num_patches;
        let hidden = [Some(features), logits].into_iter().flatten();
        let hidden = hidden.map(|values| Arc::new(Buffer::from_vec(values))).collect();
        Some(Trace {
            scores: Arc::new(Buffer::from_vec(scores)),
            input: input.clone(),
            hidden,
            batch,
            kept: None,
            shuffle: None,
        })
    }

    /// The sums run in f64 over the batch in its order. The input has no gradient: the features are pixels.
    fn backward(
        &self,
        _: &Compute,
        phi: &[f32],
        trace: &Trace,
        dscores: &[f32],
        dphi: Option<&mut [f32]>,
        _: bool,
    ) -> Option<Buffer> {
        let dphi = dphi?;
        let (num_patches, width) = (self.facts.num_patches(), 1 + self.facts.channels);
        let (mut dweight, mut dposition) = (vec![0.0f64; width], vec![0.0f64; num_patches]);
        let dlogit = |(&dscore, &p): (&f32, &f32)| f64::from(dscore) * f64::from(p) * (1.0 - f64::from(p));
        let dlogits = dscores.iter().zip(trace.scores.iter()).map(dlogit);
        let dlogits: Vec<f64> = match &self.scales {
            None => dlogits.collect(),
            Some(scales) => {
                let dmixed: Vec<f32> = dlogits.map(|d| d as f32).collect();
                let dlogits = scales.backward(phi, &trace.hidden[1], &dmixed, Some(dphi));
                dlogits.into_iter().map(f64::from).collect()
            }
        };
        for (i, (features, dlogit)) in trace.hidden[0].chunks_exact(width).zip(dlogits).enumerate() {
            dposition[i % num_patches] += dlogit;
            dweight.iter_mut().zip(features).for_each(|(d, &f)| *d += dlogit * f64::from(f));
        }
        dphi[self.weight.range()].iter_mut().zip(dweight).for_each(|(d, sum)| *d += sum as f32);
        dphi[self.position.range()].iter_mut().zip(dposition).for_each(|(d, sum)| *d += sum as f32);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_read_contrast_and_brightness_and_have_their_gradient() {
        let facts = MaskingFacts { patch_values: 8, channels: 2, ..MaskingFacts::of_grid(2, 1) };
        let linear = Linear::new(&facts);
        let mut images = vec![0.0; 3 * 4 * 8];
        init::normals(&mut images, 1.0, &mut init::tensor_rng(1, "images"));
        images[..4].copy_from_slice(&[9.0; 4]); // the first channel of the first patch is bright and flat
        let input = Arc::new(Buffer::from_vec(images));
        let compute = Compute::serial(2);
        let mut phi = linear.init(1).to_vec();
        phi[..3].copy_from_slice(&[-0.5, 0.8, 0.1]);
        let trace = linear.forward(&compute, &phi, &input).unwrap();
        assert!(trace.scores[0] > 0.7 && trace.scores[1..4].iter().all(|p| *p < trace.scores[0]), "{:?}", trace.scores);
        let mut cotangent = vec![0.0; 12];
        init::normals(&mut cotangent, 1.0, &mut init::tensor_rng(1, "cotangent"));
        let mut gradient = vec![0.0; phi.len()];
        linear.backward(&compute, &phi, &trace, &cotangent, Some(&mut gradient), false);
        for i in 0..phi.len() {
            let at = |step: f32| {
                let mut moved = phi.clone();
                moved[i] += step;
                let scores = linear.forward(&compute, &moved, &input).unwrap().scores;
                scores.iter().zip(&cotangent).map(|(&p, &c)| f64::from(p) * f64::from(c)).sum::<f64>()
            };
            let expected = (at(1e-2) - at(-1e-2)) / f64::from(2e-2f32);
            assert!((f64::from(gradient[i]) - expected).abs() < 2e-4, "{i}: {} {expected}", gradient[i]);
        }
    }
}
