//! A program's own task beside the shipped ones. The list is one for the process, so this is a test program of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlomae_model::choice::{Named, Registry};
use mlomae_model::layout::SharedLayout;
use mlomae_model::tap::Tap;
use mlomae_model::tasks::class::Classification;
use mlomae_model::tasks::metrics::Metrics;
use mlomae_model::tasks::{
    At, Figure, Noise, OptionValues, Predictions, Share, Targets, Task, TaskFacts, TaskKind, TaskOption, TaskOptions,
    TaskRegistry, Tokens, Total, Want,
};
use mlomae_model::{Buffer, Model, ModelConfig, ModelError};

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

/// A task that answers by chance.
struct Chance;

/// [`Classification`] with dropout of its own.
#[derive(Debug)]
struct Drawn(Classification, AtomicUsize);

impl Named for Chance {
    fn name(&self) -> &'static str {
        "chance"
    }
    fn summary(&self) -> &'static str {
        "Dropout that is redrawn at each call"
    }
}

impl TaskKind for Chance {
    fn build(&self, facts: &TaskFacts, _: &TaskOptions) -> Result<Arc<dyn Task>, ModelError> {
        Ok(Arc::new(Drawn(Classification::new(facts.dim, facts.num_classes), AtomicUsize::new(0))))
    }
    fn example(&self, facts: &TaskFacts, num_images: usize, _: u64) -> Targets {
        Targets::Classes((0..num_images).map(|i| (i % facts.num_classes) as i32).collect())
    }
}

impl Task for Drawn {
    fn reads(&self) -> &[Tap] {
        self.0.reads()
    }
    fn layout(&self) -> &SharedLayout {
        self.0.layout()
    }
    fn init(&self, seed: u64) -> Buffer {
        self.0.init(seed)
    }
    fn loss_unit(&self) -> &'static str {
        self.0.loss_unit()
    }
    fn figures(&self) -> &[Figure] {
        self.0.figures()
    }
    fn total(&self, y: &Targets) -> Total {
        self.0.total(y)
    }
    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let pass = self.1.fetch_add(1, Ordering::Relaxed) as u64;
        let noise = Some(Noise { rate: 0.2, seed: 1, outer: 0, pass, first_image: 0 });
        self.0.evaluate(&At { noise, ..*at }, want)
    }
    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        self.0.predict(c, z)
    }
    fn metrics(&self) -> Box<dyn Metrics> {
        self.0.metrics()
    }
}

#[test]
fn a_task_of_a_programs_own_is_configured_like_any_other() {
    let error = TaskRegistry::shipped().with(Twice("class")).install().unwrap_err().to_string();
    assert!(error.contains("tasks must have different names, got class twice"), "{error}");
    let error = TaskRegistry::shipped().with(Chance).install().unwrap_err().to_string();
    assert!(error.contains("task chance: its loss is another function at each call"), "{error}");
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
