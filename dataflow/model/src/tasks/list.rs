//! The list of tasks.

use super::class;
use super::task::TaskKind;
use crate::choice::{Choice, Registry};

/// Every task; the first is the default.
pub static TASKS: &[&dyn TaskKind] = &[&class::Kind];

impl Registry for dyn TaskKind {
    const WHAT: &'static str = "task";
    fn entries() -> &'static [&'static Self] {
        TASKS
    }
}

/// A task that was chosen by name.
pub type TaskChoice = Choice<dyn TaskKind>;
