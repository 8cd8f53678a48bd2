//! Registries: things that are chosen by name among a fixed list.
//!
//! A registry is a `static` list of trait objects. Configuration, its schema and messages read the list, so that an entry is added by a
//! file of its own, that file's `mod` line and its place in the list.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An entry of a list that is chosen by name.
pub trait Named: Send + Sync + 'static {
    /// Its name in configurations, files and messages.
    fn name(&self) -> &'static str;
    /// What it is, in one sentence without a full stop.
    fn summary(&self) -> &'static str;
}

/// A kind of thing of which there is a fixed list; implemented for the trait object of the entries.
pub trait Registry: Named {
    /// What an entry is called in messages, for example `masking strategy`.
    const WHAT: &'static str;

    /// Every entry, the default first.
    fn entries() -> &'static [&'static Self];
}

/// One entry of the registry of `T`, compared, written and read by its name.
pub struct Choice<T: Registry + ?Sized>(&'static T);

impl<T: Registry + ?Sized> Choice<T> {
    /// The choice of `entry`.
    #[must_use]
    pub const fn of(entry: &'static T) -> Self {
        Choice(entry)
    }

    /// The entry of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        T::entries().iter().find(|entry| entry.name() == name).map(|entry| Choice(*entry))
    }

    /// The entry.
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
