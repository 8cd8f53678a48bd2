//! Folders as readers see them: without hidden and system files, without what `data.exclude` names, and with the kind
//! of every entry known before anything is opened (a fifo would block its reader for ever).

use std::cell::RefCell;
use std::fs::{FileType, Metadata};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use super::notes::{Notes, shown};
use super::splits::{Shard, strip_extension};
use crate::dataset::error::DataError;

/// Folders and files that operating systems and tools leave in every folder; in lower case. Hidden ones are known by
/// their dot.
const SYSTEM_NAMES: [&str; 12] = [
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "__pycache__",
    "desktop.ini",
    "icon\r",
];
const EXCLUDED: &str = "left out by data.exclude";
/// Folders deeper than this are not searched for what an exclusion matches.
const MAX_DEPTH: usize = 16;

/// What an entry of a folder is; links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    File,
    /// Neither: its name.
    Special(&'static str),
    /// A link that leads nowhere, or in a circle.
    BrokenLink,
}

/// An entry of a folder.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub path: PathBuf,
    pub kind: Kind,
    pub is_link: bool,
    /// A link to a folder that is not below the dataset's own.
    pub leads_out: bool,
}

impl Entry {
    pub fn is_folder(&self) -> bool {
        self.kind == Kind::Folder
    }

    /// The last component of its path.
    pub fn name(&self) -> String {
        name_of(&self.path)
    }
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Last component of a path, for messages and names.
pub(crate) fn file_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
}

impl Kind {
    fn of(kind: FileType) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;
            let special = [
                (kind.is_fifo(), "fifo"),
                (kind.is_socket(), "socket"),
                (kind.is_char_device(), "device"),
                (kind.is_block_device(), "device"),
            ];
            if let Some((_, name)) = special.into_iter().find(|(is, _)| *is) {
                return Self::Special(name);
            }
        }
        match (kind.is_dir(), kind.is_file()) {
            (true, _) => Self::Folder,
            (_, true) => Self::File,
            _ => Self::Special("special file"),
        }
    }

    /// What is at a path.
    pub fn at(path: &Path) -> Result<Self, DataError> {
        path.metadata().map(|metadata| Self::of_metadata(&metadata)).map_err(|e| DataError::read(path, e))
    }

    /// The same, where a link that leads nowhere is a kind of its own.
    pub fn of_path(path: &Path) -> Result<Self, DataError> {
        match path.metadata() {
            Ok(metadata) => Ok(Self::of_metadata(&metadata)),
            Err(_) if path.is_symlink() => Ok(Self::BrokenLink),
            Err(e) => Err(DataError::read(path, e)),
        }
    }

    fn of_metadata(metadata: &Metadata) -> Self {
        Self::of(metadata.file_type())
    }
}

/// What of a dataset's folder is looked at, and what was left out.
#[derive(Debug)]
pub struct Scope {
    root: PathBuf,
    exclude: Vec<Pattern>,
    /// Which exclusions have matched.
    used: RefCell<Vec<bool>>,
    notes: RefCell<Notes>,
}

impl Scope {
    /// Everything below `root` but what `exclude` names.
    pub(crate) fn new(root: &Path, exclude: &[String]) -> Result<Self, DataError> {
        let exclude = exclude.iter().map(|text| pattern(text)).collect::<Result<Vec<_>, _>>()?;
        let used = RefCell::new(vec![false; exclude.len()]);
        Ok(Self { root: root.to_owned(), exclude, used, notes: RefCell::default() })
    }

    /// Adds a path to the notes.
    pub(crate) fn note(&self, kind: &str, path: &Path) {
        self.notes.borrow_mut().add(kind, shown(path, &self.root));
    }

    /// Adds a line to the notes.
    pub(crate) fn say(&self, line: String) {
        self.notes.borrow_mut().say(line);
    }

    /// A path relative to the root, as it is shown.
    pub(crate) fn shown(&self, path: &Path) -> String {
        shown(path, &self.root)
    }

    /// Paths relative to the root, as they are shown.
    pub(crate) fn all_shown<'p>(&self, paths: impl IntoIterator<Item = &'p PathBuf>) -> String {
        let mut names: Vec<_> = paths.into_iter().map(|path| self.shown(path)).collect();
        let more = names.len().saturating_sub(8);
        names.truncate(8);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", names.join(", "))
    }

    /// Whether an exclusion names the path or a folder in which it lies.
    pub(crate) fn excludes(&self, path: &Path) -> bool {
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return false;
        };
        let steps: Vec<&Path> = relative.ancestors().filter(|step| !step.as_os_str().is_empty()).collect();
        let mut is_excluded = false;
        for (pattern, used) in self.exclude.iter().zip(self.used.borrow_mut().iter_mut()) {
            if steps.iter().any(|step| matches(pattern, step)) {
                (is_excluded, *used) = (true, true);
            }
        }
        is_excluded
    }

    /// Whether a path, its links followed, is below the root.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().ok();
        real(path).zip(real(&self.root)).is_some_and(|(path, root)| path.starts_with(root))
    }

    /// The entries of a folder, sorted by their names, without hidden, system and excluded ones. Silent about these.
    pub(crate) fn peek(&self, folder: &Path) -> Result<Vec<Entry>, DataError> {
        self.read(folder, &mut |_, _| {})
    }

    /// The same, and notes what it leaves out.
    pub(crate) fn entries(&self, folder: &Path) -> Result<Vec<Entry>, DataError> {
        self.read(folder, &mut |kind, path| self.note(kind, path))
    }

    /// The same, and notes what exclusions leave out: where hidden files are usual and cannot be meant.
    pub(crate) fn visible(&self, folder: &Path) -> Result<Vec<Entry>, DataError> {
        self.read(folder, &mut |kind, path| {
            if kind == EXCLUDED {
                self.note(kind, path)
            }
        })
    }

    fn read(&self, folder: &Path, left_out: &mut dyn FnMut(&str, &Path)) -> Result<Vec<Entry>, DataError> {
        let failed = |e| DataError::read(folder, e);
        let mut listed = folder.read_dir().map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        listed.sort_by_key(std::fs::DirEntry::path);
        let mut entries = Vec::new();
        for entry in listed {
            let path = entry.path();
            if is_system_name(&name_of(&path)) {
                left_out("hidden or system files and folders skipped", &path);
                continue;
            }
            if self.excludes(&path) {
                left_out(EXCLUDED, &path);
                continue;
            }
            let own = entry.file_type().map_err(failed)?;
            let kind = match own.is_symlink() {
                true => path.metadata().map_or(Kind::BrokenLink, |target| Kind::of_metadata(&target)),
                false => Kind::of(own),
            };
            let leads_out = own.is_symlink() && kind == Kind::Folder && !self.holds(&path);
            entries.push(Entry { path, kind, is_link: own.is_symlink(), leads_out });
        }
        Ok(entries)
    }

    /// The folders in a folder; none if it cannot be read.
    pub(crate) fn folders(&self, folder: &Path) -> Vec<Entry> {
        let mut entries = self.peek(folder).unwrap_or_default();
        entries.retain(Entry::is_folder);
        entries
    }

    /// The notes, one line a kind, with one about exclusions that match nothing.
    pub(crate) fn lines(&self) -> Vec<String> {
        let unused: Vec<usize> = (0..self.exclude.len()).filter(|at| !self.used.borrow()[*at]).collect();
        if !unused.is_empty() {
            // A split that is not open may hold what they mean.
            self.search(&self.root, 0);
        }
        for at in unused {
            if !self.used.borrow()[at] {
                self.notes.borrow_mut().add("data.exclude matches nothing", format!("{:?}", self.exclude[at].as_str()));
            }
        }
        self.notes.borrow().lines()
    }

    /// Looks for matches of exclusions that have none yet.
    fn search(&self, folder: &Path, depth: usize) {
        if depth > MAX_DEPTH || self.used.borrow().iter().all(|used| *used) {
            return;
        }
        for entry in self.peek(folder).unwrap_or_default() {
            if entry.is_folder() && !entry.is_link {
                self.search(&entry.path, depth + 1);
            }
        }
    }
}

/// The first of `folder` and its named subfolders which satisfies a test.
pub(crate) fn folder_with(folder: &Path, subfolders: &[&str], test: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    std::iter::once(folder.to_owned()).chain(subfolders.iter().map(|name| folder.join(name))).find(|place| test(place))
}

/// Whether a name is hidden or one of an operating system's own.
pub(crate) fn is_system_name(name: &str) -> bool {
    name.starts_with('.') || SYSTEM_NAMES.iter().any(|known| name.to_lowercase() == *known)
}

/// A pattern with a slash is matched against the path relative to the root, one without against the last name, and for
/// a Parquet file against that without its extension, number and total.
fn matches(pattern: &Pattern, relative: &Path) -> bool {
    let options =
        MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };
    let is = |text: &str| pattern.matches_with(text, options);
    if pattern.as_str().trim_end_matches('/').contains('/') {
        return pattern.matches_path_with(relative, options);
    }
    let name = name_of(relative);
    is(&name) || strip_extension(&name).is_some_and(is) || Shard::read(&name).is_some_and(|shard| is(&shard.stem))
}

fn pattern(text: &str) -> Result<Pattern, DataError> {
    let refuse = |why: String| DataError::Setting {
        key: "data.exclude",
        allowed: format!("names or patterns with * and ? relative to data.path{why}"),
        value: format!("{text:?}"),
    };
    let plain = text.trim_start_matches("./").trim_end_matches('/');
    if plain.is_empty() || plain.starts_with('/') || plain.split('/').any(|part| part == "..") {
        return Err(refuse(String::new()));
    }
    Pattern::new(plain).map_err(|e| refuse(format!(" ({})", e.msg)))
}

/// What is wrong with a list of exclusions.
///
/// # Errors
/// [`DataError::Setting`] about the first pattern that cannot be read.
pub fn check_exclude(exclude: &[String]) -> Result<(), DataError> {
    exclude.iter().try_for_each(|text| pattern(text).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusions_match_names_anywhere_and_paths_from_the_root() {
        for (text, path, expected) in [
            ("train_noisy", "train_noisy.parquet", true),
            ("train_noisy", "data/train_noisy-00001-of-00002.parquet", true),
            ("train_noisy", "train.parquet", false),
            ("train", "train_noisy.parquet", false),
            ("extra*", "train/extra_1", true),
            ("extra*", "train/ant/extra.png", true),
            ("train/ant", "train/ant/1.png", true),
            ("train/ant", "test/ant/1.png", false),
            ("ant/", "train/ant/1.png", true),
            ("train/*", "train/ant/1.png", true),
            ("*/1.png", "train/ant/1.png", false),
            ("**/1.png", "train/ant/1.png", true),
            ("Test", "test/x.png", false),
        ] {
            let scope = Scope::new(Path::new("/data"), &[text.to_owned()]).unwrap();
            assert_eq!(scope.excludes(&Path::new("/data").join(path)), expected, "{text} on {path}");
            assert!(!scope.excludes(Path::new("/elsewhere/train")));
        }
        for text in ["", "/", "/data/x", "../x", "a***b", "[", "a/../b"] {
            let error = check_exclude(&[text.to_owned()]).unwrap_err();
            assert!(error.to_string().starts_with("data.exclude must be names or patterns"), "{error}");
        }
    }
}
