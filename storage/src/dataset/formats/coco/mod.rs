//! COCO's layout: `annotations/instances_SPLIT.json` beside folders of images, or `_annotations.coco.json` among the images
//! of a split's folder.
//!
//! Category ids are sorted and become classes from 0. Crowds are ignored objects. Images without objects stay.

mod json;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::formats::annotated::{Annotated, Found, Item, fitted, has_area, outside};
use crate::dataset::layout::listing::{Kind, Scope, file_name, name_of};
use crate::dataset::layout::notes::escaped;
use crate::dataset::layout::splits::{Named, Part, Rank, named, names_of, parts_of};
use crate::dataset::sample::Dataset;
use crate::dataset::spec::{DatasetSpec, FormatName, Split};
use crate::dataset::target::{ObjectBox, TargetInfo, TargetKind};

/// Where the files of objects are, and what their names begin with: beside them lie captions and key points.
const FOLDER: &str = "annotations";
const INSTANCES: &str = "instances";
/// The file of objects among the images of a split.
const AMONG_IMAGES: &str = "_annotations.coco.json";

/// The format of COCO's detection task.
pub(crate) struct Coco;

impl Coco {
    pub(crate) const NAME: FormatName = FormatName::new("coco");
}

impl Format for Coco {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "COCO: boxes in annotations/instances_SPLIT.json, or in SPLIT/_annotations.coco.json."
    }

    fn looked_for(&self) -> Option<String> {
        Some(format!("{FOLDER}/{INSTANCES}_SPLIT.json, SPLIT/{AMONG_IMAGES}"))
    }

    fn targets(&self) -> &'static [TargetKind] {
        &[TargetKind::Labels, TargetKind::Boxes]
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        Ok(if candidates(folder, scope).is_empty() { Likeness::None } else { Likeness::Certain })
    }

    fn has_configurations(&self) -> bool {
        true
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open(place, spec, scope)
    }
}

/// A file of objects, and the split of which it is by its name or its folder's.
struct Candidate {
    file: PathBuf,
    named: Named,
    /// Whether its name says that it holds objects.
    is_of_objects: bool,
}

/// The files that may hold the objects of a split.
fn candidates(place: &Path, scope: &Scope) -> Vec<Candidate> {
    let is_json = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let mut found = Vec::new();
    let folder = place.join(FOLDER);
    if folder.is_dir() && !scope.excludes(&folder) {
        for entry in scope.peek(&folder).unwrap_or_default() {
            let stem = entry.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if entry.kind != Kind::File || !is_json(&entry.path) {
                continue;
            }
            if let Some(named) = named(&stem).filter(|named| named.group == INSTANCES || named.rank < Rank::Other) {
                let is_of_objects = named.group == INSTANCES;
                found.push(Candidate { file: entry.path, named, is_of_objects });
            }
        }
    }
    for entry in scope.folders(place) {
        let file = entry.path.join(AMONG_IMAGES);
        if let Some(named) = named(&entry.name()).filter(|named| named.rank < Rank::Other)
            && file.is_file()
            && !scope.excludes(&file)
        {
            found.push(Candidate { file, named, is_of_objects: true });
        }
    }
    found
}

/// The file of a split, and the split's stored part.
fn choose(place: &Path, wanted: Split, scope: &Scope) -> Result<(Part, PathBuf), DataError> {
    let all = candidates(place, scope);
    for &part in parts_of(wanted) {
        let mut of_part: Vec<&Candidate> = all.iter().filter(|candidate| candidate.named.part == part).collect();
        if of_part.iter().any(|candidate| candidate.is_of_objects) {
            of_part.retain(|candidate| candidate.is_of_objects);
        }
        match of_part.as_slice() {
            [] => {}
            [one] => return Ok((part, one.file.clone())),
            _ => {
                return Err(DataError::Ambiguous {
                    path: place.to_owned(),
                    what: format!("several files of objects for the {} split", part.as_str()),
                    remedy: "leave all but one out by data.exclude".to_owned(),
                    candidates: scope.all_shown(of_part.iter().map(|candidate| &candidate.file)),
                });
            }
        }
    }
    let files: Vec<&PathBuf> = all.iter().map(|candidate| &candidate.file).collect();
    let found = if files.is_empty() { "none".to_owned() } else { scope.all_shown(files) };
    let hint = format!(
        "looked for {FOLDER}/{INSTANCES}_NAME.json and NAME/{AMONG_IMAGES} with NAME of {}, found {found}",
        names_of(wanted)
    );
    Err(DataError::NoSplit { path: place.to_owned(), split: wanted.to_string(), hint })
}

fn open(place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let root = place.canonicalize().map_err(|e| DataError::read(place, e))?;
    let (part, file) = choose(place, spec.split, scope)?;
    let json::Objects { images, objects, mut categories } = json::read(&file, &root, spec)?;
    let refuse = |reason: String| DataError::malformed(&file, reason);
    categories.sort_by_key(|category| category.id);
    if let Some(twice) = categories.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(refuse(format!("two categories have the id {}", twice[0].id)));
    }
    let class_of: HashMap<i64, u32> = categories.iter().map(|category| category.id).zip(0..).collect();
    let mut place_of = HashMap::with_capacity(images.len());
    for (at, image) in images.iter().enumerate() {
        if place_of.insert(image.id, at).is_some() {
            return Err(refuse(format!("two images have the id {}", image.id)));
        }
    }
    let mut boxes: Vec<Vec<ObjectBox>> = vec![Vec::new(); images.len()];
    let (mut num_without_area, mut num_encoded) = (0_usize, 0_usize);
    for object in &objects {
        let refuse = |reason: String| refuse(format!("annotation {}: {reason}", object.id));
        let at = *place_of
            .get(&object.image_id)
            .ok_or_else(|| refuse(format!("no image has the id {}", object.image_id)))?;
        let class = class_of.get(&object.category_id);
        let class = *class.ok_or_else(|| refuse(format!("no category has the id {}", object.category_id)))?;
        let [left, top, width, height] = object.bbox;
        let mut edges = [left, top, left + width, top + height];
        if let (Some(width), Some(height)) = (images[at].width, images[at].height) {
            let inside = fitted(edges, [width as f32, height as f32]);
            edges = inside.ok_or_else(|| refuse(outside(edges, width as usize, height as usize)))?;
        }
        num_encoded += usize::from(object.is_encoded);
        if !has_area(edges) {
            num_without_area += 1;
            continue;
        }
        let mut found = ObjectBox::new(edges, class, object.is_crowd);
        found.area = object.area.unwrap_or(found.area);
        boxes[at].push(found);
    }
    let folder = image_folder(place, &file, images.first().map(|image| image.file_name.as_str()));
    let mut items = Vec::with_capacity(images.len());
    for (image, boxes) in images.into_iter().zip(boxes) {
        let name = Path::new(&image.file_name);
        if !name.components().all(|step| matches!(step, Component::Normal(_) | Component::CurDir)) {
            return Err(refuse(format!(
                "image {} must be a path below the folder, not {}",
                image.id,
                escaped(&image.file_name)
            )));
        }
        let path = folder.join(name);
        if !path.is_file() {
            let of = scope.shown(&folder);
            return Err(refuse(format!("image {} is absent in {of}, {}", image.id, escaped(&image.file_name))));
        }
        let size = image.width.zip(image.height).map(|(width, height)| [width, height]);
        items.push(Item { image: path, mask: None, size, boxes: boxes.into() });
    }
    if items.is_empty() {
        return Err(refuse("holds no images".to_owned()));
    }
    let mut notes = scope.lines();
    if num_without_area > 0 {
        notes.push(format!("boxes without any area left out: {num_without_area}"));
    }
    if num_encoded > 0 {
        notes.push(format!("outlines in run-length encoding skipped, their boxes are kept: {num_encoded}"));
    }
    let names: Vec<String> = categories.into_iter().map(|category| category.name).collect();
    let column = Some(scope.shown(&file));
    let target = |kind: &TargetKind| TargetInfo::declared(*kind, names.clone(), column.clone());
    let found = Found {
        name: file_name(spec.path.as_deref().unwrap_or(place)),
        format: Coco::NAME.as_str(),
        split: part.as_str().to_owned(),
        targets: spec.targets.iter().map(target).collect(),
        rule: None,
        annotations: vec![file],
        root,
        items,
        notes,
    };
    Ok(Arc::new(Annotated::new(found, spec)))
}

/// The folder of a file's images: the first of the usual ones that has the image `name`.
fn image_folder(place: &Path, file: &Path, name: Option<&str>) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let split = stem.strip_prefix(INSTANCES).map_or(&*stem, |rest| rest.trim_start_matches(['_', '-']));
    let images = place.join("images");
    let usual = [place.join(split), images.join(split), images];
    let among = file.parent().map(Path::to_owned);
    if name_of(file) == AMONG_IMAGES {
        return among.unwrap_or_else(|| place.to_owned());
    }
    let all = usual.iter().cloned().chain([place.to_owned()]).chain(among);
    let has = |folder: &PathBuf| name.is_some_and(|name| folder.join(name).is_file());
    all.clone().find(has).or_else(|| all.clone().find(|folder| folder.is_dir())).unwrap_or_else(|| place.to_owned())
}
