//! IDX, the format of the MNIST family: big-endian shape, then u8 values; gzipped or not, as the signature says.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use crate::input::open_regular;

use super::raw::{Layout, RawDataset};
use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::labels::classes::numbered_classes;
use crate::dataset::layout::listing::{Kind, Scope, file_name, folder_with};
use crate::dataset::layout::splits::{Part, named, parts_of};
use crate::dataset::sample::{Dataset, DatasetInfo, NameSource};
use crate::dataset::spec::{DatasetSpec, FormatName, Split};

/// More values than this in one file are taken for a damaged header.
const MAX_VALUES: usize = 1 << 36;
/// Deflate unpacks a byte to 1032 at most, so that a file's size says what it cannot hold.
const MAX_GZIP_RATIO: u64 = 1032;
const GZIP_SIGNATURE: [u8; 2] = [0x1F, 0x8B];

/// The IDX format.
pub(crate) struct Idx;

impl Idx {
    pub(crate) const NAME: FormatName = FormatName::new("idx");
}

impl Format for Idx {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "IDX, the format of the MNIST family, gzipped or not."
    }

    fn looked_for(&self) -> Option<String> {
        Some("*-images-idx3-ubyte".to_owned())
    }

    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError> {
        Ok(if image_files(folder, scope)?.is_empty() { Likeness::None } else { Likeness::Certain })
    }

    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        open(place, spec, scope)
    }
}

/// Values of one IDX file.
struct Tensor {
    shape: Vec<usize>,
    values: Vec<u8>,
}

/// Image files in a folder, or in the `raw` folder that torchvision makes, sorted by name.
fn image_files(path: &Path, scope: &Scope) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for place in subfolders().iter().map(|name| path.join(name)).chain([path.to_owned()]) {
        if !place.is_dir() {
            continue;
        }
        for entry in scope.peek(&place)? {
            if entry.kind == Kind::File && is_image_file(&entry.name()) {
                files.push(entry.path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn subfolders() -> &'static [&'static str] {
    &["raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "EMNIST/raw"]
}

fn file_name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// `train-images-idx3-ubyte`, `t10k-images.idx3-ubyte.gz`, `emnist-letters-test-images-idx3-ubyte`, ...
fn is_image_file(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    name.contains("images") && (name.ends_with("idx3-ubyte") || name.ends_with("idx4-ubyte"))
}

fn part_of(name: &str) -> Option<Part> {
    let prefix = &name[..name.find("images")?];
    let is_test = prefix.split(['-', '_', '.']).any(|part| part.eq_ignore_ascii_case("t10k"));
    if is_test { Some(Part::Test) } else { named(prefix).map(|named| named.part) }
}

fn open(path: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
    let (image_file, label_file) = find(path, spec.split, scope)?;
    let images = read(&image_file, spec)?;
    let (channels, height, width) = match images.shape[1..] {
        [height, width] => (1, height, width),
        [height, width, channels @ (1 | 3)] => (channels, height, width),
        _ => {
            let reason = format!(
                "images must have shape [n, rows, columns] or [n, rows, columns, 1 or 3], not {:?}",
                images.shape
            );
            return Err(DataError::malformed(&image_file, reason));
        }
    };
    if width.checked_mul(height).is_none_or(|size| size == 0 || size > spec.limits.max_pixels) {
        let reason = format!("image size must be 1 to {} pixels in all, not {width}x{height}", spec.limits.max_pixels);
        return Err(DataError::sample(&image_file, 0, reason));
    }
    let labels = read_labels(&label_file, spec)?;
    if labels.len() != images.shape[0] {
        let reason = format!("{} labels, but {} has {} images", labels.len(), image_file.display(), images.shape[0]);
        return Err(DataError::malformed(&label_file, reason));
    }
    // A small split may lack a class: the other one knows it.
    let mut largest = labels.iter().copied().max().unwrap_or(0);
    let other = if spec.split == Split::Train { Split::Test } else { Split::Train };
    match find(path, other, scope) {
        Ok((_, other_labels)) => {
            largest = largest.max(read_labels(&other_labels, spec)?.into_iter().max().unwrap_or(0));
        }
        // Images that cannot be used are not the same as none.
        Err(DataError::NoSplit { hint, .. }) if has_images(path, other, scope)? => {
            scope.say(format!("the images of the {other} split are left out: {hint}"));
        }
        Err(_) => {}
    }
    let info = DatasetInfo {
        name: file_name(path),
        format: Idx::NAME.to_string(),
        split: part_of(&file_name_of(&image_file)).map_or(spec.split.as_str(), Part::as_str).to_owned(),
        num_samples: labels.len(),
        class_names: numbered_classes(std::iter::once(largest)),
        label_column: None,
        image_size: Some((width, height)),
        channels,
    };
    let dataset =
        RawDataset::new(info, NameSource::Numbers, Layout::Interleaved, images.values, labels, &[(image_file, 0)])?;
    Ok(Arc::new(dataset.with_notes(scope.lines())))
}

/// Whether there are images of a split, with or without their labels.
fn has_images(path: &Path, split: Split, scope: &Scope) -> Result<bool, DataError> {
    let is_of_split = |file: &PathBuf| part_of(&file_name_of(file)).is_some_and(|part| parts_of(split).contains(&part));
    Ok(image_files(path, scope)?.iter().any(is_of_split))
}

/// The image and label file of a split.
fn find(path: &Path, split: Split, scope: &Scope) -> Result<(PathBuf, PathBuf), DataError> {
    let no_split = |hint: String| DataError::NoSplit { path: path.to_owned(), split: split.to_string(), hint };
    let wanted = if split == Split::Train { "train-images-idx3-ubyte[.gz]" } else { "t10k-images-idx3-ubyte[.gz]" };
    if path.is_file() {
        return Err(no_split(format!("idx needs the folder with {wanted} and its labels, not one file")));
    }
    let all = image_files(path, scope)?;
    let of_part = |part: Part| -> Vec<&PathBuf> {
        all.iter().filter(|file| part_of(&file_name_of(file)) == Some(part)).collect()
    };
    let of_split =
        parts_of(split).iter().map(|part| of_part(*part)).find(|files| !files.is_empty()).unwrap_or_default();
    // The same file plain and gzipped is one file; the plain one is faster.
    let plain_name = |file: &Path| file.with_file_name(file_name_of(file).trim_end_matches(".gz"));
    let images = match of_split.as_slice() {
        [] => {
            let present: Vec<_> = all.iter().map(|file| file_name_of(file)).collect();
            let present = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
            return Err(no_split(format!("looked for {wanted}, found image files: {present}")));
        }
        [first, rest @ ..] if rest.iter().all(|file| plain_name(file) == plain_name(first)) => (*first).clone(),
        several => {
            let names: Vec<_> = several.iter().map(|file| file_name_of(file)).collect();
            return Err(no_split(format!("several image files, keep one of {}", names.join(", "))));
        }
    };
    let name = file_name_of(&images)
        .trim_end_matches(".gz")
        .replace("images", "labels")
        .replace("idx3", "idx1")
        .replace("idx4", "idx1");
    let places = [name.clone(), format!("{name}.gz")];
    let names: Vec<&str> = places.iter().map(String::as_str).collect();
    let folder = images.parent().unwrap_or(Path::new(""));
    let labels = folder_with(&folder.join(names[0]), &[], Path::is_file)
        .or_else(|| folder_with(&folder.join(names[1]), &[], Path::is_file));
    labels.map(|labels| (images, labels)).ok_or_else(|| no_split(format!("no label file {}", names.join(" or "))))
}

fn read_labels(path: &Path, spec: &DatasetSpec) -> Result<Vec<i32>, DataError> {
    let labels = read(path, spec)?;
    if labels.shape.len() != 1 {
        return Err(DataError::malformed(path, format!("labels must have shape [n], not {:?}", labels.shape)));
    }
    Ok(labels.values.into_iter().map(i32::from).collect())
}

/// Reads a whole file; exactly as many values as the header announces must follow it.
fn read(path: &Path, spec: &DatasetSpec) -> Result<Tensor, DataError> {
    let file = open_regular(path).map_err(|e| DataError::read(path, e))?;
    let file_bytes = file.metadata().map_err(|e| DataError::read(path, e))?.len();
    let mut file = BufReader::new(file);
    let is_gzip =
        std::io::BufRead::fill_buf(&mut file).map_err(|e| DataError::read(path, e))?.starts_with(&GZIP_SIGNATURE);
    if is_gzip {
        let max_bytes = file_bytes.saturating_mul(MAX_GZIP_RATIO);
        read_tensor(&mut MultiGzDecoder::new(file), path, spec, max_bytes)
    } else {
        read_tensor(&mut file, path, spec, file_bytes)
    }
}

/// Reads a tensor from `source`, which has `max_bytes` at most.
fn read_tensor(source: &mut dyn Read, path: &Path, spec: &DatasetSpec, max_bytes: u64) -> Result<Tensor, DataError> {
    let damaged = |what: &str, e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => DataError::malformed(path, format!("truncated in its {what}")),
        // What the system says is no word about the data.
        _ if e.raw_os_error().is_some() => DataError::read(path, e),
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            DataError::malformed(path, format!("damaged gzip data: {e}"))
        }
        _ => DataError::read(path, e),
    };
    let mut magic = [0; 4];
    source.read_exact(&mut magic).map_err(|e| damaged("header", e))?;
    let [0, 0, kind, rank @ 1..=4] = magic else {
        return Err(DataError::malformed(
            path,
            format!("no idx file, its signature must be 00 00 08 01 to 04, not {magic:02x?}"),
        ));
    };
    if kind != 0x08 {
        return Err(DataError::malformed(path, format!("idx values must be of type 0x08 (u8), not {kind:#04x}")));
    }
    let mut shape = Vec::with_capacity(usize::from(rank));
    for _ in 0..rank {
        let mut dim = [0; 4];
        source.read_exact(&mut dim).map_err(|e| damaged("header", e))?;
        shape.push(u32::from_be_bytes(dim) as usize);
    }
    let len = shape.iter().try_fold(1_usize, |len, &dim| len.checked_mul(dim)).filter(|&len| len <= MAX_VALUES);
    let len = len.ok_or_else(|| DataError::malformed(path, format!("unbelievable shape {shape:?}")))?;
    // The error about a truncated file names the sample at which it ends, but no room is made for what it cannot hold.
    let capacity = u64::min(len as u64, max_bytes).saturating_add(1);
    spec.budget().check(path, capacity)?;
    let mut values = Vec::new();
    let no_memory = |_| DataError::read(path, std::io::ErrorKind::OutOfMemory.into());
    values.try_reserve_exact(usize::try_from(capacity).unwrap_or(usize::MAX)).map_err(no_memory)?;
    source.take(len as u64 + 1).read_to_end(&mut values).map_err(|e| damaged("values", e))?;
    if values.len() < len {
        let sample_len = (len / shape[0].max(1)).max(1);
        return Err(DataError::sample(
            path,
            values.len() / sample_len,
            format!("truncated: {} of {len} values", values.len()),
        ));
    }
    if values.len() > len {
        return Err(DataError::malformed(path, format!("more than the {len} values of shape {shape:?}")));
    }
    Ok(Tensor { shape, values })
}
