//! Operations of a pass beside those that are counted, alone in a process: the counter is one for all threads.

use std::sync::Arc;

use mlomae_kernels::flops;
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::lane::{CpuLane, Lane};
use mlomae_model::masking::difficulty::Difficulty;
use mlomae_model::masking::{MaskRule, MaskingChoice};
use mlomae_model::{Level, Model, ModelConfig, Vector};

#[test]
fn a_pass_has_the_operations_of_its_formula() {
    const BATCH: usize = 6;
    let masking = MaskingChoice::by_name("random").unwrap();
    let config = ModelConfig { depth: 3, masking, ..ModelConfig::default() };
    let model = Arc::new(Model::new(&config).unwrap());
    let mut lane = CpuLane::serial(model.clone(), 2);
    let mut images = vec![0.0; BATCH * config.image_values()];
    normals(&mut images, 1.0, &mut tensor_rng(1, "images"));
    let (theta, phi, images) = (Vector::from(model.init(Level::Pretrain, 1)), Vector::default(), images.into());
    for num_visible in [4, 16, 40] {
        let rule = MaskRule { num_visible: Some(num_visible), ..MaskRule::BY_SCORE };
        let scored = lane.score(None, &phi, &images, &rule).unwrap();
        let before = flops();
        lane.patch_losses(&theta, &images, &scored).unwrap();
        let (counted, formula) = (flops() - before, BATCH as u64 * config.pass_flops(num_visible));
        let relative = counted as f64 / formula as f64;
        assert!((relative - 1.0).abs() < 0.01, "{num_visible} visible: {counted} counted, {formula}");
    }
    // A predictor is what a step of level 1 has more, forward and backward, beside what the backward pass computes again.
    let step = |mask_difficulty| {
        let config =
            ModelConfig { masking: MaskingChoice::by_name("loss").unwrap(), mask_difficulty, ..ModelConfig::default() };
        let model = Arc::new(Model::new(&config).unwrap());
        let theta = Vector::from(model.init(Level::Pretrain, 1));
        let mut lane = CpuLane::serial(model, 2);
        let scored = lane.score(Some(&theta), &phi, &images, &MaskRule::BY_SCORE).unwrap();
        let before = flops();
        lane.pretrain(&theta, &phi, &images, &scored).unwrap();
        (flops() - before, config.pass_flops(config.num_visible()))
    };
    let (measured, predicted) = (step(Difficulty::Measured), step(Difficulty::Predicted));
    let relative = (predicted.0 - measured.0) as f64 / (3 * BATCH as u64 * (predicted.1 - measured.1)) as f64;
    assert!((0.99..1.3).contains(&relative), "{relative}: {predicted:?} {measured:?}");
}
