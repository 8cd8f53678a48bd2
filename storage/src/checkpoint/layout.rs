//! Whether a checkpoint's tensors are those a model expects.

use std::collections::{HashMap, HashSet};

use super::{CheckpointError, NamedTensor};

/// Checks that `tensors` holds every tensor of `expected` in its shape; further tensors are allowed.
///
/// The error names the first tensor of `expected` that is missing or has another shape.
pub fn expect_layout<N, S>(tensors: &[NamedTensor], expected: &[(N, S)]) -> Result<(), CheckpointError>
where
    N: AsRef<str>,
    S: AsRef<[usize]>,
{
    let found: HashMap<&str, &[usize]> = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    for (name, shape) in expected {
        let (name, shape) = (name.as_ref(), shape.as_ref());
        match found.get(name) {
            None => {
                return Err(CheckpointError::Layout(format!(
                    "missing tensor of shape {shape:?} ({} tensors found): `{name}`",
                    tensors.len()
                )));
            }
            Some(got) if *got != shape => {
                return Err(CheckpointError::Layout(format!("tensor `{name}`: expected shape {shape:?}, got {got:?}")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// As [`expect_layout`], and refuses tensors that are not in `expected`.
pub fn expect_exact_layout<N, S>(tensors: &[NamedTensor], expected: &[(N, S)]) -> Result<(), CheckpointError>
where
    N: AsRef<str>,
    S: AsRef<[usize]>,
{
    expect_layout(tensors, expected)?;
    let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_ref()).collect();
    match tensors.iter().find(|t| !known.contains(t.name.as_str())) {
        Some(extra) => {
            Err(CheckpointError::Layout(format!("unexpected tensor of shape {:?}: `{}`", extra.shape, extra.name)))
        }
        None => Ok(()),
    }
}
