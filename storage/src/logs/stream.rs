//! Reading Arrow IPC streams that may be cut off or damaged anywhere.
//!
//! The frames are walked here, and only whole ones go to the Arrow decoder: a stream whose writer died, or is still
//! writing, yields all its whole batches and the number of bytes after them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{Message, MessageHeader, root_as_message};

use super::schema::{SchemaMeta, recognise};
use super::tables::Table;
use crate::atomic::{FileError, read_plain};

/// Follows a frame's flatbuffer, before the CRC-32 of flatbuffer and body: 64 bytes together, so that bodies stay
/// aligned.
pub(super) const TRAILER: &[u8; 60] = &{
    let (mut trailer, mark) = ([0; 60], b"mlomae frame sum");
    trailer.split_at_mut(60 - mark.len()).1.copy_from_slice(mark);
    trailer
};

/// The CRC-32 of a frame's flatbuffer and body.
pub(super) fn frame_sum(metadata: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(metadata);
    hasher.update(body);
    hasher.finalize()
}

/// The frames in bytes that an encoder has just written, as flatbuffer and body.
pub(super) fn frames(bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), String>> {
    let mut at = 0;
    std::iter::from_fn(move || match next_frame(bytes, at) {
        Next::End => None,
        Next::Damage(reason) => {
            at = bytes.len();
            Some(Err(reason))
        }
        Next::Frame(frame) => {
            let metadata = &bytes[frame.metadata.0..frame.metadata.1];
            let whole = root_as_message(metadata).map_err(|e| e.to_string()).and_then(|message| {
                let len = usize::try_from(message.bodyLength()).map_err(|e| e.to_string())?;
                let end = frame.body.checked_add(len).filter(|end| *end <= bytes.len());
                end.ok_or_else(|| "a frame without its body".to_owned())
            });
            at = *whole.as_ref().unwrap_or(&bytes.len());
            Some(whole.map(|end| (metadata, &bytes[frame.body..end])))
        }
    })
}

/// Checks a frame against its sum; streams of earlier versions have none.
fn check_sum(metadata: &[u8], body: &[u8]) -> Result<(), String> {
    let Some((rest, sum)) = metadata.split_last_chunk::<4>() else { return Ok(()) };
    let is_whole = match rest.strip_suffix(TRAILER) {
        Some(flatbuffer) => frame_sum(flatbuffer, body) == u32::from_le_bytes(*sum),
        None => !is_torn(rest),
    };
    if is_whole { Ok(()) } else { Err("a frame was altered, or not all of it reached the disk".to_owned()) }
}

/// Whether metadata ends with zeros in the place of the trailer, or of its end: pages that never reached the disk. No
/// flatbuffer ends with so many.
fn is_torn(metadata: &[u8]) -> bool {
    let Some((_, tail)) = metadata.split_last_chunk::<{ TRAILER.len() }>() else { return false };
    let same = tail.iter().zip(TRAILER).take_while(|(found, written)| found == written).count();
    same >= TRAILER.iter().take_while(|byte| **byte == 0).count() && tail[same..].iter().all(|byte| *byte == 0)
}

/// What was found in a stream.
#[derive(Debug)]
pub(crate) struct StreamContents {
    /// The schema with its metadata, if the stream got that far.
    pub(crate) schema: Option<(SchemaRef, SchemaMeta)>,
    /// The whole batches, in order, none of them empty.
    pub(crate) batches: Vec<RecordBatch>,
    /// Bytes up to the end of the last whole frame.
    pub(crate) good_bytes: u64,
    /// Bytes of the file.
    pub(crate) total_bytes: u64,
    /// Why reading stopped before the end, if it did.
    pub(crate) damage: Option<String>,
    /// The file is a whole Arrow stream, but of something else.
    pub(crate) foreign: Option<String>,
}

impl StreamContents {
    /// Bytes after the last whole frame, which will be lost.
    pub(crate) fn lost_bytes(&self) -> u64 {
        // A file of something else is kept.
        if self.foreign.is_some() { 0 } else { self.total_bytes - self.good_bytes }
    }

    /// Number of rows in the whole batches.
    pub(crate) fn num_rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// One encapsulated message of the IPC format.
struct Frame {
    /// The flatbuffer, within the file.
    metadata: (usize, usize),
    /// Where the body begins.
    body: usize,
}

enum Next {
    Frame(Frame),
    End,
    Damage(String),
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The frame header at `at`: continuation mark, metadata length, metadata.
fn next_frame(bytes: &[u8], at: usize) -> Next {
    if at == bytes.len() {
        return Next::End;
    }
    let (Some(mark), Some(len)) = (le_u32(bytes, at), le_u32(bytes, at + 4)) else {
        return Next::Damage("the last frame has no whole header".into());
    };
    if mark != u32::MAX {
        return Next::Damage(format!("no frame begins at byte {at}"));
    }
    if len == 0 {
        return if at + 8 == bytes.len() { Next::End } else { Next::Damage("bytes behind the end mark".into()) };
    }
    let start = at + 8;
    match start.checked_add(len as usize) {
        Some(body) if body <= bytes.len() => Next::Frame(Frame { metadata: (start, body), body }),
        _ => Next::Damage("the last frame is cut off in its header".into()),
    }
}

/// Reads `path`, taking every whole batch; only a failure to read the file is an error.
pub(crate) fn read_stream(path: &Path, table: Table) -> Result<StreamContents, FileError> {
    Ok(parse_stream(read_plain(path)?, table))
}

/// Takes every whole batch from the bytes of a stream. Never panics, whatever the bytes.
pub(crate) fn parse_stream(bytes: Vec<u8>, table: Table) -> StreamContents {
    let bytes = Buffer::from_vec(bytes);
    let mut contents = StreamContents {
        schema: None,
        batches: Vec::new(),
        good_bytes: 0,
        total_bytes: bytes.len() as u64,
        damage: None,
        foreign: None,
    };
    // The decoder validates its input. Should it have missed something, its panic is caught and becomes an error.
    let outcome = catch_unwind(AssertUnwindSafe(|| walk(&bytes, table, &mut contents)));
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => contents.damage = Some(reason),
        Err(_) => contents.damage = Some("the Arrow decoder gave up on a frame".into()),
    }
    contents
}

fn walk(bytes: &Buffer, table: Table, contents: &mut StreamContents) -> Result<(), String> {
    let mut dictionaries = HashMap::new();
    let mut at = 0;
    loop {
        let frame = match next_frame(bytes, at) {
            Next::Frame(frame) => frame,
            Next::End if contents.good_bytes == at as u64 => {
                contents.good_bytes = bytes.len() as u64;
                return Ok(());
            }
            Next::End => return Err("it ends between a dictionary and its batch".into()),
            Next::Damage(reason) => return Err(reason),
        };
        let message =
            root_as_message(&bytes[frame.metadata.0..frame.metadata.1]).map_err(|e| format!("bad frame: {e}"))?;
        let end = usize::try_from(message.bodyLength())
            .ok()
            .and_then(|len| frame.body.checked_add(len))
            .filter(|end| *end <= bytes.len())
            .ok_or("the last frame is cut off in its body")?;
        let body = bytes.slice_with_length(frame.body, end - frame.body);
        check_sum(&bytes[frame.metadata.0..frame.metadata.1], &body)?;
        decode(&message, &body, table, &mut dictionaries, contents)?;
        // A dictionary is of use only with the batch after it, so `good_bytes` advances at the schema and at batches.
        if message.header_type() != MessageHeader::DictionaryBatch {
            contents.good_bytes = end as u64;
        }
        at = end;
    }
}

fn decode(
    message: &Message<'_>,
    body: &Buffer,
    table: Table,
    dictionaries: &mut HashMap<i64, arrow::array::ArrayRef>,
    contents: &mut StreamContents,
) -> Result<(), String> {
    let schema = contents.schema.as_ref().map(|(schema, _)| Arc::clone(schema));
    match (message.header_type(), schema) {
        (MessageHeader::Schema, None) => {
            let header = message.header_as_schema().ok_or("bad schema frame")?;
            let schema = try_fb_to_schema(header).map_err(|e| e.to_string())?;
            match recognise(table, &schema) {
                Ok(meta) => contents.schema = Some((Arc::new(schema), meta)),
                Err(reason) => {
                    contents.foreign = Some(reason.clone());
                    return Err(reason);
                }
            }
        }
        (MessageHeader::DictionaryBatch, Some(schema)) => {
            let header = message.header_as_dictionary_batch().ok_or("bad dictionary frame")?;
            if header.isDelta() {
                return Err("delta dictionaries are not written by this program".into());
            }
            let values = header.data().ok_or("bad dictionary frame")?;
            // All dictionaries hold text: validity, offsets, bytes.
            check_buffers(&values, body.len(), &[1, 4, 1])?;
            read_dictionary(body, header, &schema, dictionaries, &message.version()).map_err(|e| e.to_string())?;
        }
        (MessageHeader::RecordBatch, Some(schema)) => {
            let header = message.header_as_record_batch().ok_or("bad batch frame")?;
            let mut widths = Vec::new();
            schema.fields().iter().for_each(|f| buffer_widths(f.data_type(), &mut widths));
            check_buffers(&header, body.len(), &widths)?;
            let batch = read_record_batch(body, header, schema, dictionaries, None, &message.version())
                .map_err(|e| e.to_string())?;
            check_batch(&batch)?;
            if batch.num_rows() > 0 {
                contents.batches.push(batch);
            }
        }
        (kind, _) => return Err(format!("unexpected frame {kind:?}")),
    }
    Ok(())
}

/// Bytes of one value in each buffer of a column.
fn buffer_widths(kind: &DataType, out: &mut Vec<i64>) {
    out.push(1);
    match kind {
        DataType::FixedSizeList(item, _) => buffer_widths(item.data_type(), out),
        DataType::Dictionary(key, _) => out.push(key.primitive_width().unwrap_or(1) as i64),
        DataType::Utf8 => out.extend([4, 1]),
        other => out.push(other.primitive_width().unwrap_or(1) as i64),
    }
}

/// Refuses a header whose buffers are outside its body or have impossible lengths, which the decoder does not check.
///
/// `widths` are the bytes of one value of each buffer, in order.
fn check_buffers(header: &arrow::ipc::RecordBatch<'_>, body_len: usize, widths: &[i64]) -> Result<(), String> {
    if header.compression().is_some() {
        return Err("compressed frames are not written by this program".into());
    }
    for (i, buffer) in header.buffers().into_iter().flatten().enumerate() {
        let end = buffer.offset().checked_add(buffer.length());
        let whole = buffer.length() % widths.get(i).copied().unwrap_or(1) == 0;
        let fits = whole
            && buffer.offset() >= 0
            && buffer.length() >= 0
            && end.is_some_and(|end| end as u64 <= body_len as u64);
        if !fits {
            return Err(format!("a buffer does not fit its frame: {} + {}", buffer.offset(), buffer.length()));
        }
    }
    // No column of these tables needs less than one bit a row.
    let max_rows = (body_len as u64).saturating_mul(8);
    let nodes = header.nodes().into_iter().flatten().map(|n| (n.length(), n.null_count()));
    for (length, nulls) in nodes.chain(std::iter::once((header.length(), 0))) {
        if !(0..=length).contains(&nulls) || length as u64 > max_rows {
            return Err(format!("a frame of {body_len} bytes cannot hold {length} values with {nulls} nulls"));
        }
    }
    Ok(())
}

/// Refuses a batch whose pages never reached the disk: they read as zeros, and no row was made in 1970.
fn check_batch(batch: &RecordBatch) -> Result<(), String> {
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !field.is_nullable() && column.null_count() > 0 {
            return Err(format!("nulls in column `{}`", field.name()));
        }
    }
    let ts = batch.column_by_name("ts").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    match ts {
        Some(ts) if ts.values().iter().all(|ts| *ts > 0) => Ok(()),
        _ => Err("a batch holds rows without a time".into()),
    }
}
