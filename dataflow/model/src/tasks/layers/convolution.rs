//! Convolution of 3×3 pixels and bilinear enlargement of an image `[height, width, channels]`, row-major.

use crate::layout::Weight;
use crate::tasks::product::{Factor, add_product};

/// Places of the window: 3 × 3.
const WINDOW: usize = 9;
/// Pixels whose windows are laid out at a time. It bounds memory and changes no product of one pixel with one output,
/// but the order in which the gradient of the weights is summed.
const BLOCK: usize = 1024;

/// A convolution 3×3 with a border of zeros and no bias, of square images.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// `[outputs, inputs, 3, 3]`, row-major.
    pub weight: Weight,
    /// Channels of the image.
    pub inputs: usize,
    /// Channels of the result.
    pub outputs: usize,
}

impl Convolution {
    /// The weights `[outputs, 9, inputs]`, as windows have their values.
    fn packed(&self, c: &[f64]) -> Vec<f64> {
        let mut packed = vec![0.0; self.weight.len];
        let of_outputs = c[self.weight.range()].chunks_exact(self.inputs * WINDOW);
        for (from, to) in of_outputs.zip(packed.chunks_exact_mut(self.inputs * WINDOW)) {
            for (input, places) in from.chunks_exact(WINDOW).enumerate() {
                for (place, value) in places.iter().enumerate() {
                    to[place * self.inputs + input] = *value;
                }
            }
        }
        packed
    }

    /// The image's pixel under place `place` of the window around `pixel`; none on the border.
    fn under(side: usize, pixel: usize, place: usize) -> Option<usize> {
        let row = (pixel / side + place / 3).checked_sub(1).filter(|row| *row < side)?;
        let column = (pixel % side + place % 3).checked_sub(1).filter(|column| *column < side)?;
        Some(row * side + column)
    }

    /// The windows `[pixels, 9, inputs]` of some pixels (im2col).
    fn windows(&self, x: &[f64], side: usize, first: usize, windows: &mut [f64]) {
        for (number, window) in windows.chunks_exact_mut(WINDOW * self.inputs).enumerate() {
            for (place, to) in window.chunks_exact_mut(self.inputs).enumerate() {
                match Self::under(side, first + number, place) {
                    Some(pixel) => to.copy_from_slice(&x[pixel * self.inputs..][..self.inputs]),
                    None => to.fill(0.0),
                }
            }
        }
    }

    /// The convolution of x `[side, side, inputs]`: `[side, side, outputs]`.
    #[must_use]
    pub fn forward(&self, c: &[f64], x: &[f64], side: usize) -> Vec<f64> {
        let (packed, width) = (self.packed(c), WINDOW * self.inputs);
        let mut y = vec![0.0; side * side * self.outputs];
        let mut windows = vec![0.0; BLOCK.min(side * side) * width];
        for (block, y) in y.chunks_mut(BLOCK * self.outputs).enumerate() {
            let windows = &mut windows[..y.len() / self.outputs * width];
            self.windows(x, side, block * BLOCK, windows);
            add_product(y, Factor::rows(windows, width), Factor::rows(&packed, width).transposed());
        }
        y
    }

    /// Adds to the gradient of c what follows from the gradient `dy` of [`Convolution::forward`]'s result.
    pub fn add_weight_gradient(&self, x: &[f64], side: usize, dy: &[f64], dc: &mut [f64]) {
        let width = WINDOW * self.inputs;
        let mut packed = vec![0.0; self.weight.len];
        let mut windows = vec![0.0; BLOCK.min(side * side) * width];
        for (block, dy) in dy.chunks(BLOCK * self.outputs).enumerate() {
            let windows = &mut windows[..dy.len() / self.outputs * width];
            self.windows(x, side, block * BLOCK, windows);
            let dy = Factor::rows(dy, self.outputs);
            add_product(&mut packed, dy.transposed(), Factor::rows(windows, width));
        }
        let of_outputs = dc[self.weight.range()].chunks_exact_mut(width);
        for (to, from) in of_outputs.zip(packed.chunks_exact(width)) {
            for (input, places) in to.chunks_exact_mut(WINDOW).enumerate() {
                for (place, value) in places.iter_mut().enumerate() {
                    *value += from[place * self.inputs + input];
                }
            }
        }
    }

    /// The gradient of [`Convolution::forward`]'s x.
    #[must_use]
    pub fn input_gradient(&self, c: &[f64], side: usize, dy: &[f64]) -> Vec<f64> {
        let (packed, width) = (self.packed(c), WINDOW * self.inputs);
        let mut dx = vec![0.0; side * side * self.inputs];
        let mut windows = vec![0.0; BLOCK.min(side * side) * width];
        for (block, dy) in dy.chunks(BLOCK * self.outputs).enumerate() {
            let windows = &mut windows[..dy.len() / self.outputs * width];
            windows.fill(0.0);
            add_product(windows, Factor::rows(dy, self.outputs), Factor::rows(&packed, width));
            for (number, window) in windows.chunks_exact(width).enumerate() {
                for (place, from) in window.chunks_exact(self.inputs).enumerate() {
                    if let Some(pixel) = Self::under(side, block * BLOCK + number, place) {
                        let to = &mut dx[pixel * self.inputs..][..self.inputs];
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    }
                }
            }
        }
        dx
    }
}

/// The two pixels that pixel `at` of a line twice as long lies between, nearest first, which has ¾ of the weight.
fn neighbours(at: usize, side: usize) -> [usize; 2] {
    let near = at / 2;
    [near, if at.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(side - 1) }]
}

/// Calls `f` for every pixel of an image of twice the side with each pixel of the small image that it is mixed from, and
/// its weight: bilinear, pixels at their centres (`align_corners = false`).
fn mixtures(side: usize, mut f: impl FnMut(usize, usize, f64)) {
    for row in 0..2 * side {
        for column in 0..2 * side {
            for (from_row, down) in neighbours(row, side).into_iter().zip([0.75, 0.25]) {
                for (from_column, right) in neighbours(column, side).into_iter().zip([0.75, 0.25]) {
                    f(row * 2 * side + column, from_row * side + from_column, down * right);
                }
            }
        }
    }
}

/// An image `[side, side, channels]` at twice its side.
#[must_use]
pub fn enlarge(x: &[f64], side: usize, channels: usize) -> Vec<f64> {
    let mut y = vec![0.0; 4 * x.len()];
    mixtures(side, |to, from, weight| {
        let from = &x[from * channels..][..channels];
        y[to * channels..][..channels].iter_mut().zip(from).for_each(|(y, x)| *y += weight * x);
    });
    y
}

/// The gradient of [`enlarge`]'s x.
#[must_use]
pub fn enlarge_gradient(dy: &[f64], side: usize, channels: usize) -> Vec<f64> {
    let mut dx = vec![0.0; side * side * channels];
    mixtures(side, |from, to, weight| {
        let from = &dy[from * channels..][..channels];
        dx[to * channels..][..channels].iter_mut().zip(from).for_each(|(dx, dy)| *dx += weight * dy);
    });
    dx
}
