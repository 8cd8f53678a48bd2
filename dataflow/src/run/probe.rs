//! The probe of a task: its head, trained on the frozen encoder and judged by the task's own metrics.

use std::sync::Arc;

use mlomae_model::lane::Lane;
use mlomae_model::levels::optimizer::{AdamW, AdamWConfig, Decay, Schedule};
use mlomae_model::levels::vectors::{narrow, widen};
use mlomae_model::rng::{Purpose, keyed, shuffle};
use mlomae_model::tasks::batch::Batch;
use mlomae_model::tasks::metrics::{Interval, Measured, intervals};
use mlomae_model::tasks::{Targets, Task, Tokens, Want};
use mlomae_model::{Compute, ModelError, Params, Vector};

use crate::flow::exit::StageError;
use crate::flow::stage_name::StageName;
use crate::record::statistics::internal;
use crate::run::bootstrap::{LEVEL, NUM_RESAMPLES};
use crate::stages::load::LoadStage;

/// Images of a grain when a head is evaluated: it decides how sums are rounded.
const GRAIN: usize = 8;

/// Settings of a probe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeSettings {
    /// Passes over the images that the head learns from.
    pub epochs: usize,
    /// Images of a batch.
    pub batch: usize,
    /// Learning rate, which falls to 0 by a cosine.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Seed of initial weights and order.
    pub seed: u64,
    /// Bytes that the encoder's tokens of the images may take; what is beyond is computed again in each epoch.
    pub cache_bytes: usize,
}

/// What a probe has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// The task's metrics on the test images.
    pub measured: Vec<Measured>,
    /// Their bootstrap intervals over these images, as far as there are any.
    pub intervals: Vec<Interval>,
    /// Images that were learnt from.
    pub num_train: usize,
    /// Images that judged.
    pub num_test: usize,
}

/// Images of a split with what is needed to give their tokens and targets.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// The split's loader.
    pub loader: &'a LoadStage,
    /// Samples of the split.
    pub indices: &'a [usize],
}

/// What the head reads of some images, and their targets.
#[derive(Debug, Clone)]
struct Part {
    /// The values of each tap.
    taps: Vec<Vec<f32>>,
    targets: Targets,
}

impl Part {
    fn size_bytes(&self) -> usize {
        self.targets.size_bytes() + self.taps.iter().map(|tap| 4 * tap.len()).sum::<usize>()
    }
}

/// A probe in work.
struct Probe<'a> {
    lane: &'a mut dyn Lane,
    theta: Vector,
    task: Arc<dyn Task>,
    compute: &'a Compute,
    num_patches: usize,
    dim: usize,
}

/// Trains the head of the lane's task on the encoder `theta`, which stays as it is, and judges it. Images are not
/// augmented. `progress` gets what is done and how much there is.
///
/// # Errors
/// An unreadable sample, or any error of the lane.
pub fn probe(
    lane: &mut dyn Lane,
    compute: &Compute,
    theta: &Vector,
    [train, test]: [Images<'_>; 2],
    settings: &ProbeSettings,
    progress: &mut dyn FnMut(&'static str, usize, usize),
) -> Result<Probed, StageError> {
    let failed = internal(StageName::Evaluator);
    let theta = lane.upload(theta).map_err(&failed)?;
    let model = lane.model().clone();
    let (num_patches, dim, task) = (model.config.num_patches(), model.config.dim, model.task.clone());
    let mut probe = Probe { lane, theta, task, compute, num_patches, dim };
    let (c, num_train) = probe.fit(train, settings, progress)?;
    let mut metrics = probe.task.metrics();
    for (number, chunk) in test.indices.chunks(settings.batch.max(1)).enumerate() {
        if let Some(part) = probe.read(test.loader, chunk)? {
            let found = probe.task.predict(&c, &probe.tokens(&part.taps)).map_err(&failed)?;
            metrics.add(&found, &part.targets).map_err(&failed)?;
        }
        progress("test images", (number * settings.batch + chunk.len()).min(test.indices.len()), test.indices.len());
    }
    Ok(Probed {
        measured: metrics.finish(),
        intervals: intervals(metrics.as_ref(), settings.seed, NUM_RESAMPLES as u64, LEVEL),
        num_train,
        num_test: metrics.num_images(),
    })
}

impl Probe<'_> {
    /// The tokens and targets of the samples `indices`; none if all are bad images that are passed over.
    fn read(&mut self, loader: &LoadStage, indices: &[usize]) -> Result<Option<Part>, StageError> {
        let batch = loader.samples(indices)?;
        if batch.is_empty() {
            return Ok(None);
        }
        let taps = self.lane.ingest(&batch.images);
        let taps = taps.and_then(|images| self.lane.read_taps(&self.theta, &images, self.task.reads()));
        Ok(Some(Part { taps: taps.map_err(internal(StageName::Evaluator))?, targets: batch.targets }))
    }

    fn tokens<'t>(&self, taps: &'t [Vec<f32>]) -> Vec<Tokens<'t>> {
        let taps = self.task.reads().iter().zip(taps);
        taps.map(|(tap, values)| Tokens { per_image: tap.tokens(self.num_patches), dim: self.dim, values }).collect()
    }

    /// The rows `places` of a part.
    fn gather(&self, part: &Part, places: &[usize]) -> Part {
        let taps = self.task.reads().iter().zip(&part.taps);
        let rows = |(tap, values): (&mlomae_model::tap::Tap, &Vec<f32>)| {
            let width = tap.tokens(self.num_patches) * self.dim;
            places.iter().flat_map(|place| values[place * width..(place + 1) * width].iter().copied()).collect()
        };
        Part { taps: taps.map(rows).collect(), targets: part.targets.gather(places) }
    }

    /// The head after `settings.epochs` epochs, and the number of images that it has learnt from.
    fn fit(
        &mut self,
        train: Images<'_>,
        settings: &ProbeSettings,
        progress: &mut dyn FnMut(&'static str, usize, usize),
    ) -> Result<(Vec<f64>, usize), StageError> {
        let failed = internal(StageName::Evaluator);
        let cache = self.cached(train, settings, progress)?;
        let num_images = cache.as_ref().map_or(train.indices.len(), |part| part.targets.len());
        let constants = AdamWConfig { weight_decay: settings.weight_decay, beta2: 0.999, ..AdamWConfig::default() };
        let mut params: Params = Arc::new(self.task.init(settings.seed));
        let mut optimizer = AdamW::new(constants, self.task.layout());
        let batch = settings.batch.max(1);
        let total_steps = (settings.epochs * num_images.div_ceil(batch)) as u64;
        let schedule = Schedule { base: settings.lr, warmup_steps: 0, total_steps, decay: Decay::Cosine };
        for epoch in 0..settings.epochs {
            let mut order: Vec<usize> = (0..num_images).collect();
            shuffle(&mut order, &mut keyed(settings.seed, Purpose::Eval, epoch as u64, 0));
            for places in order.chunks(batch) {
                let part = match &cache {
                    Some(all) => Some(self.gather(all, places)),
                    None => {
                        let indices: Vec<usize> = places.iter().map(|place| train.indices[*place]).collect();
                        self.read(train.loader, &indices)?
                    }
                };
                if let Some(part) = part {
                    let gradient = self.gradient(&params, &part).map_err(&failed)?;
                    let rate = schedule.rate(optimizer.step);
                    params = optimizer.update(self.compute, &params, &narrow(&gradient), rate).map_err(&failed)?;
                }
            }
            progress("probe", epoch + 1, settings.epochs);
        }
        Ok((widen(&params), num_images))
    }

    /// Tokens and targets of all images; none where they would take more than their bound.
    fn cached(
        &mut self,
        train: Images<'_>,
        settings: &ProbeSettings,
        progress: &mut dyn FnMut(&'static str, usize, usize),
    ) -> Result<Option<Part>, StageError> {
        let mut all: Option<(Vec<Vec<f32>>, Vec<Targets>)> = None;
        let (mut num_bytes, mut num_done) = (0, 0);
        for chunk in train.indices.chunks(settings.batch.max(1)) {
            num_done += chunk.len();
            if let Some(part) = self.read(train.loader, chunk)? {
                num_bytes += part.size_bytes();
                if num_bytes > settings.cache_bytes {
                    return Ok(None);
                }
                match &mut all {
                    Some((taps, targets)) => {
                        taps.iter_mut().zip(part.taps).for_each(|(all, tap)| all.extend(tap));
                        targets.push(part.targets);
                    }
                    None => all = Some((part.taps, vec![part.targets])),
                }
            }
            progress("train images", num_done, train.indices.len());
        }
        Ok(all.and_then(|(taps, targets)| Some(Part { taps, targets: Targets::joined(&targets)? })))
    }

    /// ∂ℓ/∂c.
    fn gradient(&self, params: &Params, part: &Part) -> Result<Vec<f64>, ModelError> {
        let (task, y) = (self.task.as_ref(), &part.targets);
        let totals = task.totals(y);
        let batch = Batch { task, y, totals: &totals, noise: None, grain: GRAIN };
        let want = Want { dc: true, dz: false };
        batch.evaluate(self.compute, &widen(params), &self.tokens(&part.taps), want).map(|share| share.dc)
    }
}
