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
    /// Settings over those of all arms and of the preset; the arm's own are stronger.
    pub set: &'static [&'static str],
    /// Whether it is the initial encoder, without a step of training.
    pub untrained: bool,
}

const fn arm(name: &'static str, about: &'static str, set: &'static [&'static str]) -> ReadyArm {
    ReadyArm { name, about, preset: None, set, untrained: false }
}

const fn recommended(name: &'static str, about: &'static str, set: &'static [&'static str]) -> ReadyArm {
    ReadyArm { preset: Some(MethodPreset::Recommended), ..arm(name, about, set) }
}

impl ReadyArm {
    /// All of its settings.
    #[must_use]
    pub fn settings(&self) -> Vec<String> {
        let of_preset = self.preset.map_or(&[][..], MethodPreset::values);
        let of_preset = of_preset.iter().map(|(key, value)| format!("{key}={value}"));
        of_preset.chain(self.set.iter().map(|set| (*set).to_owned())).collect()
    }
}

/// Nothing is learned: all that a configuration may say of learned masks is taken back.
const RANDOM: &[&str] = &[
    "mask.strategy=random",
    "mask.explore=0.0",
    "mask.explore_arms=[]",
    "mask.ratio_arms=[]",
    "mask.scales=[1]",
    "mask.weights=published",
    "mask.select=score",
    "mask.temperature=1.0",
    "method.multitask=false",
    "method.supervised=false",
    "policy.average=1",
    "policy.estimator=weights",
    "policy.search=gradient",
    "policy.branch_steps=32",
    "policy.branch_judges=4",
];

/// All of them. A further one is a line here.
pub const READY: &[ReadyArm] = &[
    arm("random", "random masks, an ordinary masked autoencoder", RANDOM),
    ReadyArm { untrained: true, ..arm("untrained", "the initial encoder, without training", &[]) },
    arm(
        "published",
        "the published form: flat network on the embedding, naive passes, no lag",
        &[
            "mask.strategy=flat-mlp",
            "mask.input=embedding",
            "mask.explore=0.0",
            "method.hypergradient=published",
            "method.multitask=false",
            "pipeline.lag=0",
        ],
    ),
    recommended("recommended", "the preset recommended, see docs/results.md", &[]),
    recommended(
        "shuffled-labels",
        "as recommended, but the labels of the feedback are permuted: it says nothing",
        &["method.shuffle_labels=true"],
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
}
