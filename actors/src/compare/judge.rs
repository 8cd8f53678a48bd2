//! What judges where other data judge than train: `[judge]` of an experiment's file, for questions of transfer.
//!
//! An arm trains as its configuration says. Its encoder is then judged under that configuration with the data and the
//! evaluations of the judge: other images, or other labels of the same ones. Images must have the side and the channels
//! that the encoder was trained on. They are normalised as the encoder's own were, by the mean and the deviation of the
//! run that trained it: a frozen encoder is a function of pixels, of which its normalisation is a part, and a judge's own
//! would show it the same pixel as another value.

use std::fmt;

use mlomae_dataflow::config::{Config, ConfigError, ConfigInputs, MaskConfig, MethodConfig, PolicyConfig};
use mlomae_model::masking::{MaskingChoice, random};
use toml::{Table, Value};

use super::experiment::Errors;
use super::key::Key;

/// Sections that may differ from what trained.
const SECTIONS: [&str; 2] = ["data", "eval"];
/// Keys of them that would change nothing, and why.
const WITHOUT_EFFECT: [(&str, &str); 4] = [
    ("data.mean", "images are normalised as those that trained"),
    ("data.std", "images are normalised as those that trained"),
    ("data.augment", "images that judge are not augmented"),
    ("eval.at_end", "cells are judged by the comparison"),
];

/// `[judge]` as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgeFile {
    /// The configuration whose `data` judge: a path, relative to the experiment's file, or `quickstart`. Without it
    /// those of the arm.
    pub base: Option<String>,
    /// Settings of `data` and `eval` over them.
    pub set: Vec<String>,
}

impl fmt::Display for JudgeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(base) = &self.base {
            write!(f, "data of {base}")?;
        }
        if !self.set.is_empty() {
            let separator = if self.base.is_some() { ", " } else { "" };
            write!(f, "{separator}{}", self.set.join(", "))?;
        }
        Ok(())
    }
}

impl JudgeFile {
    /// `[judge]` of an experiment's `table`, if it has one.
    pub(super) fn parse(table: &Table, errors: &mut Errors) -> Option<Self> {
        let value = table.get("judge")?;
        let allowed = "[judge] with set, base or both";
        let Some(inner) = value.as_table() else {
            errors.add("judge", Some(value), "is no table", allowed, None);
            return None;
        };
        errors.unknown("judge.", inner, &["base", "set"]);
        let base = errors.text(inner, "judge.", "base", "a path or \"quickstart\"");
        let set = errors.texts(inner, "judge.", "set", "settings of data and eval, as in [\"eval.knn_k=5\"]");
        if inner.is_empty() {
            errors.add("judge", None, "is empty", allowed, None);
        }
        let set = set.unwrap_or_default();
        for setting in &set {
            let shown = Value::String(setting.clone());
            let gives = |key: &str| ConfigInputs::default().set(setting).gives(key);
            // What cannot be parsed gives nothing, and is reported where it becomes a configuration.
            let is_parsed = setting.split_once('=').is_some_and(|(key, _)| gives(key.trim()));
            if is_parsed && !SECTIONS.iter().any(|section| gives(section)) {
                let problem = "is of the training, and a judge takes the encoder as it is";
                errors.add("judge.set", Some(&shown), problem, "keys of data and eval", None);
            }
            if let Some((key, why)) = WITHOUT_EFFECT.iter().find(|(key, _)| gives(key)) {
                errors.add("judge.set", Some(&shown), &format!("has no effect: {why}"), &format!("no {key}"), None);
            }
        }
        Some(Self { base, set })
    }

    /// The configuration that judges what `arm` has trained: the arm's with the data of `base`, or else its own, and the
    /// settings over data and evaluations. It trains nothing: its masks are random and its batches as small as they can
    /// be, so that what only training asks of data is not asked of those that judge.
    ///
    /// # Errors
    /// Every error of the configuration.
    pub fn config(&self, arm: &ConfigInputs, base: Option<&ConfigInputs>) -> Result<Config, Vec<ConfigError>> {
        let is_of = |section: &str, setting: &String| ConfigInputs::default().set(setting).gives(section);
        let own = Config::resolve(arm)?;
        let with = |inputs: &ConfigInputs, keep: &dyn Fn(&String) -> bool| {
            let mut inputs = inputs.clone();
            inputs.sets.extend(self.set.iter().filter(|setting| keep(setting)).cloned());
            Config::resolve(&inputs)
        };
        let (data, eval) = match base {
            None => {
                let config = with(arm, &|_| true)?;
                (config.data, config.eval)
            }
            Some(base) => (
                with(base, &|setting| !is_of("eval", setting))?.data,
                with(arm, &|setting| is_of("eval", setting))?.eval,
            ),
        };
        let (strategy, ratio) = (MaskingChoice::of(&random::Kind), own.mask.ratio);
        let mask = MaskConfig { strategy, ratio, explore: 0.0, ..MaskConfig::default() };
        let method = MethodConfig { task: own.method.task, ..MethodConfig::default() };
        let policy = PolicyConfig { batch: own.train.grain, ..PolicyConfig::default() };
        let mut config = Config { data, eval, mask, method, policy, ..own };
        (config.pretrain.batch, config.finetune.batch) = (config.train.grain, config.train.grain);
        (config.data.mean, config.data.std) = (None, None);
        config.checked()
    }
}

/// A judge of an arm that is ready for any seed.
#[derive(Debug, Clone)]
pub struct PlannedJudge {
    /// The configuration that judges, of the first seed.
    pub config: Config,
    /// Hash of the content of its data.
    pub data: Key,
}
