//! Classes over the files and splits of a dataset. This is the only place in which lists of classes meet: labels
//! are mapped by name, never by position, and what has no counterpart is refused with both lists.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::dataset::error::DataError;
use crate::dataset::pixels::Image;
use crate::dataset::sample::{Dataset, DatasetInfo, LabelOrigin, NameSource, Sample};
use crate::dataset::target::{Target, TargetInfo, TargetKind};

/// Names of a list that a message shows at most.
const MAX_SHOWN: usize = 12;
/// Characters of a name that a message shows at most.
const MAX_CHARS: usize = 48;

/// A held-out split whose labels are indices into the train split's classes.
pub struct HeldOut {
    /// The split; the one that was given if its classes are the same.
    pub dataset: Arc<dyn Dataset>,
    /// Images with a label.
    pub num_labelled: usize,
    /// What its owner should know, one line each.
    pub notes: Vec<String>,
}

/// Maps the labels of `held_out` by name to the classes of the train split, whose labels are `train_labels`. Classes
/// that no label of `held_out` uses need no counterpart.
///
/// # Errors
/// [`DataError::Classes`] with both lists if a label of `held_out` is of a class that the train split lacks or of which
/// it has no image by its number, if names are missing on one side, or if none of its images can be judged. Likewise if
/// targets of another kind are of other classes, labels or values than the train split's.
pub fn align(
    held_out: Arc<dyn Dataset>,
    train: &dyn Dataset,
    train_labels: &[Option<i32>],
) -> Result<HeldOut, DataError> {
    check_targets(held_out.as_ref(), train)?;
    let (from, to) = (held_out.info().clone(), train.info());
    let refuse = |problem: String| DataError::Classes {
        what: format!("the {} split of {}", from.split, from.name),
        of: format!("the {} split", to.split),
        problem,
        has: listed(&from.class_names),
        wanted: listed(&to.class_names),
    };
    let labels = (0..held_out.len()).map(|index| held_out.label(index)).collect::<Result<Vec<_>, _>>()?;
    let counts = count(&labels, from.class_names.len());
    let num_labelled: usize = counts.iter().sum();
    let sources = (held_out.label_origin().names, train.label_origin().names);
    let map = if num_labelled == 0 || from.class_names == to.class_names {
        (0..).take(from.class_names.len()).map(Some).collect()
    } else {
        // Number 1 may be the class of index 1 or the one that is called "1".
        let unnamed = match sources {
            (NameSource::Numbers, NameSource::Declared) if !is_numbered(&to.class_names) => Some(&from.split),
            (NameSource::Declared, NameSource::Numbers) if !is_numbered(&from.class_names) => Some(&to.split),
            _ => None,
        };
        if let Some(split) = unnamed {
            return Err(refuse(format!("the labels of the {split} split are numbers without names")));
        }
        by_name(&from.class_names, &to.class_names, &counts).map_err(&refuse)?
    };
    let train_counts = count(train_labels, to.class_names.len());
    let num_seen = train_counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
    let (mut lacking, mut num_lacking) = (Vec::new(), 0);
    for (label, num_images) in counts.iter().enumerate().filter(|(_, num_images)| **num_images > 0) {
        let target = map.get(label).copied().flatten().and_then(|target| usize::try_from(target).ok());
        let Some(target) = target.filter(|target| train_counts.get(*target).is_none_or(|count| *count == 0)) else {
            continue;
        };
        if target >= num_seen && sources.1 == NameSource::Numbers {
            let known = format!("the train split's labels end at {}", num_seen.saturating_sub(1));
            return Err(refuse(format!("label {} occurs, {known}", from.class_names[label])));
        }
        lacking.push(from.class_names[label].clone());
        num_lacking += num_images;
    }
    let mut notes = Vec::new();
    if num_lacking > 0 && num_lacking == num_labelled {
        return Err(refuse(format!("the train split has no image of any of its classes: {}", listed(&lacking))));
    }
    if num_lacking > 0 {
        notes.push(format!(
            "{num_lacking} of {num_labelled} labelled images of the {} split are of classes without an image in the \
             train split, they can only be judged wrong: {}",
            from.split,
            listed(&lacking)
        ));
    }
    let dataset = if from.class_names == to.class_names {
        held_out
    } else {
        let info = DatasetInfo { class_names: to.class_names.clone(), ..from };
        Arc::new(Relabelled { inner: held_out, info, map })
    };
    Ok(HeldOut { dataset, num_labelled, notes })
}

/// Refuses a split whose labels, values, or classes of pixels or objects are not those of the train split, in their order.
/// Where they are only numbered, it may have fewer.
fn check_targets(held_out: &dyn Dataset, train: &dyn Dataset) -> Result<(), DataError> {
    let wanted = train.targets_info();
    for here in held_out.targets_info().into_iter().filter(|info| info.kind != TargetKind::Class) {
        let Some(there) = wanted.iter().find(|there| there.kind == here.kind) else { continue };
        let are_numbers = [here.source, there.source] == [NameSource::Numbers; 2];
        if here.names == there.names || are_numbers && here.names.len() <= there.names.len() {
            continue;
        }
        return Err(DataError::Classes {
            what: format!("the {} of the {} split of {}", here.kind, held_out.info().split, held_out.info().name),
            of: format!("the {} split", train.info().split),
            problem: format!(
                "they must be the same in the same order, {} here and {} there",
                here.names.len(),
                there.names.len()
            ),
            has: listed(&here.names),
            wanted: listed(&there.names),
        });
    }
    Ok(())
}

/// The label in `to` of each label in `from`, by name; none for names that `to` lacks and no image uses.
///
/// # Errors
/// What is wrong, in words: a name that is used and that `to` lacks, or that one of the lists holds twice.
pub(super) fn by_name(from: &[String], to: &[String], num_images: &[usize]) -> Result<Vec<Option<i32>>, String> {
    let mut places: HashMap<&str, i32> = HashMap::with_capacity(to.len());
    for (name, label) in to.iter().zip(0..) {
        places.insert(name, label);
    }
    let mut seen = HashSet::with_capacity(from.len());
    if places.len() != to.len() || !from.iter().all(|name| seen.insert(name)) {
        return Err("a name occurs twice, so that names do not tell the classes apart".to_owned());
    }
    let map: Vec<Option<i32>> = from.iter().map(|name| places.get(name.as_str()).copied()).collect();
    let lacking: Vec<String> = from
        .iter()
        .zip(&map)
        .zip(num_images)
        .filter(|((_, target), num_images)| target.is_none() && **num_images > 0)
        .map(|((name, _), _)| name.clone())
        .collect();
    if lacking.is_empty() { Ok(map) } else { Err(format!("there is no class {}", listed(&lacking))) }
}

/// Images of each of `num_classes` classes.
pub(super) fn count(labels: &[Option<i32>], num_classes: usize) -> Vec<usize> {
    let mut counts = vec![0; num_classes];
    for label in labels.iter().flatten() {
        if let Some(count) = usize::try_from(*label).ok().and_then(|label| counts.get_mut(label)) {
            *count += 1;
        }
    }
    counts
}

/// Sorts the names of classes that are values of strings: by number if all are whole numbers, else by their bytes.
pub(super) fn sort_values(names: &mut [String]) {
    let numbers: Option<HashMap<String, i128>> =
        names.iter().map(|name| Some((name.clone(), name.trim().parse().ok()?))).collect();
    match numbers {
        Some(numbers) => names.sort_by(|a, b| numbers.get(a).cmp(&numbers.get(b)).then_with(|| a.cmp(b))),
        None => names.sort(),
    }
}

/// A name for a message, in quotes and escaped, the beginning of a long one.
pub(super) fn quoted(name: &str) -> String {
    match name.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// Names for a message, in quotes and escaped, the first few of many.
#[must_use]
pub fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "(none)".to_owned();
    }
    let shown: Vec<String> = names.iter().take(MAX_SHOWN).map(|name| quoted(name)).collect();
    let rest = if names.len() > MAX_SHOWN { format!(", … ({} in all)", names.len()) } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}

/// A name that may not be UTF-8: the bytes that are not are written as `\xE9`, so that different names stay different.
pub(in crate::dataset) fn name_of_bytes(bytes: &[u8]) -> String {
    let mut name = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        name.push_str(chunk.valid());
        for byte in chunk.invalid() {
            name.push_str(&format!("\\x{byte:02x}"));
        }
    }
    name
}

/// Whether the names are the labels themselves.
pub(super) fn is_numbered(names: &[String]) -> bool {
    names.iter().enumerate().all(|(label, name)| *name == label.to_string())
}

/// Class names of a format that stores none: the numbers up to the largest label.
pub(crate) fn numbered_classes(labels: impl Iterator<Item = i32>) -> Vec<String> {
    labels.max().map_or_else(Vec::new, |max| (0..=max).map(|class| class.to_string()).collect())
}

/// A split with its labels in another list of classes.
struct Relabelled {
    inner: Arc<dyn Dataset>,
    info: DatasetInfo,
    map: Vec<Option<i32>>,
}

impl Relabelled {
    fn mapped(&self, label: Option<i32>) -> Option<i32> {
        self.map.get(usize::try_from(label?).ok()?).copied().flatten()
    }
}

impl Dataset for Relabelled {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn resident_bytes(&self) -> u64 {
        self.inner.resident_bytes()
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        Ok(self.mapped(self.inner.label(index)?))
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let mut sample = self.inner.sample(index)?;
        sample.label = self.mapped(sample.label);
        for target in &mut sample.targets {
            if let Target::Class(label) = target {
                *target = Target::of_class(self.mapped(Some(*label)));
            }
        }
        Ok(sample)
    }

    fn targets_info(&self) -> Vec<TargetInfo> {
        let mut targets = self.inner.targets_info();
        for target in targets.iter_mut().filter(|target| target.kind == TargetKind::Class) {
            target.names.clone_from(&self.info.class_names);
        }
        targets
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }

    fn label_origin(&self) -> LabelOrigin {
        self.inner.label_origin()
    }

    fn files(&self) -> Vec<&Path> {
        self.inner.files()
    }

    fn known_object(&self, index: usize) -> Option<Image> {
        self.inner.known_object(index)
    }

    fn known_object_patches(&self, index: usize, patch: usize) -> Option<Vec<bool>> {
        self.inner.known_object_patches(index, patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn labels_follow_their_names_and_unused_names_need_no_counterpart() {
        let map = |from: &str, to: &str, used: &[usize]| by_name(&names(from), &names(to), used);
        assert_eq!(map("cat ant bee", "ant bee cat", &[1, 1, 1]), Ok(vec![Some(2), Some(0), Some(1)]));
        assert_eq!(map("bee", "ant bee cat", &[5]), Ok(vec![Some(1)]));
        assert_eq!(map("ant dog", "ant bee", &[1, 0]), Ok(vec![Some(0), None]));
        assert_eq!(map("ant dog", "ant bee", &[1, 1]), Err("there is no class \"dog\"".to_owned()));
        assert!(map("ant ant", "ant bee", &[1, 1]).is_err(), "a name twice");
        assert!(map("ant", "ant ant", &[1]).is_err(), "a name twice");
    }

    #[test]
    fn numbers_are_sorted_as_numbers_and_names_by_their_bytes() {
        let sorted = |text: &str| {
            let mut names = names(text);
            sort_values(&mut names);
            names.join(" ")
        };
        assert_eq!(sorted("10 2 0 -3 2.5"), "-3 0 10 2 2.5", "2.5 is no whole number");
        assert_eq!(sorted("10 2 0 -3"), "-3 0 2 10");
        assert_eq!(sorted("7 07 6"), "6 07 7");
        assert_eq!(sorted("bee Ant ant"), "Ant ant bee");
    }

    #[test]
    fn names_that_are_no_utf_8_stay_apart() {
        assert_eq!(name_of_bytes(b"caf\xe9"), "caf\\xe9");
        assert_ne!(name_of_bytes(b"caf\xe9"), name_of_bytes(b"caf\xe8"));
        assert_eq!(name_of_bytes("café".as_bytes()), "café");
    }

    #[test]
    fn long_lists_are_cut_and_names_escaped() {
        let many: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert!(listed(&many).ends_with("\"11\", … (100 in all)"), "{}", listed(&many));
        assert_eq!(listed(&names("a \u{1b}[31m")), "\"a\", \"\\u{1b}[31m\"");
        assert_eq!(listed(&[]), "(none)");
        assert_eq!(listed(&["é".repeat(1000)]), format!("\"{}\"…", "é".repeat(48)));
    }
}
