//! A folder of image files a class: `root/train/<class>/...` and `root/test/<class>/...`, or `root/<class>/...` alone.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dataset::decode::resize::into_channels;
use crate::dataset::decode::{Decoder, EXTENSIONS, is_image_name};
use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::formats::image_files::{inside, read, survey};
use crate::dataset::labels::classes::name_of_bytes;
use crate::dataset::layout::folders::{
    Labels, Layout, SplitFolder, check_no_inner_splits, holds_image, holds_image_directly, layout, says_nothing,
};
use crate::dataset::layout::listing::{Entry, Kind, Scope, file_name, name_of};
use crate::dataset::layout::notes::escaped;
use crate::dataset::layout::splits::{Part, names_of};
use crate::dataset::sample::{Dataset, DatasetInfo, Sample, check_index};
use crate::dataset::spec::{DatasetSpec, FormatName, Split};

const MAX_DEPTH: usize = 16;
/// More bytes than this are no file of annotations.
const MAX_ANNOTATIONS: u64 = 256 << 20;
/// The format of one folder of images a class.
pub(crate) struct ImageFolder;

impl ImageFolder {
    pub(crate) const NAME: FormatName = FormatName::new("image-folder");
}

impl Format for ImageFolder {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "A folder of PNG, JPEG, WebP, BMP, TIFF or GIF files for each class."
    }

    fn looked_for(&self) -> Option<String> {
        Some(format!("class folders of images ({})", EXTENSIONS.join(", ")))
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        Ok(likeness(folder, scope))
    }

    fn has_configurations(&self) -> bool {
        true
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open(place, spec, scope)
    }
}

/// Whether a folder's own folders look like a dataset of images, and how surely.
fn likeness(folder: &Path, scope: &Scope) -> Likeness {
    match layout(folder, scope) {
        Ok(Layout::Splits(_)) | Err(DataError::Ambiguous { .. } | DataError::Malformed { .. }) => {
            Likeness::SplitFolders
        }
        Err(DataError::NoSplit { .. }) => Likeness::OneSplit,
        Ok(Layout::Flat(classes)) => {
            let is_class = |class: &&PathBuf| {
                let wrapped = || {
                    let inner = scope.folders(class);
                    inner.iter().any(|entry| says_nothing(&entry.name()) && holds_image_directly(&entry.path, scope))
                };
                holds_image_directly(class, scope) || wrapped()
            };
            match classes.iter().filter(is_class).take(2).count() {
                0 => Likeness::None,
                1 => Likeness::Doubtful,
                _ => Likeness::OneSplit,
            }
        }
        Err(_) => Likeness::None,
    }
}

struct FolderDataset {
    info: DatasetInfo,
    root: PathBuf,
    files: Vec<(PathBuf, i32)>,
    decoder: Decoder,
    notes: Vec<String>,
}

/// What is gathered of a split.
#[derive(Debug, Default)]
struct Found {
    split: String,
    files: Vec<(PathBuf, i32)>,
}

/// Why there is no split.
fn no_split(path: &Path, wanted: Split, hint: String) -> DataError {
    DataError::NoSplit { path: path.to_owned(), split: wanted.to_string(), hint }
}

fn open(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    if let Some(column) = &spec.label_column {
        let allowed = "absent for image-folder, whose labels are its folders".to_owned();
        return Err(DataError::Setting { key: "label_column", allowed, value: format!("{column:?}") });
    }
    if !path.is_dir() {
        return Err(no_split(path, spec.split, "image-folder needs a folder, not a file".to_owned()));
    }
    let root = path.canonicalize().map_err(|e| DataError::read(path, e))?;
    let place = Place { root: &root, scope };
    let Chosen { folder, part, classes, annotations } = place.chosen(path, spec.split)?;
    let class_names: Vec<String> = classes.iter().map(|class| class_name(class)).collect();
    let mut distinct = class_names.clone();
    distinct.sort();
    if let Some(twice) = distinct.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(DataError::malformed(&folder, format!("two class folders are both called {:?}", twice[0])));
    }
    let mut found = Found { split: part.as_str().to_owned(), ..Found::default() };
    if let Some(file) = annotations {
        let label_of = |name: &OsStr| classes.iter().position(|class| class.file_name() == Some(name));
        place.collect_annotated(&folder, &file, &label_of, &mut found)?;
    } else {
        for (label, class) in classes.iter().enumerate() {
            place.collect(class, label_number(label, path)?, 0, &mut found)?;
        }
    }
    let Found { files, split } = found;
    if files.is_empty() {
        return Err(DataError::malformed(&folder, "no class folders with images"));
    }
    let survey = survey(files.iter().map(|(path, _)| path.as_path()), &root, spec);
    let info = DatasetInfo {
        // The folder that was named, even where the splits lie deeper.
        name: file_name(spec.path.as_deref().unwrap_or(path)),
        format: ImageFolder::NAME.to_string(),
        split,
        num_samples: files.len(),
        class_names,
        label_column: None,
        image_size: survey.image_size(),
        channels: survey.channels(),
    };
    Ok(Arc::new(FolderDataset { info, root, files, decoder: spec.decoder(), notes: scope.lines() }))
}

fn label_number(label: usize, path: &Path) -> Result<i32, DataError> {
    i32::try_from(label).map_err(|_| DataError::malformed(path, "too many class folders"))
}

/// The class of a folder, by the bytes of its name: a name that is not UTF-8 stays a name of its own.
fn class_name(class: &Path) -> String {
    name_of_bytes(class.file_name().unwrap_or_default().as_encoded_bytes())
}

/// A split with the folders whose names are its classes: its own, or the train split's where a file has the classes of
/// its images.
struct Chosen {
    folder: PathBuf,
    part: Part,
    classes: Vec<PathBuf>,
    annotations: Option<PathBuf>,
}

/// A dataset's canonical folder, which no link may leave, and what of it is looked at.
struct Place<'a> {
    root: &'a Path,
    scope: &'a Scope,
}

impl Place<'_> {
    /// The split that is wanted.
    fn chosen(&self, path: &Path, wanted: Split) -> Result<Chosen, DataError> {
        let scope = self.scope;
        let of_train = |folder: &Path, classes| {
            Ok(Chosen { folder: folder.to_owned(), part: Part::Train, classes, annotations: None })
        };
        let splits = match layout(path, scope)? {
            Layout::Splits(splits) => splits,
            Layout::Flat(folders) if wanted == Split::Train => {
                check_no_inner_splits(path, &folders, scope)?;
                return of_train(path, self.classes_of(folders)?);
            }
            Layout::Flat(_) => {
                let hint = "class folders directly in it are one split, train; make folders train/<class> and \
                    test/<class> for two";
                return Err(no_split(path, wanted, hint.to_owned()));
            }
        };
        let none = || format!("looked for folders {}, found {}", names_of(wanted), splits.present(scope));
        let train = splits.train(scope)?;
        let classes = match &train {
            Some(train) => self.class_folders(&train.folder)?,
            None if wanted == Split::Train => return Err(no_split(path, wanted, none())),
            // A test split alone has classes of its own.
            None => Vec::new(),
        };
        let names: Vec<&OsStr> = classes.iter().filter_map(|class| class.file_name()).collect();
        // The notes of the train split say what is wrong with the other one.
        let other = if wanted == Split::Train { Split::Test } else { wanted };
        let (test, refused) = splits.held_out(other, &names, scope)?;
        if let Some((train, test)) = train.as_ref().zip(test.as_ref()) {
            self.check_apart(&train.folder, &test.folder)?;
        }
        match (train, test) {
            (Some(train), _) if wanted == Split::Train => {
                refused.into_iter().for_each(|line| scope.say(line));
                of_train(&train.folder, classes)
            }
            (_, Some(SplitFolder { folder, part, labels })) => {
                refused.into_iter().for_each(|line| scope.say(line));
                let (classes, annotations) = match labels {
                    Labels::Folders => (self.class_folders(&folder)?, None),
                    Labels::Annotations(file) => (classes, Some(file)),
                };
                Ok(Chosen { folder, part, classes, annotations })
            }
            _ => Err(no_split(path, wanted, [none()].into_iter().chain(refused).collect::<Vec<_>>().join("; "))),
        }
    }

    /// Two splits that are one folder by a link would be judged on what they learned.
    fn check_apart(&self, train: &Path, test: &Path) -> Result<(), DataError> {
        let (train_at, test_at) = (inside(train, self.root)?, inside(test, self.root)?);
        if train_at.starts_with(&test_at) || test_at.starts_with(&train_at) {
            return Err(DataError::malformed(test, format!("is a link into another split, {}", train_at.display())));
        }
        Ok(())
    }

    /// The class folders of a split, sorted by name.
    fn class_folders(&self, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
        inside(folder, self.root)?;
        let mut classes = Vec::new();
        for entry in self.scope.entries(folder)? {
            match entry.kind {
                Kind::Folder => classes.push(entry.path),
                Kind::File if is_image_name(&entry.path) => {
                    self.scope.note("images outside of class folders left out", &entry.path);
                }
                Kind::File => {}
                Kind::Special(_) | Kind::BrokenLink => self.note_odd(&entry),
            }
        }
        self.classes_of(classes)
    }

    /// Those of a split's folders that are classes: no circles of links, no folders without images.
    fn classes_of(&self, folders: Vec<PathBuf>) -> Result<Vec<PathBuf>, DataError> {
        let (mut classes, mut places) = (Vec::new(), Vec::<(PathBuf, PathBuf)>::new());
        for class in folders {
            let is_link = class.is_symlink();
            // A link out of the root is refused before anything there is looked at.
            let target = if is_link { inside(&class, self.root)? } else { class.clone() };
            let parent = class.parent().and_then(|parent| parent.canonicalize().ok());
            if is_link && parent.is_some_and(|parent| parent.starts_with(&target)) {
                self.scope.note("links to folders around them, not followed", &class);
            } else if !holds_image(&class, self.scope) {
                // One that cannot be read is no empty one.
                self.scope.peek(&class)?;
                self.scope.note("folders without images, no classes", &class);
            } else {
                if is_link || places.iter().any(|(of, _)| of.is_symlink()) {
                    let target = inside(&class, self.root)?;
                    let same = places.iter().find(|(_, other)| target.starts_with(other) || other.starts_with(&target));
                    if let Some((other, _)) = same {
                        let reason = format!("has the images of another class, {}", name_of(other));
                        return Err(DataError::malformed(&class, reason));
                    }
                }
                places.push((class.clone(), class.canonicalize().unwrap_or_else(|_| class.clone())));
                classes.push(class);
            }
        }
        Ok(classes)
    }

    fn note_odd(&self, entry: &Entry) {
        match entry.kind {
            Kind::Special(kind) => self.scope.note(&format!("skipped, a {kind} and no file"), &entry.path),
            _ => self.scope.note("links that lead nowhere skipped", &entry.path),
        }
    }

    /// Images of a class folder and the folders in it. Links to folders are not followed: they could lead to another
    /// class.
    fn collect(&self, folder: &Path, label: i32, depth: usize, found: &mut Found) -> Result<(), DataError> {
        if depth > MAX_DEPTH {
            return Err(DataError::malformed(folder, format!("folders must be at most {MAX_DEPTH} deep")));
        }
        for entry in self.scope.entries(folder)? {
            let path = &entry.path;
            if entry.is_link && entry.kind != Kind::BrokenLink {
                inside(path, self.root)?;
            }
            match entry.kind {
                Kind::Folder if entry.is_link => {
                    self.scope.note(&format!("links to folders not followed in the {} split", found.split), path);
                }
                Kind::Folder => self.collect(path, label, depth + 1, found)?,
                Kind::File if is_image_name(path) => found.files.push((entry.path, label)),
                Kind::File => {
                    let known = EXTENSIONS.join(", ");
                    self.scope.note(&format!("files skipped in the {} split (not {known})", found.split), path);
                }
                Kind::BrokenLink if is_image_name(path) => {
                    return Err(DataError::malformed(path, "is a link that leads nowhere"));
                }
                Kind::Special(_) | Kind::BrokenLink => self.note_odd(&entry),
            }
        }
        Ok(())
    }

    /// Images of a split whose classes are in a file: a name, a tab, its class, and what else there is (Tiny ImageNet's
    /// boxes).
    fn collect_annotated(
        &self,
        folder: &Path,
        file: &Path,
        label_of: &dyn Fn(&OsStr) -> Option<usize>,
        found: &mut Found,
    ) -> Result<(), DataError> {
        let bytes = read(file, self.root, MAX_ANNOTATIONS)?;
        let text = str::from_utf8(&bytes).map_err(|e| DataError::malformed(file, e))?;
        let mut labels = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let refuse = |reason: String| DataError::malformed(file, format!("line {}: {reason}", number + 1));
            let mut fields = line.split('\t').map(str::trim);
            let (Some(name), Some(class)) = (fields.next(), fields.next()) else {
                return Err(refuse(format!("must be an image's name, a tab and its class, not {}", escaped(line))));
            };
            let label = label_of(OsStr::new(class))
                .ok_or_else(|| refuse(format!("class without a folder in the train split, {}", escaped(class))))?;
            if labels.insert(name.to_owned(), label_number(label, folder)?).is_some() {
                return Err(refuse(format!("a second line for {}", escaped(name))));
            }
        }
        let mut images = Found { split: found.split.clone(), ..Found::default() };
        let inner = folder.join("images");
        self.collect(if inner.is_dir() { &inner } else { folder }, 0, 0, &mut images)?;
        for (path, _) in images.files {
            let label = labels.remove(&name_of(&path));
            let label =
                label.ok_or_else(|| DataError::malformed(&path, format!("has no line in {}", name_of(file))))?;
            found.files.push((path, label));
        }
        match labels.into_keys().min() {
            Some(absent) => {
                Err(DataError::malformed(file, format!("names an image that is absent, {}", escaped(&absent))))
            }
            None => Ok(()),
        }
    }
}

impl Dataset for FolderDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn resident_bytes(&self) -> u64 {
        let names = self.files.iter().map(|(path, _)| path.as_os_str().len() + size_of::<(PathBuf, i32)>());
        names.sum::<usize>() as u64
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn files(&self) -> Vec<&Path> {
        self.files.iter().map(|(path, _)| path.as_path()).collect()
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        check_index(&self.info, index)?;
        Ok(Some(self.files[index].1))
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        let (path, label) = &self.files[index];
        // One byte more than allowed is enough for the decoder to refuse the rest.
        let bytes = read(path, &self.root, self.decoder.limits.max_bytes as u64 + 1)?;
        let image = self.decoder.decode(&bytes).map_err(|source| DataError::Decode {
            path: path.clone(),
            sample: index,
            source,
        })?;
        if image.channels > self.info.channels {
            return Err(DataError::sample(path, index, "is in colour, while all images were grey at the beginning"));
        }
        Ok(Sample::of_class(index as i64, into_channels(image, self.info.channels), Some(*label)))
    }
}
