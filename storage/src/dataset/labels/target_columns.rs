//! The columns of a Parquet file that hold targets other than the class of an image: which they are.
//!
//! - Labels: a list of whole numbers, the indices of the labels that an image has; or, where lists repeat a number and are
//!   of one length, 0, 1 and -1 (unknown) for each label. A list of true and false is the latter.
//! - Values: columns of numbers and of lists of numbers.
//! - Boxes: a struct of lists, or a list of structs, with `bbox` and the class.
//! - Maps: a second column of images.

use std::path::Path;

use arrow::datatypes::{DataType, Field, Schema};

use super::label_column::{self, type_text};
use crate::dataset::error::DataError;
use crate::dataset::parquet_file::features::Features;
use crate::dataset::spec::DatasetSpec;
use crate::dataset::target::TargetKind;

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

/// The columns that hold what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TargetColumns {
    pub mask: Option<String>,
    pub labels: Option<List>,
    pub values: Vec<String>,
    pub objects: Option<Objects>,
}

/// A column of lists, with the names of what is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List {
    pub name: String,
    /// Whether its items are true and false.
    pub is_flags: bool,
    /// Names of the labels, if the file lists them.
    pub names: Vec<String>,
}

/// A column of objects with the members that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Objects {
    pub name: String,
    pub boxes: String,
    pub class: Option<String>,
    pub area: Option<String>,
    /// Members that say that an object is ignored.
    pub ignored: Vec<String>,
    /// Names of the classes, if the file lists them.
    pub names: Vec<String>,
}

/// What is in a list.
pub(super) fn item(kind: &DataType) -> Option<&Field> {
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
