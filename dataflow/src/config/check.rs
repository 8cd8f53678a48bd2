//! Relations between keys, which no single key's range can express.

use mlomae_model::MaskInput;
use mlomae_model::masking::attention::Attended;
use mlomae_model::masking::linear::PatchFeature;
use mlomae_model::masking::mixture;
use mlomae_model::masking::oracle::OracleMasked;
use mlomae_model::masking::schedule::MaskSchedule;
use mlomae_model::masking::{MaskNoise, MaskSelect, MaskWeights};
use mlomae_model::policy::Estimator;
use mlomae_model::search::PolicySearch;
use mlomae_model::tasks::{self, TASKS, TaskChoice, TaskFacts};
use mlomae_storage::dataset::{DataError, Split, SyntheticSpec, TargetKind, check_exclude};
use mlomae_storage::run_dir::{RUN_ID_RULE, is_run_id};

use super::{Config, ConfigError, Crop, PolicyConfig, TelemetryConfig};
use crate::counts::Outer;
use crate::flow::stage_name::StageName;

fn error(key: &str, value: impl ToString, problem: impl Into<String>, allowed: &str) -> ConfigError {
    ConfigError {
        key: key.to_owned(),
        value: value.to_string(),
        problem: problem.into(),
        allowed: allowed.to_owned(),
        suggestion: None,
    }
}

fn divisors(number: usize, max: usize) -> String {
    let divisors: Vec<String> = (1..=number.min(max))
        .filter(|divisor| number.is_multiple_of(*divisor))
        .map(|divisor| divisor.to_string())
        .collect();
    divisors.join(", ")
}

/// A word of an enumeration in TOML's notation.
fn quoted(word: &impl serde::Serialize) -> String {
    serde_json::to_string(word).unwrap_or_default()
}

impl Config {
    /// Every relation between keys that does not hold.
    pub(super) fn check(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        self.check_data_keys(&mut errors);
        self.check_model(&mut errors);
        self.check_levels(&mut errors);
        self.check_tasks(&mut errors);
        if let Some(id) = &self.run.id
            && !is_run_id(id)
        {
            errors.push(error("run.id", format!("\"{id}\""), "cannot name a directory", RUN_ID_RULE));
        }
        if let Err(problem) = self.telemetry.address() {
            let value = format!("{:?}", self.telemetry.prometheus);
            errors.push(error("telemetry.prometheus", value, problem, TelemetryConfig::ALLOWED));
        }
        let side_of_data = || self.data.format.format()?.image_side(&self.dataset_spec(Split::Train));
        if let Some(image) = self.data.image.or_else(side_of_data) {
            errors.extend(self.check_image(image));
        }
        errors
    }

    /// The relations that hold between the model and the side of the images, in pixels, which may be
    /// known only when the data is open.
    #[must_use]
    pub fn check_image(&self, image: usize) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let patch = self.model.patch;
        if patch == 0 || !image.is_multiple_of(patch) {
            errors.push(error(
                "model.patch",
                patch,
                format!("does not divide the image's side {image}"),
                &divisors(image, 64),
            ));
            return errors;
        }
        let num_patches = (image / patch).pow(2);
        let ends = [("mask.ratio", Some(self.mask.ratio)), ("mask.ratio_end", self.mask.ratio_end)];
        let arms = self.mask.ratio_arms.iter().map(|ratio| ("mask.ratio_arms", Some(*ratio)));
        for (key, ratio) in ends.into_iter().chain(arms) {
            let Some(ratio) = ratio else { continue };
            let num_visible = mlomae_model::config::num_visible(num_patches, ratio);
            if num_visible < 1 || num_visible >= num_patches {
                errors.push(error(
                    key,
                    ratio,
                    format!("leaves {num_visible} of {num_patches} patches visible"),
                    &format!("a ratio that leaves 1 to {}", num_patches.saturating_sub(1)),
                ));
            }
        }
        let grid = image / patch;
        if let Some(scale) = self.mask.scales.iter().find(|scale| **scale > grid) {
            let problem = format!("has a block of {scale} patches on a grid of {grid}");
            errors.push(error("mask.scales", format!("{:?}", self.mask.scales), problem, &format!("1 to {grid}")));
        }
        if self.data.augment.crop == Crop::Padded && self.data.augment.crop_padding > image / 2 {
            errors.push(error(
                "data.augment.crop_padding",
                self.data.augment.crop_padding,
                format!("is more than half the image's side {image}"),
                &format!("0 to {}", image / 2),
            ));
        }
        errors
    }

    /// The relations that hold between the batches and the sizes of the roles, known when the data is open.
    #[must_use]
    pub fn check_roles(&self, num_pretrain: usize, num_finetune: usize, num_validation: usize) -> Vec<ConfigError> {
        let roles = [
            ("pretrain", "pretrain", self.pretrain.batch, num_pretrain),
            ("finetune", "finetune", self.finetune.batch, num_finetune),
            ("policy", "validation", self.policy.batch, num_validation),
        ];
        roles
            .into_iter()
            .filter(|(_, _, batch, num_samples)| batch > num_samples)
            .map(|(level, role, batch, num_samples)| {
                error(
                    &format!("{level}.batch"),
                    batch,
                    format!("is more than the {role} role has"),
                    &format!("1 to {num_samples}"),
                )
            })
            .collect()
    }

    /// What of the tasks can be told without the data.
    fn check_tasks(&self, errors: &mut Vec<ConfigError>) {
        if !self.task.is_empty() && self.method.task != TaskChoice::default() {
            let problem = "is given beside [[task]]";
            errors.push(error("method.task", format!("\"{}\"", self.method.task), problem, "one of the two"));
        }
        let maps_or_boxes = |kind: &TargetKind| matches!(kind, TargetKind::Map | TargetKind::Boxes);
        if self.method.shuffle_labels && self.target_kinds().iter().any(maps_or_boxes) {
            let problem = "cannot permute targets that lie at places of their images";
            errors.push(error("method.shuffle_labels", true, problem, "false, or tasks on whole images"));
        }
        if self.task.is_empty() {
            return;
        }
        // Shapes that every head fits: what is wrong then is the tasks' own.
        let facts = TaskFacts { dim: 64, depth: self.model.depth, grid: 2, patch: self.model.patch, num_classes: 2 };
        if let Err(refused) = tasks::build(&self.task, &facts) {
            errors.push(error("task", "", refused.reason(), ""));
        }
    }

    fn check_data_keys(&self, errors: &mut Vec<ConfigError>) {
        let data = &self.data;
        let needs_path = data.format.reads_files();
        if needs_path && data.path.is_none() {
            errors.push(error("data.path", "", "is missing", "a file or folder"));
        }
        if !needs_path && let Some(path) = &data.path {
            errors.push(error(
                "data.path",
                format!("\"{}\"", path.display()),
                "is given, but data.format reads no files",
                "no data.path, or data.format = auto",
            ));
        }
        if !needs_path && !data.exclude.is_empty() {
            let problem = "is given, but data.format reads no files";
            errors.push(error("data.exclude", format!("{:?}", data.exclude), problem, "no data.exclude"));
        }
        if let Err(DataError::Setting { allowed, value, .. }) = check_exclude(&data.exclude) {
            errors.push(error("data.exclude", value, "not an allowed value", &allowed));
        }
        if let Some(channels) = data.channels
            && !matches!(channels, 1 | 3)
        {
            errors.push(error("data.channels", channels, "not an allowed value", "1, 3"));
        }
        if let Err(DataError::Setting { key, allowed, value }) = data.synthetic.check() {
            errors.push(error(&format!("data.{key}"), value, "not an allowed value", &allowed));
        } else if data.synthetic.num_objects != SyntheticSpec::default().num_objects
            && self.target_kinds().iter().all(|kind| *kind == TargetKind::Class)
        {
            // An image of which the class alone is asked has one object.
            errors.push(error(
                "data.synthetic.num_objects",
                format!("{:?}", data.synthetic.num_objects),
                "has no meaning where only the class of images is asked for",
                &format!("{:?}", SyntheticSpec::default().num_objects),
            ));
        }
        let sum = data.pretrain_fraction + data.finetune_fraction + data.validation_fraction;
        if sum > 1.0 + 1e-9 {
            errors.push(error(
                "data.pretrain_fraction + data.finetune_fraction + data.validation_fraction",
                format!("{sum:.4}"),
                "the roles are disjoint, so their shares cannot exceed the whole",
                "up to 1.0",
            ));
        }
        match (&data.mean, &data.std) {
            (None, None) => {}
            (Some(mean), Some(std)) => {
                let len = data.channels.unwrap_or(mean.len());
                if mean.len() != len || std.len() != len || !matches!(len, 1 | 3) {
                    errors.push(error(
                        "data.mean, data.std",
                        format!("{mean:?}, {std:?}"),
                        "one value is needed for each channel",
                        &match data.channels {
                            Some(channels) => format!("{channels} values each"),
                            None => "1 or 3 values each".to_owned(),
                        },
                    ));
                }
                if std.iter().any(|value| *value <= 0.0) {
                    errors.push(error("data.std", format!("{std:?}"), "out of range", "above 0"));
                }
            }
            (Some(_), None) => {
                errors.push(error("data.std", "", "is missing", "given together with data.mean"));
            }
            (None, Some(_)) => {
                errors.push(error("data.mean", "", "is missing", "given together with data.std"));
            }
        }
    }

    fn check_model(&self, errors: &mut Vec<ConfigError>) {
        let model = &self.model;
        for (side, dim, heads) in [("", model.dim, model.heads), ("dec_", model.dec_dim, model.dec_heads)] {
            if dim % 4 != 0 {
                errors.push(error(
                    &format!("model.{side}dim"),
                    dim,
                    "the position embedding needs a multiple of 4",
                    &format!("{}, {}", dim / 4 * 4, dim / 4 * 4 + 4),
                ));
            } else if heads == 0 || dim % heads != 0 {
                errors.push(error(
                    &format!("model.{side}heads"),
                    heads,
                    format!("does not divide model.{side}dim {dim}"),
                    &divisors(dim, 64),
                ));
            }
        }
    }

    /// What the linear policy reads.
    fn check_features(&self, errors: &mut Vec<ConfigError>) {
        let (mask, default) = (&self.mask, Self::default().mask);
        let names: Vec<&str> = mask.features.iter().map(|feature| feature.name()).collect();
        let mut refuse = |problem: &str, allowed: &str| {
            errors.push(error("mask.features", format!("{names:?}"), problem, allowed));
        };
        if let Some(problem) = PatchFeature::problem(&mask.features) {
            let all = PatchFeature::ALL.map(PatchFeature::name).join(", ");
            refuse(problem, &format!("a list of some of {all}, each once"));
        } else if !mask.is_linear() && mask.features != default.features {
            let problem = format!("has no meaning with mask.strategy = \"{}\"", mask.strategy);
            refuse(&problem, "mask.strategy = \"linear\"");
        }
    }

    /// The scales over which logits are mixed.
    fn check_scales(&self, errors: &mut Vec<ConfigError>) {
        let mask = &self.mask;
        if mask.scales == [1] {
            return;
        }
        let value = || format!("{:?}", mask.scales);
        if mask.scales.is_empty() || mask.scales.windows(2).any(|pair| pair[0] >= pair[1]) {
            errors.push(error("mask.scales", value(), "is not a list of rising sides", "a list such as [1, 2, 4]"));
        } else if !mask.strategy.mixes_scales() {
            let problem = format!("has no meaning with mask.strategy = \"{}\"", mask.strategy);
            let allowed = "[1], or mask.strategy = \"token-mlp\" or \"linear\"";
            errors.push(error("mask.scales", value(), problem, allowed));
        } else if mask.input == MaskInput::Embedding {
            let problem = "is only for a masking that reads the pixels";
            errors.push(error("mask.scales", value(), problem, "[1], or mask.input = \"pixels\""));
        }
    }

    /// The arms of a learned exploration.
    fn check_explore_arms(&self, errors: &mut Vec<ConfigError>) {
        let (mask, arms) = (&self.mask, &self.mask.explore_arms);
        if arms.is_empty() {
            return;
        }
        let mut refuse = |problem: String, allowed: &str| {
            errors.push(error("mask.explore_arms", format!("{arms:?}"), problem, allowed));
        };
        if arms.len() < 2 || arms.windows(2).any(|pair| pair[0] >= pair[1]) {
            refuse("is not a list of two or more rising shares".to_owned(), "[], or a list such as [0.0, 0.5, 1.0]");
        }
        if !mask.strategy.is_learned() {
            let problem = format!("has no meaning with mask.strategy = \"{}\", which has no scores", mask.strategy);
            refuse(problem, "[]");
            return;
        }
        if mask.input == MaskInput::Embedding {
            refuse("is only for a masking that reads the pixels".to_owned(), "[], or mask.input = \"pixels\"");
        }
        if let Some((key, explore)) = mask.exploration() {
            refuse(format!("takes the place of {key}, which is {explore}"), "[], or mask.explore = 0");
        }
        if mask.select == MaskSelect::Random {
            let problem = "has no meaning with mask.select = \"random\": all patches are drawn at random";
            refuse(problem.to_owned(), "[]");
        }
        if self.policy.estimator != Estimator::Weights {
            let problem = format!(
                "leaves masks whose probability policy.estimator = {} does not know",
                quoted(&self.policy.estimator)
            );
            refuse(problem, "[], or policy.estimator = \"weights\"");
        }
    }

    /// The arms of a learned mask ratio.
    fn check_ratio_arms(&self, errors: &mut Vec<ConfigError>) {
        let (mask, arms) = (&self.mask, &self.mask.ratio_arms);
        if arms.is_empty() {
            if mask.ratio_per_flop {
                let problem = "has no meaning without mask.ratio_arms";
                errors.push(error("mask.ratio_per_flop", true, problem, "false"));
            }
            return;
        }
        let mut refuse = |problem: String, allowed: &str| {
            errors.push(error("mask.ratio_arms", format!("{arms:?}"), problem, allowed));
        };
        if arms.len() < 2 || arms.windows(2).any(|pair| pair[0] >= pair[1]) {
            refuse("is not a list of two or more rising ratios".to_owned(), "[], or a list such as [0.5, 0.75]");
        }
        if !mask.strategy.is_learned() {
            let problem = format!("has no meaning with mask.strategy = \"{}\", which learns nothing", mask.strategy);
            refuse(problem, "[]");
        }
        if mask.ratio_schedule != MaskSchedule::Constant {
            let problem = format!("takes the place of mask.ratio_schedule, which is {}", quoted(&mask.ratio_schedule));
            refuse(problem, "[], or mask.ratio_schedule = \"constant\"");
        }
    }

    /// What goes with which masking and which form of the hypergradient.
    fn check_policy(&self, errors: &mut Vec<ConfigError>) {
        let (mask, method, policy) = (&self.mask, &self.method, &self.policy);
        let default = Self::default();
        self.check_oracle(errors);
        self.check_schedules(errors);
        self.check_teacher(errors);
        if !mask.strategy.is_learned() {
            let problem = format!("has no meaning with mask.strategy = \"{}\", which learns nothing", mask.strategy);
            for (key, is_default, value, allowed) in [
                ("mask.weights", mask.weights == default.mask.weights, quoted(&mask.weights), "published"),
                ("mask.select", mask.select == default.mask.select, quoted(&mask.select), "score"),
                (
                    "policy.estimator",
                    policy.estimator == default.policy.estimator,
                    quoted(&policy.estimator),
                    "weights",
                ),
                ("mask.shuffle_scores", !mask.shuffle_scores, "true".to_owned(), "false"),
                ("policy.average", policy.average == 1, policy.average.to_string(), "1"),
                ("policy.search", policy.search == PolicySearch::Gradient, quoted(&policy.search), "gradient"),
                ("method.supervised", !method.supervised, "true".to_owned(), "false"),
            ] {
                if !is_default {
                    errors.push(error(key, value, problem.clone(), allowed));
                }
            }
            self.check_search(errors);
            return;
        }
        self.check_search(errors);
        let reads_embedding = mask.input == MaskInput::Embedding;
        if reads_embedding && mask.strategy.name() == "linear" {
            let problem = "the strategy \"linear\" reads the pixels";
            errors.push(error("mask.input", quoted(&mask.input), problem, "pixels"));
        }
        if reads_embedding && mask.weights != MaskWeights::Published {
            let problem =
                "is only for a masking that reads the pixels: with mask.input = \"embedding\" scores move with θ";
            errors.push(error("mask.weights", quoted(&mask.weights), problem, "published, or mask.input = \"pixels\""));
        }
        if policy.estimator != Estimator::Weights {
            let value = || quoted(&policy.estimator);
            if reads_embedding {
                let problem = "is only for a masking that reads the pixels";
                errors.push(error("policy.estimator", value(), problem, "weights, or mask.input = \"pixels\""));
            }
            if mask.select != MaskSelect::Sample || mask.exploration().is_some() {
                let problem = "needs masks whose probability is known";
                let allowed = "weights, or mask.select = \"sample\" with mask.explore = 0";
                errors.push(error("policy.estimator", value(), problem, allowed));
            }
        }
        if mask.temperature != default.mask.temperature && mask.select != MaskSelect::Sample {
            let problem = format!("has no meaning with mask.select = {}", quoted(&mask.select));
            errors.push(error("mask.temperature", mask.temperature, problem, "1, or mask.select = \"sample\""));
        }
        if let (MaskSelect::Random, Some((key, explore))) = (mask.select, mask.exploration()) {
            let problem = "has no meaning with mask.select = \"random\": all patches are drawn at random";
            errors.push(error(key, explore, problem, "0"));
        }
        if mask.shuffle_scores && mask.select == MaskSelect::Random && mask.weights == MaskWeights::None {
            let problem = "has no meaning where scores neither choose nor weigh";
            errors.push(error("mask.shuffle_scores", true, problem, "false"));
        }
        if method.supervised && method.multitask {
            let problem = "is another control than method.multitask, which is given too";
            errors.push(error("method.supervised", true, problem, "one of the two"));
        }
        let form = method.hypergradient.name();
        if form == "ridge" && self.finetune.batch < 2 {
            let problem = "is too small for method.hypergradient = \"ridge\", a head in closed form";
            errors.push(error("finetune.batch", self.finetune.batch, problem, "2 or more"));
        }
        if method.ridge_penalty != default.method.ridge_penalty
            && form != "ridge"
            && policy.search != PolicySearch::Branch
        {
            let problem = format!("has no meaning with method.hypergradient = \"{form}\"");
            let allowed = "method.hypergradient = \"ridge\", or policy.search = \"branch\"";
            errors.push(error("method.ridge_penalty", method.ridge_penalty, problem, allowed));
        }
        for (key, is_default, value, needed) in [
            ("method.ridge_bank", method.ridge_bank == 0, method.ridge_bank.to_string(), "ridge"),
            ("method.cg_damping", method.cg_damping == 0.01, method.cg_damping.to_string(), "cg"),
            ("method.cg_steps", method.cg_steps == 10, method.cg_steps.to_string(), "cg"),
        ] {
            if !is_default && form != needed {
                let problem = format!("has no meaning with method.hypergradient = \"{form}\"");
                errors.push(error(key, value, problem, &format!("method.hypergradient = \"{needed}\"")));
            }
        }
    }

    /// What goes with a branch search.
    fn check_search(&self, errors: &mut Vec<ConfigError>) {
        let (policy, default) = (&self.policy, PolicyConfig::default());
        if policy.search == PolicySearch::Gradient {
            for (key, value, default) in [
                ("policy.branch_steps", policy.branch_steps, default.branch_steps),
                ("policy.branch_judges", policy.branch_judges, default.branch_judges),
            ] {
                if value != default {
                    let problem = "has no meaning with policy.search = \"gradient\"";
                    errors.push(error(key, value, problem, "policy.search = \"branch\""));
                }
            }
            return;
        }
        if policy.branch_judges > policy.branch_steps {
            let problem = format!("is more than policy.branch_steps = {}", policy.branch_steps);
            let allowed = format!("1 to {}", policy.branch_steps);
            errors.push(error("policy.branch_judges", policy.branch_judges, problem, &allowed));
        }
        let mut refuse = |problem: String, allowed: &str| {
            errors.push(error("policy.search", quoted(&policy.search), problem, allowed));
        };
        let kinds = self.task_kinds();
        if kinds.len() > 1 {
            refuse(
                "judges by the head of one task in closed form, there are several".to_owned(),
                "gradient, or one task",
            );
        } else if let Some(task) = kinds.first().filter(|task| !task.has_closed_form()) {
            let problem = format!("judges by a head in closed form, which the task \"{task}\" has not");
            let tasks = TASKS.iter().filter(|task| task.has_closed_form()).map(|task| format!("\"{}\"", task.name()));
            let allowed = format!("gradient, or a task of {}", tasks.collect::<Vec<_>>().join(", "));
            refuse(problem, &allowed);
        }
        for (key, is_on) in [("method.multitask", self.method.multitask), ("method.supervised", self.method.supervised)]
        {
            if is_on {
                refuse(format!("has no meaning with {key}, whose labels move the encoder itself"), "gradient");
            }
        }
        if self.finetune.batch < 2 {
            let problem = "is too small for policy.search = \"branch\", which judges by a head in closed form";
            errors.push(error("finetune.batch", self.finetune.batch, problem, "2 or more"));
        }
    }

    /// That schedules have an end, and ends a schedule.
    fn check_schedules(&self, errors: &mut Vec<ConfigError>) {
        let mask = &self.mask;
        let has_keys = mask.strategy.is_learned() && mask.select != MaskSelect::Random;
        if mask.explore_schedule != MaskSchedule::Constant && !has_keys {
            let problem = "has no meaning without scores that choose patches";
            errors.push(error("mask.explore_schedule", quoted(&mask.explore_schedule), problem, "constant"));
            return;
        }
        for (name, schedule, end) in
            [("ratio", mask.ratio_schedule, mask.ratio_end), ("explore", mask.explore_schedule, mask.explore_end)]
        {
            let key = format!("mask.{name}_end");
            match (schedule, end) {
                (MaskSchedule::Constant, Some(end)) => {
                    let problem = format!("has no meaning with mask.{name}_schedule = \"constant\"");
                    let allowed = format!("no {key}, or mask.{name}_schedule = \"linear\" or another one");
                    errors.push(error(&key, end, problem, &allowed));
                }
                (MaskSchedule::Constant, None) | (_, Some(_)) => {}
                (schedule, None) => {
                    let problem = format!("is missing, mask.{name}_schedule = {} leads to it", quoted(&schedule));
                    errors.push(error(&key, "", problem, "a number as for the start"));
                }
            }
        }
    }

    /// What goes with the strategies that read a teacher, and with mixtures.
    fn check_teacher(&self, errors: &mut Vec<ConfigError>) {
        const OF_TEACHER: &str = "mask.strategy = \"attention\", \"parts\" or \"loss\", or \"linear\" with \
                                  mask.features loss or attention";
        let (mask, default) = (&self.mask, Self::default().mask);
        if mask.is_mixture() {
            if let Err((problem, allowed)) = mixture::strategies(&mask.mixture) {
                errors.push(error("mask.mixture", "", problem, &allowed));
            }
        } else if !mask.mixture.is_empty() {
            let problem = format!("has no meaning with mask.strategy = \"{}\"", mask.strategy);
            errors.push(error("mask.mixture", "", problem, "mask.strategy = \"mixture\""));
        }
        self.check_features(errors);
        let reads_teacher = mask.reads_teacher();
        let is_attention = mask.uses("attention");
        for (key, is_used, is_default, value, needed) in [
            ("mask.ema", reads_teacher, mask.ema == default.ema, mask.ema.to_string(), OF_TEACHER),
            ("mask.refresh", reads_teacher, mask.refresh == 1, mask.refresh.to_string(), OF_TEACHER),
            (
                "mask.attention",
                is_attention,
                mask.attention == default.attention,
                quoted(&mask.attention),
                "mask.strategy = \"attention\"",
            ),
            (
                "mask.attention_map",
                is_attention,
                mask.attention_map == default.attention_map,
                quoted(&mask.attention_map),
                "mask.strategy = \"attention\"",
            ),
            (
                "mask.difficulty",
                mask.uses("loss"),
                mask.difficulty == default.difficulty,
                quoted(&mask.difficulty),
                "mask.strategy = \"loss\"",
            ),
            (
                "mask.parts",
                mask.uses("parts"),
                mask.parts == default.parts,
                mask.parts.to_string(),
                "mask.strategy = \"parts\"",
            ),
        ] {
            if !is_used && !is_default {
                let problem = format!("has no meaning with mask.strategy = \"{}\"", mask.strategy);
                errors.push(error(key, value, problem, needed));
            }
        }
        if mask.temperature != default.temperature && !mask.strategy.is_learned() && !is_attention {
            let problem = format!("has no meaning with mask.strategy = \"{}\"", mask.strategy);
            errors.push(error("mask.temperature", mask.temperature, problem, "1, or a strategy that draws by it"));
        }
        if mask.hints != default.hints && !(is_attention && mask.attention == Attended::Hint) {
            let problem = "has no meaning without mask.attention = \"hint\"";
            errors.push(error("mask.hints", mask.hints, problem, "mask.strategy = \"attention\" with it"));
        }
    }

    /// What goes with the masking `oracle`.
    fn check_oracle(&self, errors: &mut Vec<ConfigError>) {
        let (mask, augment) = (&self.mask, &self.data.augment);
        let (masked, weight, background) = (mask.oracle_masked, mask.oracle_weight, mask.oracle_background);
        if !mask.needs_objects() {
            for (key, is_default, value) in [
                ("mask.oracle_masked", masked == OracleMasked::default(), quoted(&masked)),
                ("mask.oracle_weight", weight == 1.0, weight.to_string()),
                ("mask.oracle_background", background == 1.0, background.to_string()),
            ] {
                if !is_default {
                    let problem = format!("has no meaning with mask.strategy = \"{}\"", mask.strategy);
                    errors.push(error(key, value, problem, "mask.strategy = \"oracle\""));
                }
            }
            return;
        }
        if augment.crop != Crop::None || augment.flip {
            let problem = format!(
                "needs objects that stay where they are, data.augment.crop = {} and flip = {} move them",
                quoted(&augment.crop),
                augment.flip
            );
            let allowed = "data.augment.crop = \"none\" with data.augment.flip = false, or another strategy";
            errors.push(error("mask.strategy", format!("\"{}\"", mask.strategy), problem, allowed));
        }
        if background == 0.0 && (weight == 0.0 || masked == OracleMasked::Never) {
            let with = match weight {
                0.0 => "mask.oracle_weight = 0".to_owned(),
                _ => format!("mask.oracle_masked = {}", quoted(&masked)),
            };
            errors.push(error("mask.oracle_background", background, format!("leaves no loss with {with}"), "above 0"));
        }
    }

    fn check_levels(&self, errors: &mut Vec<ConfigError>) {
        for (level, batch) in
            [("pretrain", self.pretrain.batch), ("finetune", self.finetune.batch), ("policy", self.policy.batch)]
        {
            if batch < self.train.grain {
                errors.push(error(
                    &format!("{level}.batch"),
                    batch,
                    "is less than train.grain",
                    &format!("{} or more, or a smaller train.grain", self.train.grain),
                ));
            }
        }
        for stage in [StageName::Load, StageName::Log] {
            let micro_batch = self.actors.stage(stage).micro_batch;
            if micro_batch > 0 {
                errors.push(error(
                    &format!("actors.{stage}.micro_batch"),
                    micro_batch,
                    "has no meaning, as this stage does not compute on images",
                    "0",
                ));
            }
        }
        let strategy = self.mask.strategy;
        if !strategy.is_learned() && self.method.multitask {
            errors.push(error(
                "method.multitask",
                true,
                format!("is a control of learned masking and has no meaning with mask.strategy = \"{strategy}\""),
                "false",
            ));
        }
        self.check_policy(errors);
        self.check_scales(errors);
        self.check_explore_arms(errors);
        self.check_ratio_arms(errors);
        if self.mask.noise != MaskNoise::default() && strategy.name() != "noise" {
            let problem = format!("has no meaning with mask.strategy = \"{strategy}\"");
            errors.push(error("mask.noise", quoted(&self.mask.noise), problem, "green, or mask.strategy = \"noise\""));
        }
        if let (false, Some((key, explore))) = (strategy.is_learned(), self.mask.exploration()) {
            let problem = format!("has no meaning with mask.strategy = \"{strategy}\", which has no scores");
            errors.push(error(key, explore, problem, "0"));
        }
        if Outer(self.train.outer_iterations).checked_first_step(self.method.unroll).is_none() {
            errors.push(error(
                "train.outer_iterations",
                self.train.outer_iterations,
                "times method.unroll is too large",
                "a product below 2^63",
            ));
        }
    }
}
