//! Pascal VOC's layout: `JPEGImages/NAME.jpg`, objects in `Annotations/NAME.xml`, class maps in
//! `SegmentationClass/NAME.png`, and lists of names in `ImageSets/Main/SPLIT.txt` and `ImageSets/Segmentation/SPLIT.txt`.
//!
//! Boxes count their pixels from 1, and hold both edges: a box from 1 to 1 is one pixel wide. Objects that are marked as
//! difficult are ignored. In class maps 0 is the background, and 255 no class.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use roxmltree::{Document, Node};

use crate::dataset::decode::is_image_name;
use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::formats::annotated::{Annotated, Found, Item, fitted, has_area, outside, read_indices};
use crate::dataset::formats::image_files::{inside, read};
use crate::dataset::labels::map_classes;
use crate::dataset::labels::names_file;
use crate::dataset::layout::listing::{Scope, file_name, name_of};
use crate::dataset::layout::notes::escaped;
use crate::dataset::layout::splits::Part;
use crate::dataset::sample::Dataset;
use crate::dataset::spec::{DatasetSpec, FormatName, Split};
use crate::dataset::target::{ObjectBox, TargetInfo, TargetKind};

const IMAGES: &str = "JPEGImages";
const OBJECTS: &str = "Annotations";
const MAPS: &str = "SegmentationClass";
const LISTS: &str = "ImageSets";
/// More bytes than this are no annotation of one image, and no list of names.
const MAX_XML: u64 = 16 << 20;
const MAX_LIST: u64 = 256 << 20;

/// The classes of Pascal VOC, which are the indices from 1 of its class maps.
const CLASSES: [&str; 20] = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
];
const BACKGROUND: &str = "background";

/// The format of Pascal VOC.
pub(crate) struct Voc;

impl Voc {
    pub(crate) const NAME: FormatName = FormatName::new("voc");
}

impl Format for Voc {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "Pascal VOC: boxes in Annotations/*.xml, class maps in SegmentationClass/*.png, splits in ImageSets."
    }

    fn looked_for(&self) -> Option<String> {
        Some(format!("{IMAGES} beside {OBJECTS} or {MAPS}"))
    }

    fn targets(&self) -> &'static [TargetKind] {
        &[TargetKind::Labels, TargetKind::Map, TargetKind::Boxes]
    }

    fn kinds(&self, place: &Path, _spec: &DatasetSpec, scope: &Scope) -> Result<Vec<TargetKind>, DataError> {
        Ok(present(place, scope))
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        let is_like = folder.join(IMAGES).is_dir() && !present(folder, scope).is_empty();
        Ok(if is_like { Likeness::Certain } else { Likeness::None })
    }

    fn has_configurations(&self) -> bool {
        true
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open(place, spec, scope)
    }
}

/// The kinds of targets for which there are folders.
fn present(place: &Path, scope: &Scope) -> Vec<TargetKind> {
    let has = |name: &str| place.join(name).is_dir() && !scope.excludes(&place.join(name));
    let needs = |kind: &TargetKind| match kind {
        TargetKind::Map => has(MAPS),
        _ => has(OBJECTS),
    };
    Voc.targets().iter().copied().filter(needs).collect()
}

fn open(place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let root = place.canonicalize().map_err(|e| DataError::read(place, e))?;
    let has = present(place, scope);
    if let Some(&kind) = spec.targets.iter().find(|kind| !has.contains(kind)) {
        return Err(DataError::NoTargets { path: place.to_owned(), kind, has });
    }
    let wants_map = spec.targets.contains(&TargetKind::Map);
    let wants_boxes = spec.targets.iter().any(|kind| *kind != TargetKind::Map);
    // Maps are of fewer images than boxes are.
    let lists = if wants_map { "Segmentation" } else { "Main" };
    let images = files(&place.join(IMAGES), &root, scope, is_image_name)?;
    let xml = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("xml"));
    let png = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    let objects =
        if has.contains(&TargetKind::Boxes) { files(&place.join(OBJECTS), &root, scope, xml)? } else { HashMap::new() };
    let maps = if wants_map { files(&place.join(MAPS), &root, scope, png)? } else { HashMap::new() };
    let (part, list, names) = split(place, &root, lists, if wants_map { &maps } else { &objects }, spec.split, scope)?;

    let listed = names_file::listed(place, &root, scope)?;
    let mut annotations: Vec<PathBuf> = list.iter().cloned().collect();
    annotations.extend(listed.as_ref().map(|(_, file)| file.clone()));
    let listed = listed.map(|(names, _)| names);
    // Classes are those of all splits, so that each has the same ones.
    let parsed = objects.iter().map(|(name, path)| Ok((name.as_str(), Annotation::read(path, &root)?)));
    let parsed: HashMap<&str, Annotation> = parsed.collect::<Result<_, DataError>>()?;
    let classes = class_names(listed, &parsed, &objects)?;
    let mut found = Found {
        name: file_name(spec.path.as_deref().unwrap_or(place)),
        format: Voc::NAME.as_str(),
        split: part.as_str().to_owned(),
        items: Vec::with_capacity(names.len()),
        notes: Vec::new(),
        targets: Vec::new(),
        rule: None,
        annotations,
        root,
    };
    for name in &names {
        let lacks = |folder: &str, ending: &str| {
            let file = list.as_deref().unwrap_or(place);
            DataError::malformed(file, format!("names an image without a file {folder}/{}{ending}", escaped(name)))
        };
        let image = images.get(name).ok_or_else(|| lacks(IMAGES, ".jpg"))?.clone();
        let mask = if wants_map { Some(maps.get(name).ok_or_else(|| lacks(MAPS, ".png"))?.clone()) } else { None };
        let (mut size, mut boxes) = (None, Box::default());
        if wants_boxes {
            let path = objects.get(name).ok_or_else(|| lacks(OBJECTS, ".xml"))?;
            let annotation = parsed.get(name.as_str()).ok_or_else(|| lacks(OBJECTS, ".xml"))?;
            found.annotations.push(path.clone());
            (size, boxes) = (annotation.size, annotation.boxes(path, &classes, scope)?);
        }
        found.items.push(Item { image, mask, size, boxes });
    }
    let mut notes = scope.lines();
    for &kind in &spec.targets {
        if kind != TargetKind::Map {
            found.targets.push(TargetInfo::declared(kind, classes.clone(), Some(OBJECTS.to_owned())));
            continue;
        }
        let with_background = || std::iter::once(BACKGROUND.to_owned()).chain(classes.iter().cloned()).collect();
        let read = |at: usize| match &found.items[at].mask {
            Some(mask) => read_indices(mask, at, &found.root, &spec.limits),
            None => Err(DataError::sample(&found.items[at].image, at, "has no mask")),
        };
        let names = (!classes.is_empty()).then(with_background);
        let of = place.join(MAPS);
        let classes = map_classes::find(names, spec.reduce_zero_label.unwrap_or(false), found.items.len(), &of, &read)?;
        notes.extend(classes.note);
        found.rule = Some(classes.rule);
        let (names, source) = (classes.names, classes.source);
        found.targets.push(TargetInfo { kind, names, source, column: Some(MAPS.to_owned()) });
    }
    found.notes = notes;
    Ok(Arc::new(Annotated::new(found, spec)))
}

/// The names of the objects' classes: those of the list, or the 20 of Pascal VOC if there are no others, or else those that
/// occur, sorted. None without objects.
fn class_names(
    listed: Option<Vec<String>>,
    parsed: &HashMap<&str, Annotation>,
    files: &HashMap<String, PathBuf>,
) -> Result<Vec<String>, DataError> {
    let occurring: BTreeSet<&String> =
        parsed.values().flat_map(|annotation| &annotation.objects).map(|object| &object.name).collect();
    if let Some(listed) = listed {
        if let Some(unknown) = occurring.iter().find(|name| !listed.contains(**name)) {
            let has = |annotation: &Annotation| annotation.objects.iter().any(|object| object.name == **unknown);
            let mut of: Vec<&str> =
                parsed.iter().filter(|(_, annotation)| has(annotation)).map(|(name, _)| *name).collect();
            of.sort_unstable();
            let file = of.first().and_then(|name| files.get(*name)).map_or(Path::new(OBJECTS), PathBuf::as_path);
            let reason = format!("an object is of a class that classes.txt does not list, {}", escaped(unknown));
            return Err(DataError::malformed(file, reason));
        }
        return Ok(listed);
    }
    if !occurring.is_empty() && occurring.iter().all(|name| CLASSES.contains(&name.as_str())) {
        return Ok(CLASSES.map(str::to_owned).to_vec());
    }
    Ok(occurring.into_iter().cloned().collect())
}

/// The files of a folder by their names without extension, that are of a kind.
fn files(
    folder: &Path,
    root: &Path,
    scope: &Scope,
    is_kind: impl Fn(&Path) -> bool,
) -> Result<HashMap<String, PathBuf>, DataError> {
    inside(folder, root)?;
    let mut files = HashMap::new();
    for entry in scope.entries(folder)? {
        if entry.is_folder() || !is_kind(&entry.path) {
            scope.note("files and folders of other kinds skipped", &entry.path);
            continue;
        }
        let stem = entry.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(twice) = files.insert(stem, entry.path.clone()) {
            let reason = format!("has the name of another file but for its extension, {}", name_of(&entry.path));
            return Err(DataError::malformed(&twice, reason));
        }
    }
    Ok(files)
}

/// The names of a split's images, with the file that lists them; without lists, all that are annotated are the train split.
fn split(
    place: &Path,
    root: &Path,
    lists: &str,
    annotated: &HashMap<String, PathBuf>,
    wanted: Split,
    scope: &Scope,
) -> Result<(Part, Option<PathBuf>, Vec<String>), DataError> {
    let looked_for: &[(Part, &str)] = match wanted {
        Split::Train => &[(Part::Train, "train.txt"), (Part::Train, "trainval.txt")],
        Split::Test => &[(Part::Test, "test.txt"), (Part::Validation, "val.txt")],
        Split::Validation => &[(Part::Validation, "val.txt")],
    };
    let folder = place.join(LISTS).join(lists);
    let none = |hint: String| DataError::NoSplit { path: place.to_owned(), split: wanted.to_string(), hint };
    if !folder.is_dir() {
        if wanted != Split::Train {
            return Err(none(format!("without {LISTS}/{lists} all annotated images are the train split")));
        }
        let mut names: Vec<String> = annotated.keys().cloned().collect();
        names.sort();
        if names.is_empty() {
            return Err(DataError::malformed(place, "holds no annotated images"));
        }
        return Ok((Part::Train, None, names));
    }
    for (part, name) in looked_for {
        let file = folder.join(name);
        if !file.is_file() || scope.excludes(&file) {
            continue;
        }
        let bytes = read(&file, root, MAX_LIST)?;
        let text = str::from_utf8(&bytes).map_err(|e| DataError::malformed(&file, e))?;
        // Lists of one class have a second column.
        let names: Vec<String> =
            text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
            return Err(DataError::malformed(&file, format!("names an image twice, {}", escaped(twice))));
        }
        if names.is_empty() {
            return Err(DataError::malformed(&file, "names no image"));
        }
        return Ok((*part, Some(file), names));
    }
    let names: Vec<&str> = looked_for.iter().map(|(_, name)| *name).collect();
    Err(none(format!("looked for {} in {}", names.join(", "), scope.shown(&folder))))
}

/// What an XML file says of its image.
struct Annotation {
    /// Width and height of the image; none where they are said to be 0.
    size: Option<[u32; 2]>,
    objects: Vec<Object>,
}

struct Object {
    name: String,
    edges: [f32; 4],
    is_difficult: bool,
}

/// The child of this name.
fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

impl Annotation {
    fn read(path: &Path, root: &Path) -> Result<Self, DataError> {
        let refuse = |reason: String| DataError::malformed(path, reason);
        let bytes = read(path, root, MAX_XML + 1)?;
        if bytes.len() as u64 > MAX_XML {
            return Err(refuse(format!("an annotation has at most {MAX_XML} bytes")));
        }
        let text = str::from_utf8(&bytes).map_err(|e| refuse(e.to_string()))?;
        let document =
            Document::parse(text.trim_start_matches('\u{feff}')).map_err(|e| refuse(format!("is no XML: {e}")))?;
        let annotation = document.root_element();
        if !annotation.has_tag_name("annotation") {
            return Err(refuse(format!("must hold an <annotation>, not <{}>", escaped(annotation.tag_name().name()))));
        }
        let number = |node: Node<'_, '_>, name: &str| {
            let text = child(node, name).and_then(|child| child.text()).unwrap_or_default().trim();
            let number = text.parse::<f32>().ok().filter(|number| number.is_finite());
            number.ok_or_else(|| refuse(format!("<{name}> must be a number, not {:?}", escaped(text))))
        };
        let size = match child(annotation, "size") {
            Some(size) => Some([number(size, "width")? as u32, number(size, "height")? as u32]),
            None => None,
        };
        let mut objects = Vec::new();
        for object in annotation.children().filter(|child| child.has_tag_name("object")) {
            let name = child(object, "name").and_then(|name| name.text()).unwrap_or_default().trim();
            if name.is_empty() {
                return Err(refuse("an <object> has no <name>".to_owned()));
            }
            let bounds =
                child(object, "bndbox").ok_or_else(|| refuse(format!("object {} has no <bndbox>", escaped(name))))?;
            let [left, top] = [number(bounds, "xmin")? - 1.0, number(bounds, "ymin")? - 1.0];
            let edges = [left, top, number(bounds, "xmax")?, number(bounds, "ymax")?];
            let is_difficult = match child(object, "difficult") {
                Some(_) => number(object, "difficult")? != 0.0,
                None => false,
            };
            objects.push(Object { name: name.to_owned(), edges, is_difficult });
        }
        Ok(Self { size: size.filter(|size| size.iter().all(|side| *side > 0)), objects })
    }

    /// Its objects, whose classes are in `classes`.
    fn boxes(&self, path: &Path, classes: &[String], scope: &Scope) -> Result<Box<[ObjectBox]>, DataError> {
        let mut boxes = Vec::with_capacity(self.objects.len());
        for object in &self.objects {
            let class = classes.iter().position(|class| *class == object.name);
            let class = class.and_then(|class| u32::try_from(class).ok());
            let class =
                class.ok_or_else(|| DataError::malformed(path, format!("no class {}", escaped(&object.name))))?;
            let edges = match self.size {
                Some(size) => {
                    let [width, height] = size;
                    let refuse = || DataError::malformed(path, outside(object.edges, width as usize, height as usize));
                    fitted(object.edges, [width as f32, height as f32]).ok_or_else(refuse)?
                }
                None => object.edges,
            };
            if has_area(edges) {
                boxes.push(ObjectBox::new(edges, class, object.is_difficult));
            } else {
                scope.note("boxes without any area left out", path);
            }
        }
        Ok(boxes.into())
    }
}
