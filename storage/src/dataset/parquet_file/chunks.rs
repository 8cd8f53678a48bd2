//! Encoded images and class maps of a Parquet file, batch by batch.

use std::path::PathBuf;

use arrow::array::{Array, ArrayRef};

use super::image_column::value;
use crate::dataset::decode::{DecodeError, Decoder, index_map};
use crate::dataset::error::DataError;
use crate::dataset::formats::annotated::{fitted, outside};
use crate::dataset::labels::target_rows::TargetRows;
use crate::dataset::spec::BoxFormat;

/// Rows whose boxes are held against their images when the files are opened.
const MAX_CHECKED: usize = 1024;

/// One record batch of encoded images.
pub(crate) struct Chunk {
    /// Number of its first row.
    pub start: usize,
    pub images: ArrayRef,
    /// The encoded class maps, where they were asked for.
    pub masks: Option<ArrayRef>,
    pub path: PathBuf,
}

/// The chunk of a row, and its place in it.
pub(crate) fn place(chunks: &[Chunk], index: usize) -> (&Chunk, usize) {
    let chunk = &chunks[chunks.partition_point(|chunk| chunk.start <= index) - 1];
    (chunk, index - chunk.start)
}

/// The indices of a row's class map.
pub(crate) fn indices(chunks: &[Chunk], index: usize, decoder: &Decoder) -> Result<index_map::Indices, DataError> {
    let (chunk, row) = place(chunks, index);
    let bytes = chunk.masks.as_ref().and_then(|masks| value(masks, row)).ok_or(DecodeError::Absent);
    let decoded = bytes.and_then(|bytes| index_map::decode(bytes, &decoder.limits));
    decoded.map_err(|source| DataError::Decode { path: chunk.path.clone(), sample: index, source })
}

/// Refuses boxes that leave their images, as far as some rows tell: a wrong `data.bbox_format` shows in the first ones.
pub(crate) fn check_boxes(
    chunks: &[Chunk],
    rows: &TargetRows,
    decoder: &Decoder,
    bbox_format: BoxFormat,
) -> Result<(), DataError> {
    // Boxes are in the pixels as stored.
    let decoder = Decoder { exif_orientation: false, ..*decoder };
    let mut num_checked = 0;
    for chunk in chunks {
        for row in 0..chunk.images.len() {
            let index = chunk.start + row;
            let Some(boxes) = rows.boxes(index).filter(|boxes| !boxes.is_empty()) else { continue };
            let Some(header) = value(&chunk.images, row).and_then(|bytes| decoder.header(bytes).ok()) else { continue };
            let size = [header.width as f32, header.height as f32];
            if let Some(object) = boxes.iter().find(|object| fitted(object.edges, size).is_none()) {
                let reason = outside(object.edges, header.width, header.height);
                return Err(DataError::sample(&chunk.path, index, with_format(&reason, bbox_format)));
            }
            num_checked += 1;
            if num_checked >= MAX_CHECKED {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What is wrong with a box, and how its numbers were read.
pub(crate) fn with_format(reason: &str, bbox_format: BoxFormat) -> String {
    let other = if bbox_format == BoxFormat::Xywh { BoxFormat::Xyxy } else { BoxFormat::Xywh };
    let (taken, other) = (bbox_format.as_str(), other.as_str());
    format!("{reason}; its numbers were taken for {taken}, data.bbox_format = \"{other}\" is the other way")
}
