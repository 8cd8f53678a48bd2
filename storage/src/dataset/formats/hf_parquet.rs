//! Hugging Face Parquet: encoded images stay as they are in Arrow arrays and are decoded on demand.
//!
//! Images are read as views into the file's unpacked pages. So an image that a dictionary holds once and a thousand
//! rows name takes its memory once, no offset overflows at 2 GiB, and what a file takes is known from its pages'
//! headers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::Schema;
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
use crate::dataset::formats::annotated::{turned_boxes, turned_map};
use crate::dataset::labels::label_column::{self, LabelColumn, Labels, Unified};
use crate::dataset::labels::map_classes::{self, MapRule};
use crate::dataset::labels::names_file;
use crate::dataset::labels::target_columns::{Choice, TargetColumns};
use crate::dataset::labels::target_rows::TargetRows;
use crate::dataset::layout::listing::file_name;
use crate::dataset::layout::listing::{Kind, Scope};
use crate::dataset::layout::shards;
use crate::dataset::layout::splits::{Part, Shard, parts_of, strip_extension};
use crate::dataset::parquet_file::chunks::{Chunk, check_boxes, indices, place, with_format};
use crate::dataset::parquet_file::features::Features;
use crate::dataset::parquet_file::image_column::{self, encoded_bytes, has_views, value, with_views};
use crate::dataset::parquet_file::watched::WatchedFile;
use crate::dataset::parquet_file::{footer, pages};
use crate::dataset::sample::{Dataset, DatasetInfo, LabelOrigin, Sample, check_index};
use crate::dataset::spec::{BoxFormat, DatasetSpec, FormatName, Split};
use crate::dataset::target::{Target, TargetInfo, TargetKind};

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
        "Hugging Face Parquet: an image column, and a column of classes, labels, masks, objects with boxes, or values."
    }

    fn targets(&self) -> &'static [TargetKind] {
        &TargetKind::ALL
    }

    fn kinds(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Vec<TargetKind>, DataError> {
        kinds(place, spec, scope)
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
    targets: Vec<TargetInfo>,
    rows: TargetRows,
    rule: Option<MapRule>,
    bbox_format: BoxFormat,
    decoder: Decoder,
    notes: Vec<String>,
    resident_bytes: u64,
    has_files: bool,
}

/// The columns to read, decided by the first file and binding for the others.
struct Columns {
    image: String,
    /// The label column, or the columns that are not taken for one.
    label: Result<LabelColumn, Vec<String>>,
    targets: TargetColumns,
}

/// What reading several files gathers.
#[derive(Default)]
struct Gathered {
    columns: Option<Columns>,
    chunks: Vec<Chunk>,
    labels: Labels,
    rows: TargetRows,
    notes: Vec<String>,
    resident_bytes: u64,
    /// Whether the paths are those of files; what is inside the program has only a name.
    has_files: bool,
}

fn open(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let (split, files) = files(path, spec, scope)?;
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

/// The stored name of a split, and its files.
fn files(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<(String, Vec<PathBuf>), DataError> {
    if path.is_file() {
        return Ok((single_file(path, spec.split)?, vec![path.to_owned()]));
    }
    shards::find(path, scope)?.choose(path, spec.split, scope)
}

/// The kinds of targets that the first file has.
fn kinds(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Vec<TargetKind>, DataError> {
    let (_, files) = files(path, spec, scope)?;
    let Some(file) = files.first() else { return Ok(Vec::new()) };
    let reader = WatchedFile::open(file)?;
    let refuse = |reason| DataError::malformed(file, format!("not a readable parquet file: {reason}"));
    let read = guarded(
        || {
            footer::check(&reader).map_err(refuse)?;
            let metadata = ArrowReaderMetadata::load(&reader, ArrowReaderOptions::default());
            let schema = metadata.map_err(|e| refuse(e.to_string()))?.schema().clone();
            let (features, images) = (features(&schema, file)?, image_column::all(&schema));
            let image = &image_column::choose(&images, &features, file, spec)?;
            let choice = Choice { schema: &schema, features: &features, image, images: &images, spec, path: file };
            Ok(choice.kinds())
        },
        refuse,
    );
    reader.explain(read, file)
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
        if let Some(first) = &self.columns
            && first.targets != found.targets
        {
            let reason =
                "its columns of targets, or the names of their classes, are others than those of the first file";
            return Err(DataError::malformed(path, reason));
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
        let mask = columns.targets.mask.as_deref();
        let mask_root = mask.map(index_of).transpose()?;
        let image_leaves: Vec<usize> =
            leaves_of(Some(image_root)).chain(leaves_of(mask_root)).filter(is_bytes).collect();
        let is_target = |leaf: &usize| columns.targets.reads(descriptor.column(*leaf).path().parts());
        // A column may hold both the class and a value.
        let is_label = |leaf: &usize| label_root == Some(descriptor.get_column_root_idx(*leaf));
        let label_leaves: Vec<usize> =
            (0..descriptor.num_columns()).filter(|leaf| is_label(leaf) || is_target(leaf)).collect();
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
        let projection = ProjectionMask::leaves(descriptor, image_leaves.into_iter().chain(label_leaves));
        let encoded: Vec<&str> = std::iter::once(columns.image.as_str()).chain(mask).collect();
        let metadata = with_views(metadata, &encoded);
        // Texts of labels are copied row by row, and so are images that share prefixes or are not read as views.
        let roots = || std::iter::once(image_root).chain(mask_root);
        let is_copied = extent.shares_prefixes || !roots().all(|root| has_views(metadata.schema().field(root)));
        let rows_per_batch =
            labels.batch_rows(if is_copied { extent.batch_rows(ROWS_PER_BATCH) } else { ROWS_PER_BATCH });
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(reader, metadata);
        let batches =
            builder.with_batch_size(rows_per_batch).with_projection(projection).build().map_err(|e| malformed(&e))?;
        let mut copied_bytes = 0_u64;
        for batch in batches {
            let batch = batch.map_err(|e| malformed(&e))?;
            let start = self.labels.len();
            let column =
                |name: &str| batch.column_by_name(name).ok_or_else(|| malformed(&format!("no column {name:?}")));
            let labels = label.map(|name| Ok::<_, DataError>((column(name)?, name))).transpose()?;
            self.labels.add(labels, batch.num_rows())?;
            let own = |name: &str| column(name).cloned();
            self.rows.add(&columns.targets, spec.bbox_format, &own, (batch.num_rows(), start, path))?;
            let encoded = |name: &str| {
                let refuse = || DataError::malformed(path, format!("column {name:?} is no struct<bytes, path>"));
                encoded_bytes(column(name)?).ok_or_else(refuse)
            };
            let (images, masks) = (encoded(&columns.image)?, mask.map(encoded).transpose()?);
            if is_copied {
                let num_bytes = [Some(&images), masks.as_ref()].map(|all| all.map_or(0, Array::get_array_memory_size));
                copied_bytes = copied_bytes.saturating_add(num_bytes.iter().sum::<usize>() as u64);
                // Half of it stays free for the next batch and what a growing vector has freed.
                budget.check(path, copied_bytes.saturating_mul(2))?;
            }
            self.chunks.push(Chunk { start, images, masks, path: path.to_owned() });
        }
        self.resident_bytes += extent.unpacked_bytes.max(copied_bytes) + row_bytes;
        Ok(())
    }

    fn finish(
        mut self,
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
        let mut notes = self.notes;
        notes.extend(note);
        let (mut targets, mut rule) = (Vec::new(), None);
        for &kind in &spec.targets {
            targets.push(match kind {
                TargetKind::Class => TargetInfo {
                    kind,
                    names: class_names.clone(),
                    source,
                    column: column.map(|column| column.name.clone()),
                },
                TargetKind::Map => {
                    let listed = if self.has_files { listed(path, spec)? } else { None };
                    let zero_is_none = spec.reduce_zero_label.unwrap_or(false);
                    let read = |row: usize| indices(&self.chunks, row, &decoder);
                    let found = map_classes::find(listed, zero_is_none, labels.len(), path, &read)?;
                    notes.extend(found.note);
                    rule = Some(found.rule);
                    TargetInfo { kind, names: found.names, source: found.source, column: columns.targets.mask.clone() }
                }
                _ => self.rows.info(kind, &columns.targets, path)?,
            });
        }
        check_boxes(&self.chunks, &self.rows, &decoder, spec.bbox_format)?;
        let resident_bytes = self.resident_bytes + self.rows.resident_bytes();
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
        Ok(Arc::new(ParquetDataset {
            info,
            origin,
            chunks: self.chunks,
            labels,
            targets,
            rows: self.rows,
            rule,
            bbox_format: spec.bbox_format,
            decoder,
            notes,
            resident_bytes,
            has_files: self.has_files,
        }))
    }
}

/// The names of classes that a file beside the Parquet files lists.
fn listed(path: &Path, spec: &DatasetSpec) -> Result<Option<Vec<String>>, DataError> {
    let folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let root = folder.canonicalize().map_err(|e| DataError::read(folder, e))?;
    let scope = Scope::new(folder, &spec.exclude)?;
    Ok(names_file::listed(folder, &root, &scope)?.map(|(names, _)| names))
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

fn features(schema: &Schema, path: &Path) -> Result<Features, DataError> {
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    Features::read(schema.metadata(), &columns).map_err(|reason| DataError::malformed(path, reason))
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
        let (chunk, row) = place(&self.chunks, index);
        let bytes = value(&chunk.images, row);
        let decoded = bytes.ok_or(DecodeError::Absent).and_then(|bytes| self.decoder.decode_turned(bytes));
        let (image, turn) =
            decoded.map_err(|source| DataError::Decode { path: chunk.path.clone(), sample: index, source })?;
        let refuse = |reason: String| DataError::sample(&chunk.path, index, reason);
        let target = |target: &TargetInfo| match (target.kind, self.rule) {
            (TargetKind::Class, _) => Ok(Target::of_class(self.labels[index])),
            (TargetKind::Map, Some(rule)) => {
                // A null mask is one that nobody made.
                if chunk.masks.as_ref().is_none_or(|masks| value(masks, row).is_none()) {
                    return Ok(Target::Unknown);
                }
                let indices = indices(&self.chunks, index, &self.decoder)?;
                turned_map(indices, rule, turn).map_err(|reason| refuse(format!("its class map {reason}")))
            }
            (TargetKind::Boxes, _) => match self.rows.boxes(index) {
                Some(boxes) => turned_boxes(boxes, None, &image, turn)
                    .map_err(|reason| refuse(with_format(&reason, self.bbox_format))),
                None => Ok(Target::Unknown),
            },
            (kind, _) => Ok(self.rows.target(kind, index)),
        };
        let targets = self.targets.iter().map(target).collect::<Result<_, DataError>>()?;
        let image = into_channels(image, self.info.channels);
        Ok(Sample { id: index as i64, image, label: self.labels[index], targets })
    }

    fn targets_info(&self) -> Vec<TargetInfo> {
        self.targets.clone()
    }
}

/// The columns that are read of the first file.
fn choose_columns(schema: &Schema, path: &Path, spec: &DatasetSpec) -> Result<Columns, DataError> {
    let (features, images) = (features(schema, path)?, image_column::all(schema));
    let image = image_column::choose(&images, &features, path, spec)?;
    let choice = Choice { schema, features: &features, image: &image, images: &images, spec, path };
    let targets = choice.choose()?;
    let label = match label_column::choose(schema, &features, &image, spec, path) {
        label if spec.targets.contains(&TargetKind::Class) => label?,
        // Where the class was not asked for, roles are still balanced by one that nobody can mistake.
        Ok(Ok(label)) if !label.by_elimination && !label.is_float() && !targets.names().contains(&&*label.name) => {
            Ok(label)
        }
        _ => Err(Vec::new()),
    };
    Ok(Columns { image, label, targets })
}
