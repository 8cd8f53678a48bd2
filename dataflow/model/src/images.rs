//! A batch's images on their way to a device: values, or pixels that the device makes values of.

use std::sync::Arc;

use crate::error::ModelError;
use crate::parallel::arena::{Buffer, Params};
use crate::vector::Vector;

/// Where the pixels that a network sees of an image lie in it: side by side pixels from (`top`, `left`) on, mirrored.
/// What lies outside of the image is black.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Row of the image that is the window's first; negative in the padding above.
    pub top: i32,
    /// Column of the image that is the window's first; negative in the padding before it.
    pub left: i32,
    /// Whether the window's last column becomes the first of the result.
    pub mirrored: bool,
}

/// How a channel's pixels become values: pixel · scale + shift.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// 1 / (255 · standard deviation).
    pub scale: f32,
    /// −mean / standard deviation.
    pub shift: f32,
}

impl Scaling {
    /// The scaling by which values have mean 0 and deviation 1, of pixels / 255 with these.
    #[must_use]
    pub fn normalising(mean: f32, std: f32) -> Self {
        Scaling { scale: 1.0 / (255.0 * std), shift: -mean / std }
    }
}

fn inside(place: usize, offset: i32, side: usize) -> Option<usize> {
    place.checked_add_signed(offset as isize).filter(|place| *place < side)
}

impl Window {
    /// Column and row of the image of side `side` that its result shows at (`column`, `row`); none in the padding.
    #[must_use]
    pub fn source(self, side: usize, column: usize, row: usize) -> Option<(usize, usize)> {
        let column = if self.mirrored { side - 1 - column } else { column };
        Some((inside(column, self.left, side)?, inside(row, self.top, side)?))
    }

    /// Writes the values of `channel`, `out` [side, side], of an image `pixels` [side, side, C]: each pixel times the
    /// scale plus the shift, rounded after each. A device that does it gives the same bits.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn write_channel(self, out: &mut [f32], side: usize, pixels: &[u8], channel: usize, scaling: Scaling) {
        let channels = pixels.len() / (side * side);
        let Scaling { scale, shift } = scaling;
        for (row, values) in out.chunks_exact_mut(side).enumerate() {
            let Some(y) = inside(row, self.top, side) else {
                // The padding is black before normalisation.
                values.fill(shift);
                continue;
            };
            let line = &pixels[y * side * channels..(y + 1) * side * channels];
            for (column, value) in values.iter_mut().enumerate() {
                let column = if self.mirrored { side - 1 - column } else { column };
                let pixel = inside(column, self.left, side).map_or(0, |x| line[x * channels + channel]);
                *value = f32::from(pixel) * scale + shift;
            }
        }
    }
}

/// Images as bytes, a quarter of their values, with what is left to be done to them.
#[derive(Clone, Debug, PartialEq)]
pub struct RawImages {
    side: usize,
    scaling: Vec<Scaling>,
    pixels: Vec<u8>,
    windows: Vec<Window>,
}

impl RawImages {
    /// No images yet, of `side` by `side` pixels with a channel for each scaling, with room for `num` of them.
    #[must_use]
    pub fn with_room(num: usize, side: usize, scaling: Vec<Scaling>) -> Self {
        let pixels = Vec::with_capacity(num * side * side * scaling.len());
        RawImages { side, scaling, pixels, windows: Vec::with_capacity(num) }
    }

    /// Adds an image: its pixels [side, side, C], and what is seen of it.
    ///
    /// # Panics
    /// If there are more or fewer pixels.
    pub fn push(&mut self, pixels: &[u8], window: Window) {
        assert_eq!(pixels.len(), self.values_of_image(), "invariant: images of one size");
        self.pixels.extend_from_slice(pixels);
        self.windows.push(window);
    }

    /// Rows of an image, and pixels of a row.
    #[must_use]
    pub const fn side(&self) -> usize {
        self.side
    }

    /// How values are made of the pixels of each channel, \[C].
    #[must_use]
    pub fn scaling(&self) -> &[Scaling] {
        &self.scaling
    }

    /// Pixels [batch, side, side, C].
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// What is seen of each image, \[batch].
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    const fn values_of_image(&self) -> usize {
        self.side * self.side * self.scaling.len()
    }

    /// The values [batch, C, side, side], computed here.
    #[must_use]
    pub fn values(&self) -> Buffer {
        let (area, channels) = (self.side * self.side, self.scaling.len());
        let mut values = vec![0.0; self.pixels.len()];
        for (plane, out) in values.chunks_exact_mut(area.max(1)).enumerate() {
            let (image, channel) = (plane / channels, plane % channels);
            let pixels = &self.pixels[image * area * channels..][..area * channels];
            self.windows[image].write_channel(out, self.side, pixels, channel, self.scaling[channel]);
        }
        Buffer::from_vec(values)
    }

    /// Bytes of an image with `num_values` values.
    #[must_use]
    pub const fn bytes_of_image(num_values: usize) -> usize {
        num_values + size_of::<Window>()
    }
}

/// A batch's images [batch, C, H, W], as [`Lane::ingest`](crate::Lane::ingest) takes them. Cloning shares them.
#[derive(Clone, Debug)]
pub enum Images {
    /// Normalised values.
    Values(Vector),
    /// Pixels, of which the device makes the values.
    Raw(Arc<RawImages>),
}

impl Images {
    /// Bytes of memory that they take.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Images::Values(values) => 4 * values.len(),
            Images::Raw(raw) => raw.windows.len() * RawImages::bytes_of_image(raw.values_of_image()),
        }
    }

    /// The values in host memory; those of pixels are computed here.
    ///
    /// # Errors
    /// When a device fails that has them.
    pub fn to_values(&self) -> Result<Params, ModelError> {
        match self {
            Images::Values(values) => values.to_host(),
            Images::Raw(raw) => Ok(Arc::new(raw.values())),
        }
    }
}

impl From<RawImages> for Images {
    fn from(raw: RawImages) -> Self {
        Images::Raw(Arc::new(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three images of 4 x 4 in two channels.
    fn raw() -> RawImages {
        let scaling = vec![Scaling { scale: 1.0, shift: 0.5 }, Scaling { scale: -2.0, shift: 0.0 }];
        let mut raw = RawImages::with_room(3, 4, scaling);
        let windows =
            [Window::default(), Window { top: 1, left: -1, mirrored: true }, Window { top: -4, ..Window::default() }];
        for (image, window) in (0_u8..).zip(windows) {
            raw.push(&(0..32).map(|place| 32 * image + place).collect::<Vec<u8>>(), window);
        }
        raw
    }

    #[test]
    fn pixels_become_values_where_their_window_says() {
        let values = raw().values();
        let at = |image: usize, channel: usize, y: usize, x: usize| values[((image * 2 + channel) * 4 + y) * 4 + x];
        assert_eq!((at(0, 0, 0, 0), at(0, 0, 1, 2), at(0, 1, 1, 2)), (0.5, 12.5, -26.0));
        // Mirrored, then moved: the first column is the one before the last.
        assert_eq!((at(1, 0, 0, 0), at(1, 0, 0, 3), at(1, 0, 3, 0)), (32.0 + 8.0 + 4.0 + 0.5, 0.5, 0.5));
        assert!((0..32).all(|place| values[64 + place] == if place < 16 { 0.5 } else { 0.0 }));
    }

    #[test]
    fn raw_images_take_a_quarter_of_the_bytes_and_a_window_each() {
        let raw = raw();
        let values = Images::Values(raw.values().into());
        let raw = Images::from(raw);
        assert_eq!((values.size_bytes(), raw.size_bytes()), (3 * 128, 3 * (32 + 12)));
        assert_eq!(raw.to_values().unwrap()[..], values.to_values().unwrap()[..]);
    }
}
