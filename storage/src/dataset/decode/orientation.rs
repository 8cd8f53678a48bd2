//! EXIF orientation: cameras store the sensor's rows and a number from 1 to 8 that says how to turn them.

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};

use crate::dataset::pixels::Image;

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
        }
        let exif =
            |value: u8| [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[value, 0, 0, 0][..]].concat();
        assert_eq!(of_exif(&exif(6)), Orientation::Rotate90);
        for bad in [exif(0), exif(9), exif(6)[..20].to_vec(), b"Exif\0\0".to_vec(), Vec::new(), vec![0xFF; 30]] {
            assert_eq!(of_exif(&bad), Orientation::NoTransforms, "{bad:?}");
        }
    }
}
