//! The files of a comparison: `cells.parquet`, `summary.json`, `summary.md` and `report.html`.

use std::path::Path;

use mlomae_storage::atomic::write_atomic;
use mlomae_storage::columns_file::{Column, write_columns};
use mlomae_storage::exit_code::ExitCode;

use super::curves::charts;
use super::evaluations::{MetricValue, kind_of};
use super::experiment::ExperimentFile;
use super::markdown::markdown;
use super::page::page;
use super::summary::{Known, Summary};
use crate::process::error::CliError;

/// Writes all files of a comparison below `out`; `with_curves` reads the logs of all cells for the page.
///
/// # Errors
/// If one cannot be written.
pub fn write(
    out: &Path,
    summary: &Summary,
    cells: &[Known<'_>],
    file: &ExperimentFile,
    with_curves: bool,
) -> Result<(), CliError> {
    write_cells(&out.join("cells.parquet"), cells, file)?;
    let json = serde_json::to_vec_pretty(summary)
        .map_err(|error| CliError::new(ExitCode::Internal, format!("summary: {error}")))?;
    write_atomic(&out.join("summary.json"), &json)?;
    write_atomic(&out.join("summary.md"), markdown(summary).as_bytes())?;
    let arms: Vec<String> = summary.arms.iter().map(|arm| arm.name.clone()).collect();
    let charts = if with_curves { charts(&arms, cells) } else { Vec::new() };
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
    let columns = vec![
        ("arm", Column::Text(rows().map(|(cell, _, _)| Some(cell.arm.clone())).collect())),
        ("seed", Column::Int(rows().map(|(cell, _, _)| int(cell.seed)).collect())),
        ("metric", Column::Text(rows().map(|(_, _, metric)| Some(metric.clone())).collect())),
        (
            "value",
            Column::Float(
                rows()
                    .map(|(cell, record, metric)| {
                        let is_finished = cell.is_finished(record, evals);
                        found(record, metric).filter(|_| is_finished).map(|value| value.value)
                    })
                    .collect(),
            ),
        ),
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
