//! Average precision of detections, as COCO defines it (`pycocotools`' `COCOeval` of boxes).

use std::sync::OnceLock;

use super::{Measured, Metrics, refused, same_images, wrong_kinds};
use crate::error::ModelError;
use crate::tasks::{BoxTarget, Detection, Predictions, Targets};

/// Detections of a class that count in an image.
const MAX_DETECTIONS: usize = 100;
/// Number of thresholds of intersection over union, .50, .55, … .95.
const NUM_THRESHOLDS: usize = 10;
/// Recalls at which precision is averaged, 0, .01, … 1.
const NUM_RECALLS: usize = 101;
/// Ranges of areas in pixels: all, small, medium, large. Both ends belong to a range.
const AREAS: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];

/// The thresholds, bit by bit as `numpy.linspace(.5, .95, 10)` has them.
fn thresholds() -> [f64; NUM_THRESHOLDS] {
    let step = (0.95 - 0.5) / 9.0;
    std::array::from_fn(|i| if i == 9 { 0.95 } else { i as f64 * step + 0.5 })
}

/// A detection that has been held against the objects of its image. Bit t of a mask is for threshold t.
#[derive(Clone, Copy, Debug)]
struct Judged {
    score: f32,
    image: usize,
    /// Thresholds at which it found an object that counts, for each range of areas.
    found: [u16; 4],
    /// Thresholds at which it is neither right nor wrong.
    ignored: [u16; 4],
}

/// What is kept of a class.
#[derive(Clone, Debug, Default)]
struct OfClass {
    detections: Vec<Judged>,
    /// Image, and how many objects count in each range of areas.
    objects: Vec<(usize, [u32; 4])>,
}

/// `ap` (mean over the thresholds .50:.95), `ap50`, `ap75`, `ap_small`, `ap_medium` and `ap_large` of detections (arXiv
/// 1405.0312; `pycocotools`): precision, made falling, at 101 recalls, averaged over them, thresholds and the classes of
/// which there are objects. At most 100 detections of a class count in an image.
///
/// A detection finds the object of its class that it covers best and that no surer one has found. Ignored objects are
/// found by any number of detections, by the share of the detection's own area that they cover, and these are neither
/// right nor wrong. So are, for a range of areas, objects outside it, and detections outside it that find nothing.
/// Equally sure detections count in the order in which they came.
#[derive(Clone, Debug)]
pub struct CocoAveragePrecision {
    classes: Vec<OfClass>,
    num_images: usize,
    /// For each class its detections, surest first.
    order: OnceLock<Vec<Vec<usize>>>,
}

impl CocoAveragePrecision {
    /// Over no images yet.
    #[must_use]
    pub fn new(num_classes: usize) -> Self {
        CocoAveragePrecision { classes: vec![OfClass::default(); num_classes], num_images: 0, order: OnceLock::new() }
    }

    fn check(&self, detections: &[Vec<Detection>], boxes: &[BoxTarget]) -> Result<(), ModelError> {
        let num_classes = self.classes.len();
        let of_targets = boxes.iter().map(|target| (target.class, target.edges, target.area));
        let found = detections.iter().flatten().map(|detection| (detection.class, detection.edges, detection.score));
        for (class, edges, number) in of_targets.chain(found) {
            if class as usize >= num_classes {
                return Err(refused(format!("a class must be in 0..{num_classes}, got {class}")));
            }
            if let Some(value) = edges.iter().chain([&number]).find(|value| !value.is_finite()) {
                return Err(refused(format!("edges, areas and scores of boxes must be finite, got {value}")));
            }
        }
        Ok(())
    }

    fn add_image(&mut self, image: usize, detections: &[Detection], boxes: &[BoxTarget]) {
        for (class, kept) in self.classes.iter_mut().enumerate() {
            let of_class = |other: u32| other as usize == class;
            let objects: Vec<&BoxTarget> = boxes.iter().filter(|target| of_class(target.class)).collect();
            let mut found: Vec<&Detection> = detections.iter().filter(|d| of_class(d.class)).collect();
            if objects.is_empty() && found.is_empty() {
                continue;
            }
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
            found.truncate(MAX_DETECTIONS);
            let overlaps: Vec<Vec<f64>> =
                found.iter().map(|d| objects.iter().map(|object| overlap(&d.edges, object)).collect()).collect();
            let mut judged: Vec<Judged> =
                found.iter().map(|d| Judged { score: d.score, image, found: [0; 4], ignored: [0; 4] }).collect();
            let mut counted = [0; 4];
            for (range, limits) in AREAS.iter().enumerate() {
                let is_outside = |area: f64| area < limits[0] || area > limits[1];
                let ignored: Vec<bool> =
                    objects.iter().map(|object| object.ignored || is_outside(f64::from(object.area))).collect();
                counted[range] = ignored.iter().filter(|ignored| !**ignored).count() as u32;
                let outside: Vec<bool> = found.iter().map(|d| is_outside(box_area(&d.edges))).collect();
                for (t, threshold) in thresholds().into_iter().enumerate() {
                    let matches = best_matches(&overlaps, &objects, &ignored, threshold);
                    for ((judged, object), outside) in judged.iter_mut().zip(matches).zip(&outside) {
                        match object {
                            Some(object) if ignored[object] => judged.ignored[range] |= 1 << t,
                            Some(_) => judged.found[range] |= 1 << t,
                            None if *outside => judged.ignored[range] |= 1 << t,
                            None => {}
                        }
                    }
                }
            }
            kept.detections.extend(judged);
            kept.objects.push((image, counted));
        }
    }

    fn order(&self) -> &[Vec<usize>] {
        self.order.get_or_init(|| {
            let of = |kept: &OfClass| {
                let mut order: Vec<usize> = (0..kept.detections.len()).collect();
                order.sort_by(|a, b| kept.detections[*b].score.total_cmp(&kept.detections[*a].score));
                order
            };
            self.classes.iter().map(of).collect()
        })
    }
}

/// Area of a box in pixels.
fn box_area(edges: &[f32; 4]) -> f64 {
    let [left, top, right, bottom] = edges.map(f64::from);
    (right - left) * (bottom - top)
}

/// Intersection over union of a detection and an object; over the detection's own area if the object is ignored.
fn overlap(found: &[f32; 4], object: &BoxTarget) -> f64 {
    let [a, b] = [found.map(f64::from), object.edges.map(f64::from)];
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let shared = side(0) * side(1);
    if shared <= 0.0 {
        return 0.0;
    }
    let of_found = box_area(found);
    shared / if object.ignored { of_found } else { of_found + box_area(&object.edges) - shared }
}

/// The object that each detection finds at a threshold, surest detection first. Objects that count are preferred to
/// those that are ignored, of which one that counts is never given up for.
fn best_matches(overlaps: &[Vec<f64>], objects: &[&BoxTarget], ignored: &[bool], threshold: f64) -> Vec<Option<usize>> {
    let counting_first: Vec<usize> = [false, true]
        .into_iter()
        .flat_map(|kind| (0..objects.len()).filter(move |object| ignored[*object] == kind))
        .collect();
    let mut is_taken = vec![false; objects.len()];
    let best = |overlaps: &Vec<f64>| {
        let (mut best, mut most) = (None::<usize>, threshold.min(1.0 - 1e-10));
        for &object in &counting_first {
            if is_taken[object] && !objects[object].ignored {
                continue;
            }
            if ignored[object] && best.is_some_and(|best| !ignored[best]) {
                break;
            }
            if overlaps[object] >= most {
                (best, most) = (Some(object), overlaps[object]);
            }
        }
        if let Some(best) = best {
            is_taken[best] = true;
        }
        best
    };
    overlaps.iter().map(best).collect()
}

/// Average precision of a class in a range of areas at each threshold; none if no object counts.
fn average_precisions(kept: &OfClass, order: &[usize], range: usize, times: &[u32]) -> Option<[f64; NUM_THRESHOLDS]> {
    let num_objects: u64 =
        kept.objects.iter().map(|(image, counted)| u64::from(times[*image]) * u64::from(counted[range])).sum();
    (num_objects > 0).then(|| {
        std::array::from_fn(|t| {
            let bit = |mask: u16| mask >> t & 1 == 1;
            let (mut right, mut wrong) = (0u64, 0u64);
            // Recall and precision after each detection. Copies of one are next to each other, and between them nothing
            // new is reached, so that the last stands for all.
            let mut points: Vec<[f64; 2]> = Vec::new();
            for detection in order.iter().map(|place| &kept.detections[*place]) {
                let times = u64::from(times[detection.image]);
                if times == 0 || bit(detection.ignored[range]) {
                    continue;
                }
                *(if bit(detection.found[range]) { &mut right } else { &mut wrong }) += times;
                let precision = right as f64 / ((wrong + right) as f64 + f64::EPSILON);
                points.push([right as f64 / num_objects as f64, precision]);
            }
            for i in (1..points.len()).rev() {
                points[i - 1][1] = points[i - 1][1].max(points[i][1]);
            }
            let at = |recall: usize| {
                let first = points.partition_point(|[reached, _]| *reached < recall as f64 * 0.01);
                points.get(first).map_or(0.0, |[_, precision]| *precision)
            };
            (0..NUM_RECALLS).map(at).sum::<f64>() / NUM_RECALLS as f64
        })
    })
}

impl Metrics for CocoAveragePrecision {
    fn add(&mut self, predictions: &Predictions, targets: &Targets) -> Result<(), ModelError> {
        let (Predictions::Boxes(detections), Targets::Boxes { starts, boxes }) = (predictions, targets) else {
            return Err(wrong_kinds("boxes with boxes", predictions, targets));
        };
        same_images(predictions, targets)?;
        self.check(detections, boxes)?;
        self.order = OnceLock::new();
        for (detections, ends) in detections.iter().zip(starts.windows(2)) {
            self.add_image(self.num_images, detections, &boxes[ends[0]..ends[1]]);
            self.num_images += 1;
        }
        Ok(())
    }

    fn num_images(&self) -> usize {
        self.num_images
    }

    fn resampled(&self, times: &[u32]) -> Vec<Measured> {
        let of_range = |range: usize| -> Vec<[f64; NUM_THRESHOLDS]> {
            let classes = self.classes.iter().zip(self.order());
            classes.filter_map(|(kept, order)| average_precisions(kept, order, range, times)).collect()
        };
        let mean = |classes: &[[f64; NUM_THRESHOLDS]], thresholds: std::ops::Range<usize>| {
            let values = classes.iter().flat_map(|class| &class[thresholds.clone()]);
            let count = classes.len() * thresholds.len();
            (count > 0).then(|| values.sum::<f64>() / count as f64)
        };
        let [all, small, medium, large] = [0, 1, 2, 3].map(of_range);
        let every = 0..NUM_THRESHOLDS;
        let named = [
            ("ap", mean(&all, every.clone())),
            ("ap50", mean(&all, 0..1)),
            ("ap75", mean(&all, 5..6)),
            ("ap_small", mean(&small, every.clone())),
            ("ap_medium", mean(&medium, every.clone())),
            ("ap_large", mean(&large, every)),
        ];
        named.into_iter().filter_map(|(name, value)| Some(Measured::share(name, value?))).collect()
    }
}
