//! The footer of a Parquet file, looked at before the decoder does: that makes room for as many things as a list
//! announces, and goes down a nested schema by recursion, which a hostile file can make overflow the stack.

use std::io;

use parquet::file::reader::ChunkReader;

use super::pages::{Compact, invalid};

/// Footers of image datasets have some kilobytes, with thousands of row groups some megabytes.
const MAX_FOOTER_BYTES: u64 = 32 << 20;
/// Columns in columns; an image column is two deep, a list of structs four.
const MAX_DEPTH: usize = 32;
/// The least bytes of an item of a list, and of a row group, which has a column at least.
const MIN_ITEM_BYTES: u64 = 3;
const MIN_GROUP_BYTES: u64 = 16;

/// Checks the footer of a file that ends with one; a file that ends otherwise is left to the decoder.
///
/// # Errors
/// One line about what is unbelievable.
pub(crate) fn check<R: ChunkReader>(reader: &R) -> Result<(), String> {
    let Some(tail_at) = reader.len().checked_sub(8) else { return Ok(()) };
    let Ok(tail) = reader.get_bytes(tail_at, 8) else { return Ok(()) };
    let Ok(len) = tail[..4].try_into().map(u32::from_le_bytes).map(u64::from) else { return Ok(()) };
    if !tail.ends_with(b"PAR1") || len > tail_at {
        return Ok(());
    }
    if len > MAX_FOOTER_BYTES {
        return Err(format!("its footer has {len} bytes, more than {MAX_FOOTER_BYTES}"));
    }
    let Ok(footer) = reader.get_bytes(tail_at - len, usize::try_from(len).unwrap_or(usize::MAX)) else {
        return Ok(());
    };
    match walk(&footer) {
        Ok(None) => Ok(()),
        Ok(Some(problem)) => Err(problem),
        Err(_) => Err("its footer cannot be read".to_owned()),
    }
}

/// Goes through a `FileMetaData`: the schema is its second field, the row groups its fourth. Answers with what is
/// wrong.
fn walk(footer: &[u8]) -> io::Result<Option<String>> {
    let mut input = Compact::new(footer);
    let mut last = 0;
    while let Some((id, kind)) = input.field(last)? {
        last = id;
        if kind != 9 {
            input.skip(kind, 0)?;
            continue;
        }
        let (num_items, kind) = input.list()?;
        let left = footer.len() as u64 - input.len();
        let min_bytes = if id == 4 { MIN_GROUP_BYTES } else { MIN_ITEM_BYTES };
        if num_items.saturating_mul(min_bytes) > left {
            return Ok(Some(format!("its footer announces a list of {num_items} things in {left} bytes")));
        }
        let mut levels = Vec::new();
        for item in 0..num_items {
            if id != 2 || kind != 12 {
                input.skip_item(kind, 0)?;
                continue;
            }
            let [num_children] = input.fields_of_struct([5])?;
            let num_children = num_children.unwrap_or(0);
            let num_children = u64::try_from(num_children).map_err(|_| invalid())?;
            if num_children > num_items - item {
                return Ok(Some(format!("a column announces {num_children} columns in it, of {num_items} in all")));
            }
            // Open groups with the children that are still to come: what has none left is closed.
            if let Some(to_come) = levels.last_mut() {
                *to_come -= 1;
            }
            levels.push(num_children);
            if levels.len() > MAX_DEPTH + 1 {
                return Ok(Some(format!("its columns are nested more than {MAX_DEPTH} deep")));
            }
            while levels.last() == Some(&0) {
                levels.pop();
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A file of nothing but a footer.
    fn file(footer: &[u8]) -> Bytes {
        let len = u32::try_from(footer.len()).unwrap().to_le_bytes();
        Bytes::from([footer, &len, b"PAR1"].concat())
    }

    fn varint(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }

    /// A schema of a number of elements, each a group of one child but the last.
    fn chain(num: usize) -> Vec<u8> {
        let mut footer = [&[0x15, 2, 0x19, 0xfc][..], &varint(num)].concat();
        for item in 0..num {
            let num_children = u8::from(item + 1 < num) * 2;
            footer.extend([0x35, 0, 0x18, 1, b'a', 0x15, num_children, 0]);
        }
        footer.push(0);
        footer
    }

    #[test]
    fn nested_columns_and_lists_of_nothing_are_refused() {
        assert_eq!(check(&file(&chain(MAX_DEPTH))), Ok(()));
        let refused = |footer: &[u8]| check(&file(footer)).expect_err("refused");
        assert!(refused(&chain(60_000)).contains("nested more than"));
        // A list of 2^31 row groups in a few bytes.
        let groups = [&[0x15, 2, 0x39, 0xfc][..], &varint(1 << 31), &[0; 8]].concat();
        assert!(refused(&groups).contains("a list of 2147483648 things"));
        // A group of 2^30 children.
        let children = [&[0x15, 2, 0x19, 0x1c, 0x48, 1, b'a', 0x15][..], &varint(1 << 31), &[0, 0]].concat();
        assert!(refused(&children).contains("1073741824 columns"));
        assert!(refused(&chain(3)[..16]).contains("cannot be read"));
        assert_eq!(check(&Bytes::from_static(b"no parquet file")), Ok(()));
    }
}
