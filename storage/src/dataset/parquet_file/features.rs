//! The `huggingface` entry of a Parquet file's schema metadata: which columns are images and class labels, and the
//! classes' names.

use std::collections::HashMap;

use arrow::datatypes::Metadata;
use serde_json::{Value, json};

/// Key of the entry.
pub(crate) const METADATA_KEY: &str = "huggingface";

/// Named columns of the features that matter here.
#[derive(Debug, Default)]
pub(crate) struct Features {
    /// Columns of type `Image`.
    pub images: Vec<String>,
    /// Columns of type `ClassLabel` with their names, in the order of the file's columns.
    pub class_labels: Vec<(String, Vec<String>)>,
    /// Class labels inside lists and structs with their names: `labels`, `objects.category`.
    pub nested_labels: Vec<(String, Vec<String>)>,
    /// Columns that pandas keeps its index in.
    pub index_columns: Vec<String>,
}

impl Features {
    /// Reads the entries; a file without them has no features. `columns` gives the order.
    ///
    /// # Errors
    /// One line if the entry is damaged. pandas' entry is only a hint, a damaged one is ignored.
    pub fn read(metadata: &Metadata, columns: &[&str]) -> Result<Self, String> {
        let index_columns = metadata.get("pandas").map(|text| index_columns(text)).unwrap_or_default();
        let mut found = Self { index_columns, ..Self::default() };
        let Some(text) = metadata.get(METADATA_KEY) else {
            return Ok(found);
        };
        let root: Value =
            serde_json::from_str(text).map_err(|e| format!("metadata {METADATA_KEY:?} is not json: {e}"))?;
        let wrong = |what: &str| Err(format!("metadata {METADATA_KEY:?}: {what} is no object"));
        let features = match (&root, root.get("info"), root["info"].get("features")) {
            (Value::Object(_), None, _) | (_, Some(Value::Object(_)), None | Some(Value::Null)) => return Ok(found),
            (_, Some(Value::Object(_)), Some(features @ Value::Object(_))) => features,
            (_, Some(Value::Object(_)), _) => return wrong("info.features"),
            (Value::Object(_), ..) => return wrong("info"),
            _ => return wrong("it"),
        };
        for &column in columns {
            let feature = &features[column];
            match feature["_type"].as_str() {
                Some("Image") => found.images.push(column.to_owned()),
                Some("ClassLabel") => found.class_labels.push((column.to_owned(), class_names(feature, column)?)),
                _ => nested(feature, column, &mut found.nested_labels)?,
            }
        }
        Ok(found)
    }

    /// Class names of what lies in a column, as `objects.category`; empty when it is no `ClassLabel`.
    pub fn nested_names(&self, path: &str) -> &[String] {
        self.nested_labels.iter().find(|(name, _)| name == path).map_or(&[], |(_, names)| names.as_slice())
    }

    /// Class names of a column, empty when it is no `ClassLabel`.
    pub fn names(&self, column: &str) -> &[String] {
        self.class_labels.iter().find(|(name, _)| name == column).map_or(&[], |(_, names)| names.as_slice())
    }
}

/// Gathers the class labels in a feature. A list is `{"feature": …}` or has one item, a struct has its members by name.
fn nested(feature: &Value, path: &str, found: &mut Vec<(String, Vec<String>)>) -> Result<(), String> {
    match feature {
        Value::Array(items) => items.first().map_or(Ok(()), |item| nested(item, path, found)),
        Value::Object(_) if feature["_type"] == "ClassLabel" => {
            found.push((path.to_owned(), class_names(feature, path)?));
            Ok(())
        }
        Value::Object(members) => match members.get("feature") {
            Some(inner) => nested(inner, path, found),
            None => members.iter().try_for_each(|(name, inner)| nested(inner, &format!("{path}.{name}"), found)),
        },
        _ => Ok(()),
    }
}

/// The names of a `ClassLabel`; none if it has only a number of classes.
fn class_names(feature: &Value, column: &str) -> Result<Vec<String>, String> {
    let wrong = |what: &str| Err(format!("class names of column {column:?} {what}"));
    match &feature["names"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(names) => {
            let names: Option<Vec<_>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
            names.map_or_else(|| wrong("are not strings"), Ok)
        }
        _ => wrong("are not a list of strings"),
    }
}

/// The columns that pandas' entry names as its index.
fn index_columns(text: &str) -> Vec<String> {
    let root: Value = serde_json::from_str(text).unwrap_or_default();
    let columns = root["index_columns"].as_array().map(Vec::as_slice).unwrap_or_default();
    columns.iter().filter_map(|column| column.as_str().map(str::to_owned)).collect()
}

/// The entry for a file with an `image` column and at most one class label.
pub(crate) fn metadata(label_column: Option<&str>, class_names: &[String]) -> HashMap<String, String> {
    let mut features = serde_json::Map::new();
    features.insert("image".to_owned(), json!({ "_type": "Image" }));
    if let Some(label_column) = label_column {
        features.insert(label_column.to_owned(), json!({ "names": class_names, "_type": "ClassLabel" }));
    }
    HashMap::from([(METADATA_KEY.to_owned(), json!({ "info": { "features": features } }).to_string())])
}
