//! Changing an image's size and number of channels.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::dataset::pixels::Image;

/// The image scaled to `width` by `height` pixels (bilinear, widened when shrinking so that nothing aliases). An image
/// of that size is copied. Sizes of 0 are taken as 1.
#[must_use]
pub fn resize(image: &Image, width: usize, height: usize) -> Image {
    let (width, height) = (width.max(1), height.max(1));
    if (image.width, image.height) == (width, height) {
        return image.clone();
    }
    resize_with(image, width, height).unwrap_or_else(|| nearest(image, width, height))
}

fn resize_with(image: &Image, width: usize, height: usize) -> Option<Image> {
    match image.channels {
        1 => resize_typed::<U8>(image, width, height),
        3 => resize_typed::<U8x3>(image, width, height),
        _ => None,
    }
}

/// The typed entry of the resizer: its dynamic one brings the code of all thirteen pixel types.
fn resize_typed<P: PixelTrait>(image: &Image, width: usize, height: usize) -> Option<Image> {
    let side = |value: usize| u32::try_from(value).ok();
    let mut pixels = vec![0; width * height * image.channels];
    let source = TypedImageRef::<P>::from_buffer(side(image.width)?, side(image.height)?, &image.pixels).ok()?;
    let mut target = TypedImage::<P>::from_buffer(side(width)?, side(height)?, &mut pixels).ok()?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    Resizer::new().resize_typed(&source, &mut target, &options).ok()?;
    Some(Image { width, height, channels: image.channels, pixels })
}

/// For what the resizer does not take: odd numbers of channels, or a pixel vector shorter than its shape (missing
/// values become 0).
fn nearest(image: &Image, width: usize, height: usize) -> Image {
    let mut pixels = Vec::with_capacity(width * height * image.channels);
    for y in 0..height {
        for x in 0..width {
            let at = (y * image.height / height * image.width + x * image.width / width) * image.channels;
            pixels.extend((at..at + image.channels).map(|i| image.pixels.get(i).copied().unwrap_or(0)));
        }
    }
    Image { width, height, channels: image.channels, pixels }
}

/// The image with 1 or 3 channels: grey is repeated, colour is weighed (ITU-R 601: 0.299 R + 0.587 G + 0.114 B,
/// rounded).
#[must_use]
pub fn to_channels(image: &Image, channels: usize) -> Image {
    let pixels = match (image.channels, channels) {
        (1, 3) => image.pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
        (3, 1) => image.pixels.chunks_exact(3).map(|rgb| luma(rgb[0], rgb[1], rgb[2])).collect(),
        _ => return image.clone(),
    };
    Image { width: image.width, height: image.height, channels, pixels }
}

fn luma(red: u8, green: u8, blue: u8) -> u8 {
    // Sixteen fractional bits; the weights sum to 65536, so that white stays 255.
    ((19_595 * u32::from(red) + 38_470 * u32::from(green) + 7_471 * u32::from(blue) + 0x8000) >> 16) as u8
}

/// As [`to_channels`], without a copy when nothing is to be done.
pub(crate) fn into_channels(image: Image, channels: usize) -> Image {
    if image.channels == channels { image } else { to_channels(&image, channels) }
}
