//! The values of a Parquet file's columns of targets, row by row.

use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Float32Type, Int64Type};

use super::classes::numbered_classes;
use super::target_columns::{List, Objects, TargetColumns, item};
use crate::dataset::error::DataError;
use crate::dataset::sample::NameSource;
use crate::dataset::spec::BoxFormat;
use crate::dataset::target::{ObjectBox, Target, TargetInfo, TargetKind};

/// More classes than this are taken for a mistake.
const MAX_CLASSES: i64 = 1 << 16;

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
