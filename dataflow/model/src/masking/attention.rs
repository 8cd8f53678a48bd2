//! Masks by the encoder's own attention: what the CLS token looks at in the last block is masked with a higher chance
//! (AMT, arXiv 2211.15362; AttMask, arXiv 2203.12719), or revealed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use super::order::gumbel;
use crate::choice::Named;
use crate::rng::uniform;

/// Which patches are masked, by their attention a in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Attended {
    /// Those of high attention: drawn without replacement with weights a^(1/temperature).
    #[default]
    High,
    /// As `high`, but of the most attended patches some, drawn at random, stay visible as hints, and others are masked
    /// in their place (AttMask-Hint).
    Hint,
    /// Those of low attention: drawn with weights (1 − a)^(1/temperature).
    Low,
}

/// Which attention it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AttentionMap {
    /// That of CLS in the last block.
    #[default]
    LastBlock,
    /// That of CLS through all blocks (attention rollout, arXiv 2005.00928).
    Rollout,
}

/// How attention chooses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Which patches are masked.
    pub masked: Attended,
    /// Which attention it is.
    #[serde(default)]
    pub map: AttentionMap,
    /// With [`Attended::Hint`]: hints as a share of all patches, in [0, 1].
    pub hints: f64,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        AttentionConfig { masked: Attended::High, map: AttentionMap::LastBlock, hints: 0.05 }
    }
}

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn summary(&self) -> &'static str {
        "Masks drawn by the attention of the encoder's last block (AMT, AttMask): levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn reads_teacher(&self) -> bool {
        true
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(Attention {
            num_patches: facts.num_patches(),
            num_visible: facts.num_visible,
            config: facts.attention,
        })
    }
}

/// Masks by attention.
#[derive(Clone, Debug)]
pub struct Attention {
    num_patches: usize,
    num_visible: usize,
    config: AttentionConfig,
}

/// The least weight of a patch: each head's least attended has none.
const LEAST: f64 = 1e-6;

impl Masking for Attention {
    fn needs(&self) -> Needs {
        match self.config.map {
            AttentionMap::LastBlock => Needs::Attention,
            AttentionMap::Rollout => Needs::Rollout,
        }
    }

    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        let attention = rule.read.as_deref().unwrap_or_default();
        let num_masked = self.num_patches - rule.num_visible.unwrap_or(self.num_visible);
        let mut keys = Vec::with_capacity(num_images * self.num_patches);
        for (image, attention) in attention.chunks_exact(self.num_patches).enumerate() {
            let mut rng = rule.rng(image);
            let first = keys.len();
            keys.extend(attention.iter().map(|&a| {
                let weight = if self.config.masked == Attended::Low { 1.0 - f64::from(a) } else { f64::from(a) };
                (weight.max(LEAST).ln() / rule.temperature + gumbel(&mut rng)) as f32
            }));
            if self.config.masked == Attended::Hint {
                let num_hints = (self.config.hints * self.num_patches as f64).round() as usize;
                let keys: &mut [f32] = &mut keys[first..];
                let mut patches: Vec<usize> = (0..self.num_patches).collect();
                patches.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
                let num_hints = num_hints.min(self.num_patches - num_masked);
                // A partial Fisher-Yates shuffle draws hints from the first patches without replacement.
                let salient = &mut patches[..num_masked + num_hints];
                for place in 0..num_hints {
                    let other = place + (uniform(&mut rng) * (salient.len() - place) as f64) as usize;
                    salient.swap(place, other);
                    keys[salient[place]] = f32::NEG_INFINITY;
                }
            }
        }
        keys
    }

    /// The attention, which is kept for the logs.
    fn trace_values(&self) -> usize {
        self.num_patches
    }
}

/// The attention of CLS to the L patches `[batch, L]`, from its queries `[batch, dim]` and the keys of all tokens
/// `[batch, 1 + L, dim]`: softmax(q·k/√d) of each head over all tokens, those of the patches scaled to [0, 1] by their
/// least and their greatest, mean of the heads.
#[must_use]
pub fn cls_attention(queries: &[f32], keys: &[f32], num_patches: usize, heads: usize, dim: usize) -> Vec<f32> {
    let (head_dim, num_tokens) = (dim / heads, num_patches + 1);
    let scale = 1.0 / (head_dim as f64).sqrt();
    let mut out = Vec::with_capacity(queries.len() / dim * num_patches);
    let mut weights = vec![0.0; num_tokens];
    for (query, keys) in queries.chunks_exact(dim).zip(keys.chunks_exact(num_tokens * dim)) {
        let mut sum = vec![0.0; num_patches];
        for head in 0..heads {
            let columns = head * head_dim..(head + 1) * head_dim;
            let query = &query[columns.clone()];
            attend(&mut weights, query, keys.chunks_exact(dim).map(|key| &key[columns.clone()]), scale);
            scale_to_unit(&mut weights[1..]);
            sum.iter_mut().zip(&weights[1..]).for_each(|(sum, a)| *sum += a);
        }
        out.extend(sum.into_iter().map(|sum| (sum / heads as f64) as f32));
    }
    out
}

/// softmax(q·k·scale) of a query over the keys of one head.
fn attend<'a>(weights: &mut [f64], query: &[f32], keys: impl Iterator<Item = &'a [f32]>, scale: f64) {
    for (weight, key) in weights.iter_mut().zip(keys) {
        *weight = scale * query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
    }
    let top = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|weight| *weight = (*weight - top).exp());
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
}

/// Scales values to [0, 1] by their least and their greatest; where all are equal none is preferred.
fn scale_to_unit(values: &mut [f64]) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let span = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
    values.iter_mut().for_each(|value| *value = if span > 0.0 { (*value - least) / span } else { 1.0 });
}

/// What CLS attends to through all blocks, `[batch, L]` scaled to [0, 1] in each image: the patches' part of the row of
/// CLS of Â_D·…·Â_1 with Â_l = (A_l + 1)/2, where A_l is the attention of block l, mean of the heads. `blocks` are
/// [`Vit::queries_and_keys`](crate::nets::Vit::queries_and_keys).
#[must_use]
pub fn rollout(blocks: &[&[f32]], num_patches: usize, heads: usize, dim: usize) -> Vec<f32> {
    let (head_dim, num_tokens) = (dim / heads, num_patches + 1);
    let scale = 1.0 / (head_dim as f64).sqrt();
    let num_images = blocks.last().map_or(0, |last| last.len() / (num_tokens * 2 * dim));
    let mut out = Vec::with_capacity(num_images * num_patches);
    let mut weights = vec![0.0; num_tokens];
    for image in 0..num_images {
        let mut row = vec![0.0; num_tokens];
        row[0] = 1.0;
        for block in blocks.iter().rev() {
            let width = block.len() / (num_images * num_tokens);
            let tokens = &block[image * num_tokens * width..(image + 1) * num_tokens * width];
            let mut next: Vec<f64> = row.iter().map(|share| 0.5 * share).collect();
            // Only CLS has a share before the last block.
            for (token, share) in row.iter().enumerate().filter(|(_, share)| **share > 0.0) {
                for head in 0..heads {
                    let columns = head * head_dim..(head + 1) * head_dim;
                    let query = &tokens[token * width..][columns.clone()];
                    let keys = tokens.chunks_exact(width).map(|token| &token[dim..][columns.clone()]);
                    attend(&mut weights, query, keys, scale);
                    let factor = 0.5 * share / heads as f64;
                    next.iter_mut().zip(&weights).for_each(|(next, a)| *next += factor * a);
                }
            }
            row = next;
        }
        scale_to_unit(&mut row[1..]);
        out.extend(row[1..].iter().map(|&a| a as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::order::order_by_keys;

    const L: usize = 8;

    fn shares(config: AttentionConfig, attention: &[f32; L], temperature: f64, num_visible: usize) -> [f64; L] {
        let num = 20_000;
        let masking = Attention { num_patches: L, num_visible, config };
        let read: Vec<f32> = (0..num).flat_map(|_| *attention).collect();
        let rule = MaskRule { seed: 4, temperature, read: Some(read.into()), ..MaskRule::BY_SCORE };
        let order = order_by_keys(&masking.keys(num, None, &rule), L, num_visible);
        std::array::from_fn(|patch| {
            (0..num).filter(|image| order.is_masked(image * L + patch)).count() as f64 / num as f64
        })
    }

    #[test]
    fn draws_follow_the_attention_or_its_complement() {
        let attention = [0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4];
        let high = AttentionConfig::default();
        // A single masked patch is drawn with weights a, or 1 − a.
        for (masked, temperature) in [(Attended::High, 1.0), (Attended::Low, 1.0), (Attended::High, 0.5)] {
            let weight = |a: f32| {
                let a = f64::from(a);
                if masked == Attended::Low { 1.0 - a } else { a.powf(1.0 / temperature) }
            };
            let total: f64 = attention.iter().map(|&a| weight(a)).sum();
            let found = shares(AttentionConfig { masked, ..high }, &attention, temperature, L - 1);
            for (share, a) in found.into_iter().zip(attention) {
                assert!((share - weight(a) / total).abs() < 0.015, "{masked:?}: {found:?}");
            }
        }
        // At a low temperature the order is that of the attention.
        let sorted = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0];
        assert_eq!(shares(high, &sorted, 0.01, 5), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn hints_are_drawn_of_the_most_attended() {
        // 4 of 8 are masked, and of the 4 + 2 most attended 2 are hints.
        let sorted = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0];
        let config = AttentionConfig { masked: Attended::Hint, hints: 0.25, ..AttentionConfig::default() };
        let found = shares(config, &sorted, 0.01, 4);
        assert_eq!(found[..2], [0.0, 0.0]);
        assert!(found[2..].iter().all(|share| (share - 4.0 / 6.0).abs() < 0.015), "{found:?}");
        // As many hints as are visible, at most.
        let most = shares(AttentionConfig { hints: 1.0, ..config }, &sorted, 0.01, 4);
        assert!(most.iter().all(|share| (share - 0.5).abs() < 0.015), "{most:?}");
    }

    #[test]
    fn attention_is_that_of_the_formula() {
        // Two heads of one value: head 0 prefers the last patch, head 1 is indifferent.
        let (queries, keys) = ([2.0f32, 0.0], [9.0f32, 5.0, 0.0, 1.0, 0.5, 2.0, 1.0, -3.0]);
        let found = cls_attention(&queries, &keys, 3, 2, 2);
        let (a, b, c) = (0.0f64.exp(), 1.0f64.exp(), 2.0f64.exp());
        let expected = [0.5, (1.0 + (b - a) / (c - a)) / 2.0, 1.0];
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
