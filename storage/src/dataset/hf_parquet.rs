//! Hugging Face Parquet: encoded images stay as they are in Arrow arrays and are decoded on demand.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::reader::ChunkReader;

use crate::guard::guarded;

use super::classes::LabelOrigin;
use super::features::Features;
use super::label_column::{self, LabelColumn, Labels, Unified};
use super::raw::Survey;
use super::resize::into_channels;
use super::{
    DataError, Dataset, DatasetInfo, DatasetSpec, DecodeLimits, Format, Sample, Split, check_index, decode, file_name,
    pages,
};

const ROWS_PER_BATCH: usize = 1024;

/// A split held as encoded bytes.
pub(crate) struct ParquetDataset {
    info: DatasetInfo,
    origin: LabelOrigin,
    chunks: Vec<Chunk>,
    labels: Vec<Option<i32>>,
    limits: DecodeLimits,
}

/// One record batch of encoded images.
struct Chunk {
    start: usize,
    images: ArrayRef,
    path: PathBuf,
}

/// The columns to read, decided by the first file and binding for the others.
struct Columns {
    image: String,
    /// The label column, or the columns that are not taken for one.
    label: Result<LabelColumn, Vec<String>>,
}

/// What reading several files gathers.
#[derive(Default)]
struct Gathered {
    columns: Option<Columns>,
    chunks: Vec<Chunk>,
    labels: Labels,
}

pub(crate) fn open(path: &Path, spec: &DatasetSpec) -> Result<Arc<dyn Dataset>, DataError> {
    let (split, files) = if path.is_file() {
        (single_file(path, spec.split)?, vec![path.to_owned()])
    } else {
        shards(path, spec.split)?
    };
    let mut gathered = Gathered::default();
    for file in &files {
        let reader = File::open(file).map_err(|e| DataError::read(file, e))?;
        gathered.read(reader, file, spec)?;
    }
    let name = if path.is_file() { stem(&file_name(path)) } else { file_name(path) };
    gathered.finish(name, Format::HfParquet, split, spec, path)
}

/// A file that is inside the program; `path` is only its name.
pub(crate) fn open_bytes(
    bytes: bytes::Bytes,
    path: &Path,
    name: &str,
    spec: &DatasetSpec,
) -> Result<Arc<dyn Dataset>, DataError> {
    let mut gathered = Gathered::default();
    gathered.read(bytes, path, spec)?;
    gathered.finish(name.to_owned(), Format::Embedded, spec.split.to_string(), spec, path)
}

fn stem(name: &str) -> String {
    name.strip_suffix(".parquet").unwrap_or(name).to_owned()
}

/// Names under which a split is stored, best first.
pub(crate) fn split_names(split: Split) -> &'static [&'static str] {
    match split {
        Split::Train => &["train"],
        Split::Test => &["test", "validation", "valid", "val"],
        Split::Validation => &["validation", "valid", "val"],
    }
}

/// Split of a file by its name: `train.parquet`, `train-00000-of-00002.parquet`, `train_0.parquet`.
fn split_of(name: &str) -> Option<(Split, &'static str)> {
    let stem = name.strip_suffix(".parquet")?;
    Split::ALL.iter().find_map(|&split| {
        let is_stored_as = |prefix: &&&str| {
            stem.strip_prefix(**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
        };
        split_names(split).iter().find(is_stored_as).map(|&name| (split, name))
    })
}

/// A file alone is the split that its name says, and otherwise the training split.
fn single_file(path: &Path, wanted: Split) -> Result<String, DataError> {
    let (split, stored) = split_of(&file_name(path)).unwrap_or((Split::Train, "train"));
    if split == wanted || split_names(wanted).contains(&stored) {
        return Ok(stored.to_owned());
    }
    let hint = format!(
        "a single file holds one split, this one {stored}; give the folder with train-*.parquet and test-*.parquet"
    );
    Err(DataError::NoSplit { path: path.to_owned(), split: wanted.to_string(), hint })
}

/// Parquet files directly in a folder or in its `data` folder, sorted by name.
pub(crate) fn parquet_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    for place in [folder.to_owned(), folder.join("data")] {
        if !place.is_dir() {
            continue;
        }
        let mut files = Vec::new();
        for entry in place.read_dir().map_err(|e| DataError::read(&place, e))? {
            let file = entry.map_err(|e| DataError::read(&place, e))?.path();
            if file.extension().is_some_and(|ext| ext == "parquet") && file.is_file() {
                files.push(file);
            }
        }
        if !files.is_empty() {
            files.sort();
            return Ok(files);
        }
    }
    Ok(Vec::new())
}

fn shards(folder: &Path, wanted: Split) -> Result<(String, Vec<PathBuf>), DataError> {
    let all = parquet_files(folder)?;
    for &stored in split_names(wanted) {
        let files: Vec<_> = all
            .iter()
            .filter(|file| split_of(&file_name(file)).is_some_and(|(_, name)| name == stored))
            .cloned()
            .collect();
        if !files.is_empty() {
            check_shards(&files)?;
            return Ok((stored.to_owned(), files));
        }
    }
    let names: Vec<_> = split_names(wanted).iter().map(|name| format!("{name}-*.parquet")).collect();
    let present: Vec<_> = all.iter().take(8).map(|file| file_name(file)).collect();
    let present = if present.is_empty() { "no parquet files".to_owned() } else { present.join(", ") };
    let hint = format!("looked for {} here and in data/, found {present}", names.join(", "));
    Err(DataError::NoSplit { path: folder.to_owned(), split: wanted.to_string(), hint })
}

/// Files named `x-00000-of-00003` must be all there: a missing one would shift the ids and shrink the data unnoticed.
fn check_shards(files: &[PathBuf]) -> Result<(), DataError> {
    for file in files {
        let name = stem(&file_name(file));
        let Some((_, total)) = name.split_once("-of-") else {
            continue;
        };
        let total = total.get(..5).and_then(|digits| digits.parse::<usize>().ok()).unwrap_or(files.len());
        if total != files.len() {
            return Err(DataError::malformed(
                file,
                format!("is one of {total} files by its name, but there are {}", files.len()),
            ));
        }
    }
    Ok(())
}

impl Gathered {
    fn read<R: ChunkReader + 'static>(&mut self, reader: R, path: &Path, spec: &DatasetSpec) -> Result<(), DataError> {
        let refuse = |reason| DataError::malformed(path, format!("not a readable parquet file: {reason}"));
        guarded(|| self.decode(reader, path, spec), refuse)
    }

    fn decode<R: ChunkReader + 'static>(
        &mut self,
        reader: R,
        path: &Path,
        spec: &DatasetSpec,
    ) -> Result<(), DataError> {
        let malformed =
            |e: &dyn std::fmt::Display| DataError::malformed(path, format!("not a readable parquet file: {e}"));
        let metadata = ArrowReaderMetadata::load(&reader, ArrowReaderOptions::default()).map_err(|e| malformed(&e))?;
        let schema = metadata.schema().clone();
        let found = choose_columns(&schema, path, spec)?;
        let name = |label: &Result<LabelColumn, _>| label.as_ref().ok().map(|label| label.name.clone());
        if let Some(first) = &self.columns
            && name(&first.label) != name(&found.label)
        {
            let text = |label| name(label).map_or_else(|| "absent".to_owned(), |name| format!("{name:?}"));
            let (own, first) = (text(&found.label), text(&first.label));
            return Err(DataError::malformed(
                path,
                format!("its label column is {own}, that of the first file {first}"),
            ));
        }
        let columns = self.columns.get_or_insert(found);
        let index_of = |name: &str| schema.index_of(name).map_err(|e| malformed(&e));
        let mut roots = vec![index_of(&columns.image)?];
        let label = columns.label.as_ref().ok().map(|label| label.name.as_str());
        let features = features(&schema, path)?;
        if let Some(label) = label {
            roots.push(index_of(label)?);
        }
        self.labels.begin(path, label.map_or(&[], |label| features.names(label)));
        let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
        pages::check(&reader, metadata.metadata(), &mask).map_err(|e| malformed(&e))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, metadata);
        let batches =
            builder.with_batch_size(ROWS_PER_BATCH).with_projection(mask).build().map_err(|e| malformed(&e))?;
        for batch in batches {
            let batch = batch.map_err(|e| malformed(&e))?;
            let start = self.labels.len();
            let column =
                |name: &str| batch.column_by_name(name).ok_or_else(|| malformed(&format!("no column {name:?}")));
            let labels = label.map(|name| Ok::<_, DataError>((column(name)?, name))).transpose()?;
            self.labels.add(labels, batch.num_rows())?;
            let images = encoded_bytes(column(&columns.image)?).ok_or_else(|| {
                DataError::malformed(path, format!("column {:?} is no struct<bytes, path>", columns.image))
            })?;
            self.chunks.push(Chunk { start, images, path: path.to_owned() });
        }
        Ok(())
    }

    fn finish(
        self,
        name: String,
        format: Format,
        split: String,
        spec: &DatasetSpec,
        path: &Path,
    ) -> Result<Arc<dyn Dataset>, DataError> {
        let columns = self.columns.ok_or_else(|| DataError::malformed(path, "no files"))?;
        if self.labels.is_empty() {
            return Err(DataError::malformed(path, "no rows"));
        }
        let column = columns.label.as_ref().ok();
        let Unified { class_names, source, labels } = self.labels.unify(column)?;
        let origin = LabelOrigin {
            names: source,
            column_type: column.map(|column| column.type_text.clone()),
            not_taken: columns.label.as_ref().err().cloned().unwrap_or_default(),
        };
        let mut survey = Survey::default();
        for chunk in &self.chunks {
            for row in 0..chunk.images.len() {
                survey.add(value(&chunk.images, row).and_then(|bytes| decode::header(bytes, &spec.limits).ok()));
            }
        }
        let info = DatasetInfo {
            name,
            format: format.to_string(),
            split,
            num_samples: labels.len(),
            class_names,
            label_column: columns.label.ok().map(|column| column.name),
            image_size: survey.image_size(),
            channels: survey.channels(),
        };
        Ok(Arc::new(ParquetDataset { info, origin, chunks: self.chunks, labels, limits: spec.limits }))
    }
}

fn features(schema: &Schema, path: &Path) -> Result<Features, DataError> {
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    Features::read(schema.metadata(), &columns).map_err(|reason| DataError::malformed(path, reason))
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

fn is_image(kind: &DataType) -> bool {
    match kind {
        DataType::Struct(fields) => fields.iter().any(|field| field.name() == "bytes" && is_binary(field.data_type())),
        other => is_binary(other),
    }
}

fn choose_columns(schema: &Schema, path: &Path, spec: &DatasetSpec) -> Result<Columns, DataError> {
    let features = features(schema, path)?;
    let of_kind = |accept: &dyn Fn(&DataType) -> bool| -> Vec<String> {
        schema.fields().iter().filter(|field| accept(field.data_type())).map(|field| field.name().clone()).collect()
    };
    let images = of_kind(&is_image);
    let refuse = |problem: String, key, allowed: &[String]| DataError::Column {
        path: path.to_owned(),
        problem,
        key,
        allowed: if allowed.is_empty() { "(there is none)".to_owned() } else { allowed.join(", ") },
    };
    let image = if let Some(wanted) = &spec.image_column {
        let found = images.contains(wanted).then(|| wanted.clone());
        found.ok_or_else(|| refuse(format!("no image column {wanted:?}"), "data.image_column", &images))?
    } else if let Some(usual) = ["image", "img"].iter().find(|name| images.iter().any(|image| image == *name)) {
        (*usual).to_owned()
    } else {
        let declared: Vec<_> = images.iter().filter(|name| features.images.contains(name)).cloned().collect();
        match (declared.as_slice(), images.as_slice()) {
            ([one], _) | (_, [one]) => one.clone(),
            (_, []) => {
                return Err(refuse("no image column, a struct<bytes, path>".to_owned(), "data.image_column", &images));
            }
            _ => {
                return Err(refuse("several image columns".to_owned(), "data.image_column", &images));
            }
        }
    };
    let label = label_column::choose(schema, &features, &image, spec, path)?;
    Ok(Columns { image, label })
}

/// The binary column inside an image column; a null struct makes its bytes null.
fn encoded_bytes(column: &ArrayRef) -> Option<ArrayRef> {
    let Some(parts) = column.as_struct_opt() else {
        return is_binary(column.data_type()).then(|| column.clone());
    };
    let bytes = parts.column_by_name("bytes").filter(|bytes| is_binary(bytes.data_type()))?;
    match parts.nulls() {
        Some(nulls) if nulls.null_count() > 0 => {
            let absent = arrow::array::BooleanArray::new(!nulls.inner(), None);
            arrow::compute::nullif(bytes, &absent).ok()
        }
        _ => Some(bytes.clone()),
    }
}

/// The encoded image of one row, none where it is null.
fn value(images: &ArrayRef, row: usize) -> Option<&[u8]> {
    if images.is_null(row) {
        return None;
    }
    match images.data_type() {
        DataType::Binary => Some(images.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Some(images.as_binary::<i64>().value(row)),
        DataType::BinaryView => Some(images.as_binary_view().value(row)),
        _ => None,
    }
}

impl Dataset for ParquetDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn label_origin(&self) -> LabelOrigin {
        self.origin.clone()
    }

    fn notes(&self) -> Vec<String> {
        let not_taken = &self.origin.not_taken;
        if not_taken.is_empty() {
            return Vec::new();
        }
        let (split, columns) = (&self.info.split, not_taken.join(", "));
        vec![format!(
            "no label column in the {split} split, not taken for one: {columns}; {} names one",
            label_column::KEY
        )]
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        check_index(&self.info, index)?;
        Ok(self.labels[index])
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        let chunk = &self.chunks[self.chunks.partition_point(|chunk| chunk.start <= index) - 1];
        let bytes = value(&chunk.images, index - chunk.start).ok_or_else(|| {
            DataError::sample(&chunk.path, index, "the image is not stored in the file, its bytes are null")
        })?;
        let image = decode::decode(bytes, &self.limits).map_err(|source| DataError::Decode {
            path: chunk.path.clone(),
            sample: index,
            source,
        })?;
        Ok(Sample { id: index as i64, image: into_channels(image, self.info.channels), label: self.labels[index] })
    }
}
