//! The files of a comparison: `cells.parquet`, `items.parquet`, `summary.json`, `summary.md` and `report.html`.

use std::path::Path;

use mlomae_storage::atomic::write_atomic;
use mlomae_storage::columns_file::{Column, write_columns};
use mlomae_storage::exit_code::ExitCode;

use super::curves::charts;
use super::evaluations::{MetricValue, kind_of};
use super::experiment::ExperimentFile;
use super::items;
use super::markdown::markdown;
use super::page::page;
use super::summary::{Known, Summary};
use crate::process::error::CliError;

/// Writes all files of a comparison below `out`; `is_end` reads the logs of all cells for the page, and what is said of
/// every image for `items.parquet`.
///
/// # Errors
/// If one cannot be written.
pub fn write(
    out: &Path,
    summary: &Summary,
    cells: &[Known<'_>],
    file: &ExperimentFile,
    is_end: bool,
) -> Result<(), CliError> {
    write_cells(&out.join("cells.parquet"), cells, file)?;
    if is_end {
        items::write_all(&out.join("items.parquet"), cells, file)?;
    }
    let json = serde_json::to_vec_pretty(summary)
        .map_err(|error| CliError::new(ExitCode::Internal, format!("summary: {error}")))?;
    write_atomic(&out.join("summary.json"), &json)?;
    write_atomic(&out.join("summary.md"), markdown(summary).as_bytes())?;
    let arms: Vec<String> = summary.arms.iter().map(|arm| arm.name.clone()).collect();
    let charts = if is_end { charts(&arms, cells) } else { Vec::new() };
    write_atomic(&out.join("report.html"), page(summary, &charts).as_bytes())?;
    Ok(())
}

/// Writes the long table of cells: a row for each metric of each cell, whose value is null until it is finished.
fn write_cells(path: &Path, cells: &[Known<'_>], file: &ExperimentFile) -> Result<(), CliError> {
    let (metrics, evals) = (file.metrics(), &file.evals);
    let rows = || cells.iter().flat_map(|(cell, record)| metrics.iter().map(move |metric| (cell, record, metric)));
    let found = |record: &super::cell::CellRecord, metric: &String| -> Option<MetricValue> {
        record.metrics.iter().find(|value| value.name == *metric).cloned()
    };
    let int = |number: u64| i64::try_from(number).ok();
    let of_finished = |value: &dyn Fn(MetricValue) -> Option<f64>| {
        let value = |(cell, record, metric): (&super::cell::Cell, &super::cell::CellRecord, &String)| {
            found(record, metric).filter(|_| cell.is_finished(record, evals)).and_then(value)
        };
        Column::Float(rows().map(|(cell, record, metric)| value((cell, record, metric))).collect())
    };
    let columns = vec![
        ("arm", Column::Text(rows().map(|(cell, _, _)| Some(cell.arm.clone())).collect())),
        ("seed", Column::Int(rows().map(|(cell, _, _)| int(cell.seed)).collect())),
        ("metric", Column::Text(rows().map(|(_, _, metric)| Some(metric.clone())).collect())),
        ("value", of_finished(&|found| Some(found.value))),
        ("ci_low", of_finished(&|found| found.ci_low)),
        ("ci_high", of_finished(&|found| found.ci_high)),
        ("unit", Column::Text(rows().map(|(_, _, metric)| kind_of(metric).map(|kind| kind.unit.to_owned())).collect())),
        (
            "n",
            Column::Int(
                rows()
                    .map(|(_, record, metric)| found(record, metric).and_then(|value| value.num_items.try_into().ok()))
                    .collect(),
            ),
        ),
        ("outer_iterations", Column::Int(rows().map(|(cell, _, _)| int(cell.amount.outer)).collect())),
        ("steps", Column::Int(rows().map(|(cell, _, _)| int(cell.amount.steps)).collect())),
        ("images", Column::Int(rows().map(|(cell, _, _)| int(cell.amount.images)).collect())),
        ("labels", Column::Int(rows().map(|(cell, _, _)| int(cell.amount.labels)).collect())),
        ("gflop", Column::Float(rows().map(|(cell, _, _)| Some(cell.amount.gflop)).collect())),
        ("seconds", Column::Float(rows().map(|(_, record, _)| Some(record.seconds)).collect())),
        ("status", Column::Text(rows().map(|(_, record, _)| Some(record.status.as_str().to_owned())).collect())),
        ("exit_code", Column::Int(rows().map(|(_, record, _)| record.exit_code.map(i64::from)).collect())),
        ("config_hash", Column::Text(rows().map(|(cell, _, _)| Some(cell.key.clone())).collect())),
        ("run", Column::Text(rows().map(|(cell, _, _)| Some(cell.dir.display().to_string())).collect())),
    ];
    Ok(write_columns(path, columns)?)
}
