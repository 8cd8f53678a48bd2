//! Folders of images beside folders of class maps, as ADE20K has them: `images/SPLIT/NAME.jpg` and
//! `annotations/SPLIT/NAME.png`, or `masks/SPLIT/NAME.png`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dataset::decode::is_image_name;
use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::formats::annotated::{Annotated, Found, Item, read_indices};
use crate::dataset::formats::image_files::inside;
use crate::dataset::labels::map_classes;
use crate::dataset::labels::names_file;
use crate::dataset::layout::listing::{Entry, Kind, Scope, file_name, name_of};
use crate::dataset::layout::splits::{Part, Rank, named, names_of, parts_of};
use crate::dataset::sample::Dataset;
use crate::dataset::spec::{DatasetSpec, FormatName, Split};
use crate::dataset::target::{TargetInfo, TargetKind};

/// The folder of the images, and those of the maps: ADE20K's first.
const IMAGES: &str = "images";
const MAPS: [&str; 2] = [ADE20K_MAPS, "masks"];
const ADE20K_MAPS: &str = "annotations";
/// The names of ADE20K's splits. Only of maps in folders of these names 0 is no class, unless it is said otherwise.
const ADE20K_SPLITS: [&str; 2] = ["training", "validation"];

/// The format of folders of images and of class maps.
pub(crate) struct MaskFolder;

impl MaskFolder {
    pub(crate) const NAME: FormatName = FormatName::new("mask-folder");
}

impl Format for MaskFolder {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "Segmentation: folders of images and of PNG class maps (images/SPLIT, and annotations/SPLIT as ADE20K or masks/SPLIT)."
    }

    fn looked_for(&self) -> Option<String> {
        Some(format!("{IMAGES}/SPLIT beside {ADE20K_MAPS}/SPLIT or masks/SPLIT"))
    }

    fn targets(&self) -> &'static [TargetKind] {
        &[TargetKind::Map]
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        let has_map = |split: &Entry| {
            let files = scope.peek(&split.path).unwrap_or_default();
            files.iter().any(|file| file.kind == Kind::File && is_png(&file.path))
        };
        let maps = MAPS.iter().flat_map(|name| split_folders(&folder.join(name), scope));
        let is_like = split_folders(&folder.join(IMAGES), scope).next().is_some()
            && maps.map(|(_, split)| split).any(|split| has_map(&split));
        Ok(if is_like { Likeness::Certain } else { Likeness::None })
    }

    fn has_configurations(&self) -> bool {
        true
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open(place, spec, scope)
    }
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

/// The folders in a folder that are named as splits and nothing else, each with its part.
fn split_folders(folder: &Path, scope: &Scope) -> impl Iterator<Item = (Part, Entry)> + use<> {
    let folders = if folder.is_dir() { scope.folders(folder) } else { Vec::new() };
    folders.into_iter().filter_map(|entry| {
        let named = named(&entry.name()).filter(|named| named.rank < Rank::Other)?;
        Some((named.part, entry))
    })
}

/// The folder of a part; none if there is none.
fn of_part(folder: &Path, part: Part, scope: &Scope) -> Result<Option<PathBuf>, DataError> {
    let found: Vec<PathBuf> =
        split_folders(folder, scope).filter(|(own, _)| *own == part).map(|(_, entry)| entry.path).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => Err(DataError::Ambiguous {
            path: folder.to_owned(),
            what: format!("several folders for the {} split", part.as_str()),
            remedy: "leave all but one out by data.exclude".to_owned(),
            candidates: scope.all_shown(&found),
        }),
    }
}

fn open(place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let root = place.canonicalize().map_err(|e| DataError::read(place, e))?;
    let maps: Vec<PathBuf> =
        MAPS.iter().map(|name| place.join(name)).filter(|folder| folder.is_dir() && !scope.excludes(folder)).collect();
    let (part, images, maps) = split(place, &maps, spec.split, scope)?;
    for folder in [&images, &maps] {
        inside(folder, &root)?;
    }
    let is_ade20k = ADE20K_SPLITS.contains(&name_of(&maps).as_str())
        && maps.parent().is_some_and(|parent| name_of(parent) == ADE20K_MAPS);
    let items = pairs(&images, &maps, scope)?;
    let listed = names_file::listed(place, &root, scope)?;
    let (names, file) = listed.map_or((None, None), |(names, file)| (Some(names), Some(file)));
    let zero_is_none = spec.reduce_zero_label.unwrap_or(is_ade20k);
    let read = |at: usize| match &items[at].mask {
        Some(mask) => read_indices(mask, at, &root, &spec.limits),
        None => Err(DataError::sample(&items[at].image, at, "has no mask")),
    };
    let classes = map_classes::find(names, zero_is_none, items.len(), &maps, &read)?;
    let column = scope.shown(&maps);
    let info = TargetInfo { kind: TargetKind::Map, names: classes.names, source: classes.source, column: Some(column) };
    let mut notes = scope.lines();
    notes.extend(classes.note);
    let found = Found {
        name: file_name(spec.path.as_deref().unwrap_or(place)),
        format: MaskFolder::NAME.as_str(),
        split: part.as_str().to_owned(),
        targets: vec![info],
        rule: Some(classes.rule),
        annotations: file.into_iter().collect(),
        root,
        items,
        notes,
    };
    Ok(Arc::new(Annotated::new(found, spec)))
}

/// The folders of images and of maps of a split.
fn split(place: &Path, maps: &[PathBuf], wanted: Split, scope: &Scope) -> Result<(Part, PathBuf, PathBuf), DataError> {
    let images = place.join(IMAGES);
    for &part in parts_of(wanted) {
        let Some(of_images) = of_part(&images, part, scope)? else { continue };
        let mut of_maps = Vec::new();
        for folder in maps {
            of_maps.extend(of_part(folder, part, scope)?);
        }
        match of_maps.as_slice() {
            [] => scope.note("images without maps, not used", &of_images),
            [one] => return Ok((part, of_images, one.clone())),
            _ => {
                return Err(DataError::Ambiguous {
                    path: place.to_owned(),
                    what: format!("several folders of maps for the {} split", part.as_str()),
                    remedy: "leave all but one out by data.exclude".to_owned(),
                    candidates: scope.all_shown(&of_maps),
                });
            }
        }
    }
    let present: Vec<PathBuf> =
        [images].iter().chain(maps).flat_map(|folder| scope.folders(folder)).map(|entry| entry.path).collect();
    let found = if present.is_empty() { "none".to_owned() } else { scope.all_shown(&present) };
    let hint =
        format!("looked for folders {} in {IMAGES} and in {ADE20K_MAPS} or masks, found {found}", names_of(wanted));
    Err(DataError::NoSplit { path: place.to_owned(), split: wanted.to_string(), hint })
}

/// The images of a folder, sorted by name, each with its map: the PNG file of the same name.
fn pairs(images: &Path, maps: &Path, scope: &Scope) -> Result<Vec<Item>, DataError> {
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_owned();
    let mut masks = BTreeMap::new();
    for entry in scope.entries(maps)?.into_iter().filter(|entry| !entry.is_folder()) {
        if is_png(&entry.path) {
            if let Some(twice) = masks.insert(stem(&entry.path), entry.path.clone()) {
                return Err(DataError::malformed(
                    &twice,
                    format!("has the name of another map, {}", name_of(&entry.path)),
                ));
            }
        } else {
            scope.note("files that are no PNG maps skipped", &entry.path);
        }
    }
    let (mut items, mut stems, mut without) = (Vec::new(), BTreeSet::new(), Vec::new());
    for entry in scope.entries(images)? {
        if entry.is_folder() || !is_image_name(&entry.path) {
            scope.note("files and folders that are no images skipped", &entry.path);
            continue;
        }
        if !stems.insert(stem(&entry.path)) {
            return Err(DataError::malformed(&entry.path, "has the name of another image but for its extension"));
        }
        match masks.remove(&stem(&entry.path)) {
            Some(mask) => items.push(Item { image: entry.path, mask: Some(mask), size: None, boxes: Box::default() }),
            None => without.push(entry.path),
        }
    }
    if let Some(first) = without.first() {
        let (num, all) = (without.len(), without.len() + items.len());
        let reason = format!(
            "has no map {}.png in {}, as {num} of {all} images of the split",
            stem(first).to_string_lossy(),
            scope.shown(maps)
        );
        return Err(DataError::malformed(first, reason));
    }
    masks.values().for_each(|mask| scope.note("maps without an image left out", mask));
    if items.is_empty() {
        return Err(DataError::malformed(images, "holds no images"));
    }
    Ok(items)
}
