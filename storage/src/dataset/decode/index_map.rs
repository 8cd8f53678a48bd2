//! PNG files whose values are class indices, for segmentation: grey of 1 to 16 bits or indices into a palette, taken as
//! they are stored. What decodes images makes colours of a palette, and scales grey to 8 bits.

use std::io::Cursor;

use png::{BitDepth, ColorType, Limits, Transformations};

use super::{DecodeError, DecodeLimits, Kind, png as png_images};
use crate::guard::guarded;

/// The indices of an image, row by row from the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Indices {
    pub width: usize,
    pub height: usize,
    /// Bits of a stored value: 1, 2, 4, 8 or 16.
    pub bits: u8,
    /// `[height * width]`
    pub values: Vec<u16>,
}

/// Decodes a PNG of indices.
///
/// # Errors
/// What is wrong with it: another format, colours, truncated or corrupt data, a size beyond the limits.
pub(crate) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Indices, DecodeError> {
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::Bytes { max_bytes: limits.max_bytes, len: bytes.len() });
    }
    match Kind::of(&bytes[..bytes.len().min(super::kind::SIGNATURE_LEN)])? {
        Kind::Png => {}
        other => {
            let reason = "class indices must be stored without loss, as a grey or palette png";
            return Err(DecodeError::unsupported(other.name(), reason));
        }
    }
    let truncated = || DecodeError::Truncated { format: "png", len: bytes.len() };
    if !png_images::is_whole(bytes) {
        return Err(truncated());
    }
    guarded(|| decode_whole(bytes, limits), |reason| DecodeError::corrupt("png", reason))
}

fn decode_whole(bytes: &[u8], limits: &DecodeLimits) -> Result<Indices, DecodeError> {
    let corrupt = |e: png::DecodingError| DecodeError::corrupt("png", e);
    let max_bytes = limits.max_pixels.saturating_mul(16).saturating_add(1 << 20);
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: max_bytes });
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(corrupt)?;
    let info = reader.info();
    let (width, height) = (info.width as usize, info.height as usize);
    if width.checked_mul(height).is_none_or(|size| size == 0 || size > limits.max_pixels) {
        return Err(DecodeError::Size { width, height, max_pixels: limits.max_pixels });
    }
    let colours = match info.color_type {
        ColorType::Grayscale | ColorType::Indexed => None,
        ColorType::Rgb => Some("RGB colours"),
        ColorType::Rgba => Some("RGB colours with alpha"),
        ColorType::GrayscaleAlpha => Some("grey with alpha"),
    };
    if let Some(colours) = colours {
        let reason =
            format!("class indices must be grey or palette values, not {colours}; store each pixel's class index");
        return Err(DecodeError::unsupported("png", reason));
    }
    let bits = match info.bit_depth {
        BitDepth::One => 1,
        BitDepth::Two => 2,
        BitDepth::Four => 4,
        BitDepth::Eight => 8,
        BitDepth::Sixteen => 16,
    };
    let row_bytes = (width * usize::from(bits)).div_ceil(8);
    let len = reader.output_buffer_size().filter(|len| *len == row_bytes * height);
    let mut packed = vec![0; len.ok_or_else(|| DecodeError::corrupt("png", "rows of another length"))?];
    reader.next_frame(&mut packed).map_err(corrupt)?;
    let mut values = Vec::with_capacity(width * height);
    for row in packed.chunks_exact(row_bytes) {
        match bits {
            8 => values.extend(row.iter().map(|value| u16::from(*value))),
            16 => values.extend(row.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))),
            _ => {
                let per_byte = 8 / usize::from(bits);
                // The first pixel is in the highest bits.
                let value = |x: usize| {
                    let shift = 8 - usize::from(bits) * (x % per_byte + 1);
                    u16::from(row[x / per_byte] >> shift) & ((1 << bits) - 1)
                };
                values.extend((0..width).map(value));
            }
        }
    }
    Ok(Indices { width, height, bits, values })
}
