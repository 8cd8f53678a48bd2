//! The list of sealed parts, `logs/sums.jsonl`: rows, bytes and CRC-32 of each, one JSON object a line.
//!
//! Lines are only appended, and each carries the CRC-32 of the rest of the line, so that a torn or altered line is
//! skipped. A new part is listed after its rename, a replacement or removal before it happens: whenever a crash occurs,
//! a part fits one of its lines or has none yet.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::paths::{self, logs_dir, part_name};
use super::tables::Table;
use crate::atomic::{self, FileError};

const FILE: &str = "sums.jsonl";

/// The entry of a part in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartSum {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    /// Oldest first; more than one if rows were removed.
    versions: Vec<PartSum>,
    is_gone: bool,
}

/// The list, as read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums {
    parts: BTreeMap<(Table, u64), Entry>,
}

fn path(run: &Path) -> PathBuf {
    logs_dir(run).join(FILE)
}

impl Sums {
    /// Reads the list of a run; runs of earlier versions have none.
    pub(crate) fn read(run: &Path) -> Result<Self, FileError> {
        let bytes = match atomic::read_plain(&path(run)) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut sums = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            if let Some((part, sum)) = parse(line) {
                let entry = sums.parts.entry(part).or_default();
                entry.is_gone = sum.is_none();
                entry.versions.extend(sum);
            }
        }
        Ok(sums)
    }

    /// Whether a part of this length and sum is one that was listed; none if the part never was.
    pub(crate) fn fits(&self, table: Table, number: u64, bytes: u64, crc32: u32) -> Option<bool> {
        let versions = &self.parts.get(&(table, number)).filter(|entry| !entry.versions.is_empty())?.versions;
        Some(versions.iter().any(|sum| (sum.bytes, sum.crc32) == (bytes, crc32)))
    }

    /// The newest line of a part, unless it says that the part is gone.
    pub(crate) fn newest(&self, table: Table, number: u64) -> Option<PartSum> {
        self.parts.get(&(table, number)).filter(|entry| !entry.is_gone)?.versions.last().copied()
    }

    /// The parts of `table` that should be there, ascending.
    pub(crate) fn expected(&self, table: Table) -> impl Iterator<Item = u64> + '_ {
        self.parts.range((table, 0)..=(table, u64::MAX)).filter(|(_, entry)| !entry.is_gone).map(|((_, n), _)| *n)
    }

    /// The highest number that a part of `table` ever had.
    pub(crate) fn max_number(&self, table: Table) -> Option<u64> {
        self.parts.range((table, 0)..=(table, u64::MAX)).next_back().map(|((_, number), _)| *number)
    }
}

/// The number for the next stream of `table`, which no part ever had: readers continue by number and would miss a
/// reused one.
pub(crate) fn next_number(run: &Path, table: Table) -> Result<u64, FileError> {
    let used = paths::parts(run, table)?.into_iter().chain(paths::streams(run, table)?);
    let last = used.chain(paths::damaged(run, table)?).chain(Sums::read(run)?.max_number(table)).max();
    Ok(last.unwrap_or(0).saturating_add(1))
}

/// A line without its sum: an object that is not closed yet.
fn open_line(table: Table, number: u64, sum: Option<&PartSum>) -> String {
    let part = format!("{table}/{}", part_name(number));
    let object = match sum {
        Some(sum) => {
            json!({ "part": part, "rows": sum.rows, "bytes": sum.bytes, "crc32": format!("{:08x}", sum.crc32) })
        }
        None => json!({ "part": part, "gone": true }),
    };
    object.to_string().trim_end_matches('}').to_owned()
}

fn parse(line: &[u8]) -> Option<((Table, u64), Option<PartSum>)> {
    let text = std::str::from_utf8(line).ok()?;
    let text = text.trim_end_matches('\0');
    let (before, _) = text.rsplit_once(",\"line\":\"")?;
    let object: Value = serde_json::from_str(text).ok()?;
    if object["line"] != format!("{:08x}", crc32fast::hash(before.as_bytes())) {
        return None;
    }
    let (table, name) = object["part"].as_str()?.split_once('/')?;
    let number = name.strip_prefix("part-")?.strip_suffix(".parquet")?.parse().ok()?;
    let part = (table.parse().ok()?, number);
    if object["gone"] == true {
        return Some((part, None));
    }
    let crc32 = u32::from_str_radix(object["crc32"].as_str()?, 16).ok()?;
    Some((part, Some(PartSum { rows: object["rows"].as_u64()?, bytes: object["bytes"].as_u64()?, crc32 })))
}

/// Lists parts with their sums, or without one as gone, durably. Only for the process that holds the run.
pub(crate) fn append(run: &Path, parts: &[(Table, u64, Option<PartSum>)]) -> Result<(), FileError> {
    if parts.is_empty() {
        return Ok(());
    }
    let path = path(run);
    let is_new = std::fs::symlink_metadata(&path).is_err();
    let mut file = atomic::append(&path)?;
    let mut text = Vec::new();
    let len = file.metadata().map_err(|e| FileError::new("inspect", &path, e))?.len();
    if len > 0 {
        // A line torn by a power loss must not merge with the next one.
        let mut last = [0];
        let read =
            atomic::open_plain(&path, OpenOptions::new().read(true)).and_then(|f| f.read_exact_at(&mut last, len - 1));
        read.map_err(|e| FileError::new("read", &path, e))?;
        if last != [b'\n'] {
            text.push(b'\n');
        }
    }
    for (table, number, sum) in parts {
        let line = open_line(*table, *number, sum.as_ref());
        let crc32 = crc32fast::hash(line.as_bytes());
        // Writing to memory cannot fail.
        let _ = writeln!(text, "{line},\"line\":\"{crc32:08x}\"}}");
    }
    atomic::write_all(&mut file, &path, &text)?;
    atomic::sync(&file, &path)?;
    if is_new { atomic::fsync_dir(&logs_dir(run)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_torn_or_altered_line_is_passed_over_and_swallows_no_other() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(run.path().join("logs")).unwrap();
        let sum = |rows| PartSum { rows, bytes: 100 + rows, crc32: 0xdead_0000 + rows as u32 };
        let add = |number, rows: Option<u64>| append(run.path(), &[(Table::Masks, number, rows.map(sum))]).unwrap();
        add(1, Some(5));
        add(2, Some(6));
        let list = run.path().join("logs").join(FILE);
        let whole = fs::read(&list).unwrap();
        for line in whole.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            serde_json::from_slice::<Value>(line).expect("each line is plain JSON");
        }
        for cut in 0..=whole.len() {
            let mut bytes = whole[..cut].to_vec();
            if cut % 2 == 0 {
                bytes.resize(whole.len(), 0);
            }
            fs::write(&list, bytes).unwrap();
            add(3, Some(7));
            let sums = Sums::read(run.path()).unwrap();
            assert_eq!(sums.newest(Table::Masks, 3), Some(sum(7)), "cut at {cut}");
            let line_end = whole.iter().position(|b| *b == b'\n').unwrap();
            assert_eq!(sums.newest(Table::Masks, 1).is_some(), cut >= line_end, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&list, bytes).unwrap();
            let sums = Sums::read(run.path()).unwrap();
            for (number, rows) in [(1, 5), (2, 6)] {
                assert!(sums.newest(Table::Masks, number).is_none_or(|found| found == sum(rows)), "byte {at}");
            }
            assert!(sums.expected(Table::Masks).count() >= 1 || whole[at] == b'\n', "byte {at}");
        }
    }

    #[test]
    fn a_part_fits_any_of_its_lines_until_it_is_gone() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(run.path().join("logs")).unwrap();
        let sum = |rows| PartSum { rows, bytes: rows, crc32: rows as u32 };
        append(run.path(), &[(Table::Evals, 4, Some(sum(9))), (Table::Evals, 4, Some(sum(3)))]).unwrap();
        let sums = Sums::read(run.path()).unwrap();
        let fits = |number, n| sums.fits(Table::Evals, number, n, n as u32);
        assert_eq!([fits(4, 9), fits(4, 3), fits(4, 5), fits(5, 9)], [Some(true), Some(true), Some(false), None]);
        assert_eq!(sums.newest(Table::Evals, 4), Some(sum(3)));
        append(run.path(), &[(Table::Evals, 4, None)]).unwrap();
        let sums = Sums::read(run.path()).unwrap();
        assert_eq!((sums.expected(Table::Evals).count(), sums.max_number(Table::Evals)), (0, Some(4)));
    }
}
