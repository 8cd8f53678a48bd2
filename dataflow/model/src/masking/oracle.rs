//! Masks and loss weights by what only synthetic data knows: which patches hold the labelled object. No method, but the
//! upper bound and the controls beside which methods are measured: how much would it help to know the object?

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use super::order::uniform_keys;
use crate::choice::Named;
use crate::engine::TokenOrder;

/// How an oracle masks the patches of the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OracleMasked {
    /// As all others: masks are those of the strategy `random`.
    #[default]
    Random,
    /// Half of an image's object patches, drawn at random, the others stay visible; of n patches round(n/2) with ties to
    /// the even number, as far as the ratio allows.
    Half,
    /// All of them, before any other patch.
    Always,
    /// Last of all: none of them, as far as the ratio allows.
    Never,
}

/// What an oracle does with what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OracleConfig {
    /// Which of the object's patches are masked.
    pub masked: OracleMasked,
    /// Weight of the losses of masked object patches, 0 or more.
    pub object_weight: f64,
    /// Weight of the losses of the other masked patches, 0 or more: 0 for a loss on the object alone.
    pub background_weight: f64,
}

impl Default for OracleConfig {
    fn default() -> Self {
        OracleConfig { masked: OracleMasked::Random, object_weight: 1.0, background_weight: 1.0 }
    }
}

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "oracle"
    }
    fn summary(&self) -> &'static str {
        "Masks and weighs by the known objects of synthetic data, as upper bound and control: levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn may_be_mixed(&self) -> bool {
        false
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        Arc::new(Oracle { num_patches: facts.num_patches(), config: facts.oracle })
    }
}

/// Masks by known objects.
#[derive(Clone, Debug)]
pub struct Oracle {
    num_patches: usize,
    config: OracleConfig,
}

impl Oracle {
    /// Moves the uniform keys of an image's `objects` below or above those of the background, which lie in [0, 1).
    fn place_objects(&self, keys: &mut [f32], objects: &[bool]) {
        const VISIBLE: f32 = -2.0;
        const MASKED: f32 = 2.0;
        let mut patches: Vec<usize> = (0..keys.len()).filter(|&patch| objects[patch]).collect();
        let num_masked = match self.config.masked {
            OracleMasked::Random => return,
            OracleMasked::Half => (patches.len() as f64 / 2.0).round_ties_even() as usize,
            OracleMasked::Always => patches.len(),
            OracleMasked::Never => 0,
        };
        // Those of the highest keys are masked, so that the random keys draw them too.
        patches.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
        for (place, &patch) in patches.iter().enumerate() {
            keys[patch] += if place < num_masked { MASKED } else { VISIBLE };
        }
    }
}

impl Masking for Oracle {
    fn needs(&self) -> Needs {
        Needs::Objects
    }

    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        let mut keys = uniform_keys(num_images, self.num_patches, rule);
        let objects = rule.objects.iter().flat_map(|objects| objects.chunks_exact(self.num_patches));
        for (keys, objects) in keys.chunks_exact_mut(self.num_patches).zip(objects) {
            self.place_objects(keys, objects);
        }
        keys
    }

    fn fixed_weights(&self, _: &TokenOrder, rule: &MaskRule) -> Option<Vec<f32>> {
        let (of_object, of_other) = (self.config.object_weight as f32, self.config.background_weight as f32);
        let objects = rule.objects.as_ref().filter(|_| of_object != of_other)?;
        Some(objects.iter().map(|&is_object| if is_object { of_object } else { of_other }).collect())
    }

    /// The weights, which queues hold as they hold a trace.
    fn trace_values(&self) -> usize {
        self.num_patches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::order::order_by_keys;
    use crate::masking::{LossWeights, MaskWeights, Scored};

    const L: usize = 16;

    /// Images with 0, 1, … L object patches at places that a hash draws.
    fn objects() -> Vec<bool> {
        (0..=L).flat_map(|n| (0..L).map(move |patch| (patch * 7 + n * 3) % L < n)).collect()
    }

    fn oracle(config: OracleConfig) -> Oracle {
        Oracle { num_patches: L, config }
    }

    fn rule(step: u64) -> MaskRule {
        MaskRule { seed: 3, step, objects: Some(objects().into()), ..MaskRule::BY_SCORE }
    }

    #[test]
    fn exactly_as_many_object_patches_are_masked_as_asked_for() {
        let objects = objects();
        for masked in [OracleMasked::Half, OracleMasked::Always, OracleMasked::Never] {
            let oracle = oracle(OracleConfig { masked, ..OracleConfig::default() });
            for num_visible in 1..L {
                let order = order_by_keys(&oracle.keys(L + 1, None, &rule(5)), L, num_visible);
                for n in 0..=L {
                    let of_image = n * L..(n + 1) * L;
                    let num = of_image.filter(|&i| objects[i] && order.is_masked(i)).count();
                    let wanted = match masked {
                        OracleMasked::Half => (n as f64 / 2.0).round_ties_even() as usize,
                        OracleMasked::Always => n,
                        _ => 0,
                    };
                    // At most all masked patches are the object's, at most all visible ones are.
                    let bounds = n.saturating_sub(num_visible)..=L - num_visible;
                    assert_eq!(num, wanted.clamp(*bounds.start(), *bounds.end()), "{masked:?} {num_visible} {n}");
                }
            }
        }
    }

    #[test]
    fn draws_are_those_of_random_masks_and_fall_on_all_patches_alike() {
        let of = |masked| oracle(OracleConfig { masked, ..OracleConfig::default() });
        let random = of(OracleMasked::Random).keys(L + 1, None, &rule(5));
        assert_eq!(random, uniform_keys(L + 1, L, &rule(5)));
        let half = of(OracleMasked::Half);
        assert_eq!(half.keys(L + 1, None, &rule(5)), half.keys(L + 1, None, &rule(5)));
        // Over many steps each object patch of an image is masked equally often, and each other one.
        let (objects, mut counts, num_steps) = (objects(), [0usize; L * (L + 1)], 4000);
        for step in 0..num_steps {
            let order = order_by_keys(&half.keys(L + 1, None, &rule(step)), L, 4);
            counts.iter_mut().enumerate().for_each(|(i, count)| *count += usize::from(order.is_masked(i)));
        }
        for (i, count) in counts.into_iter().enumerate() {
            let n = i / L;
            let masked = ((n as f64 / 2.0).round_ties_even()).max(n as f64 - 4.0);
            let share = if objects[i] { masked / n as f64 } else { (12.0 - masked) / (L - n) as f64 };
            let deviation = (share * (1.0 - share) / num_steps as f64).sqrt();
            assert!((count as f64 / num_steps as f64 - share).abs() <= 5.0 * deviation, "{i}: {count} {share}");
        }
    }

    #[test]
    fn the_loss_is_the_weighted_mean_over_the_batch() {
        let objects = objects();
        let losses: Vec<f64> = (0..objects.len()).map(|i| ((i * 37) % 11) as f64).collect();
        for (object_weight, background_weight) in [(1.0, 0.0), (10.0, 1.0), (100.0, 1.0), (0.0, 1.0), (0.5, 0.25)] {
            let oracle = oracle(OracleConfig { object_weight, background_weight, ..OracleConfig::default() });
            let scored = Scored::by_keys(&oracle, MaskWeights::Published, None, L + 1, [L, 4], &rule(7));
            let order = &scored.order;
            let masked = || (0..objects.len()).filter(|&i| order.is_masked(i));
            let weight = |i: usize| if objects[i] { object_weight } else { background_weight };
            let expected = masked().map(|i| weight(i) * losses[i]).sum::<f64>() / masked().map(weight).sum::<f64>();
            let given = scored.weights().expect("weights");
            let got = masked().map(|i| f64::from(given[i]) * losses[i]).sum::<f64>() / masked().count() as f64;
            assert!((got - expected).abs() < 1e-5, "{object_weight} {background_weight}: {got} {expected}");
        }
        let equal = oracle(OracleConfig { object_weight: 3.0, background_weight: 3.0, ..OracleConfig::default() });
        let scored = Scored::by_keys(&equal, MaskWeights::Published, None, L + 1, [L, 4], &rule(7));
        assert!(matches!(scored.loss_weights, LossWeights::One));
    }

    #[test]
    fn without_a_masked_object_patch_a_loss_on_the_object_is_zero() {
        let config = OracleConfig { background_weight: 0.0, ..OracleConfig::default() };
        let rule = MaskRule { objects: Some(vec![false; 2 * L].into()), ..rule(7) };
        let scored = Scored::by_keys(&oracle(config), MaskWeights::Published, None, 2, [L, 4], &rule);
        assert_eq!(scored.weights(), Some(&[0.0; 2 * L][..]));
    }
}
