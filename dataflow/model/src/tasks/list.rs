//! The list of tasks: those that are shipped, and those that a program adds before it reads a configuration.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::options::TaskOptions;
use super::task::{TaskFacts, TaskKind};
use super::{class, conditions, detection, multi_label, regression, segmentation};
use crate::choice::{Choice, Registry};
use crate::error::ModelError;

/// Every task that is shipped; the first is the default.
pub static TASKS: &[&dyn TaskKind] =
    &[&class::Kind, &multi_label::Kind, &regression::Kind, &segmentation::Kind, &detection::Kind];

/// The list of this process.
static ALL: OnceLock<Vec<&'static dyn TaskKind>> = OnceLock::new();

impl Registry for dyn TaskKind {
    const WHAT: &'static str = "task";

    /// The shipped tasks, then those that [`TaskRegistry::install`] has added.
    fn entries() -> &'static [&'static Self] {
        ALL.get_or_init(|| TASKS.to_vec())
    }
}

/// A task that was chosen by name.
pub type TaskChoice = Choice<dyn TaskKind>;

/// Shapes on which a program's own task is tried.
const SMALL: TaskFacts = TaskFacts { dim: 24, depth: 2, grid: 4, patch: 4, num_classes: 4 };

/// The tasks that configurations may name.
///
/// ```no_run
/// # use mlomae_model::tasks::{TaskKind, TaskRegistry};
/// # fn main_with(depth: impl TaskKind) -> Result<(), mlomae_model::ModelError> {
/// TaskRegistry::shipped().with(depth).install()?; // before any configuration is read
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct TaskRegistry {
    added: Vec<&'static dyn TaskKind>,
}

impl TaskRegistry {
    /// The shipped tasks.
    #[must_use]
    pub fn shipped() -> Self {
        Self::default()
    }

    /// The same with one more. It lives as long as the process.
    #[must_use]
    pub fn with(mut self, kind: impl TaskKind) -> Self {
        self.added.push(Box::leak(Box::new(kind)));
        self
    }

    /// Makes it the list of this process. Configurations, help and messages read that list, so it must be set before the
    /// first of them. Each task that is not shipped is tried on small shapes, with its default options
    /// ([`conditions::check`]).
    ///
    /// # Errors
    /// [`ModelError::Config`] when two tasks have one name, one breaks the conditions (with the reason), or the list has
    /// been read or set before.
    pub fn install(self) -> Result<(), ModelError> {
        let mut all = TASKS.to_vec();
        for kind in self.added {
            if all.iter().any(|other| other.name() == kind.name()) {
                return Err(ModelError::Config(format!("tasks must have different names, got {} twice", kind.name())));
            }
            let tried = TaskOptions::check(&BTreeMap::new(), kind.options())
                .and_then(|options| kind.build(&SMALL, &options))
                .and_then(|task| conditions::check(&*task, &SMALL, &kind.example(&SMALL, conditions::NUM_IMAGES, 1)));
            tried.map_err(|error| ModelError::Config(format!("task {}: {}", kind.name(), error.reason())))?;
            all.push(kind);
        }
        let too_late = |_| ModelError::Config("tasks must be added before the list of tasks is first read".to_owned());
        ALL.set(all).map_err(too_late)
    }
}
