//! EXIF orientation: cameras store the sensor's rows and a number from 1 to 8 that says how to turn them.

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};

use crate::dataset::pixels::Image;
use crate::dataset::target::ClassMap;

/// What the bytes of an EXIF segment say, without its `Exif\0\0`. Damaged ones say nothing, as everywhere.
pub(super) fn of_exif(bytes: &[u8]) -> Orientation {
    let bytes = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
    Orientation::from_exif_chunk(bytes).unwrap_or(Orientation::NoTransforms)
}

/// Whether turning makes rows of columns.
pub(super) fn swaps_sides(orientation: Orientation) -> bool {
    orientation.to_exif() >= 5
}

/// The image as it is meant to be seen.
pub(super) fn turn(image: Image, orientation: Orientation) -> Image {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let Image { width, height, channels, pixels } = image;
    // Sides are below 2^32: they came from headers that have no more bits.
    let (w, h) = (width as u32, height as u32);
    let stored = if channels == 1 {
        ImageBuffer::from_raw(w, h, pixels).map(DynamicImage::ImageLuma8)
    } else {
        ImageBuffer::from_raw(w, h, pixels).map(DynamicImage::ImageRgb8)
    };
    let mut turned = stored.expect("invariant: the decoder's pixels have the header's size");
    turned.apply_orientation(orientation);
    let (width, height) = (turned.width() as usize, turned.height() as usize);
    Image { width, height, channels, pixels: turned.into_bytes() }
}

/// How an image that was stored as `width` by `height` pixels was turned. What is known of places in it turns with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(super) orientation: Orientation,
    /// Stored pixels in a row.
    pub width: usize,
    /// Stored rows.
    pub height: usize,
}

impl Turn {
    /// Whether left and right, then top and bottom are exchanged, and then rows and columns.
    fn steps(self) -> [bool; 3] {
        match self.orientation {
            Orientation::NoTransforms => [false, false, false],
            Orientation::FlipHorizontal => [true, false, false],
            Orientation::Rotate180 => [true, true, false],
            Orientation::FlipVertical => [false, true, false],
            Orientation::Rotate90FlipH => [false, false, true],
            Orientation::Rotate90 => [false, true, true],
            Orientation::Rotate270FlipH => [true, true, true],
            Orientation::Rotate270 => [true, false, true],
        }
    }

    /// Whether targets that were made for an image of `width` by `height` pixels are still to be turned: they are if that
    /// is the size of the stored pixels, and not if it is that of the turned image. None if it is neither.
    pub fn is_to_come(self, width: usize, height: usize) -> Option<bool> {
        let turned = if self.steps()[2] { (self.height, self.width) } else { (self.width, self.height) };
        if (width, height) == (self.width, self.height) {
            Some(true)
        } else {
            ((width, height) == turned).then_some(false)
        }
    }

    /// A map of the stored pixels, turned as the image is.
    pub fn map(self, map: ClassMap) -> ClassMap {
        let [mirrored, upside_down, swapped] = self.steps();
        let ClassMap { width, height, classes } = map;
        if self.orientation == Orientation::NoTransforms || classes.len() != width * height {
            return ClassMap { width, height, classes };
        }
        let (new_width, new_height) = if swapped { (height, width) } else { (width, height) };
        let at = |x: usize, y: usize| {
            let (x, y) = if swapped { (y, x) } else { (x, y) };
            let (x, y) = (if mirrored { width - 1 - x } else { x }, if upside_down { height - 1 - y } else { y });
            classes[y * width + x]
        };
        let classes = (0..new_width * new_height).map(|place| at(place % new_width, place / new_width)).collect();
        ClassMap { width: new_width, height: new_height, classes }
    }

    /// Left, top, right and bottom edge in the stored pixels, turned as the image is.
    pub fn edges(self, [left, top, right, bottom]: [f32; 4]) -> [f32; 4] {
        let [mirrored, upside_down, swapped] = self.steps();
        let (width, height) = (self.width as f32, self.height as f32);
        let (left, right) = if mirrored { (width - right, width - left) } else { (left, right) };
        let (top, bottom) = if upside_down { (height - bottom, height - top) } else { (top, bottom) };
        if swapped { [top, left, bottom, right] } else { [left, top, right, bottom] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_the_eight_orientations_puts_the_corners_where_exif_says() {
        // A B C / D E F as stored.
        let stored = Image { width: 3, height: 2, channels: 1, pixels: b"ABCDEF".to_vec() };
        let expected: [(usize, &[u8]); 8] = [
            (3, b"ABCDEF"),
            (3, b"CBAFED"),
            (3, b"FEDCBA"),
            (3, b"DEFABC"),
            (2, b"ADBECF"),
            (2, b"DAEBFC"),
            (2, b"FCEBDA"),
            (2, b"CFBEAD"),
        ];
        for (number, (width, pixels)) in (1..).zip(expected) {
            let orientation = Orientation::from_exif(number).unwrap();
            let turned = turn(stored.clone(), orientation);
            assert_eq!((turned.width, turned.height, &turned.pixels[..]), (width, 6 / width, pixels), "{number}");
            assert_eq!(swaps_sides(orientation), width == 2, "{number}");
            let rgb = super::super::resize::to_channels(&stored, 3);
            let turned = turn(rgb, orientation);
            let red: Vec<u8> = turned.pixels.iter().copied().step_by(3).collect();
            assert_eq!((turned.channels, &red[..]), (3, pixels), "{number}");
            // Maps turn with it, and so do boxes: here that of each pixel.
            let turn = Turn { orientation, width: 3, height: 2 };
            let classes = stored.pixels.iter().map(|value| u16::from(*value)).collect();
            let map = turn.map(ClassMap { width: 3, height: 2, classes });
            let bytes: Vec<u8> = map.classes.iter().map(|class| *class as u8).collect();
            assert_eq!((map.width, map.height, &bytes[..]), (width, 6 / width, pixels), "{number}");
            for (at, name) in stored.pixels.iter().enumerate() {
                let (x, y) = ((at % 3) as f32, (at / 3) as f32);
                let to = pixels.iter().position(|other| other == name).unwrap();
                let (to_x, to_y) = ((to % width) as f32, (to / width) as f32);
                assert_eq!(turn.edges([x, y, x + 1.0, y + 1.0]), [to_x, to_y, to_x + 1.0, to_y + 1.0], "{number}");
            }
            let size = |width: usize| turn.is_to_come(width, 6 / width);
            assert_eq!((size(3), size(2), size(6)), (Some(true), (width == 2).then_some(false), None), "{number}");
        }
        let exif =
            |value: u8| [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[value, 0, 0, 0][..]].concat();
        assert_eq!(of_exif(&exif(6)), Orientation::Rotate90);
        for bad in [exif(0), exif(9), exif(6)[..20].to_vec(), b"Exif\0\0".to_vec(), Vec::new(), vec![0xFF; 30]] {
            assert_eq!(of_exif(&bad), Orientation::NoTransforms, "{bad:?}");
        }
    }
}
