//! Encoded bytes to u8 pixels. The signature decides the format; the header's size is checked before anything is
//! allocated.
//!
//! The measure of all pixels is what Pillow's `convert("RGB")` gives: JPEG is decoded by libjpeg-turbo's own code, the
//! rest by the
//! `image` crate, and what these do otherwise than Pillow is either put right here or refused by name.

pub(crate) mod index_map;
mod jpeg;
mod kind;
mod orientation;
mod png;
mod raster;
pub mod resize;
pub(crate) mod survey;

use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use image::metadata::Orientation;

use super::pixels::Image;
use crate::guard::guarded;
use kind::Kind;
pub(crate) use orientation::Turn;

/// Names of files in an image folder that are taken for images, without the dot, in small letters.
pub const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "tif", "tiff", "gif"];

/// Whether a file is taken for an image by its extension.
pub(crate) fn is_image_name(path: &Path) -> bool {
    path.extension().is_some_and(|ext| EXTENSIONS.iter().any(|known| ext.eq_ignore_ascii_case(known)))
}

/// The formats that are read, for messages.
const READABLE: &str = "png, jpeg, webp, bmp, tiff or gif";

/// Bounds on one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Width times height.
    pub max_pixels: usize,
    /// Encoded size in bytes.
    pub max_bytes: usize,
}

impl Default for DecodeLimits {
    /// 50 megapixels in 256 MiB: above any photograph in the usual datasets, far below what exhausts a machine.
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_bytes: 256 << 20 }
    }
}

impl DecodeLimits {
    /// What a decoder of the `image` crate may allocate: 8 bytes a pixel (16-bit RGBA) is the most that an image needs,
    /// twice where a decoder has a buffer of its own beside the result.
    fn of_decoder(&self) -> image::Limits {
        let mut limits = image::Limits::default();
        limits.max_alloc = Some((self.max_pixels as u64).saturating_mul(16).saturating_add(1 << 20));
        limits
    }
}

/// Why an encoded image was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the image is not stored in the file, its bytes are null")]
    Absent,
    /// None of the formats that are read, nor any that is known by name.
    #[error("not a {READABLE} image, begins with {begins}")]
    UnknownFormat {
        /// The first bytes, in hexadecimal.
        begins: String,
    },
    /// Another format, known by its signature.
    #[error("images must be {READABLE}, not {what}")]
    ForeignFormat {
        /// Its name.
        what: &'static str,
    },
    /// A variety of a format that is read, which no decoder here reads rightly.
    #[error("unsupported {format} image: {reason}")]
    Unsupported {
        /// `png`, `jpeg`, ...
        format: &'static str,
        /// Name of the variety.
        reason: String,
    },
    /// The header announces more than the limit allows, or nothing at all.
    #[error("image size must be 1 to {max_pixels} pixels in all, not {width}x{height}")]
    Size {
        /// Announced pixels in a row.
        width: usize,
        /// Announced rows.
        height: usize,
        /// The limit on their product.
        max_pixels: usize,
    },
    /// More encoded bytes than the limit allows.
    #[error("encoded image must be at most {max_bytes} bytes, not {len}")]
    Bytes {
        /// The limit.
        max_bytes: usize,
        /// The encoded size.
        len: usize,
    },
    /// The data ends before the image does.
    #[error("truncated {format} image of {len} bytes")]
    Truncated {
        /// `png`, `jpeg`, ...
        format: &'static str,
        /// Bytes that there are.
        len: usize,
    },
    /// The decoder refused the data.
    #[error("corrupt {format} image: {reason}")]
    Corrupt {
        /// `png`, `jpeg`, ...
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
}

impl DecodeError {
    fn corrupt(format: &'static str, reason: impl ToString) -> Self {
        Self::Corrupt { format, reason: one_line(&reason.to_string()) }
    }

    fn unsupported(format: &'static str, reason: impl ToString) -> Self {
        Self::Unsupported { format, reason: reason.to_string() }
    }
}

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Pixels in a row, after the image is turned.
    pub width: usize,
    /// Rows, after the image is turned.
    pub height: usize,
    /// Channels after decoding: 1 or 3.
    pub channels: usize,
}

/// A header before its image is turned.
#[derive(Clone, Copy, Debug)]
struct Stored {
    width: usize,
    height: usize,
    channels: usize,
    orientation: Orientation,
}

/// How images become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoder {
    /// Bounds on one image.
    pub limits: DecodeLimits,
    /// Turns images as their EXIF orientation (JPEG, PNG, WebP) or orientation tag (TIFF) says; false leaves them as
    /// stored.
    pub exif_orientation: bool,
}

impl Decoder {
    /// Turns images as they say.
    #[must_use]
    pub fn new(limits: DecodeLimits) -> Self {
        Self { limits, exif_orientation: true }
    }

    /// Reads the header of an image and holds it against the limits. Of most formats only the first bytes are read;
    /// pixels never.
    ///
    /// # Errors
    /// What is wrong with the header; an image that has one may still be bad.
    pub fn header(&self, bytes: &[u8]) -> Result<Header, DecodeError> {
        self.header_of(&mut Cursor::new(bytes))
    }

    /// As [`Self::header`], of a file: reads no more of it than it takes.
    pub(super) fn header_of(&self, reader: &mut (impl BufRead + Seek)) -> Result<Header, DecodeError> {
        let (_, stored) = self.stored(reader)?;
        let turned = orientation::swaps_sides(stored.orientation);
        let (width, height) = if turned { (stored.height, stored.width) } else { (stored.width, stored.height) };
        Ok(Header { width, height, channels: stored.channels })
    }

    /// Decodes an image to u8: grey stays one channel, everything else becomes RGB; alpha is dropped, 16 bits are
    /// scaled to 8, of an animation the first frame is taken.
    ///
    /// # Errors
    /// What is wrong with the image.
    pub fn decode(&self, bytes: &[u8]) -> Result<Image, DecodeError> {
        self.decode_turned(bytes).map(|(image, _)| image)
    }

    /// As [`Self::decode`], with how the stored pixels were turned.
    pub(crate) fn decode_turned(&self, bytes: &[u8]) -> Result<(Image, Turn), DecodeError> {
        let (kind, stored) = self.stored(&mut Cursor::new(bytes))?;
        let refuse = |reason| DecodeError::corrupt(kind.name(), reason);
        let pixels = guarded(
            || match kind {
                Kind::Jpeg => jpeg::decode(bytes),
                Kind::Png => png::decode(bytes, &self.limits),
                other => raster::decode(other, bytes, &self.limits),
            },
            refuse,
        )?;
        let Stored { width, height, channels, orientation } = stored;
        if pixels.len() != width * height * channels {
            return Err(refuse(format!("decoded to {} bytes", pixels.len())));
        }
        let turn = Turn { orientation, width, height };
        Ok((orientation::turn(Image { width, height, channels, pixels }, orientation), turn))
    }

    fn stored(&self, reader: &mut (impl BufRead + Seek)) -> Result<(Kind, Stored), DecodeError> {
        let unreadable = |e: std::io::Error| DecodeError::corrupt("unreadable", e);
        let len = reader.seek(SeekFrom::End(0)).map_err(unreadable)? as usize;
        if len > self.limits.max_bytes {
            return Err(DecodeError::Bytes { max_bytes: self.limits.max_bytes, len });
        }
        reader.rewind().map_err(unreadable)?;
        let mut begin = Vec::with_capacity(kind::SIGNATURE_LEN);
        reader.by_ref().take(kind::SIGNATURE_LEN as u64).read_to_end(&mut begin).map_err(unreadable)?;
        reader.rewind().map_err(unreadable)?;
        let kind = Kind::of(&begin)?;
        let mut stored = guarded(
            || match kind {
                Kind::Jpeg => jpeg::header(reader, len),
                Kind::Png => png::header(reader, len, self.exif_orientation),
                other => raster::header(other, reader, len, &self.limits, self.exif_orientation),
            },
            |reason| DecodeError::corrupt(kind.name(), reason),
        )?;
        let size = stored.width.checked_mul(stored.height);
        if size.is_none_or(|size| size == 0 || size > self.limits.max_pixels) {
            let (width, height) = (stored.width, stored.height);
            return Err(DecodeError::Size { width, height, max_pixels: self.limits.max_pixels });
        }
        if !self.exif_orientation {
            stored.orientation = Orientation::NoTransforms;
        }
        Ok((kind, stored))
    }
}

/// The first line of a decoder's message, without quotes and full stop.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_matches(['"', '.']).to_owned()
}
