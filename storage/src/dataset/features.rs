//! The `huggingface` entry of a Parquet file's schema metadata: which columns are images and class labels, and the classes' names.

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
}

impl Features {
    /// Reads the entry; a file without one has no features. `columns` gives the order.
    pub fn read(metadata: &Metadata, columns: &[&str]) -> Result<Self, String> {
        let Some(text) = metadata.get(METADATA_KEY) else {
            return Ok(Self::default());
        };
        let root: Value =
            serde_json::from_str(text).map_err(|e| format!("metadata {METADATA_KEY:?} is not json: {e}"))?;
        let features = &root["info"]["features"];
        let mut found = Self::default();
        for &column in columns {
            let feature = &features[column];
            match feature["_type"].as_str() {
                Some("Image") => found.images.push(column.to_owned()),
                Some("ClassLabel") => {
                    let names = feature["names"].as_array().map(Vec::as_slice).unwrap_or_default();
                    let text = |name: &Value| name.as_str().map(str::to_owned);
                    let names: Option<Vec<_>> = names.iter().map(text).collect();
                    let names = names.ok_or_else(|| format!("class names of column {column:?} are not strings"))?;
                    found.class_labels.push((column.to_owned(), names));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Class names of a column, empty when it is no `ClassLabel`.
    pub fn names(&self, column: &str) -> &[String] {
        self.class_labels.iter().find(|(name, _)| name == column).map_or(&[], |(_, names)| names.as_slice())
    }
}

/// The entry for a file with an `image` column and one class label.
pub(crate) fn metadata(label_column: &str, class_names: &[String]) -> HashMap<String, String> {
    let mut features = serde_json::Map::new();
    features.insert("image".to_owned(), json!({ "_type": "Image" }));
    features.insert(label_column.to_owned(), json!({ "names": class_names, "_type": "ClassLabel" }));
    HashMap::from([(METADATA_KEY.to_owned(), json!({ "info": { "features": features } }).to_string())])
}
