//! `state.json`: what a checkpoint is, the sums of its files, and the caller's state.
//!
//! Its first line is `{"crc32":"xxxxxxxx",` with the sum of all bytes after that line, so the file is plain JSON and
//! still guards itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::CheckpointError;
use super::safetensors_io::FileSum;

/// Version of the checkpoint's form.
const CHECKPOINT_FORMAT: u64 = 1;

/// The largest `state.json`, about a million names of classes; parsed, it may take twenty times as much.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// A parsed `state.json`.
pub(super) struct State {
    pub(super) step: u64,
    pub(super) program_version: String,
    pub(super) files: BTreeMap<String, FileSum>,
    pub(super) state: Value,
}

/// The bytes of a `state.json`.
pub(super) fn to_bytes(
    step: u64,
    files: &BTreeMap<String, FileSum>,
    state: &Value,
) -> Result<Vec<u8>, CheckpointError> {
    if !state.is_object() {
        return Err(CheckpointError::Invalid("the state is no JSON object".into()));
    }
    let sums: Map<String, Value> = files
        .iter()
        .map(|(name, sum)| (name.clone(), json!({ "bytes": sum.bytes, "crc32": format!("{:08x}", sum.crc32) })))
        .collect();
    let body = json!({
        "format": "mlomae.checkpoint",
        "format_version": CHECKPOINT_FORMAT,
        "program_version": env!("CARGO_PKG_VERSION"),
        "step": step,
        "files": sums,
        "state": state,
    });
    let body = serde_json::to_string_pretty(&body).map_err(|e| CheckpointError::Invalid(e.to_string()))?;
    // The body without its opening brace continues the object of the first line.
    let rest = format!("{}\n", body.trim_start_matches('{').trim_start_matches('\n'));
    let bytes = format!("{{\"crc32\":\"{:08x}\",\n{rest}", crc32fast::hash(rest.as_bytes())).into_bytes();
    if bytes.len() as u64 > MAX_BYTES {
        // It could not be read again.
        return Err(CheckpointError::Invalid(format!("state.json may have {MAX_BYTES} bytes, not {}", bytes.len())));
    }
    Ok(bytes)
}

/// Parses and checks a `state.json`.
pub(super) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<State, CheckpointError> {
    let corrupt = |reason: String| CheckpointError::corrupt(path, reason);
    let value: Value = serde_json::from_slice(bytes).map_err(|e| corrupt(format!("truncated or not JSON: {e}")))?;
    if value["format"] != "mlomae.checkpoint" {
        return Err(corrupt("this is no state of an mlomae checkpoint".into()));
    }
    if value["format_version"] != CHECKPOINT_FORMAT {
        return Err(CheckpointError::Version {
            path: path.to_path_buf(),
            expected: CHECKPOINT_FORMAT,
            got: value["format_version"].to_string(),
        });
    }
    let rest = bytes.iter().position(|b| *b == b'\n').map_or(&[][..], |at| &bytes[at + 1..]);
    if value["crc32"] != format!("{:08x}", crc32fast::hash(rest)) {
        return Err(corrupt("it was altered: its checksum does not fit".into()));
    }
    let mut files = BTreeMap::new();
    for (name, sum) in value["files"].as_object().into_iter().flatten() {
        let crc32 = sum["crc32"].as_str().and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match (sum["bytes"].as_u64(), crc32) {
            (Some(bytes), Some(crc32)) => files.insert(name.clone(), FileSum { bytes, crc32 }),
            _ => return Err(corrupt(format!("no length and checksum for file `{name}`"))),
        };
    }
    let step = value["step"].as_u64().ok_or_else(|| corrupt("no step".into()))?;
    let program_version = value["program_version"].as_str().unwrap_or_default().to_string();
    Ok(State { step, program_version, files, state: value["state"].clone() })
}
