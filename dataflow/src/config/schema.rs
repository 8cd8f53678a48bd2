//! The JSON schema of the configuration, and the check of untyped TOML against it.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use toml::{Table, Value};

use super::{Config, ConfigError};

/// The JSON schema (draft 2020-12) of the configuration, with every key's documentation and default.
#[must_use]
pub fn schema() -> &'static Json {
    static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.inline_subschemas = true;
        });
        let generator = settings.into_generator();
        let mut schema = generator.into_root_schema_for::<Config>().to_value();
        if let Ok(defaults) = serde_json::to_value(Config::default()) {
            put_defaults(&mut schema, &defaults);
        }
        schema
    });
    &SCHEMA
}

/// Writes the default of each key as the whole configuration has it: that of a type alone may differ
/// from that of the section in which it is used.
fn put_defaults(schema: &mut Json, defaults: &Json) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    match fields.get_mut("properties").and_then(Json::as_object_mut) {
        Some(keys) => {
            for (name, inner) in keys {
                if let Some(default) = defaults.get(name) {
                    put_defaults(inner, default);
                }
            }
            fields.remove("default");
        }
        None => {
            fields.insert("default".into(), defaults.clone());
        }
    }
}

/// Every error of `table` against the schema.
pub(super) fn check(table: &Table) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    check_table(table, schema(), "", &mut errors);
    errors
}

/// All dotted keys of a schema that hold values.
pub(super) fn leaf_keys(schema: &Json, prefix: &str, keys: &mut Vec<String>) {
    if let Some(properties) = schema.get("properties").and_then(Json::as_object) {
        for (name, inner) in properties {
            leaf_keys(inner, &join(prefix, name), keys);
        }
    } else if types_of(schema) != ["object"] || entries_of(schema).is_some() {
        keys.push(prefix.to_owned());
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// The candidate most like `word`, if any is like it.
#[must_use]
pub fn most_like<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Names that others give to keys of which they have no letters in common, or too few.
const SYNONYMS: [(&str, &str); 14] = [
    ("learning_rate", "lr"),
    ("wd", "weight_decay"),
    ("batch_size", "batch"),
    ("warmup", "warmup_steps"),
    ("embed_dim", "dim"),
    ("hidden_size", "dim"),
    ("num_layers", "depth"),
    ("layers", "depth"),
    ("mask_ratio", "ratio"),
    ("masking_ratio", "ratio"),
    ("num_steps", "outer_iterations"),
    ("steps", "outer_iterations"),
    ("num_workers", "workers"),
    ("queue_size", "queue_cap"),
];

/// What was probably meant by the unknown key `name` in the section `prefix`: a key beside it, the
/// same name in another section, or a name there that ends in it, as `head_dropout` in `dropout`.
fn suggest_key(prefix: &str, name: &str, section: &Json) -> Option<String> {
    let siblings = section.get("properties").and_then(Json::as_object);
    let synonym = SYNONYMS.iter().find(|pair| pair.0 == name).map(|pair| pair.1);
    if let Some(synonym) = synonym
        && siblings.is_some_and(|keys| keys.contains_key(synonym))
    {
        return Some(join(prefix, synonym));
    }
    let siblings = siblings.into_iter().flat_map(|keys| keys.keys().map(String::as_str));
    if let Some(like) = most_like(name, siblings) {
        return Some(join(prefix, like));
    }
    let mut keys = Vec::new();
    leaf_keys(schema(), "", &mut keys);
    let last = |key: &str| key.rsplit('.').next().is_some_and(|last| last == name || Some(last) == synonym);
    let end = format!("_{name}");
    keys.iter().find(|key| last(key)).or_else(|| keys.iter().find(|key| key.ends_with(&end))).cloned()
}

fn check_table(table: &Table, schema: &Json, prefix: &str, errors: &mut Vec<ConfigError>) {
    for (name, value) in table {
        let key = join(prefix, name);
        match schema.get("properties").and_then(|keys| keys.get(name)) {
            Some(inner) => check_value(value, inner, &key, errors),
            None => errors.push(ConfigError {
                key,
                value: String::new(),
                problem: "unknown key".into(),
                allowed: String::new(),
                suggestion: suggest_key(prefix, name, schema),
            }),
        }
    }
}

/// What the values of a table with keys of its user's choice must be like; none for a table with known keys.
fn entries_of(schema: &Json) -> Option<&Json> {
    schema.get("additionalProperties").filter(|entries| entries.is_object())
}

/// The types that a schema admits; `null` is left out, because TOML has none.
fn types_of(schema: &Json) -> Vec<&str> {
    match schema.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).filter(|one| *one != "null").collect(),
        _ => Vec::new(),
    }
}

/// The words that a schema of an enumeration admits.
fn words_of(schema: &Json) -> Vec<&str> {
    if let Some(words) = schema.get("enum").and_then(Json::as_array) {
        return words.iter().filter_map(Json::as_str).collect();
    }
    for group in ["oneOf", "anyOf"] {
        if let Some(variants) = schema.get(group).and_then(Json::as_array) {
            return variants
                .iter()
                .flat_map(|variant| match variant.get("const").and_then(Json::as_str) {
                    Some(word) => vec![word],
                    None => words_of(variant),
                })
                .collect();
        }
    }
    Vec::new()
}

/// The whole numbers that a schema of an enumeration admits.
fn numbers_of(schema: &Json) -> Vec<i64> {
    let values = schema.get("enum").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    values.iter().filter_map(Json::as_i64).collect()
}

/// The tables that a schema admits, by the word of their key `kind`; none of another schema.
fn kinds_of(schema: &Json) -> Vec<(&str, &Json)> {
    let variants = schema.get("oneOf").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let kind = |variant| Json::pointer(variant, "/properties/kind/const").and_then(Json::as_str);
    variants.iter().filter_map(|variant| Some((kind(variant)?, variant))).collect()
}

/// Checks a table of one of several kinds.
fn check_kind(value: &Value, kinds: &[(&str, &Json)], key: &str, errors: &mut Vec<ConfigError>) {
    let words: Vec<&str> = kinds.iter().map(|(word, _)| *word).collect();
    let refuse = |key: String, value: String, problem: &str, allowed: String, suggestion| ConfigError {
        key,
        value,
        problem: problem.to_owned(),
        allowed,
        suggestion,
    };
    let Value::Table(table) = value else {
        errors.push(refuse(key.to_owned(), value.to_string(), "wrong type", "table".to_owned(), None));
        return;
    };
    let of_kind = format!("{key}.kind");
    let Some(kind) = table.get("kind") else {
        errors.push(refuse(of_kind, String::new(), "is missing", words.join(", "), None));
        return;
    };
    match kinds.iter().find(|(word, _)| kind.as_str() == Some(word)) {
        Some((_, schema)) => check_table(table, schema, key, errors),
        None => {
            let like = kind.as_str().and_then(|word| most_like(word, words.iter().copied()));
            let like = like.map(|word| format!("\"{word}\""));
            errors.push(refuse(of_kind, kind.to_string(), "not an allowed value", words.join(", "), like));
        }
    }
}

/// A range in words: `1 to 8`.
fn range_of(schema: &Json) -> String {
    let bound = |name: &str| schema.get(name).filter(|bound| bound.is_number());
    match (bound("minimum"), bound("maximum")) {
        (Some(low), Some(high)) => format!("{low} to {high}"),
        (Some(low), None) => format!("{low} or more"),
        (None, Some(high)) => format!("up to {high}"),
        (None, None) => String::new(),
    }
}

fn allowed(kind: &str, schema: &Json) -> String {
    let what = match kind {
        "integer" => "whole number",
        "number" => "number",
        "boolean" => return "true, false".into(),
        "string" => match schema.get("pattern").and_then(Json::as_str) {
            Some(pattern) => return format!("text like {pattern}"),
            None => return "text".into(),
        },
        "array" => return format!("list of {}", array_of(schema)),
        _ => return "table".into(),
    };
    match range_of(schema) {
        range if range.is_empty() => what.to_owned(),
        range => format!("{what}, {range}"),
    }
}

fn array_of(schema: &Json) -> String {
    let items = schema.get("items").unwrap_or(&Json::Null);
    let kind = types_of(items).first().copied().unwrap_or("number");
    match schema.get("minItems").and_then(Json::as_u64) {
        Some(len) => format!("{len} values, each {}", allowed(kind, items)),
        None => allowed(kind, items),
    }
}

fn check_value(value: &Value, schema: &Json, key: &str, errors: &mut Vec<ConfigError>) {
    let words = words_of(schema);
    let refuse = |problem: &str, allowed: String, suggestion: Option<String>| ConfigError {
        key: key.to_owned(),
        value: match value {
            Value::Table(_) => "{ .. }".to_owned(),
            other => other.to_string(),
        },
        problem: problem.to_owned(),
        allowed,
        suggestion,
    };
    if !words.is_empty() {
        if !value.as_str().is_some_and(|word| words.contains(&word)) {
            let like = value.as_str().and_then(|word| most_like(word, words.iter().copied()));
            let like = like.map(|word| format!("\"{word}\""));
            errors.push(refuse("not an allowed value", words.join(", "), like));
        }
        return;
    }
    let numbers = numbers_of(schema);
    if !numbers.is_empty() {
        if !value.as_integer().is_some_and(|number| numbers.contains(&number)) {
            let listed: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            errors.push(refuse("not an allowed value", listed.join(", "), None));
        }
        return;
    }
    let kind = types_of(schema).first().copied().unwrap_or("object");
    let number = match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    };
    let is_kind = match kind {
        "integer" => value.is_integer(),
        "number" => number.is_some(),
        "boolean" => value.is_bool(),
        "string" => value.is_str(),
        "array" => value.is_array(),
        _ => value.is_table(),
    };
    if !is_kind {
        errors.push(refuse("wrong type", allowed(kind, schema), None));
        return;
    }
    match value {
        Value::Table(table) => match entries_of(schema) {
            Some(entries) => {
                for (name, value) in table {
                    check_value(value, entries, &join(key, name), errors);
                }
            }
            None => check_table(table, schema, key, errors),
        },
        Value::Array(items) => {
            let len = schema.get("minItems").and_then(Json::as_u64);
            if len.is_some_and(|len| items.len() as u64 != len) {
                errors.push(refuse("wrong number of values", allowed(kind, schema), None));
                return;
            }
            let of_items = schema.get("items").unwrap_or(&Json::Null);
            let kinds = kinds_of(of_items);
            if !kinds.is_empty() {
                for (place, item) in items.iter().enumerate() {
                    check_kind(item, &kinds, &format!("{key}[{place}]"), errors);
                }
                return;
            }
            let mut inner = Vec::new();
            for item in items {
                check_value(item, of_items, key, &mut inner);
            }
            if let Some(first) = inner.into_iter().next() {
                errors.push(refuse(&first.problem, allowed(kind, schema), None));
            }
        }
        Value::String(text) => {
            let too_short =
                schema.get("minLength").and_then(Json::as_u64).is_some_and(|len| (text.chars().count() as u64) < len);
            if too_short {
                errors.push(refuse("must not be empty", "text of 1 character or more".into(), None));
            }
        }
        _ => {
            let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
            if let Some(number) = number {
                // Written so that NaN is refused too.
                let inside = bound("minimum").is_none_or(|low| number >= low)
                    && bound("maximum").is_none_or(|high| number <= high);
                if !inside || !number.is_finite() {
                    errors.push(refuse("out of range", allowed(kind, schema), None));
                }
            }
        }
    }
}
