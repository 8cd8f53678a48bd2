//! The state of a training run between two outer iterations: what a checkpoint holds and a resumed run starts from.

use std::collections::VecDeque;
use std::sync::Arc;

use mlomae_model::hypergradient::Carried;
use mlomae_model::layout::SharedLayout;
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::search::Policy;
use mlomae_model::tasks::ridge::{Bank, Rows};
use mlomae_model::{Level, PerLevel, Vector};

use crate::counts::{Outer, Step};
use crate::method::Method;
use crate::record::statistics::MaskHistory;
use crate::record::{CheckpointFile, PartOf, optimizer_prefix};
use crate::run::search_state;
use crate::stages::encoder::TEACHER_PREFIX;
use crate::stages::evaluator::{BANK_TENSORS, bank_prefix};
use crate::stages::policy::{PolicyVersion, RATIO_BASELINE, SUM_PREFIX, SUPERVISED_PREFIXES, lag_prefix};
use crate::stages::score::Shift;

/// Everything that training changes.
#[derive(Debug, Clone)]
pub struct TrainState {
    /// Outer iterations done.
    pub outer: Outer,
    /// θ.
    pub theta: Vector,
    /// What scores read of θ's past; none where they read none.
    pub teacher: Option<Vector>,
    /// c.
    pub head: Vector,
    /// The versions of φ that may still be asked for, oldest first; the last is the newest of `outer`.
    pub policies: VecDeque<PolicyVersion>,
    /// AdamW of each level.
    pub optimizers: PerLevel<AdamW>,
    /// The hypergradient of the iteration before.
    pub previous_hypergradient: Option<Vector>,
    /// What is known of the masks so far.
    pub masks: MaskHistory,
    /// What level 3 keeps from one outer iteration to the next.
    pub carried: Carried,
    /// The optimizer of the control `supervised`.
    pub supervised: Option<AdamW>,
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
    /// What `state.json` says of masks cannot be.
    #[error("checkpoint's state: encoder.masks cannot be read: {0}")]
    Masks(String),
    /// A number of `state.json` cannot be.
    #[error("checkpoint's state: {key} must be {allowed}, got {found}")]
    Number {
        /// Its place.
        key: String,
        /// What it may be.
        allowed: String,
        /// What it is.
        found: String,
    },
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
) -> Result<Vector, StateError> {
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
    Ok(values.into())
}

/// As [`read_flat`], of what a checkpoint need not have: none if there is no tensor of it at all. A part of it is an
/// error.
///
/// # Errors
/// As [`read_flat`].
pub fn read_flat_if_any(
    source: &dyn TensorSource,
    file: CheckpointFile,
    prefix: &str,
    layout: &SharedLayout,
) -> Result<Option<Vector>, StateError> {
    let is_there = |name: &str| source.tensor(file, &format!("{prefix}{name}")).is_some();
    if !layout.entries.iter().any(|entry| is_there(&entry.name)) {
        return Ok(None);
    }
    read_flat(source, file, prefix, layout).map(Some)
}

/// The constants of the control `supervised`: those of level 1, without weight decay, which level 1 has done.
fn supervised_adamw(method: &Method) -> AdamWConfig {
    AdamWConfig { weight_decay: 0.0, ..method.adamw.pretrain }
}

/// The bank of a checkpoint, at most `num_batches` pairs, the newest.
fn read_bank(source: &dyn TensorSource, num_batches: usize) -> Result<Bank, StateError> {
    let mut bank = Bank::default();
    for age in 0.. {
        let name = |tensor: &str| format!("{}{tensor}", bank_prefix(age));
        if source.tensor(CheckpointFile::Optimizer, &name(BANK_TENSORS[0])).is_none() {
            break;
        }
        let read = |tensor: &str| match source.tensor(CheckpointFile::Optimizer, &name(tensor)) {
            Some((shape @ [rows, _], values)) if shape.iter().product::<usize>() == values.len() => {
                Ok((*rows, values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>()))
            }
            Some((shape, _)) => {
                Err(StateError::Shape { name: name(tensor), expected: vec![0, 0], found: shape.to_vec() })
            }
            None => Err(StateError::Missing { name: name(tensor), shape: vec![0, 0] }),
        };
        let rows = |[features, targets]: [&str; 2]| {
            let ((num_rows, features), (num_targets, targets)) = (read(features)?, read(targets)?);
            if num_rows != num_targets {
                return Err(StateError::Missing { name: name("targets"), shape: vec![num_rows, 0] });
            }
            Ok(Arc::new(Rows { features, targets, num_rows }))
        };
        let [f, f_y, v, v_y] = BANK_TENSORS;
        bank.add([rows([f, f_y])?, rows([v, v_y])?], num_batches);
    }
    Ok(bank)
}

/// The whole number at `place` of a state, which must be at most `max`.
fn whole_number(state: &serde_json::Value, place: &[&str], max: u64) -> Result<u64, StateError> {
    let value = place.iter().try_fold(state, |value, key| value.get(key));
    let value = value.filter(|value| !value.is_null()).ok_or_else(|| StateError::State(place.join(".")))?;
    value.as_u64().filter(|number| *number <= max).ok_or_else(|| StateError::Number {
        key: place.join("."),
        allowed: format!("a whole number from 0 to {max}"),
        found: value.to_string(),
    })
}

/// The running mean of the rewards of a learned mask ratio; none where the state has none.
fn ratio_baseline(state: &serde_json::Value) -> Result<Option<f32>, StateError> {
    let value = state.get(PartOf::Policy.as_str()).and_then(|policy| policy.get(RATIO_BASELINE));
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    // Cosines, over a relative cost.
    let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
    number.map(Some).ok_or_else(|| StateError::Number {
        key: format!("{}.{RATIO_BASELINE}", PartOf::Policy.as_str()),
        allowed: "a number".to_owned(),
        found: value.to_string(),
    })
}

/// Outer iterations of a run at most, so that level-1 steps have room in an `i64`.
const MAX_OUTER: u64 = 1_000_000_000;

impl TrainState {
    /// The state before the first iteration.
    #[must_use]
    pub fn fresh(method: &Method) -> Self {
        let model = &method.model;
        let init = |level| Vector::from(model.init(level, method.seed));
        Self {
            outer: Outer(0),
            theta: init(Level::Pretrain),
            teacher: method.reads_teacher().then(|| init(Level::Pretrain)),
            head: init(Level::Finetune),
            policies: VecDeque::from([PolicyVersion {
                policy: Policy { phi: init(Level::Mask), is_random: false },
                shift: None,
            }]),
            optimizers: PerLevel::from_fn(|level| AdamW::new(method.adamw[level], model.layout(level))),
            previous_hypergradient: None,
            masks: MaskHistory::default(),
            carried: Carried::default(),
            supervised: method.supervised.then(|| AdamW::new(supervised_adamw(method), model.layout(Level::Pretrain))),
        }
    }

    /// The state in a checkpoint; `state` is its `state.json` with the objects `encoder`, `evaluator` and `policy`.
    ///
    /// # Errors
    /// [`StateError`] names what does not fit.
    pub fn restore(method: &Method, source: &dyn TensorSource, state: &serde_json::Value) -> Result<Self, StateError> {
        let model = &method.model;
        let outer = Outer(whole_number(state, &["outer_iteration"], MAX_OUTER)?);
        let steps_done = outer.first_step(method.unroll);
        // The step is kept beside it since steps are held against the log's; before, it followed.
        let step = match state.get("step") {
            Some(_) => Step(whole_number(state, &["step"], u64::MAX)?),
            None => steps_done,
        };
        if step != steps_done {
            return Err(StateError::Number {
                key: "step".to_owned(),
                allowed: format!("{steps_done}, as outer_iteration is {outer} and method.unroll {}", method.unroll),
                found: step.to_string(),
            });
        }
        let theta_layout = model.layout(Level::Pretrain);
        let mask_layout = model.layout(Level::Mask);
        let optimizer = |level: Level| {
            let layout = model.layout(level);
            let moment = |which: &str| {
                let prefix = format!("{}.{which}.", optimizer_prefix(level));
                read_flat(source, CheckpointFile::Optimizer, &prefix, layout)
            };
            // A batch that was lost is a step less.
            let max = if level == Level::Pretrain { step.0 } else { outer.0 };
            let step = whole_number(state, &[PartOf::of(level).as_str(), "adamw_step"], max)?;
            Ok(AdamW::restored(method.adamw[level], layout, step, moment("m")?, moment("v")?))
        };
        // Checkpoints of versions before have none: what is known of masks begins anew.
        let masks = match state.get(PartOf::Encoder.as_str()).and_then(|encoder| encoder.get("masks")) {
            Some(masks) => MaskHistory::from_json(masks, model.config.num_patches()).map_err(StateError::Masks)?,
            None => MaskHistory::default(),
        };
        let of_policy = state.get(PartOf::Policy.as_str());
        let mut policies = VecDeque::new();
        // As many versions as this run's lag can ask for; before outer iteration 0 there is nothing older than the
        // first.
        for age in 0..usize::try_from(method.num_versions(outer)).unwrap_or(usize::MAX) {
            let shift = if method.shifts_encoder() && outer.0 > age as u64 {
                let prefix = format!("policy.shift.{}", lag_prefix(age));
                read_flat_if_any(source, CheckpointFile::Optimizer, &prefix, theta_layout)?.map(Shift)
            } else {
                None
            };
            let phi = read_flat(source, CheckpointFile::Mask, &lag_prefix(age), mask_layout)?;
            // Without a search nothing would ever end random masks.
            let is_random = method.searches_branches() && search_state::is_random(of_policy, age)?;
            policies.push_front(PolicyVersion { policy: Policy { phi, is_random }, shift });
        }
        let policy = |key: &str| match of_policy.and_then(|policy| policy.get(key)) {
            Some(_) => whole_number(state, &[PartOf::Policy.as_str(), key], outer.0),
            // Checkpoints of versions before have none.
            None => Ok(0),
        };
        let num_summed = policy("num_summed")?;
        let sum = match read_flat_if_any(source, CheckpointFile::Optimizer, SUM_PREFIX, mask_layout)? {
            // A shorter mean, asked for on the way, is due with the next one.
            Some(sum) if num_summed > 0 => Some((sum, num_summed)),
            _ => None,
        };
        let supervised = if method.supervised {
            let [m, v] =
                SUPERVISED_PREFIXES.map(|prefix| read_flat(source, CheckpointFile::Optimizer, prefix, theta_layout));
            let step = policy("supervised_step")?;
            Some(AdamW::restored(supervised_adamw(method), theta_layout, step, m?, v?))
        } else {
            None
        };
        let newest: Option<&Policy> = policies.back().map(|version: &PolicyVersion| &version.policy);
        let (is_random, search) = match newest {
            Some(Policy { phi, is_random }) => {
                (*is_random, search_state::read_search(method, source, of_policy, phi, step.0)?)
            }
            None => (false, None),
        };
        let theta = read_flat(source, CheckpointFile::Model, "", theta_layout)?;
        // A mixture that has not read one before begins with θ.
        let teacher = match method.reads_teacher() {
            true => read_flat_if_any(source, CheckpointFile::Optimizer, TEACHER_PREFIX, theta_layout)?
                .or_else(|| Some(theta.clone())),
            false => None,
        };
        Ok(Self {
            outer,
            teacher,
            carried: Carried {
                sum,
                bank: read_bank(source, method.settings.ridge_bank)?,
                ratio_baseline: ratio_baseline(state)?,
                is_random,
                search,
            },
            supervised,
            theta,
            head: read_flat(source, CheckpointFile::Head, "", model.layout(Level::Finetune))?,
            policies,
            optimizers: PerLevel::try_from_fn(optimizer)?,
            masks,
            previous_hypergradient: read_flat_if_any(
                source,
                CheckpointFile::Optimizer,
                "policy.hypergradient.",
                mask_layout,
            )?,
        })
    }

    /// The newest policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policies.back().expect("invariant: a policy has a version").policy
    }

    /// The newest φ.
    #[must_use]
    pub fn phi(&self) -> &Vector {
        &self.policy().phi
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
