//! Which objects an image shows, what of each can be seen, and the targets that follow from that.

use crate::dataset::target::{ClassMap, ObjectBox, Target, TargetKind};

/// Names of [`TargetKind::Values`], of the largest object: its centre and its diameter (twice its radius), as shares of
/// the image's side.
pub(super) const VALUES: [&str; 3] = ["center_x", "center_y", "diameter"];

/// An object at its place.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// Its shape, from 0.
    pub class: usize,
    /// Its centre and its radius in pixels.
    pub centre: [f32; 2],
    pub radius: f32,
    /// Share of each pixel that it covers, seen alone, `[side * side]`.
    pub coverage: Vec<f32>,
}

/// The objects of one image, the rearmost first.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    pub all: Vec<Object>,
    pub side: usize,
}

impl Objects {
    /// Share of each pixel that is covered by the object that covers most of it, `[side * side]`.
    pub fn coverage(&self) -> Vec<f32> {
        let mut shares = vec![0.0_f32; self.side * self.side];
        for object in &self.all {
            shares.iter_mut().zip(&object.coverage).for_each(|(share, own)| *share = share.max(*own));
        }
        shares
    }

    /// The object that each pixel shows: the foremost of those that cover at least half of it.
    fn owners(&self) -> Vec<Option<usize>> {
        let mut owners = vec![None; self.side * self.side];
        for (number, object) in self.all.iter().enumerate() {
            for (owner, share) in owners.iter_mut().zip(&object.coverage) {
                if *share >= 0.5 {
                    *owner = Some(number);
                }
            }
        }
        owners
    }

    /// The object that shows most pixels, the first of equals.
    pub fn largest(&self) -> &Object {
        let owners = self.owners();
        let area = |number: usize| owners.iter().filter(|owner| **owner == Some(number)).count();
        let best = (0..self.all.len()).rev().max_by_key(|number| area(*number)).unwrap_or(0);
        &self.all[best]
    }

    /// A target of the image. Classes of a map are 0 for the background and one more than the shape's; a box is the
    /// smallest around the pixels that show its object, whose number is its area. Of an object that shows no pixel there
    /// is no box.
    pub fn target(&self, kind: TargetKind, num_classes: usize) -> Target {
        match kind {
            TargetKind::Class => Target::Class(self.largest().class as i32),
            TargetKind::Labels => {
                let mut labels = vec![0; num_classes];
                self.owners().into_iter().flatten().for_each(|number| labels[self.all[number].class] = 1);
                Target::Labels(labels.into())
            }
            TargetKind::Values => {
                let (largest, side) = (self.largest(), self.side as f32);
                let [x, y] = largest.centre;
                Target::Values([x / side, y / side, 2.0 * largest.radius / side].into())
            }
            TargetKind::Map => {
                let class = |owner: Option<usize>| owner.map_or(0, |number| 1 + self.all[number].class as u16);
                let classes = self.owners().into_iter().map(class).collect();
                Target::Map(ClassMap { width: self.side, height: self.side, classes })
            }
            TargetKind::Boxes => Target::Boxes(self.boxes()),
        }
    }

    fn boxes(&self) -> Box<[ObjectBox]> {
        let owners = self.owners();
        let of_object = |(number, object): (usize, &Object)| {
            let pixels = || owners.iter().enumerate().filter(|(_, owner)| **owner == Some(number)).map(|(at, _)| at);
            let range = |place: fn(usize, usize) -> usize| {
                let places = || pixels().map(|at| place(at, self.side));
                Some((places().min()? as f32, places().max()? as f32 + 1.0))
            };
            let ((left, right), (top, bottom)) = (range(|at, side| at % side)?, range(|at, side| at / side)?);
            let area = pixels().count() as f32;
            Some(ObjectBox { edges: [left, top, right, bottom], class: object.class as u32, ignored: false, area })
        };
        self.all.iter().enumerate().filter_map(of_object).collect()
    }
}
