//! Which location of an image learns which object (FCOS, arXiv 1904.01355, with its later centre sampling).
//!
//! It follows from the targets alone. So it is the same at every c, and the loss is a sum over images.

use crate::tasks::BoxTarget;

/// Half the side, in strides, of the square around an object's centre in which locations learn it.
const CENTER_RADIUS: f64 = 1.5;

/// The locations of a square image: the centres of `side`² cells, row by row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Locations {
    /// Locations along one side.
    pub side: usize,
    /// Pixels from one location to the next.
    pub stride: f64,
}

impl Locations {
    /// Number of locations.
    #[must_use]
    pub const fn num(&self) -> usize {
        self.side * self.side
    }

    /// Column and row of a location in pixels.
    #[must_use]
    pub fn center(&self, location: usize) -> [f64; 2] {
        [location % self.side, location / self.side].map(|place| (place as f64 + 0.5) * self.stride)
    }
}

/// A location that learns an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Positive {
    /// Index of the location.
    pub location: usize,
    /// Class of the object.
    pub class: usize,
    /// From the location to the object's left, top, right and bottom edge, in strides; above 0.
    pub distances: [f64; 4],
    /// How central the location is in the object, in (0, 1].
    pub centerness: f64,
}

/// What the locations of an image learn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment {
    /// By rising location.
    pub positives: Vec<Positive>,
    /// Whether a location is in an ignored object and learns none: then its class is not judged either, `[locations]`.
    pub ignored: Vec<bool>,
}

/// √(min(l, r)/max(l, r) · min(t, b)/max(t, b)) of positive distances to the left, top, right and bottom edge.
fn centerness([left, top, right, bottom]: [f64; 4]) -> f64 {
    let ratio = |a: f64, b: f64| a.min(b) / a.max(b);
    (ratio(left, right) * ratio(top, bottom)).sqrt()
}

/// Assigns the objects of an image to its locations. A location learns the smallest object that it is in, and of whose
/// centre it is no more than 1.5 strides away in either direction; of equally small ones the first. An object in which
/// there is no location is learned by none.
#[must_use]
pub fn assign(locations: &Locations, boxes: &[BoxTarget]) -> Assignment {
    let mut assignment = Assignment { positives: Vec::new(), ignored: vec![false; locations.num()] };
    for location in 0..locations.num() {
        let [x, y] = locations.center(location);
        // Edges are f32 values, of which sums and differences in f64 are exact in any image.
        let to_edges = |target: &BoxTarget| {
            let [left, top, right, bottom] = target.edges.map(f64::from);
            [x - left, y - top, right - x, bottom - y]
        };
        let is_inside = |target: &BoxTarget| to_edges(target).iter().all(|distance| *distance > 0.0);
        let is_central = |target: &BoxTarget| {
            let [left, top, right, bottom] = to_edges(target);
            // Twice the distance to the centre, along each side.
            [left - right, top - bottom].iter().all(|twice| twice.abs() < 2.0 * CENTER_RADIUS * locations.stride)
        };
        let candidates = boxes.iter().filter(|target| !target.ignored && is_inside(target) && is_central(target));
        let area = |target: &BoxTarget| {
            let [left, top, right, bottom] = target.edges.map(f64::from);
            (right - left) * (bottom - top)
        };
        match candidates.min_by(|a, b| area(a).total_cmp(&area(b))) {
            Some(target) => {
                let distances = to_edges(target).map(|distance| distance / locations.stride);
                let class = target.class as usize;
                assignment.positives.push(Positive { location, class, distances, centerness: centerness(distances) });
            }
            None => {
                assignment.ignored[location] = boxes.iter().any(|target| target.ignored && is_inside(target));
            }
        }
    }
    assignment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(edges: [f32; 4], class: u32) -> BoxTarget {
        BoxTarget { edges, class, ignored: false, area: 0.0 }
    }

    const LOCATIONS: Locations = Locations { side: 8, stride: 4.0 };

    #[test]
    fn an_object_is_learned_around_its_centre_alone() {
        let all = assign(&LOCATIONS, &[object([0.0, 0.0, 32.0, 32.0], 3)]);
        // The centre is (16, 16). The locations at 14 and 18 are less than 6 pixels away, those at 10 and 22 just 6.
        let places: Vec<usize> = all.positives.iter().map(|p| p.location).collect();
        assert_eq!(places, [27, 28, 35, 36]);
        assert!(all.positives.iter().all(|p| p.class == 3));
        let first = all.positives[0];
        assert_eq!(first.distances, [3.5, 3.5, 4.5, 4.5]);
        assert!((first.centerness - 3.5 / 4.5).abs() < 1e-15);
    }

    #[test]
    fn the_smallest_object_wins_and_the_first_of_equals() {
        let [large, small, equal] = [
            object([0.0, 0.0, 32.0, 32.0], 0),
            object([12.0, 12.0, 20.0, 20.0], 1),
            object([12.0, 12.0, 20.0, 20.0], 2),
        ];
        for boxes in [vec![large, small, equal], vec![small, equal, large]] {
            let all = assign(&LOCATIONS, &boxes);
            assert_eq!(all.positives.iter().map(|p| p.class).collect::<Vec<_>>(), [1; 4]);
        }
    }

    #[test]
    fn ignored_objects_silence_what_learns_nothing_else() {
        let crowd = BoxTarget { ignored: true, ..object([0.0, 0.0, 16.0, 8.0], 0) };
        let alone = assign(&LOCATIONS, &[crowd]);
        assert!(alone.positives.is_empty());
        let silent = |all: &Assignment| (0..64).filter(|location| all.ignored[*location]).collect::<Vec<_>>();
        assert_eq!(silent(&alone), [0, 1, 2, 3, 8, 9, 10, 11]);
        let beside = assign(&LOCATIONS, &[crowd, object([0.0, 0.0, 4.0, 4.0], 1)]);
        assert_eq!(beside.positives.len(), 1);
        assert_eq!(silent(&beside), [1, 2, 3, 8, 9, 10, 11]);
    }

    #[test]
    fn empty_and_outside_boxes_are_learned_nowhere() {
        for edges in [[5.0, 5.0, 5.0, 9.0], [9.0, 9.0, 5.0, 5.0], [40.0, 0.0, 60.0, 20.0], [f32::NAN; 4]] {
            assert!(assign(&LOCATIONS, &[object(edges, 0)]).positives.is_empty(), "{edges:?}");
        }
    }
}
