//! What a checkpoint may lack, and what it may not hold.

use mlomae_model::Level;
use serde_json::{Value, json};

use super::*;
use crate::config::{Config, ConfigInputs};
use crate::run::data::RunData;

/// The tensors of a state after `outer` outer iterations of the control `multitask`.
struct Tensors(Vec<(CheckpointFile, String, Vec<usize>, Vec<f32>)>);

impl TensorSource for Tensors {
    fn tensor(&self, file: CheckpointFile, name: &str) -> Option<TensorView<'_>> {
        let found = self.0.iter().find(|(of, tensor, ..)| *of == file && tensor == name)?;
        Some((&found.2, &found.3))
    }
}

fn method() -> Method {
    let settings = ["data.format=synthetic", "data.synthetic.num_train=90", "data.synthetic.image=16", "model.dim=8"];
    let more = ["model.heads=1", "model.depth=1", "pretrain.batch=8", "finetune.batch=8", "policy.batch=8"];
    let inputs = settings.iter().chain(&more).fold(ConfigInputs::default(), |inputs, setting| inputs.set(setting));
    let config = Config::resolve(&inputs.set("method.multitask=true")).expect("valid");
    RunData::open(&config, None).expect("data").method(&config).expect("method")
}

fn tensors(method: &Method) -> Tensors {
    let mut all = Vec::new();
    let mut add = |file, prefix: &str, set| {
        for entry in &method.model.layout(set).entries {
            let values = vec![0.5; entry.shape.iter().product()];
            all.push((file, format!("{prefix}{}", entry.name), entry.shape.clone(), values));
        }
    };
    add(CheckpointFile::Model, "", Level::Pretrain);
    add(CheckpointFile::Head, "", Level::Finetune);
    add(CheckpointFile::Mask, "", Level::Mask);
    for (prefix, set) in [("pretrain", Level::Pretrain), ("finetune", Level::Finetune), ("policy", Level::Mask)] {
        add(CheckpointFile::Optimizer, &format!("{prefix}.m."), set);
        add(CheckpointFile::Optimizer, &format!("{prefix}.v."), set);
    }
    add(CheckpointFile::Optimizer, "policy.shift.", Level::Pretrain);
    add(CheckpointFile::Optimizer, "policy.hypergradient.", Level::Mask);
    Tensors(all)
}

fn state() -> Value {
    json!({
        "outer_iteration": 3,
        "step": 6,
        "encoder": { "adamw_step": 6 },
        "evaluator": { "adamw_step": 3 },
        "policy": { "adamw_step": 2 },
    })
}

#[test]
fn what_need_not_be_there_may_be_absent_but_not_broken() {
    let method = method();
    let whole = TrainState::restore(&method, &tensors(&method), &state()).expect("fits");
    assert!(whole.previous_hypergradient.is_some() && whole.policies[0].shift.is_some());
    for prefix in ["policy.shift.", "policy.hypergradient."] {
        let mut absent = tensors(&method);
        absent.0.retain(|(_, name, ..)| !name.starts_with(prefix));
        let restored = TrainState::restore(&method, &absent, &state()).expect("fits without");
        assert_eq!(restored.previous_hypergradient.is_none(), prefix == "policy.hypergradient.");
        assert_eq!(restored.policies[0].shift.is_none(), prefix == "policy.shift.");

        let place = tensors(&method).0.iter().position(|(_, name, ..)| name.starts_with(prefix)).expect("there");
        let mut reshaped = tensors(&method);
        reshaped.0[place].2.push(1);
        let error = TrainState::restore(&method, &reshaped, &state()).expect_err("another shape");
        assert!(matches!(&error, StateError::Shape { name, .. } if name.starts_with(prefix)), "{error}");
        let mut torn = tensors(&method);
        torn.0.remove(place);
        let error = TrainState::restore(&method, &torn, &state()).expect_err("a part of it");
        assert!(matches!(&error, StateError::Missing { name, .. } if name.starts_with(prefix)), "{error}");
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_by_name() {
    let (method, cases) = (
        method(),
        [
            ("/outer_iteration", json!(-3), "outer_iteration must be a whole number from 0 to 1000000000, got -3"),
            ("/outer_iteration", json!(u64::MAX), "outer_iteration must be a whole number"),
            ("/outer_iteration", json!(2.5), "outer_iteration must be a whole number"),
            ("/outer_iteration", json!("3"), "outer_iteration must be a whole number"),
            ("/outer_iteration", Value::Null, "lacks the number outer_iteration"),
            ("/step", json!(7), "step must be 6, as outer_iteration is 3 and method.unroll 2, got 7"),
            ("/step", json!(-6), "step must be a whole number"),
            ("/encoder/adamw_step", json!(7), "encoder.adamw_step must be a whole number from 0 to 6, got 7"),
            ("/policy/adamw_step", json!(1e30), "policy.adamw_step must be a whole number from 0 to 3, got 1e+30"),
            ("/evaluator", json!([]), "lacks the number evaluator.adamw_step"),
        ],
    );
    for (place, value, expected) in cases {
        let mut state = state();
        *state.pointer_mut(place).expect("a place") = value.clone();
        let error = TrainState::restore(&method, &tensors(&method), &state).expect_err(place).to_string();
        assert!(error.starts_with("checkpoint's state") && error.contains(expected), "{place} {value}: {error}");
        assert!(!error.contains('\n'));
    }
}
