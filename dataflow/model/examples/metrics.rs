//! Metrics of the predictions in a file, as JSON. `tests/python/metrics.py` compares them with those of scikit-learn,
//! pycocotools and others.
//!
//! `cargo run --release -p mlomae-model --example metrics -- SETS.json RESULTS.json`

use std::error::Error;
use std::fs;

use mlomae_model::tasks::metrics::{
    Accuracy, CocoAveragePrecision, MeanAveragePrecision, MeanIou, Metrics, RegressionErrors, intervals, resample,
};
use mlomae_model::tasks::{BoxTarget, Detection, Predictions, Targets};
use serde_json::{Map, Value, json};

/// The metrics of a set, with the predictions and targets of each of its images.
type Set = (Box<dyn Metrics>, Vec<(Predictions, Targets)>);

/// Rows of numbers.
fn rows<T>(value: &Value, number: impl Fn(&Value) -> Option<T>) -> Option<Vec<Vec<T>>> {
    let row = |row: &Value| row.as_array()?.iter().map(&number).collect();
    value.as_array()?.iter().map(row).collect()
}

/// A number of f32, NaN for null.
fn single(value: &Value) -> Option<f32> {
    if value.is_null() { Some(f32::NAN) } else { value.as_f64().map(|v| v as f32) }
}

fn edges(value: &Value) -> Option<[f32; 4]> {
    let edges: Option<Vec<f32>> = value["edges"].as_array()?.iter().map(single).collect();
    edges?.try_into().ok()
}

fn class(value: &Value) -> Option<u32> {
    value["class"].as_u64()?.try_into().ok()
}

fn object(value: &Value) -> Option<BoxTarget> {
    let ignored = value["ignored"].as_bool()?;
    Some(BoxTarget { edges: edges(value)?, class: class(value)?, ignored, area: single(&value["area"])? })
}

fn detection(value: &Value) -> Option<Detection> {
    Some(Detection { edges: edges(value)?, class: class(value)?, score: single(&value["score"])? })
}

/// A set of a file; none if it is not of that form.
fn read(set: &Value) -> Option<Set> {
    let num = set["num"].as_u64()? as usize;
    let (predictions, targets) = (&set["predictions"], &set["targets"]);
    let whole = |value: &Value| value.as_i64();
    let scores = || Some(rows(predictions, single)?.into_iter().map(move |values| Predictions::Scores { num, values }));
    let (metrics, images): (Box<dyn Metrics>, Vec<_>) = match set["kind"].as_str()? {
        "accuracy" => {
            let classes = rows(targets, whole)?.into_iter().flatten().map(|v| Targets::Classes([v as i32].into()));
            (Box::new(Accuracy::new(num)), scores()?.zip(classes).collect())
        }
        "average precision" => {
            let label = |value: &Value| whole(value).map(|v| v as i8);
            let labels = rows(targets, label)?.into_iter().map(|v| Targets::Labels { num, values: v.into() });
            (Box::new(MeanAveragePrecision::new(num)), scores()?.zip(labels).collect())
        }
        "regression" => {
            let found = rows(predictions, single)?.into_iter().map(|values| Predictions::Values { num, values });
            let numbers = rows(targets, single)?.into_iter().map(|v| Targets::Values { num, values: v.into() });
            (Box::new(RegressionErrors::new(num)), found.zip(numbers).collect())
        }
        "iou" => {
            let side = set["side"].as_u64()? as usize;
            // -1 becomes the class that is none.
            let known = |value: &Value| whole(value).map(|v| v as u16);
            let found = rows(predictions, known)?.into_iter().map(|classes| Predictions::Maps { side, classes });
            let maps = rows(targets, known)?.into_iter().map(|v| Targets::Maps { side, classes: v.into() });
            (Box::new(MeanIou::new(num)), found.zip(maps).collect())
        }
        "detection" => {
            let found = rows(predictions, detection)?.into_iter().map(|image| Predictions::Boxes(vec![image]));
            let boxes = rows(targets, object)?
                .into_iter()
                .map(|boxes| Targets::Boxes { starts: [0, boxes.len()].into(), boxes: boxes.into() });
            (Box::new(CocoAveragePrecision::new(num)), found.zip(boxes).collect())
        }
        _ => return None,
    };
    Some((metrics, images))
}

fn measure(set: &Value) -> Result<Value, Box<dyn Error>> {
    let (mut metrics, images) = read(set).ok_or("a set is not of the form that metrics.py writes")?;
    for (predictions, targets) in &images {
        metrics.add(predictions, targets)?;
    }
    let measured: Map<String, Value> =
        metrics.finish().into_iter().map(|m| (m.name.into_owned(), json!(m.value))).collect();
    let per_image: Map<String, Value> =
        metrics.per_image().into_iter().map(|row| (row.name.into_owned(), json!(row.values))).collect();
    let mut result = json!({ "metrics": measured, "per_image": per_image });
    if let (Some(num_resamples), Some(level)) = (set["num_resamples"].as_u64(), set["level"].as_f64()) {
        let seed = 1;
        let ends = |interval: mlomae_model::tasks::metrics::Interval| {
            (interval.name.into_owned(), json!([interval.low, interval.high]))
        };
        let all: Map<String, Value> = intervals(&*metrics, seed, num_resamples, level).into_iter().map(ends).collect();
        result["intervals"] = all.into();
        let times = (0..num_resamples).map(|number| resample(seed, number, images.len()));
        result["times"] = times.collect::<Vec<_>>().into();
    }
    Ok(result)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sets, results] = &arguments[..] else { return Err("usage: metrics SETS.json RESULTS.json".into()) };
    let sets: Vec<Value> = serde_json::from_slice(&fs::read(sets)?)?;
    let measured: Result<Vec<Value>, _> = sets.iter().map(measure).collect();
    fs::write(results, serde_json::to_vec(&measured?)?)?;
    println!("{} sets measured", sets.len());
    Ok(())
}
