//! A folder of PNG or JPEG files a class: `root/train/<class>/...` and `root/test/<class>/...`, or `root/<class>/...` alone.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::classes::name_of_bytes;
use super::hf_parquet::split_names;
use super::raw::Survey;
use super::resize::into_channels;
use super::{
    DataError, Dataset, DatasetInfo, DatasetSpec, DecodeLimits, Format, Sample, Split, check_index, decode, file_name,
};

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];
const MAX_DEPTH: usize = 16;
/// Files whose headers decide the dataset's size and channels.
const MAX_SURVEYED: usize = 4096;
/// Enough for a header behind a usual EXIF segment.
const HEADER_LEN: u64 = 128 << 10;

struct FolderDataset {
    info: DatasetInfo,
    root: PathBuf,
    files: Vec<(PathBuf, i32)>,
    limits: DecodeLimits,
    skipped: Skipped,
}

/// What was passed over in the class folders.
#[derive(Debug, Default)]
struct Skipped {
    num_files: usize,
    /// The first of them.
    file: Option<PathBuf>,
    num_links: usize,
    link: Option<PathBuf>,
}

/// What is gathered from the class folders.
#[derive(Debug, Default)]
struct Found {
    files: Vec<(PathBuf, i32)>,
    skipped: Skipped,
}

fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|ext| EXTENSIONS.iter().any(|known| ext.eq_ignore_ascii_case(known)))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Entries of a folder, sorted, without hidden ones.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let listing = folder.read_dir().map_err(|e| DataError::read(folder, e))?;
    let mut paths = listing
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| DataError::read(folder, e))?;
    paths.retain(|path| !is_hidden(path));
    paths.sort();
    Ok(paths)
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    entries(folder).unwrap_or_default().into_iter().filter(|path| path.is_dir()).collect()
}

/// Folders named as the splits of a dataset, in `root`.
fn split_folders(root: &Path) -> Vec<PathBuf> {
    // The names of the test split are those of the validation split too.
    let names = [Split::Train, Split::Test].into_iter().flat_map(split_names);
    names.map(|name| root.join(name)).filter(|folder| folder.is_dir() && !subfolders(folder).is_empty()).collect()
}

/// True when some folder one or two levels down holds an image.
pub(crate) fn has_class_folders(root: &Path) -> bool {
    let holds_image = |folder: &PathBuf| entries(folder).is_ok_and(|paths| paths.iter().any(|path| is_image(path)));
    let splits = split_folders(root);
    if splits.is_empty() {
        subfolders(root).iter().any(holds_image)
    } else {
        splits.iter().any(|split| subfolders(split).iter().any(holds_image))
    }
}

/// The folder of a split and its stored name.
fn split_folder(root: &Path, wanted: Split) -> Result<(PathBuf, String), DataError> {
    if !root.is_dir() {
        let hint = "image-folder needs a folder, not a file".to_owned();
        return Err(DataError::NoSplit { path: root.to_owned(), split: wanted.to_string(), hint });
    }
    let splits = split_folders(root);
    for name in split_names(wanted) {
        if let Some(folder) = splits.iter().find(|folder| folder.ends_with(name)) {
            return Ok((folder.clone(), (*name).to_owned()));
        }
    }
    let hint = if !splits.is_empty() {
        let present: Vec<_> = splits.iter().map(|folder| file_name(folder)).collect();
        format!("looked for folders {}, found {}", split_names(wanted).join(", "), present.join(", "))
    } else if wanted == Split::Train {
        return Ok((root.to_owned(), "train".to_owned()));
    } else {
        "class folders directly in it are one split, train; make folders train/<class> and test/<class> for two"
            .to_owned()
    };
    Err(DataError::NoSplit { path: root.to_owned(), split: wanted.to_string(), hint })
}

pub(crate) fn open(path: &Path, spec: &DatasetSpec) -> Result<Arc<dyn Dataset>, DataError> {
    if let Some(column) = &spec.label_column {
        let allowed = "absent for image-folder, whose labels are its folders".to_owned();
        return Err(DataError::Setting { key: "label_column", allowed, value: format!("{column:?}") });
    }
    let (folder, split) = split_folder(path, spec.split)?;
    let root = path.canonicalize().map_err(|e| DataError::read(path, e))?;
    let classes = class_folders(&folder, &root)?;
    let class_names: Vec<String> = classes.iter().map(|class| name_of(class)).collect();
    let mut distinct = class_names.clone();
    distinct.sort();
    if let Some(twice) = distinct.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(DataError::malformed(&folder, format!("two class folders are both called {:?}", twice[0])));
    }
    let mut found = Found::default();
    for (class, label) in classes.iter().zip(0..) {
        let before = found.files.len();
        collect(class, &root, label, 0, &mut found)?;
        if found.files.len() == before {
            return Err(DataError::malformed(
                class,
                format!("class folder without images ({})", EXTENSIONS.join(", ")),
            ));
        }
    }
    let Found { files, skipped } = found;
    if files.is_empty() {
        return Err(DataError::malformed(&folder, "no class folders with images"));
    }
    let mut survey = Survey::default();
    for (file, _) in files.iter().step_by(files.len().div_ceil(MAX_SURVEYED)) {
        survey.add(read(file, &root, HEADER_LEN).ok().and_then(|bytes| decode::header(&bytes, &spec.limits).ok()));
    }
    let info = DatasetInfo {
        name: file_name(path),
        format: Format::ImageFolder.to_string(),
        split,
        num_samples: files.len(),
        class_names,
        label_column: None,
        image_size: survey.image_size(),
        channels: survey.channels(),
    };
    Ok(Arc::new(FolderDataset { info, root, files, limits: spec.limits, skipped }))
}

/// The class of a folder, by the bytes of its name: a name that is not UTF-8 stays a name of its own.
fn name_of(class: &Path) -> String {
    name_of_bytes(class.file_name().unwrap_or_default().as_encoded_bytes())
}

/// The class folders of a split, sorted by name.
fn class_folders(folder: &Path, root: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut classes = Vec::new();
    for class in entries(folder)? {
        // Also judges a link before it is known to be a folder: outside of the root nothing is looked at.
        inside(&class, root)?;
        if class.is_dir() {
            classes.push(class);
        }
    }
    Ok(classes)
}

/// Refuses a path that leads out of the canonical `root`, and gives the canonical path.
fn inside(path: &Path, root: &Path) -> Result<PathBuf, DataError> {
    let target = path.canonicalize().map_err(|e| DataError::read(path, e))?;
    if target.starts_with(root) { Ok(target) } else { Err(DataError::Escape { path: path.to_owned(), target }) }
}

/// Images of a class folder and the folders in it. Links to folders are not followed: they could lead to another class.
fn collect(folder: &Path, root: &Path, label: i32, depth: usize, found: &mut Found) -> Result<(), DataError> {
    if depth > MAX_DEPTH {
        return Err(DataError::malformed(folder, format!("folders must be at most {MAX_DEPTH} deep")));
    }
    for path in entries(folder)? {
        let target = inside(&path, root)?;
        if target.is_dir() && path.is_symlink() {
            found.skipped.num_links += 1;
            found.skipped.link.get_or_insert(path);
        } else if target.is_dir() {
            collect(&path, root, label, depth + 1, found)?;
        } else if target.is_file() && is_image(&path) {
            found.files.push((path, label));
        } else {
            found.skipped.num_files += 1;
            found.skipped.file.get_or_insert(path);
        }
    }
    Ok(())
}

/// At most `limit` bytes of a regular file inside the root.
fn read(path: &Path, root: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let target = inside(path, root)?;
    if !target.is_file() {
        return Err(DataError::malformed(path, "is no regular file any more"));
    }
    let mut bytes = Vec::new();
    let file = File::open(&target).map_err(|e| DataError::read(path, e))?;
    file.take(limit).read_to_end(&mut bytes).map_err(|e| DataError::read(path, e))?;
    Ok(bytes)
}

impl Dataset for FolderDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn notes(&self) -> Vec<String> {
        let Skipped { num_files, file, num_links, link } = &self.skipped;
        let split = &self.info.split;
        let known = EXTENSIONS.join(", ");
        let files = file.as_ref().map(|first| {
            format!("files skipped in the {split} split (not {known}): {num_files}, the first {}", first.display())
        });
        let links = link.as_ref().map(|first| {
            format!("links to folders not followed in the {split} split: {num_links}, the first {}", first.display())
        });
        files.into_iter().chain(links).collect()
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        check_index(&self.info, index)?;
        Ok(Some(self.files[index].1))
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        let (path, label) = &self.files[index];
        // One byte more than allowed is enough for the decoder to refuse the rest.
        let bytes = read(path, &self.root, self.limits.max_bytes as u64 + 1)?;
        let image = decode::decode(&bytes, &self.limits).map_err(|source| DataError::Decode {
            path: path.clone(),
            sample: index,
            source,
        })?;
        Ok(Sample { id: index as i64, image: into_channels(image, self.info.channels), label: Some(*label) })
    }
}
