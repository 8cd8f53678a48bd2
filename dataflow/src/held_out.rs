//! Which split judges a run: the test role, with its labels in the train split's classes.

use std::sync::Arc;

use mlomae_storage::dataset::{self, DataError, Dataset, DatasetSpec, Split};

use crate::config::{DataConfig, TestSplit};
use crate::data::SetupError;

/// The test role of a run.
#[derive(Clone, Default)]
pub struct TestRole {
    /// The split that judges; its labels are indices into the train split's classes. None if nothing judges.
    pub dataset: Option<Arc<dyn Dataset>>,
    /// Its images with a label, which alone judge.
    pub num_labelled: usize,
    /// In a few words, which split it is and why, or why there is none.
    pub text: String,
    /// What departs from a test split whose every image judges, one line each.
    pub warnings: Vec<String>,
}

impl TestRole {
    /// Opens the split that `data.test_split` asks for.
    ///
    /// # Errors
    /// If a split that was asked for by name is absent or has no labels, if a split cannot be read, or if its classes cannot
    /// be mapped by name to those of the train split, whose labels are `train_labels`.
    pub fn open(data: &DataConfig, train: &dyn Dataset, train_labels: &[Option<i32>]) -> Result<Self, SetupError> {
        let open = |split| -> Result<Option<Self>, SetupError> {
            let mut spec = data.dataset_spec(split);
            if let Some(column) = &train.info().label_column {
                spec = DatasetSpec { label_column: Some(column.clone()), label_column_optional: true, ..spec };
            }
            let dataset = match dataset::open(&spec) {
                Ok(dataset) => dataset,
                Err(DataError::NoSplit { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            Self::aligned(dataset, train, train_labels).map(Some)
        };
        let wanted = data.test_split;
        let refuse = |problem: String, exit_code| {
            Err(SetupError::TestSplit { wanted: wanted.as_str(), problem, name: train.info().name.clone(), exit_code })
        };
        let (split, is_split): (Split, fn(&Self) -> bool) = match wanted {
            TestSplit::None => {
                return Ok(Self { text: "data.test_split is none".to_owned(), ..Self::default() });
            }
            TestSplit::Auto => return Self::automatic(open),
            TestSplit::Test => (Split::Test, |role| !role.is_validation()),
            TestSplit::Validation => (Split::Validation, Self::is_validation),
        };
        match open(split)?.filter(is_split) {
            None => refuse(format!("there is no {wanted} split", wanted = wanted.as_str()), 66),
            Some(role) if role.num_labelled == 0 => refuse(format!("the {} split has no labels", wanted.as_str()), 65),
            Some(role) => Ok(role),
        }
    }

    /// The test split, or else what can stand in for it.
    fn automatic(open: impl Fn(Split) -> Result<Option<Self>, SetupError>) -> Result<Self, SetupError> {
        let without = "training ends without an evaluation";
        let Some(mut test) = open(Split::Test)? else {
            let text = "there is no test split".to_owned();
            return Ok(Self { warnings: vec![format!("no test split: {without}")], text, ..Self::default() });
        };
        if test.num_labelled > 0 && !test.is_validation() {
            return Ok(test);
        }
        let reason = if test.is_validation() { "there is no test split" } else { "the test split has no labels" };
        if test.num_labelled == 0 && !test.is_validation() {
            test = open(Split::Validation)?.unwrap_or_default();
        }
        if test.num_labelled == 0 {
            let text = format!("{reason}, and no validation split with labels stands in");
            return Ok(Self { warnings: vec![format!("{text}: {without}")], text, ..Self::default() });
        }
        test.text = format!("{}, as {reason}", test.text);
        test.warnings.insert(0, format!("{reason}: the validation split judges; data.test_split chooses"));
        Ok(test)
    }

    /// A split that is there, in the train split's classes.
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
        Ok(Self { dataset: Some(aligned.dataset), num_labelled, text, warnings })
    }

    /// Whether the data's validation split judges.
    fn is_validation(&self) -> bool {
        self.dataset.as_ref().is_some_and(|dataset| dataset::is_validation(&dataset.info().split))
    }
}
