//! What `data info` counts of targets other than the class.

use super::target::{NO_CLASS, Target, TargetInfo, TargetKind};

/// Areas in pixels below which COCO calls an object small, and medium.
const AREAS: [f32; 2] = [1024.0, 9216.0];

/// Counts of one kind of target over some images.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSummary {
    /// The kind, and what the dataset says of it.
    pub info: TargetInfo,
    /// Images of which the target is not known.
    pub num_unknown: usize,
    /// What was counted.
    pub counts: TargetCounts,
}

/// Counts in the order of the names.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetCounts {
    /// Nothing: classes of images are counted in [`Summary`](super::Summary).
    Class,
    /// Of each label.
    Labels(Vec<LabelCount>),
    /// Of each value.
    Values(Vec<ValueCount>),
    /// Of pixels.
    Map {
        /// Of each class.
        classes: Vec<MapCount>,
        /// Pixels without a class.
        num_without: u64,
    },
    /// Of objects.
    Boxes {
        /// Of each class.
        classes: Vec<BoxCount>,
        /// Images without any object.
        num_empty: usize,
    },
}

/// Images with and without a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelCount {
    /// Images that have it.
    pub num_present: usize,
    /// Images that have it not.
    pub num_absent: usize,
    /// Images of which it is not known, among those of which others are.
    pub num_unknown: usize,
}

/// A value over the images of which it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueCount {
    /// These images.
    pub num: usize,
    /// Its mean.
    pub mean: f64,
    /// Its standard deviation, not corrected for the sample's size.
    pub std: f64,
    /// Its least and its greatest value.
    pub range: [f32; 2],
    /// Sum of squared distances from the mean (Welford's algorithm).
    squares: f64,
}

/// A class in class maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapCount {
    /// Its pixels.
    pub num_pixels: u64,
    /// Images in which it is.
    pub num_images: usize,
}

/// The objects of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoxCount {
    /// Small (below 32 x 32 pixels), medium (below 96 x 96) and large ones, by their area; without ignored ones.
    pub num: [usize; 3],
    /// Ignored ones: crowds, difficult ones.
    pub num_ignored: usize,
}

impl ValueCount {
    const NONE: Self = Self { num: 0, mean: 0.0, std: 0.0, range: [f32::INFINITY, f32::NEG_INFINITY], squares: 0.0 };

    fn add(&mut self, value: f32) {
        self.num += 1;
        let distance = f64::from(value) - self.mean;
        self.mean += distance / self.num as f64;
        self.squares += distance * (f64::from(value) - self.mean);
        self.std = (self.squares / self.num as f64).sqrt();
        self.range = [self.range[0].min(value), self.range[1].max(value)];
    }
}

impl TargetSummary {
    pub(super) fn new(info: TargetInfo) -> Self {
        let num = info.names.len();
        let counts = match info.kind {
            TargetKind::Class => TargetCounts::Class,
            TargetKind::Labels => TargetCounts::Labels(vec![LabelCount::default(); num]),
            TargetKind::Values => TargetCounts::Values(vec![ValueCount::NONE; num]),
            TargetKind::Map => TargetCounts::Map { classes: vec![MapCount::default(); num], num_without: 0 },
            TargetKind::Boxes => TargetCounts::Boxes { classes: vec![BoxCount::default(); num], num_empty: 0 },
        };
        Self { info, num_unknown: 0, counts }
    }

    pub(super) fn add(&mut self, target: &Target) {
        match (&mut self.counts, target) {
            (TargetCounts::Labels(counts), Target::Labels(labels)) => {
                for (count, label) in counts.iter_mut().zip(labels) {
                    match label {
                        0 => count.num_absent += 1,
                        1 => count.num_present += 1,
                        _ => count.num_unknown += 1,
                    }
                }
            }
            (TargetCounts::Values(counts), Target::Values(values)) => {
                counts
                    .iter_mut()
                    .zip(values)
                    .filter(|(_, value)| !value.is_nan())
                    .for_each(|(count, value)| count.add(*value));
            }
            (TargetCounts::Map { classes, num_without }, Target::Map(map)) => {
                let mut pixels = vec![0_u64; classes.len()];
                for class in &map.classes {
                    match pixels.get_mut(usize::from(*class)).filter(|_| *class != NO_CLASS) {
                        Some(num) => *num += 1,
                        None => *num_without += 1,
                    }
                }
                for (count, num) in classes.iter_mut().zip(pixels) {
                    count.num_pixels += num;
                    count.num_images += usize::from(num > 0);
                }
            }
            (TargetCounts::Boxes { classes, num_empty }, Target::Boxes(boxes)) => {
                *num_empty += usize::from(boxes.is_empty());
                for object in boxes {
                    let Some(count) = classes.get_mut(object.class as usize) else { continue };
                    if object.ignored {
                        count.num_ignored += 1;
                    } else {
                        count.num[AREAS.iter().filter(|area| object.area >= **area).count()] += 1;
                    }
                }
            }
            (TargetCounts::Class, _) => {}
            _ => self.num_unknown += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::{ClassMap, ObjectBox};
    use super::*;

    fn summary(kind: TargetKind, num: usize, targets: &[Target]) -> TargetSummary {
        let names = (0..num).map(|name| name.to_string()).collect();
        let mut summary = TargetSummary::new(TargetInfo::declared(kind, names, None));
        targets.iter().for_each(|target| summary.add(target));
        summary
    }

    #[test]
    fn each_kind_is_counted() {
        let labels = [Target::Labels([1, 0, -1].into()), Target::Labels([1, 1, 1].into()), Target::Unknown];
        let found = summary(TargetKind::Labels, 3, &labels);
        let counts = [[2, 0, 0], [1, 1, 0], [1, 0, 1]];
        let counts =
            counts.map(|[num_present, num_absent, num_unknown]| LabelCount { num_present, num_absent, num_unknown });
        assert_eq!((found.counts, found.num_unknown), (TargetCounts::Labels(counts.into()), 1));

        let values = [2.0, f32::NAN, 4.0, 9.0].map(|value| Target::Values([value].into()));
        let TargetCounts::Values(counts) = summary(TargetKind::Values, 1, &values).counts else { panic!("values") };
        assert_eq!((counts[0].num, counts[0].mean, counts[0].range), (3, 5.0, [2.0, 9.0]));
        assert!((counts[0].std - (26.0_f64 / 3.0).sqrt()).abs() < 1e-12);

        let map = |classes: [u16; 4]| Target::Map(ClassMap { width: 2, height: 2, classes: classes.into() });
        let found = summary(TargetKind::Map, 2, &[map([0, 0, 1, NO_CLASS]), map([0, 0, 0, 0])]).counts;
        let classes = [(6, 2), (1, 1)].map(|(num_pixels, num_images)| MapCount { num_pixels, num_images });
        assert_eq!(found, TargetCounts::Map { classes: classes.into(), num_without: 1 });

        let of = |side: f32, ignored| ObjectBox::new([0.0, 0.0, side, side], 1, ignored);
        let boxes = [of(31.0, false), of(32.0, false), of(96.0, false), of(500.0, true)];
        let found = summary(TargetKind::Boxes, 2, &[Target::Boxes(boxes.into()), Target::Boxes(Box::default())]).counts;
        let classes = vec![BoxCount::default(), BoxCount { num: [1, 1, 1], num_ignored: 1 }];
        assert_eq!(found, TargetCounts::Boxes { classes, num_empty: 1 });
    }
}
