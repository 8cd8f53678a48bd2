//! The classes of segmentation maps: how stored indices become classes, and how many there are.

use std::collections::BTreeSet;

use crate::dataset::decode::DecodeError;
use crate::dataset::decode::index_map::Indices;
use crate::dataset::error::DataError;
use crate::dataset::formats::image_files::NUM_SURVEYORS;
use crate::dataset::sample::NameSource;
use crate::dataset::target::{ClassMap, NO_CLASS};

/// Maps that are read to know how many classes there are, if no list says it.
pub(crate) const MAX_SURVEYED_MAPS: usize = 4096;
/// Maps that are read to see whether they are what they should be, if a list says the classes.
const MAX_TRIED_MAPS: usize = 16;
/// What says the classes, for messages.
pub(crate) const NAMES_FILE: &str = "classes.txt";

/// How stored indices become classes: the greatest value of 8 and of 16 bits is no class; 0 is none either if
/// `zero_is_none`, and then the others are one less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapRule {
    pub zero_is_none: bool,
    pub num_classes: usize,
}

/// The stored value that is no class, of values of `bits` bits.
fn void(bits: u8) -> Option<u16> {
    match bits {
        8 => Some(255),
        16 => Some(u16::MAX),
        _ => None,
    }
}

impl MapRule {
    fn class(self, value: u16, bits: u8) -> u16 {
        if Some(value) == void(bits) {
            return NO_CLASS;
        }
        if self.zero_is_none { value.wrapping_sub(1) } else { value }
    }

    /// The classes of stored indices.
    ///
    /// # Errors
    /// In words, about an index that stands for no class.
    pub fn apply(self, indices: Indices) -> Result<ClassMap, String> {
        let Indices { width, height, bits, mut values } = indices;
        for value in &mut values {
            let class = self.class(*value, bits);
            if class != NO_CLASS && usize::from(class) >= self.num_classes {
                let last = self.num_classes - usize::from(!self.zero_is_none);
                let void = void(bits).map_or_else(String::new, |void| format!(", or {void} for none"));
                return Err(format!("its class indices must be 0 to {last}{void}, not {value}"));
            }
            *value = class;
        }
        Ok(ClassMap { width, height, classes: values })
    }
}

/// What was found of the classes of a split's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapClasses {
    pub rule: MapRule,
    pub names: Vec<String>,
    pub source: NameSource,
    /// What the owner of the data should know.
    pub note: Option<String>,
}

/// Finds the classes of `num` maps, which `read` gives: those of `listed`, or else the numbers up to the greatest in up to
/// 4,096 of the maps. `of` names the split for messages.
///
/// # Errors
/// The error of a map that is no image of indices. [`DataError::Malformed`] if no map has a class, as those that mark
/// objects by 255. Other bad maps are left to whoever reads them.
pub(crate) fn find(
    listed: Option<Vec<String>>,
    zero_is_none: bool,
    num: usize,
    of: &std::path::Path,
    read: &(dyn Fn(usize) -> Result<Indices, DataError> + Sync),
) -> Result<MapClasses, DataError> {
    let most = if listed.is_some() { MAX_TRIED_MAPS } else { MAX_SURVEYED_MAPS }.min(num);
    let places: Vec<usize> = (0..most).map(|at| (at as u128 * num as u128 / most as u128) as usize).collect();
    let each = places.len().div_ceil(NUM_SURVEYORS).max(1);
    let found: Vec<Result<BTreeSet<(u16, u8)>, DataError>> = std::thread::scope(|scope| {
        let survey = |places: &[usize]| {
            let mut values = BTreeSet::new();
            for &place in places {
                match read(place) {
                    Ok(indices) => {
                        let mut seen = vec![false; 1 << 16];
                        indices.values.iter().for_each(|value| seen[usize::from(*value)] = true);
                        let seen = seen.into_iter().zip(0..=u16::MAX).filter(|(seen, _)| *seen);
                        values.extend(seen.map(|(_, value)| (value, indices.bits)));
                    }
                    Err(DataError::Decode { source, path, sample }) if is_no_map(&source) => {
                        return Err(DataError::Decode { source, path, sample });
                    }
                    Err(_) => {}
                }
            }
            Ok(values)
        };
        let readers: Vec<_> = places.chunks(each).map(|places| scope.spawn(move || survey(places))).collect();
        // A reader that panicked knows nothing of its maps.
        readers.into_iter().map(|reader| reader.join().unwrap_or_else(|_| Ok(BTreeSet::new()))).collect()
    });
    let mut values = BTreeSet::new();
    for found in found {
        values.extend(found?);
    }
    let all = MapRule { zero_is_none, num_classes: usize::from(NO_CLASS) };
    let classes: BTreeSet<u16> = values.iter().map(|(value, bits)| all.class(*value, *bits)).collect();
    let has_void = values.iter().any(|(value, bits)| Some(*value) == void(*bits));
    let known = || classes.iter().filter(|class| **class != NO_CLASS);
    if has_void && known().all(|class| *class == 0) {
        let reason = format!(
            "its {most} maps that were looked at hold no class index above 0 but 255 (of 16 bits 65535), which marks pixels \
             without a class; store class 1 as 1"
        );
        return Err(DataError::malformed(of, reason));
    }
    if let Some(names) = listed {
        let rule = MapRule { zero_is_none, num_classes: names.len() };
        return Ok(MapClasses { rule, names, source: NameSource::Declared, note: None });
    }
    let Some(&last) = known().next_back() else {
        return Err(DataError::malformed(of, "its maps have no class at all"));
    };
    let num_classes = usize::from(last) + 1;
    let names = (0..num_classes).map(|class| class.to_string()).collect();
    let note = (most < num).then(|| {
        format!(
            "no {NAMES_FILE} lists the classes of maps: there are {num_classes}, as far as {most} of {num} maps say; one with \
             more is refused"
        )
    });
    Ok(MapClasses { rule: MapRule { zero_is_none, num_classes }, names, source: NameSource::Numbers, note })
}

/// Whether an image is no map, which all others of the dataset then are not either.
fn is_no_map(error: &DecodeError) -> bool {
    matches!(error, DecodeError::Unsupported { .. } | DecodeError::ForeignFormat { .. })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn indices(bits: u8, values: &[u16]) -> Indices {
        Indices { width: values.len(), height: 1, bits, values: values.to_vec() }
    }

    #[test]
    fn void_and_zero_are_no_class_where_that_is_the_rule() {
        let of =
            |zero_is_none, num_classes, map| MapRule { zero_is_none, num_classes }.apply(map).map(|map| map.classes);
        assert_eq!(of(false, 3, indices(8, &[0, 2, 255])), Ok(vec![0, 2, NO_CLASS]));
        assert_eq!(of(true, 3, indices(8, &[0, 3, 255])), Ok(vec![NO_CLASS, 2, NO_CLASS]));
        assert_eq!(of(false, 300, indices(16, &[255, 299, 65535])), Ok(vec![255, 299, NO_CLASS]));
        assert_eq!(of(false, 2, indices(1, &[0, 1])), Ok(vec![0, 1]));
        let refused = |rule, num, map| of(rule, num, map).unwrap_err();
        assert_eq!(refused(false, 3, indices(8, &[3])), "its class indices must be 0 to 2, or 255 for none, not 3");
        assert_eq!(refused(true, 3, indices(8, &[4])), "its class indices must be 0 to 3, or 255 for none, not 4");
        assert_eq!(refused(false, 3, indices(4, &[15])), "its class indices must be 0 to 2, not 15");
    }

    #[test]
    fn classes_are_counted_where_no_list_names_them() {
        let read = |maps: Vec<Indices>| move |at: usize| Ok::<_, DataError>(maps[at].clone());
        let of = |zero: bool, maps: Vec<Indices>| find(None, zero, maps.len(), Path::new("masks"), &read(maps.clone()));
        let found = of(false, vec![indices(8, &[0, 1]), indices(8, &[4, 255])]).unwrap();
        assert_eq!((found.rule.num_classes, found.source, found.note), (5, NameSource::Numbers, None));
        assert_eq!(of(true, vec![indices(8, &[0, 5])]).unwrap().names, ["0", "1", "2", "3", "4"]);
        for maps in [vec![indices(8, &[0, 255])], vec![indices(8, &[255])]] {
            let error = of(false, maps).unwrap_err().to_string();
            assert!(error.contains("no class index above 0 but 255"), "{error}");
        }
        assert!(of(true, vec![indices(8, &[0, 0])]).is_err());
        let many = vec![indices(8, &[0, 1]); 5000];
        let note = of(false, many).unwrap().note.unwrap();
        assert!(note.contains("4096 of 5000 maps"), "{note}");
    }
}
