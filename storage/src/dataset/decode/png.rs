//! PNG: the chunks by hand, as far as a decoder may be content with less than all of them; the pixels by the `image`
//! crate.

use std::io::{Cursor, ErrorKind, Read, Seek};

use image::codecs::png::PngDecoder;
use image::metadata::Orientation;

use super::raster::to_u8;
use super::{DecodeError, DecodeLimits, Stored, orientation};

const SIGNATURE_LEN: usize = 8;
/// An EXIF chunk that is looked into; cameras write at most 64 KiB.
const MAX_EXIF_LEN: usize = 1 << 20;

/// Size from IHDR, which must be the first chunk, and the orientation from eXIf, which may be anywhere: chunks between
/// are skipped.
pub(super) fn header(
    reader: &mut (impl Read + Seek),
    len: usize,
    with_orientation: bool,
) -> Result<Stored, DecodeError> {
    let truncated = DecodeError::Truncated { format: "png", len };
    let mut start = [0; SIGNATURE_LEN + 8 + 13 + 4];
    let mut num_read = 0;
    while num_read < start.len() {
        match reader.read(&mut start[num_read..]) {
            Ok(0) => break,
            Ok(num) => num_read += num,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(DecodeError::corrupt("png", e)),
        }
    }
    if num_read >= 16 && &start[12..16] == b"CgBI" {
        return Err(DecodeError::unsupported("png", "CgBI, made by Apple's tools for the iPhone alone"));
    }
    if num_read < start.len() {
        return Err(truncated);
    }
    if &start[12..16] != b"IHDR" {
        return Err(DecodeError::corrupt("png", "its first chunk is not IHDR"));
    }
    let number = |at: usize| u32::from_be_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]) as usize;
    // Colour types 0 and 4 are grey without and with alpha.
    let channels = if matches!(start[25], 0 | 4) { 1 } else { 3 };
    let orientation = if with_orientation { exif(reader, len) } else { Orientation::NoTransforms };
    Ok(Stored { width: number(16), height: number(20), channels, orientation })
}

/// Orientation from the first eXIf chunk; damage is for the decoder to find.
fn exif(reader: &mut (impl Read + Seek), len: usize) -> Orientation {
    let mut at = (SIGNATURE_LEN + 8 + 13 + 4) as u64;
    let mut chunk = [0; 8];
    while at + 12 <= len as u64 && reader.read_exact(&mut chunk).is_ok() {
        let chunk_len = u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
        match &chunk[4..] {
            b"eXIf" if chunk_len <= MAX_EXIF_LEN as u64 => {
                let mut bytes = Vec::new();
                let _ = reader.take(chunk_len).read_to_end(&mut bytes);
                return orientation::of_exif(&bytes);
            }
            b"IEND" => break,
            _ => {}
        }
        at += 12 + chunk_len;
        if reader.seek_relative(chunk_len as i64 + 4).is_err() {
            break;
        }
    }
    Orientation::NoTransforms
}

/// True when the chunks reach a whole IEND: a decoder may be content with less.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    let mut at = SIGNATURE_LEN;
    while let Some(len) = bytes.get(at..at + 4) {
        let end = at + 12 + u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize;
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

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Vec<u8>, DecodeError> {
    if !is_whole(bytes) {
        return Err(DecodeError::Truncated { format: "png", len: bytes.len() });
    }
    let corrupt = |e: image::ImageError| DecodeError::corrupt("png", e);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits.of_decoder()).map_err(corrupt)?;
    to_u8(decoder, "png", bytes.len())
}
