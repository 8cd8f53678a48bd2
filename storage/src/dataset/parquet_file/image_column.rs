//! The columns of encoded images of a Parquet file: which they are, and their bytes.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};

use super::features::Features;
use crate::dataset::error::DataError;
use crate::dataset::spec::DatasetSpec;

/// The same file with its images read as views (string views of Arrow): these point into the unpacked pages, so that a
/// batch may hold more than the 2 GiB that 32-bit offsets reach, and a dictionary's entry is held once however many
/// rows name it.
pub(crate) fn with_views(metadata: ArrowReaderMetadata, images: &[&str]) -> ArrowReaderMetadata {
    let schema = metadata.schema();
    let fields: Fields = schema
        .fields()
        .iter()
        .map(|field| if images.contains(&field.name().as_str()) { Arc::new(viewed(field)) } else { field.clone() })
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
pub(crate) fn has_views(field: &Field) -> bool {
    match field.data_type() {
        DataType::Struct(parts) => parts.iter().any(|part| part.name() == "bytes" && has_views(part)),
        kind => *kind == DataType::BinaryView,
    }
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

/// All columns that may hold images.
pub(crate) fn all(schema: &Schema) -> Vec<String> {
    schema.fields().iter().filter(|field| is_image(field.data_type())).map(|field| field.name().clone()).collect()
}

/// The image column of several.
///
/// # Errors
/// [`DataError::Column`] if there is none, or if it is not known which is meant.
pub(crate) fn choose(
    images: &[String],
    features: &Features,
    path: &Path,
    spec: &DatasetSpec,
) -> Result<String, DataError> {
    let refuse = |problem: String| DataError::Column {
        path: path.to_owned(),
        problem,
        key: "data.image_column",
        allowed: if images.is_empty() { "(there is none)".to_owned() } else { images.join(", ") },
    };
    if let Some(wanted) = &spec.image_column {
        let found = images.contains(wanted).then(|| wanted.clone());
        return found.ok_or_else(|| refuse(format!("no image column {wanted:?}")));
    }
    if let Some(usual) = ["image", "img"].iter().find(|name| images.iter().any(|image| image == *name)) {
        return Ok((*usual).to_owned());
    }
    // What is said to be the masks is not the images.
    let others = |name: &&String| spec.mask_column.as_ref() != Some(*name);
    let images: Vec<&String> = images.iter().filter(others).collect();
    let declared: Vec<_> = images.iter().copied().filter(|name| features.images.contains(name)).collect();
    match (declared.as_slice(), images.as_slice()) {
        ([one], _) | (_, [one]) => Ok((*one).clone()),
        (_, []) => Err(refuse("no image column, a struct<bytes, path>".to_owned())),
        _ => Err(refuse("several image columns".to_owned())),
    }
}

/// The binary column inside an image column; a null struct makes its bytes null.
pub(crate) fn encoded_bytes(column: &ArrayRef) -> Option<ArrayRef> {
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
pub(crate) fn value(images: &ArrayRef, row: usize) -> Option<&[u8]> {
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
