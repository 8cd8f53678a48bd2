//! Hugging Face Parquet: encoded images stay as they are in Arrow arrays and are decoded on demand.
//!
//! Images are read as views into the file's unpacked pages. So an image that a dictionary holds once and a thousand
//! rows name takes its memory once, no offset overflows at 2 GiB, and what a file takes is known from its pages'
//! headers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;

use crate::guard::guarded;

use crate::dataset::decode::resize::into_channels;
use crate::dataset::decode::survey::Survey;
use crate::dataset::decode::{DecodeError, Decoder};
use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::labels::label_column::{self, LabelColumn, Labels, Unified};
use crate::dataset::layout::listing::file_name;
use crate::dataset::layout::listing::{Kind, Scope};
use crate::dataset::layout::shards;
use crate::dataset::layout::splits::{Part, Shard, parts_of, strip_extension};
use crate::dataset::parquet_file::features::Features;
use crate::dataset::parquet_file::watched::WatchedFile;
use crate::dataset::parquet_file::{footer, pages};
use crate::dataset::sample::{Dataset, DatasetInfo, LabelOrigin, Sample, check_index};
use crate::dataset::spec::{DatasetSpec, FormatName, Split};

const ROWS_PER_BATCH: usize = 1024;
/// Memory for a row beside its image: its view and its label.
const ROW_BYTES: u64 = 32;

/// Hugging Face's use of Parquet.
pub(crate) struct HfParquet;

impl HfParquet {
    pub(crate) const NAME: FormatName = FormatName::new("hf-parquet");
}

impl Format for HfParquet {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "Hugging Face Parquet: an image column and a label column."
    }

    fn looked_for(&self) -> Option<String> {
        Some("*.parquet".to_owned())
    }

    fn file_extension(&self) -> Option<&'static str> {
        Some("parquet")
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        let shards = shards::find(folder, scope)?;
        Ok(if shards.has_direct() {
            Likeness::Certain
        } else if shards.has_splits() {
            Likeness::SplitFiles
        } else if !shards.is_empty() {
            // Their names say no split; `open` says so.
            Likeness::Loose
        } else {
            Likeness::None
        })
    }

    fn has_configurations(&self) -> bool {
        true
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open(place, spec, scope)
    }
}

/// A split held as encoded bytes.
pub(crate) struct ParquetDataset {
    info: DatasetInfo,
    origin: LabelOrigin,
    chunks: Vec<Chunk>,
    labels: Vec<Option<i32>>,
    decoder: Decoder,
    notes: Vec<String>,
    resident_bytes: u64,
    has_files: bool,
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
    notes: Vec<String>,
    resident_bytes: u64,
    /// Whether the paths are those of files; what is inside the program has only a name.
    has_files: bool,
}

fn open(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let (split, files) = if path.is_file() {
        (single_file(path, spec.split)?, vec![path.to_owned()])
    } else {
        shards::find(path, scope)?.choose(path, spec.split, scope)?
    };
    let mut gathered = Gathered::default();
    for file in &files {
        match Kind::of_path(file)? {
            Kind::File => {}
            Kind::BrokenLink => return Err(DataError::malformed(file, "is a link that leads nowhere")),
            _ => return Err(DataError::malformed(file, "is no regular file")),
        }
        let reader = WatchedFile::open(file)?;
        let read = gathered.read(reader.clone(), file, spec);
        reader.explain(read, file)?;
    }
    gathered.notes = scope.lines();
    // The folder that was named, even where the files lie deeper.
    let named = spec.path.as_deref().unwrap_or(path);
    let name = if path.is_file() { stem(&file_name(path)) } else { file_name(named) };
    gathered.has_files = true;
    gathered.finish(name, HfParquet::NAME, split, spec, path)
}

/// A file that is inside the program; `path` is only its name.
pub(crate) fn open_bytes(
    bytes: bytes::Bytes,
    path: &Path,
    name: &str,
    format: FormatName,
    spec: &DatasetSpec,
) -> Result<Arc<dyn Dataset>, DataError> {
    let mut gathered = Gathered::default();
    gathered.read(bytes, path, spec)?;
    gathered.finish(name.to_owned(), format, spec.split.to_string(), spec, path)
}

/// Reads one file as [`open`] does.
#[cfg(test)]
pub(in crate::dataset) fn read_for_tests<R: ChunkReader + 'static>(
    reader: R,
    path: &Path,
    spec: &DatasetSpec,
) -> Result<(), DataError> {
    Gathered::default().read(reader, path, spec)
}

fn stem(name: &str) -> String {
    strip_extension(name).unwrap_or(name).to_owned()
}

/// A file alone is the split that its name says, and otherwise the training split.
fn single_file(path: &Path, wanted: Split) -> Result<String, DataError> {
    let named = Shard::read(&file_name(path)).and_then(|shard| shard.named);
    let stored = named.map_or(Part::Train, |named| named.part);
    if parts_of(wanted).contains(&stored) {
        return Ok(stored.as_str().to_owned());
    }
    let hint = format!(
        "a single file holds one split, this one {}; give the folder with train-*.parquet and test-*.parquet",
        stored.as_str()
    );
    Err(DataError::NoSplit { path: path.to_owned(), split: wanted.to_string(), hint })
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
        footer::check(&reader).map_err(|e| malformed(&e))?;
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
        let image_root = index_of(&columns.image)?;
        let label = columns.label.as_ref().ok().map(|label| label.name.as_str());
        let features = features(&schema, path)?;
        let label_root = label.map(index_of).transpose()?;
        self.labels.begin(path, label.map_or(&[], |label| features.names(label)));
        let descriptor = metadata.parquet_schema();
        let leaves_of = |root: Option<usize>| {
            (0..descriptor.num_columns()).filter(move |&leaf| Some(descriptor.get_column_root_idx(leaf)) == root)
        };
        // Of the image column nothing but the bytes: the paths in it are of no use.
        let is_bytes = |&leaf: &usize| match descriptor.column(leaf).path().parts() {
            [_, part, ..] => part == "bytes",
            _ => true,
        };
        let image_leaves: Vec<usize> = leaves_of(Some(image_root)).filter(is_bytes).collect();
        let label_leaves: Vec<usize> = leaves_of(label_root).collect();
        let pages = |leaves: &[usize]| {
            let mask = ProjectionMask::leaves(descriptor, leaves.iter().copied());
            check_compression(metadata.metadata(), &mask).map_err(|e| malformed(&e))?;
            pages::check(&reader, metadata.metadata(), &mask).map_err(|e| malformed(&e))
        };
        let (extent, labels) = (pages(&image_leaves)?, pages(&label_leaves)?);
        let num_rows =
            metadata.metadata().row_groups().iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0));
        let row_bytes = num_rows.fold(0, u64::saturating_add).saturating_mul(ROW_BYTES);
        let budget = spec.budget();
        let label_bytes = labels.value_bytes.max(row_bytes);
        budget.check(path, extent.unpacked_bytes.saturating_add(extent.value_bytes).saturating_add(label_bytes))?;
        let mask = ProjectionMask::leaves(descriptor, image_leaves.into_iter().chain(label_leaves));
        let metadata = with_views(metadata, &columns.image);
        // Texts of labels are copied row by row, and so are images that share prefixes or are not read as views.
        let is_copied = extent.shares_prefixes || !has_views(metadata.schema().field(image_root));
        let rows_per_batch =
            labels.batch_rows(if is_copied { extent.batch_rows(ROWS_PER_BATCH) } else { ROWS_PER_BATCH });
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, metadata);
        let batches =
            builder.with_batch_size(rows_per_batch).with_projection(mask).build().map_err(|e| malformed(&e))?;
        let mut copied_bytes = 0_u64;
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
            if is_copied {
                copied_bytes = copied_bytes.saturating_add(images.get_array_memory_size() as u64);
                // Half of it stays free for the next batch and what a growing vector has freed.
                budget.check(path, copied_bytes.saturating_mul(2))?;
            }
            self.chunks.push(Chunk { start, images, path: path.to_owned() });
        }
        self.resident_bytes += extent.unpacked_bytes.max(copied_bytes) + row_bytes;
        Ok(())
    }

    fn finish(
        self,
        name: String,
        format: FormatName,
        split: String,
        spec: &DatasetSpec,
        path: &Path,
    ) -> Result<Arc<dyn Dataset>, DataError> {
        let columns = self.columns.ok_or_else(|| DataError::malformed(path, "no files"))?;
        if self.labels.is_empty() {
            return Err(DataError::malformed(path, format!("the {split} split has no rows")));
        }
        let column = columns.label.as_ref().ok();
        let Unified { class_names, source, labels } = self.labels.unify(column)?;
        let note = column.and_then(LabelColumn::note);
        let origin = LabelOrigin {
            names: source,
            column_type: column.map(|column| column.type_text.clone()),
            not_taken: columns.label.as_ref().err().cloned().unwrap_or_default(),
        };
        let (decoder, mut survey) = (spec.decoder(), Survey::new(spec.channels));
        'all: for chunk in &self.chunks {
            for row in 0..chunk.images.len() {
                if survey.is_settled() {
                    break 'all;
                }
                survey.add(value(&chunk.images, row).and_then(|bytes| decoder.header(bytes).ok()));
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
        let mut notes = self.notes;
        notes.extend(note);
        Ok(Arc::new(ParquetDataset {
            info,
            origin,
            chunks: self.chunks,
            labels,
            decoder,
            notes,
            resident_bytes: self.resident_bytes,
            has_files: self.has_files,
        }))
    }
}

/// Names a compression that is not read.
fn check_compression(metadata: &ParquetMetaData, mask: &ProjectionMask) -> Result<(), String> {
    for group in metadata.row_groups() {
        for (leaf, column) in group.columns().iter().enumerate() {
            if mask.leaf_included(leaf) && column.compression() == Compression::LZO {
                let name = column.column_path().string();
                let known = "none, snappy, gzip, brotli, lz4, lz4_raw or zstd";
                return Err(format!("the compression of column {name} must be {known}, not lzo"));
            }
        }
    }
    Ok(())
}

/// The same file with its images read as views (string views of Arrow): these point into the unpacked pages, so that a
/// batch may hold more than the 2 GiB that 32-bit offsets reach, and a dictionary's entry is held once however many
/// rows name it.
fn with_views(metadata: ArrowReaderMetadata, image: &str) -> ArrowReaderMetadata {
    let schema = metadata.schema();
    let fields: Fields = schema
        .fields()
        .iter()
        .map(|field| if field.name() == image { Arc::new(viewed(field)) } else { field.clone() })
        .collect();
    let schema: SchemaRef = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    let options = ArrowReaderOptions::default().with_schema(schema);
    // A schema that the decoder does not take as its own is left as it is; batches are then bounded by its offsets.
    ArrowReaderMetadata::try_new(metadata.metadata().clone(), options).unwrap_or(metadata)
}

/// The field with binary views in the place of binary values.
fn viewed(field: &Field) -> Field {
    let kind = match field.data_type() {
        kind if is_binary(kind) => DataType::BinaryView,
        DataType::Struct(parts) => DataType::Struct(
            parts
                .iter()
                .map(|part| match part.name().as_str() {
                    "bytes" => Arc::new(viewed(part)),
                    _ => part.clone(),
                })
                .collect(),
        ),
        kind => kind.clone(),
    };
    field.clone().with_data_type(kind)
}

/// Whether the images of a field are read as views.
fn has_views(field: &Field) -> bool {
    match field.data_type() {
        DataType::Struct(parts) => parts.iter().any(|part| part.name() == "bytes" && has_views(part)),
        kind => *kind == DataType::BinaryView,
    }
}

fn features(schema: &Schema, path: &Path) -> Result<Features, DataError> {
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    Features::read(schema.metadata(), &columns).map_err(|reason| DataError::malformed(path, reason))
}

fn is_binary(kind: &DataType) -> bool {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => is_binary(values),
        _ => false,
    }
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
        let mut notes = self.notes.clone();
        if not_taken.is_empty() {
            return notes;
        }
        let (split, columns) = (&self.info.split, not_taken.join(", "));
        notes.push(format!(
            "no label column in the {split} split, not taken for one: {columns}; {} names one",
            label_column::KEY
        ));
        notes
    }

    fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        check_index(&self.info, index)?;
        Ok(self.labels[index])
    }

    fn files(&self) -> Vec<&Path> {
        if !self.has_files {
            return Vec::new();
        }
        let mut files: Vec<&Path> = self.chunks.iter().map(|chunk| chunk.path.as_path()).collect();
        files.dedup();
        files
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        let chunk = &self.chunks[self.chunks.partition_point(|chunk| chunk.start <= index) - 1];
        let bytes = value(&chunk.images, index - chunk.start);
        let image = bytes.ok_or(DecodeError::Absent).and_then(|bytes| self.decoder.decode(bytes));
        let image = image.map_err(|source| DataError::Decode { path: chunk.path.clone(), sample: index, source })?;
        Ok(Sample::of_class(index as i64, into_channels(image, self.info.channels), self.labels[index]))
    }
}
