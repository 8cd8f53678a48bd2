//! Several strategies at once: each image of a batch is masked by one of them, drawn by weight.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use super::list::MaskingChoice;
use crate::choice::{Choice, Named};
use crate::rng::{Purpose, keyed, uniform};

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "mixture"
    }
    fn summary(&self) -> &'static str {
        "One of several strategies for each image, drawn by weight: levels 2 and 3 rest"
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
        let parts = facts.mixture.iter();
        let parts = parts
            .map(|(kind, weight)| (kind.build(&MaskingFacts { mixture: Arc::default(), ..facts.clone() }), *weight));
        Arc::new(Mixture { num_patches: facts.num_patches(), parts: parts.collect() })
    }
}

/// The strategies of a mixture with their weights, those of weight 0 left out.
///
/// # Errors
/// What is wrong with it, and what is allowed.
pub fn strategies(weights: &BTreeMap<String, f64>) -> Result<Vec<(MaskingChoice, f64)>, (String, String)> {
    let fits = |kind: &MaskingChoice| !kind.is_learned() && kind.may_be_mixed();
    let allowed = || {
        let kinds = super::MASKINGS.iter().map(|kind| Choice::of(*kind)).filter(fits);
        kinds.map(|kind: MaskingChoice| kind.name()).collect::<Vec<_>>().join(", ")
    };
    let mut strategies = Vec::new();
    for (name, &weight) in weights {
        match MaskingChoice::by_name(name).filter(fits) {
            Some(kind) if weight > 0.0 => strategies.push((kind, weight)),
            Some(_) => {}
            None => return Err((format!("has a strategy that cannot be mixed: {name}"), allowed())),
        }
    }
    let teachers = strategies.iter().filter(|(kind, _)| kind.reads_teacher()).count();
    if strategies.is_empty() {
        return Err(("has no strategy with a weight above 0".to_owned(), allowed()));
    }
    if teachers > 1 {
        let problem = "has more than one strategy that reads the networks".to_owned();
        return Err((problem, "one of attention, parts and loss, beside others".to_owned()));
    }
    Ok(strategies)
}

/// A strategy for each image.
#[derive(Clone, Debug)]
pub struct Mixture {
    num_patches: usize,
    parts: Vec<(Arc<dyn Masking>, f64)>,
}

impl Mixture {
    /// The strategy of an image, by its index among the images of this rank.
    fn of_image(&self, image: usize, rule: &MaskRule) -> usize {
        let total: f64 = self.parts.iter().map(|(_, weight)| weight).sum();
        let mut rng = keyed(rule.seed, Purpose::MaskMixture, rule.step, rule.first_image + image as u64);
        let mut left = uniform(&mut rng) * total;
        let place = self.parts.iter().position(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        place.unwrap_or(self.parts.len().saturating_sub(1))
    }
}

impl Masking for Mixture {
    fn needs(&self) -> Needs {
        let mut needs = self.parts.iter().map(|(masking, _)| masking.needs());
        needs.find(|needs| *needs != Needs::Nothing).unwrap_or(Needs::Nothing)
    }

    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        let all: Vec<Vec<f32>> = self.parts.iter().map(|(masking, _)| masking.keys(num_images, None, rule)).collect();
        let mut keys = Vec::with_capacity(num_images * self.num_patches);
        for image in 0..num_images {
            let place = image * self.num_patches..(image + 1) * self.num_patches;
            keys.extend_from_slice(&all[self.of_image(image, rule)][place]);
        }
        keys
    }

    fn trace_values(&self) -> usize {
        self.parts.iter().map(|(masking, _)| masking.trace_values()).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that say which strategy they are of.
    #[derive(Clone, Debug)]
    struct Fixed(f32);

    impl Masking for Fixed {
        fn needs(&self) -> Needs {
            Needs::Nothing
        }
        fn keys(&self, num_images: usize, _: Option<&[f32]>, _: &MaskRule) -> Vec<f32> {
            vec![self.0; 4 * num_images]
        }
    }

    #[test]
    fn images_are_masked_by_one_strategy_each_in_the_share_of_its_weight() {
        let parts: Vec<(Arc<dyn Masking>, f64)> =
            vec![(Arc::new(Fixed(0.0)), 1.0), (Arc::new(Fixed(1.0)), 3.0), (Arc::new(Fixed(2.0)), 4.0)];
        let mixture = Mixture { num_patches: 4, parts };
        let rule = MaskRule { seed: 2, step: 9, ..MaskRule::BY_SCORE };
        let keys = mixture.keys(20_000, None, &rule);
        assert!(keys.chunks_exact(4).all(|image| image.iter().all(|key| *key == image[0])));
        for (strategy, share) in [(0.0, 0.125), (1.0, 0.375), (2.0, 0.5)] {
            let num = keys.iter().step_by(4).filter(|key| **key == strategy).count();
            assert!((num as f64 / 20_000.0 - share).abs() < 0.015, "{strategy}: {num}");
        }
        // An image's strategy follows from its place in the batch of all ranks.
        let second = MaskRule { first_image: 10_000, ..rule };
        assert_eq!(mixture.keys(10_000, None, &second), keys[40_000..]);
    }

    #[test]
    fn what_is_no_mixture_is_refused() {
        let of = |entries: &[(&str, f64)]| {
            strategies(&entries.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect())
        };
        let both = of(&[("random", 0.5), ("attention", 0.5), ("loss", 0.0)]).unwrap();
        assert_eq!(both.len(), 2);
        for (entries, problem) in [
            (&[][..], "no strategy"),
            (&[("random", 0.0)], "no strategy"),
            (&[("flat-mlp", 1.0)], "cannot be mixed: flat-mlp"),
            (&[("mixture", 1.0)], "cannot be mixed: mixture"),
            (&[("oracle", 1.0)], "cannot be mixed: oracle"),
            (&[("nothing", 1.0)], "cannot be mixed: nothing"),
            (&[("attention", 1.0), ("loss", 1.0)], "more than one strategy that reads the networks"),
        ] {
            let (found, allowed) = of(entries).unwrap_err();
            assert!(found.contains(problem) && allowed.contains("attention"), "{found} ({allowed})");
        }
    }
}
