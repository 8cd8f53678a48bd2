//! The configuration of a run: TOML with defaults, presets, overlays and overrides.
//!
//! One schema, derived from the types here, serves `config schema`, the check of every key and
//! the suggestions. A check collects all errors before it fails.

mod actors;
mod aliases;
mod check;
mod compute;
mod data;
mod method;
mod model;
mod output;
mod resume;
mod run;
mod schema;
mod table;
mod telemetry;
#[cfg(test)]
mod tests;

use std::fmt;

use mlomae_model::Precision;
use mlomae_model::hypergradient::default_form;
use mlomae_model::lane::Engine;
use mlomae_model::masking::MaskingChoice;
use mlomae_model::tasks::{TaskChoice, TaskSpec};
use mlomae_storage::dataset::{DatasetSpec, Split, TargetKind};
use mlomae_storage::escape::shortened;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::counts::{Outer, Step};
use crate::input::targets::target_kind;

pub use actors::{ActorsConfig, StageConfig};
pub use compute::ComputeConfig;
pub use data::{AugmentConfig, Crop, DataConfig, OnBadImage, TestSplit};
pub use method::{LevelConfig, MethodConfig, MethodPreset, PolicyConfig, Precondition};
pub use model::{MaskConfig, ModelConfig, Preset, PresetValues};
pub use output::{CheckpointConfig, EvalConfig, LogsConfig};
pub use resume::{KeyChange, OnResume, rules};
pub use run::{MemoryCheck, PipelineConfig, RunConfig, TrainConfig};
pub use schema::{most_like, schema};
pub use table::parse as parse_toml;
pub use telemetry::TelemetryConfig;

/// The configuration that `train` uses when none is given.
pub const QUICKSTART: &str = include_str!("../../../configs/quickstart.toml");

/// All settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "mlomae configuration")]
pub struct Config {
    /// Seed of everything random: weights, roles, order of the images, augmentation, exploration.
    #[schemars(range(min = 0, max = 9_223_372_036_854_775_807_u64))]
    pub seed: u64,
    /// Where the levels compute.
    pub engine: Engine,
    /// Where the run's files go.
    pub run: RunConfig,
    /// The data set, its roles and its augmentation.
    pub data: DataConfig,
    /// Shape of the masked autoencoder.
    pub model: ModelConfig,
    /// The masking network and how its scores become masks.
    pub mask: MaskConfig,
    /// The method's variants.
    pub method: MethodConfig,
    /// Level 1: the masked autoencoder learns on unlabelled images.
    pub pretrain: LevelConfig,
    /// Level 2: the downstream head learns on labelled images.
    pub finetune: LevelConfig,
    /// Level 3: the masking network learns from the validation loss.
    pub policy: PolicyConfig,
    /// How long to train, and in what portions.
    pub train: TrainConfig,
    /// How precisely the levels compute.
    pub compute: ComputeConfig,
    /// How the three levels overlap.
    pub pipeline: PipelineConfig,
    /// Workers and queues of the stages.
    pub actors: ActorsConfig,
    /// When checkpoints are written.
    pub checkpoint: CheckpointConfig,
    /// What is logged.
    pub logs: LogsConfig,
    /// How a running run can be watched from outside.
    pub telemetry: TelemetryConfig,
    /// Evaluations on the test role.
    pub eval: EvalConfig,
    /// The downstream tasks, a table `[[task]]` each: what level 2 learns and level 3 is judged by. None of them: the
    /// classification of images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub task: Vec<TaskSpec>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            engine: Engine::Auto,
            run: RunConfig::default(),
            data: DataConfig::default(),
            model: ModelConfig::default(),
            mask: MaskConfig::default(),
            method: MethodConfig::default(),
            pretrain: LevelConfig::published(1e-4),
            finetune: LevelConfig::published(1e-3),
            policy: PolicyConfig::default(),
            train: TrainConfig::default(),
            compute: ComputeConfig::default(),
            pipeline: PipelineConfig::default(),
            actors: ActorsConfig::default(),
            checkpoint: CheckpointConfig::default(),
            logs: LogsConfig::default(),
            telemetry: TelemetryConfig::default(),
            eval: EvalConfig::default(),
            task: Vec::new(),
        }
    }
}

/// One thing that is wrong with a configuration; displays as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where: the dotted key, or the file with line and column.
    pub key: String,
    /// What was found there, in TOML's notation; empty if the problem is the key itself.
    pub value: String,
    /// What is wrong.
    pub problem: String,
    /// Allowed values or range; empty if there is nothing to choose from.
    pub allowed: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

/// Characters of a key and of a value that a message repeats.
const MAX_SHOWN: usize = 200;

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shortened(&self.key, MAX_SHOWN))?;
        if !self.value.is_empty() {
            write!(f, " = {}", shortened(&self.value, MAX_SHOWN))?;
        }
        write!(f, ": {}", shortened(&self.problem, 2 * MAX_SHOWN))?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean {suggestion}?")?;
        }
        if !self.allowed.is_empty() {
            write!(f, " (allowed: {})", self.allowed)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// What a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct ConfigInputs {
    /// TOML texts with the names that messages give them; later ones win.
    pub layers: Vec<(String, String)>,
    /// `key=value` settings, stronger than every layer. The value is TOML; a bare word is a string.
    pub sets: Vec<String>,
}

impl ConfigInputs {
    /// The embedded quickstart.
    #[must_use]
    pub fn quickstart() -> Self {
        Self::default().layer("quickstart.toml", QUICKSTART)
    }

    /// Adds a TOML text.
    #[must_use]
    pub fn layer(mut self, name: &str, text: &str) -> Self {
        self.layers.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Adds the setting of a preset.
    #[must_use]
    pub fn preset(self, preset: Preset) -> Self {
        self.set(&format!("model.preset={}", preset.as_str()))
    }

    /// Adds a `key=value` setting.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.sets.push(setting.to_owned());
        self
    }
}

impl Config {
    /// A configuration whose fields were set by a program, with the relations between its keys checked.
    ///
    /// # Errors
    /// Every error that can be found, not only the first.
    pub fn checked(self) -> Result<Self, Vec<ConfigError>> {
        let errors = self.check();
        if errors.is_empty() { Ok(self) } else { Err(errors) }
    }

    /// Defaults, then the preset, then the layers in their order, then the settings; checked.
    ///
    /// # Errors
    /// Every error that can be found, not only the first.
    pub fn resolve(inputs: &ConfigInputs) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let (mut given, mut layers) = (toml::Table::new(), Vec::new());
        for (name, text) in &inputs.layers {
            match table::parse(name, text) {
                Ok(layer) => {
                    layers.push(layer.clone());
                    errors.extend(aliases::merge(&mut given, layer));
                }
                Err(error) => errors.push(error),
            }
        }
        for setting in &inputs.sets {
            match table::parse_setting(setting) {
                Ok((path, value)) => {
                    // Through a layer of its own, so that former names are known; what is no table is refused by `put`.
                    let mut layer = toml::Table::new();
                    let put = table::put(&mut given.clone(), &path, value.clone());
                    let put = put.and_then(|()| table::put(&mut layer, &path, value));
                    layers.push(layer.clone());
                    errors.extend(put.err());
                    errors.extend(aliases::merge(&mut given, layer));
                }
                Err(error) => errors.push(error),
            }
        }
        // A file that cannot be parsed would only bring errors that follow from it.
        if !errors.is_empty() {
            return Err(errors);
        }
        let is_baseline = aliases::take_baseline(&mut given).unwrap_or_else(|error| {
            errors.push(error);
            false
        });
        errors.extend(schema::check(&given));
        // The defaults are merged as a whole: the default of a key depends on its section, which
        // serde does not see once a part of the section is given.
        let mut merged = match toml::Value::try_from(Self::default()) {
            Ok(toml::Value::Table(defaults)) => defaults,
            _ => toml::Table::new(),
        };
        if let Some(preset) = table::get(&given, "model.preset").and_then(toml::Value::as_str)
            && let Some(preset) = Preset::from_name(preset)
        {
            table::merge(&mut merged, preset_table(preset));
        }
        if let Some(precision) = table::get(&given, "compute.precision").and_then(toml::Value::as_str)
            && let Some(precision) = Precision::by_name(precision)
        {
            table::merge(&mut merged, default_form_table(precision));
        }
        if let Some(preset) = table::get(&given, "method.preset").and_then(toml::Value::as_str)
            && let Some(preset) = MethodPreset::by_name(preset)
        {
            // A strategy that learns nothing takes nothing of it: its values would have no meaning there.
            let strategy = table::get(&given, "mask.strategy").and_then(toml::Value::as_str);
            let strategy = strategy.and_then(MaskingChoice::by_name);
            if !is_baseline && strategy.is_none_or(|strategy| strategy.is_learned()) {
                table::merge(&mut merged, method_preset_table(preset));
            }
        }
        // What the schema refused is left out, so that the relations between the other keys are
        // still checked.
        for error in &errors {
            // Of a list all is left out.
            let key = error.key.split('[').next().unwrap_or(&error.key);
            table::remove(&mut given, key);
        }
        if is_baseline {
            aliases::random(&mut given);
        }
        table::merge(&mut merged, given);
        match toml::Value::Table(merged).try_into::<Self>() {
            Ok(config) => {
                let refused: Vec<String> = errors.iter().map(|error| error.key.clone()).collect();
                // Drops follow-up errors of keys that were refused already.
                let is_of = |key: &String, error: &ConfigError| {
                    key.strip_prefix(&*error.key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                };
                let news = |error: &ConfigError| !refused.iter().any(|key| is_of(key, error));
                errors.extend(config.check().into_iter().filter(news));
                if errors.is_empty() {
                    return Ok(config);
                }
            }
            Err(error) if errors.is_empty() => errors.push(ConfigError {
                key: "configuration".into(),
                value: String::new(),
                problem: error.message().replace('\n', " "),
                allowed: String::new(),
                suggestion: None,
            }),
            Err(_) => {}
        }
        aliases::name_as_given(&mut errors, &layers);
        Err(errors)
    }

    /// The whole configuration as TOML; resolving it again gives the same.
    ///
    /// # Errors
    /// If a value has no form in TOML; a resolved configuration has none such.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Whether scoring waits for the newest θ: where a masking network reads the patch embedding, or a strategy a teacher
    /// that is renewed after each step.
    #[must_use]
    pub fn scores_need_theta(&self) -> bool {
        let reads_newest_teacher = self.mask.reads_teacher() && self.mask.refresh == 0;
        let reads_embedding = self.mask.strategy.is_learned() && self.mask.input == mlomae_model::MaskInput::Embedding;
        reads_embedding || reads_newest_teacher
    }

    /// The tasks as configured; none for the classification of images with its defaults.
    #[must_use]
    pub fn task_specs(&self) -> Vec<TaskSpec> {
        match &self.task[..] {
            [] if self.method.task == TaskChoice::default() => Vec::new(),
            [] => vec![TaskSpec::of(self.method.task)],
            tasks => tasks.to_vec(),
        }
    }

    /// The kinds of the tasks, at least one.
    #[must_use]
    pub fn task_kinds(&self) -> Vec<TaskChoice> {
        match &self.task[..] {
            [] => vec![self.method.task],
            tasks => tasks.iter().map(|task| task.kind).collect(),
        }
    }

    /// The kinds of targets that the tasks learn from, in the tasks' order.
    #[must_use]
    pub fn target_kinds(&self) -> Vec<TargetKind> {
        self.task_kinds().into_iter().map(target_kind).collect()
    }

    /// Whether a task learns from the class of each image.
    #[must_use]
    pub fn needs_classes(&self) -> bool {
        self.target_kinds().contains(&TargetKind::Class)
    }

    /// What opens a split of the configured data set, with the targets of the tasks, each kind once.
    #[must_use]
    pub fn dataset_spec(&self, split: Split) -> DatasetSpec {
        let mut targets: Vec<TargetKind> = Vec::new();
        for kind in self.target_kinds() {
            if !targets.contains(&kind) {
                targets.push(kind);
            }
        }
        DatasetSpec { targets, ..self.data.dataset_spec(split) }
    }

    /// A line about each warm-up that the run does not outlast: the learning rate of that level never gets to its value.
    #[must_use]
    pub fn unending_warmups(&self) -> Vec<String> {
        let (outer, steps) = (self.train.outer_iterations, self.num_steps().0);
        let is_learned = self.mask.strategy.is_learned();
        // Controls that train the encoder by labels move no policy.
        let moves_policy = is_learned && !self.method.supervised;
        let levels = [
            ("pretrain", self.pretrain.clone(), true, steps, "level-1 steps"),
            ("finetune", self.finetune.clone(), is_learned, outer, "outer iterations"),
            ("policy", self.policy.level(), moves_policy, outer, "outer iterations"),
        ];
        let is_unending = |level: &LevelConfig, num: u64| level.lr > 0.0 && level.warmup_steps >= num.max(1);
        let lines = levels.into_iter().filter(|(_, level, works, num, _)| *works && is_unending(level, *num));
        lines
            .map(|(name, level, _, num, unit)| {
                format!(
                    "{name}.warmup_steps = {} do not end within {num} {unit}: {name}.lr = {} is never reached",
                    level.warmup_steps, level.lr
                )
            })
            .collect()
    }

    /// Level-1 steps of the whole run.
    #[must_use]
    pub const fn num_steps(&self) -> Step {
        Outer(self.train.outer_iterations).first_step(self.method.unroll)
    }
}

/// The form of the hypergradient that goes with a precision.
fn default_form_table(precision: Precision) -> toml::Table {
    let form = default_form(precision).name().into();
    let method = toml::Table::from_iter([("hypergradient".to_owned(), form)]);
    toml::Table::from_iter([("method".to_owned(), toml::Value::Table(method))])
}

fn method_preset_table(preset: MethodPreset) -> toml::Table {
    let mut table = toml::Table::new();
    for (key, value) in preset.values() {
        let setting = table::parse_setting(&format!("{key}={value}"));
        let put = setting.and_then(|(path, value)| table::put(&mut table, &path, value));
        debug_assert!(put.is_ok(), "{key}");
    }
    table
}

fn preset_table(preset: Preset) -> toml::Table {
    let values = preset.values();
    let mut table = toml::Table::new();
    let numbers = [
        ("model.patch", values.patch),
        ("model.dim", values.encoder.0),
        ("model.depth", values.encoder.1),
        ("model.heads", values.encoder.2),
        ("model.dec_dim", values.decoder.0),
        ("model.dec_depth", values.decoder.1),
        ("model.dec_heads", values.decoder.2),
        ("mask.hidden", values.mask_hidden),
        ("pretrain.batch", values.batch),
        ("finetune.batch", values.batch),
        ("policy.batch", values.batch),
    ];
    for (key, number) in numbers {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let put = table::put(&mut table, &path, toml::Value::Integer(number as i64));
        debug_assert!(put.is_ok());
    }
    table
}
