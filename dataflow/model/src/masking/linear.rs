//! A policy that can be read: a patch's logit is linear in a few of its features, plus a value for its position.
//!
//! Contrast and brightness are features of the pixels. A patch's reconstruction loss and the attention that CLS pays to
//! it are read of a teacher when a batch is masked, and level 3 takes the same values again: they are constants in θ, so
//! that no derivative along v goes through them.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
        "A weight each for what mask.features names of a patch, as its contrast, and one for each position; readable"
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

/// A feature of a patch that the linear policy may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PatchFeature {
    /// The standard deviation of its pixels, mean of the channels.
    Contrast,
    /// The mean of each channel, a feature each.
    Brightness,
    /// Its place in the image: a value of its own for each.
    Position,
    /// Its reconstruction loss under a teacher, as the strategy [`loss`](super::loss) measures it.
    Loss,
    /// The attention that CLS pays to it in a teacher's last block, as [`cls_attention`](super::attention::cls_attention)
    /// has it.
    Attention,
}

impl PatchFeature {
    /// Every feature, in the order of their weights.
    pub const ALL: [Self; 5] = [Self::Contrast, Self::Brightness, Self::Position, Self::Loss, Self::Attention];

    /// Those that no teacher is needed for: the default.
    pub const OF_PIXELS: [Self; 3] = [Self::Contrast, Self::Brightness, Self::Position];

    /// Its name in configurations and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contrast => "contrast",
            Self::Brightness => "brightness",
            Self::Position => "position",
            Self::Loss => "loss",
            Self::Attention => "attention",
        }
    }

    /// What it is read of a teacher as; none where the patch itself has it.
    #[must_use]
    pub const fn reads(self) -> Option<Needs> {
        match self {
            Self::Contrast | Self::Brightness | Self::Position => None,
            Self::Loss => Some(Needs::Losses),
            Self::Attention => Some(Needs::Attention),
        }
    }

    /// What is wrong with a list of features, in a few words; none if it can be used.
    #[must_use]
    pub fn problem(list: &[Self]) -> Option<&'static str> {
        let repeats = |(i, feature): (usize, &Self)| list[..i].contains(feature);
        match list {
            [] => Some("names no feature"),
            _ if list.iter().enumerate().any(repeats) => Some("names a feature twice"),
            _ => None,
        }
    }
}

/// Standard deviation of the initial weights: enough that no two scores are equal.
const INITIAL: f64 = 1e-3;

/// The linear policy. Each feature but the position is less its mean over the image's patches and divided by its
/// standard deviation over them: what tells a patch from the rest of its image.
#[derive(Clone, Debug)]
pub struct Linear {
    layout: SharedLayout,
    facts: MaskingFacts,
    /// Features with a column each, or several, in the order of [`PatchFeature::ALL`].
    columns: Vec<PatchFeature>,
    weight: Option<Weight>,
    position: Option<Weight>,
    scales: Option<Scales>,
}

impl Linear {
    /// Lays the weights out for the features of `facts`: `features.weight` `[1, columns]`, in the order contrast,
    /// brightness of each channel, loss, attention; `position.bias` `[L]`; the gates of the scales, where there are
    /// several.
    #[must_use]
    pub fn new(facts: &MaskingFacts) -> Self {
        let mut layout = Layout::new(Level::Mask);
        let used = |feature: &PatchFeature| facts.patch_features.contains(feature);
        let columns: Vec<_> = PatchFeature::ALL.into_iter().filter(used).collect();
        let (positions, columns): (Vec<_>, Vec<_>) =
            columns.into_iter().partition(|feature| *feature == PatchFeature::Position);
        let width: usize = columns.iter().map(|feature| num_columns(*feature, facts.channels)).sum();
        let weight = (width > 0).then(|| layout.add("features.weight", &[1, width]));
        let position = (!positions.is_empty()).then(|| layout.add("position.bias", &[facts.num_patches()]));
        let scales = Scales::add_to(&mut layout, &facts.scales, facts.grid);
        Linear { layout: Arc::new(layout), facts: facts.clone(), columns, weight, position, scales }
    }

    /// Columns of [`Self::features`].
    fn width(&self) -> usize {
        self.columns.iter().map(|feature| num_columns(*feature, self.facts.channels)).sum()
    }

    /// Features `[batch·L, width]` of patches `[batch·L, C·P·P]`, with what was read of a teacher for them.
    fn features(&self, patches: &[f32], read: &[f32]) -> Vec<f32> {
        let (channels, num_patches, width) = (self.facts.channels, self.facts.num_patches(), self.width());
        let pixels = self.facts.patch_values / channels;
        let num_rows = patches.len() / self.facts.patch_values;
        let mut out = Vec::with_capacity(num_rows * width);
        for (row, patch) in patches.chunks_exact(self.facts.patch_values).enumerate() {
            let (mut contrast, mut means) = (0.0, Vec::with_capacity(channels));
            for channel in patch.chunks_exact(pixels) {
                let mean = channel.iter().map(|&v| f64::from(v)).sum::<f64>() / pixels as f64;
                let var = channel.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / pixels as f64;
                contrast += var.sqrt();
                means.push(mean as f32);
            }
            let mut of_teacher = read.iter().skip(row).step_by(num_rows);
            for feature in &self.columns {
                match feature {
                    PatchFeature::Contrast => out.push((contrast / channels as f64) as f32),
                    PatchFeature::Brightness => out.extend_from_slice(&means),
                    PatchFeature::Loss | PatchFeature::Attention => out.extend(of_teacher.next()),
                    PatchFeature::Position => {}
                }
            }
        }
        for image in out.chunks_exact_mut((num_patches * width).max(1)) {
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

/// Columns that a feature takes.
const fn num_columns(feature: PatchFeature, channels: usize) -> usize {
    match feature {
        PatchFeature::Position => 0,
        PatchFeature::Brightness => channels,
        PatchFeature::Contrast | PatchFeature::Loss | PatchFeature::Attention => 1,
    }
}

impl Masking for Linear {
    fn needs(&self) -> Needs {
        Needs::Pixels
    }

    fn reads(&self) -> Vec<Needs> {
        self.columns.iter().filter_map(|feature| feature.reads()).collect()
    }

    fn feature_weights(&self) -> Vec<(String, Range<usize>)> {
        let mut weights = Vec::new();
        let mut place = self.weight.map_or(0, |weight| weight.range().start);
        for feature in &self.columns {
            let num_columns = num_columns(*feature, self.facts.channels);
            for column in 0..num_columns {
                let name = feature.name();
                let name = if num_columns == 1 { name.to_owned() } else { format!("{name}.{column}") };
                weights.push((name, place..place + 1));
                place += 1;
            }
        }
        let position = self.position.map(|position| (PatchFeature::Position.name().to_owned(), position.range()));
        weights.extend(position);
        weights
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
        // Scores, features, patches and what was read of a teacher.
        let (logits, read) = (usize::from(self.scales.is_some()), self.reads().len());
        self.facts.num_patches() * (1 + self.width() + self.facts.patch_values + logits + read)
    }

    fn forward(&self, _: &Compute, phi: &[f32], input: &Arc<Buffer>, read: &[f32]) -> Option<Trace> {
        let (num_patches, width) = (self.facts.num_patches(), self.width());
        let features = self.features(input, read);
        let values = |weight: Option<Weight>| weight.map(|weight| &phi[weight.range()]);
        let (weight, position) = (values(self.weight).unwrap_or_default(), values(self.position));
        let logit = |i: usize| {
            let features = features[i * width..(i + 1) * width].iter();
            let weighted = features.zip(weight).map(|(&f, &w)| f64::from(f) * f64::from(w)).sum::<f64>();
            weighted + position.map_or(0.0, |position| f64::from(position[i % num_patches]))
        };
        let logits = (0..input.len() / self.facts.patch_values).map(logit);
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
        Some(Trace { scores: Arc::new(Buffer::from_vec(scores)), input: input.clone(), hidden, batch, kept: None })
    }

    /// The sums run in f64 over the batch in its order. The input has no gradient: it is pixels.
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
        let (num_patches, width) = (self.facts.num_patches(), self.width());
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
        for (i, dlogit) in dlogits.into_iter().enumerate() {
            let features = &trace.hidden[0][i * width..(i + 1) * width];
            dposition[i % num_patches] += dlogit;
            dweight.iter_mut().zip(features).for_each(|(d, &f)| *d += dlogit * f64::from(f));
        }
        for (weight, sums) in [(self.weight, dweight), (self.position, dposition)] {
            let Some(weight) = weight else { continue };
            dphi[weight.range()].iter_mut().zip(sums).for_each(|(d, sum)| *d += sum as f32);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: usize = 3;
    const L: usize = 4;

    fn draw(name: &str, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        init::normals(&mut values, 1.0, &mut init::tensor_rng(1, name));
        values
    }

    #[test]
    fn scores_read_their_features_and_have_their_gradient() {
        for (features, num_weights) in [
            (&PatchFeature::OF_PIXELS[..], 3 + L),
            (&PatchFeature::ALL, 5 + L),
            (&[PatchFeature::Attention, PatchFeature::Contrast], 2),
            (&[PatchFeature::Loss], 1),
            (&[PatchFeature::Position], L),
        ] {
            for scales in [&[][..], &[1, 2]] {
                let facts = MaskingFacts {
                    patch_values: 8,
                    channels: 2,
                    patch_features: features.into(),
                    scales: scales.into(),
                    ..MaskingFacts::of_grid(2, 1)
                };
                let linear = Linear::new(&facts);
                let num_gates = scales.len();
                assert_eq!(linear.layout.len, num_weights + num_gates, "{features:?}");
                let read: Vec<f32> = draw("read", 2 * BATCH * L)[..linear.reads().len() * BATCH * L].to_vec();
                let input = Arc::new(Buffer::from_vec(draw("images", BATCH * L * 8)));
                let compute = Compute::serial(2);
                let phi = draw("phi", linear.layout.len);
                let trace = linear.forward(&compute, &phi, &input, &read).unwrap();
                assert_eq!(trace.scores.len(), BATCH * L);
                let cotangent = draw("cotangent", BATCH * L);
                let mut gradient = vec![0.0; phi.len()];
                linear.backward(&compute, &phi, &trace, &cotangent, Some(&mut gradient), false);
                for i in 0..phi.len() {
                    let at = |step: f32| {
                        let mut moved = phi.clone();
                        moved[i] += step;
                        let scores = linear.forward(&compute, &moved, &input, &read).unwrap().scores;
                        scores.iter().zip(&cotangent).map(|(&p, &c)| f64::from(p) * f64::from(c)).sum::<f64>()
                    };
                    let expected = (at(1e-2) - at(-1e-2)) / f64::from(2e-2f32);
                    assert!((f64::from(gradient[i]) - expected).abs() < 3e-4, "{i}: {} {expected}", gradient[i]);
                }
            }
        }
    }

    #[test]
    fn each_weight_is_that_of_the_feature_it_is_called_by() {
        let features = [PatchFeature::Position, PatchFeature::Attention, PatchFeature::Loss, PatchFeature::Brightness];
        let features = [&features[..], &[PatchFeature::Contrast]].concat();
        let facts = MaskingFacts {
            patch_values: 8,
            channels: 2,
            patch_features: features.into(),
            ..MaskingFacts::of_grid(2, 1)
        };
        let linear = Linear::new(&facts);
        // In one image patch 1 is of high contrast, patch 2 bright in channel 1, patch 3 of high loss, patch 0 attended.
        let mut patches = vec![0.0; L * 8];
        patches[8..16].copy_from_slice(&[-2.0, 2.0, -2.0, 2.0, 2.0, -2.0, 2.0, -2.0]);
        patches[20..24].copy_from_slice(&[3.0; 4]);
        let read = [[0.1, 0.1, 0.1, 0.9], [0.8, 0.2, 0.2, 0.2]].concat();
        let input = Arc::new(Buffer::from_vec(patches));
        let weights = linear.feature_weights();
        let expected = [("contrast", 1), ("brightness.0", L), ("brightness.1", 2), ("loss", 3), ("attention", 0)];
        assert_eq!(weights.len(), expected.len() + 1);
        for ((name, place), (expected, patch)) in weights.iter().zip(expected) {
            assert_eq!((name.as_str(), place.len()), (expected, 1));
            let mut phi = vec![0.0; linear.layout.len];
            phi[place.start] = 1.0;
            let trace = linear.forward(&Compute::serial(1), &phi, &input, &read).unwrap();
            let above: Vec<usize> = (0..L).filter(|&patch| trace.scores[patch] > 0.6).collect();
            // Nothing tells the patches of an image apart whose values are all the same.
            assert_eq!(above, if patch == L { vec![] } else { vec![patch] }, "{name}: {:?}", trace.scores);
        }
        assert_eq!(weights[expected.len()], ("position".to_owned(), 5..5 + L));
    }
}
