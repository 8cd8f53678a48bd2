//! The columns of a Parquet file that hold targets other than the class of an image: which they are, and their values.
//!
//! - Labels: a list of whole numbers, the indices of the labels that an image has; or, where lists repeat a number and are
//!   of one length, 0, 1 and -1 (unknown) for each label. A list of true and false is the latter.
//! - Values: columns of numbers and of lists of numbers.
//! - Boxes: a struct of lists, or a list of structs, with `bbox` and the class.
//! - Maps: a second column of images.

use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Float32Type, Int64Type, Schema};

use super::classes::numbered_classes;
use super::label_column::{self, type_text};
use crate::dataset::error::DataError;
use crate::dataset::parquet_file::features::Features;
use crate::dataset::sample::NameSource;
use crate::dataset::spec::{BoxFormat, DatasetSpec};
use crate::dataset::target::{ObjectBox, Target, TargetInfo, TargetKind};

const MASK_KEY: &str = "data.mask_column";
const VALUE_KEY: &str = "data.value_columns";
/// Usual names, the plainest first.
const MASKS: [&str; 8] =
    ["mask", "annotation", "segmentation_mask", "segmentation", "semantic_segmentation", "seg_map", "label", "labels"];
const LABELS: [&str; 5] = ["labels", "label", "tags", "classes", "attributes"];
const OBJECTS: &str = "objects";
const BOXES: [&str; 3] = ["bbox", "bboxes", "boxes"];
const CLASSES: [&str; 8] = ["category", "categories", "category_id", "label", "labels", "class", "classes", "class_id"];
const AREAS: [&str; 2] = ["area", "areas"];
const IGNORED: [&str; 5] = ["iscrowd", "is_crowd", "crowd", "difficult", "is_difficult"];
/// The one class of objects that have none of their own.
const ONLY_CLASS: &str = "object";
/// More classes than this are taken for a mistake.
const MAX_CLASSES: i64 = 1 << 16;

/// The columns that hold what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TargetColumns {
    pub mask: Option<String>,
    labels: Option<List>,
    values: Vec<String>,
    objects: Option<Objects>,
}

/// A column of lists, with the names of what is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct List {
    name: String,
    is_flags: bool,
    names: Vec<String>,
}

/// A column of objects with the members that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Objects {
    name: String,
    boxes: String,
    class: Option<String>,
    area: Option<String>,
    ignored: Vec<String>,
    names: Vec<String>,
}

fn item(kind: &DataType) -> Option<&Field> {
    match kind {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item),
        _ => None,
    }
}

fn is_number(kind: &DataType) -> bool {
    kind.is_integer() || is_float(kind)
}

fn is_float(kind: &DataType) -> bool {
    matches!(kind, DataType::Float16 | DataType::Float32 | DataType::Float64)
}

fn holds(kind: &DataType, accept: fn(&DataType) -> bool) -> bool {
    item(kind).is_some_and(|item| accept(item.data_type()))
}

fn is_flag(kind: &DataType) -> bool {
    *kind == DataType::Boolean
}

fn is_label(kind: &DataType) -> bool {
    kind.is_integer() || is_flag(kind)
}

/// What is to be chosen from.
pub(crate) struct Choice<'a> {
    pub schema: &'a Schema,
    pub features: &'a Features,
    /// The image column, and all columns that may be one.
    pub image: &'a str,
    pub images: &'a [String],
    pub spec: &'a DatasetSpec,
    pub path: &'a Path,
}

impl Choice<'_> {
    /// The columns of the kinds that are asked for.
    ///
    /// # Errors
    /// [`DataError::Column`] if a named column is absent or of another type, or if several could be meant;
    /// [`DataError::NoTargets`] if there is none.
    pub fn choose(&self) -> Result<TargetColumns, DataError> {
        let mut columns = TargetColumns::default();
        for kind in &self.spec.targets {
            match kind {
                TargetKind::Class => {}
                TargetKind::Map => columns.mask = Some(self.mask()?.ok_or_else(|| self.none(*kind))?),
                TargetKind::Labels => columns.labels = Some(self.labels()?.ok_or_else(|| self.none(*kind))?),
                TargetKind::Values => columns.values = self.values()?.ok_or_else(|| self.none(*kind))?,
                TargetKind::Boxes => columns.objects = Some(self.objects()?.ok_or_else(|| self.none(*kind))?),
            }
        }
        Ok(columns)
    }

    /// The kinds for which there are columns that can only be meant for them.
    pub fn kinds(&self) -> Vec<TargetKind> {
        let has = |kind: &TargetKind| match kind {
            TargetKind::Class => label_column::choose(self.schema, self.features, self.image, self.spec, self.path)
                .is_ok_and(|found| found.is_ok()),
            TargetKind::Map => self.mask().is_ok_and(|mask| {
                mask.is_some_and(|mask| self.spec.mask_column.is_some() || MASKS.contains(&mask.as_str()))
            }),
            TargetKind::Labels => self.labels().is_ok_and(|labels| labels.is_some()),
            TargetKind::Values => !self.spec.value_columns.is_empty(),
            TargetKind::Boxes => self.objects().is_ok_and(|objects| objects.is_some()),
        };
        TargetKind::ALL.into_iter().filter(has).collect()
    }

    fn none(&self, kind: TargetKind) -> DataError {
        DataError::NoTargets { path: self.path.to_owned(), kind, has: self.kinds() }
    }

    fn fields(&self, accept: impl Fn(&Field) -> bool) -> Vec<&Field> {
        self.schema
            .fields()
            .iter()
            .map(|field| &**field)
            .filter(|field| field.name() != self.image && accept(field))
            .collect()
    }

    fn refuse(&self, problem: String, key: &'static str, fields: &[&Field]) -> DataError {
        let text = |field: &&Field| format!("{} ({})", field.name().escape_debug(), type_text(field.data_type()));
        let allowed = match fields {
            [] => "(there is none)".to_owned(),
            fields => fields.iter().map(text).collect::<Vec<_>>().join(", "),
        };
        DataError::Column { path: self.path.to_owned(), problem, key, allowed }
    }

    /// The one of several fields that has a usual name, or the only one.
    fn usual<'f>(&self, fields: &[&'f Field], usual: &[&str]) -> Option<&'f Field> {
        let named = usual.iter().find_map(|name| fields.iter().find(|field| field.name() == name));
        named.copied().or(if let [one] = fields { Some(*one) } else { None })
    }

    fn mask(&self) -> Result<Option<String>, DataError> {
        let fields = self.fields(|field| self.images.contains(field.name()));
        if let Some(wanted) = &self.spec.mask_column {
            let found = fields.iter().find(|field| field.name() == wanted);
            let found =
                found.ok_or_else(|| self.refuse(format!("no second image column {wanted:?}"), MASK_KEY, &fields))?;
            return Ok(Some(found.name().clone()));
        }
        match self.usual(&fields, &MASKS) {
            Some(field) => Ok(Some(field.name().clone())),
            None if fields.is_empty() => Ok(None),
            None => Err(self.refuse("several columns may hold class maps".to_owned(), MASK_KEY, &fields)),
        }
    }

    fn labels(&self) -> Result<Option<List>, DataError> {
        let fields = self.fields(|field| holds(field.data_type(), is_label));
        let wanted =
            self.spec.label_column.as_ref().and_then(|wanted| fields.iter().find(|field| field.name() == wanted));
        // A column that is no list may name the class.
        if wanted.is_none()
            && let Some(name) = self
                .spec
                .label_column
                .as_ref()
                .filter(|_| !self.spec.label_column_optional && !self.spec.targets.contains(&TargetKind::Class))
        {
            let problem = format!("no column {name:?} of lists of labels");
            return Err(self.refuse(problem, label_column::KEY, &fields));
        }
        let declared: Vec<&Field> =
            fields.iter().copied().filter(|field| !self.features.nested_names(field.name()).is_empty()).collect();
        let found = match (wanted, declared.as_slice()) {
            (Some(wanted), _) => Some(*wanted),
            (None, [one]) => Some(*one),
            _ => self.usual(&fields, &LABELS),
        };
        let list = |field: &Field| List {
            name: field.name().clone(),
            is_flags: holds(field.data_type(), is_flag),
            names: self.features.nested_names(field.name()).to_vec(),
        };
        match found {
            Some(field) => Ok(Some(list(field))),
            None if fields.is_empty() => Ok(None),
            None => Err(self.refuse("several columns of lists of labels".to_owned(), label_column::KEY, &fields)),
        }
    }

    fn values(&self) -> Result<Option<Vec<String>>, DataError> {
        let fields = self.fields(|field| is_number(field.data_type()) || holds(field.data_type(), is_number));
        for wanted in &self.spec.value_columns {
            if !fields.iter().any(|field| field.name() == wanted) {
                return Err(self.refuse(format!("no column {wanted:?} of numbers"), VALUE_KEY, &fields));
            }
        }
        if !self.spec.value_columns.is_empty() {
            return Ok(Some(self.spec.value_columns.clone()));
        }
        let is_value = |field: &&&Field| is_float(field.data_type()) || holds(field.data_type(), is_float);
        let values: Vec<String> = fields.iter().filter(is_value).map(|field| field.name().clone()).collect();
        Ok(Some(values).filter(|values| !values.is_empty()))
    }

    fn objects(&self) -> Result<Option<Objects>, DataError> {
        let members = |field: &Field| match field.data_type() {
            DataType::Struct(parts) => {
                parts.iter().map(|part| (part.clone(), item(part.data_type()).cloned())).collect()
            }
            kind => match item(kind).map(Field::data_type) {
                Some(DataType::Struct(parts)) => {
                    parts.iter().map(|part| (part.clone(), Some((**part).clone()))).collect()
                }
                _ => Vec::new(),
            },
        };
        // The member's field, and that of one object.
        let member = |field: &Field, names: &[&str], accept: fn(&DataType) -> bool| {
            let all: Vec<(std::sync::Arc<Field>, Option<Field>)> = members(field);
            names.iter().find_map(|name| {
                let (part, one) = all.iter().find(|(part, _)| part.name() == name)?;
                one.as_ref().is_some_and(|one| accept(one.data_type())).then(|| part.name().clone())
            })
        };
        let is_box = |kind: &DataType| holds(kind, is_number);
        let fields = self.fields(|field| member(field, &BOXES, is_box).is_some());
        let Some(field) = self.usual(&fields, &[OBJECTS]) else {
            if fields.is_empty() {
                return Ok(None);
            }
            let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            let reason =
                format!("several columns hold boxes: {}; call the one that is meant {OBJECTS}", names.join(", "));
            return Err(DataError::malformed(self.path, reason));
        };
        let name = field.name().clone();
        let class = member(field, &CLASSES, DataType::is_integer);
        let names = class.as_ref().map(|class| self.features.nested_names(&format!("{name}.{class}")).to_vec());
        Ok(Some(Objects {
            boxes: member(field, &BOXES, is_box).unwrap_or_default(),
            area: member(field, &AREAS, is_number),
            ignored: IGNORED.iter().filter_map(|name| member(field, &[name], is_label)).collect(),
            names: names.unwrap_or_else(|| vec![ONLY_CLASS.to_owned()]),
            class,
            name,
        }))
    }
}

impl TargetColumns {
    /// The columns that are read beside the image, the class and the maps.
    pub fn names(&self) -> Vec<&str> {
        let labels = self.labels.iter().map(|labels| labels.name.as_str());
        let objects = self.objects.iter().map(|objects| objects.name.as_str());
        labels.chain(self.values.iter().map(String::as_str)).chain(objects).collect()
    }

    /// Whether a leaf of the file's columns is read, by the steps to it. Of objects only some members are.
    pub fn reads(&self, steps: &[String]) -> bool {
        let Some(root) = steps.first() else { return false };
        match &self.objects {
            Some(objects) if objects.name == *root => {
                let members = [Some(&objects.boxes), objects.class.as_ref(), objects.area.as_ref()];
                let members = members.into_iter().flatten().chain(&objects.ignored);
                let names: Vec<&String> = members.collect();
                steps[1..].iter().any(|step| names.contains(&step))
            }
            _ => self.names().contains(&root.as_str()),
        }
    }
}

/// The targets of the rows of a split, beside its maps.
#[derive(Debug, Default)]
pub(crate) struct TargetRows {
    labels: Vec<Option<Box<[i32]>>>,
    /// Width of each column of values, once it is known.
    widths: Vec<Option<usize>>,
    values: Vec<Box<[f32]>>,
    boxes: Vec<Option<Box<[ObjectBox]>>>,
    /// Whether each row of labels says 0, 1 or -1 of every label.
    is_flags: bool,
    num_labels: usize,
}

/// The items of a list, none where it is null.
fn items(lists: &ArrayRef, row: usize) -> Option<ArrayRef> {
    if lists.is_null(row) {
        return None;
    }
    match lists.data_type() {
        DataType::List(_) => Some(lists.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Some(lists.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => Some(lists.as_fixed_size_list().value(row)),
        _ => None,
    }
}

fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, String> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, to, &options).map_err(|error| error.to_string())
}

/// Whole numbers; none where they are null.
fn whole(array: &ArrayRef) -> Result<Vec<Option<i64>>, String> {
    Ok(cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().iter().collect())
}

/// Numbers; NaN where they are null.
fn numbers(array: &ArrayRef) -> Result<Vec<f32>, String> {
    let array = cast(array, &DataType::Float32)?;
    Ok(array.as_primitive::<Float32Type>().iter().map(|value| value.unwrap_or(f32::NAN)).collect())
}

impl TargetRows {
    /// Adds the rows of a batch; `column` gives its columns, `start` is the number of its first row.
    ///
    /// # Errors
    /// [`DataError::Sample`] about a value that is none.
    pub fn add(
        &mut self,
        columns: &TargetColumns,
        format: BoxFormat,
        column: &dyn Fn(&str) -> Result<ArrayRef, DataError>,
        (num_rows, start, path): (usize, usize, &Path),
    ) -> Result<(), DataError> {
        let refuse = |name: &str, row: usize, reason: String| {
            DataError::sample(path, start + row, format!("{}: {reason}", name.escape_debug()))
        };
        if let Some(labels) = &columns.labels {
            let lists = column(&labels.name)?;
            for row in 0..num_rows {
                let found = items(&lists, row).map(|list| labels_of(&list, labels)).transpose();
                self.labels.push(found.map_err(|reason| refuse(&labels.name, row, reason))?);
            }
        }
        if !columns.values.is_empty() {
            let first = self.values.len();
            self.values.resize(first + num_rows, Box::default());
            self.widths.resize(columns.values.len(), None);
            let mut rows = vec![Vec::new(); num_rows];
            for (name, width) in columns.values.iter().zip(&mut self.widths) {
                let array = column(name)?;
                let is_list = item(array.data_type()).is_some();
                let scalars =
                    if is_list { Vec::new() } else { numbers(&array).map_err(|reason| refuse(name, 0, reason))? };
                for (row, values) in rows.iter_mut().enumerate() {
                    if !is_list {
                        *width = Some(1);
                        values.push(scalars[row]);
                        continue;
                    }
                    // A null list is one of unknown values, but of how many is known from others alone.
                    let list = items(&array, row).ok_or_else(|| refuse(name, row, "a list is absent".to_owned()))?;
                    let list = numbers(&list).map_err(|reason| refuse(name, row, reason))?;
                    let wanted = *width.get_or_insert(list.len());
                    if list.len() != wanted {
                        let reason = format!("must have {wanted} values as the rows before, not {}", list.len());
                        return Err(refuse(name, row, reason));
                    }
                    values.extend(list);
                }
            }
            for (row, values) in rows.into_iter().enumerate() {
                if let Some(value) = values.iter().find(|value| value.is_infinite()) {
                    return Err(refuse(&columns.values.join(", "), row, format!("values must be finite, not {value}")));
                }
                self.values[first + row] = values.into();
            }
        }
        if let Some(objects) = &columns.objects {
            let array = column(&objects.name)?;
            for row in 0..num_rows {
                let boxes = boxes_of(&array, row, objects, format);
                self.boxes.push(boxes.map_err(|reason| refuse(&objects.name, row, reason))?);
            }
        }
        Ok(())
    }

    /// What is known of a kind of target, when all rows are there.
    ///
    /// # Errors
    /// [`DataError::Malformed`] for lists that are neither indices nor one number a label.
    pub fn info(&mut self, kind: TargetKind, columns: &TargetColumns, path: &Path) -> Result<TargetInfo, DataError> {
        let info = |names: Vec<String>, source, column: &str| TargetInfo {
            kind,
            names,
            source,
            column: Some(column.to_owned()),
        };
        let named = |names: &[String], numbers: Vec<String>, column: &str| match names {
            [] => info(numbers, NameSource::Numbers, column),
            names => info(names.to_vec(), NameSource::Declared, column),
        };
        match (kind, &columns.labels, &columns.objects) {
            (TargetKind::Labels, Some(labels), _) => {
                let numbers = self.settle_labels(labels).map_err(|reason| DataError::malformed(path, reason))?;
                let found = named(&labels.names, numbers, &labels.name);
                self.num_labels = found.names.len();
                Ok(found)
            }
            (TargetKind::Values, ..) => {
                let mut names = Vec::new();
                for (name, width) in columns.values.iter().zip(&self.widths) {
                    match width {
                        Some(1) => names.push(name.clone()),
                        width => names.extend((0..width.unwrap_or(0)).map(|number| format!("{name}_{number}"))),
                    }
                }
                Ok(info(names, NameSource::Declared, &columns.values.join(", ")))
            }
            (TargetKind::Boxes, _, Some(objects)) => {
                let classes = self.boxes.iter().flatten().flatten().map(|object| object.class as i32);
                Ok(named(&objects.names, numbered_classes(classes), &objects.name))
            }
            _ => Ok(info(Vec::new(), NameSource::Numbers, "")),
        }
    }

    /// Decides whether lists are indices or one number a label; gives the labels' numbers.
    fn settle_labels(&mut self, labels: &List) -> Result<Vec<String>, String> {
        let has_twice = |list: &[i32]| {
            let mut sorted = list.to_vec();
            sorted.sort_unstable();
            sorted.windows(2).any(|pair| pair[0] == pair[1])
        };
        let known = || self.labels.iter().flatten();
        self.is_flags = labels.is_flags || labels.names.is_empty() && known().any(|list| has_twice(list));
        if !self.is_flags {
            if let Some(list) = known().find(|list| list.iter().any(|index| *index < 0)) {
                return Err(format!("column {} must hold indices from 0, not {list:?}", labels.name.escape_debug()));
            }
            if let Some(list) = known().find(|list| has_twice(list)) {
                return Err(format!("column {} names a label twice: {list:?}", labels.name.escape_debug()));
            }
            return Ok(numbered_classes(known().flatten().copied()));
        }
        let num = known().map(|list| list.len()).next().unwrap_or(0);
        let is_flag = |list: &[i32]| list.len() == num && list.iter().all(|value| (-1..=1).contains(value));
        match known().find(|list| !is_flag(list)) {
            None => Ok((0..num).map(|label| label.to_string()).collect()),
            Some(list) => {
                let list = &list[..list.len().min(12)];
                Err(format!(
                    "column {} must hold lists of different indices, or of {num} values of 0, 1 and -1, not {list:?}",
                    labels.name.escape_debug()
                ))
            }
        }
    }

    /// A target of a row that is no map and no box.
    pub fn target(&self, kind: TargetKind, row: usize) -> Target {
        match kind {
            TargetKind::Labels => {
                let Some(list) = self.labels.get(row).and_then(Option::as_ref) else { return Target::Unknown };
                let mut labels = vec![0_i8; self.num_labels];
                if self.is_flags {
                    labels.iter_mut().zip(list).for_each(|(label, value)| *label = *value as i8);
                } else {
                    let places = list.iter().filter_map(|index| usize::try_from(*index).ok());
                    places.for_each(|index| labels[index] = 1);
                }
                Target::Labels(labels.into())
            }
            TargetKind::Values => self.values.get(row).map_or(Target::Unknown, |values| Target::Values(values.clone())),
            _ => Target::Unknown,
        }
    }

    /// The boxes of a row, none if they are not known.
    pub fn boxes(&self, row: usize) -> Option<&[ObjectBox]> {
        self.boxes.get(row)?.as_deref()
    }

    /// Memory of all rows in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let labels = self.labels.iter().map(|list| 16 + list.as_ref().map_or(0, |list| size_of_val(&**list)));
        let values = self.values.iter().map(|values| 16 + size_of_val(&**values));
        let boxes = self.boxes.iter().map(|boxes| 16 + boxes.as_ref().map_or(0, |boxes| size_of_val(&**boxes)));
        labels.chain(values).chain(boxes).sum::<usize>() as u64
    }
}

/// The numbers of a list of labels.
fn labels_of(list: &ArrayRef, labels: &List) -> Result<Box<[i32]>, String> {
    let last = if labels.names.is_empty() { MAX_CLASSES } else { labels.names.len() as i64 } - 1;
    let first = if labels.names.is_empty() { -1 } else { 0 };
    let of = |value: Option<i64>| {
        let known = value.filter(|value| (first..=last).contains(value)).and_then(|value| i32::try_from(value).ok());
        known.ok_or_else(|| {
            let text = value.map_or_else(|| "null".to_owned(), |value| value.to_string());
            format!("labels must be {first} to {last}, not {text}")
        })
    };
    whole(list)?.into_iter().map(of).collect()
}

/// The objects of a row; none where they are null.
fn boxes_of(
    array: &ArrayRef,
    row: usize,
    objects: &Objects,
    format: BoxFormat,
) -> Result<Option<Box<[ObjectBox]>>, String> {
    // Of a list of structs the members are columns of the row's objects, of a struct of lists they are lists.
    let of_list = item(array.data_type()).is_some();
    let list = if of_list { items(array, row) } else { (!array.is_null(row)).then(|| array.clone()) };
    let Some(list) = list else { return Ok(None) };
    let Some(parts) = list.as_struct_opt() else { return Err("is no struct".to_owned()) };
    let member = |name: &str| {
        let column = parts.column_by_name(name).ok_or_else(|| format!("has no {name}"))?;
        Ok::<_, String>(if of_list { Some(column.clone()) } else { items(column, row) })
    };
    let Some(boxes) = member(&objects.boxes)? else { return Ok(None) };
    let num = boxes.len();
    let of_length = |name: &str, found: usize| {
        if found == num { Ok(()) } else { Err(format!("{num} boxes have {found} of {name}")) }
    };
    let all = |name: &Option<String>| {
        let Some(name) = name else { return Ok(None) };
        let Some(values) = member(name)? else { return Ok(None) };
        of_length(name, values.len())?;
        Ok::<_, String>(Some(values))
    };
    let classes = all(&objects.class)?.map(|classes| whole(&classes)).transpose()?;
    let areas = all(&objects.area)?.map(|areas| numbers(&areas)).transpose()?;
    let mut ignored = vec![false; num];
    for name in &objects.ignored {
        let flags = all(&Some(name.clone()))?.map(|flags| whole(&flags)).transpose()?.unwrap_or_default();
        flags.iter().zip(&mut ignored).for_each(|(flag, ignored)| *ignored |= flag.is_some_and(|flag| flag != 0));
    }
    let last = if objects.names.is_empty() { MAX_CLASSES } else { objects.names.len() as i64 } - 1;
    let mut found = Vec::with_capacity(num);
    for (at, ignored) in ignored.into_iter().enumerate() {
        let numbers = items(&boxes, at).map(|numbers_of| numbers(&numbers_of)).transpose()?.unwrap_or_default();
        let Ok(numbers) = <[f32; 4]>::try_from(numbers) else { return Err("a box must be four numbers".to_owned()) };
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(format!("a box must be four finite numbers, not {numbers:?}"));
        }
        let class = match (&objects.class, &classes) {
            (None, _) => Some(0),
            (Some(_), classes) => classes.as_ref().and_then(|classes| classes[at]),
        };
        let class = class.ok_or("an object has no class")?;
        let known = u32::try_from(class).ok().filter(|_| class <= last);
        let class = known.ok_or_else(|| format!("classes must be 0 to {last}, not {class}"))?;
        let mut object = ObjectBox::new(format.edges(numbers), class, ignored);
        if let Some(area) = areas.as_ref().map(|areas| areas[at]).filter(|area| area.is_finite()) {
            object.area = area;
        }
        found.push(object);
    }
    Ok(Some(found.into()))
}
