//! What the evaluations of a comparison say of every test image: a file beside each cell, and `items.parquet` of all.

use std::path::Path;

use mlomae_storage::columns_file::{Column, read_columns, write_columns};

use super::experiment::ExperimentFile;
use super::summary::Known;
use crate::process::error::CliError;
use crate::train::eval::JudgedImage;

/// Columns of a cell's file; that of the comparison has arm and seed before and `correct` behind them.
const EVAL: &str = "eval";
const SAMPLE_ID: &str = "sample_id";
const LABEL: &str = "label";
const PREDICTED: &str = "predicted";

/// Writes what each evaluation, by its name, says of the images that judged a cell.
///
/// # Errors
/// If the file cannot be written.
pub fn write_cell(path: &Path, judged: &[(&str, Vec<JudgedImage>)]) -> Result<(), CliError> {
    let rows = || judged.iter().flat_map(|(eval, images)| images.iter().map(move |image| (*eval, image)));
    let int = |value: &dyn Fn(&JudgedImage) -> i64| Column::Int(rows().map(|(_, image)| Some(value(image))).collect());
    let columns = vec![
        (EVAL, Column::Text(rows().map(|(eval, _)| Some(eval.to_owned())).collect())),
        (SAMPLE_ID, int(&|image| image.id)),
        (LABEL, int(&|image| i64::from(image.label))),
        (PREDICTED, int(&|image| i64::from(image.predicted))),
    ];
    Ok(write_columns(path, columns)?)
}

/// Writes the long table of images: a row for each evaluation of each image of each finished cell. A cell whose file
/// cannot be read is left out, and the next call judges it anew.
///
/// # Errors
/// If the file cannot be written.
pub fn write_all(path: &Path, cells: &[Known<'_>], file: &ExperimentFile) -> Result<(), CliError> {
    let (mut arms, mut seeds, mut evals) = (Vec::new(), Vec::new(), Vec::new());
    let [mut ids, mut labels, mut predicted] = [const { Vec::new() }; 3];
    for (cell, record) in cells {
        if !cell.is_finished(record, &file.evals) {
            continue;
        }
        let columns = match read_columns(&cell.items_path()) {
            Ok(columns) => columns,
            Err(error) => {
                tracing::warn!(kind = "compare", "{}: its images are left out of items.parquet: {error}", cell.title);
                // Ignored: it may be gone, or be a thing that only its owner can remove.
                let _ = std::fs::remove_file(cell.items_path());
                continue;
            }
        };
        for (name, column) in columns {
            match (name.as_str(), column) {
                (EVAL, Column::Text(column)) => {
                    arms.extend(column.iter().map(|_| Some(cell.arm.clone())));
                    seeds.extend(column.iter().map(|_| i64::try_from(cell.seed).ok()));
                    evals.extend(column);
                }
                (SAMPLE_ID, Column::Int(column)) => ids.extend(column),
                (LABEL, Column::Int(column)) => labels.extend(column),
                (PREDICTED, Column::Int(column)) => predicted.extend(column),
                _ => {}
            }
        }
    }
    let correct = labels.iter().zip(&predicted).map(|(label, predicted)| Some(i64::from(label == predicted)));
    let correct = Column::Int(correct.collect());
    let columns = vec![
        ("arm", Column::Text(arms)),
        ("seed", Column::Int(seeds)),
        (EVAL, Column::Text(evals)),
        (SAMPLE_ID, Column::Int(ids)),
        (LABEL, Column::Int(labels)),
        (PREDICTED, Column::Int(predicted)),
        ("correct", correct),
    ];
    Ok(write_columns(path, columns)?)
}
