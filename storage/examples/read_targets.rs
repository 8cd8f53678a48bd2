//! Reads datasets with their targets and writes what the readers make of them as JSON: `tests/python/targets.py` makes the
//! datasets and compares.
//!
//! `cargo run --release -p mlomae-storage --example read_targets -- CASES.json RESULTS.json`

use std::error::Error;
use std::fs::{self, File};
use std::path::PathBuf;

use mlomae_storage::dataset::{self, BoxFormat, DataError, DatasetSpec, FormatName, Target, TargetKind};
use serde_json::{Value, json};

fn text<'a>(case: &'a Value, key: &str) -> Option<&'a str> {
    case[key].as_str()
}

fn spec(case: &Value) -> Result<DatasetSpec, Box<dyn Error>> {
    let targets = case["targets"].as_array().into_iter().flatten();
    let columns = case["value_columns"].as_array().into_iter().flatten();
    Ok(DatasetSpec {
        format: FormatName::parse(text(case, "format").unwrap_or("auto"))?,
        path: text(case, "path").map(PathBuf::from),
        split: text(case, "split").unwrap_or("train").parse()?,
        targets: targets.filter_map(Value::as_str).map(TargetKind::parse).collect::<Result<_, _>>()?,
        label_column: text(case, "label_column").map(str::to_owned),
        mask_column: text(case, "mask_column").map(str::to_owned),
        value_columns: columns.filter_map(Value::as_str).map(str::to_owned).collect(),
        bbox_format: if text(case, "bbox_format") == Some("xyxy") { BoxFormat::Xyxy } else { BoxFormat::Xywh },
        reduce_zero_label: case["reduce_zero_label"].as_bool(),
        exif_orientation: case["exif_orientation"].as_bool().unwrap_or(true),
        ..DatasetSpec::default()
    })
}

fn target(target: &Target) -> Value {
    match target {
        Target::Unknown => Value::Null,
        Target::Class(class) => json!(class),
        Target::Labels(labels) => json!(labels),
        // What is no number is written as null.
        Target::Values(values) => json!(values),
        Target::Map(map) => json!({ "width": map.width, "height": map.height, "classes": map.classes }),
        Target::Boxes(boxes) => {
            let object = |object: &dataset::ObjectBox| {
                let (edges, class) = (object.edges, object.class);
                json!({ "edges": edges, "class": class, "ignored": object.ignored, "area": object.area })
            };
            boxes.iter().map(object).collect()
        }
    }
}

fn read(spec: &DatasetSpec) -> Result<Value, DataError> {
    let kinds: Vec<_> = dataset::kinds(spec)?.into_iter().map(TargetKind::as_str).collect();
    let dataset = dataset::open(spec)?;
    let infos: Vec<_> = dataset.targets_info().into_iter().map(|info| info.names).collect();
    let mut samples = Vec::new();
    for index in 0..dataset.len() {
        let sample = dataset.sample(index)?;
        let image = &sample.image;
        let targets: Vec<_> = sample.targets.iter().map(target).collect();
        samples.push(json!({ "size": [image.width, image.height], "pixels": image.pixels, "targets": targets }));
    }
    let info = dataset.info();
    Ok(json!({ "format": info.format, "split": info.split, "kinds": kinds, "names": infos, "samples": samples, 
        "notes": dataset.notes() }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(cases), Some(results), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: read_targets CASES.json RESULTS.json".into());
    };
    let cases: Vec<Value> = serde_json::from_reader(File::open(cases)?)?;
    let mut found = Vec::new();
    for case in &cases {
        found.push(
            read(&spec(case)?)
                .unwrap_or_else(|error| json!({ "error": error.to_string(), "code": error.exit_code().code() })),
        );
    }
    fs::write(results, serde_json::to_vec(&found)?)?;
    println!("{} datasets read", found.len());
    Ok(())
}
