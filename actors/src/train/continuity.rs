//! Whether a checkpoint is continued with what it was trained with: the keys of its configuration, and its data.

use mlomae_dataflow::config::{Config, ConfigError, KeyChange, OnResume};
use mlomae_dataflow::counts::Outer;
use mlomae_dataflow::input::augment::Normalisation;
use mlomae_storage::dataset::fingerprint::{Change, Fingerprint, Part};
use mlomae_storage::dataset::{self, DataError, Dataset, Split};
use mlomae_storage::exit_code::ExitCode;
use serde::{Deserialize, Serialize};

use crate::process::error::CliError;

/// What a checkpoint is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To train on.
    Resume {
        /// Other data than before are wanted.
        accept_changed_data: bool,
    },
    /// To be judged or shown, also on other data of the same classes.
    Judge,
}

/// What both splits held when a checkpoint was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataContent {
    /// The train split.
    pub train: Fingerprint,
    /// The test split, if there was one.
    #[serde(default)]
    pub test: Option<Fingerprint>,
}

impl DataContent {
    /// The content of the opened splits of `config`'s data.
    ///
    /// # Errors
    /// If a label cannot be read or a file is gone.
    pub fn of(config: &Config, train: &dyn Dataset, test: Option<&dyn Dataset>) -> Result<Self, DataError> {
        let of = |split| Fingerprint::of(split, config.data.path.as_deref());
        Ok(Self { train: of(train)?, test: test.map(of).transpose()? })
    }

    /// The same of a train split that is not open yet, beside the known content of a test split.
    ///
    /// # Errors
    /// Also if it cannot be opened.
    pub fn open(config: &Config, test: Option<Fingerprint>) -> Result<Self, DataError> {
        let train = dataset::open(&config.dataset_spec(Split::Train))?;
        Ok(Self { test, ..Self::of(config, train.as_ref(), None)? })
    }
}

/// What a checkpoint's state says beside its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// Side of the images that the networks see, in pixels.
    pub image: Option<usize>,
    /// Their channels.
    pub channels: Option<usize>,
    /// Normalisation of their values.
    pub normalisation: Normalisation,
}

impl Effective {
    /// Writes out what a configuration leaves to the data, so that the same value given as a key is no change.
    fn fill(&self, config: &mut Config) {
        let data = &mut config.data;
        data.image = data.image.or(self.image);
        data.channels = data.channels.or(self.channels);
        data.mean.get_or_insert_with(|| self.normalisation.mean.clone());
        data.std.get_or_insert_with(|| self.normalisation.std.clone());
    }
}

/// Holds the configuration `now` against that of a checkpoint after `outer` outer iterations. Keys that cannot take
/// effect are refused, all of them at once; those that do and change results are logged. Returns the keys that name the
/// data and have changed.
///
/// # Errors
/// One line for each key.
pub fn compare_keys(
    recorded: &Config,
    now: &Config,
    effective: &Effective,
    outer: Outer,
    purpose: Purpose,
) -> Result<Vec<KeyChange>, CliError> {
    let filled = |config: &Config| {
        let mut config = config.clone();
        effective.fill(&mut config);
        config
    };
    let changes = filled(recorded).changed_keys(&filled(now));
    let of_rule = |rule| changes.iter().filter(move |change| change.rule == rule);
    let mut refusals: Vec<ConfigError> = of_rule(OnResume::Fixed).map(KeyChange::refusal).collect();
    if let Purpose::Resume { .. } = purpose {
        refusals.extend(check_length(now, outer));
        refusals.extend(check_lag(recorded, now, outer));
    }
    if !refusals.is_empty() {
        return Err(refusals.into());
    }
    let told: Vec<String> = of_rule(OnResume::Told)
        .map(|KeyChange { key, before, after, .. }| format!("{key} {before} -> {after}"))
        .collect();
    if !told.is_empty() && purpose != Purpose::Judge {
        tracing::warn!(
            kind = "config_changed",
            "changed after outer iteration {outer}, so that results differ from those of a run without: {}",
            told.join(", ")
        );
    }
    Ok(of_rule(OnResume::Data).cloned().collect())
}

fn check_length(now: &Config, outer: Outer) -> Option<ConfigError> {
    let num = Outer(now.train.outer_iterations);
    (num < outer).then(|| ConfigError {
        key: "train.outer_iterations".to_owned(),
        value: num.to_string(),
        problem: format!("{outer} outer iterations are done already"),
        allowed: format!("{outer} or more"),
        suggestion: None,
    })
}

/// A greater lag needs older masking networks than the checkpoint holds.
fn check_lag(recorded: &Config, now: &Config, outer: Outer) -> Option<ConfigError> {
    let num_older = |config: &Config| outer.0.min(config.pipeline.lag.into());
    (num_older(now) > num_older(recorded)).then(|| ConfigError {
        key: "pipeline.lag".to_owned(),
        value: now.pipeline.lag.to_string(),
        problem: "cannot be raised, the checkpoint holds no older masking networks".to_owned(),
        allowed: format!("0 to {}", recorded.pipeline.lag),
        suggestion: None,
    })
}

/// What has changed in the data, as text; empty if nothing.
#[derive(Debug, Default)]
struct Differences {
    /// What can change what is trained.
    of_train: Vec<String>,
    /// What changes only how it is judged, or nothing.
    others: Vec<String>,
    /// The classes are others.
    classes: bool,
    /// Images or labels are others, or may be.
    counts: bool,
}

impl Differences {
    fn between(before: &DataContent, now: &DataContent) -> Self {
        let mut found = Self::default();
        found.add("train", &before.train, &now.train);
        match (&before.test, &now.test) {
            (Some(before), Some(now)) => found.add("test", before, now),
            (None, Some(_)) => found.of_test("there is a test split, was none".to_owned()),
            (Some(_), None) => found.of_test("no test split, was one".to_owned()),
            (None, None) => {}
        }
        found
    }

    fn of_test(&mut self, text: String) {
        self.counts = true;
        self.others.push(format!("test: {text}"));
    }

    fn add(&mut self, split: &str, before: &Fingerprint, now: &Fingerprint) {
        let changes = before.changes(now);
        let are_files_alone = changes.iter().all(|change| change.part == Part::Files);
        for Change { part, text } in changes {
            self.classes |= part == Part::ClassNames;
            // Other files with the same labels and pixels are the same data, if all pixels were looked at.
            if are_files_alone && now.is_complete() {
                self.others.push(format!("{split}: {text}, all images are the same"));
            } else if split == "test" {
                self.of_test(text);
            } else if are_files_alone {
                self.of_train.push(format!("train: {text}; only {} images were looked at", now.num_compared()));
            } else {
                self.of_train.push(format!("train: {text}"));
            }
        }
        self.counts |= !self.of_train.is_empty();
    }
}

/// Compares the data `now` with those `before`, and logs what differs. The test split only judges, so that a
/// change of it alone is no reason to refuse. Answers whether anything that counts has changed; `keys` are those that
/// name other data, `place` is the checkpoint.
///
/// # Errors
/// If training would go on with other data and that is not wanted, or the classes are others.
pub fn compare_data(
    before: &DataContent,
    now: &DataContent,
    keys: &[KeyChange],
    purpose: Purpose,
    place: &str,
) -> Result<bool, CliError> {
    let Differences { of_train, others, classes, counts } = Differences::between(before, now);
    let all: Vec<&str> = of_train.iter().chain(&others).map(String::as_str).collect();
    let mut what = all.join("; ");
    if what.is_empty() {
        return Ok(false);
    }
    if !keys.is_empty() {
        let keys: Vec<String> = keys.iter().map(|change| format!("{} = {}", change.key, change.after)).collect();
        what += &format!("; set by {}", keys.join(", "));
    }
    let refuse = |way_out: &str| {
        let line = format!("data is not what the checkpoint was trained on ({what}); {way_out}: {place}");
        Err(CliError::new(ExitCode::Config, line))
    };
    match purpose {
        Purpose::Judge if classes => refuse("it is judged only on data of the same classes"),
        Purpose::Judge => {
            tracing::warn!(kind = "data_changed", "data is not what the checkpoint was trained on: {what}");
            Ok(counts)
        }
        Purpose::Resume { accept_changed_data: false } if !of_train.is_empty() => {
            refuse("name the right place with --set data.path=DIR, or go on with --accept-changed-data")
        }
        Purpose::Resume { .. } if of_train.is_empty() => {
            tracing::warn!(
                kind = "data_changed",
                "data has changed in what does not train, so the run goes on: {what}"
            );
            Ok(counts)
        }
        Purpose::Resume { .. } => {
            tracing::warn!(kind = "data_changed", "the run goes on with other data, as is wanted: {what}");
            Ok(counts)
        }
    }
}
