//! The state of a training run between two outer iterations: what a checkpoint holds and a resumed run starts from.

use std::collections::VecDeque;
use std::sync::Arc;

use mlomae_model::layout::SharedLayout;
use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::{Buffer, ParamSet, Params};

use crate::method::Method;
use crate::records::CheckpointFile;
use crate::stages::policy::{PolicyVersion, lag_prefix};
use crate::stages::score::Shift;

/// Everything that training changes.
#[derive(Debug, Clone)]
pub struct TrainState {
    /// Outer iterations done.
    pub outer: u64,
    /// θ.
    pub theta: Params,
    /// c.
    pub head: Params,
    /// The versions of φ that may still be asked for, oldest first; the last one has number `outer`.
    pub policies: VecDeque<PolicyVersion>,
    /// AdamW of levels 1, 2 and 3.
    pub optimizers: [AdamW; 3],
    /// The hypergradient of the iteration before.
    pub previous_hypergradient: Option<Params>,
}

/// Why a checkpoint does not fit the configured run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A tensor is not there.
    #[error("checkpoint lacks tensor {name} of shape {shape:?}")]
    Missing {
        /// Its name.
        name: String,
        /// The shape that the configuration asks for.
        shape: Vec<usize>,
    },
    /// A tensor has another shape.
    #[error("checkpoint's tensor {name} must have shape {expected:?}, got {found:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
        /// Its shape in the file.
        found: Vec<usize>,
    },
    /// A number of `state.json` is not there.
    #[error("checkpoint's state lacks the number {0}")]
    State(String),
}

/// A tensor's shape and values.
pub type TensorView<'a> = (&'a [usize], &'a [f32]);

/// Tensors of a checkpoint by file and name.
pub trait TensorSource {
    /// The tensor, if it is there.
    fn tensor(&self, file: CheckpointFile, name: &str) -> Option<TensorView<'_>>;
}

/// Reads a flat vector laid out as `layout` under `prefix`.
///
/// # Errors
/// [`StateError`] names the first tensor that is missing or has another shape.
pub fn read_flat(
    source: &dyn TensorSource,
    file: CheckpointFile,
    prefix: &str,
    layout: &SharedLayout,
) -> Result<Params, StateError> {
    let mut values = vec![0.0; layout.len];
    for entry in &layout.entries {
        let name = format!("{prefix}{}", entry.name);
        let Some((shape, tensor)) = source.tensor(file, &name) else {
            return Err(StateError::Missing { name, shape: entry.shape.clone() });
        };
        if shape != entry.shape {
            return Err(StateError::Shape { name, expected: entry.shape.clone(), found: shape.to_vec() });
        }
        values[entry.range()].copy_from_slice(tensor);
    }
    Ok(Arc::new(Buffer::from_vec(values)))
}

impl TrainState {
    /// The state before the first iteration.
    #[must_use]
    pub fn fresh(method: &Method) -> Self {
        let model = &method.model;
        let optimizer = |level: usize, set| AdamW::new(method.adamw[level], model.layout(set));
        Self {
            outer: 0,
            theta: model.init(ParamSet::Pretrain, method.seed),
            head: model.init(ParamSet::Head, method.seed),
            policies: VecDeque::from([PolicyVersion { phi: model.init(ParamSet::Mask, method.seed), shift: None }]),
            optimizers: [optimizer(0, ParamSet::Pretrain), optimizer(1, ParamSet::Head), optimizer(2, ParamSet::Mask)],
            previous_hypergradient: None,
        }
    }

    /// The state in a checkpoint; `state` is its `state.json` with the objects `encoder`, `evaluator` and `policy`.
    ///
    /// # Errors
    /// [`StateError`] names what does not fit.
    pub fn restore(method: &Method, source: &dyn TensorSource, state: &serde_json::Value) -> Result<Self, StateError> {
        let model = &method.model;
        let number = |place: &[&str]| {
            let value = place.iter().try_fold(state, |value, key| value.get(key)).and_then(serde_json::Value::as_u64);
            value.ok_or_else(|| StateError::State(place.join(".")))
        };
        let outer = number(&["outer_iteration"])?;
        let theta_layout = model.layout(ParamSet::Pretrain);
        let mask_layout = model.layout(ParamSet::Mask);
        let optimizer = |level: usize, stage: &str, set, prefix: &str| {
            let layout = model.layout(set);
            let moment = |which: &str| {
                let flat = read_flat(source, CheckpointFile::Optimizer, &format!("{prefix}.{which}."), layout)?;
                Ok(Arc::unwrap_or_clone(flat))
            };
            let step = number(&[stage, "adamw_step"])?;
            Ok(AdamW::restored(method.adamw[level], layout, step, moment("m")?, moment("v")?))
        };
        let mut policies = VecDeque::new();
        // As many versions as this run's lag can ask for; before outer iteration 0 there is nothing older than the first.
        let num_versions = outer.min(method.lag) + 1;
        for age in 0..usize::try_from(num_versions).unwrap_or(usize::MAX) {
            let shift = if method.multitask && outer > age as u64 {
                let prefix = format!("policy.shift.{}", lag_prefix(age));
                read_flat(source, CheckpointFile::Optimizer, &prefix, theta_layout).ok().map(Shift)
            } else {
                None
            };
            let phi = read_flat(source, CheckpointFile::Mask, &lag_prefix(age), mask_layout)?;
            policies.push_front(PolicyVersion { phi, shift });
        }
        Ok(Self {
            outer,
            theta: read_flat(source, CheckpointFile::Model, "", theta_layout)?,
            head: read_flat(source, CheckpointFile::Head, "", model.layout(ParamSet::Head))?,
            policies,
            optimizers: [
                optimizer(0, "encoder", ParamSet::Pretrain, "pretrain")?,
                optimizer(1, "evaluator", ParamSet::Head, "finetune")?,
                optimizer(2, "policy", ParamSet::Mask, "policy")?,
            ],
            previous_hypergradient: read_flat(source, CheckpointFile::Optimizer, "policy.hypergradient.", mask_layout)
                .ok(),
        })
    }

    /// The newest φ.
    #[must_use]
    pub fn phi(&self) -> &Params {
        &self.policies.back().expect("invariant: a policy has a version").phi
    }
}
