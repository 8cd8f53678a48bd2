//! From the pixels of images to the values that networks see.

use super::tokens::{THREADS, check, int, long, num_of};
use super::vectors::sweep_grid;
use crate::memory::View;
use crate::stream::Stream;

/// Words of an image's window.
pub const WINDOW_WORDS: usize = 3;

impl Stream {
    /// The values `out` `[B, C, S, S]` of images of S = `side` by S `pixels` `[B, S, S, C]`. The value of a pixel is
    /// pixel · scale + shift, rounded to f32 after the product and after the sum.
    ///
    /// `windows` `[B, 3]` says of each image where its first row and first column lie in the pixels (signed: black
    /// padding lies before and behind them), and whether it is mirrored (0, 1), in which case the last column of the
    /// window is the first. `scaling` `[C, 2]` has scale and shift of each channel. A row of padding has the value of
    /// the shift; padding within a row that of a black pixel.
    pub fn pixel_values(
        &self,
        out: View<'_, f32>,
        pixels: View<'_, u8>,
        windows: View<'_, u32>,
        scaling: View<'_, f32>,
        side: usize,
    ) {
        if out.is_empty() {
            return;
        }
        let channels = num_of(scaling.len(), 2, "pixel_values: scaling");
        let batch = num_of(out.len(), channels * side * side, "pixel_values");
        check(pixels.len(), out.len(), "pixel_values: pixels");
        check(windows.len(), batch * WINDOW_WORDS, "pixel_values: windows");
        let args = [out.arg(), pixels.arg(), windows.arg(), scaling.arg(), long(out.len()), int(channels), int(side)];
        self.launch("pixel_values", sweep_grid(out.len(), 4), THREADS, 0, &args);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tests::each;
    use crate::twins::values;

    /// B, C, S.
    const SHAPES: [[usize; 3]; 7] = [[3, 3, 8], [2, 1, 5], [4, 3, 6], [1, 1, 1], [2, 3, 7], [9, 1, 28], [5, 2, 4]];

    /// Whole numbers from 0 on, below `below`.
    fn numbers(len: usize, below: usize, seed: u64) -> Vec<usize> {
        values(len, seed).iter().map(|v| ((v.abs() * 1e6) as usize) % below).collect()
    }

    #[test]
    fn values_are_the_host_s_to_the_bit() {
        for [batch, channels, side] in SHAPES {
            let pixels: Vec<u8> = numbers(batch * channels * side * side, 256, 1).iter().map(|p| *p as u8).collect();
            // Far outside, at the edges of what a window may say, and near.
            let far = [i32::MIN, -(side as i32), side as i32, i32::MAX];
            let offset = |n: usize| if n < 4 { far[n] } else { (n % (2 * side + 1)) as i32 - side as i32 };
            let draws = numbers(3 * batch, 40, 2);
            let windows: Vec<(i32, i32, bool)> = (0..batch)
                .map(|image| match image {
                    0 => (0, 0, true),
                    1 => (-1, 1, false),
                    _ => {
                        (offset(draws[3 * image]), offset(draws[3 * image + 1]), draws[3 * image + 2].is_multiple_of(2))
                    }
                })
                .collect();
            let words: Vec<u32> = windows
                .iter()
                .flat_map(|&(top, left, mirrored)| [top.cast_unsigned(), left.cast_unsigned(), u32::from(mirrored)])
                .collect();
            // The second channel has a mean of 0, and with it a shift of -0.
            let scaling: Vec<f32> = (0..channels)
                .flat_map(|c| {
                    let (mean, std) = ([0.4914_f32, 0.0, 0.4465][c], [0.247_f32, 0.2435, 0.2616][c]);
                    [1.0 / (255.0 * std), -mean / std]
                })
                .collect();
            let mut want = Vec::with_capacity(pixels.len());
            for (image, &(top, left, mirrored)) in windows.iter().enumerate() {
                for (c, y, x) in (0..channels * side * side).map(|i| (i / (side * side), i / side % side, i % side)) {
                    let (scale, shift) = (scaling[2 * c], scaling[2 * c + 1]);
                    let size = side as i64;
                    let row = y as i64 + i64::from(top);
                    let column = if mirrored { side - 1 - x } else { x } as i64 + i64::from(left);
                    let is_in = (0..size).contains(&column);
                    let place = || ((image as i64 * size + row) * size + column) as usize * channels + c;
                    let value = match (0..size).contains(&row) {
                        false => shift,
                        true => f32::from(if is_in { pixels[place()] } else { 0 }) * scale + shift,
                    };
                    want.push(value.to_bits());
                }
            }
            each(|t| {
                let s = &t.stream;
                let (on_pixels, on_windows, on_scaling) = (s.upload(&pixels), s.upload(&words), s.upload(&scaling));
                let out = t.nan(pixels.len());
                s.pixel_values(out.view(), on_pixels.view(), on_windows.view(), on_scaling.view(), side);
                let got = t.read(&out);
                assert_eq!(got.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), want, "{batch} {channels} {side}");
                vec![got]
            });
        }
    }

    #[test]
    #[should_panic(expected = "pixel_values: pixels")]
    fn pixels_of_another_length_panic() {
        each(|t| {
            let (pixels, windows) = (t.stream.upload(&[0_u8; 3]), t.stream.upload(&[0_u32; 3]));
            let (out, scaling) = (t.nan(4), t.stream.upload(&[1.0_f32, 0.0]));
            t.stream.pixel_values(out.view(), pixels.view(), windows.view(), scaling.view(), 2);
            vec![]
        });
    }
}
