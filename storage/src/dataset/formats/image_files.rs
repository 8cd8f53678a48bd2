//! Image files in a dataset's folder, which no link may leave.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::dataset::decode::survey::Survey;
use crate::dataset::error::DataError;
use crate::dataset::spec::DatasetSpec;
use crate::input::open_regular;

/// Files of a split whose headers are read at most, to know whether all images are grey and of one size. With more that
/// look alike, they are taken for coloured and of unknown size: a few seconds of a local disk's time, a minute of a
/// distant one's.
pub const MAX_SURVEYED: usize = 1 << 18;
/// Files whose headers are read before it is asked whether the others matter.
const SURVEYED_AT_ONCE: usize = 1024;
/// Threads that wait for a distant disk.
pub(crate) const NUM_SURVEYORS: usize = 8;

/// Refuses a path that leads out of the canonical `root`, and gives the canonical path.
pub(crate) fn inside(path: &Path, root: &Path) -> Result<PathBuf, DataError> {
    let target = path.canonicalize().map_err(|e| DataError::read(path, e))?;
    if target.starts_with(root) { Ok(target) } else { Err(DataError::Escape { path: path.to_owned(), target }) }
}

/// Reads headers in the order of the files until no more can be learnt.
pub(crate) fn survey<'p>(files: impl ExactSizeIterator<Item = &'p Path>, root: &Path, spec: &DatasetSpec) -> Survey {
    let (decoder, mut survey) = (spec.decoder(), Survey::new(spec.channels));
    let num_files = files.len();
    let looked_at: Vec<&Path> = files.take(MAX_SURVEYED).collect();
    let header = |path: &Path| {
        let file = open_inside(path, root).ok()?;
        decoder.header_of(&mut BufReader::new(file)).ok()
    };
    for some in looked_at.chunks(SURVEYED_AT_ONCE) {
        let each = some.len().div_ceil(NUM_SURVEYORS);
        let headers = std::thread::scope(|scope| {
            let read = |files: &[&Path]| files.iter().map(|path| header(path)).collect::<Vec<_>>();
            let readers: Vec<_> = some.chunks(each).map(|files| scope.spawn(move || read(files))).collect();
            // A reader that panicked knows nothing of its files.
            readers.into_iter().map(|reader| reader.join().unwrap_or_else(|_| vec![None])).collect::<Vec<_>>()
        });
        headers.into_iter().flatten().for_each(|header| survey.add(header));
        if survey.is_settled() {
            break;
        }
    }
    if num_files > MAX_SURVEYED {
        survey.leave_out_the_rest();
    }
    survey
}

/// A regular file inside the root.
pub(crate) fn open_inside(path: &Path, root: &Path) -> Result<File, DataError> {
    let target = inside(path, root)?;
    open_regular(&target).map_err(|e| DataError::read(path, e))
}

/// At most `limit` bytes of a regular file inside the root.
pub(crate) fn read(path: &Path, root: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    open_inside(path, root)?.take(limit).read_to_end(&mut bytes).map_err(|e| DataError::read(path, e))?;
    Ok(bytes)
}
