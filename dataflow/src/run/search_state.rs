//! The branch search in a checkpoint, read for a resume.

use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::search::{Branch, Candidate, Search};
use mlomae_model::{Level, Vector};
use serde_json::Value;

use crate::method::Method;
use crate::record::CheckpointFile;
use crate::run::state::{StateError, TensorSource, read_flat};
use crate::stages::search::{ARE_RANDOM, BRANCH, BranchState, branch_prefix};

/// The search of a checkpoint whose newest φ is `phi`; none if none was on.
///
/// # Errors
/// [`StateError`] names the first tensor or number that does not fit.
pub(super) fn read_search(
    method: &Method,
    source: &dyn TensorSource,
    policy: Option<&Value>,
    phi: &Vector,
    max_steps: u64,
) -> Result<Option<Search>, StateError> {
    let state = policy.and_then(|policy| policy.get(BRANCH)).filter(|state| !state.is_null());
    let Some(state) = state.filter(|_| method.searches_branches()) else { return Ok(None) };
    let refused = |found: &Value| StateError::Number {
        key: format!("policy.{BRANCH}"),
        allowed: format!("steps of up to {max_steps} and losses of 0 or more"),
        found: found.to_string(),
    };
    let BranchState { num_steps, adamw_step, judged } =
        serde_json::from_value(state.clone()).map_err(|_| refused(state))?;
    let losses = || judged.iter().flatten().flatten();
    if num_steps > max_steps || adamw_step > max_steps || losses().any(|loss| !loss.is_finite() || *loss < 0.0) {
        return Err(refused(state));
    }
    let (of_theta, of_phi) = (method.model.layout(Level::Pretrain), method.model.layout(Level::Mask));
    let branch = |candidate| {
        let read = |kind, layout| read_flat(source, CheckpointFile::Optimizer, &branch_prefix(candidate, kind), layout);
        let (m, v) = (read("m", of_theta)?, read("v", of_theta)?);
        Ok::<_, StateError>(Branch {
            phi: if candidate == Candidate::Random { phi.clone() } else { read("phi", of_phi)? },
            theta: read("theta", of_theta)?,
            adamw: AdamW::restored(method.adamw.pretrain, of_theta, adamw_step, m, v),
        })
    };
    let [plus, random, minus] = Candidate::ALL;
    Ok(Some(Search { branches: [branch(plus)?, branch(random)?, branch(minus)?], num_steps, judged }))
}

/// Whether random masks are in use in the version that is `age` updates old.
///
/// # Errors
/// If the state has no truth values there.
pub(super) fn is_random(policy: Option<&Value>, age: usize) -> Result<bool, StateError> {
    let Some(all) = policy.and_then(|policy| policy.get(ARE_RANDOM)) else { return Ok(false) };
    let found = all.as_array().map(|all| all.get(age).map_or(Some(false), Value::as_bool));
    found.flatten().ok_or_else(|| StateError::Number {
        key: format!("policy.{ARE_RANDOM}"),
        allowed: "a list of true and false".to_owned(),
        found: all.to_string(),
    })
}
