//! What each key may do when a run is resumed: every key of the schema has its rule here, and a new one must get one.

use toml::{Table, Value};

use super::{Config, ConfigError, ConfigInputs, aliases, table};

/// What a key may do when a run is resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnResume {
    /// It changes no result, or, as the length of the run, is meant to be changed: it takes effect without a word.
    Free,
    /// It takes effect, and results differ from those without the change: that is told.
    Told,
    /// It names the data: whether these are the same is told by their content.
    Data,
    /// It cannot take effect: weights, roles, plan or place of the run follow from it. A change is refused.
    Fixed,
}

/// Keys that take effect without a word.
// The device that `engine` comes to is compared by itself, as `auto` may come to another one on another machine.
const FREE: &[&str] = &[
    "engine",
    "train.outer_iterations",
    "actors.load.workers",
    "actors.load.queue_cap",
    "actors.load.micro_batch",
    "actors.score.workers",
    "actors.score.queue_cap",
    "actors.score.micro_batch",
    "actors.encoder.workers",
    "actors.encoder.queue_cap",
    "actors.encoder.micro_batch",
    "actors.evaluator.workers",
    "actors.evaluator.queue_cap",
    "actors.evaluator.micro_batch",
    "actors.policy.workers",
    "actors.policy.queue_cap",
    "actors.policy.micro_batch",
    "actors.log.workers",
    "actors.log.queue_cap",
    "actors.log.micro_batch",
    "actors.max_restarts",
    "actors.watchdog_seconds",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "logs.metrics_every_steps",
    "logs.masks_every_steps",
    "logs.panel_size",
    "logs.actors_every_seconds",
    "logs.rotate_rows",
    "logs.rotate_seconds",
    "telemetry.prometheus",
    "run.memory_check",
    "eval.at_end",
    "eval.knn_k",
    "eval.knn_temperature",
    "eval.batch",
    "eval.max_train",
    "eval.max_test",
    "eval.linear_epochs",
    "eval.linear_lr",
    "eval.linear_weight_decay",
];

/// Keys that take effect and change results.
const TOLD: &[&str] = &[
    "data.augment.crop",
    "data.augment.crop_padding",
    "data.augment.min_area",
    "data.augment.flip",
    "data.on_bad_image",
    "mask.ratio",
    "mask.ratio_schedule",
    "mask.ratio_per_flop",
    "mask.ratio_end",
    "mask.explore",
    "mask.explore_schedule",
    "mask.explore_end",
    "mask.weights",
    "mask.select",
    "mask.temperature",
    "mask.ema",
    "mask.refresh",
    "mask.attention",
    "mask.attention_map",
    "mask.hints",
    "mask.parts",
    "mask.oracle_masked",
    "mask.oracle_weight",
    "mask.oracle_background",
    "mask.noise",
    "method.hypergradient",
    "method.precondition",
    "method.ridge_penalty",
    "method.ridge_bank",
    "method.cg_damping",
    "method.cg_steps",
    "policy.average",
    "policy.estimator",
    "policy.search",
    "policy.branch_steps",
    "policy.branch_judges",
    "compute.precision",
    "method.multitask",
    "method.alpha",
    "method.head_dropout",
    "pretrain.lr",
    "pretrain.weight_decay",
    "pretrain.decay_group",
    "pretrain.warmup_steps",
    "pretrain.schedule",
    "pretrain.betas",
    "finetune.lr",
    "finetune.weight_decay",
    "finetune.decay_group",
    "finetune.warmup_steps",
    "finetune.schedule",
    "finetune.betas",
    "policy.lr",
    "policy.weight_decay",
    "policy.decay_group",
    "policy.warmup_steps",
    "policy.schedule",
    "policy.betas",
    "train.grain",
    "pipeline.lag",
];

/// Keys that name the data.
const DATA: &[&str] = &[
    "data.format",
    "data.path",
    "data.label_column",
    "data.image_column",
    "data.exclude",
    "data.exif_orientation",
    "data.test_split",
    "data.synthetic.scene",
    "data.synthetic.num_train",
    "data.synthetic.num_test",
    "data.synthetic.image",
    "data.synthetic.num_classes",
    "data.synthetic.channels",
    "data.synthetic.seed",
    "data.synthetic.areas",
    "data.synthetic.num_distractors",
    "data.synthetic.object_radius",
    "data.synthetic.object_contrast",
    "data.synthetic.background_amplitude",
    "data.synthetic.pixel_noise",
];

/// Keys that cannot take effect any more.
const FIXED: &[&str] = &[
    "seed",
    "run.root",
    "run.id",
    "data.image",
    "data.channels",
    "data.max_samples",
    "data.pretrain_fraction",
    "data.finetune_fraction",
    "data.validation_fraction",
    "data.mean",
    "data.std",
    "model.preset",
    "model.patch",
    "model.dim",
    "model.depth",
    "model.heads",
    "model.dec_dim",
    "model.dec_depth",
    "model.dec_heads",
    "model.pos_embed",
    "mask.strategy",
    "mask.mixture",
    "mask.input",
    "mask.hidden",
    "mask.scales",
    "mask.explore_arms",
    "mask.ratio_arms",
    "method.preset",
    "method.unroll",
    "method.task",
    "method.supervised",
    "method.shuffle_labels",
    "pretrain.batch",
    "finetune.batch",
    "policy.batch",
];

/// A key whose value is no longer that of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The dotted key.
    pub key: &'static str,
    /// What it may do.
    pub rule: OnResume,
    /// The run's value in TOML's notation; `none` if it has none.
    pub before: String,
    /// The new value.
    pub after: String,
}

impl KeyChange {
    /// The refusal of a key that cannot take effect.
    #[must_use]
    pub fn refusal(&self) -> ConfigError {
        ConfigError {
            key: self.key.to_owned(),
            value: self.after.clone(),
            problem: "cannot take effect on what is trained already; begin a new run for another value".to_owned(),
            allowed: self.before.clone(),
            suggestion: None,
        }
    }
}

/// The rule of every key.
pub fn rules() -> impl Iterator<Item = (&'static str, OnResume)> {
    let group = |keys: &'static [&'static str], rule| keys.iter().map(move |key| (*key, rule));
    group(FREE, OnResume::Free)
        .chain(group(TOLD, OnResume::Told))
        .chain(group(DATA, OnResume::Data))
        .chain(group(FIXED, OnResume::Fixed))
}

impl Config {
    /// The keys that `after` has other values of, without `run.root` and `run.id`: the place of a run is where it is.
    #[must_use]
    pub fn changed_keys(&self, after: &Self) -> Vec<KeyChange> {
        let (before, after) = (comparable(self), comparable(after));
        let shown = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), ToString::to_string);
        let rules = rules().filter(|(key, _)| !matches!(*key, "run.root" | "run.id"));
        let changed = rules.filter_map(|(key, rule)| {
            let (old, new) = (table::get(&before, key), table::get(&after, key));
            (old != new).then(|| KeyChange { key, rule, before: shown(old), after: shown(new) })
        });
        changed.collect()
    }
}

/// The configuration as a table. A path that is no UTF-8 has no form in TOML and is shown with replacements.
fn comparable(config: &Config) -> Table {
    let mut config = config.clone();
    config.data.path = config.data.path.map(|path| path.to_string_lossy().into_owned().into());
    match Value::try_from(config) {
        Ok(Value::Table(table)) => table,
        _ => Table::new(),
    }
}

impl ConfigInputs {
    /// Whether a layer or a setting gives `key` a value. What cannot be parsed gives none.
    #[must_use]
    pub fn gives(&self, key: &str) -> bool {
        let in_layer = |(name, text): &(String, String)| {
            table::parse(name, text).is_ok_and(|mut layer| {
                aliases::rename(&mut layer);
                table::get(&layer, key).is_some()
            })
        };
        let in_setting = |setting: &String| {
            let mut table = Table::new();
            let put = table::parse_setting(setting).and_then(|(path, value)| table::put(&mut table, &path, value));
            aliases::rename(&mut table);
            put.is_ok() && table::get(&table, key).is_some()
        };
        self.layers.iter().any(in_layer) || self.sets.iter().any(in_setting)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::schema;

    #[test]
    fn every_key_of_the_schema_has_one_rule() {
        let mut keys = Vec::new();
        schema::leaf_keys(schema::schema(), "", &mut keys);
        let ruled: Vec<&str> = rules().map(|(key, _)| key).collect();
        let (keys, unique): (BTreeSet<_>, BTreeSet<_>) =
            (keys.iter().map(String::as_str).collect(), ruled.iter().copied().collect());
        assert_eq!(keys, unique, "a new key needs a rule for runs that are resumed");
        assert_eq!(ruled.len(), unique.len(), "no key has two rules");
    }

    #[test]
    fn changes_are_found_by_value_whoever_gives_them() {
        let before = Config::default();
        assert_eq!(before.changed_keys(&before), []);
        let inputs = ConfigInputs::default()
            .layer("a.toml", "[model]\ndepth = 4\n[pretrain]\nlr = 0.5")
            .set("seed=9")
            .set("data.mean=[0.5]")
            .set("data.std=[0.5]")
            .set("run.id=other");
        let changes = before.changed_keys(&Config::resolve(&inputs).expect("valid"));
        let changes: Vec<_> = changes.iter().map(|c| (c.key, c.rule, &*c.before, &*c.after)).collect();
        let expected = [
            ("pretrain.lr", OnResume::Told, "0.0001", "0.5"),
            ("seed", OnResume::Fixed, "0", "9"),
            ("data.mean", OnResume::Fixed, "none", "[0.5]"),
            ("data.std", OnResume::Fixed, "none", "[0.5]"),
        ];
        assert_eq!(changes, expected);
        for (key, given) in
            [("model.depth", true), ("seed", true), ("run.id", true), ("run", true), ("run.root", false)]
        {
            assert_eq!(inputs.gives(key), given, "{key}");
        }
        assert!(ConfigInputs::default().set("run={ root = \"x\" }").gives("run.root"));
    }

    #[test]
    fn a_refusal_names_key_value_and_what_the_run_has() {
        let after = Config::resolve(&ConfigInputs::default().set("method.unroll=3")).expect("valid");
        let refusal = Config::default().changed_keys(&after)[0].refusal().to_string();
        assert!(refusal.starts_with("method.unroll = 3: cannot take effect"), "{refusal}");
        assert!(refusal.ends_with("(allowed: 2)"), "{refusal}");
    }
}
