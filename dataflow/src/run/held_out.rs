//! Which split judges a run: the test role, with its labels in the train split's classes.

use std::sync::Arc;

use mlomae_storage::dataset::{self, DataError, Dataset, DatasetSpec, Split};
use mlomae_storage::exit_code::ExitCode;

use crate::config::{Config, TestSplit};
use crate::run::setup_error::SetupError;

/// A split that judges, if there is one: its labels are indices into the train split's classes.
pub type Judge = Option<Arc<dyn Dataset>>;

/// What is to be said of the test role of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TestRole {
    /// Images with a label, which alone judge.
    pub num_labelled: usize,
    /// In a few words, which split it is and why, or why there is none.
    pub text: String,
    /// What departs from a test split whose every image judges, one line each.
    pub warnings: Vec<String>,
}

impl TestRole {
    /// Opens the split that `data.test_split` asks for, which may take `max_resident_bytes`.
    ///
    /// # Errors
    /// If a split that was asked for by name is absent or has no labels, if a split cannot be read, or if its classes
    /// cannot be mapped by name to those of the train split, whose labels are `train_labels`.
    pub fn open(
        config: &Config,
        train: &dyn Dataset,
        train_labels: &[Option<i32>],
        max_resident_bytes: Option<u64>,
    ) -> Result<(Judge, Self), SetupError> {
        let data = &config.data;
        let open = |split| -> Result<Option<Opened>, SetupError> {
            let mut spec = DatasetSpec { max_resident_bytes, ..config.dataset_spec(split) };
            if let Some(column) = &train.info().label_column {
                spec = DatasetSpec { label_column: Some(column.clone()), label_column_optional: true, ..spec };
            }
            let dataset = match dataset::open(&spec) {
                Ok(dataset) => dataset,
                Err(DataError::NoSplit { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            if config.needs_classes() {
                Opened::aligned(dataset, train, train_labels).map(Some)
            } else {
                Opened::alike(dataset, train).map(Some)
            }
        };
        let wanted = data.test_split;
        let refuse = |problem: String, exit_code| {
            Err(SetupError::TestSplit { wanted: wanted.as_str(), problem, name: train.info().name.clone(), exit_code })
        };
        let (split, is_validation) = match wanted {
            TestSplit::None => return Ok((None, Self::none("data.test_split is none".to_owned(), None))),
            TestSplit::Auto => return Self::automatic(open),
            TestSplit::Test => (Split::Test, false),
            TestSplit::Validation => (Split::Validation, true),
        };
        match open(split)?.filter(|opened| opened.is_validation() == is_validation) {
            None => refuse(format!("there is no {} split", wanted.as_str()), ExitCode::NoInput),
            Some(opened) if opened.role.num_labelled == 0 => {
                refuse(format!("the {} split has no labels", wanted.as_str()), ExitCode::BadData)
            }
            Some(opened) => Ok((Some(opened.dataset), opened.role)),
        }
    }

    /// The test split, or else what can stand in for it.
    fn automatic(open: impl Fn(Split) -> Result<Option<Opened>, SetupError>) -> Result<(Judge, Self), SetupError> {
        let without = "training ends without an evaluation";
        let (stand_in, reason) = match open(Split::Test)? {
            None => return Ok((None, Self::none("there is no test split".to_owned(), Some(without)))),
            Some(test) if test.is_validation() => (Some(test), "there is no test split"),
            Some(test) if test.role.num_labelled == 0 => (open(Split::Validation)?, "the test split has no labels"),
            Some(test) => return Ok((Some(test.dataset), test.role)),
        };
        let Some(Opened { dataset, mut role }) = stand_in else {
            let text = format!("{reason}, and there is no validation split to stand in");
            return Ok((None, Self::none(text, Some(without))));
        };
        if role.num_labelled == 0 {
            let text = format!("{reason}, and the validation split has none either");
            return Ok((None, Self::none(text, Some(without))));
        }
        role.text = format!("{}, as {reason}", role.text);
        role.warnings.insert(0, format!("{reason}: the validation split judges; data.test_split chooses"));
        Ok((Some(dataset), role))
    }

    /// Nothing judges; with a consequence that is worth a warning where nobody asked for it.
    fn none(text: String, consequence: Option<&str>) -> Self {
        let warnings = consequence.map(|consequence| format!("{text}: {consequence}")).into_iter().collect();
        Self { num_labelled: 0, text, warnings }
    }
}

/// A split that is there, in the train split's classes.
struct Opened {
    dataset: Arc<dyn Dataset>,
    role: TestRole,
}

impl Opened {
    fn aligned(
        dataset: Arc<dyn Dataset>,
        train: &dyn Dataset,
        train_labels: &[Option<i32>],
    ) -> Result<Self, SetupError> {
        let aligned = dataset::align(dataset, train, train_labels).map_err(|error| match error {
            error @ DataError::Classes { .. } => SetupError::TestClasses(error),
            error => error.into(),
        })?;
        let info = aligned.dataset.info();
        let (num_images, num_labelled, mut warnings) = (info.num_samples, aligned.num_labelled, aligned.notes);
        let mut text = format!("{num_images} images of the {} split", info.split);
        if num_labelled < num_images && num_labelled > 0 {
            text = format!("{num_labelled} labelled of {text}");
            warnings.push(format!("only {text} judge, the others have no label"));
        }
        Ok(Self { dataset: aligned.dataset, role: TestRole { num_labelled, text, warnings } })
    }

    /// A split whose targets, of whatever kind, have the names of the train split's: every image judges.
    fn alike(dataset: Arc<dyn Dataset>, train: &dyn Dataset) -> Result<Self, SetupError> {
        for (of_split, of_train) in dataset.targets_info().iter().zip(train.targets_info()) {
            if of_split.names != of_train.names {
                return Err(SetupError::TestClasses(DataError::Classes {
                    what: format!("the {} split of {}", dataset.info().split, dataset.info().name),
                    of: format!("the {} split", train.info().split),
                    problem: format!("their names for the kind {} differ", of_train.kind),
                    has: of_split.names.join(", "),
                    wanted: of_train.names.join(", "),
                }));
            }
        }
        let info = dataset.info();
        let text = format!("{} images of the {} split", info.num_samples, info.split);
        let role = TestRole { num_labelled: info.num_samples, text, warnings: Vec::new() };
        Ok(Self { dataset, role })
    }

    /// Whether it is the data's validation split.
    fn is_validation(&self) -> bool {
        dataset::is_validation(&self.dataset.info().split)
    }
}
