//! Encoded bytes to u8 pixels. The signature decides the format; the header's size is checked before anything is allocated.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{DynamicImage, Limits};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::Image;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

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

/// Why an encoded image was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Neither PNG nor JPEG.
    #[error("not a png or jpeg image, begins with {begins}")]
    UnknownFormat {
        /// The first bytes, in hexadecimal.
        begins: String,
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
        /// `png` or `jpeg`.
        format: &'static str,
        /// Bytes that there are.
        len: usize,
    },
    /// The decoder refused the data.
    #[error("corrupt {format} image: {reason}")]
    Corrupt {
        /// `png` or `jpeg`.
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
}

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Channels after decoding: 1 or 3.
    pub channels: usize,
}

/// Reads the header of a PNG or JPEG image, without allocation, and holds it against the limits.
pub fn header(bytes: &[u8], limits: &DecodeLimits) -> Result<Header, DecodeError> {
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::Bytes { max_bytes: limits.max_bytes, len: bytes.len() });
    }
    let header = if bytes.starts_with(PNG_SIGNATURE) {
        png_header(bytes).ok_or(DecodeError::Truncated { format: "png", len: bytes.len() })?
    } else if bytes.starts_with(&[0xFF, 0xD8]) {
        jpeg_header(bytes).ok_or(DecodeError::Truncated { format: "jpeg", len: bytes.len() })?.0
    } else {
        let begins = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        return Err(DecodeError::UnknownFormat {
            begins: if begins.is_empty() { "nothing".to_owned() } else { begins },
        });
    };
    let size = header.width.checked_mul(header.height);
    if size.is_none_or(|size| size == 0 || size > limits.max_pixels) {
        return Err(DecodeError::Size { width: header.width, height: header.height, max_pixels: limits.max_pixels });
    }
    Ok(header)
}

/// Decodes a PNG or JPEG image to u8: grey stays one channel, everything else becomes RGB; alpha is dropped, 16 bits are scaled to 8.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    let header = header(bytes, limits)?;
    let pixels =
        if bytes.starts_with(PNG_SIGNATURE) { decode_png(bytes, limits)? } else { decode_jpeg(bytes, &header)? };
    let image = Image { width: header.width, height: header.height, channels: header.channels, pixels };
    if image.pixels.len() == image.width * image.height * image.channels {
        Ok(image)
    } else {
        let format = if bytes.starts_with(PNG_SIGNATURE) { "png" } else { "jpeg" };
        Err(DecodeError::Corrupt { format, reason: format!("decoded to {} bytes", image.pixels.len()) })
    }
}

fn be_u32(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// Size from IHDR, which must be the first chunk.
fn png_header(bytes: &[u8]) -> Option<Header> {
    if bytes.get(12..16)? != b"IHDR" {
        return None;
    }
    // Colour types 0 and 4 are grey without and with alpha.
    let channels = if matches!(bytes.get(25)?, 0 | 4) { 1 } else { 3 };
    Some(Header { width: be_u32(bytes, 16)?, height: be_u32(bytes, 20)?, channels })
}

/// True when the chunks reach a whole IEND: a decoder may be content with less.
fn png_is_whole(bytes: &[u8]) -> bool {
    let mut at = PNG_SIGNATURE.len();
    while let Some(len) = be_u32(bytes, at) {
        let end = at + 12 + len;
        if end > bytes.len() {
            return false;
        }
        if &bytes[at + 4..at + 8] == b"IEND" {
            return true;
        }
        at = end;
    }
    false
}

fn decode_png(bytes: &[u8], limits: &DecodeLimits) -> Result<Vec<u8>, DecodeError> {
    if !png_is_whole(bytes) {
        return Err(DecodeError::Truncated { format: "png", len: bytes.len() });
    }
    let corrupt = |e: image::ImageError| DecodeError::Corrupt { format: "png", reason: e.to_string() };
    let mut allowed = Limits::default();
    // 8 bytes a pixel (16-bit RGBA) is the most that a PNG needs; the header was already held against max_pixels.
    allowed.max_alloc = Some((limits.max_pixels as u64).saturating_mul(8).saturating_add(1 << 20));
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), allowed).map_err(corrupt)?;
    let image = DynamicImage::from_decoder(decoder).map_err(corrupt)?;
    Ok(match image {
        DynamicImage::ImageLuma8(grey) => grey.into_raw(),
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageLumaA8(_) | DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) => {
            image.into_luma8().into_raw()
        }
        _ => image.into_rgb8().into_raw(),
    })
}

/// Size from the frame header, and where the first scan's data begins. The size is that of the first frame header before any scan.
fn jpeg_header(bytes: &[u8]) -> Option<(Header, usize)> {
    let (mut at, mut header) = (2, None);
    loop {
        while *bytes.get(at)? != 0xFF {
            at += 1;
        }
        while *bytes.get(at)? == 0xFF {
            at += 1;
        }
        let marker = bytes[at];
        at += 1;
        if matches!(marker, 0x01 | 0xD0..=0xD8) {
            continue;
        }
        let len = u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize;
        let segment = bytes.get(at..at + len)?;
        at += len;
        match marker {
            // Frame headers, without DHT, JPG and DAC which share their range.
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                let dim = |i: usize| Some(u16::from_be_bytes(segment.get(i..i + 2)?.try_into().ok()?) as usize);
                let channels = if *segment.get(7)? == 1 { 1 } else { 3 };
                header.get_or_insert(Header { height: dim(3)?, width: dim(5)?, channels });
            }
            0xDA => return Some((header?, at)),
            0xD9 => return None,
            _ => {}
        }
    }
}

fn decode_jpeg(bytes: &[u8], header: &Header) -> Result<Vec<u8>, DecodeError> {
    // Inside scan data 0xFF is always stuffed, so that this pair can only be the end marker.
    let scan = jpeg_header(bytes).map_or(bytes.len(), |(_, scan)| scan);
    if !bytes[scan..].windows(2).any(|pair| pair == [0xFF, 0xD9]) {
        return Err(DecodeError::Truncated { format: "jpeg", len: bytes.len() });
    }
    let colorspace = if header.channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(colorspace)
        .set_max_width(header.width)
        .set_max_height(header.height)
        .set_strict_mode(false);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode().map_err(|e| DecodeError::Corrupt { format: "jpeg", reason: one_line(&format!("{e:?}")) })
}

/// The first line of a decoder's message, without quotes and full stop.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_matches(['"', '.']).to_owned()
}
