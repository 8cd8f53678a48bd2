//! Metrics by hand where a library has no word on it; `tests/python/metrics.py` compares the rest with libraries.

use super::*;
use crate::tasks::{BoxTarget, Detection, UNKNOWN_CLASS};

fn named(all: &[Measured]) -> Vec<(&str, f64)> {
    all.iter().map(|measured| (&*measured.name, measured.value)).collect()
}

fn scores(num: usize, values: &[f32]) -> Predictions {
    Predictions::Scores { num, values: values.to_vec() }
}

/// Metrics, and what they are given in two calls.
type Case = (Box<dyn Metrics>, [(Predictions, Targets); 2]);

/// One of each kind.
fn one_of_each() -> Vec<Case> {
    let boxes = |left: f32| {
        let edges = [left, 0.0, left + 10.0, 10.0];
        let target = BoxTarget { edges, class: 0, ignored: false, area: 100.0 };
        Targets::Boxes { starts: [0, 1].into(), boxes: [target].into() }
    };
    let found = |left: f32, score: f32| {
        Predictions::Boxes(vec![vec![Detection { edges: [left, 0.0, left + 10.0, 10.0], class: 0, score }]])
    };
    let values = |values: &[f32]| Predictions::Values { num: 1, values: values.to_vec() };
    let maps = |classes: &[u16]| Predictions::Maps { side: 1, classes: classes.to_vec() };
    vec![
        (
            Box::new(Accuracy::new(2)),
            [
                (scores(2, &[1.0, 0.0, 0.0, 1.0]), Targets::Classes([0, 0].into())),
                (scores(2, &[0.5, 0.5]), Targets::Classes([-1].into())),
            ],
        ),
        (
            Box::new(MeanAveragePrecision::new(1)),
            [
                (scores(1, &[0.9, 0.8]), Targets::Labels { num: 1, values: [0, 1].into() }),
                (scores(1, &[0.7]), Targets::Labels { num: 1, values: [1].into() }),
            ],
        ),
        (
            Box::new(RegressionErrors::new(1)),
            [
                (values(&[1.0, 2.0]), Targets::Values { num: 1, values: [1.5, 2.0].into() }),
                (values(&[0.0]), Targets::Values { num: 1, values: [f32::NAN].into() }),
            ],
        ),
        (
            Box::new(MeanIou::new(3)),
            [
                (maps(&[0, 1]), Targets::Maps { side: 1, classes: [0, 0].into() }),
                (maps(&[2]), Targets::Maps { side: 1, classes: [UNKNOWN_CLASS].into() }),
            ],
        ),
        (Box::new(CocoAveragePrecision::new(1)), [(found(0.0, 0.9), boxes(0.0)), (found(8.0, 0.95), boxes(0.0))]),
    ]
}

fn filled() -> Vec<Box<dyn Metrics>> {
    one_of_each()
        .into_iter()
        .map(|(mut metrics, calls)| {
            calls.iter().for_each(|(predictions, targets)| metrics.add(predictions, targets).unwrap());
            metrics
        })
        .collect()
}

#[test]
fn metrics_are_those_of_hand() {
    let all: Vec<Vec<Measured>> = filled().iter().map(|metrics| metrics.finish()).collect();
    assert_eq!(named(&all[0]), [("accuracy", 0.5)]);
    // The positives are second and third: precision 1/2 and 2/3.
    assert_eq!(named(&all[1]), [("mean_average_precision", 0.5 * 0.5 + 0.5 * (2.0 / 3.0))]);
    assert_eq!(named(&all[2]), [("r2", 1.0 - 0.25 / 0.125), ("mae", 0.25), ("rmse", 0.125f64.sqrt())]);
    // Class 0: 1 of 2 pixels; class 1: 0 of 1; class 2 is nowhere but at the unknown pixel.
    assert_eq!(named(&all[3]), [("mean_iou", 0.25), ("image_mean_iou", 1.0 / 3.0), ("pixel_accuracy", 0.5)]);
    // The surer detection is wrong: precision 1/2 at recalls up to 1/2, 51 of 101.
    let ap = 0.5 * 51.0 / 101.0;
    let of_detection = named(&all[4]);
    assert_eq!(of_detection.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["ap", "ap50", "ap75", "ap_small"]);
    assert!(of_detection.iter().all(|(_, value)| (value - ap).abs() < 1e-12), "{of_detection:?}");
}

#[test]
fn of_no_images_nothing_is_known() {
    for (mut metrics, calls) in one_of_each() {
        assert!(metrics.finish().is_empty() && intervals(&*metrics, 1, 10, 0.9).is_empty());
        assert_eq!(metrics.num_images(), 0);
        metrics.add(&calls[0].0, &calls[0].1).unwrap();
        assert!(!metrics.finish().is_empty());
        assert!(metrics.resampled(&vec![0; metrics.num_images()]).is_empty());
    }
}

#[test]
fn copies_of_images_count_as_often_as_they_are_drawn() {
    for ((mut added, calls), resampled) in one_of_each().into_iter().zip(filled()) {
        let [first, second] = &calls;
        let num_first = first.1.len();
        let mut times = vec![1; num_first + second.1.len()];
        times[num_first..].fill(3);
        for (predictions, targets) in [first, second, second, second] {
            added.add(predictions, targets).unwrap();
        }
        let pairs = added.finish().into_iter().zip(resampled.resampled(&times));
        for (a, b) in pairs {
            assert!(a.name == b.name && (a.value - b.value).abs() < 1e-12, "{a:?} {b:?}");
        }
        // A metric is as well asked before it is complete.
        assert!(!resampled.finish().is_empty());
    }
}

#[test]
fn equally_sure_predictions_have_one_rule() {
    let mut accuracy = Accuracy::new(7);
    let targets = Targets::Classes([0, 1, 5].into());
    accuracy.add(&scores(7, &[0.5; 21]), &targets).unwrap();
    assert_eq!(named(&accuracy.finish()), [("accuracy", 1.0 / 3.0), ("top5_accuracy", 2.0 / 3.0)]);
    // One score for all: found together, at the precision of all.
    let mut labels = MeanAveragePrecision::new(1);
    labels.add(&scores(1, &[0.0, -0.0, 0.0]), &Targets::Labels { num: 1, values: [0, 1, 0].into() }).unwrap();
    assert_eq!(named(&labels.finish()), [("mean_average_precision", 1.0 / 3.0)]);
}

#[test]
fn what_cannot_be_judged_is_refused_and_changes_nothing() {
    let nan = f32::NAN;
    let classes = Targets::Classes([0].into());
    let labels = |value: i8| Targets::Labels { num: 1, values: [value].into() };
    let values = |value: f32| Targets::Values { num: 1, values: [value].into() };
    let found = |score: f32| Predictions::Boxes(vec![vec![Detection { edges: [0.0, 0.0, 1.0, 1.0], class: 1, score }]]);
    let none = Targets::Boxes { starts: [0, 0].into(), boxes: [].into() };
    let map = |class: u16| Predictions::Maps { side: 1, classes: vec![class] };
    let maps = |class: u16| Targets::Maps { side: 1, classes: [class].into() };
    let cases: Vec<(Box<dyn Metrics>, Predictions, Targets, &str)> = vec![
        (Box::new(Accuracy::new(2)), scores(2, &[0.0, nan]), classes.clone(), "predictions must be finite, got NaN"),
        (Box::new(Accuracy::new(2)), scores(3, &[0.0; 3]), classes.clone(), "scores of 2 classes, got 3"),
        (Box::new(Accuracy::new(2)), scores(2, &[0.0; 4]), classes.clone(), "for its 1 images, got 2"),
        (Box::new(Accuracy::new(1)), scores(1, &[0.0]), Targets::Classes([1].into()), "must be in 0..1, got 1"),
        (Box::new(Accuracy::new(2)), map(0), classes.clone(), "scores with classes, got class maps and classes"),
        (Box::new(MeanAveragePrecision::new(1)), scores(1, &[0.0]), labels(2), "0, 1 or -1 (unknown), got 2"),
        (Box::new(MeanAveragePrecision::new(2)), scores(2, &[0.0; 2]), labels(1), "needs 2 properties, got 1"),
        (
            Box::new(RegressionErrors::new(1)),
            Predictions::Values { num: 1, values: vec![0.0] },
            values(f32::INFINITY),
            "finite or NaN (unknown), got inf",
        ),
        (Box::new(MeanIou::new(2)), map(UNKNOWN_CLASS), maps(0), "must be in 0..2, got 65535"),
        (Box::new(MeanIou::new(2)), map(0), maps(2), "must be in 0..2, got 2"),
        (Box::new(CocoAveragePrecision::new(1)), found(0.5), none.clone(), "must be in 0..1, got 1"),
        (Box::new(CocoAveragePrecision::new(2)), found(nan), none, "must be finite, got NaN"),
    ];
    for (mut metrics, predictions, targets, message) in cases {
        let error = metrics.add(&predictions, &targets).unwrap_err().to_string();
        assert!(error.ends_with(message), "{error:?} does not end with {message:?}");
        assert_eq!(metrics.num_images(), 0);
    }
}

#[test]
fn metrics_of_several_tasks_have_their_names() {
    let mut pairs = one_of_each();
    let (iou, [(maps, map_targets), _]) = pairs.remove(3);
    let (accuracy, [(scores, class_targets), _]) = pairs.remove(0);
    let mut several = Several::new(vec![("kind".to_owned(), accuracy), ("pixels".to_owned(), iou)]);
    let predictions = Predictions::Several(vec![scores, maps.clone()]);
    let targets = Targets::Several([class_targets, map_targets.clone()].into());
    several.add(&predictions, &targets).unwrap();
    assert_eq!(several.num_images(), 2);
    let names: Vec<String> = several.finish().into_iter().map(|measured| measured.name.into_owned()).collect();
    assert_eq!(names, ["kind.accuracy", "pixels.mean_iou", "pixels.image_mean_iou", "pixels.pixel_accuracy"]);
    assert_eq!(several.per_image()[0].name, "kind.accuracy");
    assert_eq!(intervals(&several, 1, 50, 0.9).len(), 4);
    assert!(several.add(&maps, &map_targets).unwrap_err().to_string().contains("several tasks"));
    let fewer = Predictions::Several(vec![maps]);
    assert!(several.add(&fewer, &targets).unwrap_err().to_string().ends_with("got 1 and 2"));
}
