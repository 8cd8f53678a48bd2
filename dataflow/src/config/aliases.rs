//! Keys by their former names: old configurations, and those in old runs, stay readable.

use mlomae_model::masking::MASKINGS;
use toml::{Table, Value};

use super::{ConfigError, table};

/// Keys that have another name now, with the same values.
const RENAMED: [(&str, &str); 3] =
    [("mask.net", "mask.strategy"), ("data.train_fraction", "data.finetune_fraction"), ("compute.device", "engine")];

/// The switch for what is a masking strategy now.
const BASELINE: &str = "method.baseline";
const STRATEGY: &str = "mask.strategy";
const RANDOM: &str = "random";

fn path(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// That `old`, the former name of `new`, stands beside it.
fn both(old: &str, value: &Value, new: &str) -> ConfigError {
    ConfigError {
        key: old.to_owned(),
        value: value.to_string(),
        problem: format!("is the former name of {new}, which is given too"),
        allowed: new.to_owned(),
        suggestion: None,
    }
}

/// Gives the keys of one layer their names of today. `method.baseline` stays until [`take_baseline`], as a later layer
/// may switch it off.
pub(super) fn rename(layer: &mut Table) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    if let (Some(_), Some(value)) = (table::get(layer, STRATEGY), table::get(layer, BASELINE)) {
        errors.push(both(BASELINE, value, STRATEGY));
    }
    for (old, new) in RENAMED {
        let Some(value) = table::get(layer, old).cloned() else { continue };
        table::remove(layer, old);
        match table::get(layer, new) {
            Some(_) => errors.push(both(old, &value, new)),
            None => errors.extend(table::put(layer, &path(new), value).err()),
        }
    }
    errors
}

/// Merges `layer` over `given`. A strategy that is written out wins over an earlier `method.baseline`.
pub(super) fn merge(given: &mut Table, mut layer: Table) -> Vec<ConfigError> {
    let is_written = table::get(&layer, STRATEGY).is_some();
    let errors = rename(&mut layer);
    if is_written {
        table::remove(given, BASELINE);
    }
    table::merge(given, layer);
    errors
}

/// Names the keys of `errors` as the inputs do: by their former names where only these were given.
pub(super) fn name_as_given(errors: &mut [ConfigError], layers: &[Table]) {
    for (old, new) in RENAMED {
        let gives = |key: &str| layers.iter().any(|layer| table::get(layer, key).is_some());
        if gives(old) && !gives(new) {
            for error in errors.iter_mut().filter(|error| error.key == new) {
                old.clone_into(&mut error.key);
            }
        }
    }
}

/// Takes `method.baseline` out of all layers merged, before the schema sees them: whether it asks for [`random`].
///
/// # Errors
/// If it is no boolean, or says that random masks are not wanted where the strategy says they are.
pub(super) fn take_baseline(given: &mut Table) -> Result<bool, ConfigError> {
    let Some(value) = table::get(given, BASELINE).cloned() else { return Ok(false) };
    table::remove(given, BASELINE);
    let is_random = table::get(given, STRATEGY).and_then(Value::as_str) == Some(RANDOM);
    let (problem, allowed) = match value {
        Value::Boolean(true) => return Ok(true),
        Value::Boolean(false) if !is_random => return Ok(false),
        Value::Boolean(false) => {
            let learned = MASKINGS.iter().filter(|kind| kind.is_learned()).map(|kind| kind.name());
            let allowed = format!("{STRATEGY} = {}", learned.collect::<Vec<_>>().join(", "));
            (format!("{STRATEGY} = {RANDOM:?} is given too and learns no masks"), allowed)
        }
        _ => ("wrong type".to_owned(), "true, false".to_owned()),
    };
    Err(ConfigError { key: BASELINE.to_owned(), value: value.to_string(), problem, allowed, suggestion: None })
}

/// Writes the strategy for which `method.baseline = true` stood.
pub(super) fn random(given: &mut Table) {
    // The section is a table: the schema has refused and left out everything else.
    table::put(given, &path(STRATEGY), Value::String(RANDOM.to_owned())).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use mlomae_model::masking::MASKINGS;

    use super::super::{Config, ConfigInputs};

    fn strategy(inputs: &ConfigInputs) -> &'static str {
        Config::resolve(inputs).expect("valid").mask.strategy.get().name()
    }

    #[test]
    fn old_names_mean_what_they_meant() {
        let old = |text: &str| ConfigInputs::default().layer("old.toml", text);
        assert_eq!(strategy(&old("")), "flat-mlp");
        assert_eq!(strategy(&old("[mask]\nnet = \"token-mlp\"")), "token-mlp");
        assert_eq!(strategy(&old("[method]\nbaseline = true")), "random");
        assert_eq!(strategy(&old("[method]\nbaseline = false\n[mask]\nnet = \"token-mlp\"")), "token-mlp");
        assert_eq!(strategy(&old("[method]\nbaseline = true\n[mask]\nnet = \"token-mlp\"")), "random");
        let config = Config::resolve(&old("[data]\ntrain_fraction = 0.2")).expect("valid");
        assert_eq!(config.data.finetune_fraction, 0.2);
        let engine = |inputs: &ConfigInputs| Config::resolve(inputs).expect("valid").engine.name();
        assert_eq!(engine(&old("[compute]\ndevice = \"cpu\"")), "cpu", "as runs of before have it");
        assert_eq!(engine(&old("engine = \"auto\"").set("compute.device=cpu")), "cpu");
    }

    #[test]
    fn later_layers_win_by_either_name() {
        let layers =
            |texts: &[&str]| texts.iter().fold(ConfigInputs::default(), |inputs, text| inputs.layer("x", text));
        let (random, token) = ("[method]\nbaseline = true", "[mask]\nnet = \"token-mlp\"");
        assert_eq!(strategy(&layers(&[random]).set("method.baseline=false")), "flat-mlp");
        assert_eq!(strategy(&layers(&[token, random]).set("method.baseline=false")), "token-mlp");
        assert_eq!(strategy(&layers(&[random]).set("mask.strategy=flat-mlp")), "flat-mlp");
        assert_eq!(strategy(&layers(&[random, token])), "random", "the old names together as before");
        assert_eq!(strategy(&layers(&["[mask]\nstrategy = \"token-mlp\""]).set("mask.net=flat-mlp")), "flat-mlp");
    }

    #[test]
    fn a_wrong_engine_is_refused_by_the_name_that_was_given() {
        let line = |text: &str| {
            let errors = Config::resolve(&ConfigInputs::default().layer("x", text)).expect_err("refused");
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let [new, old] = [line("engine = \"abacus\""), line("[compute]\ndevice = \"abacus\"")];
        assert!(new.starts_with("engine = \"abacus\": not an allowed value (allowed: auto, "), "{new}");
        assert!(old.starts_with("compute.device = \"abacus\": not an allowed value (allowed: auto, "), "{old}");
        let both = line("engine = \"cpu\"\n[compute]\ndevice = \"cpu\"");
        assert!(both.starts_with("compute.device = \"cpu\": is the former name of engine"), "{both}");
    }

    #[test]
    fn both_names_at_once_and_other_types_are_refused() {
        let lines = |inputs: &ConfigInputs| {
            let errors = Config::resolve(inputs).expect_err("refused");
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let line = |text: &str| lines(&ConfigInputs::default().layer("x", text))[0].clone();
        let both = line("[mask]\nnet = \"flat-mlp\"\nstrategy = \"flat-mlp\"");
        assert_eq!(
            both,
            "mask.net = \"flat-mlp\": is the former name of mask.strategy, which is given too (allowed: mask.strategy)"
        );
        assert_eq!(
            line("[method]\nbaseline = \"yes\""),
            "method.baseline = \"yes\": wrong type (allowed: true, false)"
        );
        let all = "[mask]\nnet = \"flat-mlp\"\nstrategy = \"flat-mlp\"\n[method]\nbaseline = true\n\
            [data]\ntrain_fraction = 0.2\nfinetune_fraction = 0.2";
        let keys = lines(&ConfigInputs::default().layer("x", all)).into_iter();
        let keys: Vec<_> = keys.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(keys, ["method.baseline", "mask.net", "data.train_fraction"], "every conflict at once");
        for wrong in ["net = \"flat\"", "net = 3", "strategy = \"\""] {
            let [mask, baseline] = [format!("[mask]\n{wrong}"), "[method]\nbaseline = true".to_owned()];
            let inputs = ConfigInputs::default().layer("x", &mask).layer("y", &baseline);
            let lines = lines(&inputs);
            let names: Vec<_> = MASKINGS.iter().map(|kind| kind.name()).collect();
            let allowed = format!("allowed: {}", names.join(", "));
            assert!(lines.len() == 1 && lines[0].contains(&allowed), "{lines:?}");
        }
        let random = ConfigInputs::default().layer("x", "[mask]\nstrategy = \"random\"").set("method.baseline=false");
        let learned: Vec<_> = MASKINGS.iter().filter(|kind| kind.is_learned()).map(|kind| kind.name()).collect();
        assert_eq!(
            lines(&random),
            [format!(
                "method.baseline = false: mask.strategy = \"random\" is given too and learns no masks \
                 (allowed: mask.strategy = {})",
                learned.join(", ")
            )]
        );
    }
}
