//! Keys by their former names: old configurations, and those in old runs, stay readable.

use toml::{Table, Value};

use super::{ConfigError, table};

/// Keys that have another name now, with the same values.
const RENAMED: [(&str, &str); 2] = [("mask.net", "mask.strategy"), ("data.train_fraction", "data.finetune_fraction")];

/// The switch for what is a masking strategy now.
const BASELINE: &str = "method.baseline";
const STRATEGY: &str = "mask.strategy";

fn path(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// Gives the keys of one layer their names of today. `method.baseline` stays until [`finish`], as a later layer may
/// switch it off.
pub(super) fn rename(layer: &mut Table) -> Result<(), ConfigError> {
    for (old, new) in RENAMED {
        let Some(value) = table::get(layer, old).cloned() else { continue };
        table::remove(layer, old);
        if table::get(layer, new).is_some() {
            return Err(ConfigError {
                key: old.to_owned(),
                value: value.to_string(),
                problem: format!("is the former name of {new}, which is given too"),
                allowed: new.to_owned(),
                suggestion: None,
            });
        }
        table::put(layer, &path(new), value)?;
    }
    Ok(())
}

/// Merges `layer` over `given`. A strategy that is written out wins over an earlier `method.baseline`.
pub(super) fn merge(given: &mut Table, mut layer: Table) -> Result<(), ConfigError> {
    let is_written = table::get(&layer, STRATEGY).is_some();
    rename(&mut layer)?;
    if is_written && table::get(&layer, BASELINE).is_none() {
        table::remove(given, BASELINE);
    }
    table::merge(given, layer);
    Ok(())
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

/// Turns `method.baseline = true` into the strategy `random`, once all layers are merged.
pub(super) fn finish(given: &mut Table) -> Result<(), ConfigError> {
    let Some(value) = table::get(given, BASELINE).cloned() else { return Ok(()) };
    table::remove(given, BASELINE);
    match value {
        Value::Boolean(false) => Ok(()),
        Value::Boolean(true) => table::put(given, &path(STRATEGY), Value::String("random".to_owned())),
        other => Err(ConfigError {
            key: BASELINE.to_owned(),
            value: other.to_string(),
            problem: "wrong type".to_owned(),
            allowed: "true, false".to_owned(),
            suggestion: None,
        }),
    }
}

#[cfg(test)]
mod tests {
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
    fn both_names_at_once_and_other_types_are_refused() {
        let line = |text: &str| {
            let inputs = ConfigInputs::default().layer("x", text);
            Config::resolve(&inputs).expect_err("refused")[0].to_string()
        };
        let both = line("[mask]\nnet = \"flat-mlp\"\nstrategy = \"flat-mlp\"");
        assert_eq!(
            both,
            "mask.net = \"flat-mlp\": is the former name of mask.strategy, which is given too (allowed: mask.strategy)"
        );
        assert_eq!(
            line("[method]\nbaseline = \"yes\""),
            "method.baseline = \"yes\": wrong type (allowed: true, false)"
        );
    }
}
