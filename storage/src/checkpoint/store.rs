//! Checkpoints on the disk: save, find, load, prune.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::safetensors_io::{FileSum, parse_f32, write_safetensors};
use super::{Checkpoint, CheckpointError, CheckpointRef, NamedTensor, state};
use crate::atomic::{self, FileError};
use crate::machine_memory;

const STATE: &str = "state.json";
const LATEST: &str = "latest";
/// A checkpoint being written.
const TMP: &str = ".tmp-";
/// A checkpoint being replaced by another of its step.
const OLD: &str = ".old-";
/// A checkpoint of a later step than the one that a run has gone back to.
const ASIDE: &str = "aside-";
/// A checkpoint being removed.
const DEL: &str = ".del-";

fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn parse_step(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    if digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Writes a checkpoint of the run directory `run`, makes it the latest, and removes old ones. Returns its folder.
///
/// Until `latest` is replaced, which is the last step before the old ones go, the previous checkpoint stays the latest;
/// a failure at any point leaves it so. A checkpoint of the same step is replaced.
///
/// # Errors
/// [`CheckpointError::Invalid`] if values do not fit their shapes, names occur twice or the state is no JSON object;
/// [`CheckpointError::File`] if a file operation fails. The previous checkpoint is still the latest then.
pub fn save(run: &Path, step: u64, checkpoint: &CheckpointRef<'_>) -> Result<PathBuf, CheckpointError> {
    let root = run.join("checkpoints");
    atomic::create_dir_all(&root)?;
    clean(run)?;
    let name = step_name(step);
    let tmp = root.join(format!("{TMP}{name}"));
    if let Err(error) = write_files(&tmp, step, checkpoint) {
        // Makes room again on a full disk; what stays is cleaned by the next save.
        let _ = fs::remove_dir_all(&tmp);
        return Err(error);
    }
    let dir = root.join(&name);
    let old = root.join(format!("{OLD}{name}"));
    let replaces = fs::symlink_metadata(&dir).is_ok();
    if replaces {
        atomic::rename(&dir, &old)?;
    }
    if let Err(error) = atomic::rename(&tmp, &dir) {
        if replaces {
            atomic::rename(&old, &dir)?;
        }
        return Err(error.into());
    }
    atomic::fsync_dir(&root)?;
    point_latest(&root, &name)?;
    if replaces {
        atomic::remove_dir_all(&old)?;
    }
    prune(&root, checkpoint.keep.max(1), &name)?;
    Ok(dir)
}

fn write_files(tmp: &Path, step: u64, checkpoint: &CheckpointRef<'_>) -> Result<(), CheckpointError> {
    atomic::create_dir(tmp)?;
    let groups = [
        ("model.safetensors", &checkpoint.model),
        ("head.safetensors", &checkpoint.head),
        ("mask.safetensors", &checkpoint.mask),
        ("optimizer.safetensors", &checkpoint.optimizer),
    ];
    let mut sums = BTreeMap::<String, FileSum>::new();
    for (name, tensors) in groups {
        sums.insert(name.to_string(), write_safetensors(&tmp.join(name), tensors)?);
    }
    let path = tmp.join(STATE);
    let mut file = atomic::create_new(&path)?;
    atomic::write_all(&mut file, &path, &state::to_bytes(step, &sums, checkpoint.state)?)?;
    atomic::sync(&file, &path)?;
    Ok(atomic::fsync_dir(tmp)?)
}

/// Replaces the link `latest` by rename.
fn point_latest(root: &Path, name: &str) -> Result<(), CheckpointError> {
    let tmp = root.join(format!("{TMP}{LATEST}"));
    atomic::remove_file(&tmp)?;
    atomic::symlink(Path::new(name), &tmp)?;
    atomic::rename(&tmp, &root.join(LATEST))?;
    Ok(atomic::fsync_dir(root)?)
}

/// Removes all but the `keep` newest checkpoints, never `current`.
fn prune(root: &Path, keep: usize, current: &str) -> Result<(), CheckpointError> {
    let steps = steps(root)?;
    // Those of steps after the current one were left by a run that has gone back; they count among the newest.
    let removed = steps.len().saturating_sub(keep);
    let mut renamed = Vec::new();
    for (_, name) in steps.into_iter().take(removed).filter(|(_, name)| name != current) {
        // Renamed first, so that a folder that lacks files is never taken for a checkpoint.
        let del = root.join(format!("{DEL}{name}"));
        atomic::rename(&root.join(&name), &del)?;
        renamed.push(del);
    }
    if !renamed.is_empty() {
        // The new names must reach the disk before the first removal of a file does.
        atomic::fsync_dir(root)?;
    }
    renamed.iter().try_for_each(|del| Ok(atomic::remove_dir_all(del)?))
}

/// Steps and names of the checkpoints in a folder, ascending.
fn steps(root: &Path) -> Result<Vec<(u64, String)>, FileError> {
    let names = atomic::names(root)?;
    let mut steps: Vec<(u64, String)> = names.into_iter().filter_map(|n| Some((parse_step(&n)?, n))).collect();
    steps.sort();
    Ok(steps)
}

/// The checkpoints of the run directory `run`: steps and folders, ascending.
///
/// # Errors
/// [`CheckpointError::File`] if the folder of the checkpoints cannot be read; one that is missing has none.
pub fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let root = run.join("checkpoints");
    Ok(steps(&root)?.into_iter().map(|(step, name)| (step, root.join(name))).collect())
}

/// The newest whole checkpoint of steps before `step`, beside the checkpoint's folder `dir`.
#[must_use]
pub fn older_whole(dir: &Path, step: u64) -> Option<PathBuf> {
    let root = atomic::parent(dir);
    let older = steps(root).ok()?.into_iter().rev().filter(|(other, _)| *other < step);
    older.map(|(_, name)| root.join(name)).find(|dir| load(dir).is_ok())
}

/// The level-1 steps in the name of a checkpoint's folder, none if it has another name.
#[must_use]
pub fn step_of(dir: &Path) -> Option<u64> {
    parse_step(&dir.file_name()?.to_string_lossy())
}

/// Makes the checkpoint of `step` the latest of `run`. Those of later steps are set aside as `aside-step-…`, which
/// nothing reads. Returns their folders. Only for the process that holds the run.
///
/// # Errors
/// [`CheckpointError::File`] if a link or folder cannot be renamed.
pub fn go_back(run: &Path, step: u64) -> Result<Vec<PathBuf>, CheckpointError> {
    let root = run.join("checkpoints");
    // The link first: a crash in between leaves checkpoints that it does not name.
    point_latest(&root, &step_name(step))?;
    let mut aside = Vec::new();
    for (_, name) in steps(&root)?.into_iter().filter(|(other, _)| *other > step) {
        let path = root.join(format!("{ASIDE}{name}"));
        if path.exists() {
            atomic::remove_dir_all(&path)?;
        }
        atomic::rename(&root.join(&name), &path)?;
        aside.push(path);
    }
    atomic::fsync_dir(&root)?;
    Ok(aside)
}

/// Finishes or takes back what an interrupted save left in `run`. Only for the process that holds the run.
///
/// # Errors
/// [`CheckpointError::File`] if a folder cannot be read, renamed or removed.
pub fn clean(run: &Path) -> Result<(), CheckpointError> {
    let root = run.join("checkpoints");
    for name in atomic::names(&root)? {
        let path = root.join(&name);
        if let Some(step) = name.strip_prefix(OLD) {
            let dir = root.join(step);
            if dir.exists() {
                atomic::remove_dir_all(&path)?;
            } else {
                atomic::rename(&path, &dir)?;
            }
        } else if name == format!("{TMP}{LATEST}") {
            atomic::remove_file(&path)?;
        } else if name.starts_with(TMP) || name.starts_with(DEL) {
            atomic::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Finds a checkpoint's folder from a run directory (its latest), its `checkpoints`, a `step-…` folder, or `latest`.
///
/// `checkpoints` itself may be a link to a folder on another disk. `latest` must name a folder beside it, and no
/// checkpoint of a run may be a link.
///
/// # Errors
/// [`CheckpointError::NotFound`] if there is no checkpoint, [`CheckpointError::Corrupt`] if a link leads out of the
/// run.
pub fn resolve(path: &Path) -> Result<PathBuf, CheckpointError> {
    let is_link = path.file_name().is_some_and(|name| name == LATEST);
    if !is_link && path.join(STATE).is_file() {
        if step_of(path).is_some() && is_of_run(path) {
            check_no_link(path)?;
        }
        return canonical(path);
    }
    let root = if is_link { atomic::parent(path).to_path_buf() } else { path.join("checkpoints") };
    let root = if root.is_dir() { root } else { path.to_path_buf() };
    newest(&root)?.ok_or_else(|| CheckpointError::NotFound(path.to_path_buf()))
}

fn canonical(path: &Path) -> Result<PathBuf, CheckpointError> {
    fs::canonicalize(path).map_err(|e| FileError::new("resolve", path, e).into())
}

/// Whether a checkpoint's folder lies in a run directory.
fn is_of_run(dir: &Path) -> bool {
    dir.parent().is_some_and(|root| root.ends_with("checkpoints"))
}

fn check_no_link(dir: &Path) -> Result<(), CheckpointError> {
    if fs::symlink_metadata(dir).is_ok_and(|found| found.is_symlink()) {
        let refused = io::Error::other("it is a symbolic link, which is not followed within a run directory");
        return Err(FileError::new("open", dir, refused).into());
    }
    Ok(())
}

/// The folder that `latest` names; without it, as after a crash at the first save, the newest that there is.
fn newest(root: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    let mut candidates = Vec::new();
    let link = root.join(LATEST);
    match fs::read_link(&link) {
        Ok(target) => {
            // A link that leads to nothing at all is left where checkpoints were removed or moved.
            if let Ok(target) = fs::canonicalize(&link)
                && (target.parent() != Some(&*canonical(root)?) || step_of(&target).is_none())
            {
                let reason = format!("it must name a checkpoint beside it: {}", target.display());
                return Err(CheckpointError::corrupt(&link, reason));
            }
            let name = target.file_name().unwrap_or_default().to_string_lossy();
            candidates.push(root.join(&*name));
            // A crash while a checkpoint of the same step was replaced.
            candidates.push(root.join(format!("{OLD}{name}")));
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {}
        // The path is a file, or one within a file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(FileError::new("read", &link, error).into()),
    }
    candidates.extend(steps(root)?.into_iter().rev().map(|(_, name)| root.join(name)));
    for dir in candidates {
        if dir.join(STATE).is_file() {
            check_no_link(&dir)?;
            return canonical(&dir).map(Some);
        }
    }
    Ok(None)
}

/// Reads a file of a checkpoint, naming it when it is not there. Checkpoints outside of runs may be made of links, as
/// caches of downloads are.
fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    read_at_most(path, machine_memory::available().num_bytes / 2)
}

fn read_at_most(path: &Path, max_bytes: u64) -> Result<Vec<u8>, CheckpointError> {
    let is_of_run = is_of_run(atomic::parent(path));
    let read = if is_of_run { atomic::read_plain_at_most } else { atomic::read_at_most };
    match read(path, max_bytes) {
        Err(error) if error.is_missing() => Err(CheckpointError::MissingFile(path.to_path_buf())),
        other => Ok(other?),
    }
}

/// Reads a checkpoint and checks every file against its sum. `dir` may be anything that [`resolve`] accepts.
///
/// # Errors
/// Those of [`resolve`]; [`CheckpointError::MissingFile`], [`CheckpointError::Corrupt`] or [`CheckpointError::Version`]
/// with the file that is missing, altered, truncated or of another format.
pub fn load(dir: &Path) -> Result<Checkpoint, CheckpointError> {
    let dir = if parse_step(&dir.file_name().unwrap_or_default().to_string_lossy()).is_some() && dir.is_dir() {
        // A folder of that name lacks a file rather than being none.
        dir.to_path_buf()
    } else {
        resolve(dir)?
    };
    let state_path = dir.join(STATE);
    let state = state::from_bytes(&state_path, &read_at_most(&state_path, state::MAX_BYTES)?)?;
    let tensors = |name: &str| -> Result<Vec<NamedTensor>, CheckpointError> {
        let path = dir.join(name);
        let sum = state.files.get(name);
        let sum = sum.ok_or_else(|| CheckpointError::corrupt(&state_path, format!("no checksum for `{name}`")))?;
        let bytes = read(&path)?;
        if bytes.len() as u64 != sum.bytes {
            let reason = format!("expected {} bytes, got {}", sum.bytes, bytes.len());
            return Err(CheckpointError::corrupt(&path, reason));
        }
        if crc32fast::hash(&bytes) != sum.crc32 {
            return Err(CheckpointError::corrupt(&path, "it was altered: its checksum does not fit"));
        }
        parse_f32(&path, &bytes)
    };
    Ok(Checkpoint {
        step: state.step,
        model: tensors("model.safetensors")?,
        head: tensors("head.safetensors")?,
        mask: tensors("mask.safetensors")?,
        optimizer: tensors("optimizer.safetensors")?,
        program_version: state.program_version,
        state: state.state,
    })
}
