//! The targets of a batch as they are collected: what a dataset says of each sample, moved as its image is.

use mlomae_model::tasks::{BoxTarget, Targets, TaskChoice, TaskFacts, UNKNOWN_CLASS};
use mlomae_storage::dataset::{DataError, Dataset, NO_CLASS, Target, TargetInfo, TargetKind};

use super::bad_images::BadImages;
use super::geometry::Geometry;

// A map's pixels keep their values.
const _: () = assert!(NO_CLASS == UNKNOWN_CLASS);

/// The kind of targets that a task learns from, which its own example shows.
#[must_use]
pub fn target_kind(kind: TaskChoice) -> TargetKind {
    let facts = TaskFacts { dim: 8, depth: 1, grid: 2, patch: 4, num_classes: 2 };
    of_targets(&kind.get().example(&facts, 1, 0))
}

fn of_targets(targets: &Targets) -> TargetKind {
    match targets {
        Targets::Classes(_) => TargetKind::Class,
        Targets::Labels { .. } => TargetKind::Labels,
        Targets::Values { .. } => TargetKind::Values,
        Targets::Maps { .. } => TargetKind::Map,
        Targets::Boxes { .. } => TargetKind::Boxes,
        Targets::Several(tasks) => tasks.first().map_or(TargetKind::Class, of_targets),
    }
}

/// What each of the tasks, which learn from `kinds`, takes of the targets of a dataset that was asked for each kind once,
/// in that order, and says `infos` of them.
#[must_use]
pub fn wanted(kinds: &[TargetKind], infos: &[TargetInfo]) -> Vec<Wanted> {
    let place = |kind: TargetKind| infos.iter().position(|info| info.kind == kind);
    let wanted = |kind| {
        let place = place(kind)?;
        Some(Wanted { place, kind, num: infos[place].names.len() })
    };
    kinds.iter().filter_map(|kind| wanted(*kind)).collect()
}

/// Samples at most that the moments of values are computed from.
const NUM_MOMENT_SAMPLES: usize = 2048;

/// Mean and standard deviation of each value that a dataset has of its images.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Means; 0 of a value that is known of no image.
    pub mean: Vec<f64>,
    /// Standard deviations; 1 where the value does not vary.
    pub std: Vec<f64>,
}

impl Moments {
    /// Of a fixed, evenly spaced part of the samples `indices`, without bad images that are passed over and without what
    /// is unknown.
    ///
    /// # Errors
    /// The dataset's.
    pub fn of_values(
        dataset: &dyn Dataset,
        indices: &[usize],
        wanted: &Wanted,
        bad_images: &BadImages,
    ) -> Result<Self, DataError> {
        let num = indices.len().min(NUM_MOMENT_SAMPLES);
        let mut columns = vec![Vec::new(); wanted.num];
        for i in 0..num {
            let sample = bad_images.read(dataset, indices[i * indices.len() / num])?;
            if let Some(Target::Values(values)) = sample.as_ref().and_then(|sample| sample.targets.get(wanted.place)) {
                let known = columns.iter_mut().zip(values).filter(|(_, value)| value.is_finite());
                known.for_each(|(column, value)| column.push(f64::from(*value)));
            }
        }
        let mean = |column: &[f64]| column.iter().sum::<f64>() / column.len().max(1) as f64;
        let means: Vec<f64> = columns.iter().map(|column| mean(column)).collect();
        let deviation = |(column, of): (&Vec<f64>, &f64)| {
            let squares: Vec<f64> = column.iter().map(|value| (value - of).powi(2)).collect();
            let deviation = mean(&squares).sqrt();
            if deviation > 1e-12 { deviation } else { 1.0 }
        };
        let std = columns.iter().zip(&means).map(deviation).collect();
        Ok(Self { mean: means, std })
    }
}

/// Bytes of the targets of an image of `side` by `side` pixels, at most, with `max_boxes` boxes.
#[must_use]
pub fn targets_bytes(wanted: &[Wanted], side: usize, max_boxes: usize) -> usize {
    let of_image = |wanted: &Wanted| match wanted.kind {
        TargetKind::Class => 4,
        TargetKind::Labels => wanted.num,
        TargetKind::Values => 4 * wanted.num,
        TargetKind::Map => 2 * side * side,
        // A batch says where the boxes of each image begin, and where the last end: twice covers that.
        TargetKind::Boxes => 2 * size_of::<usize>() + max_boxes.max(1) * size_of::<BoxTarget>(),
    };
    wanted.iter().map(of_image).sum()
}

/// What one task takes of a sample's targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its place among the kinds that were asked of the dataset.
    pub place: usize,
    /// The kind of target.
    pub kind: TargetKind,
    /// Labels or values of an image; of no meaning for other kinds.
    pub num: usize,
}

impl Wanted {
    /// The class of an image.
    pub const CLASS: Self = Self { place: 0, kind: TargetKind::Class, num: 0 };

    /// Whether the class of an image is all that is taken, which a dataset knows without decoding the image.
    #[must_use]
    pub fn is_class_alone(wanted: &[Self]) -> bool {
        matches!(wanted, [Self { kind: TargetKind::Class, .. }])
    }
}

/// Targets of one kind, one image after the other.
#[derive(Debug)]
enum Column {
    Classes(Vec<i32>),
    Labels { num: usize, values: Vec<i8> },
    Values { num: usize, values: Vec<f32> },
    Maps { side: usize, classes: Vec<u16> },
    Boxes { max: usize, starts: Vec<usize>, boxes: Vec<BoxTarget> },
}

impl Column {
    fn new(wanted: Wanted, room: usize, side: usize, max_boxes: usize) -> Self {
        let Wanted { kind, num, .. } = wanted;
        match kind {
            TargetKind::Class => Self::Classes(Vec::with_capacity(room)),
            TargetKind::Labels => Self::Labels { num, values: Vec::with_capacity(room * num) },
            TargetKind::Values => Self::Values { num, values: Vec::with_capacity(room * num) },
            TargetKind::Map => Self::Maps { side, classes: Vec::with_capacity(room * side * side) },
            TargetKind::Boxes => Self::Boxes { max: max_boxes, starts: vec![0], boxes: Vec::new() },
        }
    }

    /// Adds what is known of an image. What is unknown, or of another kind or length than asked for, is unknown to every
    /// loss too.
    fn add(&mut self, target: Option<&Target>, geometry: &Geometry) {
        match self {
            Self::Classes(classes) => classes.push(match target {
                Some(Target::Class(class)) => *class,
                _ => -1,
            }),
            Self::Labels { num, values } => match target {
                Some(Target::Labels(labels)) if labels.len() == *num => values.extend_from_slice(labels),
                _ => values.extend(std::iter::repeat_n(-1, *num)),
            },
            Self::Values { num, values } => match target {
                Some(Target::Values(of_image)) if of_image.len() == *num => values.extend_from_slice(of_image),
                _ => values.extend(std::iter::repeat_n(f32::NAN, *num)),
            },
            Self::Maps { side, classes } => match target {
                Some(Target::Map(map)) => classes.extend(geometry.map(map)),
                _ => classes.extend(std::iter::repeat_n(UNKNOWN_CLASS, *side * *side)),
            },
            Self::Boxes { max, starts, boxes } => {
                match target {
                    Some(Target::Boxes(objects)) => {
                        let seen = objects.iter().filter_map(|object| geometry.object(object)).collect();
                        boxes.extend(largest(seen, *max));
                    }
                    // Of an image of which nothing is known nothing is a mistake to find.
                    _ => boxes.push(BoxTarget {
                        edges: [0.0, 0.0, geometry.side as f32, geometry.side as f32],
                        class: 0,
                        ignored: true,
                        area: (geometry.side * geometry.side) as f32,
                    }),
                }
                starts.push(boxes.len());
            }
        }
    }

    fn into_targets(self) -> Targets {
        match self {
            Self::Classes(classes) => Targets::Classes(classes.into()),
            Self::Labels { num, values } => Targets::Labels { num, values: values.into() },
            Self::Values { num, values } => Targets::Values { num, values: values.into() },
            Self::Maps { side, classes } => Targets::Maps { side, classes: classes.into() },
            Self::Boxes { starts, boxes, .. } => Targets::Boxes { starts: starts.into(), boxes: boxes.into() },
        }
    }
}

/// The `max` largest of `boxes` in their order; of equal ones the first.
fn largest(boxes: Vec<BoxTarget>, max: usize) -> Vec<BoxTarget> {
    if boxes.len() <= max {
        return boxes;
    }
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|a, b| boxes[*b].area.total_cmp(&boxes[*a].area));
    order.truncate(max);
    order.sort_unstable();
    order.into_iter().map(|i| boxes[i]).collect()
}

/// Targets of a batch, for one task or several.
#[derive(Debug)]
pub struct CollectedTargets(Vec<(usize, Column)>);

impl CollectedTargets {
    /// None yet, with room for `room` images of `side` by `side` pixels: those of each of `wanted`, at least one. Of more
    /// than `max_boxes` boxes in an image the largest are kept.
    #[must_use]
    pub fn with_room(wanted: &[Wanted], room: usize, side: usize, max_boxes: usize) -> Self {
        Self(wanted.iter().map(|wanted| (wanted.place, Column::new(*wanted, room, side, max_boxes))).collect())
    }

    /// Adds the targets of an image, one for each kind that was asked of the dataset, in that order; its places have gone
    /// where `geometry` says.
    pub fn add(&mut self, targets: &[Target], geometry: &Geometry) {
        for (place, column) in &mut self.0 {
            column.add(targets.get(*place), geometry);
        }
    }

    /// The targets of those that are there: of several tasks, [`Targets::Several`].
    #[must_use]
    pub fn into_targets(mut self) -> Targets {
        match self.0.len() {
            0 => Targets::Classes([].into()),
            1 => self.0.remove(0).1.into_targets(),
            _ => Targets::Several(self.0.into_iter().map(|(_, column)| column.into_targets()).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::geometry::Region;
    use mlomae_model::images::Window;
    use mlomae_storage::dataset::{ClassMap, ObjectBox};

    const KINDS: [Wanted; 5] = [
        Wanted::CLASS,
        Wanted { place: 1, kind: TargetKind::Labels, num: 2 },
        Wanted { place: 2, kind: TargetKind::Values, num: 1 },
        Wanted { place: 3, kind: TargetKind::Map, num: 0 },
        Wanted { place: 4, kind: TargetKind::Boxes, num: 0 },
    ];

    fn mirrored() -> Geometry {
        let window = Window { top: 0, left: 0, mirrored: true };
        Geometry { region: Region::whole(2, 2), side: 2, window }
    }

    #[test]
    fn targets_move_with_their_image_and_the_unknown_stays_unknown() {
        let object = ObjectBox { edges: [0.0, 0.0, 1.0, 2.0], class: 1, ignored: false, area: 2.0 };
        let known = [
            Target::Class(3),
            Target::Labels([1, 0].into()),
            Target::Values([0.5].into()),
            Target::Map(ClassMap { width: 2, height: 2, classes: vec![0, 1, 2, NO_CLASS] }),
            Target::Boxes([object].into()),
        ];
        let unknown: [Target; 5] = std::array::from_fn(|_| Target::Unknown);
        let mut all = CollectedTargets::with_room(&KINDS, 2, 2, 10);
        all.add(&known, &mirrored());
        all.add(&unknown, &mirrored());
        let Targets::Several(tasks) = all.into_targets() else { panic!("several kinds were asked for") };
        assert_eq!(tasks[0], Targets::Classes([3, -1].into()));
        assert_eq!(tasks[1], Targets::Labels { num: 2, values: [1, 0, -1, -1].into() });
        let Targets::Values { values, .. } = &tasks[2] else { panic!("{}", tasks[2].kind()) };
        assert!(values[0] == 0.5 && values[1].is_nan());
        let x = UNKNOWN_CLASS;
        assert_eq!(tasks[3], Targets::Maps { side: 2, classes: [1, 0, x, 2, x, x, x, x].into() });
        assert_eq!(tasks[4].boxes(0).unwrap()[0].edges, [1.0, 0.0, 2.0, 2.0]);
        let of_unknown = tasks[4].boxes(1).unwrap();
        assert!(of_unknown.len() == 1 && of_unknown[0].ignored, "nothing is a mistake there");
    }

    #[test]
    fn of_too_many_boxes_the_largest_stay() {
        let area = |area: f32| BoxTarget { edges: [0.0; 4], class: 0, ignored: false, area };
        let kept = largest([3.0, 1.0, 4.0, 1.5, 4.0].map(area).to_vec(), 3);
        assert_eq!(kept.iter().map(|target| target.area).collect::<Vec<_>>(), [3.0, 4.0, 4.0]);
    }

    #[test]
    fn a_batch_takes_no_more_than_its_bound() {
        let object = ObjectBox { edges: [0.0, 0.0, 1.0, 2.0], class: 1, ignored: false, area: 2.0 };
        let known = [
            Target::Class(3),
            Target::Labels([1, 0].into()),
            Target::Values([0.5].into()),
            Target::Map(ClassMap { width: 2, height: 2, classes: vec![0; 4] }),
            Target::Boxes(vec![object; 20].into()),
        ];
        let mut all = CollectedTargets::with_room(&KINDS, 3, 2, 7);
        (0..3).for_each(|_| all.add(&known, &mirrored()));
        let bytes = all.into_targets().size_bytes();
        assert!(bytes <= 3 * targets_bytes(&KINDS, 2, 7), "{bytes}");
    }

    #[test]
    fn one_kind_is_not_wrapped() {
        let mut one = CollectedTargets::with_room(&KINDS[..1], 1, 2, 10);
        one.add(&[Target::Class(7)], &mirrored());
        assert_eq!(one.into_targets(), Targets::Classes([7].into()));
    }
}
