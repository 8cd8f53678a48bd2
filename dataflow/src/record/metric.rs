//! The numbers of the table `metrics`: their names, levels, splits and units, once for those who write and who read
//! them.

use std::borrow::Cow;

use mlomae_storage::logs::{Level, Text};

// Losses and figures of levels 2 and 3 are listed as the task `class` has them; another task has units and figures of
// its own.

/// Declares [`Metric`] by the level, name, split and unit of each number.
macro_rules! metrics {
    ($($(#[doc = $about:literal])+ $Name:ident: $Level:ident, $name:literal, $split:literal, $unit:literal;)+) => {
        /// A number of the table `metrics`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric {
            $($(#[doc = $about])+ $Name,)+
        }

        impl Metric {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$Name),+];

            /// The level that it belongs to.
            #[must_use]
            pub const fn level(self) -> Level {
                match self {
                    $(Self::$Name => Level::$Level,)+
                }
            }

            /// The name in the logs; names repeat from level to level.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Name => $name,)+
                }
            }

            /// The role that it is measured on.
            #[must_use]
            pub const fn split(self) -> &'static str {
                match self {
                    $(Self::$Name => $split,)+
                }
            }

            /// The unit.
            #[must_use]
            pub const fn unit(self) -> &'static str {
                match self {
                    $(Self::$Name => $unit,)+
                }
            }

            /// What it is.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self {
                    $(Self::$Name => concat!($($about),+).trim_ascii(),)+
                }
            }
        }
    };
}

metrics! {
    /// Reconstruction loss L_m.
    PretrainLoss: Pretrain, "loss", "pretrain", "1";
    /// Loss L_pred of the predictor of patch losses, beside L_m: the cross entropy of pairs of masked patches, ln 2 where
    /// it knows nothing; with `mask.difficulty = "predicted"` only.
    RankingLoss: Pretrain, "ranking_loss", "pretrain", "nat";
    /// Learning rate of θ.
    PretrainRate: Pretrain, "lr", "pretrain", "1";
    /// Norm of the gradient of θ.
    PretrainGradientNorm: Pretrain, "grad_norm", "pretrain", "1";
    /// Mean binary entropy of the scores.
    ScoreEntropy: Pretrain, "score_entropy", "pretrain", "nat";
    /// Share of the scores outside 0.02..0.98.
    ScoreSaturation: Pretrain, "score_saturation", "pretrain", "share";
    /// (Σw)²/(n Σw²) over the weights w of an image's n masked patches, mean of the batch: 1 if all weigh the same.
    EffectiveShare: Pretrain, "effective_share", "pretrain", "share";
    /// Share of the batch's patches that are masked; where `mask.ratio` has a schedule.
    MaskRatio: Pretrain, "mask_ratio", "pretrain", "share";
    /// Share of the patches that got random places; where `mask.explore` has a schedule.
    MaskExplore: Pretrain, "mask_explore", "pretrain", "share";
    /// Lowest share of the last thousand images in which a position was masked.
    MaskCoverageMin: Pretrain, "mask_coverage_min", "pretrain", "share";
    /// Highest share of the last thousand images in which a position was masked.
    MaskCoverageMax: Pretrain, "mask_coverage_max", "pretrain", "share";
    /// Share of the last thousand images in which the patch at that place was masked.
    MaskCoverageAt: Pretrain, "mask_coverage.ROW.COLUMN", "pretrain", "share";
    /// Share of an image's patches whose mask changed since its last visit.
    MaskChange: Pretrain, "mask_change", "pretrain", "share";
    /// Outer iterations by which the policy in use was behind.
    PolicyLag: Pretrain, "policy_lag", "pretrain", "outer iterations";
    /// Resident memory of the process.
    MemoryResident: Pretrain, "memory_resident", "pretrain", "bytes";
    /// Largest resident memory of the process so far.
    MemoryPeak: Pretrain, "memory_peak", "pretrain", "bytes";
    /// Level-1 images a second.
    ImagesPerSecond: Pretrain, "images_per_second", "pretrain", "images/s";
    /// Loss L_f of the head on the role finetune.
    FinetuneLoss: Finetune, "loss", "finetune", "nat";
    /// Accuracy of the head on the role finetune, or another figure of the task.
    FinetuneAccuracy: Finetune, "accuracy", "finetune", "share";
    /// Learning rate of the head c.
    FinetuneRate: Finetune, "lr", "finetune", "1";
    /// Norm of the gradient of c.
    FinetuneGradientNorm: Finetune, "grad_norm", "finetune", "1";
    /// Loss L_v of the finetuned head on the role validation.
    ValidationLoss: Mask, "loss", "validation", "nat";
    /// Accuracy of the finetuned head on the role validation, or another figure of the task.
    ValidationAccuracy: Mask, "accuracy", "validation", "share";
    /// Norm of v1, the hypergradient's path over the finetuned head as a direction in θ.
    V1Norm: Mask, "v1_norm", "finetune", "1";
    /// Norm of w, the hypergradient's straight path as a direction in θ.
    WNorm: Mask, "w_norm", "validation", "1";
    /// Learning rate of the masking network φ.
    MaskRate: Mask, "lr", "validation", "1";
    /// Norm of the hypergradient ∂φ.
    HypergradientNorm: Mask, "hypergradient_norm", "validation", "1";
    /// Norm of its term over the finetuned head; with `method.hypergradient = "published"` only.
    HypergradientIndirectNorm: Mask, "hypergradient_indirect_norm", "validation", "1";
    /// Norm of its straight term; with `method.hypergradient = "published"` only.
    HypergradientDirectNorm: Mask, "hypergradient_direct_norm", "validation", "1";
    /// Squared error of the head in closed form on the role validation; with `method.hypergradient = "ridge"` only.
    RidgeLoss: Mask, "ridge_loss", "validation", "1";
    /// Accuracy of the head in closed form on the role validation; with `method.hypergradient = "ridge"` only.
    RidgeAccuracy: Mask, "ridge_accuracy", "validation", "share";
    /// Cosine of the hypergradients of the two halves of x_p, signal to noise; where patches' utilities are known.
    HypergradientSignal: Mask, "hypergradient_signal", "validation", "1";
    /// Share of the masked patches whose utility is positive: whose loss, lowered, lowers L_v.
    UtilityPositive: Mask, "utility_positive", "validation", "share";
    /// Mean utility of masked patches over its standard deviation.
    UtilityMean: Mask, "utility_mean", "validation", "1";
    /// Share of a scale in the mixture of a patch's logit: softmax of its gate; with several `mask.scales`.
    ScaleGate: Mask, "scale_gate.SCALE", "validation", "share";
    /// Weight of a feature in a patch's logit, per standard deviation of the feature over its image; of `position` the
    /// standard deviation of the values of all places; with `mask.strategy = "linear"`.
    FeatureWeight: Mask, "feature_weight.FEATURE", "validation", "1";
    /// Chance of a share of patches placed at random; with `mask.explore_arms`.
    ExploreProbability: Mask, "explore_probability.ARM", "validation", "share";
    /// Entropy of these chances.
    ExploreEntropy: Mask, "explore_entropy", "validation", "nat";
    /// Chance of a mask ratio; with `mask.ratio_arms`.
    RatioProbability: Mask, "ratio_probability.ARM", "validation", "share";
    /// Entropy of these chances.
    RatioEntropy: Mask, "ratio_entropy", "validation", "nat";
    /// Cosine of v1 + w and the gradient of L_m for θ on x_p under its mask ratio.
    RatioReward: Mask, "ratio_reward", "validation", "1";
    /// Squared error of the best head in closed form on a branch's features, on the role validation; with
    /// `policy.search = "branch"`.
    BranchLoss: Mask, "branch_loss.CANDIDATE", "validation", "1";
    /// What a branch search has decided: 1 for the step of the policy, -1 for its opposite, 0 for random masks.
    BranchWinner: Mask, "branch_winner", "validation", "1";
    /// Cosine of the directions of two tasks: whether they agree; with `method.balance = "normalised"`.
    TaskCosine: Mask, "task_cosine.TASK.TASK", "validation", "1";
    /// Cosine to the hypergradient before.
    HypergradientCosine: Mask, "hypergradient_cosine", "validation", "1";
    /// Area under the ROC curve of the panel's scores as a detector of object patches, where these are known.
    ObjectScoreAuc: Mask, "object_score_auc", "validation", "1";
    /// Share of the panel's object patches that are masked, where these are known.
    ObjectMaskShare: Mask, "object_mask_share", "validation", "share";
    /// Share of the panel's other patches that are masked, where the objects are known.
    BackgroundMaskShare: Mask, "background_mask_share", "validation", "share";
}

/// What the names of [`Metric::MaskCoverageAt`] begin with.
const MASK_COVERAGE_AT: &str = "mask_coverage.";
/// What the names of [`Metric::TaskCosine`] begin with.
const TASK_COSINE: &str = "task_cosine.";
/// What the names of [`Metric::ScaleGate`] begin with.
const SCALE_GATE: &str = "scale_gate.";
/// What the names of [`Metric::FeatureWeight`] begin with.
const FEATURE_WEIGHT: &str = "feature_weight.";
/// What the names of [`Metric::ExploreProbability`] begin with.
const EXPLORE_PROBABILITY: &str = "explore_probability.";
/// What the names of [`Metric::RatioProbability`] begin with.
const RATIO_PROBABILITY: &str = "ratio_probability.";
/// What the names of [`Metric::BranchLoss`] begin with.
const BRANCH_LOSS: &str = "branch_loss.";
/// The numbers that have several values each, by what their names begin with.
const FAMILIES: [(&str, Metric); 7] = [
    (TASK_COSINE, Metric::TaskCosine),
    (MASK_COVERAGE_AT, Metric::MaskCoverageAt),
    (SCALE_GATE, Metric::ScaleGate),
    (FEATURE_WEIGHT, Metric::FeatureWeight),
    (EXPLORE_PROBABILITY, Metric::ExploreProbability),
    (RATIO_PROBABILITY, Metric::RatioProbability),
    (BRANCH_LOSS, Metric::BranchLoss),
];

impl Metric {
    /// The number that is called `name` at `level`.
    #[must_use]
    pub fn of(level: Level, name: &str) -> Option<Self> {
        let family = FAMILIES.iter().find(|(prefix, _)| name.starts_with(prefix));
        let name = family.map_or(name, |(_, metric)| metric.name());
        Self::ALL.iter().copied().find(|metric| metric.level() == level && metric.name() == name)
    }

    /// The name of [`Metric::MaskCoverageAt`] at one place.
    #[must_use]
    pub fn mask_coverage_at(row: usize, column: usize) -> Text {
        Cow::Owned(format!("{MASK_COVERAGE_AT}{row}.{column}"))
    }

    /// The name of [`Metric::ScaleGate`] of blocks of that side.
    #[must_use]
    pub fn scale_gate(size: usize) -> Text {
        Cow::Owned(format!("{SCALE_GATE}{size}"))
    }

    /// The name of [`Metric::FeatureWeight`] of the feature of that name.
    #[must_use]
    pub fn feature_weight(feature: &str) -> Text {
        Cow::Owned(format!("{FEATURE_WEIGHT}{feature}"))
    }

    /// The name of [`Metric::TaskCosine`] of these two tasks.
    #[must_use]
    pub fn task_cosine(first: &str, second: &str) -> Text {
        Cow::Owned(format!("{TASK_COSINE}{first}.{second}"))
    }

    /// The name of [`Metric::BranchLoss`] of the branch of that candidate.
    #[must_use]
    pub fn branch_loss(candidate: &str) -> Text {
        Cow::Owned(format!("{BRANCH_LOSS}{candidate}"))
    }

    /// The name of a number that each arm has, such as [`Metric::ExploreProbability`], of that arm.
    #[must_use]
    pub fn of_arm(self, arm: f64) -> Text {
        match FAMILIES.iter().find(|(_, metric)| *metric == self) {
            Some((prefix, _)) => Cow::Owned(format!("{prefix}{arm}")),
            None => self.into(),
        }
    }
}

impl From<Metric> for Text {
    fn from(metric: Metric) -> Self {
        Cow::Borrowed(metric.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_level_and_name() {
        for metric in Metric::ALL {
            assert_eq!(Metric::of(metric.level(), metric.name()), Some(*metric), "two numbers have one name");
            assert!(!metric.about().is_empty() && metric.about().ends_with('.'));
        }
        assert_eq!(Metric::of(Level::Pretrain, &Metric::mask_coverage_at(3, 11)), Some(Metric::MaskCoverageAt));
        assert_eq!(Metric::of(Level::Mask, &Metric::scale_gate(4)), Some(Metric::ScaleGate));
        let of_channel = Metric::feature_weight("brightness.2");
        assert_eq!(Metric::of(Level::Mask, &of_channel), Some(Metric::FeatureWeight));
        assert_eq!(Metric::of(Level::Mask, &Metric::branch_loss("plus")), Some(Metric::BranchLoss));
        assert_eq!(Metric::of(Level::Mask, &Metric::task_cosine("class", "find")), Some(Metric::TaskCosine));
        for metric in [Metric::ExploreProbability, Metric::RatioProbability] {
            assert_eq!(Metric::of(Level::Mask, &metric.of_arm(0.25)), Some(metric));
        }
        assert_eq!(Metric::RatioProbability.of_arm(0.85), "ratio_probability.0.85");
        assert_eq!(Metric::of(Level::Eval, "loss"), None);
        assert_eq!(Metric::of(Level::Mask, "score_entropy"), None);
    }

    #[test]
    fn the_readme_names_numbers_that_exist() {
        let readme = include_str!("../../../README.md");
        let table =
            readme.split("Metrics worth a look").nth(1).expect("the table").split("\n## ").next().expect("its end");
        let mut num_names = 0;
        for cell in table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1)) {
            for name in cell.split('`').skip(1).step_by(2) {
                assert!(Metric::ALL.iter().any(|metric| metric.name() == name), "{name}");
                num_names += 1;
            }
        }
        assert!(num_names >= 9, "{num_names}");
    }
}
