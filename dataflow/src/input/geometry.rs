//! What happens to the places in an image on its way to the networks, and to targets that lie at places.

use mlomae_model::images::Window;
use mlomae_model::tasks::{BoxTarget, UNKNOWN_CLASS};
use mlomae_storage::dataset::{ClassMap, ObjectBox};

/// A rectangle of pixels in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Column of its first pixel.
    pub left: usize,
    /// Row of its first pixel.
    pub top: usize,
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
}

impl Region {
    /// All of an image of `width` by `height` pixels.
    #[must_use]
    pub const fn whole(width: usize, height: usize) -> Self {
        Self { left: 0, top: 0, width, height }
    }
}

/// How an image was made into the square that the networks see: a region of it is cut out and resized to `side` by
/// `side` pixels, of which the window is seen, perhaps mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The region of the image.
    pub region: Region,
    /// Side of the result in pixels.
    pub side: usize,
    /// What is seen of the resized region.
    pub window: Window,
}

/// An object of which less than this share of its box is left in the image is nothing to be found: it is ignored.
const LEAST_SHARE: f32 = 0.25;

/// An object whose box is left with a side of less than so many pixels is ignored.
const LEAST_SIDE: f32 = 1.0;

impl Geometry {
    /// Column and row in the image of the pixel at (`column`, `row`) of the result: of the pixel whose area holds the
    /// centre of that one. None in the padding.
    #[must_use]
    pub fn source(&self, column: usize, row: usize) -> Option<(usize, usize)> {
        let (x, y) = self.window.source(self.side, column, row)?;
        // (place + 1/2)·length/side in whole numbers: no rounding decides.
        let scaled = |place: usize, length: usize| (2 * place + 1) * length / (2 * self.side);
        Some((self.region.left + scaled(x, self.region.width), self.region.top + scaled(y, self.region.height)))
    }

    /// The classes `[side, side]` that the pixels of the result have by the `map` of the image, nearest neighbour: none in
    /// the padding.
    #[must_use]
    pub fn map(&self, map: &ClassMap) -> Vec<u16> {
        let places = (0..self.side * self.side).map(|i| self.source(i % self.side, i / self.side));
        places.map(|place| place.map_or(UNKNOWN_CLASS, |(x, y)| map.classes[y * map.width + x])).collect()
    }

    /// Where the point (`x`, `y`) of the image lies in the result, perhaps outside of it.
    #[must_use]
    pub fn point(&self, x: f32, y: f32) -> (f32, f32) {
        let side = self.side as f32;
        let (region, window) = (&self.region, &self.window);
        let x = (x - region.left as f32) * side / region.width as f32 - window.left as f32;
        let y = (y - region.top as f32) * side / region.height as f32 - window.top as f32;
        (if window.mirrored { side - x } else { x }, y)
    }

    /// The point of the image that lies at (`x`, `y`) of the result.
    #[must_use]
    pub fn point_of_image(&self, x: f32, y: f32) -> (f32, f32) {
        let side = self.side as f32;
        let (region, window) = (&self.region, &self.window);
        let x = if window.mirrored { side - x } else { x };
        let x = (x + window.left as f32) * region.width as f32 / side + region.left as f32;
        let y = (y + window.top as f32) * region.height as f32 / side + region.top as f32;
        (x, y)
    }

    /// The part of the result that shows a part of the image: left, top, right and bottom edge.
    fn seen(&self) -> [f32; 4] {
        let side = self.side as f32;
        let along = |offset: i32| ((-offset as f32).max(0.0), (side - offset as f32).min(side));
        let ((left, right), (top, bottom)) = (along(self.window.left), along(self.window.top));
        if self.window.mirrored { [side - right, top, side - left, bottom] } else { [left, top, right, bottom] }
    }

    /// The object in the result, cut at the edges of what is seen of the image: none if nothing of it is left. One that
    /// is hardly there is ignored.
    #[must_use]
    pub fn object(&self, object: &ObjectBox) -> Option<BoxTarget> {
        let [left, top, right, bottom] = object.edges;
        let ((x0, y0), (x1, y1)) = (self.point(left, top), self.point(right, bottom));
        let whole = [x0.min(x1), y0, x0.max(x1), y1];
        let seen = self.seen();
        let cut = [whole[0].max(seen[0]), whole[1].max(seen[1]), whole[2].min(seen[2]), whole[3].min(seen[3])];
        let (width, height) = (cut[2] - cut[0], cut[3] - cut[1]);
        if width <= 0.0 || height <= 0.0 {
            return None;
        }
        let share = width * height / ((whole[2] - whole[0]) * (whole[3] - whole[1]));
        let is_lost = share < LEAST_SHARE || width < LEAST_SIDE || height < LEAST_SIDE;
        let scale = (self.side * self.side) as f32 / (self.region.width * self.region.height) as f32;
        Some(BoxTarget {
            edges: cut,
            class: object.class,
            ignored: object.ignored || is_lost,
            area: object.area * scale * share,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_model::rng::{Purpose, below, keyed};
    use rand_chacha::ChaCha8Rng;

    fn random_geometry(rng: &mut ChaCha8Rng, width: usize, height: usize) -> Geometry {
        let mut draw = |n: usize| below(rng, n as u64) as usize;
        let region_width = 1 + draw(width);
        let region_height = 1 + draw(height);
        let (left, top) = (draw(width - region_width + 1), draw(height - region_height + 1));
        let side = 4 + draw(20);
        let padding = draw(side / 2);
        let mut offset = || draw(2 * padding + 1) as i32 - padding as i32;
        let window = Window { top: offset(), left: offset(), mirrored: draw(2) == 1 };
        Geometry { region: Region { left, top, width: region_width, height: region_height }, side, window }
    }

    /// The classes of `width` by `height` pixels, of which those are the object's whose centre its box holds.
    fn rasterised(edges: [f32; 4], width: usize, height: usize) -> Vec<u16> {
        let [left, top, right, bottom] = edges;
        let within = |low: f32, place: usize, high: f32| (low..high).contains(&(place as f32 + 0.5));
        (0..width * height)
            .map(|i| u16::from(within(left, i % width, right) && within(top, i / width, bottom)))
            .collect()
    }

    #[test]
    fn a_map_moves_as_the_pixels_of_its_image_do() {
        // An image whose pixels are their own numbers, seen by the window that draws pictures.
        for seed in 0..200 {
            let mut rng = keyed(seed, Purpose::Eval, 7, 0);
            let side = 3 + below(&mut rng, 12) as usize;
            let mut geometry = random_geometry(&mut rng, side, side);
            geometry.side = side;
            geometry.region = Region::whole(side, side);
            let bound = (side - 1) as i32;
            geometry.window.left = geometry.window.left.clamp(-bound, bound);
            geometry.window.top = geometry.window.top.clamp(-bound, bound);
            let pixels: Vec<u8> = (0..side * side).map(|i| i as u8 + 1).collect();
            let map = ClassMap { width: side, height: side, classes: pixels.iter().map(|&p| u16::from(p)).collect() };
            let mut seen = vec![0.0; side * side];
            let unscaled = mlomae_model::images::Scaling { scale: 1.0, shift: 0.0 };
            geometry.window.write_channel(&mut seen, side, &pixels, 0, unscaled);
            let of_map =
                geometry.map(&map).into_iter().map(|class| if class == UNKNOWN_CLASS { 0.0 } else { f32::from(class) });
            assert_eq!(of_map.collect::<Vec<_>>(), seen, "{geometry:?}");
        }
    }

    #[test]
    fn to_draw_and_to_transform_are_exchangeable() {
        for seed in 0..500 {
            let mut rng = keyed(seed, Purpose::Eval, 8, 0);
            let (width, height) = (5 + below(&mut rng, 40) as usize, 5 + below(&mut rng, 40) as usize);
            let geometry = random_geometry(&mut rng, width, height);
            let mut draw = |n: usize| below(&mut rng, n as u64) as usize;
            let (left, top) = (draw(width), draw(height));
            let (right, bottom) = (left + 1 + draw(width - left), top + 1 + draw(height - top));
            let edges = [left, top, right, bottom].map(|edge| edge as f32);
            let object =
                ObjectBox { edges, class: 1, ignored: false, area: (edges[2] - edges[0]) * (edges[3] - edges[1]) };
            let map = ClassMap { width, height, classes: rasterised(edges, width, height) };
            let moved: Vec<bool> = geometry.map(&map).iter().map(|&class| class == 1).collect();
            let drawn = geometry.object(&object).map_or_else(
                || vec![0; geometry.side * geometry.side],
                |found| rasterised(found.edges, geometry.side, geometry.side),
            );
            for (i, (moved, drawn)) in moved.iter().zip(drawn).enumerate() {
                // A pixel whose centre lies on the edge itself may fall to either side by the rounding of f32.
                let centre = ((i % geometry.side) as f32 + 0.5, (i / geometry.side) as f32 + 0.5);
                let (x, y) = geometry.point_of_image(centre.0, centre.1);
                let near = |value: f32, edge: f32| (value - edge).abs() < 1e-3;
                if [edges[0], edges[2]].iter().any(|edge| near(x, *edge))
                    || [edges[1], edges[3]].iter().any(|edge| near(y, *edge))
                {
                    continue;
                }
                assert_eq!(*moved, drawn == 1, "pixel {i} of {geometry:?} with {edges:?}");
            }
        }
    }

    #[test]
    fn points_come_back() {
        for seed in 0..100 {
            let mut rng = keyed(seed, Purpose::Eval, 9, 0);
            let geometry = random_geometry(&mut rng, 33, 17);
            let (x, y) = geometry.point(12.25, 3.5);
            let (x, y) = geometry.point_of_image(x, y);
            assert!((x - 12.25).abs() < 1e-3 && (y - 3.5).abs() < 1e-3, "{geometry:?}: {x} {y}");
        }
    }

    #[test]
    fn what_is_hardly_left_is_ignored() {
        let geometry =
            |left| Geometry { region: Region::whole(8, 8), side: 8, window: Window { top: 0, left, mirrored: false } };
        let object = ObjectBox { edges: [0.0, 0.0, 4.0, 4.0], class: 2, ignored: false, area: 12.0 };
        let at = |left| geometry(left).object(&object);
        assert_eq!(at(0), Some(BoxTarget { edges: [0.0, 0.0, 4.0, 4.0], class: 2, ignored: false, area: 12.0 }));
        assert_eq!(at(2), Some(BoxTarget { edges: [0.0, 0.0, 2.0, 4.0], class: 2, ignored: false, area: 6.0 }));
        // A quarter is still an object, less is not.
        assert!(!at(3).unwrap().ignored);
        assert_eq!(at(4), None);
        let small = ObjectBox { edges: [0.0, 0.0, 0.9, 4.0], class: 2, ignored: false, area: 3.6 };
        assert!(geometry(0).object(&small).unwrap().ignored);
        let crowd = ObjectBox { ignored: true, ..object };
        assert!(geometry(0).object(&crowd).unwrap().ignored);
    }
}
