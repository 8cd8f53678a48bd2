//! The tasks of a run as configured.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::list::TaskChoice;
use super::options::TaskOptions;
use super::task::{Part, Task, TaskFacts};
use super::weighted::Weighted;
use crate::error::ModelError;
use crate::tap::Tap;

/// How the directions of several tasks are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// v is the direction of L = Σ λₜ·Lₜ: a task counts as its gradient is large.
    #[default]
    Sum,
    /// v = Σ λₜ·vₜ/‖vₜ‖: tasks count by λ alone, at a forward and a backward pass for each.
    Normalised,
}

/// One downstream task as configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// What kind of task it is.
    pub kind: TaskChoice,
    /// Its name among several tasks; the kind's where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// λ, by which its loss counts among several tasks.
    #[serde(default = "one")]
    pub weight: f64,
    /// Classes, labels or values that the data has for it; those of
    /// [`ModelConfig::num_classes`](crate::ModelConfig::num_classes) where none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
    /// Options of the kind, see [`TaskKind::options`](super::TaskKind::options).
    #[serde(flatten)]
    pub options: BTreeMap<String, Value>,
}

const fn one() -> f64 {
    1.0
}

impl TaskSpec {
    /// The task of a kind, with its defaults.
    #[must_use]
    pub fn of(kind: TaskChoice) -> Self {
        TaskSpec { kind, name: None, weight: 1.0, outputs: None, options: BTreeMap::new() }
    }

    /// The same with an option.
    #[must_use]
    pub fn with(mut self, option: &str, value: impl Into<Value>) -> Self {
        self.options.insert(option.to_owned(), value.into());
        self
    }

    /// Its name among several tasks.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| self.kind.get().name())
    }

    /// The shapes for this task.
    #[must_use]
    pub fn facts(&self, facts: &TaskFacts) -> TaskFacts {
        TaskFacts { num_classes: self.outputs.unwrap_or(facts.num_classes), ..*facts }
    }

    /// The task for these shapes.
    ///
    /// # Errors
    /// [`ModelError::Config`] with one line that names the task and what does not fit.
    pub fn build(&self, facts: &TaskFacts) -> Result<Arc<dyn Task>, ModelError> {
        let (kind, facts) = (self.kind.get(), self.facts(facts));
        let named = |problem: String| {
            let what =
                if self.name() == kind.name() { String::new() } else { format!(" ({kind})", kind = kind.name()) };
            ModelError::Config(format!("task {}{what}: {problem}", self.name()))
        };
        let reason = |error: ModelError| match error {
            ModelError::Config(problem) => named(problem),
            error => error,
        };
        if facts.num_classes == 0 {
            return Err(named("outputs must be at least 1, got 0".to_owned()));
        }
        let options = TaskOptions::check(&self.options, kind.options()).map_err(reason)?;
        let task = kind.build(&facts, &options).map_err(reason)?;
        for tap in task.reads() {
            if let Tap::Layer(block) = tap
                && *block >= facts.depth
            {
                return Err(named(format!("a head can read the blocks 0 to {}, got {block}", facts.depth - 1)));
            }
        }
        Ok(task)
    }
}

/// The task of a run: that of the only spec, or several together.
///
/// # Errors
/// [`ModelError::Config`] with one line that names the task and what does not fit.
pub fn build(specs: &[TaskSpec], facts: &TaskFacts) -> Result<Arc<dyn Task>, ModelError> {
    let refused = |problem: String| Err(ModelError::Config(problem));
    if let [spec] = specs {
        if (spec.weight - 1.0).abs() > 0.0 {
            return refused(format!("the weight of the only task must be 1, got {}", spec.weight));
        }
        return spec.build(facts);
    }
    let mut names = BTreeSet::new();
    let mut parts = Vec::with_capacity(specs.len());
    for spec in specs {
        let name = spec.name();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            return refused(format!("the name of a task must be of letters, digits, - and _, got {name:?}"));
        }
        if !names.insert(name) {
            return refused(format!("tasks must have different names, got {name} twice"));
        }
        if !(spec.weight.is_finite() && spec.weight > 0.0) {
            return refused(format!("task {name}: weight must be above 0, got {}", spec.weight));
        }
        parts.push(Part { name: name.to_owned(), weight: spec.weight, task: spec.build(facts)? });
    }
    match Weighted::new(parts) {
        Some(task) => Ok(Arc::new(task)),
        None => refused("there must be at least one task, got none".to_owned()),
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for TaskSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TaskSpec".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        use super::options::OptionValues;
        use crate::choice::Registry;
        let one_of: Vec<Value> = <dyn super::TaskKind as Registry>::entries()
            .iter()
            .map(|kind| {
                let mut properties = serde_json::json!({
                    "kind": { "type": "string", "const": kind.name() },
                    "name": { "type": "string", "description": "Its name among several tasks." },
                    "weight": { "type": "number", "exclusiveMinimum": 0, "default": 1.0,
                        "description": "The factor of its loss among several tasks." },
                    "outputs": { "type": "integer", "minimum": 1,
                        "description": "Classes, labels or values that the data has for it." },
                });
                for option in kind.options() {
                    let mut schema = match option.values {
                        OptionValues::OneOf(names) => serde_json::json!({ "enum": names, "default": names[0] }),
                        OptionValues::Integers(all) => serde_json::json!({ "enum": all, "default": all[0] }),
                        OptionValues::Numbers => serde_json::json!({ "type": "array", "items": { "type": "number" } }),
                    };
                    schema["description"] = format!("{}.", option.summary).into();
                    properties[option.name] = schema;
                }
                serde_json::json!({
                    "type": "object",
                    "description": format!("{}.", kind.summary()),
                    "properties": properties,
                    "required": ["kind"],
                    "additionalProperties": false,
                })
            })
            .collect();
        schemars::json_schema!({ "oneOf": one_of })
    }
}

#[cfg(all(test, feature = "schema"))]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_the_options_of_each_kind_and_no_others() {
        let schema = serde_json::to_value(schemars::schema_for!(TaskSpec)).unwrap();
        for kind in super::super::TASKS {
            let of_kind = schema["oneOf"].as_array().unwrap().iter();
            let of_kind = of_kind.filter(|one| one["properties"]["kind"]["const"] == kind.name()).collect::<Vec<_>>();
            assert_eq!(of_kind.len(), 1, "{}", kind.name());
            assert_eq!(of_kind[0]["additionalProperties"], false);
            let properties = of_kind[0]["properties"].as_object().unwrap();
            assert!(kind.options().iter().all(|option| properties.contains_key(option.name)));
            assert_eq!(properties.len(), 4 + kind.options().len());
        }
    }
}
