//! The sizes that a Parquet file's pages announce, looked at before anything is unpacked: the decoder
//! makes room for what a header says, and a damaged byte may say two gigabytes.

use std::io::{self, Read};

use parquet::arrow::ProjectionMask;
use parquet::basic::{Compression, Type};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;

/// Any page may be this large when it is unpacked.
const MAX_SMALL_PAGE_BYTES: u64 = 64 << 20;
/// A larger one may be this many times its packed size. Images are packed already, so their pages hardly shrink.
const MAX_RATIO: u64 = 256;
/// How deep a header's structs may be nested; they are three deep.
const MAX_DEPTH: u32 = 16;
/// The number of this encoding: a value is a length of the value before it, and what comes then.
const DELTA_BYTE_ARRAY: i64 = 7;
/// Bytes of text that a batch may be copied to: what a dictionary or a shared prefix says once may be there in every
/// row.
const BATCH_BYTES: u64 = 64 << 20;

/// What the pages of some columns unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extent {
    /// Bytes of all pages, unpacked.
    pub unpacked_bytes: u64,
    /// Bytes of all values in arrays, texts and binary values without what they consist of: a page says in some bytes
    /// that a value comes a billion times (run length).
    pub value_bytes: u64,
    /// Bytes of the largest page of texts or of binary values, unpacked. No value is longer, whatever its encoding.
    pub largest_page_bytes: u64,
    /// Values may share prefixes (`DELTA_BYTE_ARRAY`): they take more than their pages do, however they are read.
    pub shares_prefixes: bool,
}

impl Extent {
    /// Rows of a batch, at most `max_rows`, whose texts take [`BATCH_BYTES`] at most though every row has the longest.
    pub fn batch_rows(&self, max_rows: usize) -> usize {
        let rows = BATCH_BYTES / self.largest_page_bytes.max(1);
        usize::try_from(rows).unwrap_or(usize::MAX).clamp(1, max_rows)
    }
}

/// Checks all pages of the columns in `mask`, and says what they unpack to.
///
/// # Errors
/// One line about the first page that announces an unbelievable size, or whose header cannot be read:
/// the decoder is more lenient, it takes numbers of any length and what is left of them in 32 bits. Also if columns
/// have more bytes than the file, as they do only where one part of it is named several times.
pub(crate) fn check<R: ChunkReader>(
    reader: &R,
    metadata: &ParquetMetaData,
    mask: &ProjectionMask,
) -> Result<Extent, String> {
    let mut extent = Extent::default();
    let mut column_bytes = 0_u64;
    for group in metadata.row_groups() {
        for (leaf, column) in group.columns().iter().enumerate() {
            if !mask.leaf_included(leaf) {
                continue;
            }
            let (start, len) = column.byte_range();
            column_bytes = column_bytes.saturating_add(len);
            if column_bytes > reader.len() {
                return Err(format!("its columns have more bytes than the file, which has {}", reader.len()));
            }
            let (has_text, width) = match column.column_type() {
                Type::BOOLEAN => (false, 1),
                Type::INT32 | Type::FLOAT => (false, 4),
                Type::INT64 | Type::DOUBLE => (false, 8),
                Type::INT96 => (false, 12),
                Type::BYTE_ARRAY => (true, 16),
                Type::FIXED_LEN_BYTE_ARRAY => (false, column.column_descr().type_length()),
            };
            let width = u64::try_from(width).unwrap_or(0);
            let (mut at, end) = (start, start.saturating_add(len).min(reader.len()));
            while at < end {
                let name = || column.column_path().string();
                let header = reader.get_read(at).ok().and_then(|read| Header::read(read.take(end - at)).ok());
                let Some(header) = header else {
                    return Err(format!("the header of a page of column {} cannot be read", name()));
                };
                let packed = header.packed_bytes;
                // What is not packed is not unpacked.
                let is_packed = column.compression() != Compression::UNCOMPRESSED;
                let unpacked = if is_packed { header.unpacked_bytes } else { packed };
                if unpacked > MAX_SMALL_PAGE_BYTES.max(packed.saturating_mul(MAX_RATIO)) {
                    let name = name();
                    return Err(format!("a page of column {name} of {packed} bytes announces {unpacked} unpacked"));
                }
                extent.unpacked_bytes = extent.unpacked_bytes.saturating_add(unpacked);
                extent.value_bytes = extent.value_bytes.saturating_add(header.num_values.saturating_mul(width));
                if has_text {
                    extent.largest_page_bytes = extent.largest_page_bytes.max(unpacked);
                    extent.shares_prefixes |= header.encoding == Some(DELTA_BYTE_ARRAY);
                }
                at = at.saturating_add(header.len).saturating_add(packed);
            }
        }
    }
    Ok(extent)
}

/// What of a page's header matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Its own length.
    len: u64,
    unpacked_bytes: u64,
    packed_bytes: u64,
    /// Values of a data page; none in one of a dictionary, whose are counted where they are named.
    num_values: u64,
    /// How a data page's values are written.
    encoding: Option<i64>,
}

impl Header {
    /// Reads a `PageHeader` in Thrift's compact protocol: sizes are its second and third fields, its fifth is the
    /// header of a data page, its eighth that of one of version 2.
    fn read(bytes: impl Read) -> io::Result<Self> {
        let mut input = Compact::new(bytes);
        let (mut field, mut sizes, mut data) = (0, [None; 2], [None; 2]);
        while let Some((id, kind)) = input.field(field)? {
            field = id;
            match (id, kind) {
                (2 | 3, 5) => {
                    let size = u64::try_from(input.zigzag()?).map_err(|_| invalid())?;
                    sizes[usize::from(id == 3)] = Some(size);
                }
                // The encoding is the second field of the one, the fourth of the other.
                (5 | 8, 12) => data = input.fields_of_struct([1, if id == 5 { 2 } else { 4 }])?,
                _ => input.skip(kind, 0)?,
            }
        }
        match sizes {
            [Some(unpacked_bytes), Some(packed_bytes)] => {
                let [num_values, encoding] = data;
                let num_values = u64::try_from(num_values.unwrap_or(0)).map_err(|_| invalid())?;
                Ok(Self { len: input.len, unpacked_bytes, packed_bytes, num_values, encoding })
            }
            _ => Err(invalid()),
        }
    }
}

pub(super) fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Thrift's compact protocol, as far as it takes to skip what is not wanted.
pub(super) struct Compact<R> {
    bytes: R,
    /// Bytes read so far.
    len: u64,
}

impl<R: Read> Compact<R> {
    pub(super) const fn new(bytes: R) -> Self {
        Self { bytes, len: 0 }
    }

    /// Bytes read so far.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// The 32-bit numbers in the fields `wanted` of the struct that begins here, all of which is read.
    pub(super) fn fields_of_struct<const N: usize>(&mut self, wanted: [i64; N]) -> io::Result<[Option<i64>; N]> {
        let (mut last, mut found) = (0, [None; N]);
        while let Some((id, kind)) = self.field(last)? {
            last = id;
            match (wanted.iter().position(|field| *field == id), kind) {
                (Some(place), 5) => found[place] = Some(self.zigzag()?),
                _ => self.skip(kind, 1)?,
            }
        }
        Ok(found)
    }

    /// Number and type of the items of a list that begins here.
    pub(super) fn list(&mut self) -> io::Result<(u64, u8)> {
        let head = self.byte()?;
        let num_items = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Ok((num_items, head & 0xf))
    }

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
    pub(super) fn field(&mut self, last: i64) -> io::Result<Option<(i64, u8)>> {
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

    pub(super) fn skip(&mut self, kind: u8, depth: u32) -> io::Result<()> {
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
                let (num_items, kind) = self.list()?;
                (0..num_items).try_for_each(|_| self.skip_item(kind, depth))
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
    pub(super) fn skip_item(&mut self, kind: u8, depth: u32) -> io::Result<()> {
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
        let inner = [0x1c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0x1c, 0x18, 2, b'a', b'b', 0x16, 4, 0x11, 0, 0];
        // Fields to come: a list of two booleans, a map of a byte to a double, a UUID, a field with a far number.
        let strange =
            [&[0x49, 0x21, 1, 2, 0x1b, 1, 0x37, 9][..], &[0; 8], &[0x1d], &[7; 16], &[0x05, 0xd0, 0x0f, 0x80, 1, 0]];
        let bytes = [&plain[..], &inner, &strange.concat()].concat();
        let expected =
            Header { len: bytes.len() as u64, unpacked_bytes: 5, packed_bytes: 3, num_values: 1, encoding: Some(0) };
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
