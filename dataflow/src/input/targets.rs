//! The targets of a batch as they are collected: what a dataset says of each sample, moved as its image is.

use mlomae_model::tasks::{BoxTarget, Targets, UNKNOWN_CLASS};
use mlomae_storage::dataset::{NO_CLASS, Target, TargetKind};

use super::geometry::Geometry;

// A map's pixels keep their values.
const _: () = assert!(NO_CLASS == UNKNOWN_CLASS);

/// What is asked of a dataset for one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The kind of target.
    pub kind: TargetKind,
    /// Labels or values of an image; of no meaning for other kinds.
    pub num: usize,
}

/// Targets of one kind, one image after the other.
#[derive(Debug)]
enum Column {
    Classes(Vec<i32>),
    Labels { num: usize, values: Vec<i8> },
    Values { num: usize, values: Vec<f32> },
    Maps { side: usize, classes: Vec<u16> },
    Boxes { starts: Vec<usize>, boxes: Vec<BoxTarget> },
}

impl Column {
    fn new(wanted: Wanted, room: usize, side: usize) -> Self {
        let Wanted { kind, num } = wanted;
        match kind {
            TargetKind::Class => Self::Classes(Vec::with_capacity(room)),
            TargetKind::Labels => Self::Labels { num, values: Vec::with_capacity(room * num) },
            TargetKind::Values => Self::Values { num, values: Vec::with_capacity(room * num) },
            TargetKind::Map => Self::Maps { side, classes: Vec::with_capacity(room * side * side) },
            TargetKind::Boxes => Self::Boxes { starts: vec![0], boxes: Vec::new() },
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
            Self::Boxes { starts, boxes } => {
                match target {
                    Some(Target::Boxes(objects)) => {
                        boxes.extend(objects.iter().filter_map(|object| geometry.object(object)));
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
            Self::Boxes { starts, boxes } => Targets::Boxes { starts: starts.into(), boxes: boxes.into() },
        }
    }
}

/// Targets of a batch, for one task or several.
#[derive(Debug)]
pub struct CollectedTargets(Vec<Column>);

impl CollectedTargets {
    /// None yet, with room for `room` images of `side` by `side` pixels: those of each of `wanted`, at least one.
    #[must_use]
    pub fn with_room(wanted: &[Wanted], room: usize, side: usize) -> Self {
        Self(wanted.iter().map(|wanted| Column::new(*wanted, room, side)).collect())
    }

    /// Adds the targets of an image, one for each kind that was asked of the dataset, in that order; its places have gone
    /// where `geometry` says.
    pub fn add(&mut self, targets: &[Target], geometry: &Geometry) {
        for (place, column) in self.0.iter_mut().enumerate() {
            column.add(targets.get(place), geometry);
        }
    }

    /// The targets of those that are there: of several tasks, [`Targets::Several`].
    #[must_use]
    pub fn into_targets(mut self) -> Targets {
        match self.0.len() {
            0 => Targets::Classes([].into()),
            1 => self.0.remove(0).into_targets(),
            _ => Targets::Several(self.0.into_iter().map(Column::into_targets).collect()),
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
        Wanted { kind: TargetKind::Class, num: 0 },
        Wanted { kind: TargetKind::Labels, num: 2 },
        Wanted { kind: TargetKind::Values, num: 1 },
        Wanted { kind: TargetKind::Map, num: 0 },
        Wanted { kind: TargetKind::Boxes, num: 0 },
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
        let mut all = CollectedTargets::with_room(&KINDS, 2, 2);
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
    fn one_kind_is_not_wrapped() {
        let mut one = CollectedTargets::with_room(&KINDS[..1], 1, 2);
        one.add(&[Target::Class(7)], &mirrored());
        assert_eq!(one.into_targets(), Targets::Classes([7].into()));
    }
}
