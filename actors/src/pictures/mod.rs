//! Pictures of a trained model: masks and reconstructions in the pixels of the dataset.

pub mod panel;

use std::sync::Arc;

use image::RgbImage;
use mlomae_kernels::TARGET_EPS;
use mlomae_model::Arena;
use mlomae_model::lane::LaneSize;
use mlomae_model::masking::MaskRule;
use mlomae_model::rng::{Purpose, keyed, shuffle};
use mlomae_storage::dataset::{Dataset, Split};
use mlomae_storage::exit_code::ExitCode;

use crate::pictures::panel::{PanelRow, PanelShape, compose};
use crate::process::error::CliError;
use crate::train::loaded_checkpoint::LoadedCheckpoint;

/// The panel of `num_images` images of a split, drawn by the run's seed.
///
/// # Errors
/// If there is no such split or a sample cannot be read.
pub fn panel_of(loaded: &LoadedCheckpoint, split: Split, num_images: usize) -> Result<RgbImage, CliError> {
    let experiment = &loaded.experiment;
    let model = &experiment.method.model;
    let dataset: &Arc<dyn Dataset> = match (split, &experiment.data.test) {
        (Split::Test | Split::Validation, Some(test)) => test,
        (Split::Test | Split::Validation, None) => {
            return Err(experiment.loader(split).err().unwrap_or_else(no_images));
        }
        (Split::Train, _) => &experiment.data.train,
    };
    let mut indices: Vec<usize> = (0..dataset.len()).collect();
    shuffle(&mut indices, &mut keyed(experiment.config.seed, Purpose::Panel, u64::MAX, 0));
    indices.truncate(num_images);
    indices.sort_unstable();
    if indices.is_empty() {
        return Err(no_images());
    }

    let batch = experiment.samples(split, &indices)?;
    // Bad images that are passed over are not among them.
    let indices: Vec<usize> = batch.ids.iter().filter_map(|id| usize::try_from(*id).ok()).collect();
    if indices.is_empty() {
        return Err(no_images());
    }
    let (method, size) = (&experiment.method, LaneSize { num_threads: 1, micro_batch: experiment.method.grain });
    let mut lane = method.engine.device.lane(model, &Arena::new(), method.grain, method.precision, size)?;
    // Exploration is for training; the panel shows what the policy wants.
    let objects = experiment.loader(split)?.object_patches(&indices, model.config.patch);
    let known = objects.as_ref().filter(|_| method.masks_need_objects()).map(|objects| objects.as_slice().into());
    let policy = loaded.state.policy();
    let rule = MaskRule {
        is_random: policy.is_random,
        explore: 0.0,
        explore_arms: false,
        ratio_arms: false,
        objects: known,
        ..method.mask_rule(loaded.step)
    };
    let (theta, images) = (lane.upload(&loaded.state.theta)?, lane.ingest(&batch.images)?);
    let teacher = loaded.state.teacher.as_ref().map(|teacher| lane.upload(teacher)).transpose()?;
    let phi = lane.upload(&policy.phi)?;
    let weights = Some(teacher.as_ref().unwrap_or(&theta));
    let scored = lane.score(weights, &phi, &images, &rule)?;
    let predicted = lane.reconstruct(&theta, &images, &scored)?;
    let images = batch.images.to_values()?;

    let shape = &model.config;
    let (num_patches, num_values) = (shape.num_patches(), shape.image_values());
    let class_names = &dataset.info().class_names;
    let mut rows = Vec::with_capacity(batch.len());
    for number in 0..batch.len() {
        let image = &images[number * num_values..(number + 1) * num_values];
        let patches = number * num_patches..(number + 1) * num_patches;
        let values = shape.patch_values();
        let predicted = &predicted[patches.start * values..patches.end * values];
        let class = batch.targets.class(number).and_then(|class| class_names.get(usize::try_from(class).ok()?));
        let pixels = |values: &[f32]| to_pixels(values, shape, &experiment.data.normalisation);
        rows.push(PanelRow {
            title: match class {
                Some(class) => format!("sample {}, {class}", batch.ids[number]),
                None => format!("sample {}", batch.ids[number]),
            },
            image: pixels(image),
            scores: scored.scores().or(scored.guide.as_deref()).map(|scores| scores[patches.clone()].to_vec()),
            object: objects.as_ref().map(|objects| objects[patches.clone()].to_vec()),
            mask: patches.map(|patch| scored.order.is_masked(patch)).collect(),
            reconstruction: pixels(&undo_target(predicted, image, shape)),
        });
    }
    let mut notes = vec![
        format!("{}, {} split, after {} level-1 steps", loaded.name(), dataset.info().split, loaded.step),
        "reconstruction: the normalised target undone with each patch's own mean and deviation".to_owned(),
    ];
    if policy.is_random {
        notes.push("random masks: the last branch search has decided so; there are no scores".to_owned());
    } else if !method.is_learned() {
        notes.push(format!("{} masks: there are no scores", experiment.config.mask.strategy));
    } else if objects.is_some() {
        notes.push("green outline: the patches of the object".to_owned());
    }
    let shape = PanelShape { image: shape.image, patch: shape.patch, channels: shape.channels };
    compose(shape, &rows, &notes).map_err(|error| CliError::new(ExitCode::Internal, format!("panel: {error}")))
}

fn no_images() -> CliError {
    CliError::new(ExitCode::NoInput, "data: the split has no images")
}

/// Undoes the patch-wise normalisation of the target: predicted patches [L, P·P·C], value order (row,
/// column, channel), become an image [C, H, W] in the units of `image`, whose patches give mean and
/// (unbiased) deviation.
fn undo_target(predicted: &[f32], image: &[f32], shape: &mlomae_model::ModelConfig) -> Vec<f32> {
    let (side, patch, channels, grid) = (shape.image, shape.patch, shape.channels, shape.grid());
    let num = shape.patch_values();
    let mut out = vec![0.0; image.len()];
    for (index, predicted) in predicted.chunks_exact(num).enumerate() {
        let (top, left) = (index / grid * patch, index % grid * patch);
        let place = |value: usize| {
            let (pixel, channel) = (value / channels, value % channels);
            channel * side * side + (top + pixel / patch) * side + left + pixel % patch
        };
        let mean = (0..num).map(|v| f64::from(image[place(v)])).sum::<f64>() / num as f64;
        let squares = (0..num).map(|v| (f64::from(image[place(v)]) - mean).powi(2)).sum::<f64>();
        let deviation = (squares / (num - 1).max(1) as f64 + TARGET_EPS).sqrt();
        for (value, predicted) in predicted.iter().enumerate() {
            out[place(value)] = (f64::from(*predicted) * deviation + mean) as f32;
        }
    }
    out
}

/// Undoes the dataset's normalisation: values [C, H, W] become pixels [H, W, C], 0 to 255.
fn to_pixels(
    values: &[f32],
    shape: &mlomae_model::ModelConfig,
    normalisation: &mlomae_dataflow::input::augment::Normalisation,
) -> Vec<u8> {
    let (num_pixels, channels) = (shape.image * shape.image, shape.channels);
    (0..num_pixels * channels)
        .map(|place| {
            let (pixel, channel) = (place / channels, place % channels);
            let value = values[channel * num_pixels + pixel];
            let share = value * normalisation.std[channel] + normalisation.mean[channel];
            // Saturates, and takes NaN to 0.
            (share * 255.0).round() as u8
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::input::augment::Normalisation;
    use mlomae_kernels::patch_targets;

    fn shape() -> mlomae_model::ModelConfig {
        mlomae_model::ModelConfig { image: 8, patch: 4, ..mlomae_model::ModelConfig::default() }
    }

    #[test]
    fn a_perfect_prediction_is_the_image() {
        let shape = shape();
        let image: Vec<f32> = (0..shape.image_values()).map(|i| ((i * 37 + i * i) % 101) as f32 / 20.0 - 2.0).collect();
        let mut target = vec![0.0; image.len()];
        patch_targets(&mut target, &image, shape.channels, shape.image, shape.patch);
        let undone = undo_target(&target, &image, &shape);
        for (undone, value) in undone.iter().zip(&image) {
            assert!((undone - value).abs() < 1e-5, "{undone} {value}");
        }
    }

    #[test]
    fn pixels_come_back_from_normalised_values() {
        let shape = shape();
        let normalisation = Normalisation { mean: vec![0.5, 0.4, 0.3], std: vec![0.2, 0.3, 0.25] };
        let pixels: Vec<u8> = (0..shape.image_values()).map(|i| (i * 7 % 256) as u8).collect();
        let mut values = vec![0.0; pixels.len()];
        for (place, pixel) in pixels.iter().enumerate() {
            let (at, channel) = (place / 3, place % 3);
            values[channel * 64 + at] =
                (f32::from(*pixel) / 255.0 - normalisation.mean[channel]) / normalisation.std[channel];
        }
        assert_eq!(to_pixels(&values, &shape, &normalisation), pixels);
        values[0] = 1e9;
        values[64] = f32::NAN;
        assert_eq!(to_pixels(&values, &shape, &normalisation)[..2], [255, 0]);
    }
}
