//! Cells in their order, several at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::cell::{Cell, CellRecord, ChildOptions};
use crate::process::error::CliError;

/// Runs what is missing of `cells` and can be run, `options.jobs` at a time, in their order; `on_end` gets each that was
/// run with its number. A cell that fails does not keep the others from being run. After a stop no further one is begun.
///
/// # Errors
/// If a thread or a process cannot be started or a record cannot be written; the others are waited for.
pub fn run_cells(
    cells: &[Cell],
    options: &ChildOptions,
    on_end: &mut dyn FnMut(usize, &CellRecord) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let is_missing = |cell: &Cell| cell.failure.is_none() && !cell.is_finished(&cell.record(), &options.evals);
    let missing: Vec<usize> = (0..cells.len()).filter(|i| is_missing(&cells[*i])).collect();
    let (next, missing) = (AtomicUsize::new(0), &missing);
    let (sender, receiver) = mpsc::channel::<(usize, Result<CellRecord, CliError>)>();
    thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, missing.len().max(1)) {
            let (sender, next) = (sender.clone(), &next);
            let work = move || {
                while options.stop.reason().is_none() {
                    let Some(index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let ended = cells[*index].run(options);
                    let failed = ended.is_err();
                    // The receiver is gone only after an error that ends the comparison.
                    if sender.send((*index, ended)).is_err() || failed {
                        break;
                    }
                }
            };
            thread::Builder::new().spawn_scoped(scope, work).map_err(|error| CliError::no_thread(&error))?;
        }
        drop(sender);
        let mut result = Ok(());
        for (index, ended) in receiver {
            let told = ended.and_then(|record| on_end(index, &record));
            if let (Err(error), Ok(())) = (told, &result) {
                // Nothing new is begun; what runs is waited for.
                next.store(missing.len(), Ordering::Relaxed);
                result = Err(error);
            }
        }
        result
    })
}
