//! Any dataset to Hugging Face Parquet, losslessly: every image becomes a PNG.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::error::DataError;
use super::formats::hf_parquet::HfParquet;
use super::formats::synthetic::SyntheticDataset;
use super::parquet_file::features;
use super::pixels::Image;
use super::sample::Dataset;
use super::spec::{FormatName, Split};
use super::synthetic_spec::SyntheticSpec;
use crate::unfinished::Unfinished;

/// The format of the files that a conversion writes.
pub const FORMAT: FormatName = HfParquet::NAME;
/// Rows written at once; the memory bound of a conversion.
const ROWS_PER_GROUP: usize = 500;

/// What a conversion wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertReport {
    /// The file.
    pub path: PathBuf,
    /// Images in it.
    pub num_samples: usize,
    /// Those of them without a label.
    pub num_unlabelled: usize,
    /// Where the labels went, none if the dataset has no labels at all.
    pub label_column: Option<String>,
    /// Its size.
    pub num_bytes: u64,
}

/// Writes a split as `out_dir/<split>-00000-of-00001.parquet` with columns `image` (struct<bytes, path>, PNG) and the
/// labels (int64, null for none, under the dataset's own column name or `label`), and the `huggingface` metadata with
/// the classes' names. A dataset without any label gets no label column. The file appears when it is whole; an existing
/// one is refused. `progress` is called with (images done, images in all) after every group of rows.
///
/// # Errors
/// [`DataError::Exists`] if the file is there already, [`DataError::Io`] if it cannot be written, and what reading a
/// sample or label of `dataset` gives.
pub fn convert(
    dataset: &dyn Dataset,
    out_dir: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<ConvertReport, DataError> {
    let info = dataset.info();
    let path = out_dir.join(format!("{}-00000-of-00001.parquet", info.split));
    if path.exists() {
        return Err(DataError::Exists { path });
    }
    fs::create_dir_all(out_dir).map_err(|e| DataError::write(out_dir, e))?;
    let mut num_unlabelled = 0;
    for index in 0..dataset.len() {
        num_unlabelled += usize::from(dataset.label(index)?.is_none());
    }
    // Nulls under a name would claim that the labels are known to be absent.
    let label_column = match info.label_column.as_deref() {
        None if num_unlabelled == dataset.len() => None,
        column => Some(column.filter(|name| *name != "image").unwrap_or("label")),
    };
    let unfinished = path.with_extension("parquet.tmp");
    let _noted = Unfinished::note(&unfinished);
    let written =
        write(dataset, label_column, &unfinished, progress).and_then(|()| publish(&unfinished, &path, out_dir));
    if written.is_err() {
        // The first error is the one to report; a leftover is not a dataset by its name.
        let _ = fs::remove_file(&unfinished);
    }
    let num_bytes = written?;
    let label_column = label_column.map(str::to_owned);
    Ok(ConvertReport { path, num_samples: dataset.len(), num_unlabelled, label_column, num_bytes })
}

/// Generates both splits of a synthetic dataset and writes them as [`convert`] does: training split first.
///
/// # Errors
/// Those of [`SyntheticDataset::new`] and [`convert`].
pub fn write_synthetic(
    spec: &SyntheticSpec,
    out_dir: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<ConvertReport>, DataError> {
    let total = spec.num_train + spec.num_test;
    let (train, test) = (SyntheticDataset::new(spec, Split::Train)?, SyntheticDataset::new(spec, Split::Test)?);
    let first = convert(&train, out_dir, &mut |done, _| progress(done, total))?;
    let second = convert(&test, out_dir, &mut |done, _| progress(spec.num_train + done, total))?;
    Ok(vec![first, second])
}

/// Makes a finished file durable under its name, and gives its size.
fn publish(unfinished: &Path, path: &Path, out_dir: &Path) -> Result<u64, DataError> {
    let file = File::open(unfinished).map_err(|e| DataError::write(unfinished, e))?;
    file.sync_all().map_err(|e| DataError::write(unfinished, e))?;
    let num_bytes = file.metadata().map_err(|e| DataError::write(unfinished, e))?.len();
    fs::rename(unfinished, path).map_err(|e| DataError::write(path, e))?;
    File::open(out_dir).and_then(|folder| folder.sync_all()).map_err(|e| DataError::write(out_dir, e))?;
    Ok(num_bytes)
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

fn write(
    dataset: &dyn Dataset,
    label_column: Option<&str>,
    path: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), DataError> {
    let info = dataset.info();
    let mut fields = vec![Field::new("image", DataType::Struct(image_fields()), true)];
    fields.extend(label_column.map(|name| Field::new(name, DataType::Int64, true)));
    let schema = Arc::new(Schema::new_with_metadata(fields, features::metadata(label_column, &info.class_names)));
    let failed = |e: &dyn std::fmt::Display| DataError::write(path, std::io::Error::other(e.to_string()));
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
        .set_column_dictionary_enabled("image.bytes".into(), false)
        .set_created_by(concat!("mlomae ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    // A leftover goes, and if it is a link, not what it leads to.
    let _ = fs::remove_file(path);
    let file = File::create_new(path).map_err(|e| DataError::write(path, e))?;
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(|e| failed(&e))?;
    let total = dataset.len();
    for start in (0..total).step_by(ROWS_PER_GROUP) {
        let end = (start + ROWS_PER_GROUP).min(total);
        let (mut images, mut names, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for index in start..end {
            let sample = dataset.sample(index)?;
            images.push(encode_png(&sample.image).map_err(|e| failed(&e))?);
            names.push(format!("{}-{:08}.png", info.split, sample.id));
            labels.push(sample.label.map(i64::from));
        }
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(images));
        let names: ArrayRef = Arc::new(StringArray::from(names));
        let images = StructArray::try_new(image_fields(), vec![images, names], None).map_err(|e| failed(&e))?;
        let mut columns: Vec<ArrayRef> = vec![Arc::new(images)];
        if label_column.is_some() {
            columns.push(Arc::new(Int64Array::from(labels)));
        }
        let batch = RecordBatch::try_new(schema.clone(), columns);
        writer.write(&batch.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
        progress(end, total);
    }
    writer.close().map_err(|e| failed(&e))?;
    Ok(())
}

/// An image as an 8-bit grey or RGB PNG.
///
/// # Errors
/// If the pixels are not as many as the shape says, or there are neither 1 nor 3 channels.
pub fn encode_png(image: &Image) -> Result<Vec<u8>, image::ImageError> {
    let mut out = Cursor::new(Vec::new());
    let color = if image.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    // The encoder only knows u32 sizes; a saturated one does not fit the pixels and is refused.
    let side = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let encoder = PngEncoder::new_with_quality(&mut out, CompressionType::Default, FilterType::Adaptive);
    if image.pixels.len() != image.width * image.height * image.channels || !matches!(image.channels, 1 | 3) {
        let kind = image::error::ParameterErrorKind::DimensionMismatch;
        return Err(image::ImageError::Parameter(image::error::ParameterError::from_kind(kind)));
    }
    encoder.write_image(&image.pixels, side(image.width), side(image.height), color)?;
    Ok(out.into_inner())
}
