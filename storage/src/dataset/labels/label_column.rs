//! The label column of a Parquet file: which one it is, and its values as classes.
//!
//! It is found by what the file says of it (a `ClassLabel`), by its name and by its type. A column of numbers that is
//! an index or a size, by its name or because every row has a value of its own, is never taken unasked. Columns that
//! are declared or named go first, so that what else a file holds does not matter.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema};

use super::classes::{self, numbered_classes};
use crate::dataset::error::DataError;
use crate::dataset::parquet_file::features::Features;
use crate::dataset::sample::NameSource;
use crate::dataset::spec::DatasetSpec;

/// The setting that names the column.
pub(in crate::dataset) const KEY: &str = "data.label_column";
/// More classes than this are taken for a mistaken label column.
const MAX_CLASSES: usize = 1 << 20;
/// Names of label columns, without regard to case.
const USUAL: [&str; 6] = ["label", "labels", "fine_label", "coarse_label", "class", "target"];
/// Rows from which on it is no chance that each has a value of its own.
const MIN_ROWS_OF_INDEX: usize = 3;

/// How a column's values become classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Whole numbers, true and false, categories of these, or nothing but nulls.
    Whole,
    /// Floating-point numbers, which must be whole.
    Float,
    /// Strings or categories of strings.
    Text,
}

impl Kind {
    fn of(kind: &DataType) -> Option<Self> {
        match kind {
            DataType::Dictionary(_, values) => Self::of(values),
            DataType::Boolean | DataType::Null => Some(Self::Whole),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Self::Text),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => Some(Self::Float),
            kind if kind.is_integer() => Some(Self::Whole),
            _ => None,
        }
    }
}

/// A label column that was found.
#[derive(Clone, Debug)]
pub(in crate::dataset) struct LabelColumn {
    pub name: String,
    /// Its type, for people.
    pub type_text: String,
    /// It is the only column that could be meant, nothing says that it is.
    pub by_elimination: bool,
    is_float: bool,
}

impl LabelColumn {
    /// Whether its values are floating-point numbers, which may be no classes.
    pub fn is_float(&self) -> bool {
        self.is_float
    }

    /// What the owner of the data should know of the choice.
    pub fn note(&self) -> Option<String> {
        let text = format!("{} ({})", self.name.escape_debug(), self.type_text);
        self.by_elimination.then(|| {
            format!("labels are those of column {text}, as no other can be meant, but nothing says so; {KEY} names one")
        })
    }
}

/// The label column of a file, if it has one, or else the columns that are not taken for it, each with its type.
///
/// # Errors
/// [`DataError::Column`] with the candidates and their types if several could be meant, if the only one is an index or
/// a size, or if the one that is meant has a type that cannot be read.
pub(in crate::dataset) fn choose(
    schema: &Schema,
    features: &Features,
    image: &str,
    spec: &DatasetSpec,
    path: &Path,
) -> Result<Result<LabelColumn, Vec<String>>, DataError> {
    let columns: Vec<Candidate> = schema
        .fields()
        .iter()
        .filter(|field| field.name() != image)
        .map(|field| Candidate { name: field.name(), kind: field.data_type() })
        .collect();
    let readable = || columns.iter().filter(|column| Kind::of(column.kind).is_some());
    let refuse = |problem: String, candidates: Vec<&Candidate<'_>>| DataError::Column {
        path: path.to_owned(),
        problem,
        key: KEY,
        allowed: match candidates.is_empty() {
            true => "(there is none)".to_owned(),
            false => candidates.iter().map(|column| column.text()).collect::<Vec<_>>().join(", "),
        },
    };
    let take = |column: &Candidate<'_>, by_elimination| match Kind::of(column.kind) {
        Some(_) if columns.iter().filter(|other| other.name == column.name).count() > 1 => {
            Err(refuse(format!("two columns are called {:?}", column.name), Vec::new()))
        }
        Some(_) => Ok(Ok(column.found(by_elimination))),
        None => {
            let problem =
                format!("label column {} cannot be read, labels are one number or string an image", column.text());
            Err(refuse(problem, readable().collect()))
        }
    };
    if let Some(wanted) = &spec.label_column {
        return match columns.iter().find(|column| column.name == wanted) {
            Some(column) => take(column, false),
            None if spec.label_column_optional => Ok(Err(columns.iter().map(Candidate::text).collect())),
            None => Err(refuse(format!("no label column {wanted:?}"), readable().collect())),
        };
    }
    let is_whole = |column: &&Candidate<'_>| Kind::of(column.kind) == Some(Kind::Whole);
    let is_declared = |column: &&Candidate<'_>| features.class_labels.iter().any(|(name, _)| name == column.name);
    let by_name = columns.iter().find(|column| column.name == "label");
    if let Some(label) = by_name.filter(is_whole) {
        return take(label, false);
    }
    let declared: Vec<_> = readable().filter(is_declared).filter(is_whole).collect();
    if declared.len() > 1 {
        return Err(refuse("several label columns".to_owned(), declared));
    }
    if let Some(column) = declared.first().copied().or(by_name) {
        return take(column, false);
    }
    let is_usual = |column: &&Candidate<'_>| USUAL.iter().any(|usual| column.name.eq_ignore_ascii_case(usual));
    let usual: Vec<_> = readable().filter(|column| is_declared(column) || is_usual(column)).collect();
    let index: Vec<_> = readable().filter(is_whole).filter(|column| is_index(column.name, features)).collect();
    let others: Vec<_> = readable()
        .filter(|column| is_whole(column) && *column.kind != DataType::Null && !is_index(column.name, features))
        .collect();
    let categories: Vec<_> =
        readable().filter(|column| matches!(column.kind, DataType::Dictionary(..)) && !is_whole(column)).collect();
    match (usual.as_slice(), others.as_slice(), categories.as_slice()) {
        ([one], ..) => take(one, false),
        ([], [one], _) | ([], [], [one]) => take(one, true),
        ([], [], []) => match (columns.iter().find(is_usual), index.first()) {
            (Some(unreadable), _) => take(unreadable, false),
            (None, Some(first)) => {
                let problem = format!("no label column: {} is an index or a size by its name", first.text());
                Err(refuse(problem, readable().collect()))
            }
            (None, None) => Ok(Err(columns.iter().map(Candidate::text).collect())),
        },
        ([_, _, ..], ..) => Err(refuse("several label columns".to_owned(), usual)),
        ([], [_, _, ..], _) => Err(refuse("several label columns".to_owned(), others)),
        ([], [], several) => Err(refuse("several label columns".to_owned(), several.to_vec())),
    }
}

/// A column that may hold labels.
struct Candidate<'a> {
    name: &'a str,
    kind: &'a DataType,
}

impl Candidate<'_> {
    fn text(&self) -> String {
        format!("{} ({})", self.name.escape_debug(), type_text(self.kind))
    }

    fn found(&self, by_elimination: bool) -> LabelColumn {
        let is_float = Kind::of(self.kind) == Some(Kind::Float);
        LabelColumn { name: self.name.to_owned(), type_text: type_text(self.kind), by_elimination, is_float }
    }
}

/// Whether a column of numbers is an index or a size by its name, or pandas' index.
fn is_index(name: &str, features: &Features) -> bool {
    // Alone; after another word as in `image_id`, `img_w`; or joined to one as in `imageid`, `filesize`.
    const NAMES: [&str; 27] = [
        "id",
        "idx",
        "index",
        "row",
        "uid",
        "key",
        "no",
        "nr",
        "width",
        "height",
        "w",
        "h",
        "size",
        "length",
        "channels",
        "depth",
        "bytes",
        "area",
        "offset",
        "position",
        "count",
        "fold",
        "pixels",
        "seq",
        "frame",
        "len",
        "timestamp",
    ];
    const ENDS: [&str; 18] = [
        "id", "idx", "index", "nr", "no", "width", "height", "w", "h", "size", "length", "len", "count", "bytes",
        "pixels", "px", "offset", "area",
    ];
    const JOINED: [&str; 8] = ["imageid", "imgid", "rowid", "sampleid", "fileid", "rownum", "filesize", "nbytes"];
    const OF_CLASSES: [&str; 4] = ["label", "class", "categor", "target"];
    let lower = name.to_ascii_lowercase();
    if features.index_columns.iter().any(|column| column == name) || lower.starts_with("__") {
        return true;
    }
    if OF_CLASSES.iter().any(|word| lower.contains(word)) {
        return false;
    }
    let last = lower.rsplit(['_', '-', '.', ' ']).next().unwrap_or_default();
    // `imageId`: a hump is a separator too.
    let is_hump = ["Id", "ID", "Idx", "Index", "Width", "Height", "Size", "Count", "Bytes"]
        .iter()
        .any(|end| name.len() > end.len() && name.ends_with(end));
    NAMES.contains(&lower.as_str())
        || JOINED.contains(&lower.as_str())
        || (last != lower && ENDS.contains(&last))
        || is_hump
        || lower.starts_with("num_")
        || lower.starts_with("n_")
        || lower.starts_with("unnamed:")
}

/// A type in the words of pyarrow and pandas, as `dictionary<int32, string>`.
pub(in crate::dataset) fn type_text(kind: &DataType) -> String {
    match kind {
        DataType::Boolean => "bool".to_owned(),
        DataType::Utf8 => "string".to_owned(),
        DataType::LargeUtf8 => "large_string".to_owned(),
        DataType::Utf8View => "string_view".to_owned(),
        DataType::Float16 => "halffloat".to_owned(),
        DataType::Float32 => "float".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Dictionary(keys, values) => format!("dictionary<{}, {}>", type_text(keys), type_text(values)),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("list<{}>", type_text(item.data_type()))
        }
        DataType::Struct(_) => "struct".to_owned(),
        DataType::Map(..) => "map".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

/// The labels of a split, file by file, before its classes are known.
#[derive(Debug, Default)]
pub(in crate::dataset) struct Labels {
    files: Vec<FileLabels>,
    /// Rows of all files, with and without a label.
    len: usize,
}

/// The labels of a split in one list of classes.
pub(in crate::dataset) struct Unified {
    pub class_names: Vec<String>,
    /// Where the names come from.
    pub source: NameSource,
    pub labels: Vec<Option<i32>>,
}

/// The labels of one file in a list of its own.
#[derive(Debug)]
struct FileLabels {
    path: PathBuf,
    start: usize,
    /// Names that the file lists; none if it lists none.
    declared: Vec<String>,
    /// Strings with their labels: the declared ones, or else in the order in which they were met.
    values: HashMap<String, i32>,
    is_text: bool,
    labels: Vec<Option<i32>>,
}

impl Labels {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Begins a file, which lists these class names or none.
    pub fn begin(&mut self, path: &Path, declared: &[String]) {
        let mut values = HashMap::new();
        for (name, label) in declared.iter().zip(0..) {
            values.entry(name.clone()).or_insert(label);
        }
        self.files.push(FileLabels {
            path: path.to_owned(),
            start: self.len,
            declared: declared.to_vec(),
            values,
            is_text: false,
            labels: Vec::new(),
        });
    }

    /// Adds rows of the file that was begun last: the values of its label column, or `num_rows` without labels.
    pub fn add(&mut self, column: Option<(&ArrayRef, &str)>, num_rows: usize) -> Result<(), DataError> {
        let Some(file) = self.files.last_mut() else { return Ok(()) };
        match column {
            Some((column, name)) => file.read(column, name)?,
            None => file.labels.resize(file.labels.len() + num_rows, None),
        }
        self.len = file.start + file.labels.len();
        Ok(())
    }

    /// The classes of all files together, how they came by their names, and the labels in them. The first list of names
    /// is binding; without one, strings are sorted and numbers are their own names.
    ///
    /// # Errors
    /// [`DataError::Classes`] if a file's classes cannot be mapped by name; [`DataError::Column`] if a column that
    /// nothing but its type speaks for turns out to be an index.
    pub fn unify(self, column: Option<&LabelColumn>) -> Result<Unified, DataError> {
        let Self { files, len } = self;
        let mut names = Vec::new();
        let mut source = NameSource::Numbers;
        let has_labels = |file: &&FileLabels| file.labels.iter().any(Option::is_some);
        let mut base = files.iter().find(|file| !file.declared.is_empty());
        if let Some(first) = base {
            (names, source) = (first.declared.clone(), NameSource::Declared);
        } else if let Some(first) = files.iter().find(|file| file.is_text && has_labels(file)) {
            base = Some(first);
            let all: std::collections::BTreeSet<String> =
                files.iter().flat_map(|file| file.values.keys().cloned()).collect();
            (names, source) = (all.into_iter().collect(), NameSource::Values);
            classes::sort_values(&mut names);
        }
        let mut labels = Vec::with_capacity(len);
        for file in &files {
            let Some(base) = base.filter(|_| has_labels(&file)) else {
                labels.extend_from_slice(&file.labels);
                continue;
            };
            let own = file.names();
            let refuse = |problem: String| DataError::Classes {
                what: file.path.display().to_string(),
                of: base.path.display().to_string(),
                problem,
                has: if own.is_empty() { "numbers without names".to_owned() } else { classes::listed(&own) },
                wanted: classes::listed(&names),
            };
            if own.is_empty() {
                return Err(refuse("its labels are numbers without names".to_owned()));
            }
            if own == names {
                labels.extend_from_slice(&file.labels);
                continue;
            }
            let map = classes::by_name(&own, &names, &classes::count(&file.labels, own.len())).map_err(refuse)?;
            let target = |label: Option<i32>| map.get(usize::try_from(label?).ok()?).copied().flatten();
            labels.extend(file.labels.iter().map(|label| target(*label)));
        }
        if source == NameSource::Numbers {
            names = numbered_classes(labels.iter().copied().flatten());
        }
        if let (Some(column), Some(first)) = (column.filter(|column| column.by_elimination), files.first()) {
            let num_labelled = labels.iter().flatten().count();
            let num_distinct = classes::count(&labels, names.len()).iter().filter(|count| **count > 0).count();
            if num_distinct == num_labelled && num_labelled >= MIN_ROWS_OF_INDEX {
                let text = format!("{} ({})", column.name.escape_debug(), column.type_text);
                let problem =
                    format!("no label column: {text} has one value a row in {num_labelled} rows, as an index has");
                return Err(DataError::Column { path: first.path.clone(), problem, key: KEY, allowed: text });
            }
        }
        Ok(Unified { class_names: names, source, labels })
    }
}

impl FileLabels {
    /// Names of this file's own labels; none if they are numbers.
    fn names(&self) -> Vec<String> {
        if !self.declared.is_empty() || !self.is_text {
            return self.declared.clone();
        }
        let mut names = vec![String::new(); self.values.len()];
        for (name, label) in &self.values {
            if let Some(place) = usize::try_from(*label).ok().and_then(|label| names.get_mut(label)) {
                place.clone_from(name);
            }
        }
        names
    }

    /// Appends a column's labels. Null, -1, NaN and the empty string mean unlabelled.
    fn read(&mut self, column: &ArrayRef, name: &str) -> Result<(), DataError> {
        let cast = |to: &DataType| {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(column, to, &options)
                .map_err(|e| DataError::malformed(&self.path, format!("label column {name:?}: {e}")))
        };
        match Kind::of(column.data_type()) {
            Some(Kind::Whole) => {
                let column = cast(&DataType::Int64)?;
                column.as_primitive::<Int64Type>().iter().try_for_each(|label| self.push(label, name))
            }
            Some(Kind::Float) => {
                let column = cast(&DataType::Float64)?;
                for value in column.as_primitive::<Float64Type>() {
                    // pandas writes a missing whole number as NaN.
                    let value = value.filter(|value| !value.is_nan());
                    if let Some(value) = value.filter(|value| value.fract() != 0.0 || value.abs() >= 9e15) {
                        return Err(self.refuse(name, format!("a whole number, not {value}")));
                    }
                    self.push(value.map(|value| value as i64), name)?;
                }
                Ok(())
            }
            Some(Kind::Text) => {
                self.is_text = true;
                let column = cast(&DataType::LargeUtf8)?;
                column.as_string::<i64>().iter().try_for_each(|value| self.push_text(value, name))
            }
            None => Err(DataError::malformed(
                &self.path,
                format!("label column {name:?} must be numbers or strings, not {}", type_text(column.data_type())),
            )),
        }
    }

    /// The value of the next row is no label.
    fn refuse(&self, name: &str, reason: String) -> DataError {
        let reason = format!("{} must be {reason}", name.escape_debug());
        DataError::sample(&self.path, self.start + self.labels.len(), reason)
    }

    fn push(&mut self, label: Option<i64>, name: &str) -> Result<(), DataError> {
        let limit = if self.declared.is_empty() { MAX_CLASSES } else { self.declared.len() };
        let label = match label {
            None | Some(-1) => None,
            Some(label) => {
                let known = i32::try_from(label).ok().filter(|label| (0..limit as i64).contains(&i64::from(*label)));
                Some(known.ok_or_else(|| self.refuse(name, format!("-1 to {}, not {label}", limit - 1)))?)
            }
        };
        self.labels.push(label);
        Ok(())
    }

    fn push_text(&mut self, value: Option<&str>, name: &str) -> Result<(), DataError> {
        let label = match value.filter(|value| !value.is_empty()) {
            None => None,
            Some(value) => Some(match self.values.get(value) {
                Some(label) => *label,
                None if !self.declared.is_empty() => {
                    let allowed = classes::listed(&self.declared);
                    return Err(self.refuse(name, format!("one of {allowed}, not {}", classes::quoted(value))));
                }
                None if self.values.len() < MAX_CLASSES => {
                    let label = i32::try_from(self.values.len()).unwrap_or(i32::MAX);
                    self.values.insert(value.to_owned(), label);
                    label
                }
                None => return Err(self.refuse(name, format!("one of at most {MAX_CLASSES} different values"))),
            }),
        };
        self.labels.push(label);
        Ok(())
    }
}
