//! The head for detection beside PyTorch (`tests/fixtures/heads/make.py`), and its derivatives beside differences.

use serde_json::Value;

use super::*;
use crate::tasks::head_tests::{
    Point, cases, check_additive, check_derivatives, check_gradients, check_refusals, numbers, point, size,
};

/// The boxes of a case, of all its images.
fn boxes(case: &Value) -> Targets {
    let (mut starts, mut boxes) = (vec![0], Vec::new());
    for image in case["boxes"].as_array().unwrap() {
        boxes.extend(image.as_array().unwrap().iter().map(|object| BoxTarget {
            edges: std::array::from_fn(|side| object["edges"][side].as_f64().unwrap() as f32),
            class: size(object, "class") as u32,
            ignored: object["ignored"].as_bool().unwrap(),
            area: 0.0,
        }));
        starts.push(boxes.len());
    }
    Targets::Boxes { starts: starts.into(), boxes: boxes.into() }
}

fn all() -> Vec<(Value, ObjectDetection, Point)> {
    let text = include_str!("../../../../../tests/fixtures/heads/detection.json");
    let of = |case: Value| {
        let [dim, grid, patch, num_classes, upsample, hidden] =
            ["dim", "grid", "patch", "num_classes", "upsample", "hidden"].map(|key| size(&case, key));
        let task = ObjectDetection::with_hidden(DetectionShape { dim, grid, patch, num_classes, upsample }, hidden);
        let point = point(&case, boxes(&case));
        (case, task, point)
    };
    cases(text).into_iter().map(of).collect()
}

#[test]
fn losses_and_gradients_are_those_of_torchvision() {
    for (case, task, point) in all() {
        let total = task.total(&point.y);
        let expected = numbers(&case["total"]);
        let expected = if expected[0] > 0.0 { expected } else { vec![1.0; 2] };
        assert!(total[0] == expected[0] && (total[1] - expected[1]).abs() < 1e-12, "{total:?}, not {expected:?}");
        let share = point.evaluate(&task, Want::BOTH);
        for (found, expected) in share.figures.iter().zip(numbers(&case["losses"])) {
            assert!((found - expected).abs() < 1e-11 * expected.max(1.0), "{found}, not {expected}");
        }
        assert!((share.loss - share.figures.iter().sum::<f64>()).abs() < 1e-15 * share.loss);
        check_gradients(&share, &case);
    }
}

#[test]
fn detections_are_those_of_torchvision() {
    for (case, task, point) in all() {
        let Predictions::Boxes(images) = task.predict(&point.c, &[point.tokens()]).unwrap() else { panic!() };
        let expected = case["detections"].as_array().unwrap();
        assert_eq!(images.len(), expected.len());
        for (found, expected) in images.iter().zip(expected) {
            let expected = expected.as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.class as usize, size(expected, "class"));
                assert!((f64::from(found.score) - expected["score"].as_f64().unwrap()).abs() < 1e-6);
                for (edge, expected) in found.edges.iter().zip(numbers(&expected["edges"])) {
                    assert!((f64::from(*edge) - expected).abs() < 1e-5);
                }
            }
        }
    }
}

/// The point lies no nearer to a kink of GIoU than differences reach, or they would not be those of a derivative.
fn is_far_from_kinks(task: &ObjectDetection, point: &Point) -> bool {
    let per_image = point.per_image * point.dim;
    (0..point.y.len()).all(|image| {
        let forward = task.forward(&point.c, &point.z[image * per_image..(image + 1) * per_image], None);
        let outputs = task.outputs(&forward.outputs);
        assign(&task.locations(), point.y.boxes(image).unwrap()).positives.iter().all(|positive| {
            (0..4).all(|side| {
                let found = softplus(outputs.distance(positive.location, side));
                (found - positive.distances[side]).abs() > 1e-2
            })
        })
    })
}

#[test]
fn derivatives_are_those_of_differences() {
    for (case, task, point) in all() {
        // Without an object there is no gradient for most outputs.
        if numbers(&case["total"])[0] > 0.0 {
            assert!(is_far_from_kinks(&task, &point), "choose another seed in make.py");
            check_derivatives(&task, &point);
        }
    }
}

#[test]
fn images_do_not_touch_each_other() {
    for (_, task, point) in all() {
        check_additive(&task, &point);
    }
}

#[test]
fn what_the_head_does_not_know_is_refused() {
    let (_, task, mut point) = all().remove(0);
    check_refusals(&task, &point);
    let object = BoxTarget { edges: [0.0, 0.0, 8.0, 8.0], class: 3, ignored: true, area: 64.0 };
    point.y = Targets::Boxes { starts: [0, 1, 1, 1].into(), boxes: [object].into() };
    let at = At { c: &point.c, z: &[point.tokens()], y: &point.y, totals: &[[1.0; 2]], noise: None };
    let message = task.evaluate(&at, Want::BOTH).unwrap_err().to_string();
    assert_eq!(message, "downstream task: a class must be in 0..3, got 3");
}

#[test]
fn every_class_begins_with_a_probability_of_a_hundredth() {
    let shape = DetectionShape { dim: 16, grid: 4, patch: 8, num_classes: 5, upsample: 2 };
    let task = ObjectDetection::new(shape);
    let c: Vec<f64> = task.init(3).iter().map(|v| f64::from(*v)).collect();
    let z: Vec<f32> = (0..16 * 16).map(|i| ((i * 37 % 64) as f32 - 32.0) / 16.0).collect();
    let forward = task.forward(&c, &z, None);
    let outputs = task.outputs(&forward.outputs);
    for location in 0..task.locations().num() {
        for class in 0..5 {
            assert!((sigmoid(outputs.class(location, class)) / 0.01 - 1.0).abs() < 0.3);
        }
        assert!((sigmoid(outputs.centerness(location)) - 0.5).abs() < 0.1);
    }
    let names: Vec<&str> = task.layout().entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["norm.weight", "norm.bias", "fc.weight", "fc.bias", "head.weight", "head.bias"]);
    assert_eq!(task.layout().get("head.weight").unwrap().shape, [40, HIDDEN]);
}

/// Plain gradient descent learns to find the one object of each image.
#[test]
fn a_head_learns_to_find_objects() {
    let shape = DetectionShape { dim: 8, grid: 4, patch: 8, num_classes: 2, upsample: 1 };
    let task = ObjectDetection::with_hidden(shape, 24);
    let mut c: Vec<f64> = task.init(1).iter().map(|v| f64::from(*v)).collect();
    // Tokens say where they are, and what is there.
    let (mut z, mut targets) = (Vec::new(), Vec::new());
    for image in 0..6usize {
        let (column, row, class) = (image % 3, image / 3 + 1, image % 2);
        let [left, top] = [column, row].map(|place| place as f32 * 8.0);
        let edges = [left, top, left + 16.0, top + 16.0];
        targets.push(BoxTarget { edges, class: class as u32, ignored: false, area: 256.0 });
        for patch in 0..16usize {
            let [x, y] = [patch % 4, patch / 4];
            let is_there = (column..column + 2).contains(&x) && (row..row + 2).contains(&y);
            let token = [x == column, x == column + 1, y == row, is_there, is_there && class == 1, x == 3];
            z.extend(token.map(|v| f32::from(u8::from(v))));
            z.extend([0.5, -0.5]);
        }
    }
    let y = Targets::Boxes { starts: (0..=6).collect(), boxes: targets.clone().into() };
    let z = [Tokens { per_image: 16, dim: 8, values: &z }];
    let total = task.total(&y);
    assert_eq!(total[0], 24.0);
    let mut losses = Vec::new();
    for _ in 0..600 {
        let at = At { c: &c, z: &z, y: &y, totals: &[total], noise: None };
        let share = task.evaluate(&at, Want { dc: true, dz: false }).unwrap();
        losses.push(share.loss);
        c.iter_mut().zip(&share.dc).for_each(|(c, d)| *c -= 0.2 * d);
    }
    assert!(losses[599] < 0.4 * losses[0], "{} from {}", losses[599], losses[0]);
    let Predictions::Boxes(images) = task.predict(&c, &z).unwrap() else { panic!() };
    for (found, target) in images.iter().zip(&targets) {
        let first = found.first().expect("an object is found");
        assert_eq!(first.class, target.class);
        assert!(first.edges.iter().zip(target.edges).all(|(a, b)| (a - b).abs() < 2.0), "{first:?}, not {target:?}");
    }
}
