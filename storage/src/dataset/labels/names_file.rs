//! Files that list the names of classes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::map_classes::NAMES_FILE;
use crate::dataset::error::DataError;
use crate::dataset::formats::image_files::read;
use crate::dataset::layout::listing::Scope;
use crate::dataset::layout::notes::escaped;

/// ADE20K's list of 150 classes.
const ADE20K_FILE: &str = "objectInfo150.txt";
/// More bytes than this are no list of names.
const MAX_BYTES: u64 = 16 << 20;

/// The names of classes that `folder`, in the dataset's canonical `root`, lists in `objectInfo150.txt` or `classes.txt`,
/// with the file; none if there is no list.
///
/// # Errors
/// [`DataError::Malformed`] for a list that cannot be read, or in which a name comes twice.
pub(crate) fn listed(folder: &Path, root: &Path, scope: &Scope) -> Result<Option<(Vec<String>, PathBuf)>, DataError> {
    for name in [ADE20K_FILE, NAMES_FILE] {
        let file = folder.join(name);
        if !file.is_file() || scope.excludes(&file) {
            continue;
        }
        let bytes = read(&file, root, MAX_BYTES)?;
        let text = str::from_utf8(&bytes).map_err(|e| DataError::malformed(&file, e))?;
        let lines = || text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty());
        let names = if name == ADE20K_FILE {
            lines()
                .skip(1)
                .enumerate()
                .map(|(number, line)| ade20k_name(&file, number + 1, line))
                .collect::<Result<_, _>>()?
        } else {
            lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
            return Err(DataError::malformed(&file, format!("names a class twice, {}", escaped(twice))));
        }
        if names.is_empty() {
            return Err(DataError::malformed(&file, "names no class"));
        }
        return Ok(Some((names, file)));
    }
    Ok(None)
}

/// The name in a line of number, shares and counts, separated by tabs.
fn ade20k_name(file: &Path, number: usize, line: &str) -> Result<String, DataError> {
    let mut fields = line.split('\t').map(str::trim);
    let index: Option<usize> = fields.next().and_then(|field| field.parse().ok());
    match (index, fields.next_back()) {
        (Some(index), Some(name)) if index == number && !name.is_empty() => Ok(name.to_owned()),
        _ => {
            let reason = format!("class {number} must be a line of {number}, tabs and a name, not {}", escaped(line));
            Err(DataError::malformed(file, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let scope = Scope::new(&root, &[]).unwrap();
        let names = || listed(&root, &root, &scope).map(|found| found.map(|(names, _)| names));
        assert_eq!(names().unwrap(), None);
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
        write(NAMES_FILE, "\u{feff}sky\r\ntraffic light\n\n");
        assert_eq!(names().unwrap().unwrap(), ["sky", "traffic light"]);
        write(NAMES_FILE, "sky\nsky\n");
        assert!(names().unwrap_err().to_string().ends_with("names a class twice, sky"));
        write(NAMES_FILE, "\n");
        assert!(names().is_err());
        let head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n";
        write(
            ADE20K_FILE,
            &format!("{head}1\t0.1576\t11664\t1172\t1\twall\n2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"),
        );
        assert_eq!(names().unwrap().unwrap(), ["wall", "building, edifice"], "goes before the other");
        write(ADE20K_FILE, &format!("{head}2\t0.1\tx\n"));
        assert!(names().unwrap_err().to_string().contains("class 1 must be a line of 1"));
    }
}
