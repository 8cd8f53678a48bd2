//! A program's own task beside the shipped ones. The list is one for the process, so this is a test program of its own.

use std::sync::Arc;

use mlomae_model::choice::{Named, Registry};
use mlomae_model::tasks::class::Classification;
use mlomae_model::tasks::{OptionValues, Targets, Task, TaskFacts, TaskKind, TaskOption, TaskOptions, TaskRegistry};
use mlomae_model::{Model, ModelConfig, ModelError};

struct Twice(&'static str);

static OPTIONS: [TaskOption; 1] =
    [TaskOption { name: "factor", summary: "Classes for each of the data's", values: OptionValues::Integers(&[2, 3]) }];

impl Named for Twice {
    fn name(&self) -> &'static str {
        self.0
    }
    fn summary(&self) -> &'static str {
        "Classification with more classes"
    }
}

impl TaskKind for Twice {
    fn options(&self) -> &'static [TaskOption] {
        &OPTIONS
    }
    fn build(&self, facts: &TaskFacts, options: &TaskOptions) -> Result<Arc<dyn Task>, ModelError> {
        Ok(Arc::new(Classification::new(facts.dim, options.integer("factor") * facts.num_classes)))
    }
    fn example(&self, facts: &TaskFacts, num_images: usize, _: u64) -> Targets {
        Targets::Classes((0..num_images).map(|i| (i % facts.num_classes) as i32).collect())
    }
}

#[test]
fn a_task_of_a_programs_own_is_configured_like_any_other() {
    let error = TaskRegistry::shipped().with(Twice("class")).install().unwrap_err().to_string();
    assert!(error.contains("tasks must have different names, got class twice"), "{error}");
    TaskRegistry::shipped().with(Twice("twice")).with(Twice("again")).install().unwrap();
    let names: Vec<&str> = <dyn TaskKind as Registry>::entries().iter().map(|kind| kind.name()).collect();
    assert_eq!(names[0], "class");
    assert_eq!(names[names.len() - 2..], ["twice", "again"]);
    let tasks = serde_json::from_str(r#"[{"kind": "twice", "factor": 3}]"#).unwrap();
    let config = ModelConfig { tasks, ..ModelConfig::default() };
    let model = Model::new(&config).unwrap();
    assert_eq!(model.task.layout().get("head.bias").unwrap().shape, [30]);
    let read: ModelConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(read, config);
    let tasks = serde_json::from_str(r#"[{"kind": "twice", "factor": 4}]"#).unwrap();
    let error = Model::new(&ModelConfig { tasks, ..config }).unwrap_err().to_string();
    assert!(error.ends_with("task twice: factor must be one of 2, 3, got 4"), "{error}");
    let error = TaskRegistry::shipped().install().unwrap_err().to_string();
    assert!(error.contains("before the list of tasks is first read"), "{error}");
}
