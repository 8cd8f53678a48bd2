//! The images of a batch as they are collected: as values, or as pixels where the device makes the values.

use mlomae_model::{Arena, Buffer, Images, RawImages};
use mlomae_storage::dataset::Image;
use rand_chacha::ChaCha8Rng;

use super::augment::Preparation;
use super::geometry::Geometry;

/// Images of a batch, one after the other.
#[derive(Debug)]
pub enum Collected {
    /// Values, in recycled memory for the whole batch.
    Values {
        /// [room, C, side, side].
        values: Buffer,
        /// Images that are there.
        num: usize,
    },
    /// Pixels.
    Raw(RawImages),
}

impl Collected {
    /// None yet, with room for `room` images as `preparation` makes them, pixels if `raw`.
    #[must_use]
    pub fn with_room(room: usize, preparation: &Preparation, raw: bool, arena: &Arena) -> Self {
        if raw {
            Self::Raw(RawImages::with_room(room, preparation.side, preparation.normalisation.scaling()))
        } else {
            Self::Values { values: arena.take(room * preparation.num_values()), num: 0 }
        }
    }

    /// Adds an image, augmented by the draws of `rng` if there is one. Returns where its places have gone.
    ///
    /// # Panics
    /// If there is no room for more values.
    pub fn add(&mut self, preparation: &Preparation, image: Image, rng: Option<&mut ChaCha8Rng>) -> Geometry {
        match self {
            Self::Values { values, num } => {
                let num_values = preparation.num_values();
                *num += 1;
                preparation.prepare(image, rng, &mut values[(*num - 1) * num_values..][..num_values])
            }
            Self::Raw(raw) => {
                let (image, geometry) = preparation.fit(image, rng);
                raw.push(&image.pixels, geometry.window);
                geometry
            }
        }
    }

    /// The batch of those that are there.
    #[must_use]
    pub fn into_images(self, preparation: &Preparation, arena: &Arena) -> Images {
        match self {
            Self::Values { values, num } => {
                let len = num * preparation.num_values();
                let values = if len < values.len() { arena.copy_of(&values[..len]) } else { values };
                Images::Values(values.into())
            }
            Self::Raw(raw) => raw.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use mlomae_model::rng::{Purpose, below, keyed};

    use super::*;
    use crate::config::{AugmentConfig, Crop};
    use crate::input::augment::Normalisation;

    /// Of any size, channels and pixels.
    fn random_image(rng: &mut ChaCha8Rng) -> Image {
        let mut number = |below_: u64| below(rng, below_) as usize;
        let (width, height, channels) = (1 + number(20), 1 + number(20), 1 + 2 * number(2));
        let pixels = (0..width * height * channels).map(|_| number(256) as u8).collect();
        Image { width, height, channels, pixels }
    }

    #[test]
    fn pixels_become_the_same_values_to_the_bit_later() {
        let arena = Arena::new();
        let mut num_negative_zeros = 0;
        for (case, crop) in [Crop::None, Crop::Padded, Crop::Resized].into_iter().cycle().take(60).enumerate() {
            let mut rng = keyed(case as u64, Purpose::Panel, 0, 0);
            let channels = 1 + 2 * (case / 3 % 2);
            let side = 1 + below(&mut rng, 12) as usize;
            let normalisation = Normalisation {
                mean: [0.4914, 0.0, 0.4465][..channels].iter().rev().copied().collect(),
                std: vec![0.247; channels],
            };
            let augment = AugmentConfig { crop, crop_padding: side / 2, min_area: 0.2, flip: case % 5 != 0 };
            let preparation = Preparation { side, channels, normalisation, augment };
            let images: Vec<Image> = (0..9).map(|_| random_image(&mut rng)).collect();
            let [values, pixels] = [false, true].map(|raw| {
                let mut collected = Collected::with_room(images.len() + 2, &preparation, raw, &arena);
                for (place, image) in images.iter().enumerate() {
                    let mut draws = (place > 0).then(|| keyed(3, Purpose::PretrainAugment, 0, place as u64));
                    collected.add(&preparation, image.clone(), draws.as_mut());
                }
                let images = collected.into_images(&preparation, &arena);
                assert_eq!(matches!(images, Images::Raw(_)), raw);
                images.to_values().expect("in host memory").iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            });
            assert_eq!(values.len(), 9 * preparation.num_values());
            assert_eq!(values, pixels, "{preparation:?}");
            num_negative_zeros += values.iter().filter(|bits| **bits == (-0.0_f32).to_bits()).count();
        }
        assert!(num_negative_zeros > 0, "rows of padding under a mean of 0 are among them");
    }
}
