//! Registries: things that a configuration chooses by name from a fixed list (devices, tasks, maskings, forms of the
//! hypergradient).
//!
//! A registry is a `static` list of trait objects. Configuration, help and messages read the list, so adding an entry
//! takes a file of its own, its `mod` line and its place in the list.
//!
//! ```
//! use mlomae_model::choice::{Choice, Named, Registry};
//!
//! trait Shape: Named {
//!     fn corners(&self) -> usize;
//! }
//!
//! struct Square;
//!
//! impl Named for Square {
//!     fn name(&self) -> &'static str {
//!         "square"
//!     }
//!     fn summary(&self) -> &'static str {
//!         "Four equal sides"
//!     }
//! }
//!
//! impl Shape for Square {
//!     fn corners(&self) -> usize {
//!         4
//!     }
//! }
//!
//! static SHAPES: [&dyn Shape; 1] = [&Square];
//!
//! impl Registry for dyn Shape {
//!     const WHAT: &'static str = "shape";
//!     fn entries() -> &'static [&'static Self] {
//!         &SHAPES
//!     }
//! }
//!
//! let shape: Choice<dyn Shape> = serde_json::from_str("\"square\"").unwrap();
//! assert_eq!(shape.corners(), 4);
//! let error = serde_json::from_str::<Choice<dyn Shape>>("\"circle\"").unwrap_err();
//! assert!(error.to_string().starts_with("not a shape (square): circle"));
//! ```

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An entry of a list that is chosen by name.
pub trait Named: Send + Sync + 'static {
    /// Its name in configurations, files and messages; unique in its list, and fixed once files have it.
    fn name(&self) -> &'static str;
    /// What it is, in one sentence without a full stop.
    fn summary(&self) -> &'static str;
}

/// A kind of thing of which there is a fixed list; implemented for the trait object of the entries.
pub trait Registry: Named {
    /// What an entry is called in messages, for example `masking strategy`.
    const WHAT: &'static str;

    /// Every entry, the default first; never empty.
    fn entries() -> &'static [&'static Self];
}

/// One entry of the registry of `T`. It dereferences to the entry; equality, display and serde go by the name.
pub struct Choice<T: Registry + ?Sized>(&'static T);

impl<T: Registry + ?Sized> Choice<T> {
    /// The choice of `entry`, which should be in the list: what is not cannot be read back.
    #[must_use]
    pub const fn of(entry: &'static T) -> Self {
        Choice(entry)
    }

    /// The entry of that name; none if the list has none.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        T::entries().iter().find(|entry| entry.name() == name).map(|entry| Choice(*entry))
    }

    /// The entry, for as long as the program runs.
    #[must_use]
    pub const fn get(self) -> &'static T {
        self.0
    }
}

impl<T: Registry + ?Sized> Default for Choice<T> {
    fn default() -> Self {
        Choice(T::entries()[0])
    }
}

impl<T: Registry + ?Sized> std::ops::Deref for Choice<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0
    }
}

impl<T: Registry + ?Sized> Clone for Choice<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Registry + ?Sized> Copy for Choice<T> {}

impl<T: Registry + ?Sized> PartialEq for Choice<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl<T: Registry + ?Sized> Eq for Choice<T> {}

impl<T: Registry + ?Sized> fmt::Debug for Choice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl<T: Registry + ?Sized> fmt::Display for Choice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl<T: Registry + ?Sized> Serialize for Choice<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de, T: Registry + ?Sized> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::by_name(&name).ok_or_else(|| {
            let names: Vec<&str> = T::entries().iter().map(|entry| entry.name()).collect();
            serde::de::Error::custom(format!("not a {} ({}): {name}", T::WHAT, names.join(", ")))
        })
    }
}

#[cfg(feature = "schema")]
impl<T: Registry + ?Sized> schemars::JsonSchema for Choice<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::WHAT.split(' ').map(|word| word[..1].to_uppercase() + &word[1..]).collect::<String>().into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one_of: Vec<serde_json::Value> = T::entries()
            .iter()
            .map(|entry| {
                let description = format!("{}.", entry.summary());
                serde_json::json!({ "type": "string", "const": entry.name(), "description": description })
            })
            .collect();
        schemars::json_schema!({ "oneOf": one_of })
    }
}
