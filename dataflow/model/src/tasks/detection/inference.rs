//! From the outputs of locations to the objects that they are sure of.

use super::assignment::Locations;
use super::outputs::Outputs;
use crate::tasks::Detection;
use crate::tasks::layers::activation::{sigmoid, softplus};

/// Scores at and below this are no detections.
const MIN_SCORE: f64 = 0.05;
/// Detections before suppression.
const MAX_CANDIDATES: usize = 1000;
/// A detection is suppressed by a surer one of its class with which it has more than this intersection over union.
const MAX_OVERLAP: f64 = 0.6;
/// Detections of an image.
const MAX_DETECTIONS: usize = 100;

/// An object that one location claims.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f64,
    location: usize,
    class: usize,
}

/// The objects found in an image, surest first: scores √(class·centerness) above 0.05, the surest 1000 of them, less
/// those that a surer one of the same class covers with more than 0.6, and of these the surest 100. Of equals the first
/// location counts as surer, then the first class. Boxes end at the edge of the image.
#[must_use]
pub fn detections(outputs: &Outputs<'_>, locations: &Locations) -> Vec<Detection> {
    let mut candidates = Vec::new();
    for location in 0..locations.num() {
        let centerness = sigmoid(outputs.centerness(location));
        candidates.extend((0..outputs.num_classes()).filter_map(|class| {
            let score = (sigmoid(outputs.class(location, class)) * centerness).sqrt();
            (score > MIN_SCORE).then_some(Candidate { score, location, class })
        }));
    }
    // A stable sort: candidates come by location and class.
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(MAX_CANDIDATES);
    let limit = locations.side as f64 * locations.stride;
    let mut kept: Vec<(usize, [f64; 4], f64)> = Vec::new();
    for Candidate { score, location, class } in candidates {
        if kept.len() == MAX_DETECTIONS {
            break;
        }
        let [x, y] = locations.center(location);
        let [left, top, right, bottom] =
            std::array::from_fn(|side| softplus(outputs.distance(location, side)) * locations.stride);
        let edges = [x - left, y - top, x + right, y + bottom].map(|edge| edge.clamp(0.0, limit));
        if kept.iter().all(|(other, surer, _)| *other != class || overlap(surer, &edges) <= MAX_OVERLAP) {
            kept.push((class, edges, score));
        }
    }
    let detection = |(class, edges, score): (usize, [f64; 4], f64)| Detection {
        edges: edges.map(|edge| edge as f32),
        class: class as u32,
        score: score as f32,
    };
    kept.into_iter().map(detection).collect()
}

/// Intersection over union.
fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let area = |edges: &[f64; 4]| (edges[2] - edges[0]) * (edges[3] - edges[1]);
    let shared = side(0) * side(1);
    if shared > 0.0 { shared / (area(a) + area(b) - shared) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outputs `[patches, 3 classes + 5]` of a grid of two by two locations, all unsure.
    fn unsure() -> Vec<f64> {
        [-9.0, -9.0, -9.0, 1.0, 1.0, 1.0, 1.0, 9.0].repeat(4)
    }

    const LOCATIONS: Locations = Locations { side: 2, stride: 8.0 };

    fn found(values: &[f64]) -> Vec<Detection> {
        detections(&Outputs::new(values, 3, 2, 1), &LOCATIONS)
    }

    #[test]
    fn nothing_is_found_where_nothing_is_sure() {
        assert!(found(&unsure()).is_empty());
        let mut values = unsure();
        // √(σ(logit)·σ(9)) on both sides of 0.05.
        let logit = |score: f64| (score * score / (1.0 - score * score)).ln();
        values[0] = logit(0.0499);
        assert!(found(&values).is_empty());
        values[0] = logit(0.0502);
        assert_eq!(found(&values).len(), 1);
    }

    #[test]
    fn a_surer_box_suppresses_its_own_class_alone() {
        let mut values = unsure();
        let span = |values: &mut Vec<f64>, location: usize| values[location * 8 + 3..location * 8 + 7].fill(40.0);
        for location in [0, 1, 2] {
            span(&mut values, location);
        }
        (values[0], values[8], values[16 + 1]) = (2.0, 3.0, 1.0);
        let all = found(&values);
        assert_eq!(all.iter().map(|d| d.class).collect::<Vec<_>>(), [0, 1]);
        assert!(all.iter().all(|d| d.edges == [0.0, 0.0, 16.0, 16.0]), "boxes end with the image");
        assert!((f64::from(all[0].score) - (sigmoid(3.0) * sigmoid(9.0)).sqrt()).abs() < 1e-7);
        // Of equals the first location is kept.
        (values[0], values[8], values[16 + 1]) = (3.0, 3.0, -9.0);
        values[3] = -3.0;
        let all = found(&values);
        assert_eq!(all.len(), 1);
        assert!(all[0].edges[0] > 3.0);
    }

    #[test]
    fn no_more_than_a_hundred_are_given() {
        let side = 12;
        let values = [4.0, 4.0, -9.0, -9.0, -9.0, -9.0, -9.0, 9.0].repeat(side * side);
        let all = detections(&Outputs::new(&values, 3, side, 1), &Locations { side, stride: 8.0 });
        assert_eq!(all.len(), 100);
        assert_eq!((all[0].class, all[1].class), (0, 1));
    }
}
