//! From decoded images to what the networks see: cut, flipped, resized and normalised.

use mlomae_model::images::{Scaling, Window};
use mlomae_storage::dataset::Image;
use mlomae_storage::dataset::decode::resize::{resize, to_channels};
use rand_chacha::ChaCha8Rng;

use super::geometry::{Geometry, Region};
use crate::config::{AugmentConfig, Crop};
use mlomae_model::rng::{below, uniform};

/// Mean and standard deviation of each channel, of values in 0..1.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalisation {
    /// Means.
    pub mean: Vec<f32>,
    /// Standard deviations, above 0.
    pub std: Vec<f32>,
}

impl Normalisation {
    /// Of all pixels of `images`, which have `channels` channels or are converted to them. The sums
    /// are of whole numbers and therefore do not depend on the order. A constant channel gets the
    /// deviation 1.
    ///
    /// # Errors
    /// The first error among `images`.
    pub fn of_images<E>(images: impl IntoIterator<Item = Result<Image, E>>, channels: usize) -> Result<Self, E> {
        let (mut sums, mut squares, mut num_pixels) = (vec![0_u64; channels], vec![0_u64; channels], 0_u64);
        for image in images {
            let image = with_channels(image?, channels);
            num_pixels += (image.width * image.height) as u64;
            for pixel in image.pixels.chunks_exact(channels) {
                for (channel, value) in pixel.iter().enumerate() {
                    sums[channel] += u64::from(*value);
                    squares[channel] += u64::from(*value).pow(2);
                }
            }
        }
        let num_pixels = num_pixels.max(1) as f64;
        let mean: Vec<f64> = sums.iter().map(|sum| *sum as f64 / num_pixels / 255.0).collect();
        let std = squares.iter().zip(&mean).map(|(squares, mean)| {
            let variance = *squares as f64 / num_pixels / 255.0_f64.powi(2) - mean * mean;
            if variance > 1e-12 { variance.sqrt() as f32 } else { 1.0 }
        });
        Ok(Self { std: std.collect(), mean: mean.iter().map(|mean| *mean as f32).collect() })
    }

    /// How it makes values of the pixels of each channel, \[C].
    #[must_use]
    pub fn scaling(&self) -> Vec<Scaling> {
        self.mean.iter().zip(&self.std).map(|(mean, std)| Scaling::normalising(*mean, *std)).collect()
    }
}

/// How an image is made into values [C, side, side].
#[derive(Debug, Clone, PartialEq)]
pub struct Preparation {
    /// Side of the result in pixels.
    pub side: usize,
    /// Channels of the result, 1 or 3.
    pub channels: usize,
    /// Normalisation of the result.
    pub normalisation: Normalisation,
    /// Random changes, where a generator is given.
    pub augment: AugmentConfig,
}

impl Preparation {
    /// Values of a result.
    #[must_use]
    pub const fn num_values(&self) -> usize {
        self.channels * self.side * self.side
    }

    /// Writes `image`, augmented by the draws of `rng` if there is one, to `out` [C, side, side]. Returns where its places
    /// have gone.
    ///
    /// # Panics
    /// If `out` has not [`num_values`](Self::num_values) values.
    pub fn prepare(&self, image: Image, rng: Option<&mut ChaCha8Rng>, out: &mut [f32]) -> Geometry {
        assert_eq!(out.len(), self.num_values(), "invariant: one image's place in a batch");
        let (image, geometry) = self.fit(image, rng);
        for (channel, plane) in out.chunks_exact_mut(self.side * self.side).enumerate() {
            let scaling = Scaling::normalising(self.normalisation.mean[channel], self.normalisation.std[channel]);
            geometry.window.write_channel(plane, self.side, &image.pixels, channel, scaling);
        }
        geometry
    }

    /// The first half of [`prepare`](Self::prepare), all draws included: `image` with the result's size and channels,
    /// and where its places have gone: the window is still to be cut out.
    #[must_use]
    pub fn fit(&self, image: Image, rng: Option<&mut ChaCha8Rng>) -> (Image, Geometry) {
        let image = with_channels(image, self.channels);
        match rng {
            Some(rng) => self.augmented(image, rng),
            None => {
                let region = Region::whole(image.width, image.height);
                (self.fitted(image), Geometry { region, side: self.side, window: Window::default() })
            }
        }
    }

    fn fitted(&self, image: Image) -> Image {
        if (image.width, image.height) == (self.side, self.side) { image } else { resize(&image, self.side, self.side) }
    }

    /// The draws are always made in the order cut, flip, so that a setting changes only its own part.
    fn augmented(&self, image: Image, rng: &mut ChaCha8Rng) -> (Image, Geometry) {
        let mut window = Window::default();
        let mut region = Region::whole(image.width, image.height);
        let image = match self.augment.crop {
            Crop::None => self.fitted(image),
            Crop::Padded => {
                let padding = self.augment.crop_padding;
                let mut offset = || {
                    let offset = below(rng, 2 * padding as u64 + 1).cast_signed() - padding as i64;
                    i32::try_from(offset).expect("invariant: the padding is at most half an image")
                };
                (window.top, window.left) = (offset(), offset());
                self.fitted(image)
            }
            Crop::Resized => {
                region = random_region(&image, self.augment.min_area, rng);
                self.fitted(cut(&image, region))
            }
        };
        window.mirrored = self.augment.flip && below(rng, 2) == 1;
        (image, Geometry { region, side: self.side, window })
    }
}

fn with_channels(image: Image, channels: usize) -> Image {
    if image.channels == channels { image } else { to_channels(&image, channels) }
}

/// A part of the image of random area and shape, at least one pixel.
fn random_region(image: &Image, min_area: f64, rng: &mut ChaCha8Rng) -> Region {
    let area = (image.width * image.height) as f64;
    for _ in 0..10 {
        let wanted = area * (min_area + (1.0 - min_area) * uniform(rng));
        // Uniform in the logarithm, so that 3:4 is as likely as 4:3.
        let shape = ((4.0_f64 / 3.0).ln() * (2.0 * uniform(rng) - 1.0)).exp();
        let (width, height) = ((wanted * shape).sqrt().round(), (wanted / shape).sqrt().round());
        if (1.0..=image.width as f64).contains(&width) && (1.0..=image.height as f64).contains(&height) {
            let (width, height) = (width as usize, height as usize);
            let left = below(rng, (image.width - width) as u64 + 1) as usize;
            let top = below(rng, (image.height - height) as u64 + 1) as usize;
            return Region { left, top, width, height };
        }
    }
    // No shape fitted: the largest square in the middle.
    let side = image.width.min(image.height).max(1);
    Region { left: (image.width - side) / 2, top: (image.height - side) / 2, width: side, height: side }
}

fn cut(image: &Image, region: Region) -> Image {
    let Region { left, top, width, height } = region;
    let row_bytes = width * image.channels;
    let rows = (top..top + height).map(|y| (y * image.width + left) * image.channels);
    let pixels = rows.flat_map(|start| image.pixels[start..start + row_bytes].iter().copied()).collect();
    Image { width, height, channels: image.channels, pixels }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use super::*;
    use mlomae_model::rng::{Purpose, keyed};

    fn gradient_image(width: usize, height: usize, channels: usize) -> Image {
        let pixel = |i: usize| (i * 7 % 251) as u8;
        Image { width, height, channels, pixels: (0..width * height * channels).map(pixel).collect() }
    }

    fn preparation(side: usize, channels: usize, augment: AugmentConfig) -> Preparation {
        let normalisation = Normalisation { mean: vec![0.0; channels], std: vec![1.0 / 255.0; channels] };
        Preparation { side, channels, normalisation, augment }
    }

    fn plain() -> AugmentConfig {
        AugmentConfig { crop: Crop::None, crop_padding: 0, min_area: 0.2, flip: false }
    }

    fn run(preparation: &Preparation, image: &Image, seed: Option<u64>) -> Vec<i32> {
        let mut out = vec![f32::NAN; preparation.num_values()];
        let mut rng = seed.map(|seed| keyed(seed, Purpose::PretrainAugment, 0, 0));
        preparation.prepare(image.clone(), rng.as_mut(), &mut out);
        out.iter().map(|value| value.round() as i32).collect()
    }

    #[test]
    fn pixels_become_planes() {
        let image = gradient_image(6, 6, 3);
        let planes = run(&preparation(6, 3, plain()), &image, None);
        for (i, value) in planes.iter().enumerate() {
            let (channel, pixel) = (i / 36, i % 36);
            assert_eq!(*value, i32::from(image.pixels[pixel * 3 + channel]));
        }
    }

    #[test]
    fn every_padded_crop_is_a_shift_with_black_around_and_all_shifts_occur() {
        let image = gradient_image(8, 8, 1);
        let augment = AugmentConfig { crop: Crop::Padded, crop_padding: 2, ..plain() };
        let preparation = preparation(8, 1, augment);
        let mut seen = BTreeSet::new();
        for seed in 0..400 {
            let got = run(&preparation, &image, Some(seed));
            let shift = (-2..=2).flat_map(|top| (-2..=2).map(move |left| (top, left))).find(|(top, left)| {
                (0..64_usize).all(|i| {
                    let (y, x) = ((i / 8) as isize + top, (i % 8) as isize + left);
                    let inside = (0..8).contains(&y) && (0..8).contains(&x);
                    got[i] == if inside { i32::from(image.pixels[(y * 8 + x) as usize]) } else { 0 }
                })
            });
            seen.insert(shift.expect("a shift"));
        }
        assert_eq!(seen.len(), 25);
    }

    #[test]
    fn a_flip_mirrors_half_of_the_images() {
        let image = gradient_image(5, 5, 3);
        let preparation = preparation(5, 3, AugmentConfig { flip: true, ..plain() });
        let upright = run(&preparation, &image, None);
        let mirrored: Vec<i32> = upright.chunks_exact(5).flat_map(|row| row.iter().rev().copied()).collect();
        let mut num_mirrored = 0;
        for seed in 0..200 {
            let got = run(&preparation, &image, Some(seed));
            assert!(got == upright || got == mirrored);
            num_mirrored += usize::from(got == mirrored);
        }
        assert!((70..=130).contains(&num_mirrored), "{num_mirrored}");
    }

    #[test]
    fn windows_lie_inside_and_keep_their_least_area() {
        for (width, height) in [(32, 32), (40, 10), (1, 7), (3, 2), (1, 1)] {
            let image = gradient_image(width, height, 1);
            for seed in 0..300 {
                let mut rng = keyed(seed, Purpose::FinetuneAugment, 0, 0);
                let region = random_region(&image, 0.3, &mut rng);
                let Region { left, top, width: w, height: h } = region;
                assert!(w > 0 && h > 0 && left + w <= width && top + h <= height);
                if (width, height) == (32, 32) {
                    assert!(w * h > 250, "{w} x {h}");
                }
                let part = cut(&image, region);
                assert_eq!(part.pixels[0], image.pixels[top * width + left]);
                assert_eq!(part.pixels.len(), w * h);
            }
        }
    }

    #[test]
    fn any_image_fits_any_size_under_every_augmentation() {
        for (width, height, channels) in [(1, 1, 1), (28, 28, 1), (17, 40, 3), (300, 2, 3)] {
            for crop in [Crop::None, Crop::Padded, Crop::Resized] {
                let augment = AugmentConfig { crop, crop_padding: 3, min_area: 0.2, flip: true };
                for wanted in [1, 3] {
                    let values = run(
                        &preparation(12, wanted, augment.clone()),
                        &gradient_image(width, height, channels),
                        Some(1),
                    );
                    assert!(values.iter().all(|value| (0..=255).contains(value)));
                }
            }
        }
    }

    #[test]
    fn the_same_key_gives_the_same_bits() {
        let augment = AugmentConfig { crop: Crop::Resized, crop_padding: 0, min_area: 0.2, flip: true };
        let preparation = preparation(16, 3, augment);
        let image = gradient_image(32, 24, 3);
        assert_eq!(run(&preparation, &image, Some(3)), run(&preparation, &image, Some(3)));
        assert_ne!(run(&preparation, &image, Some(3)), run(&preparation, &image, Some(4)));
    }

    #[test]
    fn normalised_values_have_mean_zero_and_deviation_one() {
        let images = [gradient_image(16, 16, 3), gradient_image(9, 30, 3)];
        let normalisation =
            Normalisation::of_images(images.iter().cloned().map(Ok::<_, Infallible>), 3).expect("no errors");
        let (mut sum, mut squares, mut num) = (0.0, 0.0, 0.0);
        for image in &images {
            for pixel in image.pixels.chunks_exact(3) {
                for (channel, value) in pixel.iter().enumerate() {
                    let value = (f64::from(*value) / 255.0 - f64::from(normalisation.mean[channel]))
                        / f64::from(normalisation.std[channel]);
                    sum += value;
                    squares += value * value;
                    num += 1.0;
                }
            }
        }
        assert!((sum / num).abs() < 1e-5);
        assert!((squares / num - 1.0).abs() < 1e-5);
        let black = Image { width: 2, height: 2, channels: 1, pixels: vec![0; 4] };
        let constant = Normalisation::of_images([Ok::<_, Infallible>(black)], 1).expect("no errors");
        assert_eq!((constant.mean[0], constant.std[0]), (0.0, 1.0));
    }
}
