//! COCO's JSON as a stream: what is not needed is never held.

use std::fmt;
use std::io::BufReader;
use std::path::Path;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::dataset::error::DataError;
use crate::dataset::formats::image_files::open_inside;
use crate::dataset::spec::DatasetSpec;

/// What a file says of images, objects and categories.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub images: Vec<ImageEntry>,
    pub objects: Vec<Object>,
    pub categories: Vec<Category>,
}

/// An image.
#[derive(Debug, Deserialize)]
pub(super) struct ImageEntry {
    pub id: i64,
    pub file_name: String,
    #[serde(default)]
    pub width: Option<u32>,
    #[serde(default)]
    pub height: Option<u32>,
}

/// A category.
#[derive(Debug, Deserialize)]
pub(super) struct Category {
    pub id: i64,
    pub name: String,
}

/// An object in an image.
#[derive(Debug, Deserialize)]
pub(super) struct Object {
    #[serde(default)]
    pub id: i64,
    pub image_id: i64,
    pub category_id: i64,
    /// Left and top edge, width and height.
    pub bbox: [f32; 4],
    #[serde(default)]
    pub area: Option<f32>,
    #[serde(default, rename = "iscrowd", deserialize_with = "flag")]
    pub is_crowd: bool,
    /// Whether its outline is in run-length encoding, an object where polygons are lists.
    #[serde(default, rename = "segmentation", deserialize_with = "is_object")]
    pub is_encoded: bool,
}

/// Reads the file, whose size bounds what is held of it.
pub(super) fn read(path: &Path, root: &Path, spec: &DatasetSpec) -> Result<Objects, DataError> {
    let file = open_inside(path, root)?;
    let num_bytes = file.metadata().map_err(|e| DataError::read(path, e))?.len();
    spec.budget().check(path, num_bytes)?;
    let mut found = Objects::default();
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 18, file));
    let read = Root(&mut found).deserialize(&mut json).and_then(|()| json.end());
    match read {
        Ok(()) => Ok(found),
        Err(error) if error.is_io() => Err(DataError::read(path, error.into())),
        Err(error) => Err(DataError::malformed(path, format!("is no COCO file of objects: {error}"))),
    }
}

/// The object that is the whole file.
struct Root<'a>(&'a mut Objects);

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with images, annotations and categories")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        const KEYS: [&str; 3] = ["images", "annotations", "categories"];
        let mut seen = [false; 3];
        while let Some(key) = map.next_key::<String>()? {
            let Some(at) = KEYS.iter().position(|known| *known == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if std::mem::replace(&mut seen[at], true) {
                return Err(A::Error::duplicate_field(KEYS[at]));
            }
            match at {
                0 => map.next_value_seed(Items(&mut self.0.images))?,
                1 => map.next_value_seed(Items(&mut self.0.objects))?,
                _ => map.next_value_seed(Items(&mut self.0.categories))?,
            }
        }
        match seen.iter().position(|seen| !seen) {
            Some(at) => Err(A::Error::missing_field(KEYS[at])),
            None => Ok(()),
        }
    }
}

/// A list, of which no more is held than its items.
struct Items<'a, T>(&'a mut Vec<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Items<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            self.0.push(item);
        }
        Ok(())
    }
}

/// A flag as 0, 1, false or true; null is false.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Number(u8),
    }
    match Option::<Flag>::deserialize(deserializer)? {
        None | Some(Flag::Bool(false) | Flag::Number(0)) => Ok(false),
        Some(Flag::Bool(true) | Flag::Number(1)) => Ok(true),
        Some(Flag::Number(other)) => Err(D::Error::custom(format!("a flag must be 0 or 1, not {other}"))),
    }
}

/// Whether a value is an object; of anything else nothing is kept.
fn is_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Outline;

    impl<'de> Visitor<'de> for Outline {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("polygons or an outline in run-length encoding")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(true)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(false)
        }

        fn visit_unit<E>(self) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_str<E>(self, _: &str) -> Result<bool, E> {
            Ok(false)
        }
    }

    deserializer.deserialize_any(Outline)
}
