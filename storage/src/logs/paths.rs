//! The paths of the logs in a run directory.

use std::path::{Path, PathBuf};

use super::error::LogError;
use super::tables::Table;
use crate::atomic::{FileError, create_dir_all, create_plain_dir, names};

/// `logs/` of a run.
pub(crate) fn logs_dir(run: &Path) -> PathBuf {
    run.join("logs")
}

/// `logs/live/`: the open streams.
pub(crate) fn live_dir(run: &Path) -> PathBuf {
    logs_dir(run).join("live")
}

/// `logs/<table>/`: the sealed parts.
pub(crate) fn table_dir(run: &Path, table: Table) -> PathBuf {
    logs_dir(run).join(table.name())
}

/// Live stream `number` of `table`.
pub(crate) fn live_path(run: &Path, table: Table, number: u64) -> PathBuf {
    live_dir(run).join(format!("{table}-{number:06}.arrows"))
}

/// Sealed part `number` of `table`. Stream n is sealed as part n.
pub(crate) fn part_path(run: &Path, table: Table, number: u64) -> PathBuf {
    table_dir(run, table).join(part_name(number))
}

/// The file name of a part.
pub(crate) fn part_name(number: u64) -> String {
    format!("part-{number:06}.parquet")
}

/// The new name of a damaged part, without the ending of a Parquet file, so that queries skip it.
pub(crate) fn damaged_path(run: &Path, table: Table, number: u64) -> PathBuf {
    table_dir(run, table).join(format!("{}.damaged", part_name(number)))
}

/// Creates all folders of the logs durably. `logs` may be a symbolic link to a folder, its subfolders may not.
pub(crate) fn create_dirs(run: &Path) -> Result<(), FileError> {
    create_dir_all(&logs_dir(run))?;
    create_plain_dir(&live_dir(run))?;
    Table::ALL.into_iter().try_for_each(|table| create_plain_dir(&table_dir(run, table)))
}

/// Refuses a run directory without logs.
pub(crate) fn require_logs(run: &Path) -> Result<(), LogError> {
    if logs_dir(run).is_dir() { Ok(()) } else { Err(LogError::NoLogs { path: run.to_path_buf() }) }
}

/// Numbers n of the names `<prefix>n<suffix>` in a folder, ascending.
fn numbered(dir: &Path, prefix: &str, suffix: &str) -> Result<Vec<u64>, FileError> {
    let mut numbers: Vec<u64> = names(dir)?
        .iter()
        .filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(suffix))
        .filter(|digits| digits.len() >= 6 && digits.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|digits| digits.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Numbers of the sealed parts of `table`, ascending.
pub(crate) fn parts(run: &Path, table: Table) -> Result<Vec<u64>, FileError> {
    numbered(&table_dir(run, table), "part-", ".parquet")
}

/// Numbers of the live streams of `table`, ascending.
pub(crate) fn streams(run: &Path, table: Table) -> Result<Vec<u64>, FileError> {
    numbered(&live_dir(run), &format!("{table}-"), ".arrows")
}

/// Numbers of the parts of `table` that were set aside, ascending.
pub(crate) fn damaged(run: &Path, table: Table) -> Result<Vec<u64>, FileError> {
    numbered(&table_dir(run, table), "part-", ".parquet.damaged")
}
