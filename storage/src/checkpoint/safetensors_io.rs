//! Safetensors files: written piece by piece, read whole.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::{CheckpointError, NamedTensor, TensorRef};
use crate::atomic::{self, FileError};

/// Values converted at a time.
const CHUNK: usize = 1 << 16;

/// The largest header: some hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 32 << 20;

/// Length and CRC-32 of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileSum {
    pub(super) bytes: u64,
    pub(super) crc32: u32,
}

/// A new file that counts and sums what goes into it.
struct Summed<'a> {
    path: &'a Path,
    file: File,
    hasher: crc32fast::Hasher,
    bytes: u64,
}

impl Summed<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        atomic::write_all(&mut self.file, self.path, bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Number of values of a shape, if it can be said.
fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

/// The header of the format: names, shapes and offsets as JSON, padded to 8 bytes.
fn header(tensors: &[TensorRef<'_>]) -> Result<Vec<u8>, CheckpointError> {
    let mut entries = Map::new();
    // What torch's and timm's loaders look for.
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut names = HashSet::new();
    let mut offset = 0usize;
    for tensor in tensors {
        let TensorRef { name, shape, values } = *tensor;
        if !names.insert(name) || name == "__metadata__" {
            return Err(CheckpointError::Invalid(format!("tensor name used twice or reserved: `{name}`")));
        }
        if count(shape) != Some(values.len()) {
            let len = values.len();
            return Err(CheckpointError::Invalid(format!("tensor `{name}` of shape {shape:?} has {len} values")));
        }
        let end = offset + values.len() * 4;
        entries.insert(name.into(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Writes a new file and brings it to the disk. The values' bits are kept, NaNs included.
pub(super) fn write_safetensors(path: &Path, tensors: &[TensorRef<'_>]) -> Result<FileSum, CheckpointError> {
    let header = header(tensors)?;
    let file = atomic::create_new(path)?;
    let mut out = Summed { path, file, hasher: crc32fast::Hasher::new(), bytes: 0 };
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&header);
    for tensor in tensors {
        for chunk in tensor.values.chunks(CHUNK) {
            bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
            if bytes.len() >= CHUNK * 4 {
                out.put(&bytes)?;
                bytes.clear();
            }
        }
    }
    out.put(&bytes)?;
    atomic::sync(&out.file, path)?;
    Ok(FileSum { bytes: out.bytes, crc32: out.hasher.finalize() })
}

/// Values of a tensor of any file.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// Bytes.
    U8(Vec<u8>),
    /// Truth values.
    Bool(Vec<bool>),
}

impl TensorData {
    /// The type's name in the format.
    #[must_use]
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "F32",
            Self::F64(_) => "F64",
            Self::I64(_) => "I64",
            Self::I32(_) => "I32",
            Self::U8(_) => "U8",
            Self::Bool(_) => "BOOL",
        }
    }

    /// All values as f64 (i64 beyond 2^53 are rounded).
    #[must_use]
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(v) => v.iter().map(|v| f64::from(*v)).collect(),
            Self::F64(v) => v.clone(),
            Self::I64(v) => v.iter().map(|v| *v as f64).collect(),
            Self::I32(v) => v.iter().map(|v| f64::from(*v)).collect(),
            Self::U8(v) => v.iter().map(|v| f64::from(*v)).collect(),
            Self::Bool(v) => v.iter().map(|v| f64::from(u8::from(*v))).collect(),
        }
    }
}

/// A tensor of any file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensorAny {
    /// Its name.
    pub name: String,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub data: TensorData,
}

fn words<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|word| convert(*word)).collect()
}

/// Reads any safetensors file of F32, F64, I64, I32, U8 or BOOL: its metadata, and its tensors in file order.
///
/// A truncated file, or one that is not safetensors, is refused with its path.
///
/// # Errors
/// [`CheckpointError::MissingFile`] if there is no such file, [`CheckpointError::Corrupt`] with its path if it is
/// truncated or not safetensors, [`CheckpointError::File`] if it cannot be read.
pub fn read_safetensors(path: &Path) -> Result<(HashMap<String, String>, Vec<NamedTensorAny>), CheckpointError> {
    let bytes = match atomic::read(path) {
        Err(error) if error.is_missing() => return Err(CheckpointError::MissingFile(path.to_path_buf())),
        other => other?,
    };
    parse(path, &bytes)
}

pub(super) fn parse(
    path: &Path,
    bytes: &[u8],
) -> Result<(HashMap<String, String>, Vec<NamedTensorAny>), CheckpointError> {
    // The first number is the length of the header, which is JSON and takes many times its size when it is parsed.
    let header_bytes = bytes.first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
    if header_bytes > MAX_HEADER_BYTES {
        let reason = format!("no whole safetensors file: its header announces {header_bytes} bytes");
        return Err(CheckpointError::corrupt(path, reason));
    }
    let explain = |e: safetensors::SafeTensorError| {
        CheckpointError::corrupt(path, format!("no whole safetensors file ({} bytes): {e}", bytes.len()))
    };
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(explain)?;
    let file = SafeTensors::deserialize(bytes).map_err(explain)?;
    let mut tensors = Vec::with_capacity(file.len());
    for name in metadata.offset_keys() {
        let view = file.tensor(&name).map_err(explain)?;
        let raw = view.data();
        let data = match view.dtype() {
            Dtype::F32 => TensorData::F32(words(raw, f32::from_le_bytes)),
            Dtype::F64 => TensorData::F64(words(raw, f64::from_le_bytes)),
            Dtype::I64 => TensorData::I64(words(raw, i64::from_le_bytes)),
            Dtype::I32 => TensorData::I32(words(raw, i32::from_le_bytes)),
            Dtype::U8 => TensorData::U8(raw.to_vec()),
            Dtype::BOOL => TensorData::Bool(raw.iter().map(|b| *b != 0).collect()),
            other => {
                let reason = format!("tensor `{name}`: expected F32, F64, I64, I32, U8 or BOOL, got {other:?}");
                return Err(CheckpointError::corrupt(path, reason));
            }
        };
        tensors.push(NamedTensorAny { name, shape: view.shape().to_vec(), data });
    }
    Ok((metadata.metadata().clone().unwrap_or_default(), tensors))
}

/// The tensors of a checkpoint's file, which are all F32.
pub(super) fn parse_f32(path: &Path, bytes: &[u8]) -> Result<Vec<NamedTensor>, CheckpointError> {
    let only_f32 = |tensor: NamedTensorAny| match tensor.data {
        TensorData::F32(values) => Ok(NamedTensor { name: tensor.name, shape: tensor.shape, values }),
        other => {
            let reason = format!("tensor `{}`: expected F32, got {}", tensor.name, other.dtype());
            Err(CheckpointError::corrupt(path, reason))
        }
    };
    parse(path, bytes)?.1.into_iter().map(only_f32).collect()
}
