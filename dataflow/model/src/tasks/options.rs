//! The options of a task: which there are, what they allow, and what a configuration gives.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::ModelError;

/// What an option may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionValues {
    /// One of these names; the first is the default.
    OneOf(&'static [&'static str]),
    /// One of these numbers; the first is the default.
    Integers(&'static [u64]),
    /// A list of finite numbers; without one, the task's own.
    Numbers,
}

/// An option of a kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskOption {
    /// Its key.
    pub name: &'static str,
    /// What it is, in one sentence without a full stop.
    pub summary: &'static str,
    /// What it may be.
    pub values: OptionValues,
}

/// The tap that a head with one token an image reads.
pub const TAP: TaskOption = TaskOption {
    name: "tap",
    summary: "What the head reads: the CLS token, or the mean of the patch tokens before the final norm",
    values: OptionValues::OneOf(&["cls", "mean"]),
};

/// The options that are given for a task, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskOptions {
    values: BTreeMap<String, Value>,
    allowed: &'static [TaskOption],
}

fn listed<T: std::fmt::Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl TaskOptions {
    /// Checks options against those that a kind takes.
    ///
    /// # Errors
    /// [`ModelError::Config`] with the first key that there is none of, or whose value is not allowed.
    pub fn check(values: &BTreeMap<String, Value>, allowed: &'static [TaskOption]) -> Result<Self, ModelError> {
        for (key, value) in values {
            let Some(option) = allowed.iter().find(|option| option.name == key) else {
                let names: Vec<&str> = allowed.iter().map(|option| option.name).collect();
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(ModelError::Config(format!("unknown option {key} (its options: {names})")));
            };
            let refused = |allowed: String| ModelError::Config(format!("{key} must be {allowed}, got {value}"));
            match option.values {
                OptionValues::OneOf(names) if !value.as_str().is_some_and(|name| names.contains(&name)) => {
                    return Err(refused(format!("one of {}", listed(names))));
                }
                OptionValues::Integers(all) if !value.as_u64().is_some_and(|number| all.contains(&number)) => {
                    return Err(refused(format!("one of {}", listed(all))));
                }
                OptionValues::Numbers if numbers(value).is_none() => {
                    return Err(refused("a list of finite numbers".to_owned()));
                }
                _ => {}
            }
        }
        Ok(TaskOptions { values: values.clone(), allowed })
    }

    /// The values that the option called `name` may have; of an option that there is none of, no numbers.
    fn values_of(&self, name: &str) -> OptionValues {
        self.allowed.iter().find(|option| option.name == name).map_or(OptionValues::Numbers, |option| option.values)
    }

    /// The name that is given for [`OptionValues::OneOf`], or its default; empty for another option.
    #[must_use]
    pub fn name(&self, option: &str) -> &'static str {
        let OptionValues::OneOf(names) = self.values_of(option) else { return "" };
        let given = self.values.get(option).and_then(Value::as_str);
        let given = given.and_then(|given| names.iter().find(|name| **name == given));
        given.or(names.first()).copied().unwrap_or_default()
    }

    /// The number that is given for [`OptionValues::Integers`], or its default; 0 for another option.
    #[must_use]
    pub fn integer(&self, option: &str) -> usize {
        let OptionValues::Integers(all) = self.values_of(option) else { return 0 };
        let given = self.values.get(option).and_then(Value::as_u64).or(all.first().copied());
        given.and_then(|number| usize::try_from(number).ok()).unwrap_or_default()
    }

    /// The numbers that are given for [`OptionValues::Numbers`], which must be `num`; without them, `default` for each.
    ///
    /// # Errors
    /// [`ModelError::Config`] when they are more or fewer.
    pub fn numbers(&self, option: &str, num: usize, default: f64) -> Result<Vec<f64>, ModelError> {
        let given = self.values.get(option).and_then(numbers).unwrap_or_else(|| vec![default; num]);
        if given.len() != num {
            return Err(ModelError::Config(format!("{option} must have {num} numbers, got {}", given.len())));
        }
        Ok(given)
    }

    /// What [`TAP`] says.
    #[must_use]
    pub fn tap(&self) -> crate::tap::Tap {
        if self.name(TAP.name) == "mean" { crate::tap::Tap::Mean } else { crate::tap::Tap::Cls }
    }
}

/// A list of finite numbers.
fn numbers(value: &Value) -> Option<Vec<f64>> {
    let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
    value.as_array()?.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &[TaskOption] = &[
        TaskOption { name: "head", summary: "The head", values: OptionValues::OneOf(&["patch", "linear"]) },
        TaskOption { name: "upsample", summary: "Finer", values: OptionValues::Integers(&[1, 2]) },
        TaskOption { name: "mean", summary: "Means", values: OptionValues::Numbers },
    ];

    fn given(text: &str) -> Result<TaskOptions, String> {
        let values = serde_json::from_str(text).unwrap();
        TaskOptions::check(&values, ALLOWED).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_those_given_or_the_first() {
        let options = given("{}").unwrap();
        assert_eq!((options.name("head"), options.integer("upsample")), ("patch", 1));
        assert_eq!(options.numbers("mean", 2, 0.5).unwrap(), [0.5; 2]);
        let options = given(r#"{"head": "linear", "upsample": 2, "mean": [1, 2.5]}"#).unwrap();
        assert_eq!((options.name("head"), options.integer("upsample")), ("linear", 2));
        assert_eq!(options.numbers("mean", 2, 0.0).unwrap(), [1.0, 2.5]);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_one_line_that_names_what_does() {
        for (text, line) in [
            (r#"{"hed": "linear"}"#, "unknown option hed (its options: head, upsample, mean)"),
            (r#"{"head": "up"}"#, r#"head must be one of patch, linear, got "up""#),
            (r#"{"head": 1}"#, "head must be one of patch, linear, got 1"),
            (r#"{"upsample": 3}"#, "upsample must be one of 1, 2, got 3"),
            (r#"{"upsample": -1}"#, "upsample must be one of 1, 2, got -1"),
            (r#"{"mean": [1, "a"]}"#, r#"mean must be a list of finite numbers, got [1,"a"]"#),
            (r#"{"mean": 1}"#, "mean must be a list of finite numbers, got 1"),
        ] {
            assert_eq!(given(text).unwrap_err(), format!("model configuration: {line}"), "{text}");
        }
        let error = given(r#"{"mean": [1]}"#).unwrap().numbers("mean", 2, 0.0).unwrap_err();
        assert!(error.to_string().ends_with("mean must have 2 numbers, got 1"), "{error}");
    }
}
