//! The sizes that a Parquet file's pages announce, looked at before anything is unpacked: the decoder
//! makes room for what a header says, and a damaged byte may say two gigabytes.

use std::io::{self, Read};

use parquet::arrow::ProjectionMask;
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;

/// Any page may be this large when it is unpacked.
const MAX_SMALL_PAGE_BYTES: u64 = 64 << 20;
/// A larger one may be this many times its packed size. Images are packed already, so their pages hardly shrink.
const MAX_RATIO: u64 = 256;
/// How deep a header's structs may be nested; they are three deep.
const MAX_DEPTH: u32 = 16;

/// Checks all pages of the columns in `mask`.
///
/// # Errors
/// One line about the first page that announces an unbelievable size, or whose header cannot be read:
/// the decoder is more lenient, it takes numbers of any length and what is left of them in 32 bits.
pub(super) fn check<R: ChunkReader>(
    reader: &R,
    metadata: &ParquetMetaData,
    mask: &ProjectionMask,
) -> Result<(), String> {
    for group in metadata.row_groups() {
        for (leaf, column) in group.columns().iter().enumerate() {
            // What is not packed is not unpacked.
            if !mask.leaf_included(leaf) || column.compression() == Compression::UNCOMPRESSED {
                continue;
            }
            let (start, len) = column.byte_range();
            let (mut at, end) = (start, start.saturating_add(len).min(reader.len()));
            while at < end {
                let name = || column.column_path().string();
                let header = reader.get_read(at).ok().and_then(|read| Header::read(read.take(end - at)).ok());
                let Some(header) = header else {
                    return Err(format!("the header of a page of column {} cannot be read", name()));
                };
                let (announced, packed) = (header.unpacked_bytes, header.packed_bytes);
                if announced > MAX_SMALL_PAGE_BYTES.max(packed.saturating_mul(MAX_RATIO)) {
                    let name = name();
                    return Err(format!("a page of column {name} of {packed} bytes announces {announced} unpacked"));
                }
                at = at.saturating_add(header.len).saturating_add(packed);
            }
        }
    }
    Ok(())
}

/// What of a page's header matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Its own length.
    len: u64,
    unpacked_bytes: u64,
    packed_bytes: u64,
}

impl Header {
    /// Reads a `PageHeader` in Thrift's compact protocol: sizes are its second and third fields.
    fn read(bytes: impl Read) -> io::Result<Self> {
        let mut input = Compact { bytes, len: 0 };
        let (mut field, mut sizes) = (0, [None; 2]);
        while let Some((id, kind)) = input.field(field)? {
            field = id;
            match (id, kind) {
                (2 | 3, 5) => {
                    let size = u64::try_from(input.zigzag()?).map_err(|_| invalid())?;
                    sizes[usize::from(id == 3)] = Some(size);
                }
                _ => input.skip(kind, 0)?,
            }
        }
        match sizes {
            [Some(unpacked_bytes), Some(packed_bytes)] => Ok(Self { len: input.len, unpacked_bytes, packed_bytes }),
            _ => Err(invalid()),
        }
    }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Thrift's compact protocol, as far as it takes to skip what is not wanted.
struct Compact<R> {
    bytes: R,
    len: u64,
}

impl<R: Read> Compact<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.bytes.read_exact(&mut byte)?;
        self.len += 1;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(invalid())
    }

    fn zigzag(&mut self) -> io::Result<i64> {
        let number = self.varint()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// Number and type of the field after field `last`; none at the end of a struct.
    fn field(&mut self, last: i64) -> io::Result<Option<(i64, u8)>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        let id = match i64::from(head >> 4) {
            0 => self.zigzag()?,
            delta => last.checked_add(delta).ok_or_else(invalid)?,
        };
        Ok(Some((id, head & 0xf)))
    }

    fn skip_bytes(&mut self, len: u64) -> io::Result<()> {
        let num_skipped = io::copy(&mut self.bytes.by_ref().take(len), &mut io::sink())?;
        self.len += num_skipped;
        if num_skipped == len { Ok(()) } else { Err(invalid()) }
    }

    fn skip(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(invalid());
        }
        match kind {
            // The value of a boolean field is its type.
            1 | 2 => Ok(()),
            3 => self.skip_bytes(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let len = self.varint()?;
                self.skip_bytes(len)
            }
            9 | 10 => {
                let head = self.byte()?;
                let num_items = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                (0..num_items).try_for_each(|_| self.skip_item(head & 0xf, depth))
            }
            11 => {
                let num_items = self.varint()?;
                let kinds = if num_items == 0 { 0 } else { self.byte()? };
                (0..num_items).try_for_each(|_| {
                    self.skip_item(kinds >> 4, depth)?;
                    self.skip_item(kinds & 0xf, depth)
                })
            }
            12 => {
                let mut last = 0;
                while let Some((id, kind)) = self.field(last)? {
                    last = id;
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            13 => self.skip_bytes(16),
            _ => Err(invalid()),
        }
    }

    /// Skips an item of a list or map, in which a boolean is a byte.
    fn skip_item(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        if matches!(kind, 1 | 2) { self.skip_bytes(1) } else { self.skip(kind, depth + 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_everything_else_is_skipped() {
        // type = 0, sizes 5 and 3, crc = -1, a data page's header with values, encodings and statistics.
        let plain = [0x15, 0, 0x15, 10, 0x15, 6, 0x15, 1];
        let inner = [0x2c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0x1c, 0x18, 2, b'a', b'b', 0x16, 4, 0x11, 0, 0];
        // Fields to come: a list of two booleans, a map of a byte to a double, a UUID, a field with a far number.
        let strange =
            [&[0x49, 0x21, 1, 2, 0x1b, 1, 0x37, 9][..], &[0; 8], &[0x1d], &[7; 16], &[0x05, 0xd0, 0x0f, 0x80, 1, 0]];
        let bytes = [&plain[..], &inner, &strange.concat()].concat();
        let expected = Header { len: bytes.len() as u64, unpacked_bytes: 5, packed_bytes: 3 };
        assert_eq!(Header::read(&[&bytes[..], b"the page"].concat()[..]).expect("a header"), expected);
        for len in 0..bytes.len() {
            assert!(Header::read(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(Header::read(&[0x25, 2, 0x15, 1, 0][..]).is_err(), "a negative size");
        assert!(Header::read(&[0x15, 0, 0][..]).is_err(), "no sizes");
        let long = [&[0x15, 0, 0x15][..], &[0x8e; 12], &[2, 0x15, 6, 0]].concat();
        assert!(Header::read(&long[..]).is_err(), "a number of more than 64 bits");
        assert!(Header::read(&[0x1c; 100_000][..]).is_err(), "nested without end");
    }
}
