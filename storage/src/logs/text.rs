//! Log rows as text.

use std::fmt::Write;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType};

use crate::clock::rfc3339;

/// Appends a value as text; nothing for a null.
///
/// Times are RFC 3339, lists are `[a, b]`, floats have the fewest digits that read back to the same value.
pub(crate) fn cell(array: &dyn Array, row: usize, out: &mut String) {
    if array.is_null(row) {
        return;
    }
    // Writing to a string cannot fail.
    let _ = match array.data_type() {
        DataType::Utf8 => write!(out, "{}", array.as_string::<i32>().value(row)),
        DataType::Dictionary(..) => match array.as_dictionary_opt::<Int32Type>() {
            Some(dict) => {
                let key = usize::try_from(dict.keys().value(row)).unwrap_or(0);
                cell(dict.values().as_ref(), key, out);
                Ok(())
            }
            None => Ok(()),
        },
        DataType::Boolean => write!(out, "{}", array.as_boolean().value(row)),
        DataType::Int16 => write!(out, "{}", array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => write!(out, "{}", array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => write!(out, "{}", array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => write!(out, "{:?}", array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => write!(out, "{:?}", array.as_primitive::<Float64Type>().value(row)),
        DataType::Timestamp(..) => match array.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(ts) => write!(out, "{}", rfc3339(ts.value(row))),
            None => Ok(()),
        },
        DataType::FixedSizeList(..) => {
            let items = array.as_fixed_size_list().value(row);
            out.push('[');
            for i in 0..items.len() {
                if i > 0 {
                    out.push_str(", ");
                }
                cell(items.as_ref(), i, out);
            }
            out.push(']');
            Ok(())
        }
        // A column of a later minor version.
        other => write!(out, "<{other}>"),
    };
}

/// Appends a field of a CSV file, quoted where RFC 4180 requires it.
pub(crate) fn csv_field(value: &str, out: &mut String) {
    if value.contains([',', '"', '\n', '\r']) {
        out.push('"');
        out.push_str(&value.replace('"', "\"\""));
        out.push('"');
    } else {
        out.push_str(value);
    }
}

/// One row as a line: time, step, level, then `name=value` for the columns of its table.
///
/// Masks are drawn as `#` and `.`; lists of numbers are given by their mean.
pub(crate) fn line(batch: &RecordBatch, row: usize) -> String {
    let mut out = String::new();
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(batch.columns()).filter(|(_, column)| !column.is_null(row));
    for (field, column) in fields {
        match field.name().as_str() {
            "run_id" | "wall_s" | "segment" | "grid_h" | "grid_w" => continue,
            "ts" => cell(column, row, &mut out),
            "level" => {
                out.push(' ');
                cell(column, row, &mut out);
            }
            name => {
                let _ = write!(out, " {name}=");
                let mut value = String::new();
                list_or_cell(column, row, &mut value);
                let plain = !value.is_empty() && !value.contains([' ', '"', '\n', '\r', '\t', '\u{1b}']);
                if plain || name == "fields" && !value.contains(['\n', '\u{1b}']) {
                    out.push_str(&value);
                } else {
                    let _ = write!(out, "{value:?}");
                }
            }
        }
    }
    out
}

fn list_or_cell(column: &dyn Array, row: usize, out: &mut String) {
    let Some(list) = column.as_fixed_size_list_opt() else { return cell(column, row, out) };
    let items = list.value(row);
    if let Some(bits) = items.as_boolean_opt() {
        out.extend(bits.values().iter().map(|bit| if bit { '#' } else { '.' }));
    } else if let Some(floats) = items.as_primitive_opt::<Float32Type>() {
        let sum: f64 = floats.values().iter().map(|v| f64::from(*v)).sum();
        let _ = write!(out, "mean:{:.4}", sum / floats.len().max(1) as f64);
    }
}
