//! WebP, BMP, TIFF and GIF through the `image` crate. Varieties that it reads otherwise than everyone else are refused
//! by name.

use std::io::{BufRead, Cursor, Seek};

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::error::ImageError;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder};

use super::kind::Kind;
use super::{DecodeError, DecodeLimits, Stored};

/// What the `image` crate says, in our words: where data ends, and what it cannot do.
fn refuse(format: &'static str, len: usize) -> impl Fn(ImageError) -> DecodeError {
    move |error| match error {
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format, len }
        }
        ImageError::Unsupported(e) => DecodeError::unsupported(format, super::one_line(&e.to_string())),
        other => DecodeError::corrupt(format, other),
    }
}

pub(super) fn header(
    kind: Kind,
    reader: &mut (impl BufRead + Seek),
    len: usize,
    limits: &DecodeLimits,
    with_orientation: bool,
) -> Result<Stored, DecodeError> {
    let refuse = refuse(kind.name(), len);
    match kind {
        Kind::Webp => stored(WebPDecoder::new(reader).map_err(refuse)?, with_orientation),
        Kind::Bmp => stored(BmpDecoder::new(reader).map_err(refuse)?, with_orientation),
        Kind::Gif => stored(GifDecoder::new(reader).map_err(refuse)?, with_orientation),
        _ => {
            tiff_variety(reader, limits)?;
            reader.rewind().map_err(|e| refuse(e.into()))?;
            stored(TiffDecoder::new(reader).map_err(refuse)?, with_orientation)
        }
    }
}

fn stored(mut decoder: impl ImageDecoder, with_orientation: bool) -> Result<Stored, DecodeError> {
    let (width, height) = decoder.dimensions();
    let channels = if decoder.color_type().has_color() { 3 } else { 1 };
    // Damaged metadata says nothing.
    let orientation = if with_orientation { decoder.orientation().ok() } else { None };
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    Ok(Stored { width: width as usize, height: height as usize, channels, orientation })
}

pub(super) fn decode(kind: Kind, bytes: &[u8], limits: &DecodeLimits) -> Result<Vec<u8>, DecodeError> {
    let refuse = refuse(kind.name(), bytes.len());
    let reader = Cursor::new(bytes);
    match kind {
        Kind::Webp => pixels(WebPDecoder::new(reader).map_err(refuse)?, kind, bytes.len(), limits),
        Kind::Bmp => pixels(BmpDecoder::new(reader).map_err(refuse)?, kind, bytes.len(), limits),
        Kind::Gif => {
            if let Some([left, top, width, height]) =
                first_frame_of_gif(bytes).filter(|frame| !covers_gif(bytes, frame))
            {
                let what = format!("a first frame of {width}x{height} at {left}, {top} that does not cover the image");
                return Err(DecodeError::unsupported("gif", what));
            }
            pixels(GifDecoder::new(reader).map_err(refuse)?, kind, bytes.len(), limits)
        }
        _ => pixels(TiffDecoder::new(reader).map_err(refuse)?, kind, bytes.len(), limits),
    }
}

fn pixels(
    mut decoder: impl ImageDecoder,
    kind: Kind,
    len: usize,
    limits: &DecodeLimits,
) -> Result<Vec<u8>, DecodeError> {
    decoder.set_limits(limits.of_decoder()).map_err(refuse(kind.name(), len))?;
    to_u8(decoder, kind.name(), len)
}

/// All of a decoder's pixels as grey or RGB: alpha is dropped; of 16 bits grey is rounded, of RGB the high byte is
/// taken as Pillow does (which would clip grey at 255 of 65535). `len` is the number of encoded bytes.
pub(super) fn to_u8(decoder: impl ImageDecoder, format: &'static str, len: usize) -> Result<Vec<u8>, DecodeError> {
    let color = decoder.color_type();
    let num_bytes = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(num_bytes).is_err() {
        return Err(DecodeError::corrupt(format, format!("no memory for {num_bytes} bytes")));
    }
    bytes.resize(num_bytes, 0);
    decoder.read_image(&mut bytes).map_err(refuse(format, len))?;
    let without_alpha = |bytes: Vec<u8>, channels: usize| -> Vec<u8> {
        bytes.chunks_exact(channels + 1).flat_map(|pixel| pixel[..channels].iter().copied()).collect()
    };
    let words = |bytes: &[u8]| -> Vec<u16> {
        bytes.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect()
    };
    let rounded = |word: &u16| ((u32::from(*word) + 128) / 257) as u8;
    let high = |word: &u16| (word >> 8) as u8;
    Ok(match color {
        ColorType::L8 | ColorType::Rgb8 => bytes,
        ColorType::La8 => without_alpha(bytes, 1),
        ColorType::Rgba8 => without_alpha(bytes, 3),
        ColorType::L16 => words(&bytes).iter().map(rounded).collect(),
        ColorType::La16 => words(&bytes).iter().step_by(2).map(rounded).collect(),
        ColorType::Rgb16 => words(&bytes).iter().map(high).collect(),
        ColorType::Rgba16 => without_alpha(words(&bytes).iter().map(high).collect(), 3),
        other => return Err(DecodeError::unsupported(format, format!("pixels of type {other:?}"))),
    })
}

fn le_u16(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 2).map(|pair| usize::from(u16::from_le_bytes([pair[0], pair[1]])))
}

/// Bytes of a palette whose flags are `flags`.
fn palette_len(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// Left, top, width and height of a GIF's first frame, after the extensions before it. None if it is not reached.
fn first_frame_of_gif(bytes: &[u8]) -> Option<[usize; 4]> {
    let mut at = 13 + palette_len(*bytes.get(10)?);
    loop {
        match bytes.get(at)? {
            0x2C => {
                return Some([
                    le_u16(bytes, at + 1)?,
                    le_u16(bytes, at + 3)?,
                    le_u16(bytes, at + 5)?,
                    le_u16(bytes, at + 7)?,
                ]);
            }
            0x21 => {
                // Label, then blocks that say their lengths, to an empty one.
                at += 2;
                while *bytes.get(at)? != 0 {
                    at += 1 + usize::from(bytes[at]);
                }
                at += 1;
            }
            _ => return None,
        }
    }
}

/// Whether the frame fills the whole of the screen: what is around it, readers disagree about.
fn covers_gif(bytes: &[u8], [left, top, width, height]: &[usize; 4]) -> bool {
    (*left, *top) == (0, 0) && le_u16(bytes, 6) <= Some(*width) && le_u16(bytes, 8) <= Some(*height)
}

/// Refuses TIFF's varieties of which the decoder makes something else than libtiff.
fn tiff_variety(reader: &mut (impl BufRead + Seek), limits: &DecodeLimits) -> Result<(), DecodeError> {
    use tiff::ColorType as Pixels;
    use tiff::decoder::{Decoder, Limits};
    use tiff::tags::Tag;

    let corrupt = |e: tiff::TiffError| match e {
        tiff::TiffError::UnsupportedError(e) => DecodeError::unsupported("tiff", super::one_line(&e.to_string())),
        e => DecodeError::corrupt("tiff", e),
    };
    let mut bounds = Limits::default();
    bounds.ifd_value_size = bounds.ifd_value_size.min(limits.max_bytes);
    let mut decoder = Decoder::new(reader).map_err(corrupt)?.with_limits(bounds);
    let refuse = |what: String| Err(DecodeError::unsupported("tiff", what));
    let compression = decoder.find_tag_unsigned::<u16>(Tag::Compression).map_err(corrupt)?;
    if let Some(6 | 7) = compression {
        return refuse("JPEG inside".to_owned());
    }
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(corrupt)?;
    if formats.is_some_and(|formats| formats.iter().any(|format| *format != 1)) {
        return refuse("samples that are no whole numbers above 0".to_owned());
    }
    match decoder.colortype().map_err(corrupt)? {
        Pixels::Gray(1 | 8 | 16) | Pixels::GrayA(8 | 16) | Pixels::RGB(8 | 16) | Pixels::RGBA(8 | 16) => Ok(()),
        other => refuse(format!("pixels of type {other:?}")),
    }
}
