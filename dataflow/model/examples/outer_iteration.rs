//! Outer iterations of MLO-MAE on random images: `cargo run --release -p mlomae-model --example outer_iteration`

use std::sync::Arc;

use mlomae_model::algorithm::{Batches, Constants, Event, State, outer_iteration};
use mlomae_model::hypergradient::{Carried, Clean, Settings};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::{CpuLane, LabelledImages};
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig};
use mlomae_model::masking::MaskRule;
use mlomae_model::tasks::Targets;
use mlomae_model::{Level, Model, ModelConfig, ModelError, PerLevel, Vector};

fn main() -> Result<(), ModelError> {
    let model = Arc::new(Model::new(&ModelConfig::default())?);
    let mut lane = CpuLane::serial(model.clone(), 8);
    let init = |level| Vector::from(model.init(level, 1));
    let adamw = PerLevel::from_fn(|level| AdamW::new(AdamWConfig::default(), model.layout(level)));
    let [theta, c, phi] = Level::ALL.map(init);
    let mut state = State { theta, c, phi, adamw, carried: Carried::default() };
    let mut images = vec![0.0; 16 * model.config.image_values()];
    normals(&mut images, 1.0, &mut tensor_rng(1, "images"));
    let (images, targets) = (Vector::from(images), Targets::Classes((0..16).map(|i| i % 10).collect()));
    let labelled = LabelledImages { images: &images, targets: &targets };
    let constants = Constants {
        form: &Clean,
        settings: Settings::default(),
        rates: PerLevel { pretrain: &|_| 1e-4, finetune: &|_| 1e-3, mask: &|_| 1e-3 },
        rule: &|_| MaskRule::BY_SCORE,
        noise: &|_, _| None,
    };
    let pretrain = [images.clone(), images.clone()];
    for outer in 0..5 {
        let batches = Batches { pretrain: &pretrain, finetune: labelled, validation: labelled };
        outer_iteration(&mut lane, &constants, &mut state, &batches, outer, &mut |event| match event {
            Event::Pretrain(g) => println!("{outer}: pretrain loss {:.4}", g.loss),
            Event::Finetune(g) => println!("{outer}: finetune loss {:.4}", g.loss),
            Event::Direction(v) => println!("{outer}: validation loss {:.4}", v.loss),
            Event::Scored(_) | Event::Search(_) | Event::Hypergradient(_) => {}
        })?;
    }
    Ok(())
}
