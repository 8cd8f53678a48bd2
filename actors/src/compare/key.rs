//! Keys of cells: hashes of what their results depend on.

use std::fmt;

use mlomae_dataflow::config::Config;

use crate::process::error::CliError;
use crate::train::experiment::Experiment;

/// A 128-bit FNV-1a hash; displays as 32 hexadecimal digits. It tells changes, and is no protection from forgers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u128);

const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// Sections that change no bit of a run's weights: where it lies, how it is judged, who works on it and who watches.
const WITHOUT_EFFECT: [&str; 4] = ["run", "eval", "actors", "telemetry"];

impl Key {
    /// The hash of `parts`, of which each counts as a whole.
    #[must_use]
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = OFFSET;
        let mut add = |byte: u8| hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        for part in parts {
            (part.len() as u64).to_le_bytes().into_iter().chain(part.bytes()).for_each(&mut add);
        }
        Self(hash)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The hash of what a trained encoder depends on: the configuration without the sections that change no bit, the hash
/// of its `data`, and `further` words.
#[must_use]
pub fn config_key(config: &Config, data: Key, further: &[&str]) -> Key {
    let mut table = match toml::Value::try_from(config) {
        Ok(toml::Value::Table(table)) => table,
        _ => toml::Table::new(),
    };
    table.retain(|section, _| !WITHOUT_EFFECT.contains(&section));
    // What the data hold is in their hash; where they lie is of no effect.
    if let Some(toml::Value::Table(section)) = table.get_mut("data") {
        section.remove("path");
    }
    let (text, data) = (table.to_string(), data.to_string());
    let mut parts = vec![text.as_str(), &data, env!("CARGO_PKG_VERSION")];
    parts.extend(further);
    Key::of(&parts)
}

/// The hash of what an experiment's data hold, wherever they lie.
///
/// # Errors
/// If a label cannot be read or a file is gone.
pub fn data_key(experiment: &Experiment) -> Result<Key, CliError> {
    let content = serde_json::to_string(experiment.content()?).unwrap_or_default();
    Ok(Key::of(&[&content]))
}

/// The hash of how a cell is judged: the settings of evaluations, on which images, and what is read of its logs.
/// `data` is the hash of what is in the data of `config` where they are others than those that trained.
#[must_use]
pub fn judge_key(config: &Config, on: &str, logged: &[String], data: Option<Key>) -> Key {
    let eval = toml::to_string(&config.eval).unwrap_or_default();
    let seed = config.seed.to_string();
    let (logged, data) = (logged.join(","), data.map(|data| [data_text(config), data.to_string()].concat()));
    let mut parts = vec![eval.as_str(), &seed, on, &logged, env!("CARGO_PKG_VERSION")];
    parts.extend(data.as_deref());
    Key::of(&parts)
}

/// The section `data` without the place of the files: what they hold is hashed.
fn data_text(config: &Config) -> String {
    let mut data = config.data.clone();
    data.path = None;
    toml::to_string(&data).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mlomae_dataflow::config::ConfigInputs;

    use super::*;

    #[test]
    fn a_key_is_the_published_hash_and_tells_where_parts_end() {
        // FNV-1a of 8 zero bytes, by the reference in Python: h = (h ^ 0) * prime, eight times, modulo 2^128.
        let mut expected = OFFSET;
        for _ in 0..8 {
            expected = expected.wrapping_mul(PRIME);
        }
        assert_eq!(Key::of(&[""]), Key(expected));
        assert_ne!(Key::of(&["ab", "c"]), Key::of(&["a", "bc"]));
        assert_eq!(Key::of(&[]).to_string(), "6c62272e07bb014262b821756295c58d");
    }

    #[test]
    fn only_what_changes_the_weights_changes_the_key() {
        let of = |set: &str| {
            let config = Config::resolve(&ConfigInputs::quickstart().set(set)).unwrap();
            config_key(&config, Key::of(&["data"]), &["avx2"])
        };
        let plain = of("seed=1");
        for same in ["actors.encoder.workers=3", "run.root=elsewhere", "eval.knn_k=3"] {
            assert_eq!(of(same), plain, "{same}");
        }
        for other in ["seed=2", "policy.lr=2e-4", "train.outer_iterations=3", "mask.ratio=0.5"] {
            assert_ne!(of(other), plain, "{other}");
        }
        let at = |path: &str, content: &str| {
            let inputs = ConfigInputs::default().set("data.format=auto").set(&format!("data.path={path}"));
            config_key(&Config::resolve(&inputs).unwrap(), Key::of(&[content]), &[])
        };
        assert_eq!(at("/here", "data"), at("/there", "data"));
        assert_ne!(at("/here", "data"), at("/here", "other data"));
        let config = Config::resolve(&ConfigInputs::quickstart()).unwrap();
        let judged = judge_key(&config, "test", &[], None);
        assert_ne!(judged, judge_key(&config, "validation", &[], None));
        assert_ne!(judged, judge_key(&config, "test", &["policy_lag".to_owned()], None));
        let other = |set: &str| Config::resolve(&ConfigInputs::quickstart().set(set)).unwrap();
        assert_ne!(judged, judge_key(&other("eval.knn_k=3"), "test", &[], None));
        // Other data than those that trained: their content and how it is taken.
        let transfer = |config: &Config, content: &str| judge_key(config, "test", &[], Some(Key::of(&[content])));
        assert_ne!(judged, transfer(&config, "data"));
        assert_ne!(transfer(&config, "data"), transfer(&config, "other data"));
        assert_ne!(transfer(&config, "data"), transfer(&other("data.finetune_fraction=0.1"), "data"));
    }
}
