//! Which folders of an image dataset are its splits, and which its classes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::listing::{Entry, Kind, Scope};
use super::splits::{Named, Part, Rank, is_plain, named, names_of, parts_of, words};
use crate::dataset::decode::is_image_name;
use crate::dataset::error::DataError;
use crate::dataset::spec::Split;

/// Folders below a class or split in which an image is looked for.
const MAX_DEPTH: usize = 16;
/// Folders of the split's own or a meaningless name around the classes of a split, as archives have them.
const MAX_WRAPPERS: usize = 4;
/// Where Tiny ImageNet has the classes of its validation images.
const ANNOTATIONS: &str = "val_annotations.txt";
/// Names of a folder around images without classes, beside those that say nothing.
const NO_CLASS: [&str; 5] = ["unknown", "unlabeled", "unlabelled", "all", "others"];

/// How the images of a folder are divided.
#[derive(Debug)]
pub(crate) enum Layout {
    /// Class folders directly in the folder.
    Flat(Vec<PathBuf>),
    /// A folder for each split.
    Splits(Splits),
}

/// The folders that may hold splits.
#[derive(Debug)]
pub(crate) struct Splits {
    root: PathBuf,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Debug)]
struct Candidate {
    folder: PathBuf,
    named: Named,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Folders with images, at whatever depth.
    Classes,
    /// Images alone.
    Images,
    Nothing,
}

/// A split of images.
#[derive(Debug)]
pub(crate) struct SplitFolder {
    pub folder: PathBuf,
    pub part: Part,
    pub labels: Labels,
}

/// How the images of a split get their classes.
#[derive(Debug)]
pub(crate) enum Labels {
    /// By their class folders.
    Folders,
    /// By a file of names and classes.
    Annotations(PathBuf),
}

/// Whether a folder or a folder in it holds an image.
pub(crate) fn holds_image(folder: &Path, scope: &Scope) -> bool {
    holds_image_below(folder, scope, 0)
}

fn holds_image_below(folder: &Path, scope: &Scope, depth: usize) -> bool {
    let entries = scope.peek(folder).unwrap_or_default();
    entries.iter().any(is_image_file)
        || depth < MAX_DEPTH
            && entries
                .iter()
                .any(|entry| entry.is_folder() && !entry.is_link && holds_image_below(&entry.path, scope, depth + 1))
}

fn is_image_file(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::File | Kind::BrokenLink) && is_image_name(&entry.path)
}

/// Whether a folder has an image in it, not only in folders below.
pub(crate) fn holds_image_directly(folder: &Path, scope: &Scope) -> bool {
    scope.peek(folder).is_ok_and(|entries| entries.iter().any(is_image_file))
}

fn content(folder: &Path, scope: &Scope) -> Result<Content, DataError> {
    let entries = scope.peek(folder)?;
    Ok(if entries.iter().any(|entry| entry.is_folder() && may_hold_image(entry, scope)) {
        Content::Classes
    } else if entries.iter().any(is_image_file) {
        Content::Images
    } else {
        Content::Nothing
    })
}

/// The same of a folder's entry. What lies outside of the dataset is not looked at: the reader refuses the link.
fn may_hold_image(entry: &Entry, scope: &Scope) -> bool {
    entry.leads_out || holds_image(&entry.path, scope)
}

/// Looks at a folder; `scope` gets notes of what is left out.
pub(crate) fn layout(folder: &Path, scope: &Scope) -> Result<Layout, DataError> {
    let entries = scope.entries(folder)?;
    for entry in entries.iter().filter(|entry| is_image_file(entry)) {
        scope.note("images outside of class folders left out", &entry.path);
    }
    let folders: Vec<&Entry> = entries.iter().filter(|entry| entry.is_folder()).collect();
    let mut candidates = Vec::new();
    for entry in &folders {
        if let Some(named) = named(&entry.name()) {
            // A link out of the dataset is refused by the reader, which does not look there.
            let content = if entry.leads_out { Content::Classes } else { content(&entry.path, scope)? };
            candidates.push(Candidate { content, folder: entry.path.clone(), named });
        }
    }
    let is_candidate = |path: &Path| candidates.iter().any(|candidate| candidate.folder == path);
    let Some(group) = group(&candidates, folder, scope)? else {
        return flat(folder, &folders, &candidates, scope);
    };
    let (candidates, others): (Vec<_>, Vec<_>) =
        candidates.iter().cloned().partition(|candidate| candidate.group() == group);
    for other in others {
        scope.note("folders of other splits left out", &other.folder);
    }
    for entry in folders.iter().filter(|entry| !is_candidate(&entry.path)) {
        scope.note("folders that are no split left out", &entry.path);
    }
    Ok(Layout::Splits(Splits { root: folder.to_owned(), candidates }))
}

impl Candidate {
    fn is(&self, part: Part, content: Content) -> bool {
        self.named.part == part && self.content == content
    }

    /// What its splits have in common: nothing, or other words in their names.
    fn group(&self) -> &str {
        if self.named.rank < Rank::Other { "" } else { &self.named.group }
    }
}

/// The group of names whose folders are the splits: plain names if there is a train split of them, else other words
/// that a train and another split share, as `chest_train` and `chest_test`. None if there is no train split.
fn group(candidates: &[Candidate], folder: &Path, scope: &Scope) -> Result<Option<String>, DataError> {
    let trains = candidates.iter().filter(|candidate| candidate.is(Part::Train, Content::Classes));
    let mut groups: Vec<&str> = trains.map(Candidate::group).collect();
    groups.sort_unstable();
    groups.dedup();
    if groups.contains(&"") {
        return Ok(Some(String::new()));
    }
    groups.retain(|group| {
        let is_other = |other: &Candidate| {
            other.group() == *group && other.named.part != Part::Train && other.content != Content::Nothing
        };
        candidates.iter().any(is_other)
    });
    match groups.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some((*one).to_owned())),
        _ => {
            let trains: Vec<_> =
                candidates.iter().filter(|candidate| candidate.is(Part::Train, Content::Classes)).collect();
            Err(several(folder, Part::Train, scope, &trains))
        }
    }
}

fn several(folder: &Path, part: Part, scope: &Scope, candidates: &[&Candidate]) -> DataError {
    DataError::Ambiguous {
        path: folder.to_owned(),
        what: format!("several folders for the {} split", part.as_str()),
        remedy: "leave all but one out by data.exclude".to_owned(),
        candidates: scope.all_shown(candidates.iter().map(|candidate| &candidate.folder)),
    }
}

/// A folder without a train split: its folders are the classes of the one split.
fn flat(folder: &Path, folders: &[&Entry], candidates: &[Candidate], scope: &Scope) -> Result<Layout, DataError> {
    let split_like: Vec<&Candidate> =
        candidates.iter().filter(|candidate| candidate.named.rank < Rank::Other).collect();
    let is_split_like = |path: &Path| split_like.iter().any(|candidate| candidate.folder == path);
    let has_classes =
        folders.iter().any(|entry| !is_split_like(&entry.path) && holds_image_directly(&entry.path, scope));
    if split_like.iter().any(|candidate| candidate.content == Content::Classes) {
        // Only other splits than train: nothing says what the folders beside them are.
        let candidates = split_like.into_iter().cloned().collect();
        return Ok(Layout::Splits(Splits { root: folder.to_owned(), candidates }));
    }
    let with_images: Vec<&Candidate> =
        split_like.iter().copied().filter(|candidate| candidate.content == Content::Images).collect();
    let train = with_images.iter().find(|candidate| candidate.named.part == Part::Train);
    let has_other = with_images.iter().any(|candidate| candidate.named.part != Part::Train);
    if let Some(train) = train
        && (has_other || !has_classes)
    {
        let reason = "holds images directly, where a folder for each class is expected: train/CLASS/*.png";
        return Err(DataError::malformed(&train.folder, reason));
    }
    if !has_classes && !with_images.is_empty() {
        let hint = format!(
            "looked for folders {}, found {}, which hold no class folders",
            names_of(Split::Train),
            scope.all_shown(with_images.iter().map(|candidate| &candidate.folder))
        );
        return Err(DataError::NoSplit { path: folder.to_owned(), split: Split::Train.to_string(), hint });
    }
    let is_no_class =
        |path: &Path| with_images.iter().any(|other| other.named.part != Part::Train && other.folder == path);
    for candidate in &with_images {
        let kind = match candidate.named.part {
            Part::Train => "named as a split, taken for a class, as it holds images beside classes",
            _ => {
                "named as a split without class folders, left out and no class (if it is one, put all classes into a \
                 folder train)"
            }
        };
        scope.note(kind, &candidate.folder);
    }
    let classes: Vec<PathBuf> =
        folders.iter().map(|entry| entry.path.clone()).filter(|path| !is_no_class(path)).collect();
    Ok(Layout::Flat(classes))
}

/// Refuses class folders that have splits inside, as `cat/train` and `cat/test`: they would all be learnt from.
pub(crate) fn check_no_inner_splits(folder: &Path, classes: &[PathBuf], scope: &Scope) -> Result<(), DataError> {
    for class in classes {
        let exact = |entry: &Entry| named(&entry.name()).filter(|named| named.rank == Rank::Exact);
        let inner: Vec<Part> = scope.folders(class).iter().filter_map(exact).map(|named| named.part).collect();
        if inner.contains(&Part::Train) && inner.iter().any(|part| *part != Part::Train) {
            return Err(DataError::Ambiguous {
                path: folder.to_owned(),
                what: "folders with splits of their own".to_owned(),
                remedy: "choose data.path from them, or put classes into the splits, as train/CLASS/*.png".to_owned(),
                candidates: scope.all_shown(classes),
            });
        }
    }
    Ok(())
}

impl Splits {
    /// The folder of the train split.
    pub fn train(&self, scope: &Scope) -> Result<Option<SplitFolder>, DataError> {
        let Some(train) = self.best(Part::Train, scope)? else {
            return Ok(None);
        };
        let folder = unwrapped(&train.folder, Part::Train, scope);
        Ok(Some(SplitFolder { folder, part: Part::Train, labels: Labels::Folders }))
    }

    /// The folder that serves as the test split, and why others do not, one line each. `classes` are the names of the
    /// train split's.
    pub fn held_out(
        &self,
        wanted: Split,
        classes: &[&OsStr],
        scope: &Scope,
    ) -> Result<(Option<SplitFolder>, Vec<String>), DataError> {
        let mut refused = Vec::new();
        for &part in parts_of(wanted) {
            let Some(candidate) = self.best(part, scope)? else {
                let empty = self.candidates.iter().filter(|candidate| candidate.named.part == part);
                let line = |path| format!("{} holds no images, it is not used as a test split", scope.shown(path));
                refused.extend(empty.map(|candidate| line(&candidate.folder)));
                continue;
            };
            let folder = unwrapped(&candidate.folder, part, scope);
            match labels(&folder, part, classes, scope) {
                Some(labels) => return Ok((Some(SplitFolder { folder, part, labels }), refused)),
                None => refused.push(format!(
                    "the images of {} have no classes, it is not used as a test split",
                    scope.shown(&candidate.folder)
                )),
            }
        }
        Ok((None, refused))
    }

    /// The folders of all splits, for messages.
    pub fn present(&self, scope: &Scope) -> String {
        scope.all_shown(self.candidates.iter().map(|candidate| &candidate.folder))
    }

    /// The plainest folder of a part that holds images; those with classes before others.
    fn best(&self, part: Part, scope: &Scope) -> Result<Option<&Candidate>, DataError> {
        let mut of_part: Vec<&Candidate> = self
            .candidates
            .iter()
            .filter(|candidate| candidate.named.part == part && candidate.content != Content::Nothing)
            .filter(|candidate| part != Part::Train || candidate.content == Content::Classes)
            .collect();
        let Some(best) = of_part.iter().map(|candidate| candidate.named.rank).min() else {
            return Ok(None);
        };
        for other in of_part.iter().filter(|candidate| candidate.named.rank > best) {
            scope.note("folders of other splits left out", &other.folder);
        }
        of_part.retain(|candidate| candidate.named.rank == best);
        if of_part.iter().any(|candidate| candidate.content == Content::Classes) {
            of_part.retain(|candidate| candidate.content == Content::Classes);
        }
        match of_part.as_slice() {
            [one] => Ok(Some(one)),
            _ => Err(several(&self.root, part, scope, &of_part)),
        }
    }
}

/// The folder in which the classes of a split are: archives unpack to `seg_train/seg_train`, `train/images/CLASS`.
fn unwrapped(folder: &Path, part: Part, scope: &Scope) -> PathBuf {
    let mut at = folder.to_owned();
    for _ in 0..MAX_WRAPPERS {
        // The reader refuses a link out of the dataset.
        if !scope.holds(&at) {
            break;
        }
        if holds_image_directly(&at, scope) {
            break;
        }
        let mut inner = scope.folders(&at);
        inner.retain(|entry| may_hold_image(entry, scope));
        let [one] = inner.as_slice() else { break };
        if one.is_link {
            break;
        }
        let is_own = named(&one.name()).is_some_and(|named| named.part == part);
        let is_wrapper = match content(&one.path, scope).unwrap_or(Content::Nothing) {
            Content::Classes => (is_own || says_nothing(&one.name())) && !holds_image_directly(&one.path, scope),
            Content::Images => is_own && part != Part::Train,
            Content::Nothing => false,
        };
        if !is_wrapper {
            break;
        }
        at.clone_from(&one.path);
    }
    at
}

/// Whether a name consists of words that say nothing of what is in the folder.
pub(crate) fn says_nothing(name: &str) -> bool {
    let words = words(name);
    words.iter().all(|word| is_plain(word)) && words.iter().any(|word| word.starts_with(char::is_alphabetic))
}

/// How the images of a split that is not train get their classes; none if they have none.
fn labels(folder: &Path, part: Part, classes: &[&OsStr], scope: &Scope) -> Option<Labels> {
    if !scope.holds(folder) {
        return Some(Labels::Folders);
    }
    let mut inner = scope.folders(folder);
    inner.retain(|entry| may_hold_image(entry, scope));
    if inner.iter().any(|entry| entry.path.file_name().is_some_and(|name| classes.contains(&name))) {
        return Some(Labels::Folders);
    }
    let annotations = folder.join(ANNOTATIONS);
    if Kind::at(&annotations).is_ok_and(|kind| kind == Kind::File) && !scope.excludes(&annotations) {
        return Some(Labels::Annotations(annotations));
    }
    match inner.as_slice() {
        [] => None,
        [one] => {
            let name = one.name();
            let is_own = named(&name).is_some_and(|named| named.part == part);
            let is_no_class = is_own || says_nothing(&name) || NO_CLASS.contains(&name.to_lowercase().as_str());
            (!is_no_class).then_some(Labels::Folders)
        }
        // Classes that train lacks, which the reader refuses by name.
        _ => Some(Labels::Folders),
    }
}
