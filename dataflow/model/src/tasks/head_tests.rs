//! Checks of heads, for the tests of tasks: derivatives beside differences of high order, and that images do not touch
//! each other.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::{At, Share, Targets, Task, Tokens, Want};
use crate::rng::{Purpose, keyed, uniform};

/// A point at which a task is evaluated, of whole batches.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) c: Vec<f64>,
    /// `[images, per_image, dim]`, multiples of 2⁻⁸ below 16, so that steps of z are exact.
    pub(crate) z: Vec<f32>,
    pub(crate) per_image: usize,
    pub(crate) dim: usize,
    pub(crate) y: Targets,
}

/// Step of differences.
const STEP: f64 = 1.0 / 4096.0;
/// Weights of f(x + k·STEP) − f(x − k·STEP), k = 1, 2, 3, in a derivative of sixth order.
const WEIGHTS: [f64; 3] = [0.75, -0.15, 1.0 / 60.0];

impl Point {
    pub(crate) fn tokens(&self) -> Tokens<'_> {
        Tokens { per_image: self.per_image, dim: self.dim, values: &self.z }
    }

    /// The images `range`, divided by the totals of all.
    fn part(&self, task: &dyn Task, range: Range<usize>, want: Want) -> Share {
        let totals = [task.total(&self.y)];
        let (z, y) = ([self.tokens().slice(range.clone())], self.y.slice(range));
        task.evaluate(&At { c: &self.c, z: &z, y: &y, totals: &totals, noise: None }, want).unwrap()
    }

    pub(crate) fn evaluate(&self, task: &dyn Task, want: Want) -> Share {
        self.part(task, 0..self.y.len(), want)
    }

    fn moved(&self, over_c: (f64, &[f64]), over_z: (f64, &[f64])) -> Self {
        let mut moved = self.clone();
        moved.c.iter_mut().zip(over_c.1).for_each(|(c, d)| *c += over_c.0 * d);
        moved.z.iter_mut().zip(over_z.1).for_each(|(z, d)| *z += (over_z.0 * d) as f32);
        moved
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The derivative of `f` along a line at 0.
fn slope(mut f: impl FnMut(f64) -> f64) -> f64 {
    let sum: f64 = (1u8..).zip(WEIGHTS).map(|(k, w)| w * (f(f64::from(k) * STEP) - f(-f64::from(k) * STEP))).sum();
    sum / STEP
}

fn direction(len: usize, range: Range<usize>, seed: u64) -> Vec<f64> {
    let mut rng = keyed(seed, Purpose::Eval, 7, range.start as u64);
    // Of values that are exact as steps of z.
    let mut direction = vec![0.0; len];
    direction[range].fill_with(|| (uniform(&mut rng) * 16.0).floor() / 8.0 - 1.0);
    direction
}

fn norm(values: &[f64]) -> f64 {
    dot(values, values).sqrt()
}

fn is_near(what: &str, found: f64, expected: f64, size: f64, tolerance: f64) {
    let error = (found - expected).abs() / size;
    assert!(error < tolerance, "{what}: {found:e}, differences say {expected:e}, error {error:e}");
}

/// ∂ℓ/∂c of each tensor and ∂ℓ/∂z of each image beside differences of the loss.
pub(crate) fn check_slopes(task: &dyn Task, point: &Point) {
    let share = point.evaluate(task, Want::BOTH);
    let loss = |point: Point| point.evaluate(task, Want::LOSS).loss;
    for entry in &task.layout().entries {
        for seed in 0..3 {
            let d = direction(point.c.len(), entry.range(), seed);
            let expected = slope(|h| loss(point.moved((h, &d), (0.0, &[]))));
            let size = norm(&share.dc[entry.range()]) * norm(&d);
            assert!(size > 0.0, "{} has a gradient", entry.name);
            is_near(&entry.name, dot(&share.dc, &d), expected, size, 1e-9);
        }
    }
    let per_image = point.per_image * point.dim;
    for image in 0..point.y.len() {
        for seed in 0..3 {
            let range = image * per_image..(image + 1) * per_image;
            let d = direction(point.z.len(), range.clone(), seed);
            let expected = slope(|h| loss(point.moved((0.0, &[]), (h, &d))));
            let size = norm(&share.dz[0][range]) * norm(&d);
            is_near(&format!("dz of image {image}"), dot(&share.dz[0], &d), expected, size, 1e-9);
        }
    }
}

/// As [`check_slopes`], and the derivative of ∂ℓ/∂z along c (v1 is of this form) beside differences of the loss over
/// both.
pub(crate) fn check_derivatives(task: &dyn Task, point: &Point) {
    check_slopes(task, point);
    let size = norm(&point.evaluate(task, Want::BOTH).dz[0]);
    let loss = |point: Point| point.evaluate(task, Want::LOSS).loss;
    for (number, entry) in task.layout().entries.iter().enumerate() {
        for seed in 0..3 {
            let d = direction(point.c.len(), entry.range(), seed);
            let u = direction(point.z.len(), 0..point.z.len(), number as u64 * 3 + seed);
            let along = |h: f64| {
                let share = point.moved((h, &d), (0.0, &[])).evaluate(task, Want { dc: false, dz: true });
                dot(&share.dz[0], &u)
            };
            let expected = slope(|over_c| slope(|over_z| loss(point.moved((over_c, &d), (over_z, &u)))));
            is_near(&format!("dz along {}", entry.name), slope(along), expected, size * norm(&u), 1e-6);
            // The difference that level 3 takes.
            let epsilon = 1e-4 / norm(&d);
            let found = (along(epsilon) - along(-epsilon)) / (2.0 * epsilon);
            is_near(&format!("v1 along {}", entry.name), found, expected, size * norm(&u), 1e-5);
        }
    }
}

/// Images do not touch each other: what one adds has the same bits in any batch, and parts add up to the whole.
pub(crate) fn check_additive(task: &dyn Task, point: &Point) {
    let whole = point.evaluate(task, Want::BOTH);
    let parts: Vec<Share> = (0..point.y.len()).map(|image| point.part(task, image..image + 1, Want::BOTH)).collect();
    let dz: Vec<f64> = parts.iter().flat_map(|part| part.dz[0].clone()).collect();
    assert_eq!(whole.dz, [dz]);
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * (1.0 + a.abs());
    assert!(near(whole.loss, parts.iter().map(|part| part.loss).sum()));
    for (i, whole) in whole.figures.iter().enumerate() {
        assert!(near(*whole, parts.iter().map(|part| part.figures[i]).sum()));
    }
    for (i, whole) in whole.dc.iter().enumerate() {
        assert!(near(*whole, parts.iter().map(|part| part.dc[i]).sum()));
    }
    let loss = point.evaluate(task, Want::LOSS);
    assert_eq!((loss.loss, &loss.figures), (whole.loss, &whole.figures));
    assert!(loss.dc.is_empty() && loss.dz.is_empty());
    assert_eq!(point.evaluate(task, Want { dc: true, dz: false }).dc, whole.dc);
    assert_eq!(point.evaluate(task, Want { dc: false, dz: true }).dz, whole.dz);
}

/// Taps and targets that are not those of a task are refused in one line.
pub(crate) fn check_refusals(task: &dyn Task, point: &Point) {
    let refused = |z: &[Tokens<'_>], y: &Targets| {
        let at = At { c: &point.c, z, y, totals: &[[1.0; 2]], noise: None };
        task.evaluate(&at, Want::BOTH).unwrap_err().to_string()
    };
    let tokens = point.tokens();
    assert!(refused(&[tokens, tokens], &point.y).contains("the head reads"));
    let fewer = Tokens { per_image: 1, ..tokens };
    assert!(refused(&[fewer], &point.y).contains("the head reads"));
    let classes = Targets::Classes(Arc::from(vec![0; point.y.len()]));
    assert!(refused(&[tokens], &classes).ends_with("got classes"));
}

/// The cases of a fixture.
pub(crate) fn cases(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn size(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The point of a case, whose tokens are of `grid`² patches.
pub(crate) fn point(case: &Value, y: Targets) -> Point {
    let z = numbers(&case["z"]).into_iter().map(|v| v as f32).collect();
    Point { c: numbers(&case["c"]), z, per_image: size(case, "grid").pow(2), dim: size(case, "dim"), y }
}

/// Gradients beside those of the case.
pub(crate) fn check_gradients(share: &Share, case: &Value) {
    for (name, found) in [("dc", &share.dc), ("dz", &share.dz[0])] {
        let expected = numbers(&case[name]);
        assert_eq!(found.len(), expected.len());
        let size = dot(&expected, &expected).sqrt();
        for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < 1e-11 * size.max(1.0), "{name} {place}: {found}, not {expected}");
        }
    }
}
