//! Operations on untyped TOML: parse, merge, set and remove by dotted path.

use toml::{Table, Value};

use super::ConfigError;

/// Names in a dotted key, and tables and lists in one another: what is deeper has no meaning here, and every operation
/// goes down by recursion. The parser has a bound of its own, of 80 nested values with keys of 80 names each.
const MAX_DEPTH: usize = 16;

/// Whether tables and lists are nested more than `levels` deep.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let Some(levels) = levels.checked_sub(1) else { return matches!(value, Value::Table(_) | Value::Array(_)) };
    match value {
        Value::Table(table) => table.values().any(|inner| is_deeper(inner, levels)),
        Value::Array(items) => items.iter().any(|inner| is_deeper(inner, levels)),
        _ => false,
    }
}

/// Parses a whole file; the error names line and column.
///
/// # Errors
/// If it is not TOML, or its values are nested too deep to mean anything.
pub fn parse(name: &str, text: &str) -> Result<Table, ConfigError> {
    let table = parse_text(name, text)?;
    match table.iter().find(|(_, value)| is_deeper(value, MAX_DEPTH)) {
        Some((key, _)) => Err(ConfigError {
            key: name.to_owned(),
            value: String::new(),
            problem: format!("the values of `{key}` are nested more than {MAX_DEPTH} deep"),
            allowed: "sections with keys in them".into(),
            suggestion: None,
        }),
        None => Ok(table),
    }
}

fn parse_text(name: &str, text: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>().map_err(|error| {
        let place = match error.span() {
            Some(span) => {
                let before = &text[..span.start.min(text.len())];
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().map_or(0, |tail| tail.chars().count()) + 1;
                format!("{name}:{line}:{column}")
            }
            None => name.to_owned(),
        };
        ConfigError {
            key: place,
            value: String::new(),
            problem: error.message().replace('\n', ", "),
            allowed: String::new(),
            suggestion: None,
        }
    })
}

/// Parses `a.b=value`; a value that is not TOML is taken as a string.
pub(super) fn parse_setting(setting: &str) -> Result<(Vec<String>, Value), ConfigError> {
    let refuse = |problem: &str| ConfigError {
        key: format!("--set {setting}"),
        value: String::new(),
        problem: problem.to_owned(),
        allowed: "key=value, as in pipeline.lag=1".into(),
        suggestion: None,
    };
    let (key, text) = setting.split_once('=').ok_or_else(|| refuse("has no equals sign"))?;
    let path: Vec<String> = key.trim().split('.').map(|part| part.trim().to_owned()).collect();
    if path.iter().any(String::is_empty) {
        return Err(refuse("has an empty key"));
    }
    if path.len() > MAX_DEPTH {
        return Err(refuse(&format!("has a key of {} names, more than {MAX_DEPTH}", path.len())));
    }
    let text = text.trim();
    let value = format!("value = {text}")
        .parse::<Table>()
        .ok()
        // A line break in the text could have smuggled in further keys.
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    if is_deeper(&value, MAX_DEPTH) {
        return Err(refuse(&format!("has a value that is nested more than {MAX_DEPTH} deep")));
    }
    Ok((path, value))
}

/// Keys whose value is a table that means something only as a whole: a later one replaces it.
const WHOLE: [&str; 1] = ["mixture"];

/// Merges `layer` over `base`: tables by key, everything else as a whole.
pub(super) fn merge(base: &mut Table, layer: Table) {
    for (key, value) in layer {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if !WHOLE.contains(&key.as_str()) => merge(old, new),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Sets the value at `path`, making the tables on the way.
pub(super) fn put(table: &mut Table, path: &[String], value: Value) -> Result<(), ConfigError> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(());
    };
    if rest.is_empty() {
        let is_whole = WHOLE.contains(&first.as_str());
        if let (Some(Value::Table(old)), Value::Table(_), false) = (table.get_mut(first), &value, is_whole) {
            if let Value::Table(new) = value {
                merge(old, new);
            }
        } else {
            table.insert(first.clone(), value);
        }
        return Ok(());
    }
    let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
    match inner {
        Value::Table(inner) => put(inner, rest, value),
        other => Err(ConfigError {
            key: first.clone(),
            value: other.to_string(),
            problem: format!("is no table, so {} cannot be set in it", rest.join(".")),
            allowed: "table".into(),
            suggestion: None,
        }),
    }
}

/// The value at a dotted path.
pub(super) fn get<'t>(table: &'t Table, path: &str) -> Option<&'t Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((first, rest)) => get(table.get(first)?.as_table()?, rest),
    }
}

/// Removes the value at a dotted path, if it is there.
pub(super) fn remove(table: &mut Table, path: &str) {
    match path.split_once('.') {
        None => {
            table.remove(path);
        }
        Some((first, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                remove(inner, rest);
            }
        }
    }
}
