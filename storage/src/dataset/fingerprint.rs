//! What a split of a dataset held, small enough for a checkpoint's state: a run that is resumed is compared with it.
//!
//! All labels count, and of the images a keyed sample (a stratified one: one image of each of equally long stretches,
//! drawn by a hash of its place), of small splits all of them; with an image, its targets other than the class.
//! Names and times of folders do not count, so that data may be moved.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crc32fast::Hasher;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::sample::Dataset;
use super::target::Target;
use crate::guard::guarded;

/// Pixel values that are decoded at most, about: a twentieth of a second.
const MAX_VALUES: usize = 4 << 20;
/// Images that are decoded, however large they are.
const MIN_SAMPLED: usize = 16;
/// Images that are decoded at most: their sums are kept one by one.
const MAX_SAMPLED: usize = 1024;
/// Files that are kept by name at most; of more there is a sum.
const MAX_LISTED: usize = 32;
/// Bytes of listed files at most that are summed up: a tenth of a second, as they have just been read.
const MAX_SUMMED: u64 = 512 << 20;
/// Stands for the sum of an image that cannot be decoded.
const UNREADABLE: &str = "--------";
/// Letters of a sum in hexadecimal.
const SUM_LEN: usize = UNREADABLE.len();

/// A file of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFingerprint {
    /// Its path below the dataset's; empty where the dataset is this one file.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Parquet: rows of its row groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub row_groups: Vec<u64>,
    /// CRC-32 of its bytes, in hexadecimal; none of large files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
}

/// The content of one split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The reader's name.
    pub format: String,
    /// Number of images.
    pub num_samples: usize,
    /// Names of the classes in the order of their labels.
    pub class_names: Vec<String>,
    /// CRC-32 of all labels in their order, in hexadecimal as all sums here.
    pub labels: String,
    /// The sums of the sampled images, one after the other: size, channels and pixels, and targets other than the class.
    pub pixels: String,
    /// Number of files.
    #[serde(default)]
    pub num_files: usize,
    /// Their length together.
    #[serde(default)]
    pub num_bytes: u64,
    /// CRC-32 of their names, lengths, row groups and, of few and small files, bytes.
    #[serde(default)]
    pub files: String,
    /// The files, unless they are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listed: Vec<FileFingerprint>,
}

/// A part of a split's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The number of images.
    Samples,
    /// The classes.
    ClassNames,
    /// Which image has which label.
    Labels,
    /// The images.
    Pixels,
    /// Format, names, lengths, row groups and bytes of the files, which alone change no result.
    Files,
}

/// What is no longer the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The part.
    pub part: Part,
    /// What changed, in words: `80 images, were 90`.
    pub text: String,
}

fn hex(hasher: Hasher) -> String {
    format!("{:08x}", hasher.finalize())
}

/// The images that are compared of a split of `num_samples`, of which `num` are wanted: ascending.
pub(super) fn sampled(num_samples: usize, num: usize) -> Vec<usize> {
    if num >= num_samples {
        return (0..num_samples).collect();
    }
    let stretch = |place: usize| (place as u128 * num_samples as u128 / num as u128) as usize;
    let draw = |place: usize| {
        let (from, to) = (stretch(place), stretch(place + 1));
        from + crc32fast::hash(&(place as u64).to_le_bytes()) as usize % (to - from).max(1)
    };
    (0..num).map(draw).collect()
}

fn sum_of_image(dataset: &dyn Dataset, index: usize) -> String {
    let Ok(sample) = dataset.sample(index) else {
        return UNREADABLE.to_owned();
    };
    let mut hasher = Hasher::new();
    for number in [sample.image.width, sample.image.height, sample.image.channels] {
        hasher.update(&(number as u64).to_le_bytes());
    }
    hasher.update(&sample.image.pixels);
    sample.targets.iter().for_each(|target| add_target(target, &mut hasher));
    hex(hasher)
}

/// Adds a target to an image's sum. Classes are in the sum of all labels.
fn add_target(target: &Target, hasher: &mut Hasher) {
    match target {
        Target::Unknown | Target::Class(_) => {}
        Target::Labels(labels) => labels.iter().for_each(|label| hasher.update(&label.to_le_bytes())),
        Target::Values(values) => values.iter().for_each(|value| hasher.update(&value.to_le_bytes())),
        Target::Map(map) => map.classes.iter().for_each(|class| hasher.update(&class.to_le_bytes())),
        Target::Boxes(boxes) => {
            for object in boxes {
                object.edges.iter().chain([&object.area]).for_each(|value| hasher.update(&value.to_le_bytes()));
                hasher.update(&[object.class.to_le_bytes(), u32::from(object.ignored).to_le_bytes()].concat());
            }
        }
    }
}

/// Rows of a Parquet file's row groups by its footer; none of what is no such file.
fn row_groups(path: &Path) -> Vec<u64> {
    if path.extension().is_none_or(|extension| extension != "parquet") {
        return Vec::new();
    }
    let read = || {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
        let groups = reader.metadata().row_groups();
        Ok(groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).collect())
    };
    guarded(read, |reason| reason).unwrap_or_default()
}

fn sum_of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(hasher)),
            Ok(len) => hasher.update(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn files_of(
    dataset: &dyn Dataset,
    root: Option<&Path>,
) -> Result<(usize, u64, String, Vec<FileFingerprint>), DataError> {
    let (mut listed, mut num_files, mut num_bytes, mut hasher) = (Vec::new(), 0_usize, 0_u64, Hasher::new());
    let canonical = root.and_then(|root| root.canonicalize().ok());
    for path in dataset.files() {
        // A reader may name its files below the path as given or below what that leads to.
        let roots = [root, canonical.as_deref()].into_iter().flatten();
        let name = roots.filter_map(|root| path.strip_prefix(root).ok()).next();
        let name = name.unwrap_or_else(|| path.file_name().map_or(path, Path::new));
        let bytes = std::fs::metadata(path).map_err(|error| DataError::read(path, error))?.len();
        let row_groups = row_groups(path);
        hasher.update(name.as_os_str().as_encoded_bytes());
        hasher.update(&[0]);
        for number in [bytes, row_groups.len() as u64].iter().chain(&row_groups) {
            hasher.update(&number.to_le_bytes());
        }
        (num_files, num_bytes) = (num_files + 1, num_bytes.saturating_add(bytes));
        if num_files <= MAX_LISTED {
            listed.push(FileFingerprint { name: name.to_string_lossy().into_owned(), bytes, row_groups, sum: None });
        }
    }
    if num_files > MAX_LISTED {
        listed.clear();
    }
    if num_bytes <= MAX_SUMMED {
        for (file, path) in listed.iter_mut().zip(dataset.files()) {
            let sum = sum_of_file(path).map_err(|error| DataError::read(path, error))?;
            hasher.update(sum.as_bytes());
            file.sum = Some(sum);
        }
    }
    Ok((num_files, num_bytes, hex(hasher), listed))
}

impl Fingerprint {
    /// The fingerprint of `dataset`, which was opened at `root`. Decodes some four million pixel values at most, or 16
    /// images; of the files it looks at lengths and Parquet footers, and at the bytes of not more than 32 files of 512
    /// MiB together.
    ///
    /// # Errors
    /// If a label cannot be read or a file is gone. An image that cannot be decoded is no error.
    pub fn of(dataset: &dyn Dataset, root: Option<&Path>) -> Result<Self, DataError> {
        let info = dataset.info();
        let mut labels = Hasher::new();
        for index in 0..dataset.len() {
            labels.update(&dataset.label(index)?.map_or(i64::MIN, i64::from).to_le_bytes());
        }
        let size = (0..dataset.len().min(1)).find_map(|first| dataset.sample(first).ok());
        let num_values = size.map_or(1, |sample| sample.image.pixels.len().max(1));
        let num = (MAX_VALUES / num_values).clamp(MIN_SAMPLED, MAX_SAMPLED);
        let pixels = sampled(dataset.len(), num).into_iter().map(|index| sum_of_image(dataset, index)).collect();
        let (num_files, num_bytes, files, listed) = files_of(dataset, root)?;
        Ok(Self {
            format: info.format.clone(),
            num_samples: info.num_samples,
            class_names: info.class_names.clone(),
            labels: hex(labels),
            pixels,
            num_files,
            num_bytes,
            files,
            listed,
        })
    }

    /// Images whose pixels are compared.
    #[must_use]
    pub fn num_compared(&self) -> usize {
        self.pixels.len() / SUM_LEN
    }

    /// Whether the pixels of every image are compared, so that other files cannot hide other images.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.num_compared() == self.num_samples
    }

    /// What differs in `now`.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut add = |part, text| changes.push(Change { part, text });
        if self.num_samples != now.num_samples {
            add(Part::Samples, format!("{} images, were {}", now.num_samples, self.num_samples));
        }
        if let Some(text) = changed_classes(&self.class_names, &now.class_names) {
            add(Part::ClassNames, text);
        }
        if self.num_samples == now.num_samples {
            if self.labels != now.labels {
                add(Part::Labels, "labels or their order".to_owned());
            }
            if let Some(text) = self.changed_pixels(now) {
                add(Part::Pixels, text);
            }
        }
        if (&self.format, &self.files) != (&now.format, &now.files) {
            add(Part::Files, self.changed_files(now));
        }
        changes
    }

    fn changed_pixels(&self, now: &Self) -> Option<String> {
        let (before, after) = (self.pixels.as_bytes(), now.pixels.as_bytes());
        if before.len() != after.len() {
            // The number that is sampled follows from the first image's size.
            return Some("size of the images".to_owned());
        }
        let places = sampled(self.num_samples, self.num_compared());
        let sums = before.chunks(SUM_LEN).zip(after.chunks(SUM_LEN));
        let changed: Vec<usize> = places.iter().zip(sums).filter(|(_, (a, b))| a != b).map(|(at, _)| *at).collect();
        let (first, num_compared) = (changed.first()?, self.num_compared());
        Some(format!("pixels of sample {first} ({} of {num_compared} compared images differ)", changed.len()))
    }

    fn changed_files(&self, now: &Self) -> String {
        if self.format != now.format {
            return format!("files are {}, were {}", now.format, self.format);
        }
        let name = |file: &FileFingerprint| if file.name.is_empty() { "the file".into() } else { file.name.clone() };
        for (before, after) in self.listed.iter().zip(&now.listed) {
            if before.name != after.name {
                return format!("file {}, was {}", name(after), name(before));
            }
            if before.bytes != after.bytes {
                return format!("{} has {} bytes, had {}", name(after), after.bytes, before.bytes);
            }
            if before.row_groups != after.row_groups {
                let (after_rows, before_rows) = (&after.row_groups, &before.row_groups);
                return format!("{} has row groups {after_rows:?}, had {before_rows:?}", name(after));
            }
            if before.sum != after.sum {
                return format!("bytes of {}", name(after));
            }
        }
        match (self.num_files == now.num_files, self.num_bytes == now.num_bytes) {
            (false, _) => format!("{} files, were {}", now.num_files, self.num_files),
            (true, false) => format!("files of {} bytes, were {}", now.num_bytes, self.num_bytes),
            (true, true) => "names or lengths of files".to_owned(),
        }
    }
}

fn changed_classes(before: &[String], after: &[String]) -> Option<String> {
    if before == after {
        return None;
    }
    if before.len() != after.len() {
        return Some(format!("{} classes, were {}", after.len(), before.len()));
    }
    let (label, (old, new)) = before.iter().zip(after).enumerate().find(|(_, (a, b))| a != b)?;
    Some(format!("class {label} is {new:?}, was {old:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_spread_ascending_and_without_repeats() {
        assert_eq!(sampled(5, 9), [0, 1, 2, 3, 4]);
        assert!(sampled(0, 9).is_empty());
        for (num_samples, num) in [(17, 16), (1000, 16), (1_000_003, 1024), (usize::MAX, 16)] {
            let places = sampled(num_samples, num);
            assert_eq!(places.len(), num);
            assert!(places.is_sorted_by(|a, b| a < b) && places[num - 1] < num_samples, "{num_samples}");
            let stretches = places.iter().map(|at| (*at as u128 * num as u128 / num_samples as u128) as usize);
            assert!(stretches.zip(0..num).all(|(stretch, place)| stretch.abs_diff(place) <= 1), "{num_samples}");
        }
    }
}
