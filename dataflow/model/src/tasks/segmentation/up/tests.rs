//! The head `up` beside PyTorch (`tests/fixtures/heads/make.py`), and its derivatives beside differences.

use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::level::Level;
use crate::tasks::head_tests::{
    Point, cases, check_additive, check_derivatives, check_gradients, check_refusals, check_slopes, numbers, point,
    size,
};
use crate::tasks::segmentation::Segmentation;
use crate::tasks::{At, Predictions, Targets, Task, TaskChoice, TaskSpec, UNKNOWN_CLASS, Want};

fn facts(dim: usize, grid: usize, patch: usize, num_classes: usize) -> TaskFacts {
    TaskFacts { dim, depth: 1, grid, patch, num_classes }
}

fn small(facts: TaskFacts, channels: usize, groups: usize) -> Segmentation {
    let mut layout = Layout::new(Level::Finetune);
    let head = Up::with_channels(&mut layout, &facts, channels, groups).unwrap();
    Segmentation { facts, head: Box::new(head), layout: Arc::new(layout) }
}

fn shipped(facts: &TaskFacts) -> Result<Arc<dyn Task>, ModelError> {
    TaskSpec::of(TaskChoice::by_name("segmentation").unwrap()).with("head", "up").build(facts)
}

fn all() -> Vec<(Value, Segmentation, Point)> {
    let text = include_str!("../../../../../../tests/fixtures/heads/up.json");
    let of = |case: Value| {
        let [dim, grid, patch, num_classes, channels, groups] =
            ["dim", "grid", "patch", "num_classes", "channels", "groups"].map(|key| size(&case, key));
        let task = small(facts(dim, grid, patch, num_classes), channels, groups);
        let known = |class: f64| if class < 0.0 { UNKNOWN_CLASS } else { class as u16 };
        let classes = numbers(&case["classes"]).into_iter().map(known).collect();
        let point = point(&case, Targets::Maps { side: grid * patch, classes });
        (case, task, point)
    };
    cases(text).into_iter().map(of).collect()
}

#[test]
fn losses_gradients_and_classes_are_those_of_torch() {
    for (case, task, point) in all() {
        let share = point.evaluate(&task, Want::BOTH);
        assert!((share.loss - case["loss"].as_f64().unwrap()).abs() < 1e-12);
        assert!((share.figures[0] - case["accuracy"].as_f64().unwrap()).abs() < 1e-12);
        check_gradients(&share, &case);
        let Predictions::Maps { side, classes } = task.predict(&point.c, &[point.tokens()]).unwrap() else { panic!() };
        assert_eq!(side, size(&case, "grid") * size(&case, "patch"));
        assert_eq!(classes.into_iter().map(f64::from).collect::<Vec<_>>(), numbers(&case["found"]));
    }
}

#[test]
fn derivatives_are_those_of_differences() {
    for (_, task, point) in all() {
        check_derivatives(&task, &point);
    }
}

#[test]
fn images_do_not_touch_each_other() {
    for (_, task, point) in all() {
        check_additive(&task, &point);
    }
}

#[test]
fn a_large_image_has_the_gradient_of_its_differences() {
    // The last convolution is of 36 × 36 pixels: two blocks of windows, the second shorter.
    let task = small(facts(4, 9, 8, 3), 4, 2);
    let c = task.init(5).iter().map(|v| f64::from(*v)).collect();
    let z = (0..324).map(|i| ((i * 31 % 97) as f32 - 48.0) / 32.0).collect();
    let classes = (0..5184u32).map(|i| if i % 11 == 0 { UNKNOWN_CLASS } else { (i * 7 % 3) as u16 }).collect();
    check_slopes(&task, &Point { c, z, per_image: 81, dim: 4, y: Targets::Maps { side: 72, classes } });
}

#[test]
fn what_the_head_does_not_know_is_refused() {
    let (_, task, mut point) = all().remove(0);
    check_refusals(&task, &point);
    let mut refused = |y: Targets| {
        point.y = y;
        let at = At { c: &point.c, z: &[point.tokens()], y: &point.y, totals: &[[1.0; 2]], noise: None };
        task.evaluate(&at, Want::BOTH).unwrap_err().to_string()
    };
    let message = refused(Targets::Maps { side: 12, classes: vec![3; 288].into() });
    assert_eq!(message, "downstream task: the class of a pixel must be in 0..3, got 3");
    let message = refused(Targets::Maps { side: 4, classes: vec![0; 32].into() });
    assert_eq!(message, "downstream task: class maps must have sides of 12 pixels, got 4");
    let message = shipped(&facts(4, 2, 14, 3)).unwrap_err().to_string();
    assert!(
        message.ends_with("task segmentation: head up needs a patch size that is a power of two, got 14"),
        "{message}"
    );
}

#[test]
fn a_batch_without_classes_has_no_loss() {
    let (_, task, mut point) = all().remove(0);
    point.y = Targets::Maps { side: 12, classes: vec![UNKNOWN_CLASS; 288].into() };
    let share = point.evaluate(&task, Want::BOTH);
    assert_eq!(share.loss, 0.0);
    assert!(share.dc.iter().chain(&share.dz[0]).all(|v| *v == 0.0));
}

#[test]
fn the_shipped_head_has_its_names_and_shapes() {
    let task = shipped(&facts(32, 2, 4, 7)).unwrap();
    let names: Vec<String> = task.layout().entries.iter().map(|entry| entry.name.clone()).collect();
    let stage = ["conv.weight", "norm.weight", "norm.bias"];
    let stages = [0, 1].iter().flat_map(|number| stage.map(|name| format!("stages.{number}.{name}")));
    let mut expected = ["norm.weight", "norm.bias", "fc.weight", "fc.bias"].map(String::from).to_vec();
    expected.extend(stages);
    expected.extend(["head.weight", "head.bias"].map(String::from));
    assert_eq!(names, expected);
    assert_eq!(task.layout().get("stages.1.conv.weight").unwrap().shape, [64, 64, 3, 3]);
    assert!(task.init(1).iter().all(|v| v.is_finite()));
}
