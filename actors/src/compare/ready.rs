//! Ready-made arms: named sets of settings, so that experiments mean the same by the same word.

use mlomae_dataflow::config::MethodPreset;

/// A ready-made arm.
#[derive(Debug, Clone, Copy)]
pub struct ReadyArm {
    /// The name that an experiment's file gives it.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// The preset of the method whose keys are all set, also those that the base writes out.
    pub preset: Option<MethodPreset>,
    /// Settings under those of the preset, which take back what a base may say of masks: a word means the same arm
    /// whatever it stands over. An arm that shall have more says so in its own settings.
    pub reset: &'static [&'static str],
    /// Settings over those of all arms and of the preset; the arm's own are stronger.
    pub set: &'static [&'static str],
    /// Whether it is the initial encoder, without a step of training.
    pub untrained: bool,
}

const fn arm(name: &'static str, about: &'static str, set: &'static [&'static str]) -> ReadyArm {
    ReadyArm { name, about, preset: None, reset: &[], set, untrained: false }
}

const fn recommended(name: &'static str, about: &'static str, set: &'static [&'static str]) -> ReadyArm {
    ReadyArm { preset: Some(MethodPreset::Recommended), reset: RESET, ..arm(name, about, set) }
}

impl ReadyArm {
    /// All of its settings.
    #[must_use]
    pub fn settings(&self) -> Vec<String> {
        let of_preset = self.preset.map_or(&[][..], MethodPreset::values);
        let of_preset = of_preset.iter().map(|(key, value)| format!("{key}={value}"));
        let all = self.reset.iter().map(|set| (*set).to_owned()).chain(of_preset);
        all.chain(self.set.iter().map(|set| (*set).to_owned())).collect()
    }
}

/// What a configuration may say of learned masks beside their strategy, at the values that say nothing.
const RESET: &[&str] = &[
    "mask.explore=0.0",
    "mask.explore_arms=[]",
    "mask.ratio_arms=[]",
    "mask.ratio_per_flop=false",
    "mask.scales=[1]",
    "mask.weights=published",
    "mask.select=score",
    "mask.temperature=1.0",
    "mask.shuffle_scores=false",
    "method.multitask=false",
    "method.supervised=false",
    "method.shuffle_labels=false",
    "policy.average=1",
    "policy.estimator=weights",
];

/// All of them. A further one is a line here.
pub const READY: &[ReadyArm] = &[
    ReadyArm {
        reset: RESET,
        ..arm("random", "random masks, an ordinary masked autoencoder", &["mask.strategy=random"])
    },
    ReadyArm { untrained: true, ..arm("untrained", "the initial encoder, without training", &[]) },
    ReadyArm {
        reset: RESET,
        ..arm(
            "published",
            "the published form: flat network on the embedding, naive passes, no lag",
            &["mask.strategy=flat-mlp", "mask.input=embedding", "method.hypergradient=published", "pipeline.lag=0"],
        )
    },
    recommended("recommended", "the preset recommended, see docs/results.md", &[]),
    recommended(
        "shuffled-labels",
        "as recommended, but the labels of the feedback are permuted: it says nothing",
        &["method.shuffle_labels=true"],
    ),
    recommended(
        "shuffled-scores",
        "as recommended, but the scores are permuted over the patches of each image: as much is masked and weighed, at \
         another place",
        &["mask.shuffle_scores=true"],
    ),
    recommended("mask-only", "as recommended, but scores choose masks and weigh nothing", &["mask.weights=none"]),
    recommended(
        "weight-only",
        "as recommended, but masks are random and scores only weigh",
        &["mask.select=random", "policy.estimator=weights"],
    ),
    recommended(
        "multitask",
        "the same labels used directly: random masks, and the direction of the feedback steps the encoder",
        &["mask.weights=none", "mask.select=random", "policy.estimator=weights", "method.supervised=true"],
    ),
    arm("frozen-policy", "the masking network keeps its initial weights", &["policy.lr=0.0"]),
    arm(
        "accident",
        "the encoder keeps the finite difference's perturbation, as an accident of the published program does",
        &["method.multitask=true"],
    ),
];

/// The ready-made arm of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static ReadyArm> {
    READY.iter().find(|arm| arm.name == name)
}

#[cfg(test)]
mod tests {
    use mlomae_dataflow::config::{Config, ConfigInputs};

    use super::*;

    #[test]
    fn every_ready_arm_is_a_valid_change_of_the_quickstart() {
        let plain = Config::resolve(&ConfigInputs::quickstart()).unwrap();
        for arm in READY {
            let mut inputs = ConfigInputs::quickstart();
            inputs.sets.extend(arm.settings());
            let config = Config::resolve(&inputs).unwrap_or_else(|errors| panic!("{}: {errors:?}", arm.name));
            assert_ne!(config == plain, !arm.untrained, "{} changes something unless it is untrained", arm.name);
            assert_eq!(by_name(arm.name).unwrap().about, arm.about, "names are unique");
        }
    }

    #[test]
    fn a_ready_arm_with_a_reset_is_the_same_over_any_base() {
        let plain = ConfigInputs::quickstart();
        let learned =
            ["mask.strategy=token-mlp", "mask.input=pixels", "mask.scales=[1, 2]", "mask.ratio_arms=[0.5, 0.75]"];
        let others = [
            &[&learned[..], &["mask.explore=0.0", "mask.explore_arms=[0.0, 0.5]", "mask.ratio_per_flop=true"]].concat(),
            &[&learned[..], &["mask.select=sample", "mask.explore=0.0", "policy.estimator=both", "policy.average=3"]]
                .concat(),
            &[&learned[..], &["mask.select=sample", "mask.temperature=2.0", "mask.weights=none"]].concat(),
            &[&learned[..], &["method.supervised=true", "method.shuffle_labels=true"]].concat(),
        ];
        for arm in READY.iter().filter(|arm| !arm.reset.is_empty()) {
            let of = |base: &[&str]| {
                let mut inputs = plain.clone();
                inputs.sets.extend(base.iter().map(|set| (*set).to_owned()).chain(arm.settings()));
                // What the network reads is of no meaning to one without.
                inputs.sets.extend((arm.name == "random").then(|| "mask.input=pixels".to_owned()));
                Config::resolve(&inputs).unwrap_or_else(|errors| panic!("{}: {errors:?}", arm.name))
            };
            for base in others {
                assert_eq!(of(base), of(&[]), "{} over {base:?}", arm.name);
            }
        }
        let with_reset: Vec<&str> = READY.iter().filter(|arm| !arm.reset.is_empty()).map(|arm| arm.name).collect();
        assert!(["random", "published", "recommended", "multitask"].iter().all(|name| with_reset.contains(name)));
    }
}
