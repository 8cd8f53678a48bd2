//! A trained model with its weights, read from a checkpoint.

use std::path::Path;
use std::sync::Arc;

use mlomae_storage::checkpoint::{self, Checkpoint, NamedTensor};
use serde::Deserialize;
use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::lane::{CpuLane, Lane};
use crate::level::Level;
use crate::levels::Cpu;
use crate::levels::vectors::widen;
use crate::model::Model;
use crate::parallel::arena::Arena;
use crate::parallel::compute::Compute;
use crate::tasks::{Predictions, Tokens};
use crate::vector::Vector;

/// Mean and standard deviation of each channel, by which images are normalised.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ChannelStatistics {
    /// Mean of each channel, of values scaled to [0, 1].
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, of values scaled to [0, 1].
    pub std: Vec<f32>,
}

/// A trained model, opened from a checkpoint by [`Model::open`].
#[derive(Debug)]
pub struct Trained {
    /// The networks.
    pub model: Arc<Model>,
    /// θ, flat.
    pub theta: Vector,
    /// c, flat.
    pub c: Vector,
    /// The newest φ, flat; empty where masks are not learned.
    pub phi: Vector,
    /// How images were normalised.
    pub normalisation: ChannelStatistics,
    /// Names of the classes, in the order of the head's outputs.
    pub class_names: Vec<String>,
    lane: CpuLane,
}

/// Images that a thread computes features of at a time.
const MICRO_BATCH: usize = 16;

impl Model {
    /// Opens the model of a checkpoint: a folder `step-…`, `latest`, or a run directory (its newest checkpoint).
    /// Features are computed on all cores.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), mlomae_model::ModelError> {
    /// let trained = mlomae_model::Model::open("runs/quick".as_ref())?;
    /// let pixels = vec![127; trained.model.config.image_values()]; // [H, W, C]
    /// let features = trained.features(&trained.normalised(&pixels)?)?; // [1, dim]
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the checkpoint cannot be read, is damaged or lacks a tensor, or is of an old version that did not store the
    /// shapes of the networks; when threads cannot be started.
    pub fn open(path: &Path) -> Result<Trained, ModelError> {
        let refused = |problem: String| ModelError::Checkpoint { path: path.display().to_string(), problem };
        let folder = checkpoint::resolve(path).map_err(|error| refused(error.to_string()))?;
        let checkpoint = checkpoint::load(&folder).map_err(|error| refused(error.to_string()))?;
        let config: ModelConfig = part(&checkpoint, "model").map_err(&refused)?;
        let normalisation = part(&checkpoint, "normalisation").map_err(&refused)?;
        let class_names = part(&checkpoint, "class_names").map_err(&refused)?;
        let model = Arc::new(Model::new(&config)?);
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let compute = Compute::new(num_threads, MICRO_BATCH, Arena::new())?;
        Ok(Trained {
            theta: flat(&model, Level::Pretrain, &checkpoint.model)?,
            c: flat(&model, Level::Finetune, &checkpoint.head)?,
            phi: flat(&model, Level::Mask, &checkpoint.mask)?,
            normalisation,
            class_names,
            lane: CpuLane::new(Cpu::new(model.clone(), compute)),
            model,
        })
    }
}

/// A part of the checkpoint's state.
fn part<T: serde::de::DeserializeOwned>(checkpoint: &Checkpoint, key: &str) -> Result<T, String> {
    let value = checkpoint.state.get(key).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value)
        .map_err(|error| format!("its state has no usable `{key}` (it may be of an older version): {error}"))
}

/// The flat weights of a level, from tensors found by name.
fn flat(model: &Model, level: Level, tensors: &[NamedTensor]) -> Result<Vector, ModelError> {
    let layout = model.layout(level);
    let mut values = vec![0.0; layout.len];
    for entry in &layout.entries {
        let refused = |problem: String| ModelError::Tensor { name: entry.name.clone(), problem };
        let tensor = tensors.iter().find(|tensor| tensor.name == entry.name);
        let tensor = tensor.ok_or_else(|| refused("missing from the checkpoint".to_owned()))?;
        if tensor.shape != entry.shape {
            return Err(refused(format!("must have shape {:?}, got {:?}", entry.shape, tensor.shape)));
        }
        values[entry.range()].copy_from_slice(&tensor.values);
    }
    Ok(values.into())
}

impl Trained {
    /// An image of bytes `[H, W, C]` as the networks read it: `[C, H, W]`, scaled to [0, 1] and normalised.
    ///
    /// # Errors
    /// When it is not of the model's size.
    pub fn normalised(&self, pixels: &[u8]) -> Result<Vec<f32>, ModelError> {
        let c = &self.model.config;
        if pixels.len() != c.image_values() {
            let problem = format!(
                "an image must have {0} x {0} pixels of {1} channels, {2} bytes; got {3}",
                c.image,
                c.channels,
                c.image_values(),
                pixels.len()
            );
            return Err(ModelError::Lane { lane: "cpu", problem });
        }
        let num_pixels = c.image * c.image;
        let mut values = vec![0.0; pixels.len()];
        for (place, pixel) in pixels.iter().enumerate() {
            let (at, channel) = (place / c.channels, place % c.channels);
            let value = f32::from(*pixel) / 255.0 - self.normalisation.mean[channel];
            values[channel * num_pixels + at] = value / self.normalisation.std[channel];
        }
        Ok(values)
    }

    fn check(&self, images: &[f32]) -> Result<(), ModelError> {
        let values = self.model.config.image_values();
        if !images.len().is_multiple_of(values) {
            let problem = format!("images must have {values} values each, got {} in all", images.len());
            return Err(ModelError::Lane { lane: "cpu", problem });
        }
        Ok(())
    }

    /// Features of normalised images `[batch, C, H, W]`: the CLS token after the encoder's final norm, `[batch, dim]`.
    ///
    /// # Errors
    /// When the values are not those of whole images of the model's size.
    pub fn features(&self, images: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.check(images)?;
        self.lane.clone().features(&self.theta, &images.to_vec().into())
    }

    /// What the head says of normalised images `[batch, C, H, W]`; for classification, logits `[batch, classes]`.
    ///
    /// # Errors
    /// When the values are not those of whole images of the model's size.
    pub fn predict(&self, images: &[f32]) -> Result<Predictions, ModelError> {
        self.check(images)?;
        let (c, task) = (&self.model.config, &self.model.task);
        let values = self.lane.clone().read_taps(&self.theta, &images.to_vec().into(), task.reads())?;
        let taps = task.reads().iter().zip(&values);
        let z = taps.map(|(tap, values)| Tokens { per_image: tap.tokens(c.num_patches()), dim: c.dim, values });
        task.predict(&widen(&self.c.to_host()?), &z.collect::<Vec<_>>())
    }
}
