//! The choice of a device: by name, or the first that can be used.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::list::{DEVICES, DeviceChoice};
use super::seam::Device;
use crate::error::ModelError;

/// How the device of a run is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The first of [`DEVICES`] that can be used here.
    #[default]
    Auto,
    /// This one.
    Of(DeviceChoice),
}

/// The word for [`Engine::Auto`].
const AUTO: &str = "auto";

/// A device that can be used, and how it came to be chosen.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The device.
    pub device: DeviceChoice,
    /// [`Device::description`] of it.
    pub description: String,
    /// Why none that is preferred, as text for people; empty where there is nothing to say.
    pub why: String,
    /// Whether it was asked for by name.
    pub is_asked_for: bool,
}

impl Engine {
    /// The engine of that name; none if there is none.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        if name == AUTO { Some(Engine::Auto) } else { DeviceChoice::by_name(name).map(Engine::Of) }
    }

    /// The name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Engine::Auto => AUTO,
            Engine::Of(device) => device.get().name(),
        }
    }

    /// All names, the default first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        std::iter::once(AUTO).chain(DEVICES.iter().map(|device| device.name()))
    }

    /// The device to compute on.
    ///
    /// # Errors
    /// With [`ModelError::Engine`] if the device that is asked for, or every device, cannot be used here.
    pub fn choose(self) -> Result<Chosen, ModelError> {
        self.choose_among(DEVICES)
    }

    /// As [`Engine::choose`], of a list in order of preference.
    ///
    /// # Errors
    /// As [`Engine::choose`].
    pub fn choose_among(self, devices: &[&'static dyn Device]) -> Result<Chosen, ModelError> {
        let refuse = |problem: String| {
            let usable = devices.iter().filter(|device| device.problem().is_none()).map(|device| device.name());
            let usable = std::iter::once(AUTO).chain(usable).collect::<Vec<_>>().join(", ");
            ModelError::Engine { engine: self.name(), problem, usable }
        };
        match self {
            Engine::Of(device) => match device.problem() {
                None => {
                    let description = device.description();
                    Ok(Chosen { device, description, why: String::new(), is_asked_for: true })
                }
                Some(problem) => Err(refuse(problem)),
            },
            Engine::Auto => {
                let mut problems = Vec::new();
                for device in devices {
                    match device.problem() {
                        Some(problem) => problems.push(problem),
                        None => {
                            let (device, description) = (DeviceChoice::of(*device), device.description());
                            let why = problems.join("; ");
                            return Ok(Chosen { device, description, why, is_asked_for: false });
                        }
                    }
                }
                Err(refuse(problems.join("; ")))
            }
        }
    }
}

impl fmt::Display for Chosen {
    /// One line for people: `engine cuda: NVIDIA H200, driver 13.0`, `engine cpu: no CUDA driver`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine {}", self.text())
    }
}

impl Chosen {
    /// The line without its first word.
    #[must_use]
    pub fn text(&self) -> String {
        let asked = if self.is_asked_for { "as configured" } else { "" };
        let said = [self.description.as_str(), self.why.as_str(), asked];
        let said: Vec<&str> = said.into_iter().filter(|part| !part.is_empty()).collect();
        match said[..] {
            [] => self.device.to_string(),
            _ => format!("{}: {}", self.device, said.join("; ")),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Engine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Engine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::by_name(&name).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            serde::de::Error::custom(format!("not an engine ({}): {name}", names.join(", ")))
        })
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Engine {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Engine".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let devices = DEVICES.iter().map(|device| (device.name(), device.summary()));
        let auto = "The first device that can be used on this machine, a GPU before the processor";
        let one_of: Vec<serde_json::Value> = std::iter::once((AUTO, auto))
            .chain(devices)
            .map(|(name, summary)| {
                serde_json::json!({ "type": "string", "const": name, "description": format!("{summary}.") })
            })
            .collect();
        schemars::json_schema!({ "oneOf": one_of })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::cpu::Cpus;
    use super::super::seam::{Lane, LaneSize, Lanes, LanesSpec};
    use super::*;
    use crate::choice::Named;
    use crate::model::Model;
    use crate::parallel::arena::Arena;
    use crate::precision::Precision;

    /// A device that is never opened: what it lacks, and what it says of itself.
    struct Card(Option<&'static str>, &'static str);

    impl Named for Card {
        fn name(&self) -> &'static str {
            "card"
        }
        fn summary(&self) -> &'static str {
            "A card of the test"
        }
    }

    impl Device for Card {
        fn problem(&self) -> Option<String> {
            self.0.map(str::to_owned)
        }
        fn description(&self) -> String {
            self.1.to_owned()
        }
        fn refuses(&self, _: Precision) -> Option<String> {
            None
        }
        fn lanes(&self, _: &LanesSpec) -> Result<Lanes, ModelError> {
            unreachable!("never opened")
        }
        fn lane(
            &self,
            _: &Arc<Model>,
            _: &Arena,
            _: usize,
            _: Precision,
            _: LaneSize,
        ) -> Result<Box<dyn Lane>, ModelError> {
            unreachable!("never opened")
        }
    }

    static HERE: Card = Card(None, "NVIDIA H200, driver 13.0");
    static GONE: Card = Card(Some("no CUDA driver (libcuda.so.1 not found)"), "");

    #[test]
    fn auto_takes_the_first_device_that_can_be_used_and_says_why_not_those_before() {
        let auto = |devices: &[&'static dyn Device]| Engine::Auto.choose_among(devices).unwrap().to_string();
        assert_eq!(auto(&[&HERE, &Cpus]), "engine card: NVIDIA H200, driver 13.0");
        assert_eq!(auto(&[&GONE, &Cpus]), "engine cpu: no CUDA driver (libcuda.so.1 not found)");
        assert_eq!(auto(&[&Cpus, &GONE]), "engine cpu", "what is not preferred is not looked for");
        let error = Engine::Auto.choose_among(&[&GONE]).unwrap_err().to_string();
        assert!(error.contains("libcuda.so.1 not found"), "{error}");
    }

    #[test]
    fn a_device_that_is_named_is_taken_or_refused_with_what_is_missing() {
        let of = |device: &'static dyn Device| Engine::Of(DeviceChoice::of(device));
        let line = |engine: Engine| engine.choose_among(&[&HERE, &Cpus]).unwrap().to_string();
        assert_eq!(line(of(&Cpus)), "engine cpu: as configured");
        assert_eq!(line(of(&HERE)), "engine card: NVIDIA H200, driver 13.0; as configured");
        let error = of(&GONE).choose_among(&[&GONE, &Cpus]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "engine = \"card\": no CUDA driver (libcuda.so.1 not found) (usable here: auto, cpu)"
        );
    }

    #[test]
    fn names_go_both_ways_and_others_are_refused_with_all_of_them() {
        for name in Engine::names() {
            let engine: Engine = serde_json::from_value(name.into()).unwrap();
            assert_eq!((engine.name(), serde_json::to_value(engine).unwrap()), (name, name.into()));
        }
        assert_eq!(Engine::names().next(), Some(Engine::default().name()));
        let error = serde_json::from_str::<Engine>("\"abacus\"").unwrap_err().to_string();
        assert!(error.starts_with("not an engine (auto, ") && error.contains("cpu): abacus"), "{error}");
        assert!(Engine::Auto.choose().is_ok(), "the processor can always be used");
    }
}
